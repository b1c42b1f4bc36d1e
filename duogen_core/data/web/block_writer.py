"""Text of a page -> Blocks of plain Markdown: paragraphs, headings, list items, rows of data tables, code, captions.

White space is collapsed as browsers do, except in code. The walker says what begins and ends; pictures end a block.
"""

from __future__ import annotations

import re
from typing import Any

from duogen_core.data.web.page import Block, BlockKind

SPACE = re.compile(r"[ \t\r\n\f\v\xa0]+")
SPACES = re.compile(r" {2,}")
AROUND_BREAK = re.compile(r" *\n *")
BREAKS = re.compile(r"\n{3,}")


class BlockWriter:
    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.region = ""
        self.links = 0  # how many links are open
        self.pieces: list[str] = []
        self.linked = 0
        self.kinds: list[tuple[BlockKind, str]] = []  # of what is open, with the mark of its first block
        self.lists: list[int | None] = []  # the next number; None for bullets
        self.mark = ""
        self.code = 0
        self.tables: list[list[str] | None] = []  # the rows of a data table; None for one that lays out
        self.row: list[str] | None = None
        self.continues = False  # whether a picture stood in the middle of this block

    def add(self, text: str | None) -> None:
        if not text:
            return
        text = text if self.code else SPACE.sub(" ", text)
        self.pieces.append(text)
        if self.links:
            self.linked += len(text.strip())

    def line_break(self) -> None:
        self.pieces.append("\n")

    def picture(self, image: Any) -> None:
        """Adds a picture, which cuts the block in two when it comes in the middle of one."""
        self.flush(cut=True)
        self.items.append(image)
        self.continues = True

    def flush(self, cut: bool = False) -> None:
        """Ends the block. In a cell of a data table a block is only a space."""
        if self.row is not None:
            self.pieces.append(" ")
            return
        text = "".join(self.pieces)
        linked, self.pieces, self.linked = self.linked, [], 0
        continues, self.continues = self.continues, False
        text = text.strip("\n").rstrip() if self.code else _tidy(text)
        if not text.strip():
            return
        kind, mark = self.kinds[-1] if self.kinds else ("text", "")
        mark = "" if continues else mark  # the second half of what a picture cut in two is no new heading or item
        if self.code:
            kind, text = "code", f"```\n{text}\n```"
        elif kind == "text" and self.lists:
            kind = "item"
        indent = "  " * max(len(self.lists) - 1, 0) if kind == "item" else ""
        text = f"{indent}{self.mark if kind == 'item' else ''}{mark}{text}"
        self.items.append(Block(text, kind, self.region, linked, cut, continues))
        if kind == "item":
            self.mark = ""

    def begin(self, kind: BlockKind, mark: str = "") -> None:
        self.flush()
        self.kinds.append((kind, mark))

    def end(self) -> None:
        self.flush()
        self.kinds.pop()

    def begin_list(self, start: str | None, numbered: bool) -> None:
        self.flush()
        # A start of more digits is a mistake, or an attack on int().
        first = int(start) if start and start.strip().isdecimal() and len(start) < 7 else 1
        self.lists.append(first if numbered else None)

    def end_list(self) -> None:
        self.flush()
        self.lists.pop()

    def begin_item(self) -> None:
        self.flush()
        number = self.lists[-1] if self.lists else None
        self.mark = "- " if number is None else f"{number}. "
        if number is not None:
            self.lists[-1] = number + 1

    def end_item(self) -> None:
        self.flush()
        self.mark = ""

    def begin_code(self) -> None:
        self.flush()
        self.code += 1

    def end_code(self) -> None:
        self.flush()
        self.code -= 1

    def begin_table(self, data: bool) -> None:
        self.flush()
        self.tables.append([] if data else None)

    def end_table(self) -> None:
        self.flush()
        self.row = None
        if rows := self.tables.pop():
            # Markdown knows no table without a head, so the first row is taken for one.
            rows.insert(1, "|" + " --- |" * rows[0].count(" |"))
            self.items.append(Block("\n".join(rows), "row", self.region))

    def begin_row(self) -> None:
        self.flush()
        if self.tables and self.tables[-1] is not None:
            self.row = []

    def end_row(self) -> None:
        row, self.row = self.row, None
        if row is None or not self.tables or self.tables[-1] is None:
            self.flush()
        elif any(row):
            self.pieces, self.linked = [], 0
            self.tables[-1].append("| " + " | ".join(row) + " |")

    def begin_cell(self) -> None:
        if self.row is None:
            self.flush()
        else:
            self.pieces, self.linked = [], 0

    def end_cell(self) -> None:
        if self.row is None:
            self.flush()
        else:
            self.row.append(" ".join("".join(self.pieces).split()).replace("|", "\\|"))
            self.pieces, self.linked = [], 0


def _tidy(text: str) -> str:
    text = AROUND_BREAK.sub("\n", SPACES.sub(" ", text))
    return BREAKS.sub("\n\n", text).strip()
