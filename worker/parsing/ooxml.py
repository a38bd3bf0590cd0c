"""The XML parts of a DOCX, PPTX or XLSX archive, read within limits.

python-docx, python-pptx and openpyxl are slow, and a crafted file can crash them. Names are compared without their
namespace, so that strict and transitional files are read alike.
"""

import contextlib
import io
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Any

from lxml import etree  # type: ignore[import-untyped]

from shared.errors import UnreadableError

MAX_MEMBERS = 20_000
MAX_BYTES = 300_000_000
MAX_RATIO = 400
MAX_PROPERTIES = 1_000_000  # bytes
BIG = 10_000_000  # bytes; a high ratio of a smaller part does no harm
MAIN_PART = {"docx": "word/document.xml", "pptx": "ppt/presentation.xml", "xlsx": "xl/workbook.xml"}
SAVE_AGAIN = "open it in the program that made it, save it again and drop it again."
KIND = {"docx": "Word document", "pptx": "presentation", "xlsx": "workbook"}
XML_LIMITS: dict[str, Any] = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


class Archive:
    """An Office file's parts. `main`: the name of the part with the content."""

    def __init__(self, data: bytes, name: str, format: str, max_text_chars: int) -> None:
        self.name = name
        self.format = format
        self.max_text_chars = max_text_chars
        self.zip = zipfile.ZipFile(io.BytesIO(data))
        members = self.zip.infolist()
        total = sum(member.file_size for member in members if member.filename.endswith((".xml", ".rels")))
        if len(members) > MAX_MEMBERS or total > MAX_BYTES:
            raise self.bomb(f"{len(members):,} parts, {total / 1e6:,.0f} MB")
        for member in members:
            if member.file_size > BIG and member.file_size > MAX_RATIO * max(1, member.compress_size):
                raise self.bomb(f"{member.filename} alone to {member.file_size / 1e6:,.0f} MB")
        self.names = {member.filename for member in members}
        self.unpacked = 0
        targets = self.relations("").values()
        self.main = next((part for kind, part in targets if kind == "officeDocument"), MAIN_PART[format])

    def bomb(self, what: str) -> UnreadableError:
        return UnreadableError(
            f"{self.name} unpacks to far more than a {KIND[self.format]} of its size should ({what}), "
            "so it was not read; save its text as PDF or plain text and drop that instead."
        )

    def damaged(self) -> UnreadableError:
        return UnreadableError(f"{self.name} is a {KIND[self.format]} that is damaged inside; {SAVE_AGAIN}")

    def entities(self) -> UnreadableError:
        return UnreadableError(
            f"{self.name} declares XML entities, unlike any {KIND[self.format]}, so it was not read; {SAVE_AGAIN}"
        )

    def invalid(self, error: etree.XMLSyntaxError) -> UnreadableError:
        if "depth" in str(error).lower():
            return UnreadableError(f"{self.name} is nested too deeply to be read; save it again in a simpler form.")
        return self.damaged()

    def open(self, part: str) -> io.BytesIO:
        try:
            # Counted each time: a presentation may refer to the same slide a million times.
            self.unpacked += self.zip.getinfo(part).file_size
            if self.unpacked > MAX_BYTES:
                raise self.bomb(f"more than {MAX_BYTES / 1e6:,.0f} MB")
            data = self.zip.read(part)
        except RuntimeError as error:  # from zipfile: the member is encrypted
            raise UnreadableError(
                f"{self.name} is protected by a password; save it without one and drop it again."
            ) from error
        except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
            raise self.damaged() from error
        head = data[:65536].replace(b"\0", b"")  # UTF-16 too
        if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
            raise self.entities()
        return io.BytesIO(data)

    def xml(self, part: str) -> Any:
        parser = etree.XMLParser(remove_comments=True, remove_pis=True, **XML_LIMITS)
        try:
            root = etree.parse(self.open(part), parser).getroot()
        except etree.XMLSyntaxError as error:
            raise self.invalid(error) from error
        self.refuse_entities(root)
        return root

    def refuse_entities(self, element: Any) -> None:
        """Raise UnreadableError if there is a DOCTYPE, which `open` misses behind a long comment."""
        if element.getroottree().docinfo.doctype:
            raise self.entities()

    def optional(self, part: str) -> Any:
        return self.xml(part) if part in self.names else etree.Element("none")

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Return relation id → (kind, part) of the references of `part` inside the archive."""
        folder, file = posixpath.split(part)
        relations = {}
        for relation in self.optional(posixpath.join(folder, "_rels", f"{file}.rels")):
            if local(relation) == "Relationship" and relation.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target") or ""))
                kind = (relation.get("Type") or "").rpartition("/")[2]
                relations[relation.get("Id") or ""] = (kind, target.lstrip("/"))
        return relations

    def properties(self) -> list[tuple[str, str | None]]:
        """Return (name, value) of the core properties, [] if they are damaged."""
        part = next(
            (part for kind, part in self.relations("").values() if kind == "core-properties"), "docProps/core.xml"
        )
        if part in self.names and self.zip.getinfo(part).file_size <= MAX_PROPERTIES:
            with contextlib.suppress(UnreadableError):
                root = self.xml(part)
                return [("author" if local(e) == "creator" else local(e), e.text) for e in root if local(e)]
        return []


def local(element: Any) -> str:
    """Return an element's name without its namespace, "" for comments and instructions."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str | None:
    return next((str(value) for key, value in element.attrib.items() if key.rpartition("}")[2] == name), None)


def relation_id(element: Any) -> str:
    """Return the r:id of an element, which may also have an id of its own."""
    return next((str(value) for key, value in element.attrib.items() if key.endswith("}id")), "")


def child(element: Any, *path: str) -> Any | None:
    """Return the first child of a name, then its child, and so on; None if one is missing."""
    for name in path:
        if element is not None:
            element = next((inner for inner in element if local(inner) == name), None)
    return element


def value_of(element: Any | None, *path: str) -> str | None:
    """Return the val attribute of a descendant."""
    element = child(element, *path)
    return attribute(element, "val") if element is not None else None


def inside(element: Any, *names: str) -> Iterator[Any]:
    """Return the descendants with one of these names."""
    return (inner for inner in element.iter() if local(inner) in names)


ROMAN_VALUES = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
ROMAN_DIGITS = "M CM D CD C XC L XL X IX V IV I".split()
WRAPPERS = {"sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo", "AlternateContent", "Choice"}


def count(number: int, form: str) -> str:
    """Return a number in one of Word's forms ("decimal", "lowerRoman", …)."""
    if form in ("lowerLetter", "upperLetter"):
        letter = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 % 9 + 1)
        return letter.upper() if form == "upperLetter" else letter
    if form in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        roman = ""
        for value, digits in zip(ROMAN_VALUES, ROMAN_DIGITS, strict=True):
            roman += digits * (number // value)
            number %= value
        return roman if form == "upperRoman" else roman.lower()
    return f"{number:02}" if form == "decimalZero" else str(number)
