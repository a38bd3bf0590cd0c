"""Answers without a language model: the sentences that match a question best, quoted word for word, or a refusal.

A sentence is rated by meaning (the cosine of the question with the sentence, its neighbourhood and its passage) and by
the question's words in these; a word counts more if fewer sentences have it. `Evidence` decides between answer and
refusal. docs/answers.md has the measured accuracy; bench/extractive.py measures it and fits the numbers.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from api.verification.citations import Draft, Span, Statement
from shared.models import Passage
from shared.text.sentences import LIST_ITEM, sentences
from shared.text.word_lists import read_word_lists

Vectors = npt.NDArray[np.float32]

PASSAGES = 5  # that are read; reading eight found no more (docs/answers.md)
READ = 4_000  # characters of sentences that are embedded; 8,000 found no more
LATER = 0.05  # of support that a sentence needs more in each further passage, to be read instead of another
QUOTES = 3
PLACES = 3  # that are cited for a sentence that stands in several
STEM = 5  # letters of a word that are compared: endings and most derivations go
LONG = 300  # characters: a longer sentence is divided at stops and semicolons too, as in text without capitals
LONGEST = 600  # characters of a quote that is continued beyond its sentence
# Weights of the evidence's fields; a sum below the threshold is refused. Rounded, and a little stricter on texts about
# the same subject that lack the answer than the values fitted to all collections: (1.000, 1.335, 0.025), 1.448.
WEIGHTS = (1.0, 1.0, 0.03)
THRESHOLD = 1.40
MARGIN = 0.45  # a further quote is at most so much weaker than the best one
NEW_WORDS = 0.3  # the gain of a further quote with all words of the question that the others lack

_WORD = re.compile(r"\w+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_STOP_SIGN = re.compile(r"[.!?;]\s+|\n+")
_TABLE_RULE = re.compile(r"[|:\s-]*--[|:\s-]*")
_FENCE = ("```", "~~~")
_STOP = frozenset(read_word_lists(Path(__file__).with_suffix(".txt"))["stop words"])


@dataclass(frozen=True, slots=True)
class _Sentence:
    passage: int
    place: int  # among the sentences of its passage
    words: frozenset[str]  # of the question
    score: float


class Evidence(NamedTuple):
    """The evidence for an answer; all zero if there is none.

    score: of the best sentence.
    lead: cosine of the nearest sentence above the median. Every text in its language is somewhat near.
    words: summed weights of the question's words in the best sentence's passage. They are not divided by the weights of
    all words: a long question says much that its answer does not, and one word that occurs is little.
    """

    score: float = 0.0
    lead: float = 0.0
    words: float = 0.0

    @property
    def suffices(self) -> bool:
        return sum(weight * value for weight, value in zip(WEIGHTS, self, strict=True)) >= THRESHOLD


def extract(question: str, passages: Sequence[Passage], embed: Callable[[Sequence[str]], Vectors]) -> Draft:
    """Quote one to three sentences that answer the question; none if the evidence is weak.

    `passages`: the best first; the first 5 are read. `embed`: texts → float32, shape (n, dimensions), L2-normalised, by
    all-MiniLM-L6-v2: the threshold holds for that model.
    """
    draft, evidence = quote(question, passages, embed)
    return draft if evidence.suffices else Draft()


def quote(
    question: str, passages: Sequence[Passage], embed: Callable[[Sequence[str]], Vectors]
) -> tuple[Draft, Evidence]:
    """Quote the sentences that match best, however weak the evidence, which is returned too."""
    passages = passages[:PASSAGES]
    spans = [_spans(passage.content) for passage in passages]
    if not question.strip() or not any(spans):
        return Draft(), Evidence()
    texts = [[passage.content[a:b] for a, b in part] for passage, part in zip(passages, spans, strict=True)]
    rated, evidence, weights = _rate(question, passages, texts, embed)
    statements = []
    for copies in _choose(rated, texts, weights):
        claims = []
        for sentence in copies:
            index, last = sentence.passage, _extent(texts[sentence.passage], sentence.place)
            claims.append(_claim(passages, index, spans[index][sentence.place][0], spans[index][last][1]))
        statements.append(Statement(claims[0].quote + "\n\n", tuple(claims)))
    return Draft(tuple(_without_overlap(statements, passages))), evidence


def _spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of the sentences, long ones in parts."""
    spans = []
    for start, end in sentences(text):
        if end - start > LONG:
            for stop in _STOP_SIGN.finditer(text, start, end):
                if stop.start() - start >= 40 and end - stop.end() >= 40:  # no scraps
                    spans.append((start, stop.start() + (stop.group()[0] != "\n")))
                    start = stop.end()
        spans.append((start, end))
    return spans


