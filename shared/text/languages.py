"""The language of a text, told by py3langid, and each language's stop words."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from shared.text.word_lists import read_word_lists

DEFAULT = "english"  # the text search configuration of code, of tables and of whatever else has no known language
SAMPLE = 4_000  # characters of a text that are looked at
LEAST_PROBABILITY = 0.5

_TABLE = read_word_lists(Path(__file__).with_suffix(".txt"))
_NAMES = {code: name.split()[1] for name in _TABLE for code in name.split()[0].split(",")}
_CONFIGURATIONS = {language: configuration for _, language, configuration in map(str.split, _TABLE)}
STOP_WORDS = {name.split()[1]: frozenset(words) for name, words in _TABLE.items()}


@cache
def _identifier() -> Any:
    """Load the model, restricted to our languages. Loading takes 0.5 CPU seconds and 63 MB: only on first use."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    full = LanguageIdentifier.from_model_file(MODEL_FILE)
    full.set_languages(list(_NAMES))
    tables = full.nb_ptc, full.nb_pc, full.nb_classes, full.tk_nextmove, full.tk_output
    return LanguageIdentifier(*tables, norm_probs=True, tk_row=full.tk_row)  # does not keep the full model


def language(text: str) -> str | None:
    """Tell the language of a text from at most 4,000 characters spread over it; None below a probability of 0.5.

    Languages that are written without spaces, such as Chinese, are all called "unspaced".
    """
    if len(text) > SAMPLE:
        text = " ".join(text[i * (len(text) - 500) // 7 :][:500] for i in range(8))
    code, probability = _identifier().classify(text)
    return _NAMES[code] if probability >= LEAST_PROBABILITY else None


def stop_words(text: str, words: Sequence[str]) -> frozenset[str]:
    """Return the stop words of a question's language; if it is unclear, of the language that has most of its words."""
    if told := language(text):
        return STOP_WORDS[told]
    return max(STOP_WORDS.values(), key=lambda common: sum(word in common for word in words))


def configuration(text: str) -> str:
    """Return the text search configuration for a document, one that PostgreSQL 15 has.

    'simple' where PostgreSQL has no stemmer for the language. The default where no language can be told (code, tables),
    and for scripts without spaces: no stemmer changes their bigrams, and their Latin words are mostly English.
    """
    return _CONFIGURATIONS.get(language(text) or "", DEFAULT)
