# empty placeholder so that api imports; helper 4: overwrite this file
