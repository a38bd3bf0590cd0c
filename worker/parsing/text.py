"""Text formats, kept verbatim (Markdown, reStructuredText, text, CSV, code), and their encodings."""

import codecs
import contextlib
import re
from collections.abc import Iterator

from shared.errors import UnreadableError
from shared.models import Heading, Parsed

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE = 1 << 16
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Without those that occur in text: tab, line ends, form feed, backspace (overstruck manuals), escape (coloured logs).
CONTROLS = bytes(set(range(32)) - {7, 8, 9, 10, 11, 12, 13, 27} | {127})

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
# Lines above a row of dashes that are not headings: lists, quotes, table rows, HTML, indented code.
NOT_SETEXT = re.compile(r"[ \t]*$|    |\t| {0,3}(?:[-*+>|<]|\d{1,9}[.)] |#)")
FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?\n)??\1[ \t]*(?:\n|\Z)", re.S)
FRONT_TITLE = re.compile(r"^title[ \t]*[:=](.+)$", re.M)
RST_LINE = re.compile(r"([!-/:-@\[-`{-~])\1+[ \t]*$")
RST_ROLE = re.compile(r":[\w.+:-]+:`([^`<]*?)(?:\s*<[^`]*>)?`|``(.+?)``|`([^`<]+?)(?:\s*<[^`]*>)?`_{0,2}")
LONGEST_HEADING = 1000  # a longer line is prose, and the patterns below would take minutes
MARKDOWN_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def parse(data: bytes, name: str, format: str, max_text_chars: int) -> Parsed:
    """Decode a text file; only line ends and characters that cannot be stored are changed."""
    text = decode(data, name)
    if format == "markdown":
        headings = markdown_headings(text)
        return Parsed(text, format, "markdown", front_matter_title(text) or first_title(headings), headings)
    if format == "rst":
        headings = rst_headings(text)
        return Parsed(text, format, "text", first_title(headings), headings)
    return Parsed(text, format, "code" if format == "code" else "text")


def decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Decode by byte order mark, then as `declared`, UTF-8, cp1252, or by charset-normalizer."""
    if unicode := unicode_encoding(data):
        encoding, start = unicode
        return storable(data[start:].decode(encoding, "replace"))
    sample = data[:SAMPLE]
    if len(sample.translate(None, CONTROLS)) < 0.95 * len(sample):
        raise not_text(name)
    if declared:
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            return storable(data.decode(declared))
    try:
        return storable(data.decode("utf-8"))
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    # A UTF-8 file with a few broken bytes stays UTF-8: cp1252 would garble the rest.
    broken = text.count("\ufffd")
    if broken * 4 < sum(character > "\x7f" for character in text):
        return storable(text)
    return storable(decode_legacy(data, name))


def decode_legacy(data: bytes, name: str) -> str:
    # Western European text is ASCII with a few accents; other code pages have most letters above ASCII.
    letters = sum(byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" for byte in data[:SAMPLE])
    high = sum(byte > 127 for byte in data[:SAMPLE])
    if high < letters + 8:
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("cp1252")
    from charset_normalizer import from_bytes

    best = from_bytes(data[:SAMPLE]).best()
    if best is None:
        raise not_text(name)
    return data.decode(best.encoding, "replace")


def unicode_encoding(data: bytes) -> tuple[str, int] | None:
    """Return the encoding and the length of the byte order mark; without one, UTF-16 or UTF-32 by its zero bytes."""
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return encoding, len(mark)
    sample = data[: SAMPLE // 4 * 4]
    if len(sample) < 4 or b"\0" not in sample:
        return None
    shares = [sample[lane::4].count(0) / max(1, len(sample[lane::4])) for lane in range(4)]
    even, odd = (shares[0] + shares[2]) / 2, (shares[1] + shares[3]) / 2
    for encoding, matches in (
        ("utf-32-le", min(shares[1:]) > 0.7 and shares[0] < 0.1),
        ("utf-32-be", min(shares[:3]) > 0.7 and shares[3] < 0.1),
        ("utf-16-le", odd > 0.3 and even < 0.05),
        ("utf-16-be", even > 0.3 and odd < 0.05),
    ):
        if matches:
            return encoding, 0
    return None


def not_text(name: str) -> UnreadableError:
    return UnreadableError(f"{name} does not look like text; save it as PDF, DOCX or plain text and drop that instead.")


def storable(text: str) -> str:
    """Replace line ends by \\n, and NUL and lone surrogates, which PostgreSQL refuses, by U+FFFD."""
    return UNSTORABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_title(title: str | None) -> str | None:
    """Return the title on one line, None if it is empty, too long, a file name or a program's placeholder."""
    title = " ".join((title or "").split())
    if not any(character.isalnum() for character in title) or len(title) > 300:
        return None
    if re.match(r"(?i)(microsoft (word|powerpoint|excel) - |(powerpoint|microsoft powerpoint) presentation$)", title):
        return None
    if re.match(r"(?i)((untitled|document|presentation|book|workbook|slide|sheet|(no )?title|home)[ _-]?\d*$)", title):
        return None
    if re.search(r"(?i)\.(docx?|pptx?|xlsx?|pdf|indd|tex|dvi|ps|qxd|rtf|odt|pages|html?|md|txt)$", title):
        return None
    return title


