"""Support: whether the quotes that a sentence cites say what it says, as far as code can tell without understanding it.

Compared are numbers with units, times and dates (api/verification/facts.py), names, identifiers, quoted words, negation
and opposites, and the words themselves. Question and documents may have different languages: then numbers and
identifiers decide, and the other checks lower a sentence to "partly" at most.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from api.verification.facts import CALENDAR, MEASURES, Facts, are_cited, facts
from shared.text.languages import STOP_WORDS, language
from shared.text.sentences import LIST_ITEM, sentences
from shared.text.word_lists import read_word_lists
from shared.text.words import words

Status = Literal["supported", "partly", "unsupported"]

SHORT = 60  # characters: a shorter text does not tell its language
STEM = 5  # letters of a word that are compared
ENOUGH, LITTLE = 0.5, 0.25  # share of a sentence's words that its quotes have: "supported", "partly"

_LISTS = read_word_lists(Path(__file__).with_suffix(".txt"))
# Words that deny without a negation: they agree with a negation, and need none on the other side.
_DENIAL = re.compile(rf"\b(?:{'|'.join(_LISTS['denial'])})\b", re.IGNORECASE)
# Negations that deny nothing: "no more than 5" is "at most 5".
_HARMLESS = re.compile(
    r"\b(?:not only|\w+n['’]t only|no (?:more|less|later|fewer|earlier|longer) than"
    r"|not (?:more|less|later|fewer|earlier|longer) than(?=\s\S?\d)|whether or not|nothing but|nicht nur|nicht mehr als"
    r"|no\.(?=\s?\d)|non seulement|no solo|no sólo)(?!\w)",
    re.IGNORECASE,
)
_ONLY = re.compile(r"(?<!\w)only\b")
_OPPOSITES = [
    (frozenset(pair[: pair.index("/")]), frozenset(pair[pair.index("/") + 1 :]))
    for name, pair in _LISTS.items()
    if name.startswith("opposite")
]
_MEASURES = frozenset(word[:STEM] for word in MEASURES)
_LEAD_IN_STEMS = frozenset(word[:STEM] for word in _LISTS["lead-in"])
_PRONOUN = re.compile(
    r"(?:it|its|they|their|this|these|that|he|she|his|her|there|er|sie|es|seine?|ihre?|dies\w*"
    r"|il|elle|ils|elles|ce|cela|él|ella)\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:step|schritt|étape|paso)\s\d+\s?[.:)]", re.IGNORECASE)
_EMPHASIS = re.compile(r"\*\*|__|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)")
_CODE = re.compile(r"`([^`\n]+)`")
_QUOTED = re.compile(r"“([^“”]+)”|„([^„“”]+)[“”]|«\s?([^«»]+?)\s?»|\"([^\"\n]+)\"")
_TOKEN = re.compile(r"[\w.+#/\\:@~%-]*[^\W\d_][\w.+#/\\:@~%-]*")
_SHAPE = re.compile(r"_|\d|^--?\w|[a-z][A-Z]|\w[.:@\\/]\w|^[./~]+\w|[+#]$")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th|er|k|x|e)?", re.IGNORECASE)
_PLAIN = re.compile(r"[^\W\d_]+(?:[-/][^\W\d_]+)*|(?:[^\W\d_]\.)+[^\W\d_]?")
_NAME_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CLAUSE = re.compile(
    r"[.;:!?,。；，！？]\s|[。；，！？]|\n[^\S\n]*\n|\n(?![^\S\n]*[a-z(`])|\s[–—]\s"
    r"|\s(?:but|aber|sondern|mais|pero|while|whereas|während)\s"
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The quotes that a sentence cites, and the text around them.

    around: the passages that the quotes stand in, which may say who "it" is. titles, sources: of the cited documents.
    """

    quotes: Sequence[str]
    around: str = ""
    titles: str = ""
    sources: str = ""
    question: str = ""


@dataclass
class _Text:
    """A text and its properties that are compared, each computed when it is first needed."""

    text: str
    language: str | None = field(default=None)

    def __post_init__(self) -> None:
        self.text = unicodedata.normalize("NFC", self.text)
        if self.language is None:
            self.language = language(self.text)

    @cached_property
    def facts(self) -> Facts:
        return facts(self.text, self.language)

    @cached_property
    def stems(self) -> frozenset[str]:
        return _stems(self.text, self.language)

    @cached_property
    def lower(self) -> str:
        return " ".join(self.text.casefold().replace("’", "'").split())

    @cached_property
    def tokens(self) -> frozenset[str]:
        return frozenset(_bare(token) for token in _TOKEN.findall(self.text))

    @cached_property
    def name_words(self) -> frozenset[str]:
        return frozenset(
            _without_possessive(word.casefold()) for word in _NAME_WORD.findall(self.text.replace("’", "'"))
        )

    @cached_property
    def negations(self) -> int:
        return _negations(self.text, self.language)


