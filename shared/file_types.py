"""The format of a text file by its extension. Each line of file_types.txt: a format, then some of its extensions."""

from pathlib import Path

_LINES = [line.split() for line in Path(__file__).with_suffix(".txt").read_text().splitlines()]
FORMAT_OF_EXTENSION = {extension: format for format, *extensions in _LINES for extension in extensions}
