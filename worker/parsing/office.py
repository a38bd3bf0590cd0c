"""Parse an Office file: DOCX, PPTX or XLSX."""

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import Blocks
from worker.parsing.docx import read_docx
from worker.parsing.metadata import file_properties
from worker.parsing.ooxml import Archive
from worker.parsing.pptx import read_pptx
from worker.parsing.text import clean_title, first_title
from worker.parsing.xlsx import read_xlsx

READERS = {"docx": read_docx, "pptx": read_pptx, "xlsx": read_xlsx}
NOT_METADATA = {"lastModifiedBy", "lastPrinted", "revision", "version", "identifier"}


def parse(data: bytes, name: str, format: str, max_text_chars: int) -> Parsed:
    """Read a DOCX, PPTX or XLSX file."""
    archive = Archive(data, name, format, max_text_chars)
    writer = Blocks()
    title = READERS[format](archive, writer)
    text, headings = writer.text(), tuple(writer.headings)
    if not text.strip():
        raise UnreadableError(no_text(name, format))
    if not title and format == "docx":
        title = first_title(headings)
    properties = archive.properties()
    title = clean_title(title) or clean_title(dict(properties).get("title"))
    if not title and format == "pptx" and headings:
        title = clean_title(headings[0].title)
    metadata = file_properties((key, value) for key, value in properties if key not in NOT_METADATA)
    return Parsed(text, format, "markdown", title, headings, tuple(writer.pages), metadata)


def no_text(name: str, format: str) -> str:
    if format == "xlsx":
        return f"{name} has no text in it, all its sheets are empty; fill it and it is read again."
    return (
        f"{name} has no text in it, at most pictures; "
        "save it as PDF, run OCR on that (for example ocrmypdf) and drop the result instead."
    )
