"""The parser: text and structure of each format, error messages of bad files, and the limits of the child."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from shared.errors import TransientError, UnreadableError
from shared.models import Parsed
from tests.worker.hostile import write_hostile, write_odd
from worker.parsing import html
from worker.parsing import text as text_format
from worker.parsing.detect import detect
from worker.parsing.parser import Parser
from worker.parsing.text import markdown_headings, rst_headings

ROOT = Path(__file__).parents[2]
DOCUMENTS = Path(__file__).parents[3] / "shared" / "documents"
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
OFFICE_RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    with Parser(seconds=30) as parser:  # seconds; a slower document fails its test
        yield parser


def parse(parser: Parser, folder: Path, name: str, data: bytes) -> Parsed:
    path = folder / name
    path.write_bytes(data)
    parsed = parser.parse(path, name)
    for heading in parsed.headings:
        line = parsed.text[heading.start :].partition("\n")[0]
        assert heading.start == 0 or parsed.text[heading.start - 1] == "\n"
        assert heading.title.split()[0] in line
    assert list(parsed.pages) == sorted(parsed.pages)
    assert not {"\0", "\r"} & set(parsed.text)
    return parsed


def refusal(parser: Parser, folder: Path, name: str, data: bytes) -> str:
    with pytest.raises(UnreadableError) as caught:
        parse(parser, folder, name, data)
    message = str(caught.value)
    assert message.startswith(name)
    assert message.endswith(".")
    assert "Traceback" not in message
    return message


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()


def docx(body: str, **parts: str | bytes) -> bytes:
    return archive({"word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>", **parts})


def word_paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def xlsx(sheet: str, **parts: str | bytes) -> bytes:
    return archive(
        {
            "xl/workbook.xml": f'<workbook {S} {R}><sheets><sheet name="Stock" r:id="r1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations({"r1": ("worksheet", "worksheets/sheet1.xml")}),
            "xl/worksheets/sheet1.xml": f"<worksheet {S}><sheetData>{sheet}</sheetData></worksheet>",
            **parts,
        }
    )


def relations(targets: dict[str, tuple[str, str]]) -> str:
    inner = "".join(
        f'<Relationship Id="{i}" Type="{OFFICE_RELATION}/{k}" Target="{t}"/>' for i, (k, t) in targets.items()
    )
    return f"<Relationships>{inner}</Relationships>"


def pdf(*pages: str, encrypted: bool = False, info: str = "") -> bytes:
    """Return a PDF with one line of text on each page. `encrypted`: by an unknown password; `info`: its properties."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {count}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for index, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {5 + 2 * index} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    trailer = ""
    if encrypted:
        objects.append(f"<</Filter/Standard/V 1/R 2/P -4/O({'A' * 32})/U({'B' * 32})>>")
        trailer = f"/Encrypt {len(objects)} 0 R/ID[({'a' * 16})({'a' * 16})]"
    if info:
        objects.append(f"<<{info}>>")
        trailer = f"/Info {len(objects)} 0 R"
    out = "%PDF-1.4\n"
    offsets = []
    for number, text in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj{text}endobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    return (
        f"{out}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer<</Size {len(objects) + 1}/Root 1 0 R{trailer}>>\nstartxref\n{len(out)}\n%%EOF"
    ).encode("ascii")


# Formats


def test_markdown_is_verbatim_with_its_headings(parser: Parser, tmp_path: Path) -> None:
    text = (
        "---\ntitle: 'Front *page*'\n# no heading\n---\n\n# One **bold** {#id}\n\n```sh\n# comment\n```\n"
        "Two\n===\n\n- item\n---\n\n<!--\n# hidden\n-->\n\nSub `x`\n-------\n\n#no\n\n### [Link](http://x) ###\n"
    )
    parsed = parse(parser, tmp_path, "a.md", text.encode())
    assert parsed.text == text
    assert (parsed.format, parsed.kind, parsed.title) == ("markdown", "markdown", "Front *page*")
    assert [(heading.level, heading.title) for heading in parsed.headings] == [
        (1, "One bold"),
        (1, "Two"),
        (2, "Sub x"),
        (3, "Link"),
    ]
    assert parse(parser, tmp_path, "b.md", b"Intro\n\n## Two\n\n# One\n").title is None


def test_markdown_setext_heading_needs_its_own_paragraph() -> None:
    assert [h.title for h in markdown_headings("Title\n=====\n\ntext\nmore\n---\n\n| a |\n---\n")] == ["Title"]


def test_rst_levels_follow_the_order_of_styles() -> None:
    text = (
        "====\nTop\n====\n\nPart\n====\n\nSub :ref:`x <y>`\n-------\n\nPart 2\n======\n\n==== ====\na    b\n==== ====\n"
    )
    assert [(h.level, h.title) for h in rst_headings(text)] == [(1, "Top"), (2, "Part"), (3, "Sub x"), (2, "Part 2")]


def test_text_csv_and_code_are_verbatim(parser: Parser, tmp_path: Path) -> None:
    for name, format, kind in [
        ("a.txt", "text", "text"),
        ("README", "text", "text"),
        ("a.csv", "csv", "text"),
        ("a.tsv", "tsv", "text"),
        ("a.rst", "rst", "text"),
        ("a.py", "code", "code"),
        ("Makefile", "code", "code"),
    ]:
        parsed = parse(parser, tmp_path, name, b"# a;b\r\n<c>\t1\x0c\n")
        assert (parsed.text, parsed.format, parsed.kind, parsed.title) == ("# a;b\n<c>\t1\x0c\n", format, kind, None)


