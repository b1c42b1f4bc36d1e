"""PackedDit: what every family of DiT has in common: its folder, drawing and training over frames of unlike sizes.

In:  a list of latents, one per picture, the last one noisy; timestep, text condition (contract in __init__.py).
Out: the last picture's velocity.
Every frame is cut into patches at its own resolution and the tokens are concatenated; rotary positions take the
picture's index as time and the frame's own grid as space. Drawing is in prepared.py, training's packing of many
documents into one pass in packing.py, the way through a block in frames.py.

A family (cosmos.py, wan.py) is a class with PackedDit before diffusers' transformer. It adds no weights: its blocks
become a PackedBlock by class assignment. `check_values` and `check_settings` refuse a config.json by the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from duogen_core.dit import DitError
from duogen_core.dit.frame_cache import FrameCache
from duogen_core.dit.frames import AS_TRAINED, Attend, PackedFrames, Positions
from duogen_core.dit.packing import Residuals, TrainingSequence, forward_train
from duogen_core.dit.prepared import Prepared, alike, checked_ends
from duogen_core.files import read_json
from duogen_core.weights.headers import check_sizes
from duogen_core.weights.module import build_empty, check_module, fill_module
from duogen_core.weights.quantised import Prepare, use_scaled_linear
from duogen_core.weights.reading import DIFFUSERS_STEM, find_weights

ATTENTION = ("full", "frame_causal")


class PackedDit(PackedFrames):
    """family: its name in settings. lora_within: the name of the blocks' list in the module, below which LoRA's layers
    lie. outer_parts: what stands in the names of weights at either end."""

    family: str
    lora_within: str
    outer_parts: tuple[str, ...]

    @classmethod
    def is_outer(cls, name: str) -> bool:
        """Whether a weight is of a layer at either end, which AdamW trains: Muon is for what lies between."""
        return any(part in name for part in cls.outer_parts)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        prepare: Prepare | None = None,
        copy: bool = True,
        **settings: Any,
    ) -> PackedDit:
        """Reads a folder with config.json and diffusion_pytorch_model.safetensors (or its shards); strict.

        dtype: of what is not quantised; None keeps the file's. prepare, copy: as in weights.module.fill_module.
        settings: values that take the place of the configuration's.
        """
        where = Path(folder) / "config.json"
        if not where.is_file():
            raise DitError(f"No DiT in {folder}: expected config.json and diffusion_pytorch_model.safetensors.")
        weights = find_weights(folder, "weights of the DiT", DIFFUSERS_STEM)
        config = read_json(where, "configuration of a DiT")
        if not isinstance(config, dict):
            raise DitError(f"{where} holds a {type(config).__name__}; expected a JSON object.")
        config |= settings
        check_sizes(config, weights.entries, where)
        dit = build_empty(lambda: cls.from_config(config), where, f"a {cls.__name__}")
        formats = check_module(dit, weights, folder, "DiT")
        return fill_module(dit, weights, formats, dtype=dtype, prepare=prepare or use_scaled_linear, copy=copy)

    # -------------------------------------------------------- drawing

    @torch.no_grad()
    def prepare(
        self,
        frames: Sequence[Tensor],
        texts: Sequence[tuple[Tensor, tuple[int, int] | None]],
        size: Sequence[int],
        *,
        frame_ends: Sequence[int] | None = None,
        cache: FrameCache | None = None,
        refresh: int = 1,
        attention: Attend | None = None,
        positions: Positions = AS_TRAINED,
        together: bool = False,
    ) -> Prepared:
        """What no step of one picture changes; arguments as in duogen_core/dit/__init__.py.

        `full` has no keys and values that could be reused exactly, and takes neither frame_ends nor cache into account.
        Without any text (a negative branch that drops all of it) no frame sees text.
        """
        if refresh < 1:
            raise DitError(f"refresh is {refresh}; expected 1 (exact) or how many steps share keys and values.")
        batch = texts[0][0].shape[0] if texts and texts[0][0].ndim == 3 else 0
        ready: list[tuple[Tensor, Tensor, tuple[int, int]]] = []
        for text, hidden in texts:
            if text.ndim != 3 or text.shape[0] != batch:
                raise DitError(
                    f"text is {tuple(text.shape)}; expected ({batch}, tokens, {self.config.text_embed_dim})."
                )
            start, end = hidden or (0, 0)
            if not 0 <= start <= end <= text.shape[1]:
                raise DitError(f"hidden {hidden} must lie within the {text.shape[1]} text tokens, start before end.")
            before = next((own for other, own, _ in ready if other is text), None)
            ready.append((text, self.project_text(text) if before is None else before, (start, end)))
        if not self.config.references:
            frames, frame_ends = [], None
        wrong = next((frame for frame in frames if frame.shape[0] not in (1, batch)), None)
        if wrong is not None:
            raise DitError(f"A finished image's latent is {tuple(wrong.shape)}; expected a batch of 1 or {batch}.")
        frames = [frame[:1] if alike(frame) else frame for frame in frames]  # a batch often is one picture, repeated
        ends: list[Sequence[int]] = [() for _ in ready]
        if self.config.attention == "frame_causal":
            none = [0] * len(frames)
            ends = [checked_ends(frame_ends if t.shape[1] else none, len(frames), t.shape[1]) for t, *_ in ready]
        return Prepared(
            self, frames, ready, tuple(size[-2:]), ends, cache, refresh, attention, positions, together
        )  # fmt: skip

    def forward_packed(
        self,
        frames: Sequence[Tensor],
        timestep: Tensor,
        text: Tensor,
        *,
        frame_ends: Sequence[int] | None = None,
        hidden: tuple[int, int] | None = None,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """The target's velocity [B, c, h, w] in one call, without gradients: `prepare` and one step."""
        *clean, target = frames
        batch = target.shape[0]
        if timestep.shape != (batch,) or text.ndim != 3 or text.shape[0] != batch:
            raise DitError(
                f"The target has batch {batch}, but timestep is {tuple(timestep.shape)} and text {tuple(text.shape)}; "
                f"expected ({batch},) and ({batch}, tokens, {self.config.text_embed_dim})."
            )
        prepared = self.prepare(clean, [(text, hidden)], target.shape, frame_ends=frame_ends, cache=cache)
        return prepared.velocities(target, timestep)[0]

    # -------------------------------------------------------- training

    def forward_train(
        self, sequences: Sequence[TrainingSequence], residuals: Residuals | None = None
    ) -> list[list[Tensor]]:
        """Per sequence the velocity [c, h, w] of every noisy frame; a pack of any sizes and counts (packing.py).
        residuals: of a ControlNet, for the noisy frames.

        Equal to `forward_packed` once per noisy frame. Under `full` attention a sequence has one noisy frame.
        """
        if not self.config.references and any(sequence.clean for sequence in sequences):
            raise DitError("This DiT draws without looking at earlier images: its sequences must have no clean frames.")
        return forward_train(self, sequences, residuals)


