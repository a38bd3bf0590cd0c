"""Answers without a language model: the sentences that match a question best, quoted as they stand, or a refusal.

A sentence is rated by its meaning (cosine with the question, of itself, of its neighbourhood and of its passage) and by
the question's words that these hold, where a word counts the more the fewer sentences have it. Whether that is strong
enough to answer: `Evidence`. docs/answers.md has what it is worth, bench/extractive.py measures it and fits its numbers.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from api.verification.citations import Draft, Span, Statement
from shared.models import Passage
from shared.text.sentences import LIST_ITEM, sentences

Vectors = npt.NDArray[np.float32]

PASSAGES = 5  # reading eight found no more (docs/answers.md)
READ = 4_000  # characters of sentences that are embedded: with 8,000 as much is found
LATER = 0.05  # of support that a sentence needs more in each further passage, to be read rather than another
QUOTES = 3
PLACES = 3  # that are cited for a sentence that stands in several
STEM = 5  # letters of a word that decide what it matches: endings and most derivations go
LONG = 300  # characters: what is longer is divided at stops and semicolons too, as in text without capitals
LONGEST = 600  # characters of a quote that is continued beyond its sentence
# Of the evidence, in its order; below the threshold it is refused. Rounded, and a little stricter on what a text on the same
# subject lacks than what bench/extractive.py fits to all its collections: (1.000, 1.335, 0.025), 1.448.
WEIGHTS = (1.0, 1.0, 0.03)
THRESHOLD = 1.40
MARGIN = 0.45  # a further quote is at most so much weaker than the best one
NEW_WORDS = 0.3  # what a further quote gains when it holds all that the others lack

_WORD = re.compile(r"\w+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_STOP_SIGN = re.compile(r"[.!?;]\s+|\n+")
_TABLE_RULE = re.compile(r"[|:\s-]*--[|:\s-]*")
_FENCE = ("```", "~~~")
# Words of questions, and those that carry no subject, in the languages that are asked most.
_STOP = frozenset(
    _WORD.findall("""
    a about according after all also am an and any are as at be been being before between both but by can cannot
    could describe did do does doing done during each either every explain few find for from get gets getting give
    given got had has have having he her here him his how i if in into is it its just kind let list like made make
    many may me mean might more most much must my name need no not of off on one or other our ours out over own
    please say says shall she should show so some something such tell than that the their them then there these they
    this those through to too under up us use used using very via want was we were what when where whether which
    while who whom whose why will with within without would you your document documents file files text question
    answer aber als auf aus bei bin bis bist da damit das dass dein dem den denn der des dessen die dies diese
    diesem diesen dieser dieses doch du durch ein eine einem einen einer eines er es etwas für gab gegen gibt hat
    hatte hatten habe haben hier ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im ins ist ja jede jedem jeden jeder
    jedes kann kannst können könnte man mehr mein mich mir mit muss müssen nach nicht noch nur ob oder ohne sein
    seine seinem seinen seiner seit sich sie sind soll sollte über um und uns unser unter viel viele vom von vor war
    waren warum wann wegen weil welche welchem welchen welcher welches wem wen wenn wer werde werden wie wieso
    wieviel wird wo wofür woher wohin womit wurde wurden zu zum zur zwischen au aux avec ce ces cet cette combien
    comment dans de elle elles en est et être eu il ils je la le les leur leurs lui mais même ne nos notre nous ont
    ou où par pas plus pour pourquoi quand que quel quelle quelles quels qui quoi sa se ses son sont sur un une vos
    votre vous al como con cual cuál cuáles cuando cuándo cuanto cuánto cuántos del desde donde dónde el ella ellos
    entre era esa ese eso esta está estas este esto fue ha hay las lo los más muy para pero por porque qué quien
    quién ser si sin sobre su sus también una unos y ya che chi ci come cosa cui dal dalla dei della delle di dove è
    e fra gli ma nel nella non per perché più quale quali quando quanti quanto sono sul sulla tra uno ao aos com dos
    em foi mas na nas o onde os pela pelo qual quais quantos quem são seu sua uma aan bij dat deze dit door een heb
    hebben het hij hoe hun ik kan maar met naar niet nog om onder ook op te tot uit van voor waar waarom wanneer wat
    welke werd worden wordt zijn zij""")
)


@dataclass(frozen=True, slots=True)
class _Sentence:
    passage: int
    place: int  # among the sentences of its passage
    words: frozenset[str]  # those of the question that it holds
    score: float


class Evidence(NamedTuple):
    """What speaks for an answer. Of none: all zero.

    `score`: of the best sentence. `apart`: how far the sentence nearest in meaning stands out from the middle one: texts that
    have only the language in common with the question are near it, too. `held`: the weights of the question's words in the best
    sentence's passage, summed and not divided by all of them: a long question says much that its answer does not, and a single
    word that occurs is little.
    """

    score: float = 0.0
    apart: float = 0.0
    held: float = 0.0

    @property
    def suffices(self) -> bool:
        return sum(weight * one for weight, one in zip(WEIGHTS, self, strict=True)) >= THRESHOLD


def extract(question: str, passages: Sequence[Passage], embed: Callable[[Sequence[str]], Vectors]) -> Draft:
    """One to three quotes from the passages that answer the question; none when the evidence is weak.

    `passages`: the best first; the first 5 are read. `embed`: texts → float32, shape (n, dimensions), L2-normalised, by
    all-MiniLM-L6-v2: the threshold holds for that model.
    """
    draft, evidence = quote(question, passages, embed)
    return draft if evidence.suffices else Draft()


def quote(
    question: str, passages: Sequence[Passage], embed: Callable[[Sequence[str]], Vectors]
) -> tuple[Draft, Evidence]:
    """As `extract`, but what matches best whatever the evidence, which comes with it."""
    passages = passages[:PASSAGES]
    spans = [_spans(passage.content) for passage in passages]
    if not question.strip() or not any(spans):
        return Draft(), Evidence()
    texts = [[passage.content[a:b] for a, b in those] for passage, those in zip(passages, spans, strict=True)]
    rated, evidence, weights = _rate(question, passages, texts, embed)
    statements = []
    for same in _choose(rated, texts, weights):
        claims = []
        for sentence in same:
            index, last = sentence.passage, _extent(texts[sentence.passage], sentence.place)
            claims.append(_claim(passages, index, spans[index][sentence.place][0], spans[index][last][1]))
        statements.append(Statement(claims[0].quote + "\n\n", tuple(claims)))
    return Draft(tuple(_apart(statements, passages))), evidence


def _spans(text: str) -> list[tuple[int, int]]:
    """The sentences, long ones in parts."""
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
    """The sentences that may be quoted with their scores, the evidence for an answer, and what each word counts."""
    words = [[_words(text) for text in those] for those in texts]
    around = [_words(" ".join([p.source, p.title or "", *p.heading])) for p in passages]
    weights = _weights(question, words, around)
    support = _support(words, around, weights)
    read = select_for_embedding(texts, support)
    vectors = embed([question, *(texts[index][place] for index, place in read)])
    asked, vectors = vectors[0], vectors[1:]
    rated = []
    for index in sorted({index for index, _ in read}):
        block = {place: vector for (of, place), vector in zip(read, vectors, strict=True) if of == index}
        whole = float(_unit(np.stack(list(block.values())).sum(0)) @ asked)
        for place, vector in block.items():
            near = _unit(np.stack([block[i] for i in range(place - 1, place + 2) if i in block]).sum(0))
            meaning = 0.5 * float(vector @ asked) + 0.5 * float(near @ asked) + 0.3 * whole
            rated.append(_Sentence(index, place, words[index][place] & weights.keys(), meaning + support[index, place]))
    quotable = [one for one in rated if _says_something(texts[one.passage], one.place)] or rated
    best = max(quotable, key=lambda one: one.score)
    held = around[best.passage].union(*words[best.passage])
    cosines = vectors @ asked
    evidence = Evidence(
        score=best.score,
        apart=float(cosines.max() - np.median(cosines)),
        held=sum(weights[word] for word in held & weights.keys()),
    )
    return quotable, evidence, weights


def _support(
    words: Sequence[Sequence[frozenset[str]]], around: Sequence[frozenset[str]], weights: dict[str, float]
) -> dict[tuple[int, int], float]:
    """Passage and place of each sentence → how much of the question's words it holds, its neighbourhood and its passage."""
    total = sum(weights.values()) or 1.0

    def coverage(held: frozenset[str]) -> float:
        return sum(weights[word] for word in held if word in weights) / total

    found = {}
    for index, those in enumerate(words):
        whole = coverage(around[index].union(*those))
        for place in range(len(those)):
            beside = coverage(around[index].union(*those[max(0, place - 1) : place + 2]))
            found[index, place] = 0.4 * coverage(those[place]) + 0.3 * beside + 0.3 * whole
    return found


