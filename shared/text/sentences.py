"""Sentences: the spans of a text that are quoted and cited, and that a chunk does not divide.

Every rule looks only at neighbouring lines, so that an edit never changes a span far away; for this reason no state is
kept between the fences of a code block. Every pattern takes linear time on any input.
"""

import re
from collections.abc import Iterator

LIST_ITEM = re.compile(r"(?:[-*+•‣◦]|\(?(?:\d{1,3}|[a-z])[.)])\s")
FENCE = re.compile(r"(?:```|~~~)")
WRAPPED = 40  # characters: a shorter line was broken for another reason than its length
LONGEST = 400  # characters: a "sentence" over several lines that is longer is taken for a list of lines

_LINE = re.compile(r"[^\n]+")
_SPACE = re.compile(r"\s*")
_HEADING = re.compile(r"#{1,6}\s")
_END = re.compile(
    r"""[.!?…؟۔।॥]["'”’»)\]*_`]{0,4}(?=\s)"""  # needs a space after it: not 3.14, not example.org
    r"""|[。！？｡][”’」』）)》]{0,4}(?![。！？｡”’」』）)》])"""
)
_STOPS = frozenset(".!?…:;؟۔।॥。！？｡：；")
_ABBREVIATIONS = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|cf|al|figs?|eq|sec|ch|vol|nos?|pp|eds?|approx|dept|est|inc|ltd|co|corp"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|ca|bzw|usw|vgl|nr|bd|abb|evtl|ggf|inkl|max|min|mme|mlle"
    r"|[^\W\d]|(?:\w\.)+\w)",  # J. S. Bach, e.g., U.S., z.B.
    re.IGNORECASE,
)


def sentences(text: str) -> list[tuple[int, int]]:
    """Return the (start, end) spans of the sentences of `text`, in order, without surrounding whitespace.

    Together they cover all non-whitespace text. List items, table and CSV rows, headings and short lines are spans of
    their own; a sentence that was wrapped over several lines is one span.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _runs(text):
        for begin, stop in _split(text, start, end):
            if stop - begin > LONGEST and "\n" in text[begin:stop]:
                spans.extend(lines(text, begin, stop))
            else:
                spans.append((begin, stop))
    return spans


def lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the (start, end) spans of the lines of `text[start:end]`, stripped, without blank lines."""
    spans = []
    for match in _LINE.finditer(text, start, end):
        line = match.group()
        if stripped := line.strip():
            begin = match.start() + len(line) - len(line.lstrip())
            spans.append((begin, begin + len(stripped)))
    return spans


def is_row(line: str) -> bool:
    """True if a line looks like a row of a table or of a CSV file."""
    if line.startswith("|") or "\t" in line or line.count(" | ") > 1:
        return True
    tight = line.count(",") - line.count(", ")
    return tight > 1 and 3 * tight >= line.count(" ")


def is_wrapped(line: str) -> bool:
    """True if a line looks like prose that continues in the next line."""
    return len(line) >= WRAPPED and line[-1] not in _STOPS and not is_row(line) and not _HEADING.match(line)


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of lines, each joined to the lines that it was wrapped into."""
    first = last = -1
    before = ""
    for start, end in lines(text, 0, len(text)):
        line = text[start:end]
        follows = before and line[0].islower() and text.count("\n", last, start) == 1
        if not (follows and is_wrapped(before) and not LIST_ITEM.match(line) and not is_row(line)):
            if before:
                yield first, last
            first = start
        before, last = line, end
    if before:
        yield first, last


def _split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of one run; a row or a heading is not divided."""
    if not is_row(text[start:end]) and not _HEADING.match(text, start):
        for match in _END.finditer(text, start, end):
            space = _SPACE.match(text, match.end(), end)
            following = space.end() if space else end
            if following < end and not _continues(text, start, match.start(), following):
                yield start, match.end()
                start = following
    yield start, end


def _continues(text: str, start: int, stop: int, following: int) -> bool:
    """True if the sentence continues after the stop sign at `stop`; `following` is the start of the next word."""
    if text[following].islower():
        return True
    if text[stop] != ".":
        return False
    words = text[max(start, stop - 16) : stop].split()
    word = words[-1].lstrip("([\"'*_„“") if words else ""
    if word.isdigit():
        return len(word) < 3  # "im 19. Jahrhundert", "1. First": a false end hurts more than a missed one
    return _ABBREVIATIONS.fullmatch(word) is not None
