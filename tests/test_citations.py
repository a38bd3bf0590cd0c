from dataclasses import replace

import pytest

from api.citations import Claim, Draft, Statement, verify
from shared.db import Connection
from shared.models import NO_ANSWER, Answer, Passage

TEXT = "Größe: the tower is 54 m high.\nIt was built in 1887 by Ada Frost. 🦆 Ducks nest on its roof."
HIGH = "the tower is 54 m high."
BUILT = "It was built in 1887 by Ada Frost."
DUCKS = "🦆 Ducks nest on its roof."


@pytest.fixture
def passages(connection: Connection) -> list[Passage]:
    """The text as one passage of document 1, and its second sentence as a passage of document 2, a copy."""
    connection.execute("INSERT INTO source (collection_id, kind, root) SELECT id, 'folder', '/in' FROM collection")
    for key in ("tower.md", "copy.md"):
        connection.execute(
            """
            WITH fresh AS (
                INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, live_revision)
                SELECT id, collection_id, %s, 'ready', '1-1', 1, '1-1' FROM source RETURNING id
            )
            INSERT INTO document_text
            SELECT id, 1, %s, 'text', '[[0, 1, "Towers"], [31, 2, "History"]]', '[[0, 3], [66, 4]]' FROM fresh
            """,
            [key, TEXT],
        )
    ids = [id for (id,) in connection.execute("SELECT id FROM document ORDER BY id")]
    start = TEXT.index(BUILT)
    return [
        Passage(11, ids[0], "tower.md", "Tower", TEXT, 1.0, 3, ("Towers",), 0, len(TEXT)),
        Passage(12, ids[1], "copy.md", None, BUILT, 0.5, None, (), start, start + len(BUILT)),
    ]


def claim(quote: str, passage: int = 0) -> Claim:
    start = TEXT.index(quote)
    return Claim(passage, start, start + len(quote), quote)


def check(connection: Connection, passages: list[Passage], *statements: Statement, dropped: int = 0) -> Answer:
    return verify(connection, Draft(statements, dropped), passages, "claude", {"input_tokens": 7})


def test_grounded(connection: Connection, passages: list[Passage]) -> None:
    answer = check(
        connection,
        passages,
        Statement("It is 54 m high. ", (claim(HIGH),)),
        Statement(
            "Ada Frost built it in 1887,\nand ducks live on it.\n\n", (claim(BUILT, 1), claim(DUCKS), claim(HIGH))
        ),
        Statement("Built in 1887.", (claim(BUILT, 1), claim(BUILT, 1))),
    )
    assert answer.text == (
        "It is 54 m high. [1] Ada Frost built it in 1887,\nand ducks live on it. [2][3][1]\n\nBuilt in 1887. [2]"
    )
    assert answer.verdict == "grounded"
    assert not answer.warnings
    assert answer.usage == {"input_tokens": 7}
    assert [(c.number, c.source, c.quote) for c in answer.citations] == [
        (1, "tower.md", HIGH),
        (2, "copy.md", BUILT),
        (3, "tower.md", DUCKS),
    ]
    assert [(c.chunk_id, c.title, c.page, c.heading) for c in answer.citations] == [
        (11, "Tower", 3, ("Towers",)),
        (12, None, 3, ("Towers", "History")),
        (11, "Tower", 4, ("Towers", "History")),
    ]
    for citation in answer.citations:
        assert TEXT[citation.char_start : citation.char_end] == citation.quote


@pytest.mark.parametrize(
    "forged",
    [
        replace(claim(HIGH), quote="the tower is 55 m high."),
        replace(claim(HIGH), quote=HIGH.upper()),
        replace(claim(HIGH), char_start=6),
        replace(claim(HIGH), passage=2),
        replace(claim(HIGH), passage=-1),
        replace(claim(HIGH), passage=1),  # words of the document, but not of the passage
        Claim(0, -5, 3, "Grö"),
        Claim(0, 5, 5, ""),
        Claim(0, 30, 31, "\n"),
        Claim(0, len(TEXT) - 5, len(TEXT) + 1, TEXT[-5:]),
        Claim(0, 0, 2**40, TEXT),
    ],
)
def test_what_does_not_stand_is_dropped(connection: Connection, passages: list[Passage], forged: Claim) -> None:
    answer = check(connection, passages, Statement("It is 55 m high. ", (forged,)), Statement("1887.", (claim(BUILT),)))
    assert answer.text == "It is 55 m high. 1887. [1]"
    assert answer.verdict == "partial"
    assert [c.quote for c in answer.citations] == [BUILT]
    assert answer.warnings == ("1 citation does not stand in the documents' text and was left out.",)

    alone = check(connection, passages, Statement("It is 55 m high.", (forged,)), dropped=2)
    assert (alone.text, alone.verdict, alone.citations) == (NO_ANSWER, "no_answer", ())
    assert alone.warnings == ("3 citations do not stand in the documents' text and were left out.",)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE document SET state = 'deleted'",
        "UPDATE document SET state = 'excluded'",
        "UPDATE document SET live_revision = NULL",
        "UPDATE document_text SET content = 'Now ' || content",
        "DELETE FROM document_text",
        "DELETE FROM document",
    ],
)
def test_a_document_that_went_or_changed_is_not_cited(
    connection: Connection, passages: list[Passage], change: str
) -> None:
    connection.execute(change)
    answer = check(connection, passages, Statement("It is 54 m high.", (claim(HIGH),)))
    assert (answer.text, answer.verdict, answer.citations) == (NO_ANSWER, "no_answer", ())


def test_a_new_revision_in_the_making_does_not_matter(connection: Connection, passages: list[Passage]) -> None:
    connection.execute("UPDATE document SET state = 'ingesting', wanted_revision = '2-2'")
    assert check(connection, passages, Statement("54 m.", (claim(HIGH),))).verdict == "grounded"


def test_nothing_found(connection: Connection) -> None:
    answer = check(connection, [])
    assert (answer.text, answer.verdict, answer.citations, answer.warnings) == (NO_ANSWER, "no_answer", (), ())


@pytest.mark.parametrize(("lead", "verdict"), [("These are the facts:\n\n", "grounded"), ("It is blue. ", "partial")])
def test_only_what_leads_over_needs_no_citation(
    connection: Connection, passages: list[Passage], lead: str, verdict: str
) -> None:
    answer = check(connection, passages, Statement(lead), Statement("- 54 m high\n", (claim(HIGH),)))
    assert answer.text == lead + "- 54 m high [1]"
    assert answer.verdict == verdict


def test_marks_of_the_text_are_not_taken_for_ours(connection: Connection, passages: list[Passage]) -> None:
    answer = check(connection, passages, Statement("It is high.[7] See [2], and argv[1].", (claim(HIGH),)))
    assert answer.text == "It is high.(7) See (2), and argv[1]. [1]"


def test_a_fence_stays_closed(connection: Connection, passages: list[Passage]) -> None:
    answer = check(connection, passages, Statement("Run:\n```\nmake up\n```\n", (claim(HIGH),)))
    assert answer.text == "Run:\n```\nmake up\n```\n[1]"
