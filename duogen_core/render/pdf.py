"""Document -> one PDF: A4 pages, text and pictures in order, each picture in its own proportions and never cut in two.

In: a Document, and data that travels with the file unseen (ComfyUI's workflow). Out: the bytes; the same document gives
the same bytes on one machine. What a model wrote reaches the page as plain runs of text (`pdf_text`); nothing in it is
read as an instruction, fetched or run. Characters that no font of this machine has are named on the last page.
Written with fpdf2, which is pure Python.
"""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from duogen_core.document import Document, Picture, Text
from duogen_core.document.pending import is_pending
from duogen_core.errors import Cancelled, DuoGenError, is_out_of_memory
from duogen_core.render.html import (
    ENDINGS,
    FACTS,
    SPEAKERS,
    document_title,
    pending_words,
)
from duogen_core.render.parsing import Stop, stop_if
from duogen_core.render.pdf_text import (
    Fonts,
    Run,
    TextBlock,
    choose_fonts,
    markdown_blocks,
    no_fonts,
    printable,
    typed_block,
)

if TYPE_CHECKING:
    from fpdf import FPDF

MARGIN, INDENT, GAP = 20.0, 7.0, 3.0  # mm
PIXEL = 25.4 / 96  # mm of a pixel shown at its own size
SMALLEST = 70.0  # mm of the longer side: a smaller picture is shown larger
BODY, SMALL = 11.0, 9.0  # pt
HEADINGS = {1: 16.0, 2: 14.0}
LINE = 0.5  # mm of line height for a pt of type
INK, SOFT, ACCENT = (38, 35, 30), (111, 105, 95), (180, 85, 45)
REPLACEMENT = "?"
LETTERS = 1000  # of one line, at most
# What a line may be broken between: line ends, spaces, words, and each letter of the scripts that have no spaces.
PIECES = re.compile("\n| +|[^ \n\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]+|[^ \n]")
NAMED = 12  # missing characters that are named one by one
EMBEDDED = "duogen:data"  # the element of the XMP metadata that holds what travels with the file, in base64
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:duogen="urn:duogen:document"><{EMBEDDED}>%s</{EMBEDDED}></rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)


def render_pdf(document: Document, data: Mapping[str, Any] | None = None, cancelled: Stop = None) -> bytes:
    """The whole document as a PDF; `data` is plain JSON that is stored in it and shown nowhere.

    Raises Cancelled as soon as `cancelled()` says so."""
    try:
        import fpdf  # noqa: F401
    except ImportError:
        raise DuoGenError("Writing a PDF needs the package fpdf2; install it with: pip install fpdf2.") from None
    text = _all_text(document)
    fonts = choose_fonts(text)
    try:
        return _render(document, fonts, data, cancelled)
    except Exception as error:
        if isinstance(error, Cancelled) or is_out_of_memory(error) or not fonts.files:
            raise
        return _render(document, no_fonts(text), data, cancelled)  # a font file that can be read but not embedded


def _render(document: Document, fonts: Fonts, data: Mapping[str, Any] | None, cancelled: Stop) -> bytes:
    page = _Pages(fonts, document_title(document), cancelled)
    for turn in document.turns:
        page.speaker(SPEAKERS.get(turn.role, turn.role))
        for part, following in zip(turn.parts, (*turn.parts[1:], None)):
            if is_pending(part):
                page.pictures += 1
                page.text([typed_block(pending_words(part, page.pictures))], None, bold=False)
            elif isinstance(part, Picture):
                page.picture(part)
            elif part.text.strip():
                page.text(
                    markdown_blocks(part.text, cancelled)
                    if turn.role == "assistant"
                    else [typed_block(part.text.strip())],
                    following if isinstance(following, Picture) and not is_pending(following) else None,
                    bold=turn.role == "user",
                )
    page.ending(document)
    return page.finish(data)


def _all_text(document: Document) -> str:
    parts = [part for turn in document.turns for part in turn.parts]
    texts = [part.text for part in parts if isinstance(part, Text)]
    texts += [pending_words(part, 0) for part in parts if is_pending(part)]
    return printable("".join([document_title(document), *texts, *map(str, document.generation.values())]))


Line = list[tuple[Run, str, float]]  # of what is on it from left to right: how it looks, the letters, mm


