"""Detect a file's format by its content; the name only distinguishes plain text formats."""

import io
import re
import zipfile

from shared.errors import UnreadableError
from shared.file_types import FORMAT_OF_EXTENSION
from worker.parsing.tables import read_table
from worker.parsing.text import CONTROLS, unicode_encoding

CODE_NAMES = "makefile dockerfile gnumakefile cmakelists.txt rakefile gemfile vagrantfile jenkinsfile".split()
# Format → name and advice, separated by "; ".
UNSUPPORTED = read_table("unsupported.txt")
AS_PDF = "save it as PDF, DOCX or plain text and drop that instead."
UNPACK = "unpack it and drop the files in it instead."
ARCHIVES = "zip tar rar gz bz2 7z xz zst lz lz4 Z cab ar deb rpm".split()
SIGNATURES = {
    "rtf": (b"{\\rtf",),
    "ps": (b"%!PS", b"\x04%!PS", b"\xc5\xd0\xd3\xc6"),
    "parquet": (b"PAR1",),
    "sqlite": (b"SQLite format 3\0",),
}
OPENDOCUMENT = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "graphics": "odg"}
OFFICE = {"docx": "Word", "docm": "Word", "pptx": "PowerPoint", "pptm": "PowerPoint", "xlsx": "Excel", "xlsm": "Excel"}
HTML_START = re.compile(
    # Atomic: otherwise a row of comments has 2^n ways to match.
    r"\s*(?:<\?xml[^>]*>\s*)?(?>(?:<!--.*?-->\s*)*)<(?:!doctype\s+html|html|head|body)[\s>]",
    re.I | re.S,
)
MAIL_HEADER = re.compile(r"^(?:MIME-Version|Received|Return-Path|Message-ID|Delivered-To):", re.I | re.M)


def detect(data: bytes, name: str) -> str:
    """Return a supported format, one of UNSUPPORTED, or "broken:…", "encrypted", "zip-named:…", "other:…", "binary"."""
    head = data[:4096]
    extension = name.lower().rpartition(".")[2] if "." in name else ""
    if head.lstrip(b"\xef\xbb\xbf\0 \t\r\n").startswith(b"%PDF-") or (extension == "pdf" and b"%PDF-" in head[:1024]):
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return detect_zip(data, extension)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return detect_ole(data)
    for format, marks in SIGNATURES.items():
        if head.startswith(marks):
            return format
    if not text_like(data):
        return detect_binary(head, extension)
    return detect_text(data, name.lower(), extension)


def text_like(data: bytes) -> bool:
    if unicode_encoding(data):
        return True
    sample = data[:65536]
    return len(sample.translate(None, CONTROLS)) >= 0.95 * len(sample) and not data.startswith((b"\x7fELF", b"\x89PNG"))


def detect_text(data: bytes, name: str, extension: str) -> str:
    encoding, mark = unicode_encoding(data) or ("utf-8", 0)
    start = data[mark:8192].decode(encoding, "replace")
    if extension == "pdf" or extension in OFFICE:
        if not HTML_START.match(start):
            return f"broken:{extension}"
        extension = "html"
    named = FORMAT_OF_EXTENSION.get(extension)
    if name.endswith((".rst.txt", ".md.txt")):
        named = "rst" if name.endswith(".rst.txt") else "markdown"
    if name.rpartition("/")[2] in CODE_NAMES:
        named = "code"
    if named:
        return named
    if HTML_START.match(start):
        return "html"
    if extension not in ("txt", "text", "log") and len(MAIL_HEADER.findall(start)) >= 2:
        return "eml"
    return "code" if start.startswith("#!") and not extension else "text"


def detect_zip(data: bytes, extension: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            kind = archive.open("mimetype").read(200).decode("ascii", "replace").strip() if "mimetype" in names else ""
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return f"broken:{extension if extension in OFFICE else 'zip'}"
    for part, format in (("word/document", "docx"), ("ppt/presentation", "pptx"), ("xl/workbook.xml", "xlsx")):
        if any(name.startswith(part) for name in names):
            return format
    if "xl/workbook.bin" in names:
        return "xlsb"
    if kind == "application/epub+zip":
        return "epub"
    if kind.startswith("application/vnd.oasis.opendocument."):
        return OPENDOCUMENT.get(kind.split(".")[-1].split("-")[0], "odt")
    if any(name.startswith("Index/") or name == "Index.zip" for name in names):
        return "pages"
    return f"zip-named:{extension}" if extension in OFFICE else "zip"


def detect_ole(data: bytes) -> str:
    for stream, format in (
        ("__properties_version1.0", "msg"),
        ("EncryptedPackage", "encrypted"),
        ("WordDocument", "doc"),
        ("PowerPoint Document", "ppt"),
        ("Workbook", "xls"),
        ("Book", "xls"),
    ):
        if stream.encode("utf-16-le") + b"\0\0" in data:
            return format
    return "ole"


def detect_binary(head: bytes, extension: str) -> str:
    import filetype  # type: ignore[import-untyped]

    kind = filetype.guess(head)
    if kind is None:
        return f"broken:{extension}" if extension == "pdf" or extension in OFFICE else "binary"
    return f"other:{kind.mime}:{kind.extension}"


def refuse_broken(format: str, name: str) -> None:
    """Raise UnreadableError if `detect` found a damaged, protected or binary file."""
    kind, _, extension = format.partition(":")
    wanted = "PDF" if extension == "pdf" else f"{OFFICE.get(extension)} file"
    article = "an" if wanted.startswith("Excel") else "a"
    if kind == "encrypted":
        raise UnreadableError(f"{name} is protected by a password; save it without one and drop it again.")
    if kind == "zip-named":
        raise UnreadableError(
            f"{name} is a ZIP archive that does not contain {article} {wanted}, despite its name; {UNPACK}"
        )
    if kind == "broken" and extension == "zip":
        raise UnreadableError(f"{name} is a damaged or incomplete ZIP archive; copy it again.")
    if kind == "broken":
        raise UnreadableError(
            f"{name} is not a valid {wanted}: it may be damaged or incomplete. Copy it again, "
            "or open it in the program that made it, save it again and drop it again."
        )
    if kind == "binary":
        raise UnreadableError(f"{name} does not look like text or a document; {AS_PDF}")


def unsupported(format: str, name: str) -> UnreadableError:
    """Return the error for a format that is recognised but not read."""
    label, _, advice = UNSUPPORTED.get(format, "").partition("; ")
    if not label:
        mime, _, extension = format.removeprefix("other:").partition(":")
        group = mime.partition("/")[0]
        label, advice = extension.upper(), AS_PDF
        if group == "image":
            label += " image"
            advice = "run OCR on it (for example ocrmypdf) and drop the PDF instead."
        elif group in ("audio", "video"):
            label, advice = f"{label} {group}", "drop a transcript of it instead."
        elif extension in ARCHIVES:
            label, advice = f"{label} archive", UNPACK
        elif extension in ("exe", "elf", "dll"):
            label, advice = f"{label} program", "drop its documentation instead."
    return UnreadableError(f"{name}: {label} files are not supported yet; {advice}")
