"""What is done to passages before somebody reads them: repetitions go behind, and each is continued until it reads whole."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from shared.db import Connection
from shared.models import Passage

ALIKE = 0.9  # shared words of all words: two passages that say the same
SHARE = 0.5  # of the list, for one document …
WORTH = 0.9  # … unless what would take its place is worth less than this part of it
BUDGET = 1_600  # characters of a passage with its neighbours
REACH = 2  # neighbours on either side
COMPARED = 40  # passages that are compared with each other

_WORD = re.compile(r"\w+")


def diversify(passages: Sequence[Passage], top_k: int, share: float = SHARE) -> list[Passage]:
    """The first `top_k` of a ranking (best first), without one document or near-copies filling the list.

    What repeats an earlier passage is left out while there is something else; of one document no more than `share` of the list
    is taken while others are nearly as good. The order is kept.
    """
    words = [frozenset(_WORD.findall(passage.content.lower())) for passage in passages[:COMPARED]]
    taken: list[int] = []
    behind: list[int] = []
    copies: list[int] = []
    most, held = math.ceil(top_k * share), Counter[int]()
    for index, passage in enumerate(passages):
        if len(taken) == top_k:
            break
        if index < COMPARED and any(_alike(words[index], words[other]) for other in taken + behind):
            copies.append(index)
        elif held[passage.document_id] < most:
            taken.append(index)
            held[passage.document_id] += 1
        else:
            behind.append(index)
    for index in behind:  # a much worse passage of another document does not push it out
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
    """The passages continued over their neighbours under the same heading, to `budget` characters each.

    Those that come to overlap are one, where the better stood. The text is cut out of the document again, so that
    `document_text[char_start:char_end] == content` holds; a passage of a text that is not there any more stays as it is.
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
    """Start and end with the neighbours that fit: the next ones first, for a text is read forwards."""
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
    """Each text is read once, and one at a time: a slice of it costs PostgreSQL eight times as much as all of it."""
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