class _Pages:
    """The pages as far as they are written."""

    def __init__(self, fonts: Fonts, title: str, cancelled: Stop) -> None:
        from fpdf import FPDF

        self.fonts, self.cancelled, self.pictures, self._due = fonts, cancelled, 0, ""
        self._replaced = str.maketrans(dict.fromkeys(fonts.missing, REPLACEMENT))
        self._widths: dict[tuple[str, str, float], dict[str, float]] = {}
        pdf = self.pdf = FPDF(format="A4")
        pdf.set_creation_date(datetime(2000, 1, 1, tzinfo=timezone.utc))  # the same document, the same bytes
        pdf.set_title(self.shown(title))
        pdf.set_creator("DuoGen")
        pdf.set_margins(MARGIN, MARGIN)
        pdf.c_margin = 0.0
        pdf.set_auto_page_break(True, MARGIN)
        self.family = self._embed(pdf)
        pdf.add_page()

    def _embed(self, pdf: FPDF) -> str:
        if not self.fonts.files:
            return "Helvetica"
        first, *others = self.fonts.files
        for style in ("", "B", "I", "BI"):  # an upright face stands in for a slanted one
            pdf.add_font("text", style, self.fonts.bold if "B" in style else first)
        for number, file in enumerate(others):
            pdf.add_font(f"more{number}", "", file)
        pdf.set_fallback_fonts([f"more{number}" for number in range(len(others))], exact_match=False)
        return "text"

    def shown(self, text: str) -> str:
        """Text as this file's fonts can show it."""
        return printable(text).translate(self._replaced)

    # ------------------------------------------------------------ what stands on the page

    def speaker(self, name: str) -> None:
        self._due = name  # not before it is known on which page its first words stand

    def _begin(self, height: float) -> None:
        """Begins a new page unless so much fits in one piece; the speaker's name stands above it."""
        pdf = self.pdf
        name, self._due = self._due, ""
        height += 2 * GAP + SMALL * LINE + GAP / 2 if name else 0
        if pdf.get_y() + height > pdf.h - MARGIN and height <= pdf.h - 2 * MARGIN:
            pdf.add_page()
        if name:
            self._space(2 * GAP if pdf.get_y() > MARGIN else 0)
            self._line(name, size=SMALL, colour=SOFT)

    def text(self, blocks: Sequence[TextBlock], following: Picture | None, *, bold: bool) -> None:
        """Paragraphs. They and their picture go to the next page when they fit there, but no longer here."""
        laid = [
            (block, self.lines(block.runs, _size_of(block), _left(block), bold or block.heading > 0))
            for block in blocks
        ]
        needed = sum(len(lines) * _size_of(block) * LINE + GAP for block, lines in laid)
        self._begin(needed + (self._size(following)[1] if following else 0))
        for block, lines in laid:
            self._block(block, lines, bold)

    def _block(self, block: TextBlock, lines: Sequence[Line], bold: bool) -> None:
        pdf, size, left = self.pdf, _size_of(block), _left(block)
        if block.rule:
            self._space(GAP)
            pdf.line(MARGIN, pdf.get_y(), pdf.w - MARGIN, pdf.get_y())
            self._space(GAP)
            return
        if block.marker:
            self._style(Run(""), size, bold=bold)
            pdf.set_x(left - INDENT)
            pdf.cell(0, size * LINE, block.marker)
        self._write(lines, size, left, bold=bold or block.heading > 0)

    def _write(self, lines: Sequence[Line], size: float, left: float, *, bold: bool = False) -> None:
        pdf = self.pdf
        for line in lines or ([],):
            stop_if(self.cancelled)
            pdf.set_x(left)
            for run, text, width in line:
                self._style(run, size, bold=bold)
                pdf.cell(width, size * LINE, text, link=run.link)
            pdf.ln(size * LINE)
        self._space(GAP / 2)

    def lines(self, runs: Iterable[Run], size: float, left: float, bold: bool = False) -> list[Line]:
        """Runs of text broken into lines: at spaces, around Chinese and Japanese letters, and inside what is too long.

        fpdf2 can break lines, but adds up the widths of a whole line for every letter of it: minutes for marks that
        have no width, or for one long word. Here a letter is measured once.
        """
        right = self.pdf.w - MARGIN - left
        lines: list[Line] = []
        line: Line = []
        spaces: Line = []  # since the last word: they go where the next word goes, or nowhere at a line's end
        x, letters = 0.0, 0  # of the line; letters without a width would never fill it

        def add(run: Run, text: str, width: float) -> None:
            nonlocal x, letters
            x, letters = x + width, letters + len(text)
            if line and line[-1][0] is run:
                run, before, already = line.pop()
                text, width = before + text, already + width
            line.append((run, text, width))

        def end() -> None:
            nonlocal x, letters, line
            stop_if(self.cancelled)
            lines.append(line)
            line, x, letters = [], 0.0, 0
            spaces.clear()

        for run in runs:
            widths = self._style(run, size, bold=bold)
            for match in PIECES.finditer(self.shown(run.text)):
                piece = match[0]
                if piece == "\n":
                    end()
                    continue
                width = sum(map(widths.__getitem__, piece))
                if piece[0] == " ":
                    spaces.append((run, piece, width))
                    continue
                gap = sum(one[2] for one in spaces)
                if line and (x + gap + width > right or letters + len(piece) > LETTERS):
                    end()
                if x + gap + width > right:
                    spaces.clear()
                for one in spaces:
                    add(*one)
                spaces.clear()
                start, used = 0, 0.0
                for index, letter in enumerate(piece if width > right or len(piece) > LETTERS else ""):
                    if index > start and (used + widths[letter] > right or index - start >= LETTERS):
                        add(run, piece[start:index], used)
                        end()
                        start, used = index, 0.0
                    used += widths[letter]
                add(run, piece[start:], used if start else width)
        if line or not lines:
            end()
        return lines

    def picture(self, picture: Picture) -> None:
        pdf = self.pdf
        self.pictures += 1
        width, height = self._size(picture)
        self._begin(height)
        if pdf.get_y() + height > pdf.h - MARGIN:  # as tall as a page: not below anything
            pdf.add_page()
        caption = self.shown(str(picture.meta.get("text", "")).strip())
        alt = f"Image {self.pictures}" + (f": {caption}" if caption else "")
        top = pdf.get_y()
        pdf.image(io.BytesIO(picture.to_png()), MARGIN, top, width, height, alt_text=alt)
        pdf.set_xy(MARGIN, top + height)
        self._space(GAP)

    def ending(self, document: Document) -> None:
        self._begin(0)
        ending = ENDINGS.get(str(document.generation.get("stop_reason")))
        facts = "   ".join(f"{name} {document.generation[name]}" for name in FACTS if name in document.generation)
        self._space(GAP)
        for line in (ending, facts, missing_sentence(self.fonts.missing)):
            if line:
                self._line(line, size=SMALL, colour=SOFT)

    def finish(self, data: Mapping[str, Any] | None) -> bytes:
        if data:
            value = json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode("ascii")
            self.pdf.set_xmp_metadata(XMP % base64.b64encode(value).decode("ascii"))
        return bytes(self.pdf.output())

    # ------------------------------------------------------------ how

    def _size(self, picture: Picture) -> tuple[float, float]:
        """mm; at its own size, but neither tiny nor larger than the page."""
        width, height = (side * PIXEL for side in picture.size)
        scale = max(1.0, SMALLEST / max(width, height))
        scale = min(scale, (self.pdf.w - 2 * MARGIN) / width, (self.pdf.h - 2 * MARGIN) / height)
        return width * scale, height * scale

    def _style(self, run: Run, size: float, *, bold: bool = False) -> dict[str, float]:
        """Takes up the font of a run; returns the widths of its letters in mm."""
        style = ("B" if bold or run.bold else "") + ("I" if run.italic else "")
        family = "Courier" if run.code and self.family == "Helvetica" else self.family
        self.pdf.set_font(family, style, size)
        self.pdf.set_text_color(*(run.colour or (ACCENT if run.link else INK)))
        return self._widths.setdefault((family, style, size), _Widths(self.pdf, style, size))

    def _line(self, text: str, *, size: float, colour: tuple[int, int, int]) -> None:
        run = Run(text, colour=colour)
        self._write(self.lines([run], size, MARGIN), size, MARGIN)

    def _space(self, height: float) -> None:
        self.pdf.set_y(min(self.pdf.get_y() + height, self.pdf.h - MARGIN))


