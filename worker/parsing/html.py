"""HTML to plain Markdown: headings, lists, fences and pipe tables; no emphasis, links, images or escapes.

Written over lxml's tree, because html-to-markdown 3.21 always writes escapes (`1\\.`, `\\#`, `\\|`) and emphasis
(captions, summaries), which cannot be distinguished from the page's own characters afterwards.
"""

import codecs
import re
from collections.abc import Callable
from itertools import islice
from typing import Any

from lxml import etree  # type: ignore[import-untyped]

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import Blocks, pipe_table
from worker.parsing.metadata import clean_metadata
from worker.parsing.tables import read_table
from worker.parsing.text import clean_title, decode, first_title, storable

META_CHARSET = re.compile(rb"(?:<meta[^>]+charset|<\?xml[^>]+encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
MAX_META = 500
_NAMES = {kind: frozenset(names.split()) for kind, names in read_table("html_names.txt").items()}
# <meta> for browsers, robots and networks, or with a secret; nothing about the content of the page.
FOR_PROGRAMS = re.compile("|".join(_NAMES["meta_for_programs"]), re.I)
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
ENCLOSED = {"q": ("“", "”"), "rt": ("(", ")")}
BREAK = "\v"  # a <br>, until white space is collapsed
MAX_DEPTH = 900


def parse(data: bytes, name: str, format: str, max_text_chars: int) -> Parsed:
    """Read an HTML page without its navigation, or with it if the page has no other text."""
    text = decode(data, name, declared_encoding(data))
    root = tree(text, name)
    for skip in (is_chrome, is_hidden):
        writer = Blocks()
        if root is not None:
            page = Page(writer, skip)
            page.menus = skip is is_chrome and next(root.iter("h1", "h2"), None) is not None
            page.read(root)
        if writer.text().strip():
            break
    else:
        raise UnreadableError(
            f"{name} has no text in it, only markup, scripts or pictures; "
            "open it in a browser, save it as PDF and drop that instead."
        )
    title = first_title(tuple(writer.headings)) or clean_title(root.findtext(".//title"))
    return Parsed(writer.text(), format, "markdown", title, tuple(writer.headings), metadata=page_metadata(root))


def page_metadata(root: Any) -> dict[str, Any]:
    """Return the metadata of a page's <meta>, <title> and lang."""
    language = root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or root.get("xml:lang")
    pairs = [("title", root.findtext(".//title")), ("language", language)]
    for element in islice(root.iter("meta"), MAX_META):
        name = element.get("name") or element.get("property") or ""
        if not FOR_PROGRAMS.match(name):
            pairs.append((name, element.get("content")))
    return clean_metadata(pairs)


def declared_encoding(data: bytes) -> str | None:
    declaration = META_CHARSET.search(data[:4096])
    try:
        encoding = codecs.lookup(declaration[1].decode("ascii")).name if declaration else ""
    except LookupError:
        return None
    if not encoding or encoding.startswith(("utf-16", "utf-32")):  # wrong: the declaration was read as ASCII
        return None
    return "cp1252" if encoding in ("iso8859-1", "ascii") else encoding  # as browsers read them


def tree(text: str, name: str) -> Any:
    """Return the root element, None for a page without elements."""
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError:
        root = None
    # libxml2 drops elements below 2,048 levels: no text is better than a part of it.
    if any("Excessive depth" in error.message for error in parser.error_log):
        raise UnreadableError(
            f"{name} is nested too deeply to be read completely; "
            "open it in a browser, save it as PDF and drop that instead."
        )
    return root


def is_menu(element: Any) -> bool:
    """Return True for a list of short links and nothing else."""
    items = [item for item in element.iter("li") if not item.findall(".//li")]
    linked = sum(len("".join(link.itertext()).strip()) for link in element.iter("a"))
    words = len("".join("".join(element.itertext()).split("\n")).strip())
    return len(items) > 2 and linked >= 0.8 * words and words <= 30 * len(items)


def is_hidden(element: Any) -> bool:
    hidden = element.tag in _NAMES["skipped"] or element.get("hidden") is not None
    return hidden or bool(re.search(r"display\s*:\s*none", element.get("style") or ""))


def is_chrome(element: Any) -> bool:
    if element.tag == "nav" or is_hidden(element) or element.get("role") in _NAMES["chrome_roles"]:
        return True
    if element.tag == "footer":
        return element.getparent() is None or element.getparent().tag in ("body", "div", "html")
    return not _NAMES["chrome_classes"].isdisjoint((element.get("class") or "").split())


class Page:
    """Writes the blocks of a page's tree."""

    def __init__(self, writer: Blocks, skip: Callable[[Any], bool]) -> None:
        self.writer = writer
        self.skip = skip
        self.menus = False  # True: skip lists of links before the first heading
        self.words: list[str] = []
        self.indent = ""
        self.marker = ""
        self.depth = 0

    def read(self, element: Any, kind: str = "") -> None:
        """Write an element's content and end its last block."""
        self.children(element)
        self.flush(kind)

    def flush(self, kind: str = "") -> None:
        text = collapse("".join(self.words))
        self.words.clear()
        if text:
            self.block(text, kind)

    def block(self, text: str, kind: str = "") -> None:
        """Write a block; the first block of a list item gets the item's marker."""
        kind = "item" if self.marker else kind
        first = self.indent[: -len(self.marker)] + self.marker if self.marker else self.indent
        self.marker = ""
        lines = text.split("\n")
        indented = [(self.indent + line).rstrip() for line in lines[1:]]
        self.writer.block("\n".join([first + lines[0], *indented]), kind)

    def children(self, element: Any) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.words.append(" ".join(element.itertext("*")))
        else:
            if element.text:
                self.words.append(element.text.replace("\v", " "))
            for child in element:
                self.element(child)
                if child.tail:
                    self.words.append(child.tail.replace("\v", " "))
        self.depth -= 1

    def element(self, element: Any) -> None:
        tag = element.tag
        if not isinstance(tag, str) or self.skip(element):
            return
        if tag == "br":
            self.words.append(BREAK)
        elif tag in ENCLOSED:
            opening, closing = ENCLOSED[tag]
            self.words.append(opening)
            self.children(element)
            self.words.append(closing)
        elif tag not in _NAMES["blocks"]:
            self.children(element)
        else:
            self.flush()
            self.block_element(element, tag)

    def block_element(self, element: Any, tag: str) -> None:
        if tag in HEADINGS:
            title = collapse(self.plain(element)).replace("\n", " ").rstrip("¶ ")
            # Inside a list item or a table a heading would split its surroundings.
            if title and not self.indent:
                self.writer.heading(int(tag[1]), title)
            elif title:
                self.block(title)
        elif tag == "pre":
            self.code(element)
        elif tag == "table":
            self.table(element)
        elif tag in ("ul", "ol", "menu", "dir"):
            self.items(element, ordered=tag == "ol")
        elif tag == "li":
            self.item(element, "- ")
        elif tag != "hr":
            self.read(element, "term" if tag == "dt" else "")

    def items(self, element: Any, ordered: bool) -> None:
        if self.menus and not self.writer.headings and is_menu(element):
            return
        start = element.get("start") or "1"
        number = int(start) if re.fullmatch(r"-?\d{1,9}", start) else 1
        if element.text:
            self.words.append(element.text)
        for child in element:
            if child.tag == "li" and not self.skip(child):
                self.flush()
                self.item(child, f"{number}. " if ordered else "- ")
                number += 1
            else:
                self.element(child)
            if child.tail:
                self.words.append(child.tail)
        self.flush()

    def item(self, element: Any, marker: str) -> None:
        if self.marker:  # a list that opens an item: the outer item has no words of its own
            self.marker, self.indent = "", self.indent[: -len(self.marker)]
        outer = self.indent
        if len(outer) < 24:
            self.indent, self.marker = outer + " " * len(marker), marker
        self.read(element)
        self.indent, self.marker = outer, ""

    def code(self, element: Any) -> None:
        code = storable("".join(self.raw(element))).strip("\n").rstrip()
        if not code.strip():
            return
        classes = " ".join([element.get("class") or "", *(child.get("class") or "" for child in element)])
        language = re.search(r"\blang(?:uage)?-([\w+#-]+)", classes)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
        self.block(f"{fence}{language[1] if language else ''}\n{code}\n{fence}", "code")

    def raw(self, element: Any) -> list[str]:
        parts = [element.text or ""]
        for child in element:
            if child.tag == "br":
                parts.append("\n")
            elif isinstance(child.tag, str) and not self.skip(child):
                parts.extend(self.raw(child))
            parts.append(child.tail or "")
        return parts

    def plain(self, element: Any) -> str:
        """Return the words of an element on one line."""
        inner = Page(Blocks(), self.skip)
        inner.depth = self.depth
        inner.read(element)
        return " ".join(part for part in inner.writer.text().replace("\n", " ").split(" ") if part)

    def table(self, element: Any) -> None:
        rows = [row for row in element.iter("tr") if nearest_table(row) is element]
        cells = [[cell for cell in row if cell.tag in ("td", "th") and not self.skip(cell)] for row in rows]
        widest = max((len(row) for row in cells), default=0)
        if (
            widest < 2
            or element.get("role") == "presentation"
            or any(inner.tag in _NAMES["layout"] for inner in element.iterdescendants())
        ):
            for row in element.iter("tr", "caption"):
                if nearest_table(row) is element:
                    self.read(row)
            return
        for caption in element.iterchildren("caption"):
            self.read(caption)
        texts = [[text for cell in row for text in self.cell(cell)] for row in cells]
        if texts := [row for row in texts if any(row)]:
            self.block(pipe_table(texts, max(map(len, texts))), "table")

    def cell(self, cell: Any) -> list[str]:
        """Return a cell's words, and "" for each further column that it spans."""
        span = cell.get("colspan") or "1"
        return [self.plain(cell)] + [""] * (min(int(span), 50) - 1 if re.fullmatch(r"\d{1,9}", span) else 0)


def nearest_table(element: Any) -> Any:
    return next(element.iterancestors("table"), None)


def collapse(text: str) -> str:
    lines = (" ".join(re.split(r"[^\S\v]+", line)).strip() for line in storable(text).split(BREAK))
    return "\n".join(line for line in lines if line)
