"""PDF to plain Markdown with page numbers, over liteparse's layout blocks."""

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import MAX_PAGES, Blocks, refuse_pages
from worker.parsing.metadata import file_properties
from worker.parsing.tables import read_table
from worker.parsing.text import clean_title, first_title

CODE_SPAN = re.compile(r"(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
EMPHASIS = re.compile(r"(?<!\\)(\*\*\*|\*\*|\*|~~)(?=\S)(.+?)(?<=\S)(?<!\\)\1", re.S)
MATH = re.compile(r"(?<!\\)\$(?=[^$\n]*(?:\\[a-zA-Z]|[_^]\{))([^$\n]{1,400})\$")
TEX_SYMBOLS = read_table("tex_symbols.txt")
SECTION = re.compile(r"\d{1,2}(?:\.\d{1,2}){0,4}\.?")
NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,5})\.?\s+\S")
XMP_TITLE = re.compile(r"<dc:title>.*?<rdf:li[^>]*>(.*?)</rdf:li>", re.S)
SENTENCE_END = re.compile(r"[.!?:;。！？…][\"')\]”’»]*$")


@dataclass
class Block:
    page: int
    kind: str
    text: str = ""
    level: int = 0
    rows: list[list[str]] | None = None


def parse(data: bytes, name: str, format: str, max_text_chars: int) -> Parsed:
    """Read a PDF page by page without OCR."""
    from liteparse import LiteParse, ParseError

    reader = LiteParse(
        ocr_enabled=False,
        quiet=True,
        output_format="markdown",
        extract_blocks=True,
        extract_links=False,
        image_mode="off",
        continue_on_page_error=True,
        extract_document_metadata=True,
        max_pages=MAX_PAGES,  # the default is to stop after 1,000 pages, without a warning
    )
    try:
        result = reader.parse(data[data.index(b"%PDF-") :])
    except ParseError as error:
        if "password" in str(error).lower():
            raise UnreadableError(
                f"{name} is protected by a password; save it without one and drop it again."
            ) from error
        raise UnreadableError(
            f"{name} is a damaged or incomplete PDF; copy it again, or print it to a new PDF and drop that."
        ) from error
    refuse_pages(result.total_pages, name)
    writer = write(correct_headings([block for page in result.pages for block in page_blocks(page)]))
    text = writer.text()
    if not any(character.isalnum() for character in text):
        pages = f"{result.total_pages} page{'s' if result.total_pages != 1 else ''} of pictures"
        raise UnreadableError(
            f"{name} has no text in it ({pages}); run OCR on it first (for example ocrmypdf) and drop it again."
        )
    headings = tuple(writer.headings)
    xmp = XMP_TITLE.search((result.doc_meta.xmp or "")[:20_000]) if result.doc_meta else None
    title = first_title(headings) or clean_title(xmp[1] if xmp else None)
    return Parsed(text, format, "markdown", title, headings, tuple(writer.pages), properties(data, result.doc_meta))


def properties(data: bytes, dates: Any) -> dict[str, Any]:
    """Return the metadata of the PDF's information dictionary. `dates`: liteparse's metadata, which lacks the words."""
    import pypdfium2

    pairs: list[tuple[str, object]] = [("created", dates.creation_date), ("modified", dates.mod_date)] if dates else []
    with contextlib.suppress(pypdfium2.PdfiumError), pypdfium2.PdfDocument(data) as document:
        for name in ("Title", "Author", "Subject", "Keywords"):
            with contextlib.suppress(UnicodeDecodeError):  # half a surrogate pair
                pairs.append((name, document.get_metadata_value(name)))
    return file_properties(pairs)


def page_blocks(page: Any) -> list[Block]:
    number = page.page_num
    blocks = [block for raw in page.blocks or [] if (block := read_block(raw, number))]
    if not blocks:  # rotated pages may have text but no layout
        blocks = [Block(number, "paragraph", part) for part in re.split(r"\n\s*\n", page.text or "") if part.strip()]
    return blocks


def read_block(raw: Any, page: int) -> Block | None:
    if raw.kind == "heading":
        return Block(page, "heading", raw.text or "", raw.level or 1)
    if raw.kind == "table":
        rows = [[cell.text or "" for cell in row] for row in [raw.header or [], *(raw.rows or [])] if row]
        return Block(page, "table", rows=rows)
    if raw.kind == "code":
        return Block(page, "code", "\n".join(raw.lines or []))
    if raw.kind == "list_item":
        ordered = bool(raw.ordered and raw.marker)
        marker = f"{raw.marker} " if ordered else "- "
        return Block(page, "item", "  " * min(raw.level or 0, 6) + marker + strip_markdown(raw.text or ""))
    return Block(page, "paragraph", strip_markdown(raw.text)) if raw.text else None


