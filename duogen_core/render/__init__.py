"""Document -> something to read: one self-contained HTML file, a PDF, and Markdown beside the document's pictures.

html.py       one file that loads nothing; what a model wrote is escaped or parsed with HTML switched off
markdown.py   Markdown beside images/000.png, …
pdf.py        pages; pdf_text.py its text and fonts
parsing.py    Markdown of a model in bounded time, and which links may be followed: for all three
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from duogen_core.document import Document
from duogen_core.document.store import image_name
from duogen_core.files import write_atomically
from duogen_core.render.html import render_html
from duogen_core.render.markdown import render_markdown
from duogen_core.render.pdf import render_pdf

__all__ = ["render_html", "render_markdown", "render_pdf", "write_rendered"]


def write_rendered(
    document: Document,
    folder: str | os.PathLike[str],
    data: Mapping[str, Any] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Path, Path]:
    """Writes document.html and document.md into a document's folder, beside document.json. Returns both paths.

    `data` travels inside the HTML, see `render_html`. Raises Cancelled as soon as `cancelled()` says so."""
    html, markdown = Path(folder, "document.html"), Path(folder, "document.md")
    names = [image_name(index) for index in range(len(document.pictures))]
    write_atomically(html, render_html(document, data, cancelled).encode("utf-8"))
    write_atomically(markdown, render_markdown(document, names, cancelled).encode("utf-8"))
    return html, markdown
