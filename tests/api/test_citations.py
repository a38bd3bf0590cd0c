"""Citations are verified against the stored text."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from api.verification.citations import Draft, Span, Statement, Verification, resolve
from shared.db import Connection
from shared.models import NO_ANSWER, Answer, Passage

TEXT = "Größe: the tower is 54 m high.\nIt was built in 1887 by Ada Frost. 🦆 Ducks nest on its roof."
HIGH = "the tower is 54 m high."
BUILT = "It was built in 1887 by Ada Frost."
DUCKS = "🦆 Ducks nest on its roof."


@pytest.fixture
def passages(connection: Connection) -> list[Passage]:
    """Return the text as a passage of document 1, and its second sentence as a passage of its copy, document 2."""
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


def claim(quote: str, passage: int = 0) -> Span:
    start = TEXT.index(quote)
    return Span(passage, start, start + len(quote), quote)


def check(
    connection: Connection, passages: list[Passage], *statements: Statement, dropped: int = 0, strict: bool = True
) -> Answer:
    verification = Verification(passages, strict)
    for statement in statements:
        list(verification.check(statement, resolve(connection, statement.claims, passages)))
    list(verification.finish(Draft(statements, dropped)))
    return verification.answer("claude", {"input_tokens": 7})


def test_a_supported_statement_is_grounded(connection: Connection, passages: list[Passage]) -> None:
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
        replace(claim(HIGH), passage=1),  # words of the document, outside the passage
        Span(0, -5, 3, "Grö"),
        Span(0, 5, 5, ""),
        Span(0, 30, 31, "\n"),
        Span(0, len(TEXT) - 5, len(TEXT) + 1, TEXT[-5:]),
        Span(0, 0, 2**40, TEXT),
    ],
)
def test_unsupported_statements_are_dropped(connection: Connection, passages: list[Passage], forged: Span) -> None:
    answer = check(connection, passages, Statement("It is 55 m high. ", (forged,)), Statement("1887.", (claim(BUILT),)))
    assert answer.text == "1887. [1]"
    assert answer.verdict == "partial"
    assert [c.quote for c in answer.citations] == [BUILT]
    assert (answer.dropped, answer.removed) == (1, 1)
    assert answer.warnings == (
        "1 citation does not match the documents' text and was left out.",
        "1 sentence was left out, as no words of the documents support it.",
    )

    loose = check(
        connection,
        passages,
        Statement("It is 55 m high. ", (forged,)),
        Statement("1887.", (claim(BUILT),)),
        strict=False,
    )
    assert loose.text == "It is 55 m high. 1887. [1]"
    assert [(one.status, one.citations) for one in loose.sentences] == [("unsupported", ()), ("supported", (1,))]
    assert (loose.verdict, loose.removed) == ("partial", 0)

    alone = check(connection, passages, Statement("It is 55 m high.", (forged,)), dropped=2)
    assert (alone.text, alone.verdict, alone.citations) == (NO_ANSWER, "no_answer", ())
    assert alone.warnings[0] == "3 citations do not match the documents' text and were left out."
    assert (alone.dropped, alone.sentences) == (3, ())


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
def test_a_deleted_or_changed_document_is_not_cited(
    connection: Connection, passages: list[Passage], change: str
) -> None:
    connection.execute(change)
    answer = check(connection, passages, Statement("It is 54 m high.", (claim(HIGH),)))
    assert (answer.text, answer.verdict, answer.citations) == (NO_ANSWER, "no_answer", ())


def test_an_unfinished_new_revision_does_not_invalidate_a_citation(
    connection: Connection, passages: list[Passage]
) -> None:
    connection.execute("UPDATE document SET state = 'ingesting', wanted_revision = '2-2'")
    assert check(connection, passages, Statement("54 m.", (claim(HIGH),))).verdict == "grounded"


def test_no_passages_give_no_answer(connection: Connection) -> None:
    answer = check(connection, [])
    assert (answer.text, answer.verdict, answer.citations, answer.warnings) == (NO_ANSWER, "no_answer", (), ())


@pytest.mark.parametrize(
    ("lead", "shown"),
    [
        ("These are the facts:\n\n", True),
        ("## The tower\n\n", True),
        ("About the tower:\n", True),
        ("It is blue. ", False),
        ("The tower is in Paris:\n", False),
        ("## It was torn down in 1999\n", False),
        ("These are no facts:\n", False),
    ],
)
def test_only_a_lead_in_needs_no_citation(
    connection: Connection, passages: list[Passage], lead: str, shown: bool
) -> None:
    answer = check(connection, passages, Statement(lead), Statement("- 54 m high\n", (claim(HIGH),)))
    assert answer.text == (lead if shown else "") + "- 54 m high [1]"
    assert answer.verdict == ("grounded" if shown else "partial")
    assert answer.removed == (not shown)
    assert {one.citations for one in answer.sentences} == {(1,)}


def test_a_lead_in_without_a_following_statement_is_removed(connection: Connection, passages: list[Passage]) -> None:
    answer = check(connection, passages, Statement("54 m. ", (claim(HIGH),)), Statement("Further facts:\n"))
    assert (answer.text, answer.removed) == ("54 m. [1]", 1)


def test_a_lead_in_stays_when_the_next_statement_is_removed(connection: Connection, passages: list[Passage]) -> None:
    answer = check(
        connection,
        passages,
        Statement("The facts:\n"),
        Statement("- 55 m high\n", (claim(HIGH),)),
        Statement("- built by Ada Frost\n", (claim(BUILT),)),
    )
    assert answer.text == "The facts:\n- built by Ada Frost [1]"
    assert [c.quote for c in answer.citations] == [BUILT]  # a removed sentence adds no citation


def test_without_strictness_an_answer_needs_one_supported_statement(
    connection: Connection, passages: list[Passage]
) -> None:
    false, true = Statement("It is 55 m high. ", (claim(HIGH),)), Statement("Built in 1887. ", (claim(BUILT),))
    assert check(connection, passages, false, false, strict=False).text == NO_ANSWER
    answer = check(connection, passages, false, true, false, strict=False)
    assert answer.text == "It is 55 m high. Built in 1887. [1] It is 55 m high."
    assert answer.verdict == "partial"


@pytest.mark.parametrize(
    ("opinion", "status", "verdict"),
    [(True, "supported", "grounded"), (None, "partly", "partial"), (False, None, "partial")],
)
def test_a_judge_decides_about_statements_in_another_language(
    connection: Connection, passages: list[Passage], opinion: bool | None, status: str | None, verdict: str
) -> None:
    asked = []

    def judge(sentence: str, quotes: Sequence[str]) -> bool | None:
        asked.append((sentence, list(quotes)))
        return opinion

    verification = Verification(passages, question="Was nistet auf dem Dach?", judge=judge)
    for text, quote in (("It is 54 m high.", HIGH), ("Die Enten nisten auf dem Dach.", DUCKS)):
        claims = (claim(quote),)
        list(verification.check(Statement(text, claims), resolve(connection, claims, passages)))
    list(verification.finish(Draft()))
    assert asked == [("Die Enten nisten auf dem Dach.", [DUCKS])]
    assert [one.status for one in verification.sentences][1:] == ([status] if status else [])
    assert verification.answer("claude", {}).verdict == verdict


def test_citation_marks_in_the_text_are_not_mistaken_for_our_own(
    connection: Connection, passages: list[Passage]
) -> None:
    first = Statement("54 m. ", (claim(HIGH),))
    answer = check(connection, passages, first, Statement("See [2], and argv[1].", (claim(HIGH),)), strict=False)
    assert answer.text == "54 m. [1] See (2), and argv[1]."
    answer = check(connection, passages, Statement("The tower is high.[7]", (claim(HIGH),)))
    assert answer.text == "The tower is high.(7) [1]"


def test_a_fence_stays_closed(connection: Connection, passages: list[Passage]) -> None:
    answer = check(connection, passages, Statement("Run:\n```\nthe tower is high\n```\n", (claim(HIGH),)))
    assert answer.text == "Run:\n```\nthe tower is high\n```\n[1]"


def test_shown_statements_are_plain_text(connection: Connection, passages: list[Passage]) -> None:
    """Links and marks in a sentence become plain words, also in a later sentence; quotes stay unchanged."""
    answer = check(
        connection,
        passages,
        Statement("The tower is 54 m\u202e high。", (claim(HIGH),)),
        Statement("(https://e.co) [See][1] it [2: “high”]. "),
        Statement("![x](https://e.co/?q=1)[There](//e.co) it is <img src=x>, said <b>Ada</b>."),
        strict=False,
    )
    assert answer.text == (
        "The tower is 54 m high。 [1] (`https://e.co`) [See] (1) it (2: “high”). "
        "xThere `//e.co` it is , said <b>Ada</b>."
    )
    assert [citation.quote for citation in answer.citations] == [HIGH]
