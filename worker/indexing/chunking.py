"""Split text into chunks at boundaries that depend only on the content beside them.

The text is divided into pieces: sentences and lines; words or letters where these are too long. Each piece has a rank
(how good a boundary its start is: heading, paragraph, line …) and a hash of its own text. A chunk begins where rank and
hash are the greatest within RADIUS before and after (local maximum chunking: Bjørner, Blass & Gurevich 2010); no edit
farther away can change that. A stretch that is still too long is cut at its best place. Sizes are in tokens.
"""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, pairwise
from math import ceil
from unicodedata import category

import numpy as np

from shared.models import Chunk, Heading, Parsed
from shared.text.sentences import FENCE, LIST_ITEM, is_row, is_wrapped, lines, sentences

CHUNKER_VERSION = "1"  # increase it when boundaries change: a generation has one chunker

RADIUS = 0.3  # of max_tokens; a greater one makes fuller chunks, but an edit moves a fourth boundary more often
SMALLEST = 0.2  # of max_tokens: a cut inside a long stretch leaves no smaller part if another cut is possible
WIDEST = 16  # characters per token: an endless word is one [UNK], but must not make an endless chunk

Count = Callable[[Sequence[str]], list[int]]
Range = tuple[int, int]
Measure = Callable[[list[Range]], list[int]]  # tokens of stretches of the text
Key = tuple[int, bytes]  # rank and hash

# Ranks of the place before a piece. GLUED: after a heading, before a closing fence or bracket.
GLUED, LETTERS, WORD, CLAUSE, WRAP, SENTENCE, LINE, BLOCK, PARAGRAPH, HEADING = range(10)

_CLOSES = re.compile(r"(?:[)\]}]|(?:else|elif|except|finally|end|then|catch)\b)")
_DEFINES = re.compile(r"(?:async |export |public |static |pub )*(?:def|class|function|func|fn|interface|struct|impl)\b")
_ANNOTATES = re.compile(r"@|#|//|/?\*|--")
_RULE = frozenset("|-: \t")  # characters of the line under a table's head


@dataclass(slots=True)
class _Piece:
    start: int
    end: int
    rank: int
    heading: bool = False
    size: int = 0


def chunk(parsed: Parsed, count: Count, max_tokens: int, overlap_tokens: int = 0) -> list[Chunk]:
    """Return the chunks of a document, in order; together they cover all non-whitespace text.

    `count` returns the number of tokens of each text of a batch. No content has more than `max_tokens`. A chunk that
    does not begin with a heading may repeat up to `overlap_tokens` of whole sentences or lines of the previous chunk.
    Short sections share a chunk only with their siblings or with the introduction of their parent (a heading yields
    only to a nearby one of the same or a higher level). `heading_path` and `page` are those of the first character
    after the overlap. Raises ValueError if `max_tokens` is below 16.
    """
    if max_tokens < 16:
        raise ValueError(f"max_tokens is {max_tokens}: chunks need room for at least 16 tokens")
    text = parsed.text

    def measure(stretches: list[Range]) -> list[int]:
        return count([text[start:end] for start, end in stretches])

    pieces = _measured(text, _pieces(parsed), measure, max_tokens)
    ranges = _ranges(text, pieces, measure, max_tokens)
    firsts = _overlaps(pieces, ranges, measure, max_tokens, overlap_tokens)
    paths = _paths(parsed.headings, [pieces[own].start for own, _ in ranges])
    page_starts = [start for start, _ in parsed.pages]
    chunks: list[Chunk] = []
    for (own, stop), first, path in zip(ranges, firsts, paths, strict=True):
        start, end = pieces[first].start, pieces[stop - 1].end
        page = parsed.pages[max(0, bisect_right(page_starts, pieces[own].start) - 1)][1] if page_starts else None
        chunks.append(Chunk(len(chunks), text[start:end], path, page, start, end))
    return chunks


def _paths(headings: tuple[Heading, ...], starts: list[int]) -> Iterator[tuple[str, ...]]:
    """Yield for each of the ascending offsets the titles of the headings that enclose it, outermost first."""
    above: list[Heading] = []
    coming = deque(headings)
    for start in starts:
        while coming and coming[0].start <= start:
            while above and above[-1].level >= coming[0].level:
                above.pop()
            above.append(coming.popleft())
        yield tuple(heading.title for heading in above)