def rate(sentence: str, evidence: Evidence) -> Status:
    """Rate how far the evidence supports a sentence. Without quotes it is unsupported."""
    quotes, question = evidence.quotes, evidence.question
    if not quotes:
        return "unsupported"
    prose = _prose(sentence)
    if _is_verbatim(prose, quotes):
        return "supported"
    cited = _Text("\n\n".join(quotes), language("\n".join([*quotes, evidence.around])))
    # The answer has the language of the question.
    own_language = language(f"{question}\n{prose}") if question or len(prose) >= SHORT else None
    claim = _Text(prose, own_language or cited.language)
    same_language = cited.language is None or claim.language == cited.language
    titles = _Text(f"{evidence.titles}\n{evidence.sources}", cited.language)
    if not (
        _has_code(sentence, f"{cited.text}\n{evidence.titles}")
        and are_cited(claim.facts, cited.facts, titles.facts)
        and _has_identifiers(sentence, cited, titles)
    ):
        return "unsupported"
    nearby = _Text(f"{evidence.around}\n{question}", cited.language)
    statuses = [
        _rate_quotations(prose, cited, titles, same_language),
        _rate_names(claim, cited, titles, nearby, same_language),
        _rate_negation(claim, cited, same_language),
        _rate_words(claim, cited, titles, same_language),
    ]
    return max(statuses, key=("supported", "partly", "unsupported").index)


def is_lead_in(line: str, evidence: Evidence) -> bool:
    """True if a line without citations only leads over to the sentence that has this evidence, and states nothing.

    "These are the steps to install Pelican:" states nothing; "Pelican is unsafe:" does.
    """
    nearby = _Text("\n".join([*evidence.quotes, evidence.around, evidence.titles, evidence.sources, evidence.question]))
    claim = _Text(_prose(line), nearby.language)
    return (
        are_cited(claim.facts, nearby.facts)
        and _has_code(line, nearby.text)
        and _has_identifiers(line, nearby, nearby)
        and not claim.stems - nearby.stems - _LEAD_IN_STEMS
        and bool(claim.negations) <= bool(nearby.negations)
    )


def _prose(sentence: str) -> str:
    """The sentence without its list mark, step number and emphasis."""
    text = sentence.strip().lstrip("#>| ").strip()
    if match := LIST_ITEM.match(text):
        text = text[match.end() :]
    if match := _NUMBERED.match(text):
        text = text[match.end() :]
    return _EMPHASIS.sub("", text).strip()


def _is_verbatim(prose: str, quotes: Sequence[str]) -> bool:
    """True if the text is one to four complete sentences of a quote, word for word."""

    def normalise(text: str) -> str:
        return " ".join(_EMPHASIS.sub("", text).split())

    wanted = normalise(prose)
    for quote in quotes:
        if wanted in (normalise(_prose(quote)), normalise(quote)):
            return True
        spans = sentences(quote)
        for first in range(len(spans)):
            for last in range(first, min(first + 4, len(spans))):
                if normalise(_prose(quote[spans[first][0] : spans[last][1]])) == wanted:
                    return True
    return False


# Identifiers, quoted words, names


def _bare(token: str) -> str:
    return token.strip(".:/\\-+%").casefold() or token.casefold()


def _identifiers(text: str) -> list[str]:
    """Return the tokens whose spelling matters: err_conn_reset, --force, B12, getUser, docs/a.md, PDF."""
    identifiers = []
    for token in _TOKEN.findall(text):
        token = token.rstrip(".:,")
        if _ORDINAL.fullmatch(token) or re.fullmatch(
            r"[\d.,:]+(?:[^\W\d_]{1,4}|[-/][^\W\d_]+|h\d\d)|(?:[^\W\d_]\.)+[^\W\d_]?", token
        ):
            continue  # 1st, 54m, e.g.
        acronym = len(token) > 1 and token.isupper() and token.isalpha()
        if acronym or (
            _SHAPE.search(token) and not _PLAIN.fullmatch(token.replace(".", "-", 1) if token[:1].isupper() else token)
        ):
            identifiers.append(token)
    return identifiers