def test_html_text_is_the_visible_text(parser: Parser, tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>Site &amp; more</title><style>p{}</style></head><body>
    <nav><a href=x>Menu</a></nav><h1>Top <a class=headerlink href=#>¶</a></h1>
    <p>A <b>bold</b> *star* 1\\2 <a href=y>link</a>
    wraps.<br>Next<img alt=pic src=z></p><p># 1. no | heading</p>
    <ul><li>one<ul><li>two</li></ul></li><li><p>three</p><p>more</p></li></ul><ol start=3><li>x</li><li>y</li></ol>
    <pre class=language-py>if a:\n    b</pre>
    <table><tr><th>K</th><th>V</th></tr><tr><td>a</td><td>1<br>2</td></tr></table>
    <script>evil()</script><p hidden>unseen</p></body></html>"""
    parsed = parse(parser, tmp_path, "page.bin", page.encode())
    assert parsed.text == (
        "# Top\n\nA bold *star* 1\\2 link wraps.\nNext\n\n# 1. no | heading\n\n- one\n  - two\n- three\n\n  more\n\n"
        "3. x\n4. y\n\n```py\nif a:\n    b\n```\n\n| K | V |\n| --- | --- |\n| a | 1 2 |\n"
    )
    assert (parsed.format, parsed.kind, parsed.title) == ("html", "markdown", "Top")
    assert [(heading.level, heading.title) for heading in parsed.headings] == [(1, "Top")]
    assert parse(parser, tmp_path, "b.html", b"<title>Only &lt;this&gt;</title><p>words").title == "Only <this>"


def test_html_charset_is_read_and_navigation_alone_is_no_text() -> None:
    assert (
        html.parse(b'<meta charset="koi8-r"><p>' + "привет".encode("koi8-r"), "a.html", "html", 1000).text == "привет\n"
    )
    assert (
        html.parse(b"<html><body><nav><p>Only a menu</p></nav></body></html>", "a.html", "html", 1000).text
        == "Only a menu\n"
    )


def test_pdf_pages(parser: Parser, tmp_path: Path) -> None:
    parsed = parse(
        parser, tmp_path, "noname", b"\n" + pdf("The first page speaks of pears.", "", "The third one of plums.")
    )
    assert (parsed.format, parsed.kind) == ("pdf", "markdown")
    assert [number for _, number in parsed.pages] == [1, 3]
    first, third = (start for start, _ in parsed.pages)
    assert "pears" in parsed.text[first:third]
    assert parsed.text[third:].startswith("The third")


def test_docx_headings_lists_tables_and_notes(parser: Parser, tmp_path: Path) -> None:
    styles = (
        f'<w:styles {W}><w:style w:type="paragraph" w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Own"><w:name w:val="Own"/><w:basedOn w:val="H1"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="T"><w:name w:val="Title"/></w:style></w:styles>'
    )
    levels = "".join(
        f'<w:lvl w:ilvl="{depth}"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="{text}"/></w:lvl>'
        for depth, text in enumerate(("%1.", "%1.%2"))
    )
    numbering = (
        f'<w:numbering {W}><w:abstractNum w:abstractNumId="7">{levels}</w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num></w:numbering>'
    )
    item = '<w:numPr><w:ilvl w:val="{}"/><w:numId w:val="1"/></w:numPr>'
    cells = "".join(
        f"<w:tr><w:tc>{word_paragraph(a)}</w:tc><w:tc>{word_paragraph(b)}</w:tc></w:tr>"
        for a, b in [("K", "V"), ("a", "1")]
    )
    body = (
        word_paragraph("The Report", '<w:pStyle w:val="T"/>')
        + word_paragraph("Part", '<w:pStyle w:val="Own"/>')
        + '<w:p><w:r><w:t>Said </w:t><w:t>once</w:t><w:footnoteReference w:id="2"/>'
        + "<w:delText>gone</w:delText></w:r></w:p>"
        + word_paragraph("one", item.format(0))
        + word_paragraph("deep", item.format(1))
        + word_paragraph("two", item.format(0))
        + f"<w:tbl>{cells}</w:tbl>"
    )
    data = docx(
        body,
        **{
            "word/styles.xml": styles,
            "word/numbering.xml": numbering,
            "word/footnotes.xml": f'<w:footnotes {W}><w:footnote w:id="2">{word_paragraph("A note.")}</w:footnote>'
            "</w:footnotes>",
            "word/_rels/document.xml.rels": relations({"f": ("footnotes", "footnotes.xml")}),
        },
    )
    parsed = parse(parser, tmp_path, "any.txt", data)
    assert parsed.text == (
        "# The Report\n\n# Part\n\nSaid once¹\n\n1. one\n  1.1 deep\n2. two\n\n"
        "| K | V |\n| --- | --- |\n| a | 1 |\n\n¹ A note.\n"
    )
    assert (parsed.format, parsed.kind, parsed.title) == ("docx", "markdown", "The Report")


def test_pptx_slides_are_pages(parser: Parser, tmp_path: Path) -> None:
    a = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'

    def shape(kind: str, *lines: str) -> str:
        words = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in lines)
        return f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:txBody>{words}</p:txBody></p:sp>'

    def slide(*shapes: str) -> str:
        return f"<p:sld {a}><p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld></p:sld>"

    data = archive(
        {
            "ppt/presentation.xml": f'<p:presentation {a} {R}><p:sldIdLst><p:sldId id="1" r:id="b"/>'
            '<p:sldId id="2" r:id="a"/></p:sldIdLst></p:presentation>',
            "ppt/_rels/presentation.xml.rels": relations(
                {"a": ("slide", "slides/slide1.xml"), "b": ("slide", "slides/slide2.xml")}
            ),
            "ppt/slides/slide1.xml": slide(shape("title", "Second"), shape("body", "one", "two"), shape("sldNum", "2")),
            "ppt/slides/slide2.xml": slide(shape("ctrTitle", "First")),
            "ppt/slides/_rels/slide1.xml.rels": relations({"n": ("notesSlide", "../notesSlides/n.xml")}),
            "ppt/notesSlides/n.xml": slide(shape("body", "Smile")),
        }
    )
    parsed = parse(parser, tmp_path, "talk.pptx", data)
    assert parsed.text == "# First\n\n# Second\n\n- one\n- two\n\nNotes: Smile\n"
    assert (parsed.title, parsed.pages) == ("First", ((0, 1), (9, 2)))


def test_xlsx_values_have_their_displayed_form(parser: Parser, tmp_path: Path) -> None:
    styles = (
        f'<styleSheet {S}><numFmts><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm"/></numFmts>'
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="164"/><xf numFmtId="10"/></cellXfs></styleSheet>'
    )
    row = (
        '<c r="A3" t="s"><v>0</v></c><c r="B3" s="1"><v>45000</v></c><c r="C3" s="2"><v>45000.5</v></c>'
        '<c r="D3" s="3"><v>0.125</v></c>'
        '<c r="E3" t="inlineStr"><is><t>in</t></is></c><c r="F3"><f>1+1</f><v>2</v></c><c r="G3" t="b"><v>1</v></c>'
    )
    alone = '<row r="1"><c r="A1" t="str"><v>Alone</v></c></row>'
    sheet = f'{alone}<row r="3">{row}</row><row r="4"><c r="A4"><v>1.5</v></c></row>'
    strings = f"<sst {S}><si><r><t>rich </t></r><r><t>text</t></r><rPh><t>no</t></rPh></si></sst>"
    data = xlsx(sheet, **{"xl/styles.xml": styles, "xl/sharedStrings.xml": strings})
    assert parse(parser, tmp_path, "book.xlsx", data).text == (
        "# Stock\n\nAlone\n\n| rich text | 2023-03-15 | 2023-03-15 12:00 | 12.50% | in | 2 | TRUE |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n| 1.5 |  |  |  |  |  |  |\n"
    )


def test_a_giant_sparse_sheet_is_read(parser: Parser, tmp_path: Path) -> None:
    rows = "".join(f'<row r="{n}"><c r="A{n}"><v>{n}</v></c></row>' for n in range(1, 3000))
    sheet = (
        rows + '<row r="3000"><c r="XFD3000"><v>5</v></c></row><row r="1048576"><c r="XFD1048576"><v>7</v></c></row>'
    )
    parsed = parse(parser, tmp_path, "wide.xlsx", xlsx(sheet))
    assert parsed.text.endswith("\n\n7\n")
    assert len(parsed.text) < 60_000


def test_useless_titles_are_ignored(parser: Parser, tmp_path: Path) -> None:
    core = '<cp:coreProperties xmlns:cp="x" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{}</dc:title></cp:coreProperties>'
    for written, title in [
        ("Microsoft Word - x.doc", None),
        ("Untitled 2", None),
        ("old.docx", None),
        ("Fine title", "Fine title"),
    ]:
        data = docx(word_paragraph("words"), **{"docProps/core.xml": core.format(written)})
        assert parse(parser, tmp_path, "a.docx", data).title == title


# Encodings


def test_encodings_are_detected(parser: Parser, tmp_path: Path) -> None:
    text = "Zürich – “naïve” Ωmega\nline two\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert parse(parser, tmp_path, "a.txt", text.encode(encoding)).text == text
    western = "Größe: 5 € – “naïve” café, déjà vu.\n"
    assert parse(parser, tmp_path, "a.txt", western.encode("cp1252")).text == western
    russian = (
        "Съешь же ещё этих мягких французских булок, да выпей чаю. Быстрая лиса прыгает через ленивую собаку.\n" * 4
    )
    assert parse(parser, tmp_path, "a.txt", russian.encode("koi8-r")).text == russian


def test_a_broken_byte_does_not_garble_utf8() -> None:
    text = text_format.parse("naïve café über alles, Ωmega, ½ ¾ €\n".encode() + b"\xff", "a.txt", "text", 1000).text
    assert text == "naïve café über alles, Ωmega, ½ ¾ €\n\ufffd"


def test_nul_bytes_and_lone_surrogates_are_replaced(parser: Parser, tmp_path: Path) -> None:
    parsed = parse(
        parser, tmp_path, "a.txt", b"some words\0 and more words, quite a lot of them \xed\xa0\x80" + "é".encode() * 40
    )
    assert parsed.text.startswith("some words\ufffd and more words")
    parsed.text.encode("utf-8")
    lone = "half \ud83d gone".encode("utf-16-le", "surrogatepass")
    assert parse(parser, tmp_path, "b.txt", b"\xff\xfe" + lone).text.encode("utf-8")
    page = parse(parser, tmp_path, "c.html", b"<p>a&#xD800;b&#0;c</p>")
    assert page.text.encode("utf-8")


def test_names_that_are_not_utf8(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"bad\xff\nname.txt")
    path.write_bytes(b"words")
    assert parser.parse(path, path.name).text == "words"
    path.write_bytes(b"")
    with pytest.raises(UnreadableError, match="is empty") as caught:
        parser.parse(path, path.name)
    assert str(caught.value).encode("utf-8")
    assert "\n" not in str(caught.value)


# Files that cannot be read


def test_empty_files_are_refused(parser: Parser, tmp_path: Path) -> None:
    for name in ("notes.txt", "report.docx", "a.pdf", "page.html"):
        assert "is empty (0 bytes)" in refusal(parser, tmp_path, name, b"")
    assert "no text" in refusal(parser, tmp_path, "blank.txt", b" \n\n")
    assert "no text" in refusal(parser, tmp_path, "page.html", b"<html><script>x()</script><img src=a></html>")
    assert "sheets are empty" in refusal(parser, tmp_path, "empty.xlsx", xlsx(""))


def test_unreadable_pdf_files_are_refused(parser: Parser, tmp_path: Path) -> None:
    assert "no text in it (2 pages of pictures)" in refusal(parser, tmp_path, "scan.pdf", pdf("", ""))
    assert "password" in refusal(parser, tmp_path, "locked.pdf", pdf("secret", encrypted=True))
    complete = pdf("words", "more words")
    assert "damaged or incomplete" in refusal(parser, tmp_path, "cut.pdf", complete[:60])
    assert "is not a valid PDF: it may be damaged or incomplete" in refusal(parser, tmp_path, "no.pdf", b"just words")


def test_unreadable_office_files_are_refused(parser: Parser, tmp_path: Path) -> None:
    complete = docx(word_paragraph("words"))
    assert "ZIP archive that does not contain a Word file" in refusal(
        parser, tmp_path, "z.docx", archive({"a.txt": "hello"})
    )
    assert "damaged or incomplete" in refusal(parser, tmp_path, "cut.docx", complete[:-40])
    assert "is not a valid Word file" in refusal(parser, tmp_path, "words.docx", b"just words")
    assert "damaged inside" in refusal(parser, tmp_path, "x.docx", archive({"word/document.xml": "<w:document"}))
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + "EncryptedPackage".encode("utf-16-le") + bytes(480)
    assert "protected by a password" in refusal(parser, tmp_path, "secret.docx", ole)


def test_bombs_are_refused_at_once(parser: Parser, tmp_path: Path) -> None:
    bomb = f"<w:document {W}><w:body>".encode() + b" " * 60_000_000 + b"</w:body></w:document>"
    assert "unpacks to far more" in refusal(parser, tmp_path, "bomb.docx", archive({"word/document.xml": bomb}))
    entities = (
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
        + f"<w:document {W}><w:body>&b;</w:body></w:document>"
    )
    assert "XML entities" in refusal(parser, tmp_path, "lol.docx", archive({"word/document.xml": entities}))
    wide = entities.encode("utf-16")
    assert "XML entities" in refusal(parser, tmp_path, "wide.docx", archive({"word/document.xml": wide}))
    deep = f"<w:document {W}><w:body>{'<w:sdt>' * 5000}{'</w:sdt>' * 5000}</w:body></w:document>"
    assert "nested too deeply" in refusal(parser, tmp_path, "deep.docx", archive({"word/document.xml": deep}))
    assert "nested too deeply" in refusal(parser, tmp_path, "deep.html", b"<html>" + b"<div>" * 100_000 + b"words")
    assert parse(parser, tmp_path, "less.html", b"<html>" + b"<div>" * 2000 + b"words").text == "words\n"


def test_unsupported_formats_are_refused(parser: Parser, tmp_path: Path) -> None:
    for name, data in [
        ("a.eml", b"From: a@b\nSubject: x\n\nhello"),
        ("a.rtf", b"{\\rtf1 hello}"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(60)),
        ("a.mp3", b"ID3\x04" + bytes(60)),
        ("a.zip", archive({"a": "b"})),
        ("a.gz", b"\x1f\x8b\x08" + bytes(60)),
        ("a.odt", archive({"mimetype": "application/vnd.oasis.opendocument.text"})),
        ("a.epub", archive({"mimetype": "application/epub+zip"})),
        ("program", b"\x7fELF\x02\x01\x01" + bytes(100)),
        ("a.svg", b"<svg><text>x</text></svg>"),
    ]:
        assert refusal(parser, tmp_path, name, data).startswith(f"{name}: ")
        assert "files are not supported yet; " in refusal(parser, tmp_path, name, data)


def test_text_that_begins_like_magic_bytes_stays_text() -> None:
    for data in (b"BMW builds cars.", b"MZ is a label.", b"GIF89 was a year"):
        assert detect(data, "a.txt") == "text"


def test_binary_junk_is_refused(parser: Parser, tmp_path: Path) -> None:
    junk = bytes(range(256)) * 40
    assert "does not look like text" in refusal(parser, tmp_path, "a.txt", junk)
    assert "does not look like text" in refusal(parser, tmp_path, "data.bin", b"\x01\x02\x03\x04" * 100)


def test_size_limits_are_enforced(tmp_path: Path) -> None:
    with Parser(max_text_chars=1000, max_file_bytes=9000) as parser:
        message = refusal(parser, tmp_path, "big.txt", b"x" * 1001)
        assert "1,001 characters" in message
        assert "limit is 1,000" in message
        assert "limit is 0.0 MB" in refusal(parser, tmp_path, "huge.txt", b"x" * 9001)
        rows = "".join(f'<row r="{n}"><c r="A{n}"><v>123456789</v></c></row>' for n in range(1, 900))
        assert "limit of 1,000 characters" in refusal(parser, tmp_path, "long.xlsx", xlsx(rows))


# Hostile files


def test_hostile_files_end_with_a_reason(tmp_path: Path) -> None:
    expected = write_hostile(tmp_path)
    assert len(expected) >= 24
    limit = 1 << 30
    wrong, peak = [], 0
    with Parser(memory_bytes=limit, seconds=20) as parser:  # for a busy machine; 3 s on an idle one
        for name, phrase in expected.items():
            try:
                message = f"read as {parser.parse(tmp_path / name, name).text[:50]!r}"
            except UnreadableError as error:
                message = str(error)
            peak = max(peak, parser.peak_bytes)
            plain = (
                message.startswith(name) and message.endswith(".") and not {"\n", "Traceback"} & set(message.split())
            )
            if not plain or phrase not in message.lower() or "crash" in message:
                wrong.append((message, phrase))
    assert wrong == []
    assert 0.96 * limit < peak < 1.05 * limit  # some files reach the limit, and no file exceeds it by much


def test_odd_files_are_read(tmp_path: Path) -> None:
    with Parser(seconds=10) as parser:
        for name in write_odd(tmp_path):
            assert parser.parse(tmp_path / name, name).text.strip()


def test_pdf_of_more_pages_than_a_library_reads_by_itself(parser: Parser, tmp_path: Path) -> None:
    parsed = parse(parser, tmp_path, "long.pdf", pdf(*(f"Page {number} of the book." for number in range(1, 1203))))
    assert len(parsed.pages) == 1202
    assert parsed.text.rstrip().endswith("Page 1202 of the book.")


def test_too_many_headings_lose_their_lowest_levels(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"# Part\n" * 60_000 + b"## Chapter\n" * 50_000)
    parsed = parser.parse(tmp_path / "a.md", "a.md")
    assert [len(parsed.headings), {heading.level for heading in parsed.headings}] == [60_000, {1}]


def test_an_office_file_may_name_its_main_part(parser: Parser, tmp_path: Path) -> None:
    body = f"<w:document {W}><w:body>{word_paragraph('words')}</w:body></w:document>"
    parts = {"_rels/.rels": relations({"d": ("officeDocument", "word/document2.xml")}), "word/document2.xml": body}
    assert parse(parser, tmp_path, "a.docx", archive(parts)).text == "words\n"


# The limits of the child

OBEY = "#!obey\n"
# With this module on its path, the child runs text files that begin with OBEY and returns the value of `result`.
OBEYING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import replace
from worker.parsing import text
parse = text.parse
def obey(data, name, format, max_text_chars):
    parsed = parse(data, name, format, max_text_chars)
    if parsed.text.startswith({OBEY!r}):
        scope = {{"result": "done"}}
        exec(parsed.text, scope)
        return replace(parsed, text=str(scope["result"]), headings=scope.get("headings", ()))
    return parsed
text.parse = obey
"""


@dataclass(frozen=True)
class Obeying:
    """A folder for files whose code the child runs."""

    folder: Path

    def run(self, parser: Parser, code: str) -> str:
        (self.folder / "code.txt").write_text(OBEY + code)
        return parser.parse(self.folder / "code.txt", "code.txt").text

    def refused(self, parser: Parser, code: str) -> str:
        with pytest.raises(UnreadableError) as caught:
            self.run(parser, code)
        (self.folder / "next.txt").write_text("words")
        assert parser.parse(self.folder / "next.txt", "next.txt").text == "words"  # only one document failed
        message = str(caught.value)
        assert message.startswith("code.txt ")
        assert message.endswith(".")
        return message


@pytest.fixture
def obeying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Obeying:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(OBEYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    return Obeying(tmp_path)


TRIES = """
def tries(act):
    try:
        act()
        return "did"
    except OSError as error:
        return error.strerror
"""


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os._exit(3)", "exit 3"),
        ("import os; os._exit(0)", "exit 0"),
        ("import os; os.closerange(3, 20); import time; time.sleep(60)", "it closed its pipe"),
        ("import os; os.write(3, b'\\0' * 7 + b'\\2]')", "is invalid"),
    ],
)
def test_a_crash_of_the_parser_fails_one_document(obeying: Obeying, code: str, how: str) -> None:
    with Parser(seconds=20) as parser:
        message = obeying.refused(parser, code)
    assert "crashed the parser (" in message
    assert how in message