def first_title(headings: tuple[Heading, ...]) -> str | None:
    """Return the first heading if its level is 1."""
    return clean_title(headings[0].title) if headings and headings[0].level == 1 else None


def front_matter_title(text: str) -> str | None:
    front = FRONT_MATTER.match(text)
    title = FRONT_TITLE.search(front[2] or "") if front else None
    return clean_title(title[1].strip().strip("\"'")) if title else None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield (offset, line without its end) of each line; only \\n ends a line."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def markdown_headings(text: str) -> tuple[Heading, ...]:
    """Return the ATX and setext headings outside of fences, HTML comments and front matter."""
    headings: list[Heading] = []
    front = FRONT_MATTER.match(text)
    begin = front.end() if front else 0
    fence = ""
    in_comment = False
    before, before_start, before_that = "", 0, ""
    for start, line in lines_of(text):
        if start < begin:
            continue
        if in_comment:
            in_comment = "-->" not in line
            line = ""
        elif fence:
            closing = FENCE.match(line)
            if closing and closing[1].startswith(fence) and not closing[2].strip():
                fence = ""
            line = ""
        elif (opening := FENCE.match(line)) and not (opening[1][0] == "`" and "`" in opening[2]):
            fence, line = opening[1], ""
        elif line.lstrip().startswith("<!--") and "-->" not in line:
            in_comment, line = True, ""
        elif len(line) > LONGEST_HEADING:
            pass
        elif (atx := ATX.match(line)) and atx[2]:
            headings.append(Heading(start, len(atx[1]), markdown_plain(atx[2])))
        elif (
            len(before) <= LONGEST_HEADING
            and (underline := SETEXT.match(line))
            and not NOT_SETEXT.match(before)
            and not before_that.strip()
        ):
            headings.append(Heading(before_start, 1 if underline[1][0] == "=" else 2, markdown_plain(before)))
        before, before_start, before_that = line, start, before
    return tuple(heading for heading in headings if heading.title)


def markdown_plain(title: str) -> str:
    """Return a heading's words without Markdown."""
    title = re.sub(r"\s*\{[^{}]*\}\s*$", "", MARKDOWN_LINK.sub(r"\1", title))
    title = re.sub(r"(\*\*|__|`)(?=\S)(.+?)\1", r"\2", title)
    title = re.sub(r"(?<!\w)([*_])(?=\S)(.+?)\1(?!\w)", r"\2", title)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", title).strip()


def rst_headings(text: str) -> tuple[Heading, ...]:
    """Return the sections with an underline (and overline); levels follow the first use of each style."""
    lines = list(lines_of(text))
    headings: list[Heading] = []
    styles: list[tuple[str, bool]] = []
    for index in range(1, len(lines)):
        start, title = lines[index - 1]
        line = lines[index][1].rstrip()
        above = lines[index - 2][1].rstrip() if index > 1 else ""
        if len(title) > LONGEST_HEADING or not RST_LINE.match(line) or not title.strip() or RST_LINE.match(title):
            continue
        over = above == line and len(line) >= len(title.strip())
        if not over and (title[0].isspace() or above.strip() or len(line) < min(len(title.rstrip()), 4)):
            continue
        style = (line[0], over)
        if style not in styles:
            styles.append(style)
        plain = RST_ROLE.sub(lambda match: match[1] or match[2] or match[3] or "", title).replace("\\", "").strip()
        headings.append(Heading(start, min(styles.index(style) + 1, 6), plain))
    return tuple(headings)
