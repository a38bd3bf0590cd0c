"""Hundreds of true and forged citations (tests/api/forgeries.py), answered by a server on loopback and then checked."""

import os
import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from api.answering import claude
from api.verification import citations
from api.verification.citations import Draft, Statement, Verification
from shared.db import Connection
from shared.models import Answer, Passage
from shared.providers.claude import Claude, Deadline
from shared.settings import ROOT
from tests.api.forgeries import WINDOW, Case, forged_cases, read_documents, true_cases
from tests.standins.providers import AnthropicStandin, cite, search_results, text_block

EACH = 45  # cases of each kind
AT_ONCE = 10  # sentences of one answer


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    more = os.environ.get("FORGERIES_FROM")  # a folder of further *.md
    return read_documents(ROOT, sorted(Path(more).glob("*.md")) if more else ())


@pytest.fixture
def ids(connection: Connection, documents: dict[str, str]) -> dict[str, int]:
    connection.execute("INSERT INTO source (collection_id, kind, root) SELECT id, 'folder', '/in' FROM collection")
    for name, text in documents.items():
        connection.execute(
            """
            WITH fresh AS (
                INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, live_revision)
                SELECT id, collection_id, %s, 'ready', '1-1', 1, '1-1' FROM source RETURNING id
            )
            INSERT INTO document_text SELECT id, 1, %s, 'text', '[]', '[]' FROM fresh
            """,
            [name, text],
        )
    return dict(connection.execute("SELECT key, id FROM document").fetchall())


@pytest.fixture
def server() -> Iterator[AnthropicStandin]:
    with AnthropicStandin() as server:
        yield server


def some(cases: Sequence[Case], each: int = EACH) -> list[Case]:
    """Return at most `each` cases of each kind."""
    seen: Counter[str] = Counter()
    chosen = []
    for case in cases:
        seen[case.kind] += 1
        if seen[case.kind] <= each:
            chosen.append(case)
    return chosen


def passage_of(case: Case, documents: dict[str, str], ids: dict[str, int]) -> Passage:
    text = documents[case.document]
    start = max(text.rfind("\n\n", 0, case.start) + 2, case.start - WINDOW) if "\n\n" in text[: case.start] else 0
    end = min(len(text), case.end + WINDOW)
    return Passage(1, ids[case.document], case.document, None, text[start:end], 1.0, None, (), start, end)


def block_of(request: dict[str, Any], case: Case, number: int, documents: dict[str, str]) -> dict[str, Any]:
    """Return the text block of a model's answer, with its citation."""
    quote = case.quote(documents)
    blocks = [block["text"] for block in search_results(request)[number]["content"]]
    begins = list(accumulate(map(len, blocks), initial=0))
    start = "".join(blocks).index(quote)
    place, last = bisect(begins, start) - 1, bisect(begins, start + len(quote) - 1)
    citation = cite(request, number, place, last) | case.citation
    if citation["search_result_index"] == "next":
        texts = ["".join(block["text"] for block in one["content"]) for one in search_results(request)]
        citation["search_result_index"] = next((n for n, text in enumerate(texts) if quote not in text), 99)
    if case.alter:
        citation["cited_text"] = case.alter(citation["cited_text"])
    return text_block(case.statement + "\n", [citation] if case.cites else [])


def play(
    connection: Connection, server: AnthropicStandin, cases: list[Case], documents: dict[str, str], ids: dict[str, int]
) -> Answer:
    """Return the shown answer to a model's reply that contains all of these cases."""
    passages = [passage_of(case, documents, ids) for case in cases]
    server.reply = lambda request: [block_of(request, case, n, documents) for n, case in enumerate(cases)]
    opened = Claude("k", server.url)
    opened.citing["m"] = True
    parts = claude.answer(opened, "m", "What do the documents say?", passages, Deadline.after(20))
    verification = Verification(passages)
    gone = {case.gone: ids[case.document] for case in cases}
    if "deleted" in gone:
        connection.execute("UPDATE document SET state = 'deleted' WHERE id = %s", [gone["deleted"]])
    if "changed" in gone:
        connection.execute(
            "UPDATE document_text SET content = 'New. ' || content WHERE document_id = %s", [gone["changed"]]
        )
    for part in parts:
        if isinstance(part, Statement):
            list(verification.check(part, citations.resolve(connection, part.claims, passages)))
        elif isinstance(part, Draft):
            list(verification.finish(part))
    connection.execute("UPDATE document SET state = 'ready'")
    for name, id in ids.items() if "changed" in gone else ():
        connection.execute("UPDATE document_text SET content = %s WHERE document_id = %s", [documents[name], id])
    answer = verification.answer("claude", {})
    for citation in answer.citations:
        assert citation.quote in documents[citation.source]
    return answer


def shown(case: Case, answer: Answer) -> bool:
    """Return True if the sentence of the case is shown."""
    return " ".join(case.statement.split()) in " ".join(answer.text.split())


def groups(cases: list[Case]) -> Iterator[list[Case]]:
    """Yield the cases in groups; a case whose document is deleted or changed is alone."""
    together = [case for case in cases if not case.gone]
    yield from (together[i : i + AT_ONCE] for i in range(0, len(together), AT_ONCE))
    yield from ([case] for case in cases if case.gone)


def test_true_citations_are_kept(
    connection: Connection, server: AnthropicStandin, documents: dict[str, str], ids: dict[str, int]
) -> None:
    cases = some(true_cases(documents, random.Random(7)))
    lost = [
        case
        for group in groups(cases)
        for answer in [play(connection, server, group, documents, ids)]
        for case in group
        if not shown(case, answer)
    ]
    print(f"{len(cases)} true ones of {len({case.kind for case in cases})} kinds, {len(lost)} lost")
    assert len(cases) >= 200
    assert len(lost) <= 0.01 * len(cases), [(case.kind, case.statement, case.quote(documents)) for case in lost]


def test_forged_citations_are_not_shown(
    connection: Connection, server: AnthropicStandin, documents: dict[str, str], ids: dict[str, int]
) -> None:
    cases = some(forged_cases(documents, random.Random(7)))
    leaked = [
        case
        for group in groups(cases)
        for answer in [play(connection, server, group, documents, ids)]
        for case in group
        if shown(case, answer)
    ]
    kinds = Counter(case.kind for case in cases)
    print(f"{len(cases)} forged ones, {len(leaked)} shown; {dict(kinds)}")
    assert len(cases) >= 200
    assert len(kinds) >= 15
    assert [(case.kind, case.statement, case.quote(documents)) for case in leaked] == []
