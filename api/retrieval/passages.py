"""Prepare passages for a reader: near-copies go last, and each passage is joined with its neighbours."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from shared.db import Connection
from shared.models import Passage

ALIKE = 0.9  # shared words of all words, from which on two passages are near-copies
SHARE = 0.5  # of the list, for one document …
WORTH = 0.9  # … unless a passage of another document scores less than this part
BUDGET = 1_600  # characters of a passage with its neighbours
REACH = 2  # neighbours on either side
COMPARED = 40  # passages that are compared with each other

_WORD = re.compile(r"\w+")


def diversify(passages: Sequence[Passage], top_k: int, share: float = SHARE) -> list[Passage]:
    """The first `top_k` of a ranking (best first), without one document or near-copies filling the list.

    A near-copy of an earlier passage is left out while there is something else. One document gets at most `share` of
    the list while others score nearly as well. The order is kept.
    """
    words = [frozenset(_WORD.findall(passage.content.lower())) for passage in passages[:COMPARED]]
    taken: list[int] = []
    behind: list[int] = []
    copies: list[int] = []
    limit, by_document = math.ceil(top_k * share), Counter[int]()
    for index, passage in enumerate(passages):
        if len(taken) == top_k:
            break
        if index < COMPARED and any(_alike(words[index], words[other]) for other in taken + behind):
            copies.append(index)
        elif by_document[passage.document_id] < limit:
            taken.append(index)
            by_document[passage.document_id] += 1
        else:
            behind.append(index)
    for index in behind:  # it replaces a much worse passage of another document
        if len(taken) < top_k:
            taken.append(index)
            continue
        worst = max(taken)
        if worst > index and passages[worst].score < WORTH * passages[index].score:
            taken[taken.index(worst)] = index
    taken += copies[: top_k - len(taken)]
    return [passages[index] for index in sorted(taken)]


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    if min(len(one), len(other)) < ALIKE * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return shared >= ALIKE * (len(one) + len(other) - shared)


def with_neighbours(connection: Connection, passages: Sequence[Passage], budget: int = BUDGET) -> list[Passage]:
    """Join passages with their neighbours under the same heading, up to `budget` characters each.

    Passages that then overlap become one, in the place of the better. The content is read from the document's text, so
    that `document_text[char_start:char_end] == content` holds. A passage stays as it is if that text has been replaced.
    """
    near = connection.execute(
        """
        SELECT hit.id, c.ordinal - hit.ordinal, c.char_start, c.char_end
        FROM chunk hit JOIN chunk c ON c.generation_id = hit.generation_id AND c.document_id = hit.document_id
             AND c.ordinal BETWEEN hit.ordinal - %s AND hit.ordinal + %s AND c.heading_path = hit.heading_path
        WHERE hit.id = ANY(%s)
        """,
        [REACH, REACH, [passage.chunk_id for passage in passages]],
    ).fetchall()
    neighbours: dict[int, dict[int, tuple[int, int]]] = {}
    for chunk_id, distance, start, end in near:
        neighbours.setdefault(chunk_id, {})[distance] = (start, end)
    joined: list[Passage] = []
    for passage in passages:
        start, end = _extent(passage, neighbours.get(passage.chunk_id, {}), budget)
        for index, other in enumerate(joined):
            if other.document_id == passage.document_id and start < other.char_end and other.char_start < end:
                start, end = min(start, other.char_start), max(end, other.char_end)
                joined[index] = replace(other, char_start=start, char_end=end)
                break
        else:
            joined.append(replace(passage, char_start=start, char_end=end))
    return _cut(connection, passages, joined)


def _extent(passage: Passage, near: dict[int, tuple[int, int]], budget: int) -> tuple[int, int]:
    """Start and end with the neighbours that fit: those after the passage first, since a text is read forwards."""
    start, end = passage.char_start, passage.char_end
    for direction in (1, -1):
        for step in range(1, REACH + 1):
            if direction * step not in near:
                break
            low, high = near[direction * step]
            if max(end, high) - min(start, low) > budget:
                break
            start, end = min(start, low), max(end, high)
    return start, end


def _cut(connection: Connection, passages: Sequence[Passage], joined: list[Passage]) -> list[Passage]:
    """Cut the joined passages out of their texts. A slice costs PostgreSQL eight times as much as all of a text."""
    cut = {passage.chunk_id: passage for passage in passages}
    longer = [passage for passage in joined if passage != cut[passage.chunk_id]]
    for document_id in dict.fromkeys(passage.document_id for passage in longer):
        here = [passage for passage in longer if passage.document_id == document_id]
        row = connection.execute(
            """
            SELECT text.content FROM document_text text
            JOIN chunk c ON c.id = %s AND c.document_id = text.document_id
            JOIN document_generation held ON (held.document_id, held.generation_id) = (c.document_id, c.generation_id)
            WHERE held.text_version = text.text_version
            """,
            [here[0].chunk_id],
        ).fetchone()
        if row:
            cut |= {p.chunk_id: replace(p, content=row[0][p.char_start : p.char_end]) for p in here}
    return [cut[passage.chunk_id] for passage in joined]
