"""What is shown is words: what a Markdown renderer or a browser would make a link, an image or an element becomes plain text.

An address is kept, as a code span, in which nothing is linked. The rules are wider than CommonMark and GitHub's: a character
too many in a code span costs little. Every pattern takes about linear time.
"""

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from html import unescape

from shared.text.invisible import visible

_LOADING = frozenset(
    """a applet area audio base basefont bgsound blink body button canvas col data datalist details dialog embed fencedsandbox fieldset
    font form frame frameset head html iframe image img input isindex keygen label layer legend link listing map marquee math menu
    menuitem meta meter nextid noembed noframes noscript object option optgroup output param picture plaintext portal progress
    script select slot source style summary svg table template textarea title track use video xml xmp""".split()
)  # link, load, run, ask for something, or hide what follows
_FORMATTING = frozenset("b br code del em i ins kbd mark s small strong sub sup u wbr".split())
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
_TOP = "com|org|net|edu|gov|mil|int|info|biz|pro|web|xxx|aero|asia|coop|museum|name|shop|app|dev|xyz|top|site|online|cloud|рф"
_END = '\\s<>`|"\x00\x01'
_ADDRESS = re.compile(
    rf"""
    (?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^{_END}]*
    | (?<![^\W_])(?<![:/])//(?=\S)[^{_END}]*
    | (?<![^\W_])(?:mailto|xmpp|tel|sms|data|javascript|vbscript|file|blob|view-source):[^{_END}]+
    | (?<![^\W_])www\.[^{_END}]+
    | (?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+(?:[:/?#][^{_END}]*)?
    | (?<![^\W_])(?:[^\W_](?:[\w-]{{0,62}}[^\W_])?\.){{1,9}}(?:[A-Za-z]{{2}}|{_TOP}|xn--[A-Za-z0-9-]+)(?![^\W_]|-\w)(?:[:/?#][^{_END}]*)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_RISKY = re.compile(rf"<|\]\(|\]:|{_ADDRESS.pattern}", re.VERBOSE | re.IGNORECASE)
_AFTER = ".,;:!?'*_~)]}”’»"  # ends a sentence or a clause rather than an address
_LIKE_ADDRESS = re.compile("[:/.#?&%@\x00]")


def plain(text: str, before: str = "") -> str:
    """A sentence in which nothing is linked or loaded when it is rendered, alone or with others. `before`: what its line begins with.

    Code spans of one line and closed fences stay as they are, and mean the same whatever comes before and after.
    """
    text = visible(re.sub(r"\r\n?|[\x0b\x0c\x85]", "\n", text))
    text = "".join(part if fenced else _words(part) for fenced, part in _parts(text))
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
    """The text in parts: whether each is a fenced block of code that ends beyond doubt, and its lines."""
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
    """The line after the block that opens in this one; 0 when none does, or a renderer may see it end elsewhere."""
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


def _words(text: str) -> str:
    """What is no fenced block, made plain."""
    code: list[str] = []

    def hold(span: str) -> str:
        code.append(span)
        return f"\x00{len(code) - 1}\x01"

    def address(found: str) -> str:
        kept = found.rstrip(_AFTER)
        if kept.count("(") > kept.count(")") and found[len(kept) :].startswith(")"):
            kept += ")"
        return f"{hold(f'`{kept}`')}{found[len(kept) :]}" if kept else found

    text = "".join(_hold_code(line, hold) for line in _LINE.findall(text))
    text = re.sub("~{3,}", "", text)
    text = _TAG.sub(lambda found: "" if found[1].lower() in _LOADING else found[0], text)
    text = _AUTOLINK.sub(lambda found: hold(_ticked(found[1])), text)
    text = _OPENED.sub(lambda found: _element(found, hold), text)
    for _ in range(3):  # an image within a link, and one deeper
        text = _LINK.sub(lambda found: _link(found, hold), text)
    text = _HALF_LINK.sub("] ", text)
    text = _DEFINED.sub(_definition, text)
    text = _WRITTEN.sub(lambda found: _written(found[0], hold), text)
    text = _ADDRESS.sub(lambda found: address(found[0]), text)
    return "".join(_restore(line, code) for line in _LINE.findall(text))


def _hold_code(line: str, hold: Callable[[str], str]) -> str:
    """The line with its code spans held; ticks that close nothing are no ticks any more."""
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


def _element(found: re.Match[str], hold: Callable[[str], str]) -> str:
    """A tag without attributes is a name in angle brackets; anything else that begins one is none with a space in it."""
    inner, name = found[1], (found[2] or "").lower()
    if not inner or name in _LOADING:
        return found[0].replace("<", "< ")
    before = _line_before(found)
    if _LETTER.search(before) and (name in _FORMATTING or before[-1:].isalnum()):  # a line that begins with one is HTML
        return found[0]  # List<String>
    return hold(f"`<{inner}>`")


def _link(found: re.Match[str], hold: Callable[[str], str]) -> str:
    image, words, target = found.groups()
    if image:
        return words
    if not _LIKE_ADDRESS.search(target):
        return f"[{words}] {found[0][len(words) + 2 :]}"  # funcs[0](x)
    held = target if "\x00" in target else hold(_ticked(target))
    return held if words.strip() in ("", target) else f"{words} {held}"


def _definition(found: re.Match[str]) -> str:
    """[name]: address, which begins its line, or ends what began a line before: x: list[int]: stays."""
    line = _line_before(found) + found[0]
    first = re.search(r"(?<!\\)\[", line)
    if first and _LETTER.search(line, 0, first.start()):
        return found[0]
    name = found[1] or ""
    return f"{name}:" if name.strip("\\ ") == name != "" else found[0].replace("]", "] ")


def _written(found: str, hold: Callable[[str], str]) -> str:
    """Words in which entities or escapes write an address are shown as they are written."""
    if "&" not in found and "\\" not in found:
        return found
    read = unescape(_ESCAPE.sub(r"\1", found))
    return hold(_ticked(found)) if read != found and _ADDRESS.search(read) else found


def _line_before(found: re.Match[str]) -> str:
    text = found.string
    return _HELD.sub("", text[text.rfind("\n", 0, found.start()) + 1 : found.start()])


def _ticked(words: str) -> str:
    return f"`{words}`"


def _restore(line: str, code: list[str]) -> str:
    """The line with its code spans back. In a row of a table their bars would divide them: beside an address they are taken apart."""
    spans = [code[int(number)] for number in _HELD.findall(line)]
    if any("|" in span for span in spans) and any(_RISKY.search(span) for span in spans):
        spans = [_apart(span) if "|" in span else span for span in spans]
    done = ""
    for words, span in zip(_HELD.split(line)[::2], [*spans, ""], strict=True):
        done += words
        if span and done.endswith(("`", "\\")):
            done += " "
        done += span
    return done


def _apart(span: str) -> str:
    """A code span → one for each part between bars."""
    ticks = span[: len(span) - len(span.lstrip("`"))]
    inner = span[len(ticks) : -len(ticks)]
    gap, parts = " " if "`" in inner else "", inner.split("|")
    return "|".join(f"{ticks}{gap}{part}{gap}{ticks}" if part.strip() else part for part in parts)
