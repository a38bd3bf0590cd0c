"""File names' endings: which formats they name among those that are plain text."""

BY_EXTENSION = {
    "markdown": "md markdown mdown mkd mkdn mdx qmd rmd",
    "rst": "rst rest",
    "csv": "csv",
    "tsv": "tsv tab",
    "html": "html htm xhtml",
    "eml": "eml",
    "mbox": "mbox",
    "mht": "mht mhtml",
    "svg": "svg",
    "fodt": "fodt fods fodp",
    "code": (
        "py pyi pyx ipynb js mjs cjs jsx ts tsx vue svelte java kt kts scala groovy c h cc cpp cxx hh hpp hxx m "
        "mm cs fs vb go rs rb php pl pm lua r jl swift dart ex exs erl hrl hs ml mli clj cljs lisp el scm sh bash "
        "zsh fish ps1 bat cmd sql css scss sass less json jsonl ndjson json5 yaml yml toml ini cfg conf env "
        "properties xml xsd xsl xslt dtd proto graphql tf hcl cmake mk make gradle dockerfile nix zig v vhd vhdl "
        "sv asm s f f90 f95 pas d nim cr tcl awk sed vim diff patch "
    ),
}
FORMAT_OF_EXTENSION = {extension: format for format, line in BY_EXTENSION.items() for extension in line.split()}
