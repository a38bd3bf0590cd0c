"""Plain text: links, images and elements of Markdown and HTML become words before an answer is shown.

An address becomes a code span, in which no renderer makes a link. The rules are wider than CommonMark's and GitHub's:
one character too many in a code span costs little. Every pattern takes about linear time.
"""

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

from shared.text.invisible import visible
from shared.text.word_lists import read_word_lists

_LISTS = read_word_lists(Path(__file__).with_suffix(".txt"))
_LOADING, _FORMATTING = frozenset(_LISTS["loading"]), frozenset(_LISTS["formatting"])
_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`\n]*$)|~{3,})[^\n]*", re.MULTILINE)
_FENCE_LIKE = re.compile(r"\s*(?:`{3,}|~{3,})")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_TICKS = re.compile("`+")
_HELD = re.compile("\x00(\\d+)\x01")  # stands for a code span

_LETTER = re.compile(r"[^\W\d_]")
_TAG = re.compile(r"</?([A-Za-z][\w:-]*)(?=[\s/>])[^<>]*>")
_AUTOLINK = re.compile(r"<((?:[A-Za-z][A-Za-z0-9+.-]{0,31}:(?!:)|[^\s<>@]{1,64}@)[^\s<>\x00\x01]*)>")
_OPENED = re.compile(r"<(?:(/?([A-Za-z][\w-]*) ?/?)>|(?=[A-Za-z/!?]|\Z))")
_LINK = re.compile(
    r"(!?)\[([^\[\]]*)\]"
    r"\(\s*([^\s()]*(?:\([^\s()]*\)[^\s()]*)*)"
    r"""(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)"""
)
_HALF_LINK = re.compile(r"\](?=\()")
_DEFINED = re.compile(r"\[([^\[\]\n]{0,999})\]:|\]:")
_WRITTEN = re.compile(r"[^\s\x00\x01]+")
_ESCAPE = re.compile(r"\\([!-/:-@\[-_{-~])")
_TOP = "|".join(_LISTS["domains"])
_END = '\\s<>`|"\x00\x01'
_ADDRESS = re.compile(
    rf"""
    (?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^{_END}]*
    | (?<![^\W_])(?<![:/])//(?=\S)[^{_END}]*
    | (?<![^\W_])(?:mailto|xmpp|tel|sms|data|javascript|vbscript|file|blob|view-source):[^{_END}]+
    | (?<![^\W_])www\.[^{_END}]+
    | (?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+(?:[:/?#][^{_END}]*)?
    | (?<![^\W_])(?:[^\W_](?:[\w-]{{0,62}}[^\W_])?\.){{1,9}}(?:[A-Za-z]{{2}}|{_TOP}|xn--[A-Za-z0-9-]+)(?![^\W_]|-\w)
      (?:[:/?#][^{_END}]*)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_RISKY = re.compile(rf"<|\]\(|\]:|{_ADDRESS.pattern}", re.VERBOSE | re.IGNORECASE)
_AFTER = ".,;:!?'*_~)]}”’»"  # ends a sentence or a clause rather than an address
_LIKE_ADDRESS = re.compile("[:/.#?&%@\x00]")


def plain(text: str, before: str = "") -> str:
    """Return a sentence in which a renderer links and loads nothing, alone or among others.

    `before`: the beginning of its line. Code spans of one line and closed fences stay as they are, and mean the same
    with any text before and after.
    """
    text = visible(re.sub(r"\r\n?|[\x0b\x0c\x85]", "\n", text))
    text = "".join(part if fenced else _plain_words(part) for fenced, part in _parts(text))
    if not before or not text:
        return text
    first = text.partition("\n")[0]
    if (
        _FENCE.match(text)
        or before.endswith(("```", "~~~"))
        or ("`" in first and "`" in before and "|" in before + first)
    ):
        return "\n" + text.lstrip(" ")  # as a row of a table the bar would divide a code span
    return " " + text if before[-1] in "]`\\" and not text[0].isspace() else text


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the text in parts, each with True for a fenced block of code that ends beyond doubt."""
    lines = _LINE.findall(text)
    words, at = "", 0
    while at < len(lines):
        if end := _fence_end(lines, at):
            yield False, words
            yield True, "".join(lines[at:end])
            words, at = "", end
        else:
            words, at = words + lines[at], at + 1
    yield False, words


def _fence_end(lines: list[str], at: int) -> int:
    """Return the line after the block that opens at `at`; 0 if none opens, or if a renderer may end it elsewhere."""
    opened = _FENCE.fullmatch(lines[at].rstrip("\n"))
    if not opened:
        return 0
    indent, fence = opened.groups()
    for end in range(at + 1, len(lines)):
        line = lines[end].rstrip()
        if line and not line.startswith((indent, "\t")):
            return 0  # a list item that the block is in would end
        if _FENCE_LIKE.match(line):
            ticks = line.removeprefix(indent)
            return end + 1 if len(ticks) >= len(fence) and set(ticks) == {fence[0]} else 0
    return 0


def _plain_words(text: str) -> str:
    """Make text outside fenced blocks plain."""
    code: list[str] = []

    def hold(span: str) -> str:
        """Put a placeholder in the place of a code span."""
        code.append(span)
        return f"\x00{len(code) - 1}\x01"

    def hold_address(match: re.Match[str]) -> str:
        address = match[0].rstrip(_AFTER)
        if address.count("(") > address.count(")") and match[0][len(address) :].startswith(")"):
            address += ")"
        return hold(_ticked(address)) + match[0][len(address) :] if address else match[0]

    text = "".join(_hold_code(line, hold) for line in _LINE.findall(text))
    text = re.sub("~{3,}", "", text)
    text = _TAG.sub(lambda match: "" if match[1].lower() in _LOADING else match[0], text)
    text = _AUTOLINK.sub(lambda match: hold(_ticked(match[1])), text)
    text = _OPENED.sub(lambda match: _element(match, hold), text)
    for _ in range(3):  # an image within a link, and one deeper
        text = _LINK.sub(lambda match: _link(match, hold), text)
    text = _HALF_LINK.sub("] ", text)
    text = _DEFINED.sub(_definition, text)
    text = _WRITTEN.sub(lambda match: _written(match[0], hold), text)
    text = _ADDRESS.sub(hold_address, text)
    return "".join(_restore(line, code) for line in _LINE.findall(text))


def _hold_code(line: str, hold: Callable[[str], str]) -> str:
    """Replace the line's code spans by placeholders, and remove ticks that have no partner."""
    runs = list(_TICKS.finditer(line))
    alike = defaultdict[int, list[int]](list)
    for number, run in enumerate(runs):
        alike[len(run[0])].append(number)
    done, at = "", 0
    for number, run in enumerate(runs):
        if run.start() < at:
            continue
        done += line[at : run.start()]
        same = alike[len(run[0])]
        if (after := bisect(same, number)) < len(same):
            closing = runs[same[after]]
            done, at = done.rstrip("\\") + hold(line[run.start() : closing.end()]), closing.end()  # \` opens nothing
        else:
            done, at = done + ("'" * len(run[0]) if len(run[0]) < 3 else ""), run.end()
    return done + line[at:]


def _element(match: re.Match[str], hold: Callable[[str], str]) -> str:
    """`<name>` becomes code; any other opening `<` gets a space so that no renderer sees a tag."""
    inner, name = match[1], (match[2] or "").lower()
    if not inner or name in _LOADING:
        return match[0].replace("<", "< ")
    before = _line_before(match)
    if _LETTER.search(before) and (name in _FORMATTING or before[-1:].isalnum()):
        return match[0]  # List<String>; a line that begins with a tag is HTML
    return hold(f"`<{inner}>`")


def _link(match: re.Match[str], hold: Callable[[str], str]) -> str:
    image, words, target = match.groups()
    if image:
        return words
    if not _LIKE_ADDRESS.search(target):
        return f"[{words}] {match[0][len(words) + 2 :]}"  # funcs[0](x)
    held = target if "\x00" in target else hold(_ticked(target))
    return held if words.strip() in ("", target) else f"{words} {held}"


def _definition(match: re.Match[str]) -> str:
    """Break `[name]: address` at the start of a line, or at the end of a name that began before; `list[int]:` stays."""
    line = _line_before(match) + match[0]
    first = re.search(r"(?<!\\)\[", line)
    if first and _LETTER.search(line, 0, first.start()):
        return match[0]
    name = match[1] or ""
    return f"{name}:" if name.strip("\\ ") == name != "" else match[0].replace("]", "] ")


def _written(word: str, hold: Callable[[str], str]) -> str:
    """Make a word a code span if entities or escapes in it write an address."""
    if "&" not in word and "\\" not in word:
        return word
    read = unescape(_ESCAPE.sub(r"\1", word))
    return hold(_ticked(word)) if read != word and _ADDRESS.search(read) else word


def _line_before(match: re.Match[str]) -> str:
    text = match.string
    return _HELD.sub("", text[text.rfind("\n", 0, match.start()) + 1 : match.start()])


def _ticked(words: str) -> str:
    return f"`{words}`"


def _restore(line: str, code: list[str]) -> str:
    """Put the line's code spans back; on a line with an address, divide them at bars, as a row of a table would."""
    spans = [code[int(number)] for number in _HELD.findall(line)]
    if any("|" in span for span in spans) and any(_RISKY.search(span) for span in spans):
        spans = [_divided(span) if "|" in span else span for span in spans]
    done = ""
    for words, span in zip(_HELD.split(line)[::2], [*spans, ""], strict=True):
        done += words
        if span and done.endswith(("`", "\\")):
            done += " "
        done += span
    return done


def _divided(span: str) -> str:
    """Divide a code span into one for each part between bars."""
    ticks = span[: len(span) - len(span.lstrip("`"))]
    inner = span[len(ticks) : -len(ticks)]
    gap, parts = " " if "`" in inner else "", inner.split("|")
    return "|".join(f"{ticks}{gap}{part}{gap}{ticks}" if part.strip() else part for part in parts)
