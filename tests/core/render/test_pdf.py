"""The PDF of a document: words and pictures in order, whatever the words are, and no picture cut by a page's end."""

from __future__ import annotations

import random
import re
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.render import pdf_text, render_pdf
from duogen_core.render.pdf_text import markdown_blocks

PAGE, MARGIN = 841.89, 56.69  # pt: A4, and 20 mm
HOSTILE = [
    "<script>alert(1)</script> **x** [a](javascript:alert(1)) ![p](https://evil.example/p.png)",
    ") Tj ET Q (\\ ((( \\) endstream endobj << /JS (app.alert(1)) >>",
    "%PDF-1.4 trailer <</Root 1 0 R>>",
    "a\0b \u202e reversed \x1b[31m \u200b\ufeff \u2028 \x7f",
    "| a | b |\n|---|---|\n| <b>x</b> | [x](javascript:1) |",
    "```\nopen fence\n(",
    "- a\n  - b\n    1. c\n\n> > quoted\n\n# heading\n\n---",
    "w" * 3000,
    "[" * 500 + "](" * 500,
    "Zum Spaß: Häuser, œuvre, €, “quotes” – 你好 👩‍🎨 שלום नमस्ते e\u0301 \U000e0001",
]


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch):
    """A machine without any font file."""
    monkeypatch.setattr(pdf_text, "installed_fonts", dict)


def picture(width: int = 64, height: int = 48, **meta) -> Picture:
    return Picture(np.full((height, width, 3), 120, np.uint8), meta)


def answer(*parts: Text | Picture | str, request: str = "Draw a house") -> Document:
    document = Document().begin_turn("user", [Text(request)])
    return document.begin_turn("assistant", [Text(part) if isinstance(part, str) else part for part in parts])


def contents(pdf: bytes) -> list[str]:
    """The drawing instructions of each page."""
    streams = re.findall(rb"/Length \d+\s*>>\s*stream\n(.*?)\nendstream", pdf, re.DOTALL)
    unpacked = [zlib.decompress(stream) for stream in streams if stream[:1] == b"\x78"]
    return [text.decode("latin-1") for text in unpacked if b" Tf" in text or b" Do" in text]


def placed(page: str) -> list[tuple[float, float, float, float]]:
    """(width, height, left, bottom) of each picture of a page, in pt."""
    found = re.findall(r"q ([\d.]+) 0 0 ([\d.]+) ([\d.]+) ([\d.]+) cm /I\d+ Do", page)
    return [tuple(map(float, numbers)) for numbers in found]


def test_words_and_pictures_in_order(no_fonts):
    pdf = render_pdf(answer("First a wall.", picture(), "Now the **roof**.", picture(80, 40), "Done."))
    (page,) = contents(pdf)
    marks = ["Draw", "First", "/I1 Do", "roof", "/I2 Do", "Done"]
    assert [page.find(mark) for mark in marks] == sorted(page.find(mark) for mark in marks)
    assert all(mark in page for mark in marks)


def test_pictures_keep_their_proportions_and_are_never_cut(no_fonts):
    sizes = [(128, 128), (3000, 500), (50, 2000), (96, 160), (1, 1)] * 4
    pages = contents(render_pdf(answer(*(part for size in sizes for part in ("A step. " * 40, picture(*size))))))
    found = [box for page in pages for box in placed(page)]
    assert len(found) == len(sizes) and len(pages) > 3
    for (width, height), (shown_width, shown_height, left, bottom) in zip(sizes, found, strict=True):
        assert shown_width / shown_height == pytest.approx(width / height, rel=0.01)
        assert bottom >= MARGIN - 1 and bottom + shown_height <= PAGE - MARGIN + 1 and left >= MARGIN - 1
    for page in pages:
        edges = sorted((bottom, bottom + height) for _, height, _, bottom in placed(page))
        assert all(below[1] <= above[0] + 1 for below, above in pairwise(edges)), "overlapping"


def test_a_paragraph_goes_to_the_next_page_with_its_picture(no_fonts):
    pages = contents(render_pdf(answer(*(part for k in range(6) for part in (f"Step-{k}.", picture(300, 300))))))
    assert len(pages) > 1
    for page in pages:
        assert page.count("Step-") == len(placed(page)), "a paragraph and its picture are on two pages"


def structure(pdf: bytes) -> bytes:
    """What a reader would obey: the file without its streams and its strings."""
    without_streams = re.sub(rb"stream\r?\n.*?\nendstream", b"", pdf, flags=re.DOTALL)
    return re.sub(rb"\((?:\\.|[^\\()])*\)", b"()", without_streams, flags=re.DOTALL)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_only_text(text: str):
    document = answer(text, picture(text=text), text, request=text).replace_generation(model=text, stop_reason=text)
    obeyed = structure(render_pdf(document))
    for word in (
        b"/JavaScript",
        b"/JS",
        b"/Launch",
        b"/EmbeddedFile",
        b"javascript",
        b"evil.example",
        b"(",
        b"endstream",
    ):
        assert word not in obeyed.replace(b"()", b""), word
    assert obeyed.count(b"%PDF-") == obeyed.count(b"trailer") == 1 and obeyed.rstrip().endswith(b"%%EOF")


def test_hostile_text_in_any_mixture(no_fonts):
    rng = random.Random(0)
    pieces = [*HOSTILE[:-3], "`", "```\n", "\n\n", "[", "](", ")", "*", "_", "> ", "- ", "1. ", "    ", "|", "你", "\\"]
    for _ in range(40):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(2, 6)))
        assert render_pdf(answer(text, picture(), text)).startswith(b"%PDF-")


