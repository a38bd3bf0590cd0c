"""Facts of a text that can be compared without understanding it, across languages: numbers with units, times, dates."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.text.word_lists import read_word_lists

_LISTS = read_word_lists(Path(__file__).with_suffix(".txt"))


def _names(kind: str) -> dict[str, str]:
    """Read the lists of a kind as word → the second part of the list's name."""
    return {
        name: key.removeprefix(f"{kind} ")
        for key, names in _LISTS.items()
        if key.startswith(f"{kind} ")
        for name in names
    }


def _values(kind: str, language: str) -> dict[str, float]:
    """Word → number, from a list of word=number."""
    pairs = (entry.split("=") for entry in _LISTS.get(f"{kind} {language}", ()))
    return {word: float(number) for word, number in pairs}


_MONTHS = {name: int(number) for name, number in _names("month").items()}
_CALENDAR = _MONTHS | {name: int(number) for name, number in _names("weekday").items() if name not in _MONTHS}
_UNITS = _names("unit")
_MAGNITUDES = {name: float(value) for name, value in _names("magnitude").items()}
_LANGUAGES = ("english", "german", "french", "spanish")  # whose words for numbers are known
_SPELLED = {language: _values("spelled", language) | _values("ordinal", language) for language in _LANGUAGES}
_ORDINALS = frozenset(word for language in _LANGUAGES for word in _values("ordinal", language))
CALENDAR = frozenset(_CALENDAR)
MEASURES = frozenset(_UNITS) | frozenset(_MAGNITUDES)
_DECIMAL_POINT = frozenset({"english", "unspaced", "hebrew", "hindi", "tamil", "irish"})

