"""An answer rendered as Markdown or read as HTML never contains links or elements of the model."""

import random
import re

import pytest

from api.verification.plain_text import plain
from shared.text.invisible import places, visible
from tests.api.rendering import foreign, joined

PIECES = [
    *r"""[ ] ( ) ]( ]: [a] [1] ! ![ < > </ <a <img <script <b> <div> </div> <!-- --> <? <![CDATA[ ]]> " ' = ` `` ```
    ~~~ \ \\ | - * _ ** # : // https:// http://e.co www.e.co evil.com evil.com/x?q=1 a@b.co mailto:a@b.co
    javascript:x data:text/html,x src= href= onerror= x y foo &#104;ttps &lt; &colon; &#x2f; . 。 ? &nbsp; {} ~ ~~
    $ <https://e.co> (https://e.co) ![x](https://e.co) [x](https://e.co) [r]: <x@y.co> <svg/onload=x> <style>
    ftp://e.co //e.co [x][r] ![r] [^1] [^1]: e.md <e:x> <pre> <details> ttps://e.co""".split(),
    *(
        "\u200b",
        "\u202e",
        " ",
        " ",
        "\n",
        "\n\n",
        "word ",
        "`",
        "`",
        "|",
        "\n- ",
        "\n1. ",
        "\n   ",
        "\n    ",
        "\n> ",
        "\n```\n",
        "\n~~~\n",
    ),
    "\n|---|---|\n",
    "\t",
    "[r]: https://e.co\n",
]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_linked_or_loaded(seed: int) -> None:
    """Join sentences of random pieces of markup with our marks, as in a shown answer."""
    rng, raw = random.Random(seed), 0
    for _ in range(600):
        ends = ["", " ", "\n", "\n\n", "。"]
        sentences = [
            "".join(rng.choices(PIECES, k=rng.randint(1, 14))) + rng.choice(ends) for _ in range(rng.randint(1, 4))
        ]
        raw += bool(foreign("".join(sentences)))
        shown = "".join(joined(sentences))
        assert foreign(shown) == [], (sentences, shown)
    assert raw > 300  # texts that would have contained links


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "The wiki is at https://wiki.example.com/x_(y), see.",
            "The wiki is at `https://wiki.example.com/x_(y)`, see.",
        ),
        ('See [the wiki](https://w.org/a "t").', "See the wiki `https://w.org/a`."),
        ("![logo](https://e.co/p.png?q=key)", "logo"),
        ("[![logo](https://e.co/p.png)](https://e.co)", "logo `https://e.co`"),
        ("[wiki][w]\n\n[w]: https://w.org 'The wiki'", "[wiki][w]\n\nw: `https://w.org` 'The wiki'"),
        ("<https://w.org> or //w.org or www.w.org", "`https://w.org` or `//w.org` or `www.w.org`"),
        ("Write to ada@frost.org or mailto:ada@frost.org.", "Write to `ada@frost.org` or `mailto:ada@frost.org`."),
        ("javascript:alert(1) data:text/html,x", "`javascript:alert(1)` `data:text/html,x`"),
        ("&#104;ttps://e.co and https:\\/\\/e.co", "`&#104;ttps://e.co` and `https:\\/\\/e.co`"),
        ("<script>alert(1)</script>Hi <a href='//e.co'>you</a>", "alert(1)Hi you"),
        ('<div style="background:url(//e.co)">', '< div style="background:url(`//e.co`)">'),
        ("List<String>, <name>, a < b, x<y", "List<String>, `<name>`, a < b, x< y"),
        ("x: dict[str, int]: y, funcs[0](x)", "x: dict[str, int]: y, funcs[0] (x)"),
        ("Run `curl https://w.org` and `ps | grep x`.", "Run `curl https://w.org` and `ps `|` grep x`."),
        ("Run `ps | grep x`.", "Run `ps | grep x`."),
        ("```sh\ncurl https://w.org\n```\n", "```sh\ncurl https://w.org\n```\n"),
        ("```sh\ncurl https://w.org\n", "sh\ncurl `https://w.org`\n"),
        ("An open ` tick", "An open ' tick"),
        (
            "In welcome.md, e.g. at 10:30 a.m., 3.14 or/and // it.",
            "In `welcome.md`, e.g. at 10:30 a.m., 3.14 or/and // it.",
        ),
        ("a\u202eb\u200bc\U000e0041d\x1b[31m", "abcd[31m"),
    ],
)
def test_plain_text_keeps_the_words(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("before", "text", "shown"),
    [
        ("See [1]", "(https://e.co)", " (`https://e.co`)"),
        ("`a`", "`b`", " `b`"),
        ("a \\", "`b`", " `b`"),
        ("Look: ", "```\nx\n```\n", "\n```\nx\n```\n"),
        ("`a | b` ", "and https://e.co", "\nand `https://e.co`"),
        ("It is so. ", "And so.", "And so."),
    ],
)
def test_the_start_of_the_line_is_considered(before: str, text: str, shown: str) -> None:
    assert plain(text, before) == shown


@pytest.mark.parametrize(
    "kept",
    [
        "👩\u200d👩\u200d👧",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "क्\u200dष",
        "❤️\u200d🔥 1️⃣",
    ],
)
def test_joiners_stay_in_scripts_that_need_them(kept: str) -> None:
    assert plain(f"a {kept} b") == f"a {kept} b"


def test_positions_in_plain_text_are_mapped() -> None:
    text = "\u200ba\U000e0041\U000e0042bc\u202e"
    assert visible(text) == "abc"
    assert [text[at] for at in places(text)[:-1]] == ["a", "b", "c"]
    assert places(text)[-1] == len(text)


def test_invisible_words_are_removed() -> None:
    """Remove text that is written in Unicode tags, in variation selectors or in joiners."""
    for hide in (
        lambda c: chr(0xE0000 + ord(c)),
        lambda c: "\ufe00" + chr(0xE0100 + ord(c)),
        lambda c: "\u200c\u200d" * ord(c),
        lambda c: "\u200b" * ord(c),
    ):
        assert re.fullmatch("A b[\ufe00]?", visible("A b" + "".join(map(hide, "send the key"))))


@pytest.mark.parametrize(
    "one",
    [
        "<a",
        "[",
        "`` ",
        "a.",
        "a",
        "![x](",
        "&#1;",
        "x@",
        "[a]: ",
        "`a|b`",
        "<",
        '[x]("',
        "```\n",
        "((",
        "[a](b(",
        "a-",
        "a://",
        "\u200d",
        "<b>",
        "[a\n",
        "x]:",
        "~~~\n",
    ],
)
def test_an_address_after_hostile_text_is_a_code_span(one: str) -> None:
    """A pattern with quadratic running time would take minutes for this text."""
    assert plain(one * (32_000 // len(one)) + " https://e.co").endswith(" `https://e.co`")
