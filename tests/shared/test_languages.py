"""The detected language of a text, as the text search configuration of its document."""

from pathlib import Path

import pytest

from shared.db import Connection
from shared.text import languages

LINES = (Path(__file__).parent / "languages.txt").read_text(encoding="utf-8").splitlines()
PARAGRAPHS = {line.split()[0]: line.partition(": ")[2] for line in LINES}
CONFIGURATIONS = [line.partition(": ")[0].split() for line in LINES]


@pytest.mark.parametrize(("language", "configuration"), CONFIGURATIONS)
def test_a_document_gets_the_configuration_of_its_language(
    connection: Connection, language: str, configuration: str
) -> None:
    assert languages.language(PARAGRAPHS[language]) == language
    assert languages.configuration(PARAGRAPHS[language]) == configuration
    connection.execute("SELECT to_tsvector(%s::regconfig, 'x')", [configuration])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "x = foo(bar)[3];",
        "fn f(x: u8) {\n    y += x;\n}",
        "委員會決定關閉大橋。",
        "위원회는 다리를 닫기로 결정했다",
        "คณะกรรมการตัดสินใจปิดสะพาน",
    ],
)
def test_a_text_without_a_clear_language_gets_the_default(text: str) -> None:
    assert languages.configuration(text) == "english"


def test_samples_from_a_complete_long_document_decide_its_language() -> None:
    assert languages.configuration(PARAGRAPHS["english"] * 20 + PARAGRAPHS["german"] * 50_000) == "german"


@pytest.mark.parametrize("unit", ["a", "_", "aB", "-", "0 ", "::", "漢", "a\u0301", "\ufdfa", "http://", "\ud800"])
def test_any_text_has_a_configuration(unit: str) -> None:
    assert languages.configuration(unit * (20_000_000 // len(unit)))
    assert languages.configuration(unit)


def test_stop_words_are_lower_case_and_each_language_has_some() -> None:
    for language, stop_words in languages.STOP_WORDS.items():
        assert len(stop_words) >= 20 or language == "unspaced"
        assert all(word == word.lower() for word in stop_words)
    assert {"the", "which"} <= languages.STOP_WORDS["english"]
    assert {"der", "welche"} <= languages.STOP_WORDS["german"]