_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATE = re.compile(
    rf"""(?<![\w.,/-])(?:
    (?P<y1>\d{{4}})-(?P<m1>\d{{1,2}})-(?P<d1>\d{{1,2}})
    | (?P<d2>\d{{1,2}})\.\s?(?P<m2>\d{{1,2}})\.\s?(?P<y2>\d{{4}})
    | (?P<a3>\d{{1,2}})/(?P<b3>\d{{1,2}})/(?P<y3>\d{{4}})
    | (?P<d4>\d{{1,2}})(?:st|nd|rd|th|\.|er|º)?\s(?:of\s|de\s)?(?P<n4>{_MONTH})\b\.?
      (?:,?\s(?:de[l]?\s)?(?P<y4>\d{{4}}))?
    | (?P<n5>{_MONTH})\b\.?\s(?P<d5>\d{{1,2}})(?:st|nd|rd|th)?(?![\d:.%]\d?)(?:,?\s(?P<y5>\d{{4}}))?
    | (?P<n6>{_MONTH})\b\.?,?\s(?:of\s|de[l]?\s)?(?P<y6>\d{{4}})
    )(?!\w)""",
    re.VERBOSE | re.IGNORECASE,
)
_CLOCK = re.compile(
    r"(?<![\w.,:])(?P<h>[01]?\d|2[0-4])(?:[:.](?P<m>[0-5]\d))?\s?(?P<half>[ap])\.?m\b\.?"
    r"|(?<![\w.,:])(?P<h2>[01]?\d|2[0-4])(?:[:.](?P<m2>[0-5]\d))?\s?(?:uhr\b|o['’]clock\b)"
    r"|(?<![\w.,:])(?P<h3>[01]?\d|2[0-4])(?::|\s?h\s?)(?P<m3>[0-5]\d)(?![\w:])",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>(?<![^\s(])[-−])?(?P<money>(?<=[$€£¥])|)"
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*)"
)
_AFTER = re.compile(r"(?:[\s\u00a0\u202f-]?(?P<word>[^\W\d_]+\b|°[CF]\b|[%€$£¥]))", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text.

    value: the quantity, or the text itself where it is not a quantity (3.11.2).
    unit: its one name; "clock": the value is in minutes; "ordinal": third.
    """

    value: float | str
    unit: str | None
    written: str
    start: int


@dataclass(frozen=True, slots=True)
class Date:
    """A day, or the parts of it that a text names."""

    year: int | None
    month: int | None
    day: int | None

    def fits(self, other: "Date") -> bool:
        """True if the other date has every part that this one has."""
        pairs = ((self.year, other.year), (self.month, other.month), (self.day, other.day))
        return all(part is None or part == other_part for part, other_part in pairs)


@dataclass(slots=True)
class Facts:
    """Facts of a text. calendar: months and weekdays named outside dates, as numbers: 1 to 12, and 100 to 106."""

    numbers: list[Number] = field(default_factory=list)
    dates: list[tuple[Date, ...]] = field(default_factory=list)  # the readings of each: 3/4/2024 has two
    calendar: set[int] = field(default_factory=set)


def facts(text: str, language: str | None) -> Facts:
    """Read the numbers, times and dates of a text. In its `language`, 1.500 is fifteen hundred or one and a half."""
    text = unicodedata.normalize("NFC", text)
    found = Facts()

    def date(match: re.Match[str]) -> str:
        found.dates.append(_readings(match))
        return " " * len(match[0])

    def clock(match: re.Match[str]) -> str:
        part = {name[0] if name != "half" else name: value for name, value in match.groupdict().items() if value}
        minutes = int(part["h"]) * 60 + int(part.get("m", 0))
        if half := part.get("half"):
            minutes = minutes % 720 + (720 if half.lower() == "p" else 0)
        found.numbers.append(Number(minutes, "clock", " ".join(match[0].lower().split()), match.start()))
        return " " * len(match[0])

    text = _CLOCK.sub(clock, _DATE.sub(date, text))
    for match in _NUMBER.finditer(text):
        after = _AFTER.match(text, match.end())
        if after is None and text[match.end() : match.end() + 1].isalpha():
            continue  # 4e7ba91: an identifier
        word = after["word"].lower() if after else ""
        if (
            after
            and after.start("word") == match.end()
            and word not in _UNITS
            and word not in ("st", "nd", "rd", "th", "k", "x")
        ):
            if word[0].isalpha():
                continue  # 4e7ba91, 2x4: an identifier
            word = ""
        value = _value(match["digits"], language)
        written = match[0]
        if isinstance(value, float) and (scale := 1e3 if word == "k" else _MAGNITUDES.get(word)):
            value, written = round(value * scale, 6), f"{written} {scale:g}"
            beyond = _AFTER.match(text, after.end()) if after else None
            word = beyond["word"].lower() if beyond else ""
        before = text[match.start() - 1 : match.start()] if match.start() else ""
        unit = _UNITS.get(before) if before in "$€£¥" and before else _UNITS.get(word)
        if match["sign"] and isinstance(value, float):
            value = -value
        found.numbers.append(Number(value, unit, written, match.start()))
    found.numbers += _spelled(text, language)
    for match in _WORD.finditer(text):
        name = match[0].lower()
        if match[0][0].isupper() and name in CALENDAR and (len(name) > 3 or name == "mai") and name != "mars":
            found.calendar.add(_CALENDAR[name])
    return found


def are_cited(claim: Facts, *cited: Facts) -> bool:
    """True if every number, time and date of a claim is among the cited facts."""
    dates = [reading for facts in cited for readings in facts.dates for reading in readings]
    numbers = [number for facts in cited for number in facts.numbers]
    calendar = {name for facts in cited for name in facts.calendar}
    values = {number.value for number in numbers} | {
        float(part) for date in dates for part in (date.year, date.month, date.day) if part is not None
    }
    for readings in claim.dates:
        if any(reading.fits(date) for reading in readings for date in dates):
            continue
        parts = [part for part in (readings[0].year, readings[0].day) if part is not None]
        if dates or not values.issuperset(map(float, parts)) or readings[0].month not in calendar:
            return False
    claimed_months = {reading.month for readings in claim.dates for reading in readings}
    if not claim.calendar - claimed_months <= calendar | {date.month for date in dates}:
        return False
    return all(_is_cited(number, numbers, values) for number in claim.numbers) and _units_agree(claim.numbers, numbers)


def _units_agree(claimed: Iterable[Number], cited: Iterable[Number]) -> bool:
    """True if no unit of a number that is cited with several (2 days, 2 weeks) is claimed more often than cited."""
    claims, quotes = Counter((n.value, n.unit) for n in claimed), Counter((n.value, n.unit) for n in cited)
    ambiguous = {value for value, count in Counter(value for value, _ in quotes).items() if count > 1}
    return all(
        quotes[value, unit] >= count
        for (value, unit), count in claims.items()
        if value in ambiguous and unit and quotes[value, unit]
    )


def _is_cited(number: Number, cited: Iterable[Number], values: set[float | str]) -> bool:
    if number.unit == "clock":
        assert isinstance(number.value, int | float)
        exact = any(half in number.written for half in ("am", "pm", "a.m", "p.m"))
        for other in cited:
            if other.unit == "clock" and isinstance(other.value, int | float):
                if other.value == number.value or (not exact and other.value % 720 == number.value % 720):
                    return True
            elif other.unit is None and other.value == number.value / 60:
                return True
        return False
    known = False
    for other in cited:
        value = other.value / 60 if other.unit == "clock" and isinstance(other.value, int | float) else other.value
        if value == number.value or (other.written == number.written and other.unit == number.unit):
            known = True
            if number.unit is None or other.unit in (None, number.unit):
                return True
    return not known and number.unit is None and number.value in values


def _readings(match: re.Match[str]) -> tuple[Date, ...]:
    part = {name[0]: value for name, value in match.groupdict().items() if value}
    year = int(part["y"]) if "y" in part else None
    if "a" in part:
        first, second = int(part["a"]), int(part["b"])
        return (Date(year, first, second), Date(year, second, first))
    month = _MONTHS[part["n"].lower()] if "n" in part else int(part["m"])
    return (Date(year, month, int(part["d"]) if "d" in part else None),)


def _value(digits: str, language: str | None) -> float | str:
    plain = re.sub(r"[ \u00a0\u202f'’]", "", digits)
    separators = re.findall(r"[.,]", plain)
    if not separators:
        return float(plain)
    if len(set(separators)) == 2:
        if separators.index(separators[-1]) != len(separators) - 1:
            return plain
        thousands, point = separators[0], separators[-1]
        return float(plain.replace(thousands, "").replace(point, "."))
    groups = re.split(r"[.,]", plain)
    grouped = 1 <= len(groups[0]) <= 3 and groups[0] != "0" and all(len(group) == 3 for group in groups[1:])
    if len(separators) > 1:
        return float("".join(groups)) if grouped else plain
    thousands = "," if language is None or language in _DECIMAL_POINT else "."
    if grouped and (separators[0] == thousands):
        return float("".join(groups))
    return float(".".join(groups))


def _spelled(text: str, language: str | None) -> Iterator[Number]:
    """Read the numbers that are written as words, one for each phrase: "three hundred", "twenty-one"."""
    known = _SPELLED.get(language or "english", _SPELLED["english"])
    matches = list(_WORD.finditer(text.lower()))
    skip = 0
    for place, match in enumerate(matches):
        if place < skip:
            continue
        values = [1 if part == "one" and "-" in match[0] else known.get(part) for part in match[0].split("-")]
        value: float | None = sum(v for v in values if v) if all(values) else known.get(match[0])
        if value is None and len(values) == 2 and values[0]:
            value = values[0] if match[0].split("-")[1] in _UNITS else None
        if value is None:
            continue
        following = matches[place + 1 :]
        while following and text[match.end() : following[0].start()].strip() == "":
            scale = 100.0 if following[0][0] in ("hundred", "hundert") else _MAGNITUDES.get(following[0][0])
            if scale is None:
                break
            value, match, following = value * scale, following[0], following[1:]
            skip = place + 2
        word = following[0][0] if following else ""
        unit = "ordinal" if match[0] in _ORDINALS else _UNITS.get(word)
        yield Number(float(value), unit, match[0], match.start())
