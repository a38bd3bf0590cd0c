"""The lexemes of documents and questions, created by PostgreSQL."""

import random
from collections.abc import Iterator

import psycopg
import pytest

from shared import db
from shared.db import Connection
from shared.system.servers import Servers
from shared.text import words


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("got ERR_CONN_RESET again", "err_conn_reset"),
        ("Error E-1042.", "e-1042"),
        ("the LM-317T/NOPB regulator", "lm-317t/nopb"),
        ("R1 = 4.7kΩ", "4.7kω"),
        ("R1 = 4.7k\u2126", "4.7kω"),
        ("import os.path.join(", "os.path.join"),
        ("(module::name)", "module::name"),
        ("see /etc/nginx/nginx.conf,", "etc/nginx/nginx.conf"),
        ("see /etc/nginx/nginx.conf,", "nginx.conf"),
        (r"C:\Windows\notepad.exe", "notepad.exe"),
        ("since 1.2.3-rc1.", "1.2.3-rc1"),
        ("v2.0 is out", "v2.0"),
        ("mail jane.doe@example.org!", "jane.doe@example.org"),
        ("mail jane.doe@example.org!", "jane.doe"),
        ("https://example.org/a/b.html?q=1", "example.org/a/b.html"),
        ("<https://example.org/>", "example.org"),
        ("C++, not C", "c++"),
        ("in C#.", "c#"),
        ("the .NET runtime", ".net"),
        ("due 2024-01-15", "2024-01-15"),
        ("call +49 (30) 123-4567", "49301234567"),
        ("LM‑317 with a typographic hyphen", "lm-317"),
        ("commit 4e7ba91", "4e7ba91"),
        ("ＥＲＲ＿ＣＯＮＮ", "err_conn"),
    ],
)
def test_a_term_is_found_literally(text: str, term: str) -> None:
    assert f"={term}" in words.exact(text)


@pytest.mark.parametrize(
    "text",
    [
        "plain words, and more.",
        "well-known",
        "-- * ... :: _ #",
        "0x80070057 E1042",
        "हिन्दी में",
        "e\u0301te\u0301",
        "...",
        "don't",
    ],
)
def test_a_term_that_postgresql_does_not_split_is_no_exact_term(text: str) -> None:
    assert words.exact(text) == []


@pytest.fixture(scope="module", params=["C", "C.UTF-8"])
def locale(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Create a database of another locale, because PostgreSQL's parser depends on the locale of the user's database."""
    url = servers.database_url.replace("/askfolder?", "/postgres?")
    name = "words_" + request.param.replace(".", "_").replace("-", "_").lower()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE '{request.param}'")
    with db.connect(servers.database_url.replace("/askfolder?", f"/{name}?")) as connection:
        yield connection
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def lexemes(connection: Connection, text: str, configuration: str = "simple") -> list[str]:
    row = connection.execute(
        "SELECT tsvector_to_array(to_tsvector(%s::regconfig, %s) || array_to_tsvector(%s))",
        [configuration, words.searchable(text), words.exact(text)],
    ).fetchone()
    assert row is not None
    return list(row[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getUserById", {"getuserbyid", "get", "user", "by", "id"}),
        ("HTTPServer", {"httpserver", "http", "server"}),
        ("snake_case", {"snake", "case", "=snake_case"}),
        ("and/or", {"and", "or", "=and/or"}),
        ("“ÉTÉ”—Ärger…", {"été", "ärger"}),
        ("well-known", {"well-known", "well", "known"}),
        ("covid-19", {"covid", "19", "=covid-19"}),
        ("0x80070057", {"0x80070057"}),
        ("東京都に住む", {"東京", "京都", "都に", "に住", "住む"}),
        ("猫。", {"猫"}),
        ("PDF文件", {"pdf", "文件"}),
        ("학교에서", {"학교", "교에", "에서"}),
        ("ﾊﾟｿｺﾝ", {"パソ", "ソコ", "コン"}),
        ("กขค", {"กข", "ขค"}),
        ("हिन्दी में।", {"हिन्दी", "में"}),
        ("Ver\u00adtei\u00addigung", {"verteidigung"}),
        ("İstanbul", {"istanbul"}),
        ("ﬁle", {"file"}),
        ("x" * 300, {"x" * 128, "x" * 44}),
        ("", set()),
        ("www.example.org/a", {"www", "example", "org", "a", "=www.example.org/a", "=www.example.org"}),
    ],
)
def test_the_lexemes_are_the_same_in_every_locale(locale: Connection, text: str, expected: set[str]) -> None:
    assert set(lexemes(locale, text)) == expected


def test_a_compound_identifier_matches_its_parts(connection: Connection) -> None:
    compound, parts = (
        lexemes(connection, "getUserById", "english"),
        lexemes(connection, "get the user by its id", "english"),
    )
    assert {"get", "user", "id"} <= set(compound) & set(parts)


@pytest.mark.parametrize(
    "unit",
    ["a", "_", "a_", "aB", "-", "a-", "0 ", "/a", "::", "漢", "a\u0301", "\ufdfa", "http://", "+", "A", "0", "0e1"],
)
def test_hostile_text_gives_few_and_short_words(unit: str) -> None:
    """Only the beginning of a text is read; a pattern with quadratic running time would take hours for all of it."""
    text = unit * (20_000_000 // len(unit))
    assert len(words.searchable(text)) <= 4 * words.LONGEST_TEXT
    assert all(len(term) <= words.LONGEST_TERM + 1 for term in words.exact(text))
    assert max(map(len, words.question(text))) <= words.QUESTION_WORDS


def test_every_text_fits_into_a_tsvector(connection: Connection) -> None:
    rare = "".join(random.Random(1).choices([chr(n) for n in range(0x20000, 0x2A6D0)], k=200_000))
    for text in (rare, "/".join(f"é{n}.x" for n in range(30_000)), " ".join(f"{n}.{n}" for n in range(30_000))):
        assert lexemes(connection, text)


def test_a_question_omits_the_most_common_words_of_its_language() -> None:
    assert words.question("Which of the teams won the Super Bowl?")[0] == ["teams", "won", "super", "bowl"]
    assert words.question("Wer hat die Verteidigung der Panthers geführt?")[0] == [
        "verteidigung",
        "panthers",
        "geführt",
    ]
    assert words.question("¿Y en verano?")[0] == ["verano"], "too short to tell the language"
    assert words.question("Who is who?")[0] == ["who", "is"]  # the question contains only common words
    assert words.question("What does ERR_CONN_RESET mean?") == (["err", "conn", "reset", "mean"], ["=err_conn_reset"])


def test_the_question_before_or_after_a_pasted_document_is_kept() -> None:
    pasted = " ".join(f"word{n}" for n in range(5000))
    for text in (f"Where is needle? {pasted}", f"{pasted} Where is needle?"):
        found, _ = words.question(text)
        assert len(found) == words.QUESTION_WORDS
        assert "needle" in found