def _has_code(sentence: str, text: str) -> bool:
    """True if every code span of the sentence stands in the text."""
    normalised = " ".join(text.casefold().split())
    codes = (" ".join(code.casefold().split()) for code in _CODE.findall(sentence))
    return all(re.search(rf"(?<!\w){re.escape(code)}(?!\w)", normalised) for code in codes)


def _has_identifiers(sentence: str, cited: _Text, titles: _Text) -> bool:
    """True if every identifier of the sentence is cited, or is an acronym of cited words."""
    known = cited.tokens | titles.tokens
    text = f"{cited.lower}\n{titles.lower}"
    initials = "".join(word[0] for word in _NAME_WORD.findall(f"{cited.text}\n{titles.text}") if word[0].isupper())
    for token in _identifiers(_CODE.sub(" ", sentence)):
        bare = _bare(token)
        if not (
            known & {bare, bare.removesuffix("s"), f"{bare}s"}
            or re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", text)
            or (token.isalpha() and token.isupper() and token in initials)
        ):
            return False
    return True


def _rate_quotations(prose: str, cited: _Text, titles: _Text, same_language: bool) -> Status:
    """Rate by the words in quotation marks, which must stand in the cited text."""
    text = f"{cited.lower}\n{titles.lower}"
    for groups in _QUOTED.findall(prose):
        quotation = " ".join("".join(groups).casefold().replace("’", "'").split()).strip(" .,;:!?")
        if quotation and quotation not in text:
            return "unsupported" if same_language and len(quotation.split()) > 1 else "partly"
    return "supported"


def _without_possessive(word: str) -> str:
    """The word without a possessive ending."""
    return word.replace("’", "'").removesuffix("'s").removesuffix("'")


@lru_cache(maxsize=4096)
def _is_common(word: str, language: str | None) -> bool:
    return word in _stop_words(language) or word in CALENDAR or word in MEASURES


@lru_cache(maxsize=64)
def _stop_words(language: str | None) -> frozenset[str]:
    return STOP_WORDS.get(language or "english", frozenset()) | STOP_WORDS["english"]


def _name_phrases(text: _Text) -> list[tuple[list[str], bool]]:
    """Return runs of capitalised words, lower-cased; True for a run at a sentence's start, where any word has one."""
    phrases: list[tuple[list[str], bool]] = []
    run: list[str] = []
    first, end, begins = False, -1, True
    for match in _NAME_WORD.finditer(text.text):
        gap = text.text[end : match.start()] if end >= 0 else ""
        begins = end < 0 or bool(re.search(r"[.!?:\n“\"„(]\W*$", gap))
        word = match[0]
        low = _without_possessive(word.casefold())
        if word[0].isupper() and not (word.isupper() and len(word) > 1) and not _is_common(low, text.language):
            if run and (gap.strip() or begins):
                phrases.append((run, first))
                run = []
            if not run:
                first = begins
            run.append(low)
        elif run:
            phrases.append((run, first))
            run = []
        end = match.end()
    if run:
        phrases.append((run, first))
    return phrases


def _rate_names(claim: _Text, cited: _Text, titles: _Text, nearby: _Text, same_language: bool) -> Status:
    """Rate by the names, which must be cited.

    A name that stands only nearby may be what "it" means in the quote, unless the quote has a name that is not claimed.
    """
    german = claim.language == "german"  # every noun has a capital
    known = cited.name_words | titles.name_words
    cited_names = _name_phrases(cited)
    unused = [
        phrase
        for phrase, first in cited_names
        if (len(phrase) > 1 or not (first or cited.language == "german")) and not claim.name_words.intersection(phrase)
    ]
    status: Status = "supported"
    for phrase, first in _name_phrases(claim):
        missing = [word for word in phrase if not _is_known(word, known)]
        if not missing or (len(phrase) == 1 and german):
            continue
        if len(phrase) == 1 and first and (not unused or _shares_root(phrase[0], cited.stems | nearby.stems)):
            continue  # any word has a capital there
        if not same_language or (german and not unused):
            status = "partly" if len(phrase) > 1 or not german else status
        elif (
            len(phrase) > len(missing)
            and not german
            and any(len(name) > 1 and set(name) & set(phrase) for name, _ in cited_names)
        ):
            return "unsupported"  # another first name
        elif all(_is_known(word, nearby.name_words) for word in missing) and (
            not unused or _PRONOUN.match(cited.text.lstrip("-*# "))
        ):
            status = "partly"
        else:
            return "unsupported"
    return status


def _is_known(word: str, known: frozenset[str]) -> bool:
    return (
        word in known
        or word.removesuffix("s") in known
        or f"{word}s" in known
        or (not word.isascii() and any(other[:STEM] == word[:STEM] for other in known))
        or ("-" in word and all(part in known for part in word.split("-")))
    )


