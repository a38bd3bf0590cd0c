"""Small files that crash a careless parser, and valid files that look similar.

The files are deterministic. The expected messages are those of the default limits.
"""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
SHEET = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATED = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
SLIDE = (
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
)
KINDS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
Parts = Mapping[str, str | bytes]


def write_hostile(folder: Path) -> dict[str, str]:
    """Write files that cannot be read. Return name → a phrase of the message, in lower case."""
    expected = {}
    for files in (office_bombs(), office_entities(), office_broken(), pdfs(), texts()):
        for name, (data, phrase) in files.items():
            (folder / name).write_bytes(data)
            expected[name] = phrase
    with (folder / "sparse-300-mb.txt").open("wb") as file:  # a sparse file uses no disk space
        file.truncate(300 << 20)
    return expected | {"sparse-300-mb.txt": "is 300.0 mb large"}


def write_odd(folder: Path) -> list[str]:
    """Write files that look hostile and can be read. Return their names."""
    words = "The boathouse opens at eight.\n"
    pages = one_page()
    cell = '<c r="{0}{1}"><v>{1}</v></c>'
    sparse = "".join(
        f'<row r="{n}">{cell.format(column, n)}</row>' for column, n in [("A", 1), ("ZZ", 70_000), ("XFD", 1_048_576)]
    )
    slides = {
        "ppt/slides/slide1.xml": slide("One"),
        "ppt/slides/slide2.xml": slide("Two"),
        "ppt/slides/_rels/slide1.xml.rels": relations(("a", "slide", "slide2.xml"), ("n", "notesSlide", "slide1.xml")),
        "ppt/slides/_rels/slide2.xml.rels": relations(("a", "slide", "slide1.xml"), ("n", "notesSlide", "slide1.xml")),
    }
    files: dict[str, str | bytes] = {
        "deep-lists.md": "".join(f"{'  ' * depth}- item {depth}\n" for depth in range(500)),
        "deep-quotes.md": "> " * 20_000 + words,
        "deep-brackets.md": "[" * 200_000 + words + "]" * 200_000,
        "deep-brackets.json": "[" * 100_000 + "]" * 100_000,
        "emphasis-heading.md": "# " + "*a" * 300_000 + "\n\n" + words,
        "spaces-heading.md": "# a" + " " * 300_000 + "b\n\n" + words,
        "spaces-front-matter.md": "---\ntitle: a" + " " * 300_000 + "b\n---\n" + words,
        "many-headings.md": "# a\n" * 150_000,
        "one-line.txt": words.replace("\n", " ") * 60_000,
        "comments.txt": "<!---->" * 1000 + words,
        "utf16.txt": words.encode("utf-16"),
        "utf32.txt": words.encode("utf-32"),
        "controls.txt": words + "\x1b[31mred\x1b[0m\x08\x07\n" * 50,
        "divs.html": "<html>" + "<div>" * 1500 + words,
        "tables.html": "<html>" + "<table><tr><td>" * 400 + words,
        "titles.html": "<html><title>" * 50_000 + "</title>" + words,
        "wide-attribute.html": f'<p title="{"x" * 9_000_000}">{words}</p>',
        "list-start.html": f'<ol start="--7"><li>{words}</li></ol><table><td colspan="²">a</td><td>b</td></table>',
        "sparse.xlsx": workbook(sparse),
        "cyclic.pptx": presentation(2, slides),
        "billion-pages.pdf": pdf([pages[0], pages[1].replace("Count 1", "Count 1000000000"), *pages[2:]]),
        "cyclic-xref.pdf": pdf(pages, "/Prev 9"),
        "trailing-junk.pdf": pdf(pages) + bytes(5000),
        "no-xref.pdf": pdf(pages).replace(b"startxref", b"startxxxx"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(files)


# Office files


def office_bombs() -> dict[str, tuple[bytes, str]]:
    far_more = "unpacks to far more"
    spaces = b" " * 9_900_000
    one_slide = f"<p:sld {SLIDE}><p:cSld><p:spTree/></p:cSld>".encode() + spaces[:5_000_000] + b"</p:sld>"
    text = "words " * 170_000  # one shared string of a megabyte
    strings = {"xl/sharedStrings.xml": f"<sst {SHEET}><si><t>{text}</t></si></sst>"}
    cell = '<c t="s"><v>0</v></c>'
    return {
        "flat-bomb.docx": (document(b" " * 60_000_000), far_more),
        "flat-bomb.pptx": (presentation(1, {"ppt/slides/slide1.xml": b" " * 60_000_000}), far_more),
        "overlapping-bomb.xlsx": (
            again(workbook("", {"xl/a.xml": spaces}), "xl/a.xml", 40),
            far_more,
        ),
        "nested-bomb.docx": (nested(5), "zip archive that does not contain a word file"),
        "unnamed-bomb.docx": (
            claim(
                package(
                    {
                        "_rels/.rels": relations(("d", "officeDocument", "word/document.bin")),
                        "word/document.bin": "x" * 9000,
                    }
                ),
                "word/document.bin",
                1 << 20,
                310_000_000,
            ),
            far_more,
        ),
        "same-slide.pptx": (presentation(1, {"ppt/slides/slide1.xml": one_slide}, shown=1000), far_more),
        "many-parts.docx": (again(document("<w:p/>"), "word/document.xml", 20_001), "20,002 parts"),
        "repeated-string.xlsx": (workbook(f"<row>{cell}</row>" * 500, strings), "limit of 20,000,000 characters"),
        "repeated-string-row.xlsx": (
            workbook(f"<row>{cell * 20_000}</row>", strings),
            "limit of 20,000,000 characters",
        ),
    }


def office_entities() -> dict[str, tuple[bytes, str]]:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    billion = f'<!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]>'
    quadratic = f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]>'
    secret = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    remote = '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd" [<!ENTITY % a SYSTEM "http://127.0.0.1:9/a">%a;]>'
    body = f"<w:document {WORD}><w:body><w:p><w:r><w:t>{{}}</w:t></w:r></w:p></w:body></w:document>"
    comment = f"<!--{'x' * 70_000}-->"
    string = f"<sst {SHEET}><si><t>{'&a;' * 50_000}</t></si></sst>"
    late = comment + billion + body.format("&l9;")
    sheet = (
        comment
        + quadratic
        + f'<worksheet {SHEET}><sheetData><row><c t="str"><v>{{}}</v></c></row></sheetData></worksheet>'
    )
    unreadable = {
        "billion-laughs-late.docx": package({"word/document.xml": late}),
        "quadratic-sheet.xlsx": workbook("", {"xl/worksheets/sheet1.xml": sheet.format("&a;" * 50_000)}),
    }
    return {name: (data, "damaged inside") for name, data in unreadable.items()} | {
        name: (data, "xml entities")
        for name, data in {
            "billion-laughs.docx": package({"word/document.xml": billion + body.format("&l9;")}),
            "billion-laughs-utf16.docx": package(
                {"word/document.xml": (billion + body.format("&l9;")).encode("utf-16")}
            ),
            "quadratic.xlsx": workbook("", {"xl/sharedStrings.xml": quadratic + string}),
            "entity-late.xlsx": workbook("", {"xl/worksheets/sheet1.xml": sheet.format("&a;")}),
            "external-file.docx": package({"word/document.xml": secret + body.format("&a;")}),
            "external-file-late.docx": package({"word/document.xml": comment + secret + body.format("&a;")}),
            "external-http.xlsx": workbook("", {"xl/sharedStrings.xml": remote + string}),
        }.items()
    }


def office_broken() -> dict[str, tuple[bytes, str]]:
    valid = document("<w:p><w:r><w:t>words</w:t></w:r></w:p>")
    deep = "<w:sdt>" * 200_000 + "</w:sdt>" * 200_000
    directory = valid.index(b"PK\x05\x06")
    absurd = valid[: directory + 12] + struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0) + valid[directory + 20 :]
    locked = bytearray(valid)
    locked[6] |= 1  # "is encrypted", in both headers
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    flipped = bytearray(valid)
    flipped[60] ^= 0xFF
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + "EncryptedPackage".encode("utf-16-le") + bytes(480)
    return {
        "deep.docx": (document(deep), "nested too deeply"),
        "deep.xlsx": (workbook("<row>" + "<c>" * 200_000), "nested too deeply"),
        "cut.docx": (valid[:-40], "damaged or incomplete"),
        "cut-inside.docx": (package({"word/document.xml": f"<w:document {WORD}><w:body><w:p>"}), "damaged inside"),
        "absurd-directory.docx": (absurd, "damaged or incomplete"),
        "absurd-size.docx": (claim(valid, "word/document.xml", 100, 0xFFFFFFFE), "unpacks to far more"),
        "flipped-bits.docx": (bytes(flipped), "damaged"),
        "locked-part.docx": (bytes(locked), "password"),
        "locked.docx": (ole, "password"),
        "no-document.docx": (
            package({"[Content_Types].xml": "<Types/>"}),
            "zip archive that does not contain a word file",
        ),
        "no-main-part.docx": (package({"word/documentation.xml": "<x/>"}), "damaged inside"),
        "own-slide.pptx": (
            presentation(
                0, {"ppt/_rels/presentation.xml.rels": relations(("s0", "slide", "presentation.xml"))}, shown=3
            ),
            "no text in it",
        ),
        "junk.docx": (junk(20_000), "is not a valid word file"),
        "junk-in-zip.xlsx": (b"PK\x03\x04" + junk(20_000), "damaged or incomplete"),
        "empty.docx": (b"", "is empty"),
    }


