"""PDF to plain reading Markdown with page numbers, over liteparse's layout blocks."""

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import MAX_PAGES, Blocks, refuse_pages
from worker.parsing.metadata import stamps
from worker.parsing.text import clean_title, first_title

CODE_SPAN = re.compile(r"(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
EMPHASIS = re.compile(r"(?<!\\)(\*\*\*|\*\*|\*|~~)(?=\S)(.+?)(?<=\S)(?<!\\)\1", re.S)
MATH = re.compile(r"(?<!\\)\$(?=[^$\n]*(?:\\[a-zA-Z]|[_^]\{))([^$\n]{1,400})\$")
MATH_SYMBOLS = {
    "langle": "⟨",
    "rangle": "⟩",
    "ast": "∗",
    "times": "×",
    "cdot": "·",
    "leq": "≤",
    "le": "≤",
    "geq": "≥",
    "ge": "≥",
    "neq": "≠",
    "approx": "≈",
    "sim": "∼",
    "pm": "±",
    "infty": "∞",
    "sum": "∑",
    "prod": "∏",
    "int": "∫",
    "in": "∈",
    "subset": "⊂",
    "cup": "∪",
    "cap": "∩",
    "to": "→",
    "rightarrow": "→",
    "leftarrow": "←",
    "Rightarrow": "⇒",
    "partial": "∂",
    "nabla": "∇",
    "forall": "∀",
    "exists": "∃",
    "ell": "ℓ",
    "bullet": "•",
    "dagger": "†",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "varepsilon": "ε",
    "zeta": "ζ",
    "eta": "η",
    "theta": "θ",
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "nu": "ν",
    "xi": "ξ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "varphi": "φ",
    "chi": "χ",
    "psi": "ψ",
    "omega": "ω",
    "Gamma": "Γ",
    "Delta": "Δ",
    "Theta": "Θ",
    "Lambda": "Λ",
    "Sigma": "Σ",
    "Phi": "Φ",
    "Psi": "Ψ",
    "Omega": "Ω",
}
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


def parse_pdf(data: bytes, name: str, max_text_chars: int) -> Parsed:
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
        max_pages=MAX_PAGES,  # else it stops after 1,000 pages without a word
    )
    try:
        result = reader.parse(data[data.index(b"%PDF-") :])
    except ParseError as error:
        if "password" in str(error).lower():
            raise UnreadableError(
                f"{name} is protected by a password; save it without one and drop it again."
            ) from error
        raise UnreadableError(
            f"{name} is a PDF that is damaged or cut off; copy it again, or print it to a new PDF and drop that."
        ) from error
    refuse_pages(result.total_pages, name)
    writer = write(correct_headings([block for page in result.pages for block in page_blocks(page)]))
    text = writer.text()
    if not any(character.isalnum() for character in text):
        pages = f"{result.total_pages} page{'s' if result.total_pages != 1 else ''} of pictures"
        raise UnreadableError(
            f"{name} has no text in it ({pages}); run OCR on it first (for example ocrmypdf) and drop it again."
        )
    xmp = XMP_TITLE.search((result.doc_meta.xmp or "")[:20_000]) if result.doc_meta else None
    title = first_title(tuple(writer.headings)) or clean_title(xmp[1] if xmp else None)
    return Parsed(
        text, "pdf", "markdown", title, tuple(writer.headings), tuple(writer.pages), properties(data, result.doc_meta)
    )


def properties(data: bytes, seen: Any) -> dict[str, Any]:
    """What the PDF's information dictionary says. `seen`: liteparse's metadata, which has the dates but not the words."""
    import pypdfium2

    found: list[tuple[str, object]] = [("created", seen.creation_date), ("modified", seen.mod_date)] if seen else []
    with contextlib.suppress(pypdfium2.PdfiumError), pypdfium2.PdfDocument(data) as document:
        for name in ("Title", "Author", "Subject", "Keywords"):
            with contextlib.suppress(UnicodeDecodeError):  # half a character
                found.append((name, document.get_metadata_value(name)))
    return stamps(found)


def page_blocks(page: Any) -> list[Block]:
    number = page.page_num
    blocks = [block for found in page.blocks or [] if (block := read_block(found, number))]
    if not blocks:  # seen with rotated pages: no layout, but text
        blocks = [Block(number, "paragraph", part) for part in re.split(r"\n\s*\n", page.text or "") if part.strip()]
    return blocks


def read_block(found: Any, page: int) -> Block | None:
    if found.kind == "heading":
        return Block(page, "heading", found.text or "", found.level or 1)
    if found.kind == "table":
        rows = [[cell.text or "" for cell in row] for row in [found.header or [], *(found.rows or [])] if row]
        return Block(page, "table", rows=rows)
    if found.kind == "code":
        return Block(page, "code", "\n".join(found.lines or []))
    if found.kind == "list_item":
        ordered = bool(found.ordered and found.marker)
        marker = f"{found.marker} " if ordered else "- "
        return Block(page, "item", "  " * min(found.level or 0, 6) + marker + plain(found.text or ""))
    return Block(page, "paragraph", plain(found.text)) if found.text else None


def plain(markdown: str) -> str:
    """Undo the inline Markdown that liteparse writes: escapes, emphasis, code spans, TeX for symbols."""
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return f"\ue0ff{len(kept) - 1}\ue0ff"

    text = markdown.replace("\ue0ff", "")
    text = CODE_SPAN.sub(lambda found: keep(found[2]), text)
    text = MATH.sub(lambda found: keep(plain_math(found[1])), text)
    for _ in range(3):
        text = EMPHASIS.sub(r"\2", text)
    text = ESCAPE.sub(r"\1", text)
    return re.sub("\ue0ff(\\d+)\ue0ff", lambda found: kept[int(found[1])], text)


def plain_math(tex: str) -> str:
    tex = re.sub(r"\\(?:math\w+|text\w*|operatorname|boldsymbol)\{([^{}]*)\}", r"\1", tex)
    tex = re.sub(r"\\([a-zA-Z]+) ?", lambda found: MATH_SYMBOLS.get(found[1], found[1] + " "), tex)
    return re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", tex).replace("\\", "").lstrip("_^").strip()


def correct_headings(blocks: list[Block]) -> list[Block]:
    """Put headings right: liteparse finds too many, splits long ones, and guesses their levels by size alone."""
    shapes = Counter(re.sub(r"\d+", "0", block.text.strip()) for block in blocks if block.kind == "heading")
    tamed: list[Block] = []
    section: tuple[int, ...] = ()
    for block in chain.from_iterable(map(split_sections, blocks)):
        if block.kind == "heading":
            last = tamed[-1] if tamed else None
            if last and last.kind == "heading" and last.page == block.page and continues(last.text, block.text):
                last.text = f"{last.text} {block.text}"
                continue
            numbered = NUMBERED.match(block.text.strip())
            if not is_heading(block.text.strip(), shapes):
                block.kind = "paragraph"
            elif numbered and block.level:
                block.level = numbered[1].count(".") + 1
                section = numbers(numbered[1])
            elif numbered:  # out of a table: a heading only where its number goes on from the last one
                block.level = numbered[1].count(".") + 1
                block.kind = "heading" if follows(section, numbers(numbered[1])) else "paragraph"
                section = numbers(numbered[1]) if block.kind == "heading" else section
        tamed.append(block)
    return tamed


def split_sections(block: Block) -> list[Block]:
    """Undo that a heading whose number stands apart was taken, with the prose below, for a table of two columns."""
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
    # The same words page after page are a running header.
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
