"""The text of a presentation: slides are pages, their titles headings."""

from typing import Any

from worker.parsing.blocks import Blocks, cell_text
from worker.parsing.ooxml import WRAPPERS, Archive, attribute, child, count, inside, local, relation_id

CHROME = {"sldNum", "dt", "ftr", "hdr", "sldImg"}
TITLES = {"title", "ctrTitle"}


def read_pptx(archive: Archive, writer: Blocks) -> str | None:
    """Write the slides in their order. Return the title of the first slide."""
    relations = archive.relations(archive.main)
    slides = child(archive.xml(archive.main), "sldIdLst")
    title = None
    for number, entry in enumerate(slides if slides is not None else (), 1):
        kind, part = relations.get(relation_id(entry), ("", ""))
        if kind != "slide":
            continue
        writer.page(number)
        slide_title = read_slide(archive, writer, part)
        title = slide_title if number == 1 else title
    return title


def read_slide(archive: Archive, writer: Blocks, part: str) -> str | None:
    tree = child(archive.xml(part), "cSld", "spTree")
    relations = archive.relations(part)
    shapes = list(shapes_in(tree)) if tree is not None else []
    titles = [shape for shape in shapes if placeholder(shape) in TITLES]
    title = " ".join(cell_text(text) for shape in titles for _, _, text in paragraphs(shape)).strip()
    writer.heading(1, title)
    for shape in shapes:
        if local(shape) == "graphicFrame":
            write_frame(archive, writer, shape, relations)
        elif placeholder(shape) not in TITLES | CHROME:
            write_body(writer, shape)
    for kind, target in relations.values():
        if kind == "notesSlide" and target in archive.names:
            write_notes(archive, writer, target)
    return title or None


def shapes_in(tree: Any) -> Any:
    """Yield shapes and frames in reading order, also those in groups."""
    for element in tree:
        if local(element) in ("sp", "graphicFrame"):
            yield element
        elif local(element) == "grpSp" or local(element) in WRAPPERS:
            yield from shapes_in(element)


def placeholder(shape: Any) -> str | None:
    """Return the kind of a shape's placeholder ("body" by default), None for a free text box."""
    for properties in shape:
        if local(properties).startswith("nv"):
            element = child(properties, "nvPr", "ph")
            return (attribute(element, "type") or "body") if element is not None else None
    return None


def paragraphs(shape: Any) -> list[tuple[int, Any, str]]:
    """Return (level, properties, text) of the paragraphs with text."""
    body = child(shape, "txBody")
    result = []
    for paragraph in body if body is not None else ():
        if local(paragraph) == "p":
            text = paragraph_text(paragraph)
            properties = child(paragraph, "pPr")
            level = (attribute(properties, "lvl") if properties is not None else None) or "0"
            if text.strip():
                result.append((int(level) if level.isdigit() else 0, properties, text.strip()))
    return result


def paragraph_text(paragraph: Any) -> str:
    elements = inside(paragraph, "t", "br", "tab")
    parts = [{"br": "\n", "tab": "\t"}.get(local(element)) or element.text or "" for element in elements]
    return "".join(parts).replace("\v", "\n")


def write_body(writer: Blocks, shape: Any) -> None:
    texts = paragraphs(shape)
    is_list = placeholder(shape) in ("body", "obj") and len(texts) > 1
    numbers: dict[int, int] = {}
    for level, properties, text in texts:
        marks = {local(element): element for element in (properties if properties is not None else ())}
        indent = "  " * min(level, 8)
        numbers = {depth: number for depth, number in numbers.items() if depth <= level}
        if "buAutoNum" in marks:
            start = attribute(marks["buAutoNum"], "startAt") or "1"
            numbers[level] = numbers[level] + 1 if level in numbers else int(start) if start.isdigit() else 1
            number = automatic(numbers[level], attribute(marks["buAutoNum"], "type") or "")
            writer.block(f"{indent}{number} {text}", "item")
        elif "buNone" not in marks and (is_list or "buChar" in marks):
            numbers.pop(level, None)
            writer.block(f"{indent}- " + text.replace("\n", f"\n{indent}  "), "item")
        else:
            numbers.pop(level, None)
            writer.block(text)


def automatic(number: int, scheme: str) -> str:
    forms = {"alphaLc": "lowerLetter", "alphaUc": "upperLetter", "romanLc": "lowerRoman", "romanUc": "upperRoman"}
    text = count(number, next((form for prefix, form in forms.items() if scheme.startswith(prefix)), "decimal"))
    if scheme.endswith("ParenBoth"):
        return f"({text})"
    return f"{text})" if scheme.endswith("ParenR") else f"{text}."


def write_frame(archive: Archive, writer: Blocks, frame: Any, relations: dict[str, tuple[str, str]]) -> None:
    """Write the tables of a frame, and the words of its diagrams."""
    for table in inside(frame, "tbl"):
        rows = []
        for row in table:
            if local(row) == "tr":
                cells = [cell for cell in row if local(cell) == "tc"]
                rows.append([" ".join(paragraph_text(part) for part in inside(cell, "p")) for cell in cells])
        writer.table(rows)
    for diagram in inside(frame, "relIds"):
        kind, part = relations.get(attribute(diagram, "dm") or "", ("", ""))
        if kind == "diagramData" and part in archive.names:
            for point in inside(archive.xml(part), "pt"):
                text = " ".join(paragraph_text(part) for part in inside(point, "p")).strip()
                if text:
                    writer.block(f"- {text}", "item")


def write_notes(archive: Archive, writer: Blocks, part: str) -> None:
    tree = child(archive.xml(part), "cSld", "spTree")
    for shape in shapes_in(tree) if tree is not None else ():
        if placeholder(shape) == "body":
            text = "\n".join(text for _, _, text in paragraphs(shape))
            writer.block(f"Notes: {text}" if text else "")