def _rate(
    question: str,
    passages: Sequence[Passage],
    texts: Sequence[Sequence[str]],
    embed: Callable[[Sequence[str]], Vectors],
) -> tuple[list[_Sentence], Evidence, dict[str, float]]:
    """Return the sentences that may be quoted with their scores, the evidence, and the weight of each word."""
    words = [[_words(text) for text in part] for part in texts]
    around = [_words(" ".join([p.source, p.title or "", *p.heading])) for p in passages]
    weights = _weights(question, words, around)
    support = _support(words, around, weights)
    read = select_for_embedding(texts, support)
    vectors = embed([question, *(texts[index][place] for index, place in read)])
    asked, vectors = vectors[0], vectors[1:]
    rated = []
    for index in sorted({index for index, _ in read}):
        block = {place: vector for (of, place), vector in zip(read, vectors, strict=True) if of == index}
        passage_cosine = float(_unit(np.stack(list(block.values())).sum(0)) @ asked)
        for place, vector in block.items():
            near = _unit(np.stack([block[i] for i in range(place - 1, place + 2) if i in block]).sum(0))
            meaning = 0.5 * float(vector @ asked) + 0.5 * float(near @ asked) + 0.3 * passage_cosine
            rated.append(_Sentence(index, place, words[index][place] & weights.keys(), meaning + support[index, place]))
    quotable = [sentence for sentence in rated if _is_quotable(texts[sentence.passage], sentence.place)] or rated
    best = max(quotable, key=lambda sentence: sentence.score)
    passage_words = around[best.passage].union(*words[best.passage])
    cosines = vectors @ asked
    evidence = Evidence(
        score=best.score,
        lead=float(cosines.max() - np.median(cosines)),
        words=sum(weights[word] for word in passage_words & weights.keys()),
    )
    return quotable, evidence, weights


def _support(
    words: Sequence[Sequence[frozenset[str]]], around: Sequence[frozenset[str]], weights: dict[str, float]
) -> dict[tuple[int, int], float]:
    """Passage and place of each sentence → share of the question's words in it, its neighbourhood and its passage."""
    total = sum(weights.values()) or 1.0

    def coverage(present: frozenset[str]) -> float:
        return sum(weights[word] for word in present if word in weights) / total

    support = {}
    for index, passage_words in enumerate(words):
        passage = coverage(around[index].union(*passage_words))
        for place in range(len(passage_words)):
            neighbourhood = coverage(around[index].union(*passage_words[max(0, place - 1) : place + 2]))
            support[index, place] = 0.4 * coverage(passage_words[place]) + 0.3 * neighbourhood + 0.3 * passage
    return support


def select_for_embedding(
    texts: Sequence[Sequence[str]], support: dict[tuple[int, int], float]
) -> list[tuple[int, int]]:
    """Return passage and place, in order, of the sentences to embed: READ characters at most, but one at least.

    Embedding takes nearly all of the time. Sentences with most of the question's words go first, of better passages.
    """
    room = READ
    read: list[tuple[int, int]] = []
    for index, place in sorted(support, key=lambda of: LATER * of[0] - support[of]):
        size = len(texts[index][place])
        if size <= room or not read:
            read.append((index, place))
            room -= size
    return sorted(read)


