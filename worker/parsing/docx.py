"""The text of a Word document: headings by style, list numbers as Word counts them, tables, notes."""

import re
from dataclasses import dataclass
from typing import Any

from worker.parsing.blocks import Blocks, cell_text
from worker.parsing.ooxml import WRAPPERS, Archive, attribute, child, count, inside, local, value_of

SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
HEADING_NAME = re.compile(r"(?i)heading (\d)$")
CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Invisible to the reader: deleted text, field codes, the copy of a drawing for old programs.
UNSEEN = {"del", "moveFrom", "delText", "instrText", "Fallback", "rPr", "pPr", "rt"}


def read_docx(archive: Archive, writer: Blocks) -> str | None:
    """Write a document's blocks. Return the text in the style "Title", if there is one."""
    return Document(archive, writer).read()


class Document:
    def __init__(self, archive: Archive, writer: Blocks) -> None:
        self.archive = archive
        self.writer = writer
        parts = dict(archive.relations(archive.main).values())
        self.styles = read_styles(archive.optional(parts.get("styles", "word/styles.xml")))
        self.numbering = Numbering(archive.optional(parts.get("numbering", "word/numbering.xml")))
        self.notes = {
            kind: {attribute(note, "id"): note for note in archive.optional(parts.get(kind, ""))}
            for kind in ("footnotes", "endnotes")
        }
        self.note_numbers: dict[tuple[str, str], int] = {}
        self.title: str | None = None

    def read(self) -> str | None:
        body = child(self.archive.xml(self.archive.main), "body")
        if body is None:
            raise self.archive.damaged()
        self.blocks(body)
        self.write_notes()
        return self.title

    def blocks(self, container: Any) -> None:
        for element in container:
            name = local(element)
            if name == "p":
                self.paragraph(element)
            elif name == "tbl":
                self.table(element)
            elif name in WRAPPERS:
                self.blocks(element)

    def paragraph(self, element: Any) -> None:
        text, boxes = self.text(element)
        properties = child(element, "pPr")
        style = self.styles.get(value_of(properties, "pStyle") or "", Style())
        level = value_of(properties, "outlineLvl")
        outline = int(level) if level and level.isdigit() and int(level) < 9 else style.outline
        number_id = value_of(properties, "numPr", "numId") or style.number_id
        depth = value_of(properties, "numPr", "ilvl") or style.number_level or "0"
        if text.strip():
            marker = self.numbering.marker(number_id, int(depth)) if number_id and depth.isdigit() else ""
            if style.name.lower() == "title":
                self.title = self.title or cell_text(text)
                self.writer.heading(1, text)
            elif outline is not None:
                self.writer.heading(outline + 1, text if marker in ("", "-") else f"{marker} {text}")
            elif marker:
                indent = "  " * min(int(depth), 8)
                self.writer.block(f"{indent}{marker} " + text.strip().replace("\n", "\n" + indent + "  "), "item")
            else:
                self.writer.block(text.strip())
        for box in boxes:
            self.blocks(box)

    def text(self, element: Any) -> tuple[str, list[Any]]:
        """Return a paragraph's words, and the text boxes anchored in it."""
        parts: list[str] = []
        boxes: list[Any] = []
        self.collect(element, parts, boxes)
        return "".join(parts), boxes

    def collect(self, element: Any, parts: list[str], boxes: list[Any]) -> None:
        for inner in element:
            name = local(inner)
            if name == "t":
                parts.append(inner.text or "")
            elif name in CHARACTERS:
                parts.append(CHARACTERS[name])
            elif name == "sym":
                parts.append(symbol(inner))
            elif name in ("footnoteReference", "endnoteReference"):
                parts.append(self.note_mark(name.removesuffix("Reference") + "s", attribute(inner, "id") or ""))
            elif name == "txbxContent":
                boxes.append(inner)
            elif name not in UNSEEN:
                self.collect(inner, parts, boxes)

    def note_mark(self, kind: str, identity: str) -> str:
        number = self.note_numbers.setdefault((kind, identity), len(self.note_numbers) + 1)
        return str(number).translate(SUPERSCRIPT)

    def write_notes(self) -> None:
        for (kind, identity), number in list(self.note_numbers.items()):
            note = self.notes[kind].get(identity)
            text = " ".join(cell_text(self.text(part)[0]) for part in inside(note, "p")) if note is not None else ""
            if text.strip():
                self.writer.block(f"{str(number).translate(SUPERSCRIPT)} {text.strip()}")

    def table(self, element: Any) -> None:
        rows: list[list[str]] = []
        cells: list[Any] = []
        for row in rows_of(element):
            texts: list[str] = []
            for cell in rows_of(row, "tc"):
                cells.append(cell)
                merged = child(cell, "tcPr", "vMerge")
                continued = merged is not None and attribute(merged, "val") in (None, "continue")
                span = value_of(cell, "tcPr", "gridSpan") or "1"
                texts.append("" if continued else self.cell(cell))
                texts += [""] * (min(int(span), 60) - 1 if span.isdigit() else 0)
            rows.append(texts)
        if max(map(len, rows), default=0) < 2:  # a frame around text
            for cell in cells:
                self.blocks(cell)
        else:
            self.writer.table(rows)

    def cell(self, cell: Any) -> str:
        inner = Blocks()
        outer, self.writer = self.writer, inner
        try:
            for element in cell:
                if local(element) == "tbl":
                    for row in rows_of(element):
                        self.writer.block(" ".join(self.cell(part) for part in rows_of(row, "tc")))
                else:
                    self.blocks([element])
        finally:
            self.writer = outer
        # Remove the hashes of headings.
        marks = {heading.start: heading.level + 1 for heading in inner.headings}
        text = inner.text()
        for start in sorted(marks, reverse=True):
            text = text[:start] + text[start + marks[start] :]
        return cell_text(text)


