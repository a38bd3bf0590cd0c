"""The cells of a workbook: a sheet is a heading, every run of rows without a gap a pipe table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lxml import etree  # type: ignore[import-untyped]

from shared.errors import UnreadableError
from worker.parsing.blocks import Blocks, cell_text
from worker.parsing.ooxml import XML_LIMITS, Archive, attribute, inside, local, relation_id

DATE_FORMATS = {*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)}
TIME_ONLY = {18, 19, 20, 21, 45, 46, 47}
PERCENT_FORMATS = {9: 0, 10: 2}
Row = dict[int, str]


def read_xlsx(archive: Archive, writer: Blocks) -> None:
    """Write the sheets that have cells with text. A workbook's title is only in its properties."""
    book = archive.xml(archive.main)
    relations = archive.relations(archive.main)
    parts = dict(relations.values())
    part = parts.get("sharedStrings", "xl/sharedStrings.xml")
    strings = [rich_text(item) for item in archive.optional(part) if local(item) == "si"]
    styles = read_styles(archive.optional(parts.get("styles", "xl/styles.xml")))
    is_1904 = any(attribute(element, "date1904") in ("1", "true") for element in inside(book, "workbookPr"))
    epoch = datetime(1904, 1, 1) if is_1904 else datetime(1899, 12, 30)
    for sheet in inside(book, "sheet"):
        kind, part = relations.get(relation_id(sheet), ("", ""))
        if kind == "worksheet" and part in archive.names:
            write_sheet(archive, writer, attribute(sheet, "name") or "", part, Values(strings, styles, epoch))


def write_sheet(archive: Archive, writer: Blocks, name: str, part: str, values: "Values") -> None:
    rows: list[Row] = []
    last, titled = 0, False
    for number, row in read_rows(archive, part, values):
        if not titled:
            writer.heading(1, name)
            titled = True
        if number > last + 1 and rows:
            write_rows(writer, rows)
            rows = []
        last = number
        rows.append(row)
    write_rows(writer, rows)


def write_rows(writer: Blocks, rows: list[Row]) -> None:
    while len(rows) > 1 and len(rows[0]) == 1 and any(len(row) > 1 for row in rows):  # a caption above the table
        writer.block(*rows.pop(0).values())
    columns = sorted({column for row in rows for column in row})
    cells = sum(map(len, rows))
    if len(columns) == 1:
        for row in rows:
            writer.block(row[columns[0]])
    elif len(columns) * len(rows) <= 20 * cells + 1000:
        writer.table([[row.get(column, "") for column in columns] for row in rows])
    else:  # a sparse sheet: a table would consist of blanks
        for row in rows:
            writer.block("| " + " | ".join(cell_text(row[column]) for column in sorted(row)) + " |", "item")


@dataclass
class Values:
    """Converts a cell's stored value into its displayed text. `chars`: characters converted so far."""

    strings: list[str]
    styles: list[tuple[str, int]]
    epoch: datetime
    chars: int = 0

    def text(self, cell: Any) -> str:
        kind = cell.get("t") or "n"
        if kind == "inlineStr":
            return rich_text(cell)
        stored = next((inner.text for inner in cell if local(inner) == "v"), None) or ""
        if kind == "s":
            return self.strings[int(stored)] if stored.isdigit() and int(stored) < len(self.strings) else ""
        if kind == "b":
            return "TRUE" if stored == "1" else "FALSE"
        if kind == "d":
            return stored.replace("T00:00:00", "").replace("T", " ")
        return stored if kind in ("str", "e") or not stored else self.number(stored, cell.get("s") or "0")

    def number(self, stored: str, style: str) -> str:
        try:
            value = float(stored)
        except ValueError:
            return stored
        form, digits = self.styles[int(style)] if style.isdigit() and int(style) < len(self.styles) else ("", 0)
        if form in ("date", "time") and 0 <= value < 2_958_466:
            moment = self.epoch + timedelta(seconds=round(value * 86400))
            if form == "time" and value < 1:
                return f"{moment:%H:%M:%S}".removesuffix(":00")
            return moment.isoformat(" ").removesuffix(":00").removesuffix(" 00:00")
        if form == "percent":
            return f"{value * 100:.{digits}f}%"
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"


def rich_text(element: Any) -> str:
    """Return the runs of a string, without the phonetic guides of East Asian text."""
    parts = []
    for inner in element:
        if local(inner) == "t":
            parts.append(inner.text or "")
        elif local(inner) in ("r", "is"):
            parts.append(rich_text(inner))
    return "".join(parts)


def read_styles(root: Any) -> list[tuple[str, int]]:
    """Return ("date" | "time" | "percent" | "", digits) of each cell format."""
    codes = {attribute(form, "numFmtId"): attribute(form, "formatCode") or "" for form in inside(root, "numFmt")}
    styles = []
    for formats in inside(root, "cellXfs"):
        for cell_format in formats:
            identity = attribute(cell_format, "numFmtId") or "0"
            styles.append(number_format(int(identity) if identity.isdigit() else 0, codes.get(identity)))
    return styles


def number_format(identity: int, code: str | None) -> tuple[str, int]:
    if code is None:
        if identity in PERCENT_FORMATS:
            return "percent", PERCENT_FORMATS[identity]
        return ("time" if identity in TIME_ONLY else "date" if identity in DATE_FORMATS else ""), 0
    bare = re.sub(r'"[^"]*"|\\.|_.|\*.|\[(?!h|m|s)[^\]]*\]', "", code.split(";")[0].lower())
    if "%" in bare:
        return "percent", len(re.search(r"(?:\.([0#?]+))?", bare[bare.find(".") :] if "." in bare else "")[1] or "")  # type: ignore[index]
    if "general" in bare or not re.search(r"[ymdhs]", bare):
        return "", 0
    return ("date" if re.search(r"[yd]", bare) or ("h" not in bare and "s" not in bare) else "time"), 0


def read_rows(archive: Archive, part: str, values: Values) -> Iterator[tuple[int, Row]]:
    """Yield (row number, column number → text) of the rows with text."""
    row_number = 0
    try:
        for _, element in etree.iterparse(archive.open(part), remove_comments=True, remove_pis=True, **XML_LIMITS):
            name = local(element)
            if name == "row":
                archive.refuse_entities(element)
                number = element.get("r") or ""
                row_number = int(number) if number.isdigit() else row_number + 1
                if row := read_row(archive, element, values):
                    yield row_number, row
            if name not in ("c", "v", "is", "t", "r", "f"):
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise archive.invalid(error) from error


def read_row(archive: Archive, element: Any, values: Values) -> Row:
    row: Row = {}
    column = 0
    for cell in element:
        if local(cell) == "c":
            column = column_of(cell.get("r")) or column + 1
            if text := cell_text(values.text(cell)):
                row[column] = text
                values.chars += len(text)
            if values.chars > 2 * archive.max_text_chars:
                raise UnreadableError(
                    f"{archive.name} holds more than the limit of {archive.max_text_chars:,} characters of text; "
                    "split it, or raise ASKFOLDER_MAX_TEXT_MB."
                )
    return row


def column_of(reference: str | None) -> int:
    """Return the column of a reference: A1 → 1, XFD1048576 → 16384, None → 0."""
    column = 0
    for character in reference or "":
        if not "A" <= character <= "Z":
            break
        column = column * 26 + ord(character) - 64
    return column