def test_a_hang_of_the_parser_fails_one_document(obeying: Obeying) -> None:
    with Parser(seconds=1) as parser:
        for code in ("import time; time.sleep(60)", "while True: pass"):
            assert "longer than 1 s to read; reading was stopped. Split it, or raise ASKFOLDER_PARSE_SECONDS." in (
                obeying.refused(parser, code)
            )


def test_an_alarm_ends_the_child_while_the_parent_is_stopped(obeying: Obeying) -> None:
    with Parser(seconds=70) as parser:
        left = obeying.run(parser, "import signal; result = signal.getitimer(signal.ITIMER_REAL)[0]")
    assert 90 < float(left) <= 100


def test_a_very_slow_reply_counts_as_a_hang(obeying: Obeying) -> None:
    trickle = (
        "import os, time\nos.write(3, (9999).to_bytes(8, 'big'))\n"
        "for _ in range(1000):\n    os.write(3, b' ')\n    time.sleep(0.01)"
    )
    with Parser(seconds=1) as parser:
        assert "longer than 1 s" in obeying.refused(parser, trickle)


def test_processor_time_is_limited_by_the_kernel(obeying: Obeying) -> None:
    """The kernel's limit also works while the parent is stopped or after it has ended."""
    path = obeying.folder / "burn.txt"
    path.write_text(OBEY + "while True: pass")
    quick = obeying.folder / "quick.txt"
    quick.write_text(OBEY + "import time\nend = time.process_time() + 0.8\nwhile time.process_time() < end: pass")
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.parsing.child", str(1 << 30), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for name in (quick, quick, quick, path):  # the time of earlier documents does not count
        request = {"path": str(name), "name": name.name, "max_text_chars": 1000, "seconds": 0.9}
        message = json.dumps(request).encode()
        child.stdin.write(len(message).to_bytes(8, "big") + message)
        child.stdin.flush()
        if name is quick:
            assert b"done" in child.stdout.read(int.from_bytes(child.stdout.read(8), "big"))
    assert child.wait(timeout=15) == -signal.SIGXCPU
    child.stdin.close()
    child.stdout.close()
    with Parser() as parser:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 99))\nwhile True: pass"
        assert "raise ASKFOLDER_PARSE_SECONDS." in obeying.refused(parser, limit)