def test_only_links_to_the_web_can_be_clicked(no_fonts):
    pdf = render_pdf(answer("[good](https://ok.example/?a=(1)) [bad](file:///etc/passwd) [none]()"))
    assert re.findall(rb"/URI \((.*?)\)\n?>?", pdf) and pdf.count(b"/S /URI") == 1 and b"passwd" not in pdf


def test_characters_that_no_font_has_are_named(no_fonts):
    (page,) = contents(render_pdf(answer("Hello 你, wie geht’s?")))
    assert "Hello ?, wie geht?s?" in page.replace("\\", "")
    assert "U+4F60" in page and "U+2019" in page and "Shown as ?" in page
    (page,) = contents(render_pdf(answer("Grüße,\u00a0\u3000Spaß")))
    assert "Shown as" not in page


def test_fonts_of_the_machine_are_used():
    if not pdf_text.installed_fonts():
        pytest.skip("No font that this module knows is installed here.")
    fonts = pdf_text.choose_fonts("Привет “a”")
    assert fonts.files and "П" in set().union(*(pdf_text.coverage(file) for file in fonts.files)) - fonts.missing
    pdf = render_pdf(answer("Привет"))
    assert b"/FontFile" in pdf and b"/ToUnicode" in pdf
    assert not pdf_text.choose_fonts("plain, Grüße").files, "Western text needs no font file"


def test_a_damaged_font_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "DejaVuSans.ttf"
    broken.write_bytes(b"\0\1\0\0 not a font")
    monkeypatch.setattr(pdf_text, "installed_fonts", lambda: {broken.name: broken})
    assert "Shown as ?" in contents(render_pdf(answer("Привет")))[0]


def make_font(file: Path, characters: str) -> Path:
    """A font of PostScript outlines, as most of those for Chinese are; a .ttc holds it twice."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.t2CharStringPen import T2CharStringPen
    from fontTools.ttLib import TTCollection, TTFont

    def box():
        pen = T2CharStringPen(600, None)
        for draw, point in ((pen.moveTo, (50, 0)), (pen.lineTo, (550, 0)), (pen.lineTo, (550, 700))):
            draw(point)
        pen.closePath()
        return pen.getCharString()

    names = {ord(character): f"u{ord(character):04X}" for character in characters}
    glyphs = [".notdef", *names.values()]
    font = FontBuilder(1000, isTTF=False)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap(names)
    font.setupCFF("Box", {"FullName": "Box"}, {name: box() for name in glyphs}, {})
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (600, 50)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Box", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800)
    font.setupPost()
    font.save(file)
    if file.suffix == ".ttc":
        collection = TTCollection()
        collection.fonts = [TTFont(file), TTFont(file)]
        collection.save(file.with_suffix(".made"))
        file.with_suffix(".made").replace(file)
    return file


@pytest.mark.parametrize("name", ["NotoSansSC-Regular.otf", "NotoSansCJK-Regular.ttc"])
def test_fonts_for_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    font = make_font(tmp_path / name, "".join(map(chr, range(0x20, 0x7F))) + "你好")
    monkeypatch.setattr(pdf_text, "installed_fonts", lambda: {name: font})
    pdf = render_pdf(answer("**你好**, *a* `b` 😀", request="你好"))
    assert b"/ToUnicode" in pdf and b"/Helvetica" not in pdf
    assert pdf_text.choose_fonts("你好 😀").missing == {"😀"}


def test_a_font_that_cannot_be_embedded_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fontTools.ttLib import TTFont

    font = make_font(tmp_path / "NotoSansSC-Regular.otf", "".join(map(chr, range(0x20, 0x7F))) + "你")
    with TTFont(font) as opened:
        outlines = opened.reader.tables["CFF "]
    data = bytearray(font.read_bytes())
    damaged = outlines.length // 3  # the outlines themselves stand at the end
    data[outlines.offset + outlines.length - damaged : outlines.offset + outlines.length] = b"\xff" * damaged
    font.write_bytes(data)
    monkeypatch.setattr(pdf_text, "installed_fonts", lambda: {font.name: font})
    assert pdf_text.choose_fonts("你").files, "it can be read as far as its table of characters"
    assert "U+4F60" in contents(render_pdf(answer("你")))[0]


def test_the_same_document_gives_the_same_bytes_and_carries_data():
    document, data = answer("a", picture()), {"workflow": {"nodes": [1], "note": "Grüße </x:xmpmeta> ]]>"}}
    assert render_pdf(document, data) == render_pdf(document, data)
    assert b"duogen:data" in render_pdf(document, data) and b"duogen:data" not in render_pdf(document)


def test_empty_documents():
    for document in (Document(), Document().begin_turn("user"), answer(" ")):
        assert render_pdf(document).startswith(b"%PDF-")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fpdf", None)
    with pytest.raises(DuoGenError, match="pip install fpdf2"):
        render_pdf(answer("a"))


def test_blocks_of_markdown():
    blocks = markdown_blocks(
        "# T\n\n1. one\n   - in\n2. two **b** *i* `c`\n\n> q\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n---\n"
    )
    found = [(block.text, block.heading, block.depth, block.marker) for block in blocks]
    assert found == [
        ("T", 1, 0, ""), ("one", 0, 1, "1."), ("in", 0, 2, "\u00b7"), ("two b i c", 0, 1, "2."), ("q", 0, 1, ""),
        ("a   b", 0, 0, ""), ("1   2", 0, 0, ""), ("", 0, 0, ""),
    ]  # fmt: skip
    styles = [
        (run.text, run.bold, run.italic, run.code) for run in blocks[3].runs if run.text.strip() not in ("", "two")
    ]
    assert styles == [("b", True, False, False), ("i", False, True, False), ("c", False, False, True)]
