"""PackedCosmos: diffusers' Cosmos transformer (Predict2.5) over pictures of unlike sizes. No new weights.

In:  a list of latents, one per picture, the last one noisy; timestep, text condition (contract in __init__.py).
Out: the last picture's velocity.
Every frame is patchified at its own resolution and the tokens are concatenated; rotary positions take the picture's
index as time and the frame's own grid as space; channel 17 marks finished pictures, channel 18 is the (empty) padding
mask. `attention="full"` equals diffusers on frames of one size to float32's rounding: adaLN is evaluated once per frame
there, once per token in diffusers. `attention="frame_causal"` is ours (frame_cache.py). Drawing is in prepared.py,
training's packing of many documents into one pass in packing.py. Follows DuoGen, section 3.2, and Cosmos-Predict2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from duogen_core.dit import DitError
from duogen_core.dit.frame_cache import FrameCache
from duogen_core.dit.frames import AS_TRAINED, Attend, CosmosFrames, PackedCosmosBlock, Positions
from duogen_core.dit.packing import Residuals, TrainingSequence, forward_train
from duogen_core.dit.prepared import Prepared, alike, checked_ends
from duogen_core.files import read_json
from duogen_core.linear import use_fast_linear
from duogen_core.weights.headers import check_sizes
from duogen_core.weights.module import build_empty, check_module, fill_module
from duogen_core.weights.quantised import Prepare, use_scaled_linear
from duogen_core.weights.reading import DIFFUSERS_STEM, find_weights

ATTENTION = ("full", "frame_causal")


WHOLE = (
    "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers", "text_embed_dim",
    "adaln_lora_dim", "crossattn_proj_in_channels", "encoder_hidden_states_channels", "img_context_num_tokens",
    "img_context_dim_out", "n_controlnet_blocks", "latent_channels", "model_channels",
)  # fmt: skip
YES_OR_NO = ("concat_padding_mask", "use_crossattn_projection", "references")


def check_config(config: Mapping[str, object], what: str = "DiT") -> None:
    """Every value is of its kind and range, or a DitError names it: some would fail only while a picture is drawn."""

    def number(value: object, low: float, high: float) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def whole(value: object) -> bool:
        return isinstance(value, int) and number(value, 1, 2**31)

    def three(value: object, kind: Callable[[object], bool]) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(kind, value))

    for name, value in config.items():
        if name in WHOLE:
            right, wanted = whole(value), "a whole number of at least 1"
        elif name in YES_OR_NO:
            right, wanted = isinstance(value, bool), "true or false"
        elif name in ("max_size", "patch_size"):
            right, wanted = three(value, whole), "three whole numbers of at least 1"
        elif name == "rope_scale":
            right, wanted = three(value, lambda n: number(n, 1e-3, 1e3)), "three numbers of 0.001 to 1000"
        elif name == "mlp_ratio":
            right, wanted = number(value, 1e-3, 1e3), "a number of 0.001 to 1000"
        elif name == "clean_timestep":
            right, wanted = number(value, -1, 1), "a number of -1 to 1"
        elif name in ("controlnet_block_every_n", "img_context_dim_in", "extra_pos_embed_type"):
            right, wanted = value is None, "none, as this pack draws without it"
        elif name == "block_every_n":
            right, wanted = value is None or whole(value), "none, or a whole number of at least 1"
        else:
            continue
        if not right:
            raise DitError(f"The {what}'s config has {name} {value!r}; expected {wanted}.")
    heads = config["attention_head_dim"]
    if heads % 2 or heads < 6:  # an even share of each head turns by time, by row and by column
        raise DitError(f"The {what}'s config has attention_head_dim {heads}; expected an even number of at least 6.")
    if config["patch_size"][0] != 1:
        raise DitError(
            f"The {what}'s config has patch_size {config['patch_size']}; one image is one frame, so expected 1 first."
        )


class PackedCosmos(CosmosFrames):
    _no_split_modules = ["PackedCosmosBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 17,
        out_channels: int = 16,
        num_attention_heads: int = 6,
        attention_head_dim: int = 32,
        num_layers: int = 8,
        mlp_ratio: float = 4.0,
        text_embed_dim: int = 192,
        adaln_lora_dim: int = 32,
        max_size: tuple[int, int, int] = (128, 240, 240),
        patch_size: tuple[int, int, int] = (1, 2, 2),
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        concat_padding_mask: bool = True,
        extra_pos_embed_type: str | None = None,
        use_crossattn_projection: bool = False,
        crossattn_proj_in_channels: int = 1024,
        encoder_hidden_states_channels: int = 1024,
        controlnet_block_every_n: int | None = None,
        img_context_dim_in: int | None = None,
        img_context_num_tokens: int = 256,
        img_context_dim_out: int = 2048,
        attention: str = "full",
        clean_timestep: float = 1e-4,
        references: bool = True,
    ) -> None:
        check_config({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            mlp_ratio=mlp_ratio,
            text_embed_dim=text_embed_dim,
            adaln_lora_dim=adaln_lora_dim,
            max_size=max_size,
            patch_size=patch_size,
            rope_scale=rope_scale,
            concat_padding_mask=concat_padding_mask,
            extra_pos_embed_type=extra_pos_embed_type,
            use_crossattn_projection=use_crossattn_projection,
            crossattn_proj_in_channels=crossattn_proj_in_channels,
            encoder_hidden_states_channels=encoder_hidden_states_channels,
            controlnet_block_every_n=controlnet_block_every_n,
            img_context_dim_in=img_context_dim_in,
            img_context_num_tokens=img_context_num_tokens,
            img_context_dim_out=img_context_dim_out,
        )
        if attention not in ATTENTION:
            raise DitError(f"The DiT's config has attention {attention!r}; expected one of {', '.join(ATTENTION)}.")
        if in_channels != out_channels + 1:
            raise DitError(f"The DiT's config has in_channels {in_channels}; packing images needs {out_channels + 1}.")
        if attention == "frame_causal" and clean_timestep < 0:
            raise DitError("A frame_causal DiT needs a clean_timestep of its own; its config has a negative one.")
        for block in self.transformer_blocks:
            block.__class__ = PackedCosmosBlock  # same weights, one more way to be called
        use_fast_linear(self)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        prepare: Prepare | None = None,
        copy: bool = True,
        **settings: Any,
    ) -> PackedCosmos:
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
        projected: list[tuple[Tensor, tuple[int, int]]] = []
        for text, hidden in texts:
            if text.ndim != 3 or text.shape[0] != batch:
                raise DitError(
                    f"text is {tuple(text.shape)}; expected ({batch}, tokens, {self.config.text_embed_dim})."
                )
            start, end = hidden or (0, 0)
            if not 0 <= start <= end <= text.shape[1]:
                raise DitError(f"hidden {hidden} must lie within the {text.shape[1]} text tokens, start before end.")
            before = next((own for (other, _), (own, _) in zip(texts, projected) if other is text), None)
            projected.append((self.project_text(text) if before is None else before, (start, end)))
        if not self.config.references:
            frames, frame_ends = [], None
        wrong = next((frame for frame in frames if frame.shape[0] not in (1, batch)), None)
        if wrong is not None:
            raise DitError(f"A finished image's latent is {tuple(wrong.shape)}; expected a batch of 1 or {batch}.")
        frames = [frame[:1] if alike(frame) else frame for frame in frames]  # a batch often is one picture, repeated
        ends: list[Sequence[int]] = [() for _ in projected]
        if self.config.attention == "frame_causal":
            none = [0] * len(frames)
            ends = [checked_ends(frame_ends if t.shape[1] else none, len(frames), t.shape[1]) for t, _ in projected]
        return Prepared(
            self, frames, projected, tuple(size[-2:]), ends, cache, refresh, attention, positions, together
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
        """The target's velocity [B, 16, h, w] in one call, without gradients: `prepare` and one step."""
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
        """Per sequence the velocity [16, h, w] of every noisy frame; a pack of any sizes and counts (packing.py).
        residuals: of a ControlNet, for the noisy frames.

        Equal to `forward_packed` once per noisy frame. Under `full` attention a sequence has one noisy frame.
        """
        if not self.config.references and any(sequence.clean for sequence in sequences):
            raise DitError("This DiT draws without looking at earlier images: its sequences must have no clean frames.")
        return forward_train(self, sequences, residuals)


def init_weights(model: PackedCosmos) -> PackedCosmos:
    """Weights to train from scratch.

    - Linear layers: Xavier, so that signals keep their size in a transformer without biases.
    - The second adaLN layers and the time embedding's second layer: zero. Shift, scale and gate then start at zero,
      every block starts as the identity and opens as it learns (adaLN-zero, DiT section 3.2).
    - The output projection: zero, so that the first prediction is 0, the mean of the target; a random one would have
      to be unlearned first.
    - Query and key norms: one, which with normalised heads gives attention logits of unit variance.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2, block.norm3):
            nn.init.zeros_(norm.linear_2.weight)
    nn.init.zeros_(model.norm_out.linear_2.weight)
    nn.init.zeros_(model.time_embed.t_embedder.linear_2.weight)
    nn.init.zeros_(model.proj_out.weight)
    return model
