"""Parse an Office file: DOCX, PPTX or XLSX."""

from collections.abc import Callable

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import Blocks
from worker.parsing.metadata import stamps
from worker.parsing.ooxml import Archive
from worker.parsing.text import clean_title, first_title

MAIN_PART = {"docx": "word/document.xml", "pptx": "ppt/presentation.xml", "xlsx": "xl/workbook.xml"}

NOT_METADATA = {"lastModifiedBy", "lastPrinted", "revision", "version", "identifier"}


def parse_office(data: bytes, name: str, format: str, max_text_chars: int) -> Parsed:
    """Read a DOCX, PPTX or XLSX file."""
    from worker.parsing.docx import read_docx
    from worker.parsing.pptx import read_pptx
    from worker.parsing.xlsx import read_xlsx

    archive = Archive(data, name, format)
    writer = Blocks()
    readers: dict[str, Callable[[Archive, Blocks, str, int], str | None]] = {
        "docx": read_docx,
        "pptx": read_pptx,
        "xlsx": read_xlsx,
    }
    main = next((part for kind, part in archive.relations("").values() if kind == "officeDocument"), MAIN_PART[format])
    title = readers[format](archive, writer, main, max_text_chars)
    text = writer.text()
    if not text.strip():
        raise UnreadableError(nothing_in(name, format))
    if not title and format == "docx":
        title = first_title(tuple(writer.headings))
    properties = archive.properties()
    title = clean_title(title) or clean_title(dict(properties).get("title"))
    if not title and format == "pptx" and writer.headings:
        title = clean_title(writer.headings[0].title)
    metadata = stamps((name, value) for name, value in properties if name not in NOT_METADATA)
    return Parsed(text, format, "markdown", title, tuple(writer.headings), tuple(writer.pages), metadata)


def nothing_in(name: str, format: str) -> str:
    if format == "xlsx":
        return f"{name} has no text in it, all its sheets are empty; fill it and it is read again."
    return (
        f"{name} has no text in it, at most pictures; "
        "save it as PDF, run OCR on that (for example ocrmypdf) and drop the result instead."
    )
