"""The layouts in which sets of edits are published: which column holds what.

Checked against the sets' own pages: column names of InstructPix2Pix (timbrooks/instructpix2pix-clip-filtered and
fusing/instructpix2pix-1000-samples), MagicBrush (osunlp), UltraEdit (BleachNick), HQ-Edit (UCSC-VLAA), AnyEdit
(Bin1117) and ShareGPT-4o-Image (FreedomIntelligence, text_and_image_to_image.json);
X2I as OmniGen describes its files. A licence is what the set's page says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duogen_core.errors import DuoGenError


@dataclass(frozen=True)
class Layout:
    """Names of columns; of several in a tuple the first that is there is taken."""

    source: tuple[str, ...]
    instruction: tuple[str, ...]
    target: tuple[str, ...]
    more_pictures: tuple[str, ...] = ()  # that the user brings too, where a row has them
    session: str = ""  # rows of one conversation share its value,
    turn: str = ""  # and this one counts them
    inverse: str = ""  # the instruction that leads back from the result
    about: tuple[str, ...] = ()  # kept in meta
    marker: str = ""  # a pattern for the place of picture N in the instruction
    file: str = ""  # the usual name of the list, where there are several
    licence: str = ""

    @property
    def needed(self) -> list[str]:
        return [" or ".join(names) for names in (self.source, self.instruction, self.target)] + [
            name for name in (self.session, self.turn) if name
        ]

    def missing(self, columns: Sequence[str]) -> bool:
        alternatives = (self.source, self.instruction, self.target)
        return any(not set(names) & set(columns) for names in alternatives) or any(
            name and name not in columns for name in (self.session, self.turn)
        )


LAYOUTS = {
    "instructpix2pix": Layout(
        ("original_image", "input_image"),
        ("edit_prompt",),
        ("edited_image",),
        about=("original_prompt", "edited_prompt"),
    ),
    "magicbrush": Layout(
        ("source_img",),
        ("instruction",),
        ("target_img",),
        session="img_id",
        turn="turn_index",
        licence="CC-BY-4.0",
    ),
    "ultraedit": Layout(
        ("source_image",),
        ("edit_prompt",),
        ("edited_image",),
        about=("source_caption", "target_caption", "clip_sim_dir", "clip_sim_image", "dinov2_sim", "ssim"),
        licence="CC-BY-4.0",
    ),
    "hq-edit": Layout(
        ("input_image",),
        ("edit",),
        ("output_image",),
        inverse="inverse_edit",
        about=("input", "output"),
        licence="CC-BY-NC-4.0",
    ),
    "anyedit": Layout(
        ("image_file",),
        ("edit_instruction",),
        ("edited_file",),
        more_pictures=("visual_input",),
        about=("image_id", "edit_type", "input", "output"),
        licence="CC-BY-4.0",
    ),
    "sharegpt-4o-image": Layout(
        ("input_image",), ("input_prompt",), ("output_image",), file="text_and_image_to_image.json"
    ),
    "x2i": Layout(
        ("input_images",),
        ("instruction",),
        ("output_image",),
        about=("task_type",),
        marker=r"(?:<img>)?<\|image_(\d+)\|>(?:</img>)?",
        licence="Apache-2.0",
    ),
}


def check_columns(name: str, columns: Sequence[str], where: str) -> Layout:
    """The layout, if these columns are its own; otherwise a sentence with what was found and what was expected."""
    layout = LAYOUTS[name]
    if not layout.missing(columns):
        return layout
    fits = [other for other, each in LAYOUTS.items() if not each.missing(columns)]
    hint = f" These columns are those of {' or '.join(fits)}." if fits else ""
    found = ", ".join(map(str, columns))[:500] or "no columns"
    raise DuoGenError(
        f"{where} has the columns {found}; the layout {name} expects {', '.join(layout.needed)}, so choose the layout "
        f"that it has.{hint}"
    )


def split_at_markers(text: str, pattern: str) -> list[str | int]:
    """Text and numbers of pictures (from 1), in order. Without a marker, the text alone."""
    pieces = re.split(pattern, text)
    found: list[str | int] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            found.append(int(piece))
        elif piece.strip():
            found.append(piece.strip())
    return found