def document(body: str | bytes) -> bytes:
    body = body if isinstance(body, bytes) else body.encode()
    return package({"word/document.xml": f"<w:document {WORD}><w:body>".encode() + body + b"</w:body></w:document>"})


def workbook(rows: str, parts: Parts | None = None) -> bytes:
    return package(
        {
            "xl/workbook.xml": f'<workbook {SHEET} {RELATED}><sheets><sheet name="A" r:id="s"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(("s", "worksheet", "worksheets/sheet1.xml")),
            "xl/worksheets/sheet1.xml": f"<worksheet {SHEET}><sheetData>{rows}</sheetData></worksheet>",
            **(parts or {}),
        }
    )


def presentation(slides: int, parts: Parts, shown: int = 0) -> bytes:
    """Return a presentation of `slides` slides. `shown`: the number of times that the first slide is listed."""
    numbers = [0] * shown or range(slides)
    entries = "".join(f'<p:sldId r:id="s{number}"/>' for number in numbers)
    return package(
        {
            "ppt/presentation.xml": (
                f"<p:presentation {SLIDE} {RELATED}><p:sldIdLst>{entries}</p:sldIdLst></p:presentation>"
            ),
            "ppt/_rels/presentation.xml.rels": relations(
                *((f"s{number}", "slide", f"slides/slide{number + 1}.xml") for number in range(slides))
            ),
            **parts,
        }
    )


