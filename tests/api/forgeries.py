"""True and forged citations for answers, made from real documents without any code of the verifier.

A case is one sentence of an answer with one citation. `true_cases` reword a sentence of a document; `forged_cases`
alter the citation, or change the sentence so that it differs from the quote.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENTENCE = re.compile(
    r"(?:(?<=\n\n)|(?<=[a-z)`][.!?]\s))[A-Z](?:[^.!?\n|*<>\[\]#]|\n(?![\n|*#-])|(?<=\w)\.(?=\w)){25,260}?(?<=[a-z)`])[.!?](?=\s)"
)
NUMBER = re.compile(r"(?<![\w.,:/-])\d+(?:[.,]\d+)*(?![\w:/-]|[.,]\d)")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b(?! [A-Z])")
IDENTIFIER = re.compile(r"\b(?:[A-Z]{2,}(?:_[A-Z]+)+|[a-z]+_[a-z_]+|[a-z]+\.(?:md|py|html|txt))\b")
WINDOW = 300  # characters of a passage before and after its sentence


@dataclass(frozen=True)
class Case:
    """A sentence of an answer, `statement`, and the sentence that it cites: document[start:end].

    `citation`: altered fields of the citation that a model would give. `cites`: False if it gives none. `gone`:
    the change of the document before the check: "deleted", "changed" or empty.
    """

    kind: str
    document: str
    start: int
    end: int
    statement: str
    citation: dict[str, Any] = field(default_factory=dict)
    alter: Callable[[str], str] | None = None
    cites: bool = True
    gone: str = ""

    def quote(self, documents: dict[str, str]) -> str:
        return documents[self.document][self.start : self.end]


def read_documents(root: Path, more: Sequence[Path] = ()) -> dict[str, str]:
    """Read old copies of the project's own documents, which keep the test stable, and further documents."""
    paths = sorted((root / "tests" / "data" / "forgeries").glob("*.md"))
    paths += [
        path
        for path in sorted((root / "tests" / "data" / "questions").iterdir())
        if path.suffix in (".md", ".txt", ".rst")
    ]
    documents = {str(path.relative_to(root)): path.read_text() for path in paths if path.is_file()}
    return documents | {path.name: path.read_text() for path in more}


def quotable(documents: dict[str, str]) -> list[tuple[str, int, int, str]]:
    """Return (document, start, end, sentence) for each sentence of plain prose on one line."""
    return [
        (name, match.start(), match.end(), match[0])
        for name, text in documents.items()
        for match in SENTENCE.finditer(text)
    ]


def true_cases(documents: dict[str, str], rng: random.Random) -> list[Case]:
    cases = []
    for name, start, end, text in quotable(documents):
        for kind, statement in rewordings(text):
            cases.append(Case(kind, name, start, end, statement))
    rng.shuffle(cases)
    return cases


