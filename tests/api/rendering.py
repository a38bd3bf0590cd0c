"""Render answers as clients do: Markdown by markdown-it in three dialects, with HTML and guessed links."""

from collections.abc import Sequence
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from api.verification.citations import with_marks, without_marks
from api.verification.plain_text import plain

_OPTIONS = {"html": True, "linkify": True}
_DIALECTS = [MarkdownIt(name, _OPTIONS) for name in ("commonmark", "gfm-like", "js-default")]
_DIALECTS[0].enable("linkify")
OURS = {("code", "class"), ("ol", "start"), ("th", "style"), ("td", "style")}  # attributes that Markdown produces
LOADING = set(
    """a area audio base body button details dialog embed form frame frameset head html iframe image img input link math
    meta noscript object option picture plaintext script select source style svg template textarea title track video
    xmp""".split()
)


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in LOADING or any((tag, name) not in OURS for name, _ in attributes):
            self.found.append(self.get_starttag_text() or tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(f"<!--{data}")

    def handle_decl(self, decl: str) -> None:
        self.found.append(f"<!{decl}")

    def handle_pi(self, data: str) -> None:
        self.found.append(f"<?{data}")


def foreign(text: str) -> list[str]:
    """Return the links, images and other elements that any of the dialects renders from the text."""
    found = []
    for dialect in _DIALECTS:
        reader = _Elements()
        try:
            reader.feed(dialect.render(text))
            reader.close()
        except AssertionError as error:  # no answer may contain a broken declaration either
            found.append(str(error))
        found += reader.found
    return found


def joined(sentences: Sequence[str]) -> list[str]:
    """Return the sentences as Verification shows them, every second one with a mark."""
    shown: list[str] = []
    for number, text in enumerate(sentences):
        line = "".join(shown).rpartition("\n")[2]
        words = without_marks(plain(without_marks(text), line))
        shown.append(with_marks(words, [1] if number % 2 == 0 else []))
    return shown