def test_a_reply_has_a_maximum_length(obeying: Obeying) -> None:
    with Parser(max_text_chars=1000) as parser:
        many = "import worker.parsing.text as t; headings = (t.Heading(0, 1, 'x' * 100_000_000),)"
        message = obeying.refused(parser, many)
        assert "answer with 100 MB" in message
        assert "raise ASKFOLDER_MAX_TEXT_MB." in message
        # Each character takes six bytes in JSON, but a text within the limit is still accepted.
        assert obeying.run(parser, "result = '\\x1b' * 1000") == "\x1b" * 1000


def test_the_child_opens_no_socket(obeying: Obeying, tmp_path: Path) -> None:
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("only where the kernel has a filter for calls")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local, Parser() as parser:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        address, port = str(tmp_path / "socket"), server.getsockname()[1]
        code = (
            f"{TRIES}import socket, subprocess\n"
            f"result = (tries(lambda: socket.create_connection(('127.0.0.1', {port}), 2)),"
            f" tries(lambda: socket.socket(socket.AF_UNIX).connect({address!r})),"
            " tries(lambda: subprocess.run(['true'])))"
        )
        assert obeying.run(parser, code) == str(("Operation not permitted",) * 3)
        pdf_path = tmp_path / "a.pdf"
        pdf_path.write_bytes(pdf("words"))  # tokio and PDFium need no sockets
        assert parser.parse(pdf_path, "a.pdf").text == "words\n"


