"""What a file is, by its content; its name decides only among formats that are plain text."""

import io
import re
import zipfile

from shared.errors import UnreadableError
from shared.file_types import FORMAT_OF_EXTENSION
from worker.parsing.text import BOMS, CONTROLS, wide_encoding

CODE_NAMES = (
    "makefile",
    "dockerfile",
    "gnumakefile",
    "cmakelists.txt",
    "rakefile",
    "gemfile",
    "vagrantfile",
    "jenkinsfile",
)

AS_DOCX = "save it as DOCX or PDF and drop that instead."
AS_XLSX = "save it as XLSX or CSV and drop that instead."
AS_PPTX = "save it as PPTX or PDF and drop that instead."
AS_PDF = "save it as PDF, DOCX or plain text and drop that instead."
UNPACK = "unpack it and drop the files in it instead."
OCR = "run OCR on it (for example ocrmypdf) and drop the PDF instead."
# format: (what people call it, what to do instead)
LATER = {
    "eml": ("e-mail (EML)", AS_PDF),
    "mbox": ("mailbox (MBOX)", AS_PDF),
    "msg": ("Outlook message (MSG)", AS_PDF),
    "mht": ("web archive (MHTML)", "save it as HTML or PDF and drop that instead."),
    "rtf": ("RTF", AS_DOCX),
    "odt": ("OpenDocument text (ODT)", AS_DOCX),
    "fodt": ("flat OpenDocument", AS_DOCX),
    "ods": ("OpenDocument spreadsheet (ODS)", AS_XLSX),
    "odp": ("OpenDocument presentation (ODP)", AS_PPTX),
    "odg": ("OpenDocument drawing (ODG)", AS_PDF),
    "epub": ("EPUB", "save it as PDF or HTML and drop that instead."),
    "doc": ("old Word (DOC)", AS_DOCX),
    "xls": ("old Excel (XLS)", AS_XLSX),
    "xlsb": ("binary Excel (XLSB)", AS_XLSX),
    "ppt": ("old PowerPoint (PPT)", AS_PPTX),
    "ole": ("old Office (OLE)", AS_DOCX),
    "pages": ("Apple iWork", AS_PDF),
    "svg": ("SVG image", AS_PDF),
    "ps": ("PostScript", "convert it to PDF (for example ps2pdf) and drop that instead."),
    "zip": ("ZIP archive", UNPACK),
    "sqlite": ("SQLite database", "export its tables as CSV and drop those instead."),
    "parquet": ("Parquet", "export it as CSV and drop that instead."),
}
OPENDOCUMENT = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "graphics": "odg"}
OFFICE = {"docx": "Word", "docm": "Word", "pptx": "PowerPoint", "pptm": "PowerPoint", "xlsx": "Excel", "xlsm": "Excel"}
HTML_START = re.compile(
    # Atomic: a row of comments could be cut up in 2^n ways.
    r"\s*(?:<\?xml[^>]*>\s*)?(?>(?:<!--.*?-->\s*)*)<(?:!doctype\s+html|html|head|body)[\s>]",
    re.I | re.S,
)
MAIL_HEADER = re.compile(r"^(?:MIME-Version|Received|Return-Path|Message-ID|Delivered-To):", re.I | re.M)


def detect(data: bytes, name: str) -> str:
    """The format's short name: one that is read, one of LATER, or "broken:…" / "encrypted" / "other:…"."""
    head = data[:4096]
    extension = name.lower().rpartition(".")[2] if "." in name else ""
    if head.lstrip(b"\xef\xbb\xbf\0 \t\r\n").startswith(b"%PDF-") or (extension == "pdf" and b"%PDF-" in head[:1024]):
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return detect_zip(data, extension)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return detect_ole(data)
    if head.startswith(b"{\\rtf"):
        return "rtf"
    if head.startswith((b"%!PS", b"\x04%!PS", b"\xc5\xd0\xd3\xc6")):
        return "ps"
    if head.startswith((b"PAR1", b"SQLite format 3\0")):
        return "parquet" if head.startswith(b"PAR1") else "sqlite"
    if not text_like(data):
        return detect_binary(head, extension)
    return detect_text(data, name.lower(), extension)


def text_like(data: bytes) -> bool:
    if data.startswith(tuple(mark for mark, _ in BOMS)) or wide_encoding(data):
        return True
    sample = data[:65536]
    return len(sample.translate(None, CONTROLS)) >= 0.95 * len(sample) and not data.startswith((b"\x7fELF", b"\x89PNG"))


def detect_text(data: bytes, name: str, extension: str) -> str:
    start = opening(data)
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


def opening(data: bytes) -> str:
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return data[len(mark) : 8192].decode(encoding, "replace")
    return data[:8192].decode(wide_encoding(data) or "utf-8", "replace")


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
    """Raise UnreadableError for what `detect` found to be no document at all."""
    kind, _, extension = format.partition(":")
    wanted = "PDF" if extension == "pdf" else OFFICE.get(extension, "")
    article = "an" if wanted == "Excel" else "a"
    if kind == "encrypted":
        raise UnreadableError(f"{name} is protected by a password; save it without one and drop it again.")
    if kind == "zip-named":
        raise UnreadableError(
            f"{name} is a ZIP archive without {article} {wanted} document in it, whatever its name says; "
            "unpack it and drop the files in it instead."
        )
    if kind == "broken" and extension == "zip":
        raise UnreadableError(f"{name} is a ZIP archive that is damaged or cut off; copy it again.")
    if kind == "broken":
        raise UnreadableError(
            f"{name} is no {wanted} file inside, or it is damaged or cut off; copy it again, "
            "or open it in the program that made it, save it again and drop it again."
        )
    if kind == "binary":
        raise UnreadableError(f"{name} does not look like text or a document; {AS_PDF}")


def later(format: str, name: str) -> UnreadableError:
    """The error for a format that is known but not read."""
    label, advice = LATER.get(format, ("", ""))
    if not label:
        mime, _, extension = format.removeprefix("other:").partition(":")
        group = mime.partition("/")[0]
        label, advice = extension.upper(), AS_PDF
        if group == "image":
            label, advice = f"{label} image", OCR
        elif group in ("audio", "video"):
            label, advice = f"{label} {group}", "drop a transcript of it instead."
        elif extension in (
            "zip",
            "tar",
            "rar",
            "gz",
            "bz2",
            "7z",
            "xz",
            "zst",
            "lz",
            "lz4",
            "Z",
            "cab",
            "ar",
            "deb",
            "rpm",
        ):
            label, advice = f"{label} archive", UNPACK
        elif extension in ("exe", "elf", "dll"):
            label, advice = f"{label} program", "drop its documentation instead."
    return UnreadableError(f"{name}: {label} files are not supported yet; {advice}")