def _pieces(parsed: Parsed) -> list[_Piece]:
    """Divide a document into headings, sentences, and lines of code and CSV, each with the rank of its start."""
    text, code = parsed.text, parsed.kind == "code"
    levels = {heading.start: heading.level for heading in parsed.headings}
    ends = {start: len(text) if (end := text.find("\n", start)) < 0 else end for start in levels}
    pieces: list[_Piece] = []
    first: _Piece | None = None  # the first of successive headings: they are ranked at its start
    for begin, end in pairwise(sorted({0, len(text), *ends, *ends.values()})):
        level = levels.get(begin)
        by_line = level or code or parsed.format == "csv"
        spans = [(0, end - begin)] if by_line else sentences(text[begin:end])
        for start, stop in (line for span in spans for line in lines(text, begin + span[0], begin + span[1])):
            if code:  # a line keeps its indentation
                indent = text[max(begin, text.rfind("\n", begin, start) + 1) : start]
                start -= len(indent) - len(indent.rstrip(" \t"))
            before = pieces[-1] if pieces else None
            piece = _Piece(start, stop, GLUED, bool(level))
            pieces.append(piece)
            if level and not first:
                first = _above_heading(text, before, piece) if parsed.kind == "text" else piece
            if level and first:
                first.rank = max(first.rank, HEADING + max(0, 6 - level))
            elif not first:
                piece.rank = _code_rank(text, before, piece) if code else _rank(text, before, piece)
            elif any(map(str.isalnum, text[start:stop])):
                first = None
            else:  # the line under a heading
                piece.heading = True
    return pieces


def _above_heading(text: str, before: _Piece | None, heading: _Piece) -> _Piece:
    """Return the line over a heading (reStructuredText) if there is one, else the heading."""
    if before and text.count("\n", before.end, heading.start) == 1 and len(set(text[before.start : before.end])) == 1:
        before.rank, before.heading = GLUED, True
        return before
    return heading


def _rank(text: str, before: _Piece | None, piece: _Piece) -> int:
    breaks = text.count("\n", before.end, piece.start) if before else 2
    if not before or not breaks:
        return SENTENCE
    above, line = text[before.start : before.end], text[piece.start : piece.end]
    if FENCE.match(line) and breaks == 1:  # below a blank line it is an opening fence
        return GLUED
    if FENCE.match(above) and (breaks == 1 or above.strip("`~")):
        return GLUED
    if breaks == 1 and is_row(line) and is_row(above) and (_RULE.issuperset(line) or _RULE.issuperset(above)):
        return GLUED
    if breaks > 1:
        return BLOCK if text[piece.start - 1] in " \t" else PARAGRAPH
    return WRAP if is_wrapped(above.rpartition("\n")[2]) and not LIST_ITEM.match(line) and not is_row(line) else LINE


def _code_rank(text: str, before: _Piece | None, piece: _Piece) -> int:
    breaks = text.count("\n", before.end, piece.start) if before else 2
    line = text[piece.start : piece.end].lstrip()
    indent = piece.end - piece.start - len(line)
    if _CLOSES.match(line):
        return GLUED
    if breaks > 1:
        return PARAGRAPH if not indent else BLOCK
    annotated = before and _ANNOTATES.match(text[before.start : before.end].lstrip())
    if _DEFINES.match(line) and not annotated:
        return BLOCK
    return WRAP if indent or annotated else LINE


def _measured(text: str, pieces: list[_Piece], measure: Measure, limit: int) -> list[_Piece]:
    """Set the sizes of the pieces, and divide pieces over `limit` at spaces, else between letters."""
    _weigh(pieces, measure, limit)
    for longest in (None, 24, 4, 1):
        parts = {i: _parts(text, piece, longest) for i, piece in enumerate(pieces) if piece.size > limit}
        if not parts:
            break
        _weigh([part for divided in parts.values() for part in divided], measure, limit)
        pieces = [part for index, piece in enumerate(pieces) for part in parts.get(index, (piece,))]
    return pieces