def test_the_child_writes_nothing_and_opens_few_files(obeying: Obeying, tmp_path: Path) -> None:
    code = (
        f"{TRIES}import os, resource\n"
        f"result = (tries(lambda: os.write(os.open({str(tmp_path / 'out')!r}, os.O_CREAT | os.O_WRONLY), b'x')),"
        " tries(lambda: [os.open('/dev/null', 0) for _ in range(70)]), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    with Parser() as parser:
        assert obeying.run(parser, code) == str(("File too large", "Too many open files", (0, 0)))


def test_the_kernel_also_limits_memory(obeying: Obeying) -> None:
    """Untouched memory is not resident, so the parent does not see it."""
    if sys.platform != "linux":
        pytest.skip("macOS has no limit on addresses")
    with Parser(memory_bytes=200 << 20) as parser:
        message = obeying.refused(parser, "x = bytes(3 << 30)")
        assert "needs more than 200 MB of memory to read; reading was stopped." in message
        assert "raise ASKFOLDER_PARSE_MEMORY_MB." in message
        assert "needs more than 200 MB" in obeying.refused(parser, "import mmap; mmap.mmap(-1, 3 << 30)")


def test_processes_of_the_child_end_with_the_child(obeying: Obeying, tmp_path: Path) -> None:
    fork = f"import os, time\npid = os.fork()\nif not pid: time.sleep(60)\nopen({str(tmp_path / 'pid')!r}, 'x')\n"
    note = fork.replace("open(", "os.symlink(str(pid), ").replace(", 'x')", ")")  # the child cannot write files
    for number, end in enumerate(("time.sleep(60)", "os.closerange(3, 20); os._exit(3)")):
        with Parser(seconds=1) as parser:
            obeying.refused(parser, note.replace("/pid'", f"/pid{number}'") + end)
        assert gone_within(2, int(os.readlink(tmp_path / f"pid{number}")))


def test_the_child_inherits_only_its_pipes(obeying: Obeying) -> None:
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    with socket.create_server(("127.0.0.1", 0)) as server, Parser() as parser:
        os.set_inheritable(server.fileno(), True)
        code = (
            "import os; links = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]\n"
            "result = sorted({os.readlink(link).partition(':')[0] for link in links if os.path.lexists(link)})"
        )
        assert obeying.run(parser, code) == "['/dev/null', 'pipe']"


def test_vanished_and_irregular_files_are_errors(parser: Parser, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"gone\.txt"):
        parser.parse(tmp_path / "gone.txt", "gone.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="not a regular file"):
        parser.parse(tmp_path / "pipe", "pipe")
    with pytest.raises(UnreadableError, match="not a regular file"):
        parser.parse(tmp_path, "folder")


def test_a_file_without_read_permission_is_an_error(parser: Parser, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"x")
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("runs as root, who may read everything")
    with pytest.raises(UnreadableError, match="read permission"):
        parser.parse(secret, "secret.txt")


class Vanishing(type(Path())):  # type: ignore[misc]
    """The path of a file that is deleted after the parser checked its size."""

    def absolute(self) -> Path:
        self.unlink()
        return Path(super().absolute())


def test_a_file_that_vanishes_before_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"words")
    with Parser() as parser, pytest.raises(TransientError, match=r"a\.txt could not be opened or disappeared"):
        parser.parse(Vanishing(path), "a.txt")


def test_the_parsing_time_is_limited(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    slow = tmp_path / "slow.html"
    slow.write_bytes(b"<p>word</p>" * 400_000)
    with Parser(seconds=0.3) as parser:
        with pytest.raises(UnreadableError, match=r"slow\.html took longer than 0.3 s .* ASKFOLDER_PARSE_SECONDS\."):
            parser.parse(slow, "slow.html")
        assert parser.child is None
        parser.seconds = 20
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"


def test_the_parsing_memory_is_limited(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    big = tmp_path / "big.html"
    big.write_bytes(b"<p>word</p>" * 1_000_000)
    with Parser(memory_bytes=100 << 20) as parser:
        with pytest.raises(
            UnreadableError, match=r"big\.html needs more than 100 MB of memory .* ASKFOLDER_PARSE_MEMORY_MB\."
        ):
            parser.parse(big, "big.html")
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"


def test_a_child_that_died_between_calls_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    with Parser() as parser:
        parser.parse(tmp_path / "a.txt", "a.txt")
        first = parser.child
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"
        assert parser.child is not None
        assert parser.child.pid != first.pid


def test_a_child_that_dies_in_a_call_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    slow = tmp_path / "slow.html"
    slow.write_bytes(b"<p>word</p>" * 120_000)
    with Parser() as parser:
        assert end_while_reading(parser, slow, signal.SIGKILL).text.startswith(
            "word"
        )  # killed from outside: read again
        with pytest.raises(UnreadableError, match=r"slow\.html crashed the parser \(SIGSEGV\)"):
            end_while_reading(parser, slow, signal.SIGSEGV)
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"


def end_while_reading(parser: Parser, path: Path, number: signal.Signals) -> Parsed:
    child = parser.start()
    timer = threading.Timer(0.3, os.kill, (child.pid, number))
    timer.start()
    try:
        return parser.parse(path, path.name)
    finally:
        timer.join()


def test_the_child_ends_when_its_parent_is_killed_during_parsing(obeying: Obeying) -> None:
    """The child does not read its pipe, like a C library that hangs."""
    path = obeying.folder / "endless.txt"
    path.write_text(OBEY + "import signal; signal.alarm(0)\nwhile True: pass")
    script = (
        "i"
        "mport sys, threading, time; from pathlib import Path; from worker.parsing.parser import Parser; p = Parser()\n"
        "threading.Timer(0.5, lambda: print(p.child.pid, flush=True)).start()\n"
        "p.parse(Path(sys.argv[1]), 'endless.txt')"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if sys.platform == "linux":
        assert gone_within(2, child)
    else:
        os.kill(child, signal.SIGKILL)


def test_the_child_ends_when_its_parent_dies(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    script = (
        "import os; from pathlib import Path; from worker.parsing.parser import Parser; p = Parser();"
        f"p.parse(Path({str(tmp_path / 'a.txt')!r}), 'a.txt'); print(p.child.pid, flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert gone_within(2, int(done.stdout))


def test_a_child_whose_thread_has_ended_is_replaced(tmp_path: Path) -> None:
    """On Linux the child dies with the thread that started it; in Celery that is the main thread of a worker."""
    (tmp_path / "a.txt").write_bytes(b"words")
    with Parser() as parser:
        thread = threading.Thread(target=parser.parse, args=(tmp_path / "a.txt", "a.txt"))
        thread.start()
        thread.join()
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"
        time.sleep(0.2)
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone_within(seconds: float, pid: int) -> bool:
    end = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


def test_a_forked_process_gets_its_own_child(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    with Parser() as parser:
        parser.parse(tmp_path / "a.txt", "a.txt")
        assert parser.child is not None
        before = parser.child.pid
        process = os.fork()
        if process == 0:
            try:
                text = parser.parse(tmp_path / "a.txt", "a.txt").text
                good = text == "words" and parser.child is not None and parser.child.pid != before
                parser.close()
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitpid(process, 0)[1] == 0
        assert parser.parse(tmp_path / "a.txt", "a.txt").text == "words"
        assert parser.child.pid == before


def test_the_parent_loads_no_parsing_library_and_the_child_gets_no_keys(tmp_path: Path) -> None:
    script = (
        "import sys, worker.parsing.parser; print([m for m in ('lxml', 'liteparse', 'filetype') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n"
    if sys.platform != "linux":
        return
    (tmp_path / "a.txt").write_bytes(b"words")
    os.environ["ANTHROPIC_API_KEY"] = "secret-key"
    try:
        with Parser() as parser:
            parser.parse(tmp_path / "a.txt", "a.txt")
            assert parser.child is not None
            environment = Path(f"/proc/{parser.child.pid}/environ").read_bytes()
    finally:
        del os.environ["ANTHROPIC_API_KEY"]
    assert b"secret-key" not in environment


def test_real_documents_are_parsed(parser: Parser) -> None:
    if not DOCUMENTS.is_dir():
        pytest.skip(f"{DOCUMENTS} is not here")
    wrong = []
    with (DOCUMENTS / "MANIFEST.csv").open(encoding="utf-8", newline="") as manifest:
        for row in csv.DictReader(manifest):
            path = DOCUMENTS / row["path"]
            try:
                parsed = parser.parse(path, path.name)
                got = "ready" if parsed.text.strip() else "blank"
            except UnreadableError as error:
                message = str(error)
                got = "later" if "not supported yet" in message else "no_text" if "no text" in message else message
            if got != row["expected"]:
                wrong.append((row["path"], row["expected"], got))
    assert wrong == []


# Metadata


def metadata(parser: Parser, folder: Path, front: str, name: str = "a.md") -> dict[str, object]:
    """Return the metadata of front matter. Check that its words remain in the text."""
    text = f"---\n{front}\n---\n\nThe heron.\n"
    parsed = parse(parser, folder, name, text.encode())
    assert parsed.text == text
    return dict(parsed.metadata)


def test_front_matter_becomes_metadata(parser: Parser, tmp_path: Path) -> None:
    front = (
        "Title: On herons\nauthors: [Anna, Béla]\nupdated: 2024-05-02 10:00:00 +0200\n"
        "Date: 2024-05-01\nlang: no\ntags:\n  - x\n  - y\n"
        "keywords: fish; frogs, eels\nlevel: 3\nratio: 0.5\nbig: 12345678901234567890\ncode: 007\n"
        "at: 12:30\nflag: yes\ndraft: true\nnone: ~\n"
        "empty:\nnested:\n  deep: {er: [1, two]}\nsummary: |\n  Two\n  lines\n2024: a year\n? [a, b]\n: odd"
    )
    found = metadata(parser, tmp_path, front.partition("\n?")[0])
    assert found == {
        "author": ["Anna", "Béla"],
        "date": "2024-05-01",
        "modified": "2024-05-02T08:00:00+00:00",
        "language": "no",
        "keywords": ["fish", "frogs", "eels"],
        "title": "On herons",
        "authors": ["Anna", "Béla"],
        "updated": "2024-05-02 10:00:00 +0200",
        "lang": "no",
        "tags": ["x", "y"],
        "level": 3,
        "ratio": 0.5,
        "big": "12345678901234567890",
        "code": "007",
        "at": "12:30",
        "flag": "yes",
        "draft": True,
        "nested": {"deep": {"er": [1, "two"]}},
        "summary": "Two lines",
        "2024": "a year",
    }
    assert list(found)[:5] == ["author", "date", "modified", "language", "keywords"]
    assert metadata(parser, tmp_path, "author: Anna", "a.txt") == {"author": "Anna"}
    assert metadata(parser, tmp_path, "author: Anna", "a.py") == {}
    assert metadata(parser, tmp_path, front) in (found, {}), "a list for a name"
    toml = b'+++\ntitle = "On herons"\ndate = 2024-05-01T10:00:00+02:00\ntags = ["x"]\n+++\nThe heron.\n'
    parsed = parse(parser, tmp_path, "t.md", toml)
    assert parsed.metadata == {"date": "2024-05-01T08:00:00+00:00", "title": "On herons", "tags": ["x"]}
    assert parsed.dated == datetime(2024, 5, 1, 8, tzinfo=UTC)
    windows = b"\xef\xbb\xbf---\r\nauthor: Anna\r\n---\r\nThe heron.\r\n"
    assert parse(parser, tmp_path, "w.md", windows).metadata == {"author": "Anna"}


ODD_FRONT = {
    "an alias": "a: &a [1, 2]\nb: *a",
    "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]" for p, n in ("ab", "bc", "cd", "de", "ef")),
    "nesting": "a: " + "[" * 15_000 + "]" * 15_000,
    "nested blocks": "\n".join(" " * n + "a:" for n in range(200)),
    "a program": "a: !!python/object/apply:os.system [exit]",
    "an unknown tag": "a: !Ref b",
    "a wrong number": "a: !!int 0x" + "9z",
    "a long number": "a: !!int " + "9" * 5000,
    "a wrong date": "a: !!timestamp 2024-13-45",
    "a tab": "a:\tb\n\tc: d",
    "no mapping": "- a\n- b",
    "a word": "heron",
    "a broken one": "a: [b",
    "two documents": "a: b\n--- \nc: d",
    "too long": "a: " + "x" * 40_000,
    "a rule": "\nNote: after a horizontal rule\n",
}


@pytest.mark.parametrize("front", ODD_FRONT.values(), ids=ODD_FRONT.keys())
def test_invalid_front_matter_stays_text(parser: Parser, tmp_path: Path, front: str) -> None:
    assert metadata(parser, tmp_path, front) in ({}, {"a": "b"})


def test_odd_metadata_values_are_converted_or_dropped(parser: Parser, tmp_path: Path) -> None:
    front = (
        "picture: !!binary R0lGODlhDAAMAIQAAPAA\nset: !!set {x, y}\nday: !!timestamp 2024-05-01\n"
        "nan: .nan\ninf: !!float .inf\nbig: !!int 0xffffffffffffffffffff\n"
        f'long: {"x" * 2001}\nfits: {"x" * 2000}\nnul: "a\\0b"\nhalf: "\\ud800"\n{"n" * 101}: name\nTags: a\ntags: b\n'
        "deep: {a: {b: {c: {d: {e: {}, f: 1}}}}}"
    )
    found = metadata(parser, tmp_path, front)
    assert sorted(found.pop("set")) == ["x", "y"]  # type: ignore[call-overload]
    assert found == {
        "day": "2024-05-01",
        "nan": ".nan",
        "fits": "x" * 2000,
        "nul": "a\ufffdb",
        "half": "\ufffd",
        "tags": ["a", "b"],
        "deep": {"a": {"b": {"c": {"d": {"f": 1}}}}},
    }
    many = metadata(parser, tmp_path, "\n".join(f"name{n}: {'ü' * 200}" for n in range(100)) + "\nauthor: Anna")
    assert many["author"] == "Anna"
    assert 14_000 < len(json.dumps(many, ensure_ascii=False).encode()) <= 17_000
    only = parse(parser, tmp_path, "only.md", b"---\ntitle: Only\nauthor: Anna\n---\n")
    assert (only.title, only.metadata["author"]) == ("Only", "Anna")
    for front in ("", "# a comment"):
        assert metadata(parser, tmp_path, front) == {}


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2024-05-01", "2024-05-01T00:00:00"),
        ("'2024-05-01'", "2024-05-01T00:00:00"),
        ("2024-05-01T10:00:00+02:00", "2024-05-01T08:00:00"),
        ("2024-05-01 10:00:00 -0330", "2024-05-01T13:30:00"),
        ("2024-05-01 10:00", "2024-05-01T10:00:00"),
        ("2024-05-01T10:00:00.123Z", "2024-05-01T10:00:00.123000"),
        ("20240501", "2024-05-01T00:00:00"),
        ("2024/5/1", "2024-05-01T00:00:00"),
        ("2024-05", "2024-05-01T00:00:00"),
        ("2024", "2024-01-01T00:00:00"),
        ("1 May 2024", "2024-05-01T00:00:00"),
        ("May 1, 2024", "2024-05-01T00:00:00"),
        ("Wed, 01 May 2024 10:00:00 +0200", "2024-05-01T08:00:00"),
        ("05/01/2024", None),
        ("2024-13-01", None),
        ("2024-02-30", None),
        ("0001-01-01T00:00+14:00", None),
        ("soon", None),
        ("[2024-05-01]", None),
        ("true", None),
    ],
)
def test_dates_of_documents(parser: Parser, tmp_path: Path, written: str, moment: str | None) -> None:
    parsed = parse(parser, tmp_path, "a.md", f"---\ndate: {written}\n---\nThe heron.\n".encode())
    assert parsed.dated == (datetime.fromisoformat(f"{moment}+00:00") if moment else None)
    assert "date" in parsed.metadata, "an unknown form stays as it is"


def test_the_date_of_a_document_is_chosen_by_priority(parser: Parser, tmp_path: Path) -> None:
    for front, day in (
        ("updated: 2024-05-03\ncreated: 2024-05-02\ndate: 2024-05-01", 1),
        ("updated: 2024-05-03\ncreated: 2024-05-02", 2),
        ("updated: 2024-05-03", 3),
        ("date: soon\nlastmod: 2024-05-04", 4),
    ):
        parsed = parse(parser, tmp_path, "a.md", f"---\n{front}\n---\nThe heron.\n".encode())
        assert parsed.dated == datetime(2024, 5, day, tzinfo=UTC)
    assert parse(parser, tmp_path, "a.md", b"The heron.\n").dated is None


def test_metadata_of_html(parser: Parser, tmp_path: Path) -> None:
    page = (
        '<html lang="de"><head><title>Vom Reiher</title><meta charset="utf-8">'
        '<meta name="Author" content="Anna"><meta name="keywords" content="fish, frogs,">'
        '<meta name="viewport" content="width=1"><meta name="csrf-token" content="secret">'
        '<meta property="og:image" content="x.png">'
        '<meta property="article:published_time" content="2024-05-01T10:00:00+02:00">'
        '<meta property="og:description" content="A bird">'
        '<meta name="citation_author" content="Béla"><meta name="citation_author" content="Cleo">'
        '<meta http-equiv="refresh" content="1">'
        '<meta name="empty" content=""><meta name="none"></head><body><p>The heron.</p></body></html>'
    )
    parsed = parse(parser, tmp_path, "a.html", page.encode())
    assert parsed.metadata == {
        "author": "Anna",
        "date": "2024-05-01T08:00:00+00:00",
        "language": "de",
        "keywords": ["fish", "frogs"],
        "description": "A bird",
        "title": "Vom Reiher",
        "citation_author": ["Béla", "Cleo"],
        "article:published_time": "2024-05-01T10:00:00+02:00",
        "og:description": "A bird",
    }
    assert parsed.dated == datetime(2024, 5, 1, 8, tzinfo=UTC)
    crowd = "".join(f'<meta name="n{n}" content="{"x" * 100}">' for n in range(5000))
    assert len(json.dumps(dict(parse(parser, tmp_path, "b.html", f"{crowd}<p>The heron.".encode()).metadata))) < 17_000


def test_metadata_of_pdf(parser: Parser, tmp_path: Path) -> None:
    info = (
        "/Author(Anna)/Title(On herons)/Subject<FEFF00520065006900680065007200FC>"
        "/Keywords(fish, frogs)/Creator(TeX)/Producer(x)"
        "/CreationDate(D:20240501100000+02'00')/ModDate(D:20240502)"
    )
    parsed = parse(parser, tmp_path, "a.pdf", pdf("The heron stands.", info=info))
    assert parsed.metadata == {
        "author": "Anna",
        "created": "2024-05-01T08:00:00+00:00",
        "modified": "2024-05-02T00:00:00+00:00",
        "keywords": ["fish", "frogs"],
        "subject": "Reiherü",
        "title": "On herons",
    }
    assert parsed.dated == datetime(2024, 5, 1, 8, tzinfo=UTC)
    for date in ("(D:19700101000000Z)", "(soon)", "(D:20241399)", "(D:)", "7"):
        parsed = parse(parser, tmp_path, "b.pdf", pdf("The heron stands.", info=f"/Author(Anna)/CreationDate{date}"))
        assert (parsed.metadata, parsed.dated) == ({"author": "Anna"}, None)
    assert parse(parser, tmp_path, "c.pdf", pdf("The heron stands.")).metadata == {}
    half = parse(parser, tmp_path, "d.pdf", pdf("The heron.", info="/Title<FEFFD800>/CreationDate(D:20240501)"))
    assert half.metadata == {"created": "2024-05-01T00:00:00+00:00"}, (
        "half a character costs the words, not the document"
    )


CORE = (
    '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
    "x"
    'mlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<dc:title>On herons</dc:title><dc:creator>Anna</dc:creator>"
    "<cp:lastModifiedBy>Béla</cp:lastModifiedBy><cp:keywords>fish; frogs</cp:keywords>"
    "<dc:subject>Birds</dc:subject><dc:description/><dc:language>de</dc:language>"
    '<dcterms:created xsi:type="dcterms:W3CDTF">{}</dcterms:created>'
    '<dcterms:modified xsi:type="dcterms:W3CDTF">2024-05-02T08:00:00Z</dcterms:modified></cp:coreProperties>'
)


def test_metadata_of_office(parser: Parser, tmp_path: Path) -> None:
    core = {"docProps/core.xml": CORE.format("2024-05-01T08:00:00Z")}
    slide = (
        '<p:sld xmlns:p="p" xmlns:a="a"><p:cSld><p:spTree><p:sp><p:txBody><a:p><a:r><a:t>The heron.</a:t></a:r></a:p>'
        "</p:txBody></p:sp></p:spTree></p:cSld></p:sld>"
    )
    slides = f'<p:presentation xmlns:p="p" {R}><p:sldIdLst><p:sldId id="1" r:id="r1"/></p:sldIdLst></p:presentation>'
    files = {
        "a.docx": docx(word_paragraph("The heron."), **core),
        "a.xlsx": xlsx('<row r="1"><c r="A1" t="inlineStr"><is><t>The heron.</t></is></c></row>', **core),
        "a.pptx": archive(
            {
                "ppt/presentation.xml": slides,
                "ppt/_rels/presentation.xml.rels": relations({"r1": ("slide", "slides/slide1.xml")}),
                "ppt/slides/slide1.xml": slide,
                **core,
            }
        ),
    }
    for name, data in files.items():
        parsed = parse(parser, tmp_path, name, data)
        assert parsed.metadata == {
            "author": "Anna",
            "created": "2024-05-01T08:00:00+00:00",
            "modified": "2024-05-02T08:00:00+00:00",
            "language": "de",
            "keywords": ["fish", "frogs"],
            "subject": "Birds",
            "title": "On herons",
        }, name
        assert (parsed.title, parsed.dated) == ("On herons", datetime(2024, 5, 1, 8, tzinfo=UTC))
    template = docx(word_paragraph("The heron."), **{"docProps/core.xml": CORE.format("2013-12-23T23:15:00Z")})
    assert parse(parser, tmp_path, "b.docx", template).dated == datetime(2024, 5, 2, 8, tzinfo=UTC), (
        "python-docx's template"
    )
    elsewhere = docx(
        word_paragraph("The heron."),
        **{
            "_rels/.rels": relations(
                {"r": ("core-properties", "props.xml"), "m": ("officeDocument", "word/document.xml")}
            ),
            "props.xml": CORE.format("2024-05-01T08:00:00Z"),
        },
    )
    assert parse(parser, tmp_path, "c.docx", elsewhere).metadata["author"] == "Anna"
    for damaged in ("<a><b>", "", "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>", "<a>" + "x" * 1_000_001 + "</a>"):
        parsed = parse(parser, tmp_path, "d.docx", docx(word_paragraph("The heron."), **{"docProps/core.xml": damaged}))
        assert (parsed.text, parsed.metadata) == ("The heron.\n", {})
