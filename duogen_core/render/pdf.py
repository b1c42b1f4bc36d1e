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
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.render.html import ENDINGS, FACTS, SPEAKERS, document_title
from duogen_core.render.pdf_fonts import Fonts, choose_fonts, no_fonts, printable
from duogen_core.render.pdf_text import Run, TextBlock, markdown_blocks, typed_block

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
NAMED = 12  # missing characters that are named one by one
EMBEDDED = "duogen:data"  # the element of the XMP metadata that holds what travels with the file, in base64
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:duogen="urn:duogen:document"><{EMBEDDED}>%s</{EMBEDDED}></rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)


def render_pdf(document: Document, data: Mapping[str, Any] | None = None) -> bytes:
    """The whole document as a PDF; `data` is plain JSON that is stored in it and shown nowhere."""
    try:
        import fpdf  # noqa: F401
    except ImportError:
        raise DuoGenError("Writing a PDF needs the package fpdf2; install it with: pip install fpdf2.") from None
    text = _all_text(document)
    fonts = choose_fonts(text)
    try:
        return _render(document, fonts, data)
    except Exception:
        if not fonts.files:
            raise
        return _render(document, no_fonts(text), data)  # a font file that can be read but not embedded


def _render(document: Document, fonts: Fonts, data: Mapping[str, Any] | None) -> bytes:
    page = _Pages(fonts, document_title(document))
    for turn in document.turns:
        page.speaker(SPEAKERS.get(turn.role, turn.role))
        for part, following in zip(turn.parts, (*turn.parts[1:], None)):
            if isinstance(part, Picture):
                page.picture(part)
            elif part.text.strip():
                blocks = markdown_blocks(part.text) if turn.role == "assistant" else [typed_block(part.text.strip())]
                page.keep_together(blocks, following if isinstance(following, Picture) else None)
                for block in blocks:
                    page.block(block, bold=turn.role == "user")
    page.ending(document)
    return page.finish(data)


def _all_text(document: Document) -> str:
    texts = [part.text for turn in document.turns for part in turn.parts if isinstance(part, Text)]
    return printable("".join([document_title(document), *texts, *map(str, document.generation.values())]))


class _Pages:
    """The pages as far as they are written."""

    def __init__(self, fonts: Fonts, title: str) -> None:
        from fpdf import FPDF

        self.fonts, self.pictures, self._due = fonts, 0, ""
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
        text = printable(text)
        return "".join(REPLACEMENT if c in self.fonts.missing else c for c in text)

    # ------------------------------------------------------------ what stands on the page

    def speaker(self, name: str) -> None:
        self._due = name  # not before it is known on which page its first words stand

    def _begin(self, height: float) -> None:
        """Make room for so much in one piece, on the next page if need be; the speaker's name stands above it."""
        pdf = self.pdf
        name, self._due = self._due, ""
        height += 2 * GAP + SMALL * LINE + GAP / 2 if name else 0
        if pdf.get_y() + height > pdf.h - MARGIN and height <= pdf.h - 2 * MARGIN:
            pdf.add_page()
        if name:
            self._space(2 * GAP if pdf.get_y() > MARGIN else 0)
            self._line(name, size=SMALL, colour=SOFT)

    def block(self, block: TextBlock, *, bold: bool = False) -> None:
        pdf, size = self.pdf, HEADINGS.get(block.heading, BODY)
        if block.rule:
            self._space(GAP)
            pdf.line(MARGIN, pdf.get_y(), pdf.w - MARGIN, pdf.get_y())
            self._space(GAP)
            return
        left = MARGIN + INDENT * block.depth
        pdf.set_left_margin(left)
        if block.marker:
            self._style(Run("", bold=bold), size)
            pdf.set_x(left - INDENT)
            pdf.write(size * LINE, block.marker)
        pdf.set_x(left)
        for run in block.runs:
            self._style(run, size, bold=bold or block.heading > 0)
            pdf.write(size * LINE, self.shown(run.text), run.link)
        pdf.set_left_margin(MARGIN)
        pdf.ln(size * LINE)
        self._space(GAP / 2)

    def picture(self, picture: Picture) -> None:
        pdf = self.pdf
        self.pictures += 1
        width, height = self._size(picture)
        self._begin(height)
        if pdf.get_y() + height > pdf.h - MARGIN:  # as tall as a page: not below anything
            pdf.add_page()
        caption = self.shown(str(picture.meta.get("text", "")).strip())
        alt = f"Picture {self.pictures}" + (f": {caption}" if caption else "")
        top = pdf.get_y()
        pdf.image(io.BytesIO(picture.to_png()), MARGIN, top, width, height, alt_text=alt)
        pdf.set_xy(MARGIN, top + height)
        self._space(GAP)

    def keep_together(self, blocks: Sequence[TextBlock], following: Picture | None) -> None:
        """A paragraph and its picture go to the next page when they fit there, but no longer here."""
        pdf, needed = self.pdf, 0.0
        for block in blocks:
            size = HEADINGS.get(block.heading, BODY)
            self._style(Run(""), size)
            width = pdf.w - 2 * MARGIN - INDENT * block.depth
            lines = pdf.multi_cell(width, size * LINE, self.shown(block.text), dry_run=True, output="LINES")
            needed += len(lines) * size * LINE + GAP
        needed += self._size(following)[1] if following else 0
        self._begin(needed)

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

    def _style(self, run: Run, size: float, *, bold: bool = False) -> None:
        style = ("B" if bold or run.bold else "") + ("I" if run.italic else "")
        family = "Courier" if run.code and self.family == "Helvetica" else self.family
        self.pdf.set_font(family, style, size)
        self.pdf.set_text_color(*(ACCENT if run.link else INK))

    def _line(self, text: str, *, size: float, colour: tuple[int, int, int]) -> None:
        self.pdf.set_font(self.family, "", size)
        self.pdf.set_text_color(*colour)
        self.pdf.write(size * LINE, self.shown(text))
        self.pdf.ln(size * LINE)
        self._space(GAP / 2)

    def _space(self, height: float) -> None:
        self.pdf.set_y(min(self.pdf.get_y() + height, self.pdf.h - MARGIN))


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
