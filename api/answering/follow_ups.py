"""Follow-up questions: complete "And in winter?" from the questions before it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from api.resources import Resources
from shared.errors import AskfolderError
from shared.log import log
from shared.models import Turn
from shared.providers.claude import Claude, prompt
from shared.providers.meter import BudgetError
from shared.text import words
from shared.text.languages import stop_words
from shared.text.word_lists import read_word_lists

TURNS = 6  # the last ones of the history that are used
LETTERS = 1_500  # of each answer
MAX_TOKENS = 1_024  # of a rewritten question and the thoughts before it
LONGEST = 2_000  # characters of a question
SECONDS = 4.0  # the time limit of rewriting
SMALL_MODEL = "claude-haiku-5-5"
SYSTEM = prompt(__file__, "follow_ups.md")

_LISTS = read_word_lists(Path(__file__).with_suffix(".txt"))
_POINTERS, _CONTINUATIONS = frozenset(_LISTS["pointers"]), frozenset(_LISTS["continuations"])
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def stands_alone(question: str, least: int) -> bool:
    """True if a question can be understood without those before it.

    It has no pronoun that points back, and at least `least` content words; 3 if it begins with a word like "and".
    """
    tokens = [word.casefold() for word in _WORD.findall(question)]
    common = stop_words(question, words.words(question))
    content_words = sum(word not in common for word in words.question(question)[0])
    if content_words < max(least, 3 if tokens and tokens[0] in _CONTINUATIONS else 1):
        return False
    return not _POINTERS.intersection(tokens) and not {"this", "that", "there"}.intersection(tokens[-1:])


def joined(question: str, history: Sequence[Turn]) -> str:
    """Join a question to those before it, from the last one that stands alone."""
    if stands_alone(question, 2):
        return question
    before: list[str] = []
    for turn in reversed(history[-TURNS:]):
        before.insert(0, turn.question)
        if stands_alone(turn.question, 2):
            break
    return " ".join([*before[-3:], question])


def stand_alone(resources: Resources, question: str, turns: Sequence[Turn]) -> str:
    """Complete a follow-up question: a small model rewrites it, or else it is joined to the questions before it."""
    if not turns or stands_alone(question, 4):
        return question
    if resources.claude is None:
        return joined(question, turns)
    settings = resources.settings
    model = settings.rewrite_model or (settings.anthropic_model if settings.anthropic_base_url else SMALL_MODEL)
    scope, content = f"alone:{model}", conversation(question, turns)
    if known := resources.cache.get_text(scope, content):
        return known
    rewritten = rewrite(resources.claude, model, content)
    if rewritten is None:
        return joined(question, turns)
    resources.cache.put_text(scope, content, rewritten)
    return rewritten


def conversation(question: str, history: Sequence[Turn]) -> str:
    """The model's input, as JSON."""
    turns = [asdict(Turn(turn.question[:LONGEST], turn.answer[:LETTERS])) for turn in history[-TURNS:]]
    return json.dumps({"conversation": turns, "new question": question}, ensure_ascii=False)


def rewrite(claude: Claude, model: str, content: str, seconds: float = SECONDS) -> str | None:
    """Let a small model rewrite the new question of a conversation. None: it did not, in time or within the cap."""
    try:
        reply = claude.complete("rewriting", model, SYSTEM, content, MAX_TOKENS, seconds)
    except BudgetError:
        return None
    except AskfolderError as error:
        log.warning(str(error), action="question.not_rewritten")
        return None
    rewritten = " ".join(reply.text.split())
    return rewritten if 0 < len(rewritten) <= LONGEST else None