def strip_markdown(markdown: str) -> str:
    """Remove the inline Markdown that liteparse writes: escapes, emphasis, code spans, TeX symbols."""
    spans: list[str] = []  # final text, behind a placeholder until the other marks are removed

    def replace(text: str) -> str:
        spans.append(text)
        return f"\ue0ff{len(spans) - 1}\ue0ff"

    text = markdown.replace("\ue0ff", "")
    text = CODE_SPAN.sub(lambda match: replace(match[2]), text)
    text = MATH.sub(lambda match: replace(strip_tex(match[1])), text)
    for _ in range(3):
        text = EMPHASIS.sub(r"\2", text)
    text = ESCAPE.sub(r"\1", text)
    return re.sub("\ue0ff(\\d+)\ue0ff", lambda match: spans[int(match[1])], text)


def strip_tex(tex: str) -> str:
    tex = re.sub(r"\\(?:math\w+|text\w*|operatorname|boldsymbol)\{([^{}]*)\}", r"\1", tex)
    tex = re.sub(r"\\([a-zA-Z]+) ?", lambda match: TEX_SYMBOLS.get(match[1], match[1] + " "), tex)
    return re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", tex).replace("\\", "").lstrip("_^").strip()


def correct_headings(blocks: list[Block]) -> list[Block]:
    """Correct liteparse's headings: it reports too many, splits long ones, and derives levels from size alone."""
    shapes = Counter(re.sub(r"\d+", "0", block.text.strip()) for block in blocks if block.kind == "heading")
    corrected: list[Block] = []
    section: tuple[int, ...] = ()
    for block in chain.from_iterable(map(split_sections, blocks)):
        if block.kind == "heading":
            last = corrected[-1] if corrected else None
            if last and last.kind == "heading" and last.page == block.page and continues(last.text, block.text):
                last.text = f"{last.text} {block.text}"
                continue
            numbered = NUMBERED.match(block.text.strip())
            if not is_heading(block.text.strip(), shapes):
                block.kind = "paragraph"
            elif numbered and block.level:
                block.level = numbered[1].count(".") + 1
                section = numbers(numbered[1])
            elif numbered:  # from a table: a heading only if its number follows the previous one
                block.level = numbered[1].count(".") + 1
                block.kind = "heading" if follows(section, numbers(numbered[1])) else "paragraph"
                section = numbers(numbered[1]) if block.kind == "heading" else section
        corrected.append(block)
    return corrected


def split_sections(block: Block) -> list[Block]:
    """Split a table of two columns that is a heading with a separate number, and the prose below it."""
    rows = block.rows or []
    if any(len(row) != 2 for row in rows) or len(rows) > 12:
        return [block]
    count = 0
    while count < len(rows) and SECTION.fullmatch(rows[count][0].strip()) and rows[count][1][:1].isupper():
        count += 1
    if (
        not count
        or len(rows) - count > 9
        or (count > 2 and count == len(rows))
        or any(row[0][:1].isdigit() for row in rows[count:])
    ):
        return [block]
    parts = [Block(block.page, "heading", f"{row[0].strip()} {row[1].strip()}") for row in rows[:count]]
    prose = " ".join(" ".join(row) for row in rows[count:])
    return [*parts, Block(block.page, "paragraph", prose)] if prose else parts


def numbers(section: str) -> tuple[int, ...]:
    return tuple(map(int, section.strip(".").split(".")))


def follows(before: tuple[int, ...], section: tuple[int, ...]) -> bool:
    if section <= before:
        return False
    depth = next(
        (depth for depth, pair in enumerate(zip(before, section, strict=False)) if pair[0] != pair[1]), len(before)
    )
    steps = (section[depth] - (before[depth] if depth < len(before) else 0), *section[depth + 1 :])
    return all(step <= 2 for step in steps)


def continues(title: str, more: str) -> bool:
    return more.lstrip()[:1].islower() and not SENTENCE_END.search(title) and len(title) + len(more) < 200


def is_heading(title: str, shapes: Counter[str]) -> bool:
    letters = sum(character.isalpha() for character in title)
    if letters < 2 or letters * 3 < len(title.replace(" ", "")) or len(title) > 160:
        return False
    if re.search(r"[.,;]$", title) and not re.search(r"\b(etc|Inc|Ltd|Co|Jr|al)\.$", title):
        return False
    if not NUMBERED.match(title) and (title[0].islower() or title.endswith(":") or len(title.split()) > 14):
        return False
    # A running header repeats on each page.
    return shapes[re.sub(r"\d+", "0", title)] < 4 or bool(NUMBERED.match(title))


def write(blocks: list[Block]) -> Blocks:
    writer = Blocks()
    page = 0
    for block in blocks:
        if block.page != page:
            page = block.page
            writer.page(page)
        if block.kind == "heading":
            writer.heading(block.level, block.text)
        elif block.kind == "table":
            writer.table(block.rows or [])
        elif block.kind == "code":
            writer.block(f"```\n{block.text.rstrip()}\n```" if block.text.strip() else "")
        else:
            writer.block(block.text, block.kind if block.kind == "item" else "")
    return writer