@dataclass
class Style:
    name: str = ""
    outline: int | None = None
    number_id: str = ""
    number_level: str = ""


def read_styles(root: Any) -> dict[str, Style]:
    """Return the paragraph styles by id, with inherited properties."""
    raw = {attribute(style, "styleId") or "": style for style in root if local(style) == "style"}
    styles: dict[str, Style] = {}
    for identity in raw:
        style = Style(value_of(raw[identity], "name") or identity)
        above: str | None = identity
        for _ in range(12):
            element = raw.get(above or "")
            if element is None:
                break
            named = HEADING_NAME.match(value_of(element, "name") or "")
            level = value_of(element, "pPr", "outlineLvl")
            if style.outline is None and level and level.isdigit():
                style.outline = int(level)
            elif style.outline is None and named:
                style.outline = int(named[1]) - 1
            style.number_id = style.number_id or value_of(element, "pPr", "numPr", "numId") or ""
            style.number_level = style.number_level or value_of(element, "pPr", "numPr", "ilvl") or ""
            above = value_of(element, "basedOn")
        if style.outline is not None and style.outline > 8:
            style.outline = None
        styles[identity] = style
    return styles


class Numbering:
    """Numbers list items as Word does."""

    def __init__(self, root: Any) -> None:
        abstract = {attribute(element, "abstractNumId"): element for element in root if local(element) == "abstractNum"}
        self.levels: dict[str, dict[int, tuple[str, str, int]]] = {}
        self.list_of: dict[str, str] = {}
        self.restarts: dict[str, dict[int, int]] = {}
        self.counts: dict[str, dict[int, int]] = {}
        for number in root:
            if local(number) != "num":
                continue
            identity = attribute(number, "numId") or ""
            list_id = value_of(number, "abstractNumId") or ""
            self.levels[identity] = read_levels(abstract.get(list_id))
            self.list_of[identity] = list_id
            self.restarts[identity] = {}
            for override in number:
                start = value_of(override, "startOverride")
                depth = attribute(override, "ilvl") or "0"
                if local(override) == "lvlOverride" and start and start.isdigit() and depth.isdigit():
                    self.restarts[identity][int(depth)] = int(start)

    def marker(self, number_id: str, depth: int) -> str:
        """Return the marker of the next item: "-" for bullets, "" if the list is unknown."""
        levels = self.levels.get(number_id, {})
        if depth not in levels:
            return "" if number_id == "0" else "-"
        form, pattern, _ = levels[depth]
        counts = self.counts.setdefault(self.list_of[number_id], {})
        for restarted, start in self.restarts.pop(number_id, {}).items():  # at the first use of this list only
            counts[restarted] = start - 1
        counts[depth] = counts.get(depth, levels[depth][2] - 1) + 1
        for deeper in [level for level in counts if level > depth]:
            del counts[deeper]
        if form in ("bullet", "none") or "%" not in pattern:
            return "-" if form == "bullet" else ""

        def number(match: re.Match[str]) -> str:
            level = int(match[1]) - 1
            form, _, first = levels.get(level, ("decimal", "", 1))
            return count(counts.get(level, first), form)

        return re.sub(r"%(\d)", number, pattern).strip()


def read_levels(abstract: Any | None) -> dict[int, tuple[str, str, int]]:
    """Return depth → (number format, pattern such as "%1.%2", first number)."""
    levels = {}
    for level in abstract if abstract is not None else ():
        depth = attribute(level, "ilvl") if local(level) == "lvl" else None
        if depth and depth.isdigit():
            start = value_of(level, "start") or "1"
            levels[int(depth)] = (
                value_of(level, "numFmt") or "decimal",
                value_of(level, "lvlText") or "",
                int(start) if start.isdigit() else 1,
            )
    return levels


def symbol(element: Any) -> str:
    try:
        code = int(attribute(element, "char") or "", 16)
    except ValueError:
        return ""
    # The private use area holds glyphs of symbol fonts, which have no meaning as text.
    return "" if 0xE000 <= code <= 0xF8FF or code > 0x10FFFF else chr(code)


def rows_of(element: Any, name: str = "tr") -> list[Any]:
    """Return the rows (or cells) of an element, also those in content controls."""
    rows = []
    for inner in element:
        if local(inner) == name:
            rows.append(inner)
        elif local(inner) in WRAPPERS:
            rows += rows_of(inner, name)
    return rows