class _Widths(dict[str, float]):
    """Letter -> mm in the font that is in use when this is made; each letter is looked up once."""

    def __init__(self, pdf: FPDF, style: str, size: float) -> None:
        super().__init__()
        self.pdf, self.font, self.style, self.size = pdf, pdf.current_font, style, size

    def __missing__(self, letter: str) -> float:
        font = self.font
        if font.type == "TTF" and ord(letter) not in font.cmap:
            name = self.pdf.get_fallback_font(letter, self.style)
            font = self.pdf.fonts[name] if name else font
        self[letter] = width = font.get_text_width(letter, self.size, None)[1] / self.pdf.k
        return width


def _size_of(block: TextBlock) -> float:
    return HEADINGS.get(block.heading, BODY)


def _left(block: TextBlock) -> float:
    return MARGIN + INDENT * block.depth


def missing_sentence(missing: frozenset[str]) -> str:
    """What a reader is told about the characters that this file could not show; "" when there are none."""
    if not missing:
        return ""
    ordered = sorted(missing)
    names = [f"U+{ord(c):04X} {unicodedata.name(c, '').title()}".strip() for c in ordered[:NAMED]]
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return (
        f"Shown as {REPLACEMENT} above, because no font on the machine that wrote this file has them: "
        f"{', '.join(names)}{more}. The web page and the Markdown of this document have the text as it is."
    )
