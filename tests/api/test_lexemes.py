"""A question's lexemes in the languages of a collection, and their inverse document frequencies."""

import math

import pytest

from api.retrieval.filters import Filters
from api.retrieval.lexemes import Lexeme, lexemes_of, weigh
from shared.db import Connection
from tests.api.test_retrieval import new_generation, store


def test_a_word_has_one_frequency_in_all_languages() -> None:
    english, german = Lexeme(1, 600, 0, 0, (1,)), Lexeme(2, 3, 0, 0, (1,))
    other, exact = Lexeme(3, 40, 0, 0, (2,)), Lexeme(4, 5, 0, 0)
    queries, idf = weigh([english, german, other, exact], 1_000, 1_000)
    assert idf[1] == idf[2] == pytest.approx(math.log(1 + (1_000 - 603 + 0.5) / 603.5))
    assert idf[3] == pytest.approx(math.log(1 + (1_000 - 40 + 0.5) / 40.5))
    assert idf[4] == pytest.approx(math.log(1 + (1_000 - 5 + 0.5) / 5.5))
    assert queries[0].split(" | ")[:2] == ["2", "4"], "each lexeme brings its own rows only"


def test_a_frequency_never_exceeds_the_number_of_chunks() -> None:
    _, idf = weigh([Lexeme(1, 90, 0, 0, (1,)), Lexeme(2, 20, 0, 0, (1,))], 100, 100)
    assert idf[1] == idf[2] == pytest.approx(math.log(1 + 0.5 / 100.5))


def test_lexemes_list_the_words_of_the_question(connection: Connection) -> None:
    generation = new_generation(connection, 32)
    store(connection, generation, ["walking the dogs", "a dog walks in well-known parks"], configuration="english")
    store(connection, generation, ["walking dogs"], configuration="german")
    found = lexemes_of(connection, generation, "walking dogs in well-known parks, e-1", Filters())
    words: dict[int, int] = {}
    for lexeme in found.values():
        for word in lexeme.words:
            words[word] = words.get(word, 0) + lexeme.chunks
    assert sorted(words.values())[-2:] == [3, 3], "walk and walking, dog and dogs: both languages together"
    assert sum(not lexeme.words for lexeme in found.values()) == 0