def select_for_embedding(
    texts: Sequence[Sequence[str]], support: dict[tuple[int, int], float]
) -> list[tuple[int, int]]:
    """Passage and place, in order, of the sentences to embed, which takes nearly all of the time: READ characters at most.

    Those with most of the question's words, of the better passages first. The best one is always there.
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
    """What each word of the question counts: its inverse frequency among the sentences (as in BM25).

    A word that occurs nowhere may be said in another way and counts half, unless it is a name or a number.
    """
    named = _names(question)
    every = [those for passage in words for those in passage]
    known = frozenset().union(*every, *around)
    weights = {}
    for word in _words(question):
        holding = sum(word in those for those in every)
        weights[word] = math.log(1 + (len(every) - holding + 0.5) / (holding + 0.5))
        if word not in known and word not in named:
            weights[word] *= 0.5
    return weights


def _names(question: str) -> frozenset[str]:
    """Its words with a capital, and its numbers; the first word has one anyway."""
    return _words(" ".join(m.group() for m in _WORD.finditer(question) if m.start() and not m.group().islower()))


def _choose(
    rated: Sequence[_Sentence], texts: Sequence[Sequence[str]], weights: dict[str, float]
) -> Iterator[list[_Sentence]]:
    """The best sentence, and those that come close to it; new words of the question count for them.

    Each comes with the others that say the same in the same words, for every place is worth citing.
    """
    best = max(one.score for one in rated)
    total = sum(weights.values()) or 1.0
    held: set[str] = set()
    near = [one for one in rated if one.score > best - MARGIN]

    def gain(one: _Sentence) -> float:
        return one.score + NEW_WORDS * sum(weights[word] for word in one.words - held) / total

    for number in range(QUOTES):
        if not near:
            return
        chosen = max(near, key=gain if number else lambda one: one.score)
        text = _bare(texts[chosen.passage][chosen.place])
        same = [one for one in near if _bare(texts[one.passage][one.place]) == text]
        near = [one for one in near if one not in same]
        held |= chosen.words
        yield [chosen, *(one for one in same if one is not chosen)][:PLACES]


def _extent(texts: Sequence[str], place: int) -> int:
    """The last sentence of a quote that begins at `place`: a question or "as follows:" goes on to what follows it."""
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


def _apart(statements: Sequence[Statement], passages: Sequence[Passage]) -> Iterator[Statement]:
    """The statements without the claims that share words with an earlier one: passages may overlap."""
    taken: list[tuple[int, Span]] = []
    for statement in statements:
        claims = []
        for claim in statement.claims:
            document = passages[claim.passage].document_id
            if not any(
                document == other and claim.char_start < one.char_end and claim.char_end > one.char_start
                for other, one in taken
            ):
                taken.append((document, claim))
                claims.append(claim)
        if claims:
            yield Statement(statement.text, tuple(claims))


def _claim(passages: Sequence[Passage], index: int, start: int, end: int) -> Span:
    passage = passages[index]
    return Span(index, passage.char_start + start, passage.char_start + end, passage.content[start:end])


def _says_something(texts: Sequence[str], place: int) -> bool:
    """Whether a sentence can stand as an answer: no heading, fence, rule, head of a table, or scrap."""
    text = texts[place]
    heads = place + 1 < len(texts) and _TABLE_RULE.fullmatch(texts[place + 1])
    if heads or text.startswith(("#", *_FENCE)):
        return False
    return len(_WORD.findall(text)) >= 3 or len(_CJK.findall(text)) >= 4


def _words(text: str) -> frozenset[str]:
    """The words that carry a subject, cut to their stems; pairs of letters where words are not divided by spaces."""
    found: set[str] = set()
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("_", " ")):
        if _CJK.search(word):
            found.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif word not in _STOP:
            found.add(word if word[0].isdigit() else word[:STEM])
    return frozenset(found)


def _bare(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.float32(1e-9))
    return unit
