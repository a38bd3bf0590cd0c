"""Blocks of plain Markdown, with the offsets of headings and pages."""

import re

from shared.errors import UnreadableError
from shared.models import Heading
from worker.parsing.text import LONGEST_HEADING, storable

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
MAX_PAGES = 20_000


def refuse_pages(count: int, name: str) -> None:
    if count > MAX_PAGES:
        raise UnreadableError(f"{name} has {count:,} pages, the limit is {MAX_PAGES:,}; split it.")


class Blocks:
    """Collects blocks, separated by blank lines; consecutive list items are on consecutive lines."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[Heading] = []
        self.pages: list[tuple[int, int]] = []
        self._last = ""
        self._page: int | None = None

    def text(self) -> str:
        return "".join(self.parts) + "\n" if self.parts else ""

    def page(self, number: int) -> None:
        """Start a page with the next block; a page without text is not recorded."""
        self._page = number

    def block(self, text: str, kind: str = "") -> int:
        """Write a block unless it is blank. Return its offset."""
        text = CONTROL.sub("", storable(text)).rstrip()
        if not text.strip():
            return self.length
        if self.parts:
            tight = (kind == self._last == "item") or self._last == "term"
            separator = "\n" if tight else "\n\n"
            self.parts.append(separator)
            self.length += len(separator)
        start = self.length
        if self._page is not None:
            self.pages.append((start, self._page))
            self._page = None
        self.parts.append(text)
        self.length += len(text)
        self._last = kind
        return start

    def heading(self, level: int, title: str) -> None:
        title = " ".join(CONTROL.sub("", storable(title)).split())
        if len(title) > LONGEST_HEADING:
            self.block(title)
        elif title:
            level = max(1, min(level, 6))
            start = self.block("#" * level + " " + title)
            self.headings.append(Heading(start, level, title))

    def table(self, rows: list[list[str]]) -> None:
        """Write a pipe table, its first row as the head; blank rows and blank columns at the right are left out."""
        rows = [[cell_text(cell) for cell in row] for row in rows]
        rows = [row for row in rows if any(row)]
        columns = max((index + 1 for row in rows for index, cell in enumerate(row) if cell), default=0)
        if columns:
            self.block(pipe_table([row[:columns] for row in rows], columns), "table")


def cell_text(text: str) -> str:
    return " ".join(text.split())


def pipe_table(rows: list[list[str]], columns: int) -> str:
    padded = [row + [""] * (columns - len(row)) for row in [rows[0], ["---"] * columns, *rows[1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)