def _matches(stem: str, stems: frozenset[str]) -> bool:
    return stem in stems or (
        len(stem) >= 4 and any(other[:4] == stem[:4] and min(len(stem), len(other)) == 4 for other in stems)
    )


def _shares_root(word: str, stems: frozenset[str]) -> bool:
    return any(word[:4] == stem[:4] for stem in stems)


# Negation, opposites, words


def _negations(text: str, language: str | None) -> int:
    """Count the negations in a text."""
    patterns = (*_LISTS["negation english"], *_LISTS.get(f"negation {language or 'english'}", ()))
    return len(re.findall(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", _HARMLESS.sub(" ", text), re.IGNORECASE))


def _denials(texts: Iterable[str]) -> set[str]:
    return {word.lower() for text in texts for word in _DENIAL.findall(text)}


def _clauses(text: str) -> list[str]:
    return [part for part in _CLAUSE.split(text) if any(map(str.isalnum, part))]


def _rate_negation(claim: _Text, cited: _Text, same_language: bool) -> Status:
    """Rate by negations and opposites, clause by clause where claim and quote have words in common."""
    if not same_language:
        agree = bool(claim.negations) == bool(cited.negations)
        return "supported" if agree or _DENIAL.search(f"{claim.text} {cited.text}") else "partly"
    cited_clauses = [(clause, _stems(clause, cited.language)) for clause in _clauses(cited.text)]
    status: Status = "supported"
    for clause in _clauses(claim.text):
        similar = _similar_clauses(_stems(clause, claim.language), cited_clauses)
        if not similar:
            continue
        negated = _negations(clause, claim.language) % 2
        if all(_negations(text, cited.language) % 2 != negated for text in similar):
            own, other = _denials([clause]), _denials(similar)
            if not (other - own if negated else own - other):  # "forbidden" against "not allowed"
                return "unsupported"
            status = "partly"
        if _is_opposed(set(words(clause)), [set(words(text)) for text in similar]):
            return "unsupported"
    if _ONLY.search(_HARMLESS.sub("", claim.text)) and not _ONLY.search(_HARMLESS.sub("", cited.text)):
        # A claimed "only" states more than the quote, and contradicts a quoted "not only".
        return "partly" if "only" not in cited.text else "unsupported"
    if claim.negations and not cited.negations:
        return status if _DENIAL.search(cited.text) else "unsupported"
    return status


def _similar_clauses(stems: frozenset[str], clauses: Sequence[tuple[str, frozenset[str]]]) -> list[str]:
    """Return the clauses that share most stems, the shortest of them; none if they share too few."""
    if not stems or not clauses:
        return []
    most = max(len(stems & other) for _, other in clauses)
    if most < max(1, min(2, len(stems) - 1)) or most < len(stems) / 3:
        return []
    least = min(len(other) for _, other in clauses if len(stems & other) == most)
    return [text for text, other in clauses if len(stems & other) == most and len(other) == least]


def _is_opposed(claimed: set[str], clauses: Sequence[set[str]]) -> bool:
    """True if the claim has one word of a pair of opposites, and every clause like it has only the other."""
    return any(
        claimed & own and not claimed & other and all(clause & other and not clause & own for clause in clauses)
        for pair in _OPPOSITES
        for own, other in (pair, pair[::-1])
    )


@lru_cache(maxsize=4096)
def _stems(text: str, language: str | None) -> frozenset[str]:
    """Return the first letters of the words that are not stop words."""
    stop_words = _stop_words(language)
    return frozenset(word[:STEM] for word in words(text) if word not in stop_words and any(map(str.isalnum, word)))


def _rate_words(claim: _Text, cited: _Text, titles: _Text, same_language: bool) -> Status:
    """Rate by the share of the claim's words that are cited; across languages, by whether it has facts to compare."""
    if not same_language:
        return "supported" if claim.facts.numbers or claim.facts.dates or _identifiers(claim.text) else "partly"
    stems = {stem for stem in claim.stems if not stem[0].isdigit()} - _MEASURES
    facts = len(claim.facts.numbers) + len(claim.facts.dates)  # all of them are cited: they were compared before
    shared = {stem for stem in stems if _matches(stem, cited.stems)}
    if not shared and not facts:
        return "unsupported"
    shared |= {stem for stem in stems if _matches(stem, titles.stems)}
    share = (len(shared) + facts) / (len(stems) + facts)
    return "supported" if share >= ENOUGH else "partly" if share >= LITTLE else "unsupported"
