"""Formats that are kept as they are written (Markdown, reStructuredText, text, CSV, code), and their encodings."""

import codecs
import re

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
# Tab, line ends, form feed, backspace (overstruck manuals) and escape (coloured logs) do occur in text.
CONTROLS = bytes(set(range(32)) - {7, 8, 9, 10, 11, 12, 13, 27} | {127})

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
# Lines above a row of dashes that are no heading: lists, quotes, table rows, HTML, indented code.
NOT_SETEXT = re.compile(r"[ \t]*$|    |\t| {0,3}(?:[-*+>|<]|\d{1,9}[.)] |#)")
FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?\n)??\1[ \t]*(?:\n|\Z)", re.S)
FRONT_TITLE = re.compile(r"^title[ \t]*[:=](.+)$", re.M)
RST_LINE = re.compile(r"([!-/:-@\[-`{-~])\1+[ \t]*$")
RST_ROLE = re.compile(r":[\w.+:-]+:`([^`<]*?)(?:\s*<[^`]*>)?`|``(.+?)``|`([^`<]+?)(?:\s*<[^`]*>)?`_{0,2}")
LONGEST_HEADING = 1000  # longer lines are prose, and the patterns below would take minutes over them
MARKDOWN_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def parse_text(data: bytes, name: str, format: str) -> Parsed:
    """Decode a text file; its text is kept verbatim but for line ends and characters that cannot be stored."""
    text = decode(data, name)
    if format == "markdown":
        headings = markdown_headings(text)
        return Parsed(text, format, "markdown", front_matter_title(text) or first_title(headings), headings)
    if format == "rst":
        headings = rst_headings(text)
        return Parsed(text, format, "text", first_title(headings), headings)
    return Parsed(text, format, "code" if format == "code" else "text")


def decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Decode by byte order mark, then `declared`, then UTF-8, then cp1252, then what charset-normalizer says."""
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return storable(data[len(mark) :].decode(encoding, "replace"))
    wide = wide_encoding(data)
    if wide:
        return storable(data.decode(wide, "replace"))
    sample = data[:SAMPLE]
    if len(sample.translate(None, CONTROLS)) < 0.95 * len(sample):
        raise not_text(name)
    if declared:
        try:
            return storable(data.decode(declared))
        except (UnicodeDecodeError, LookupError):
            pass
    try:
        return storable(data.decode("utf-8"))
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    # A UTF-8 file with a few broken bytes stays UTF-8: cp1252 would garble all the rest of it.
    broken = text.count("\ufffd")
    if broken * 4 < sum(character > "\x7f" for character in text):
        return storable(text)
    return storable(decode_legacy(data, name))


def decode_legacy(data: bytes, name: str) -> str:
    # Western European text is ASCII with a few accents; where most letters are above ASCII it is some other code page.
    letters = sum(byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" for byte in data[:SAMPLE])
    high = sum(byte > 127 for byte in data[:SAMPLE])
    if high < letters + 8:
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            pass
    from charset_normalizer import from_bytes

    best = from_bytes(data[:SAMPLE]).best()
    if best is None:
        raise not_text(name)
    return data.decode(best.encoding, "replace")


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by where the zero bytes stand."""
    sample = data[: SAMPLE // 4 * 4]
    if len(sample) < 4 or b"\0" not in sample:
        return None
    shares = [sample[lane::4].count(0) / max(1, len(sample[lane::4])) for lane in range(4)]
    if min(shares[1:]) > 0.7 and shares[0] < 0.1:
        return "utf-32-le"
    if min(shares[:3]) > 0.7 and shares[3] < 0.1:
        return "utf-32-be"
    even, odd = (shares[0] + shares[2]) / 2, (shares[1] + shares[3]) / 2
    if odd > 0.3 and even < 0.05:
        return "utf-16-le"
    if even > 0.3 and odd < 0.05:
        return "utf-16-be"
    return None


def not_text(name: str) -> UnreadableError:
    return UnreadableError(f"{name} does not look like text; save it as PDF, DOCX or plain text and drop that instead.")


def storable(text: str) -> str:
    """Line ends as \\n; NUL and lone surrogates, which PostgreSQL refuses, as U+FFFD."""
    return UNSTORABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_title(title: str | None) -> str | None:
    """One line of at most 300 characters, or None for what programs write where no title was given."""
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
    """The title of the first heading, when it is of the highest level and opens the document."""
    return clean_title(headings[0].title) if headings and headings[0].level == 1 else None


def front_matter_title(text: str) -> str | None:
    front = FRONT_MATTER.match(text)
    title = FRONT_TITLE.search(front[2] or "") if front else None
    return clean_title(title[1].strip().strip("\"'")) if title else None


def lines_of(text: str) -> list[tuple[int, str]]:
    """(offset, line without its end) of every line; only \\n ends a line."""
    found, start = [], 0
    for line in text.split("\n"):
        found.append((start, line))
        start += len(line) + 1
    return found


def markdown_headings(text: str) -> tuple[Heading, ...]:
    """ATX and setext headings outside of fences, HTML comments and front matter."""
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
    """A heading's words without the marks of its Markdown."""
    title = re.sub(r"\s*\{[^{}]*\}\s*$", "", MARKDOWN_LINK.sub(r"\1", title))
    title = re.sub(r"(\*\*|__|`)(?=\S)(.+?)\1", r"\2", title)
    title = re.sub(r"(?<!\w)([*_])(?=\S)(.+?)\1(?!\w)", r"\2", title)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", title).strip()


def rst_headings(text: str) -> tuple[Heading, ...]:
    """Sections by their underline (and overline); levels by the order in which the styles first appear."""
    lines = lines_of(text)
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
        plain = RST_ROLE.sub(lambda found: found[1] or found[2] or found[3] or "", title).replace("\\", "").strip()
        headings.append(Heading(start, min(styles.index(style) + 1, 6), plain))
    return tuple(headings)