def slide(text: str) -> str:
    shape = f"<p:sp><p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    return f"<p:sld {SLIDE}><p:cSld><p:spTree>{shape}</p:spTree></p:cSld></p:sld>"


def relations(*targets: tuple[str, str, str]) -> str:
    inner = "".join(f'<Relationship Id="{i}" Type="{KINDS}/{kind}" Target="{to}"/>' for i, kind, to in targets)
    return f"<Relationships>{inner}</Relationships>"


def package(parts: Parts) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """Return nested archives of ten archives each, ten to the `depth` megabytes in total."""
    data: bytes = package({"0.txt": b"0" * 1_000_000})
    for _ in range(depth):
        data = package({f"{number}.zip": data for number in range(10)})
    return data


def record(data: bytes, part: str) -> tuple[int, int]:
    """Return the start and end of a part's record in the directory of a ZIP archive."""
    start = data.index(b"PK\x01\x02")
    while True:
        name, extra, comment = struct.unpack_from("<HHH", data, start + 28)
        end = start + 46 + name + extra + comment
        if data[start + 46 : start + 46 + name] == part.encode():
            return start, end
        start = end


def again(data: bytes, part: str, times: int) -> bytes:
    """Return the archive with additional records of the same part."""
    start, end = record(data, part)
    tail = data.index(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", data, tail + 12)
    more = data[start:end] * times
    return (
        data[:tail] + more + data[tail : tail + 12] + struct.pack("<II", size + len(more), offset) + data[tail + 20 :]
    )


def claim(data: bytes, part: str, packed: int, unpacked: int) -> bytes:
    """Return the archive with false sizes of a part in its directory."""
    start, _ = record(data, part)
    return data[: start + 20] + struct.pack("<II", packed, unpacked) + data[start + 28 :]


# PDF


def pdfs() -> dict[str, tuple[bytes, str]]:
    catalog = "<</Type/Catalog/Pages 2 0 R>>"
    damaged = "damaged or incomplete"
    encrypt = f"/Encrypt 5 0 R/ID[({'a' * 16})({'a' * 16})]"
    standard = f"<</Filter/Standard/V 1/R 2/P -4/O({'A' * 32})/U({'B' * 32})>>"
    valid = pdf(one_page())
    return {
        "cyclic-pages.pdf": (pdf([catalog, "<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2/Parent 2 0 R>>"]), "no text in it"),
        "cyclic-objects.pdf": (cyclic_objects(), "no text in it"),
        "cyclic-references.pdf": (pdf(["2 0 R", "1 0 R"]), damaged),
        # These two files reach the memory limit.
        "unpacks-without-end.pdf": (pdf([*one_page()[:3], endless_stream()]), "of memory"),
        "cyclic-forms.pdf": (cyclic_forms(), "of memory"),
        "same-page.pdf": (
            pdf([catalog, f"<</Type/Pages/Kids[{'3 0 R ' * 200_000}]/Count 200000>>", page(4), words_on_page()]),
            "has 200,000 pages",
        ),
        "deep-arrays.pdf": (
            pdf([catalog, "<</Type/Pages/Count 1/Kids" + "[" * 200_000 + "]" * 200_000 + ">>"]),
            "no text in it",
        ),
        "cut.pdf": (valid[:100], damaged),
        "locked.pdf": (pdf([*one_page(), standard], encrypt), "password"),
        "junk.pdf": (junk(20_000), "is not a valid pdf"),
        "junk-inside.pdf": (b"%PDF-1.7\n" + junk(200_000), damaged),
    }


def pdf(objects: Sequence[str | bytes], trailer: str = "") -> bytes:
    out = b"%PDF-1.5\n"
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj" % number + (content if isinstance(content, bytes) else content.encode()) + b"endobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R{trailer}>>\n"
    return out + f"{end}startxref\n{len(out)}\n%%EOF".encode()


def one_page() -> list[str]:
    return ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>", page(4), words_on_page()]


def page(contents: int, resources: str = "") -> str:
    font = "/Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>"
    return f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {contents} 0 R/Resources<<{font}{resources}>>>>"


def words_on_page() -> str:
    return stream("BT /F1 12 Tf 50 700 Td (The boathouse opens at eight in the morning.) Tj ET")


def stream(content: str, entries: str = "") -> str:
    return f"<<{entries}/Length {len(content)}>>stream\n{content}\nendstream"


def endless_stream() -> bytes:
    """Return a content stream of 4 GB, compressed twice."""
    packer = zlib.compressobj(9)
    first = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = zlib.compress(first + block * 4095 + packer.flush(), 9)
    return b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>stream\n%b\nendstream" % (len(packed), packed)


def cyclic_objects() -> bytes:
    """Return a PDF with an object stream that contains itself."""
    inside = "1 0 2 30 <</Type/Catalog/Pages 2 0 R>>  <</Type/Pages/Kids[3 0 R]/Count 1>>"
    first = inside.index("<<")
    streams = stream(inside, f"/Type/ObjStm/N 2/First {first}/Extends 4 0 R")
    out = f"%PDF-1.5\n4 0 obj{streams}endobj\n"
    table = b"".join(
        struct.pack(">BHB", *entry)
        for entry in [(0, 0, 0), (2, 4, 0), (2, 4, 1), (2, 3, 0), (2, 4, 2), (1, len(out), 0)]
    )
    head = f"5 0 obj<</Type/XRef/W[1 2 1]/Size 6/Root 1 0 R/Length {len(table)}>>stream\n"
    return out.encode() + head.encode() + table + f"\nendstream endobj\nstartxref\n{len(out)}\n%%EOF".encode()


def cyclic_forms() -> bytes:
    """Return a PDF with forms that draw each other, each twice."""
    form = "/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</A 5 0 R/B 6 0 R>>>>"
    objects = [*one_page()[:2], page(4, "/XObject<</A 5 0 R/B 6 0 R>>"), stream("/A Do /B Do")]
    return pdf([*objects, stream("/B Do /B Do", form), stream("/A Do /A Do", form)])


# Plain text and HTML


def texts() -> dict[str, tuple[bytes, str]]:
    return {
        "empty.md": (b"", "is empty"),
        "blank.md": (b" \n\t\r\n" * 50_000, "only blank space"),
        "nul.bin": (bytes(100_000), "does not look like text"),
        "nul.txt": (bytes(100_000), "does not look like text"),
        "junk.md": (junk(50_000), "does not look like text"),
        "junk": (b"\x7fELF" + junk(50_000), "not supported yet"),
        "one-line.txt": (b"words " * 3_500_000, "holds 21,000,000 characters"),
        "deep.html": (b"<html>" + b"<div>" * 100_000, "nested too deeply"),
        "deep-lists.html": (b"<html>" + b"<ul><li>" * 50_000 + b"words", "nested too deeply"),
        "wide-attribute.html": (b'<html><div title="' + b"x" * 2_000_000 + b'"></div></html>', "no text in it"),
        "only-script.html": (b"<html><script>" + b"x();" * 200_000 + b"</script></html>", "no text in it"),
    }


def junk(count: int) -> bytes:
    return random.Random(7).randbytes(count)