def _weigh(pieces: list[_Piece], measure: Measure, limit: int) -> None:
    small = [piece for piece in pieces if piece.end - piece.start <= WIDEST * limit]
    for piece in pieces:
        piece.size = limit + 1
    for piece, tokens in zip(small, measure([(piece.start, piece.end) for piece in small]), strict=True):
        piece.size = max(tokens, -(-(piece.end - piece.start) // WIDEST))


def _parts(text: str, piece: _Piece, longest: int | None) -> list[_Piece]:
    """Divide a piece into words, or into parts of at most `longest` letters."""
    divided = _at_letters(text, piece.start, piece.end, longest) if longest else _at_words(text, piece.start, piece.end)
    parts = [_Piece(*part) for part in divided]
    parts[0].rank, parts[0].heading = piece.rank, piece.heading
    return parts


def _at_words(text: str, start: int, end: int) -> list[tuple[int, int, int]]:
    parts, rank = [], WORD
    for match in re.compile(r"\S+").finditer(text, start, end):
        parts.append((*match.span(), rank))
        rank = CLAUSE if text[match.end() - 1] in ",;:、，；：" else WORD
    return parts


def _at_letters(text: str, start: int, end: int, longest: int) -> list[tuple[int, int, int]]:
    """Return parts of at most `longest` letters. The four letters before a place alone decide if a part ends there."""
    codes = np.frombuffer(("\0\0\0" + text[start:end]).encode("utf-32-le"), np.uint32)
    factors = np.array((3, 40503, 2654435, 97531), np.uint32)
    mixed = sum(factor * codes[i : len(codes) - 3 + i] for i, factor in enumerate(factors))
    ends = np.flatnonzero((np.asarray(mixed, np.uint32) * np.uint32(2654435769)) >> np.uint32(28) == 0) + start + 1
    cuts = [start]
    for place in [*ends.tolist(), end]:
        while place - cuts[-1] > longest:
            cuts.append(cuts[-1] + longest)
        if place - cuts[-1] > longest // 4 or place == end:
            cuts.append(place)
    cuts = [cut for cut in cuts if cut in (start, end) or longest < 24 or not _joined(text, cut)]
    return [(begin, stop, LETTERS) for begin, stop in pairwise(cuts) if begin < stop]


def _joined(text: str, cut: int) -> bool:
    """True if a cut would separate an accent, a vowel sign or an emoji's modifier from its letter."""
    return category(text[cut]) in ("Mn", "Mc", "Me", "Sk") or "\u200d" in text[cut - 1 : cut + 1]


def _ranges(text: str, pieces: list[_Piece], measure: Measure, limit: int) -> list[Range]:
    """Return the (first, stop) indexes of the pieces of each chunk."""
    if not pieces:
        return []
    # A long gap, of thousands of blanks, counts as if it were text.
    gaps = [0, *((after.start - before.end) // WIDEST for before, after in pairwise(pieces))]
    offsets = [0, *accumulate(min(limit, piece.size + gap) for piece, gap in zip(pieces, gaps, strict=True))]
    hashes = [blake2b(text[piece.start : piece.end].encode(), digest_size=8).digest() for piece in pieces]
    # The hashes of the next two lines distinguish equal lines.
    after = [*hashes[1:], b"", b""]
    keys = [(piece.rank, a + b + c) for piece, a, b, c in zip(pieces, hashes, after, after[1:], strict=False)]
    reach = _reach(offsets, keys)
    peaks = [i for i, distance in enumerate(reach) if distance > RADIUS * limit or i in (0, len(pieces))]
    ranges: list[Range] = []
    worths = [(piece.rank, far) for piece, far in zip(pieces, reach, strict=False)]
    for first, stop in pairwise(peaks):
        ranges += _divided(offsets, worths, first, stop, limit)
    over = _over(pieces, ranges, measure, limit)
    return [part for r in ranges for part in (_halved(pieces, r, measure, limit) if r in over else [r])]


def _reach(offsets: list[int], keys: list[Key]) -> list[int]:
    """Return the distance of each place to the nearest one with a greater key (before it: or an equal key).

    Both ends of the text have the greatest key.
    """
    top: Key = (HEADING + 10, b"")
    places = [top, *keys[1:], top]
    reach = [offsets[-1]] * len(places)
    for backward in (False, True):
        greater: list[int] = []  # each has a greater key than those after it
        for i in range(len(places) - 1, -1, -1) if backward else range(len(places)):
            while greater and (places[greater[-1]] < places[i] or (backward and places[greater[-1]] == places[i])):
                greater.pop()
            if greater:
                reach[i] = min(reach[i], abs(offsets[i] - offsets[greater[-1]]))
            greater.append(i)
    return reach


def _divided(offsets: list[int], worths: list[tuple[int, int]], first: int, stop: int, limit: int) -> Iterator[Range]:
    """Cut a stretch longer than `limit` where rank, then reach is greatest, into parts neither too long nor too short.

    Reach does not depend on the ends of the stretch: when they move, the cut tends to stay.
    """
    least, usual = SMALLEST * limit, 0.9 * limit
    while (total := offsets[stop] - offsets[first]) > limit:
        # As few parts as possible: the rest after the cut needs one part less.
        low = offsets[first] + max(least, total - usual * (ceil(total / usual) - 1))
        high = min(offsets[first] + limit, offsets[stop] - least)
        begin = bisect_left(offsets, low, first + 1, stop)
        end = bisect_right(offsets, high, begin, stop)
        if begin == end:  # very long pieces: as many as fit
            end = bisect_right(offsets, offsets[first] + limit, first + 1, stop)
            begin = end - 1
        cut = max(range(begin, end), key=lambda i: (worths[i], i))
        yield first, cut
        first = cut
    yield first, stop


def _over(pieces: list[_Piece], ranges: list[Range], measure: Measure, limit: int) -> set[Range]:
    """Return the ranges of pieces that have more than `limit` tokens when they are joined.

    Joined, they can have more than their sum: by one for each blank between them, by more inside a word. Only ranges
    where that matters are counted.
    """
    unsure = []
    for first, stop in ranges:
        inside = pieces[first:stop]
        blanks = inside[-1].end - inside[0].start - sum(piece.end - piece.start for piece in inside)
        if sum(piece.size for piece in inside) + blanks > limit or any(piece.rank == LETTERS for piece in inside):
            unsure.append((first, stop))
    tokens = measure([(pieces[first].start, pieces[stop - 1].end) for first, stop in unsure])
    return {inside for inside, size in zip(unsure, tokens, strict=True) if size > limit}


def _halved(pieces: list[_Piece], inside: Range, measure: Measure, limit: int) -> Iterator[Range]:
    first, stop = inside
    if stop - first > 1 and _over(pieces, [inside], measure, limit):
        middle = max(range(first + 1, stop), key=lambda i: (pieces[i].rank, -abs(first + stop - 2 * i)))
        yield from _halved(pieces, (first, middle), measure, limit)
        yield from _halved(pieces, (middle, stop), measure, limit)
    else:
        yield inside


def _overlaps(pieces: list[_Piece], ranges: list[Range], measure: Measure, limit: int, most: int) -> list[int]:
    """Return the index of the first piece of each chunk, counting pieces that it repeats from the previous chunk."""
    firsts = []
    for number, (own, stop) in enumerate(ranges):
        first, size, at_sentence = own, 0, False
        room = min(most, limit - sum(piece.size for piece in pieces[own:stop])) if number else 0
        for i in range(own - 1, ranges[number - 1][0] - 1 if number else own, -1):
            size += pieces[i].size
            far = pieces[own].start - pieces[i].start > WIDEST * room
            if size > room or far or pieces[own].heading or pieces[i].heading:
                break
            if pieces[i].rank not in (LETTERS, WORD, CLAUSE, WRAP):
                first, at_sentence = i, True
            elif pieces[i].rank == WRAP and not at_sentence:  # a line's start only if no sentence starts
                first = i
        firsts.append(first)
    joined = [(first, stop) for first, (own, stop) in zip(firsts, ranges, strict=True) if first < own]
    over = _over(pieces, joined, measure, limit)
    return [own if (first, stop) in over else first for first, (own, stop) in zip(firsts, ranges, strict=True)]