def rewordings(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) for each rewording of the sentence that keeps its meaning."""
    text = " ".join(text.split())
    yield "verbatim", text
    yield "as an item", f"- {text}"
    first = text.split()[0]
    if first in (
        "The",
        "A",
        "An",
        "It",
        "They",
        "When",
        "Where",
        "Each",
        "Every",
        "One",
        "Two",
        "Files",
        "Documents",
        "Only",
    ):
        yield "introduced", f"According to the documents, {text[0].lower()}{text[1:]}"
    if "cannot" in text:
        yield "contracted", text.replace("cannot", "can't")
    if " is not " in text:
        yield "contracted", text.replace(" is not ", " isn't ")
    if " does not " in text:
        yield "contracted", text.replace(" does not ", " doesn't ")
    head, comma, tail = text.rpartition(", ")
    if comma and len(head.split()) > 5 and len(tail.split()) > 2 and not re.search(r"\b(?:not|no|never)\b", tail):
        yield "shortened", f"{head}."
    if re.search(r"\d,\d{3}\b", text):
        yield "without separators", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    if re.search(r"\d percent", text):
        yield "percent sign", re.sub(r"(\d) percent", r"\1%", text)
    elif re.search(r"\d ?%", text):
        yield "percent", re.sub(r"(\d) ?%", r"\1 percent", text)
    digits = {"2": "two", "3": "three", "4": "four", "5": "five", "10": "ten", "20": "twenty"}
    for figure, word in digits.items():
        if re.search(rf"(?<![\w.,:/$€-]){figure} [a-z]", text):
            yield "spelled out", re.sub(rf"(?<![\w.,:/$€-]){figure}(?= [a-z])", word, text)
        if re.search(rf"\b{word} [a-z]", text) and not re.search(rf"\b{word} (?:hundred|thousand)", text):
            yield "in figures", re.sub(rf"\b{word}(?= [a-z])", figure, text)
    words = text.split()
    if len(words) > 6:
        words[3] = f"**{words[3]}**"
        yield "emphasised", " ".join(words)


def forged_cases(documents: dict[str, str], rng: random.Random) -> list[Case]:
    """Return citations of other places or of invented words, and sentences that differ from their quote."""
    all_ = quotable(documents)
    names = sorted({match for text in documents.values() for match in NAME.findall(text)})
    identifiers = sorted({match for text in documents.values() for match in IDENTIFIER.findall(text)})
    cases = []
    for name, start, end, text in all_:
        for kind, statement in falsifications(text, documents[name], names, identifiers, rng):
            cases.append(Case(kind, name, start, end, statement))
        for kind, citation, alter in misquoted(rng):
            cases.append(Case(kind, name, start, end, text, citation, alter))
        cases.append(Case("no citation", name, start, end, text, cites=False))
        cases.append(Case("deleted document", name, start, end, text, gone="deleted"))
        cases.append(Case("changed document", name, start, end, text, gone="changed"))
        other = rng.choice([one for one in all_ if one[0] != name])
        cases.append(Case("unrelated citation", name, start, end, other[3]))
    rng.shuffle(cases)
    return cases


def misquoted(rng: random.Random) -> Iterator[tuple[str, dict[str, Any], Callable[[str], str] | None]]:
    place = rng.randrange(1, 20)

    def letter(text: str) -> str:
        return text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]

    yield "wrong index", {"search_result_index": "next"}, None
    yield "index out of range", {"search_result_index": 10_000}, None
    yield "negative index", {"search_result_index": -1}, None
    yield "blocks out of range", {"start_block_index": 500, "end_block_index": 501}, None
    yield "blocks reversed", {"end_block_index": 0}, None
    yield "one letter altered", {}, letter
    yield "one letter left out", {}, lambda text: text[:place] + text[place + 1 :]
    yield "one letter more", {}, lambda text: text[:place] + "q" + text[place:]
    yield "another case", {}, str.upper
    yield "invented quote", {}, lambda text: "It says so in the documents."


def falsifications(
    text: str, document: str, names: Sequence[str], identifiers: Sequence[str], rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) for each small change of the sentence that alters its meaning."""
    text = " ".join(text.split())
    if numbers := list(NUMBER.finditer(text)):
        number = rng.choice(numbers)
        digits = number[0]
        place = rng.choice([i for i, c in enumerate(digits) if c.isdigit()])
        other = rng.choice([d for d in "123456789" if d != digits[place]])
        changed = digits[:place] + other + digits[place + 1 :]
        if changed not in text:
            yield "number changed", text[: number.start()] + changed + text[number.end() :]
        yield "number grown", text[: number.start()] + digits + "7" + text[number.end() :]
    for unit, wrong in (
        ("seconds", "minutes"),
        ("minutes", "hours"),
        (" s ", " h "),
        (" ms", " s"),
        ("euros", "dollars"),
        ("metres", "feet"),
        (" MB", " GB"),
        ("millimetres", "metres"),
        ("kilograms", "grams"),
        ("days", "weeks"),
        ("weeks", "months"),
        ("million", "billion"),
        ("hour", "day"),
    ):
        if re.search(rf"\d{re.escape(unit) if unit[0] == ' ' else ' ' + unit}\b", text):
            yield "unit changed", text.replace(unit, wrong, 1)
    for affirmed, denied in (
        (" is ", " is not "),
        (" are ", " are not "),
        (" can ", " cannot "),
        (" was ", " was not "),
        (" may ", " may not "),
    ):
        if affirmed in text and not re.search(r"\b(?:not|no|nothing|never|without|cannot|none|only|unless)\b", text):
            yield "negated", text.replace(affirmed, denied, 1)
            break
    for denied, affirmed in (
        (" is not ", " is "),
        (" are not ", " are "),
        (" cannot ", " can "),
        (" does not ", " does "),
        (" never ", " always "),
        (" may not ", " may "),
    ):
        if denied in text:
            yield "negation left out", text.replace(denied, affirmed, 1)
    if (found := list(NAME.finditer(text))) and (others := [n for n in names if n not in document]):
        name = rng.choice(found)
        yield "name swapped", text[: name.start()] + rng.choice(others) + text[name.end() :]
    if (found := list(IDENTIFIER.finditer(text))) and (others := [n for n in identifiers if n not in document]):
        name = rng.choice(found)
        yield "identifier swapped", text[: name.start()] + rng.choice(others) + text[name.end() :]