def _weights(
    question: str, words: Sequence[Sequence[frozenset[str]]], around: Sequence[frozenset[str]]
) -> dict[str, float]:
    """Weigh each word of the question by its inverse frequency among the sentences (as in BM25).

    A word that occurs nowhere may have a synonym there and counts half, unless it is a name or a number.
    """
    named = _names(question)
    every = [sentence for passage in words for sentence in passage]
    known = frozenset().union(*every, *around)
    weights = {}
    for word in _words(question):
        holding = sum(word in sentence for sentence in every)
        weights[word] = math.log(1 + (len(every) - holding + 0.5) / (holding + 0.5))
        if word not in known and word not in named:
            weights[word] *= 0.5
    return weights


def _names(question: str) -> frozenset[str]:
    """Return the question's capitalised words, but not the first one, and its numbers."""
    return _words(" ".join(m.group() for m in _WORD.finditer(question) if m.start() and not m.group().islower()))


def _choose(
    rated: Sequence[_Sentence], texts: Sequence[Sequence[str]], weights: dict[str, float]
) -> Iterator[list[_Sentence]]:
    """Yield the best sentence, and those close to it, preferring words of the question that are not quoted yet.

    Each comes with its copies in other places, which are cited too.
    """
    best = max(sentence.score for sentence in rated)
    total = sum(weights.values()) or 1.0
    quoted: set[str] = set()
    near = [sentence for sentence in rated if sentence.score > best - MARGIN]

    def gain(sentence: _Sentence) -> float:
        return sentence.score + NEW_WORDS * sum(weights[word] for word in sentence.words - quoted) / total

    for number in range(QUOTES):
        if not near:
            return
        chosen = max(near, key=gain if number else lambda sentence: sentence.score)
        text = _bare(texts[chosen.passage][chosen.place])
        copies = [sentence for sentence in near if _bare(texts[sentence.passage][sentence.place]) == text]
        near = [sentence for sentence in near if sentence not in copies]
        quoted |= chosen.words
        yield [chosen, *(sentence for sentence in copies if sentence is not chosen)][:PLACES]


def _extent(texts: Sequence[str], place: int) -> int:
    """Return the last sentence of a quote from `place` on: a question or "as follows:" includes the next sentences."""
    last, size = place, len(texts[place])
    fenced = False
    while last + 1 < len(texts) and size + len(texts[last + 1]) <= LONGEST:
        following = texts[last + 1]
        fence = following.startswith(_FENCE)
        item = last > place and bool(LIST_ITEM.match(following)) and bool(LIST_ITEM.match(texts[last]))
        if not (fenced or item or texts[last].endswith((":", "?", "：", "？")) or texts[last].startswith("#")):
            break
        fenced ^= fence
        last += 1
        size += len(following)
    return last


def _without_overlap(statements: Sequence[Statement], passages: Sequence[Passage]) -> Iterator[Statement]:
    """Yield the statements without claims that overlap an earlier one: passages may overlap."""
    taken: list[tuple[int, Span]] = []
    for statement in statements:
        claims = []
        for claim in statement.claims:
            document = passages[claim.passage].document_id
            if not any(
                document == other and claim.char_start < earlier.char_end and claim.char_end > earlier.char_start
                for other, earlier in taken
            ):
                taken.append((document, claim))
                claims.append(claim)
        if claims:
            yield Statement(statement.text, tuple(claims))


def _claim(passages: Sequence[Passage], index: int, start: int, end: int) -> Span:
    passage = passages[index]
    return Span(index, passage.char_start + start, passage.char_start + end, passage.content[start:end])


def _is_quotable(texts: Sequence[str], place: int) -> bool:
    """True if a sentence can be an answer: not a heading, fence, rule, table head or fragment."""
    text = texts[place]
    heads = place + 1 < len(texts) and _TABLE_RULE.fullmatch(texts[place + 1])
    if heads or text.startswith(("#", *_FENCE)):
        return False
    return len(_WORD.findall(text)) >= 3 or len(_CJK.findall(text)) >= 4


def _words(text: str) -> frozenset[str]:
    """Return the stems of the words that are not stop words; pairs of characters in scripts without spaces."""
    stems: set[str] = set()
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("_", " ")):
        if _CJK.search(word):
            stems.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif word not in _STOP:
            stems.add(word if word[0].isdigit() else word[:STEM])
    return frozenset(stems)


def _bare(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.float32(1e-9))
    return unit