# ---------------------------------------------------------------- a config.json that would fail only while drawing

Rule = tuple[Callable[[object], bool], str]  # whether a value is right, and what is expected


def number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def whole(value: object) -> bool:
    return isinstance(value, int) and number(value, 1, 2**31)


def three(value: object, kind: Callable[[object], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(kind, value))


WHOLE: Rule = (whole, "a whole number of at least 1")
YES_OR_NO: Rule = (lambda value: isinstance(value, bool), "true or false")
NONE: Rule = (lambda value: value is None, "none, as this pack draws without it")
THREE_WHOLE: Rule = (lambda value: three(value, whole), "three whole numbers of at least 1")


def check_values(config: Mapping[str, object], rules: Mapping[str, Rule], what: str = "DiT") -> None:
    """Every value that has a rule is of its kind and range, or a DitError names it."""
    for name, value in config.items():
        right, wanted = rules.get(name, (None, ""))
        if right is not None and not right(value):
            raise DitError(f"The {what}'s config has {name} {value!r}; expected {wanted}.")
    heads = config["attention_head_dim"]
    if heads % 2 or heads < 6:  # an even share of each head turns by time, by row and by column
        raise DitError(f"The {what}'s config has attention_head_dim {heads}; expected an even number of at least 6.")
    if config["patch_size"][0] != 1:
        raise DitError(
            f"The {what}'s config has patch_size {config['patch_size']}; one image is one frame, so expected 1 first."
        )


def check_settings(attention: str, clean_timestep: float) -> None:
    if attention not in ATTENTION:
        raise DitError(f"The DiT's config has attention {attention!r}; expected one of {', '.join(ATTENTION)}.")
    if attention == "frame_causal" and clean_timestep < 0:
        raise DitError("A frame_causal DiT needs a clean_timestep of its own; its config has a negative one.")
