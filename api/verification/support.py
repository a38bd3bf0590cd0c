"""Support: whether the words that a sentence cites carry what it says, as far as code can tell without understanding it.

Compared are numbers with units, times and dates (api/verification/facts.py), names, identifiers, quoted words, negation and opposites, and
the words themselves. Question and documents may have different languages: then numbers and identifiers decide, and the rest
lowers a sentence to "partly" at most.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from api.verification.facts import CALENDAR, MEASURES, Facts, Number, facts
from shared.text.languages import STOP_WORDS, language
from shared.text.sentences import LIST_ITEM, sentences
from shared.text.words import words

Status = Literal["supported", "partly", "unsupported"]

SHORT = 60  # characters: less does not tell a language
STEM = 5  # letters of a word that decide what it matches
ENOUGH, LITTLE = 0.5, 0.25  # of a sentence's words that stand in what it cites: "supported", "partly"

_NEGATION = {
    "english": r"not|no|never|none|nobody|nothing|neither|nor|cannot|without|nowhere|\w+n['’]t",
    "german": r"nicht|kein\w*|nie|niemals|niemand\w*|nichts|ohne|weder|nirgends",
    "french": r"ne|n(?=['’])|pas|jamais|aucun\w*|rien|sans|ni|non",
    "spanish": r"no|nunca|jamás|ningún|ningun\w+|nadie|nada|sin|tampoco|ni",
    "italian": r"non|mai|nessun\w*|niente|nulla|senza|né",
    "portuguese": r"não|nunca|nenhum\w*|ninguém|nada|sem|nem",
    "dutch": r"niet|geen|nooit|niemand|niets|zonder",
    "swedish": r"inte|ej|ingen|inga|inget|aldrig|utan",
    "danish": r"ikke|ingen|intet|aldrig|uden",
    "norwegian": r"ikke|ingen|ikkje|aldri|uten",
    "polish": r"nie|nigdy|nikt|nic|bez|żaden|żadn\w+",
    "russian": r"не|нет|ни|никогда|никто|ничего|без",
}
# What denies without such a word: it agrees with a negation, and may stand against none.
_DENIAL = re.compile(
    r"\b(?:forbid\w*|prohibit\w*|impossible|unable|refus\w*|den(?:y|ied|ies)|lacks?|lacking|invalid|except|unless|rarely|"
    r"hardly|prevents?|exclud\w*|missing|absent|verboten|untersagt|unmöglich|außer|kaum|selten|interdit\w*|impossibles?|sauf|"
    r"prohibid\w*|imposible|salvo)\b",
    re.IGNORECASE,
)
# Negations that deny nothing: "no more than 5" is "at most 5".
_HARMLESS = re.compile(
    r"\b(?:not only|\w+n['’]t only|no (?:more|less|later|fewer|earlier|longer) than|not (?:more|less|later|fewer|earlier|longer) than(?=\s\S?\d)|whether or not|nothing but|nicht nur|nicht mehr als|no\.(?=\s?\d)|"
    r"non seulement|no solo|no sólo)(?!\w)",
    re.IGNORECASE,
)
_OPPOSITES = [
    tuple(frozenset(side.split()) for side in pair.split("/"))
    for pair in (
        "always immer/never nie niemals",
        "before vor vorher/after nach nachher",
        "more mehr/less weniger fewer",
        "minimum least mindestens/maximum most höchstens",
        "allowed permitted erlaubt/forbidden prohibited disallowed verboten",
        "enabled enables enable/disabled disables disable",
        "rose rises rise increased increases increase gestiegen/"
        "fell falls fall decreased decreases decrease dropped gesunken",
        "above over über/below under unter",
        "first erste ersten/last letzte letzten",
        "open opens opened/closed closes close",
        "true wahr/false falsch",
        "higher larger greater größer/lower smaller kleiner",
        "start starts begins begin/end ends stops stop",
        "with mit/without ohne",
        "all every alle jeder/none no keine",
        "left links/right rechts",
        "accepted accepts accept/rejected rejects reject refuses refused",
        "faster/slower",
        "required mandatory must/optional",
        "win won/lose lost",
        "on/off",
        "public/private",
        "success succeeds succeeded/failure fails failed",
        "summer sommer/winter",
        "north/south",
        "east/west",
        "early earlier früher/late later später",
        "inside/outside",
        "buy bought/sell sold",
    )
]
_MEASURES = frozenset(word[:STEM] for word in MEASURES)
_PRONOUN = re.compile(
    r"(?:it|its|they|their|this|these|that|he|she|his|her|there|er|sie|es|seine?|ihre?|dies\w*|il|elle|ils|elles|ce|cela|él|ella)\b",
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
    r"[.;:!?,。；，！？]\s|[。；，！？]|\n[^\S\n]*\n|\n(?![^\S\n]*[a-z(`])|\s[–—]\s|\s(?:but|aber|sondern|mais|pero|while|whereas|während)\s"
)
# What a line that only leads over may say beside the words around it.
_LEADING = frozenset(
    word[:STEM]
    for word in """following follow facts steps list options answer ways reasons points details summary example examples overview
    include includes including settings rules folgende folgenden schritte liste gründe beispiele übersicht étapes suivantes siguientes
    pasos according documents document here hier voici aquí""".split()
)


@dataclass
class _Text:
    """A text with what is compared of it, each computed when it is needed."""

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
        return frozenset(_possessed(word.casefold()) for word in _NAME_WORD.findall(self.text.replace("’", "'")))


def rate(
    sentence: str, quotes: Sequence[str], around: str = "", titles: str = "", sources: str = "", question: str = ""
) -> Status:
    """How far the quotes carry the sentence.

    `titles`, `sources`: of what is cited: they belong to it. `around`: the passages that the quotes stand in:
    they may say who "it" is. Nothing is supported by nothing.
    """
    if not quotes:
        return "unsupported"
    said = _prose(sentence)
    if _whole(said, quotes):
        return "supported"
    cited = _Text("\n\n".join(quotes), language("\n".join([*quotes, around])))
    told = (
        language(f"{question}\n{said}") if question or len(said) >= SHORT else None
    )  # it answers in the question's language
    mine = _Text(said, told or cited.language)
    same = cited.language is None or mine.language == cited.language
    if not _code_stands(sentence, f"{cited.text}\n{titles}"):
        return "unsupported"
    named = _Text(f"{titles}\n{sources}", cited.language)
    if not _numbers_stand(mine, cited, named) or not _identifiers_stand(sentence, cited, named):
        return "unsupported"
    statuses = [
        _quoted(said, cited, named, same),
        _names(mine, cited, named, _Text(f"{around}\n{question}", cited.language), same),
        _denial(mine, cited, same),
        _coverage(mine, cited, named, same),
    ]
    return max(statuses, key=("supported", "partly", "unsupported").index)


def is_lead_in(line: str, quotes: Sequence[str], around: str, titles: str, sources: str, question: str) -> bool:
    """Whether a line without citations only leads over to what follows, and adds nothing of its own.

    The quotes are those of the next sentence. "These are the steps to install Pelican:" says nothing; "Pelican is unsafe:" does.
    """
    said = _prose(line)
    near = _Text("\n".join([*quotes, around, titles, sources, question]))
    mine = _Text(said, near.language)
    return (
        _numbers_stand(mine, near, near)
        and _code_stands(line, near.text)
        and _identifiers_stand(line, near, near)
        and not mine.stems - near.stems - _LEADING
        and bool(_negations(mine.text, mine.language)) <= bool(_negations(near.text, near.language))
    )


def _prose(sentence: str) -> str:
    text = sentence.strip().lstrip("#>| ").strip()
    if match := LIST_ITEM.match(text):
        text = text[match.end() :]
    if match := _NUMBERED.match(text):
        text = text[match.end() :]
    return _EMPHASIS.sub("", text).strip()


def _whole(said: str, quotes: Sequence[str]) -> bool:
    """Whether the sentence is one or several whole sentences of a quote, word for word."""

    def plain(text: str) -> str:
        return " ".join(_EMPHASIS.sub("", text).split())

    wanted = plain(said)
    for quote in quotes:
        if wanted == plain(_prose(quote)) or wanted == plain(quote):
            return True
        spans = sentences(quote)
        for first in range(len(spans)):
            for last in range(first, min(first + 4, len(spans))):
                if plain(_prose(quote[spans[first][0] : spans[last][1]])) == wanted:
                    return True
    return False


# Numbers, dates


def _numbers_stand(mine: _Text, cited: _Text, named: _Text) -> bool:
    theirs, titles = cited.facts, named.facts
    dates = [reading for readings in theirs.dates + titles.dates for reading in readings]
    held = theirs.numbers + titles.numbers
    values = {number.value for number in held} | {
        float(part) for date in dates for part in (date.year, date.month, date.day) if part is not None
    }
    for readings in mine.facts.dates:
        if any(reading.fits(date) for reading in readings for date in dates):
            continue
        parts = [part for part in (readings[0].year, readings[0].day) if part is not None]
        months = theirs.calendar | titles.calendar
        if dates or not values.issuperset(map(float, parts)) or readings[0].month not in months:
            return False
    in_dates = {date.month for date in dates}
    for name in mine.facts.calendar - {reading.month for readings in mine.facts.dates for reading in readings}:
        if name not in theirs.calendar | titles.calendar | in_dates and mine.facts.calendar:
            return False
    return all(_number_stands(number, held, values) for number in mine.facts.numbers) and _units_stand(
        mine.facts.numbers, held
    )


def _units_stand(said: Iterable[Number], held: Iterable[Number]) -> bool:
    """Where the same number comes with several units (2 days, 2 weeks), none is said more often than it stands there."""
    mine, theirs = Counter((n.value, n.unit) for n in said), Counter((n.value, n.unit) for n in held)
    several = {value for value, count in Counter(value for value, _ in theirs).items() if count > 1}
    return all(
        theirs[place] >= count for place, count in mine.items() if place[0] in several and place[1] and theirs[place]
    )


def _number_stands(number: Number, held: Iterable[Number], values: set[float | str]) -> bool:
    if number.unit == "clock":
        assert isinstance(number.value, int | float)
        exact = any(half in number.written for half in ("am", "pm", "a.m", "p.m"))
        for other in held:
            if other.unit == "clock" and isinstance(other.value, int | float):
                if other.value == number.value or (not exact and other.value % 720 == number.value % 720):
                    return True
            elif other.unit is None and other.value == number.value / 60:
                return True
        return False
    known = False
    for other in held:
        value = other.value / 60 if other.unit == "clock" and isinstance(other.value, int | float) else other.value
        if value == number.value or (other.written == number.written and other.unit == number.unit):
            known = True
            if number.unit is None or other.unit in (None, number.unit):
                return True
    return not known and number.unit is None and number.value in values


# Identifiers, quoted words, names


def _bare(token: str) -> str:
    return token.strip(".:/\\-+%").casefold() or token.casefold()


def _identifiers(text: str) -> list[str]:
    """Tokens that are written so and not otherwise: err_conn_reset, --force, B12, getUser, docs/a.md, PDF."""
    found = []
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
            found.append(token)
    return found


def _code_stands(sentence: str, text: str) -> bool:
    whole = " ".join(text.casefold().split())
    codes = (" ".join(code.casefold().split()) for code in _CODE.findall(sentence))
    return all(re.search(rf"(?<!\w){re.escape(code)}(?!\w)", whole) for code in codes)


def _identifiers_stand(sentence: str, cited: _Text, named: _Text) -> bool:
    held = cited.tokens | named.tokens
    whole = f"{cited.lower}\n{named.lower}"
    for token in _identifiers(_CODE.sub(" ", sentence)):
        bare = _bare(token)
        plural = bare.removesuffix("s")
        if bare in held or plural in held or f"{bare}s" in held:
            continue
        if re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", whole):
            continue
        if token.isalpha() and token.isupper() and _stands_for(token, cited.text + "\n" + named.text):
            continue
        return False
    return True


def _stands_for(acronym: str, text: str) -> bool:
    """Whether the words of the text are what the acronym is short for."""
    initials = "".join(word[0] for word in _NAME_WORD.findall(text) if word[0].isupper())
    return acronym in initials


def _quoted(said: str, cited: _Text, named: _Text, same: bool) -> Status:
    """What the sentence puts in quotation marks must stand so."""
    whole = f"{cited.lower}\n{named.lower}"
    for groups in _QUOTED.findall(said):
        wanted = " ".join("".join(groups).casefold().replace("’", "'").split()).strip(" .,;:!?")
        if wanted and wanted not in whole:
            return "unsupported" if same and len(wanted.split()) > 1 else "partly"
    return "supported"


def _possessed(word: str) -> str:
    return word.replace("’", "'").removesuffix("'s").removesuffix("'")


@lru_cache(maxsize=4096)
def _common(word: str, language: str | None) -> bool:
    return (
        word in STOP_WORDS.get(language or "english", ())
        or word in STOP_WORDS["english"]
        or word in CALENDAR | MEASURES
    )


def _name_phrases(text: _Text) -> list[tuple[list[str], bool]]:
    """Runs of capitalised words, lower-cased, and whether the run begins a sentence, where any word has a capital."""
    phrases: list[tuple[list[str], bool]] = []
    run: list[str] = []
    first, end, begins = False, -1, True
    for match in _NAME_WORD.finditer(text.text):
        gap = text.text[end : match.start()] if end >= 0 else ""
        begins = end < 0 or bool(re.search(r"[.!?:\n“\"„(]\W*$", gap))
        word = match[0]
        low = _possessed(word.casefold())
        if word[0].isupper() and not (word.isupper() and len(word) > 1) and not _common(low, text.language):
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


def _names(mine: _Text, cited: _Text, named: _Text, near: _Text, same: bool) -> Status:
    """Every name must stand in what is cited. One that only stands near it may be what "it" means, unless the cited words name another."""
    capitals = mine.language == "german"  # every noun has one there
    held = cited.name_words | named.name_words
    unused = [
        phrase
        for phrase, first in _name_phrases(cited)
        if (len(phrase) > 1 or not (first or cited.language == "german")) and not mine.name_words.intersection(phrase)
    ]
    status: Status = "supported"
    for phrase, first in _name_phrases(mine):
        missing = [word for word in phrase if not _held(word, held)]
        if not missing or (len(phrase) == 1 and capitals):
            continue
        if len(phrase) == 1 and first and (not unused or _kin(phrase[0], cited.stems | near.stems)):
            continue  # any word has a capital there
        if not same or (capitals and not unused):
            status = "partly" if len(phrase) > 1 or not capitals else status
        elif (
            len(phrase) > len(missing)
            and not capitals
            and any(len(p) > 1 and set(p) & set(phrase) for p, _ in _name_phrases(cited))
        ):
            return "unsupported"  # another first name
        elif all(_held(word, near.name_words) for word in missing) and (
            not unused or _PRONOUN.match(cited.text.lstrip("-*# "))
        ):
            status = "partly"
        else:
            return "unsupported"
    return status


def _held(word: str, held: frozenset[str]) -> bool:
    return (
        word in held
        or word.removesuffix("s") in held
        or f"{word}s" in held
        or (not word.isascii() and any(other[:STEM] == word[:STEM] for other in held))
        or ("-" in word and all(part in held for part in word.split("-")))
    )


def _found(stem: str, stems: frozenset[str]) -> bool:
    return stem in stems or (
        len(stem) >= 4 and any(other[:4] == stem[:4] and min(len(stem), len(other)) == 4 for other in stems)
    )


def _kin(word: str, stems: frozenset[str]) -> bool:
    return any(word[:4] == stem[:4] for stem in stems)


# Negation, opposites, words


def _negations(text: str, language: str | None) -> int:
    pattern = f"{_NEGATION['english']}|{_NEGATION.get(language or 'english', '-')}"
    return len(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", _HARMLESS.sub(" ", text), re.IGNORECASE))


def _denials(texts: Iterable[str]) -> set[str]:
    return {word.lower() for text in texts for word in _DENIAL.findall(text)}


def _clauses(text: str) -> list[str]:
    return [part for part in _CLAUSE.split(text) if any(map(str.isalnum, part))]


def _denial(mine: _Text, cited: _Text, same: bool) -> Status:
    """Whether sentence and quote agree in what they deny, clause by clause where they have words in common."""
    if not same:
        one, other = bool(_negations(mine.text, mine.language)), bool(_negations(cited.text, cited.language))
        return "supported" if one == other or _DENIAL.search(f"{mine.text} {cited.text}") else "partly"
    theirs = [(clause, _stems(clause, cited.language)) for clause in _clauses(cited.text)]
    status: Status = "supported"
    for clause in _clauses(mine.text):
        stems = _stems(clause, mine.language)
        if not stems or not theirs:
            continue
        most = max(len(stems & other) for _, other in theirs)
        if most < max(1, min(2, len(stems) - 1)) or most < len(stems) / 3:
            continue
        least = min(len(other) for _, other in theirs if len(stems & other) == most)
        near = [text for text, other in theirs if len(stems & other) == most and len(other) == least]
        denied = _negations(clause, mine.language) % 2
        if all(_negations(text, cited.language) % 2 != denied for text in near):
            here, there = _denials([clause]), _denials(near)
            if not (there - here if denied else here - there):  # "forbidden" against "not allowed"
                return "unsupported"
            status = "partly"
        if _opposed(set(words(clause)), [set(words(text)) for text in near]):
            return "unsupported"
    if re.search(r"(?<!\w)only\b", _HARMLESS.sub("", mine.text)) and not re.search(
        r"(?<!\w)only\b", _HARMLESS.sub("", cited.text)
    ):
        return (
            "partly" if "only" not in cited.text else "unsupported"
        )  # "only" is more than was said, and "not only" the contrary
    if _negations(mine.text, mine.language) and not _negations(cited.text, cited.language):
        return status if _DENIAL.search(cited.text) else "unsupported"
    return status


def _opposed(said: set[str], near: Sequence[set[str]]) -> bool:
    """Whether the sentence has one word of a pair of opposites, and all clauses like it the other."""
    for one, other in _OPPOSITES:
        for here, there in ((one, other), (other, one)):
            if (
                said & here
                and not said & there
                and all(near_words & there and not near_words & here for near_words in near)
            ):
                return True
    return False


@lru_cache(maxsize=4096)
def _stems(text: str, language: str | None) -> frozenset[str]:
    """What the words that carry a subject begin with."""
    common = STOP_WORDS.get(language or "english", frozenset()) | STOP_WORDS["english"]
    return frozenset(word[:STEM] for word in words(text) if word not in common and any(map(str.isalnum, word)))


def _coverage(mine: _Text, cited: _Text, named: _Text, same: bool) -> Status:
    """By the share of the sentence's words that stand in what it cites; where languages differ, by whether there is anything to compare."""
    if not same:
        return "supported" if mine.facts.numbers or mine.facts.dates or _identifiers(mine.text) else "partly"
    stems = {stem for stem in mine.stems if not stem[0].isdigit()} - _MEASURES
    facts = len(mine.facts.numbers) + len(mine.facts.dates)  # they stand, or this would not be asked
    held = {stem for stem in stems if _found(stem, cited.stems)}
    if not held and not facts:
        return "unsupported"
    held |= {stem for stem in stems if _found(stem, named.stems)}
    share = (len(held) + facts) / (len(stems) + facts)
    return "supported" if share >= ENOUGH else "partly" if share >= LITTLE else "unsupported"
