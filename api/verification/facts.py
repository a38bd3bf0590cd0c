"""Facts in a text that can be compared without understanding it: numbers with units, times, dates, across languages."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

_MONTHS = {
    name: number
    for number, names in enumerate(
        """january januar janvier enero gennaio januari janeiro jänner jan
        february februar février febrero febbraio februari fevereiro feb
        march märz mars marzo maart março mar mär
        april avril abril aprile apr
        may mai mayo maggio mei maio
        june juni juin junio giugno junho jun
        july juli juillet julio luglio julho jul
        august août agosto augustus aug
        september septembre septiembre settembre setembro sep sept
        october oktober octobre octubre ottobre outubro oct okt
        november novembre noviembre novembro nov
        december dezember décembre diciembre dicembre dezembro dec dez""".splitlines(),
        1,
    )
    for name in names.split()
}
_DAYS = {
    name: number
    for number, names in enumerate(
        """monday montag lundi lunes lunedì maandag
        tuesday dienstag mardi martes martedì dinsdag
        wednesday mittwoch mercredi miércoles mercoledì woensdag
        thursday donnerstag jeudi jueves giovedì donderdag
        friday freitag vendredi viernes venerdì vrijdag
        saturday samstag sonnabend samedi sábado sabato zaterdag
        sunday sonntag dimanche domingo domenica zondag""".splitlines()
    )
    for name in names.split()
}
_UNITS = {
    name: names.split()[0]
    for names in """% percent prozent per\u00a0cent
        € eur euro euros
        $ usd dollar dollars us$
        £ gbp pound pounds
        ¥ yen jpy
        mm millimetre millimetres millimeter millimeters
        cm centimetre centimetres centimeter centimeters zentimeter
        m metre metres meter meters mètre mètres metro metros
        km kilometre kilometres kilometer kilometers kilomètre kilomètres
        ft foot feet
        inch inches
        mi mile miles
        g gram grams gramm
        kg kilo kilos kilogram kilograms kilogramm
        t tonne tonnes ton tons tonnen
        lb lbs
        l litre litres liter liters
        ml millilitre millilitres milliliter
        s sec second seconds sekunde sekunden seconde secondes segundos
        ms millisecond milliseconds millisekunden
        min minute minutes minuten minutos
        h hour hours stunde stunden heure heures horas
        day days tag tage tagen jour jours día días
        week weeks woche wochen semaine semaines semana semanas
        month months monat monate monaten mois mes meses
        year years jahr jahre jahren an ans année années año años
        kb
        mb
        gb
        tb
        kib
        mib
        gib
        °c
        °f
        mhz
        ghz
        w watt
        kw
        kwh
        v volt
        tokens token
        characters character zeichen""".splitlines()
    for name in names.split()
}
_MAGNITUDES = {
    "thousand": 1e3,
    "tausend": 1e3,
    "million": 1e6,
    "millions": 1e6,
    "millionen": 1e6,
    "mio": 1e6,
    "millón": 1e6,
    "millones": 1e6,
    "billion": 1e9,
    "milliarde": 1e9,
    "milliarden": 1e9,
    "milliard": 1e9,
    "milliards": 1e9,
    "mrd": 1e9,
    "trillion": 1e12,
}
_SPELLED = {
    language: {word: value for value, words in rows for word in words.split()}
    for language, rows in {
        "english": [
            *enumerate(
                "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
                "seventeen eighteen nineteen twenty".split(),
                2,
            ),
            *zip(range(30, 101, 10), "thirty forty fifty sixty seventy eighty ninety hundred".split(), strict=True),
            (12, "dozen"),
            (1, "first"),
            *enumerate("third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), 3),
        ],
        "german": [
            *enumerate(
                "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
                "siebzehn achtzehn neunzehn zwanzig".split(),
                2,
            ),
            *zip(
                range(30, 101, 10),
                "dreißig vierzig fünfzig sechzig siebzig achtzig neunzig hundert".split(),
                strict=True,
            ),
            (12, "dutzend"),
            *enumerate(
                [
                    "erste ersten erster erstes",
                    "zweite zweiten zweiter zweites",
                    "dritte dritten dritter drittes",
                    "vierte vierten vierter",
                    "fünfte fünften fünfter",
                    "sechste sechsten",
                ],
                1,
            ),
        ],
        "french": [
            *enumerate("deux trois quatre cinq six sept huit".split(), 2),
            *enumerate("dix onze douze treize quatorze quinze seize".split(), 10),
            *zip(range(20, 70, 10), "vingt trente quarante cinquante soixante".split(), strict=True),
            (1, "premier première"),
            (2, "deuxième"),
            (3, "troisième"),
            (4, "quatrième"),
        ],
        "spanish": [
            *enumerate("dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince".split(), 2),
            *zip(range(20, 60, 10), "veinte treinta cuarenta cincuenta".split(), strict=True),
            (1, "primer primero primera"),
            (3, "tercer tercero tercera"),
        ],
    }.items()
}
CALENDAR = frozenset(_MONTHS) | frozenset(_DAYS)
MEASURES = frozenset(_UNITS) | frozenset(_MAGNITUDES)
_ORDINALS = frozenset(
    """first third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth erste ersten erster erstes zweite zweiten zweiter
    zweites dritte dritten dritter drittes vierte vierten vierter fünfte fünften fünfter sechste sechsten premier première deuxième
    troisième quatrième primer primero primera tercer tercero tercera""".split()
)
_POINT = frozenset({"english", "unspaced", "hebrew", "hindi", "tamil", "irish"})  # whose decimals follow a point

_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATE = re.compile(
    rf"""(?<![\w.,/-])(?:
    (?P<y1>\d{{4}})-(?P<m1>\d{{1,2}})-(?P<d1>\d{{1,2}})
    | (?P<d2>\d{{1,2}})\.\s?(?P<m2>\d{{1,2}})\.\s?(?P<y2>\d{{4}})
    | (?P<a3>\d{{1,2}})/(?P<b3>\d{{1,2}})/(?P<y3>\d{{4}})
    | (?P<d4>\d{{1,2}})(?:st|nd|rd|th|\.|er|º)?\s(?:of\s|de\s)?(?P<n4>{_MONTH})\b\.?(?:,?\s(?:de[l]?\s)?(?P<y4>\d{{4}}))?
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
    """`value`: what it means, or as it stands where it is no quantity (3.11.2). `unit`: one name for each; "clock": in minutes; "ordinal": third."""

    value: float | str
    unit: str | None
    written: str
    start: int


@dataclass(frozen=True, slots=True)
class Date:
    """What is said of a day; None where it is not."""

    year: int | None
    month: int | None
    day: int | None

    def fits(self, other: "Date") -> bool:
        """Whether the other date says all that this one says."""
        pairs = ((self.year, other.year), (self.month, other.month), (self.day, other.day))
        return all(mine is None or mine == theirs for mine, theirs in pairs)


@dataclass(slots=True)
class Facts:
    """`calendar`: names of months and weekdays that stand alone, as numbers: 1 to 12, and 100 to 106."""

    numbers: list[Number] = field(default_factory=list)
    dates: list[tuple[Date, ...]] = field(default_factory=list)  # the readings of each: 3/4/2024 has two
    calendar: set[int] = field(default_factory=set)


def facts(text: str, language: str | None) -> Facts:
    """The numbers, times and dates of a text; `language` decides whether 1.500 is a thousand and a half, or one and a half."""
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
            found.calendar.add(_MONTHS.get(name) or 100 + _DAYS.get(name, 0))
    return found


def _readings(match: re.Match[str]) -> tuple[Date, ...]:
    part = {name[0]: value for name, value in match.groupdict().items() if value}
    year = int(part["y"]) if "y" in part else None
    if "a" in part:
        one, other = int(part["a"]), int(part["b"])
        return (Date(year, one, other), Date(year, other, one))
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
    thousands = "," if language is None or language in _POINT else "."
    if grouped and (separators[0] == thousands):
        return float("".join(groups))
    return float(".".join(groups))


def _spelled(text: str, language: str | None) -> Iterator[Number]:
    """Numbers in words, one to a phrase: "three hundred", "twenty-one"."""
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
