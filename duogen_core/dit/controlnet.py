"""A ControlNet for the packed DiT: an image of outlines, encoded by the VAE, says where the new image has its lines.

In:  the control image's latent [1 or B, 16, h, w], as large as the target's; the target's noisy latent, its time, the
     text that the target sees.
Out: residuals {block of the DiT: [rows, tokens, C]}, added to the target's tokens behind those blocks. Earlier images
     get none, so their cached keys and values stay exact.
It is diffusers' CosmosControlNetModel (Cosmos-Transfer2.5), weights and their names included: a second, shorter row of
the DiT's blocks that reads the control's patches plus the noisy target's and looks at the text, but at no earlier
image. Behind each block a projection that starts at zero, so a new ControlNet changes nothing, bit for bit. What it
adds depends on the step, since it sees the noise: it runs once a step. `block_every_n` stands in the DiT's config in
diffusers (controlnet_block_every_n); here it is the ControlNet's own, since one DiT may have several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CosmosControlNetModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from duogen_core.dit import DitError
from duogen_core.dit.base import PackedDit
from duogen_core.dit.cosmos import CosmosFrames, PackedCosmos, PackedCosmosBlock, check_config
from duogen_core.dit.frames import FrameInputs, PackedFrames
from duogen_core.dit.packing import TrainingSequence, additive
from duogen_core.dit.prepared import Hidden, Prepared, TextKeys
from duogen_core.files import read_json
from duogen_core.linear import attention, use_fast_linear
from duogen_core.weights.headers import check_sizes
from duogen_core.weights.module import build_empty, check_module, fill_module
from duogen_core.weights.quantised import Prepare, use_scaled_linear
from duogen_core.weights.reading import DIFFUSERS_STEM, find_weights

CLASSES = ("PackedControlNet", "CosmosControlNetModel")
MASKS = 2  # channels behind the latent's: Cosmos' condition mask and its padding mask, both 0 where an image is drawn


def check_family(dit: PackedDit) -> None:
    if dit.family != "cosmos":
        raise DitError(
            f"This diffusion transformer is a {type(dit).__name__}, and ControlNets here are those of Cosmos "
            "transformers, whose blocks they copy; draw without one, or take a Cosmos model."
        )


class PackedControlNet(CosmosControlNetModel):
    @register_to_config
    def __init__(
        self,
        n_controlnet_blocks: int = 3,
        in_channels: int = 18,
        latent_channels: int = 18,
        model_channels: int = 192,
        num_attention_heads: int = 6,
        attention_head_dim: int = 32,
        mlp_ratio: float = 4.0,
        text_embed_dim: int = 192,
        adaln_lora_dim: int = 32,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        max_size: tuple[int, int, int] = (128, 240, 240),
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        extra_pos_embed_type: str | None = None,
        img_context_dim_in: int | None = None,
        img_context_dim_out: int = 2048,
        use_crossattn_projection: bool = False,
        crossattn_proj_in_channels: int = 1024,
        encoder_hidden_states_channels: int = 1024,
        block_every_n: int | None = None,
        control: str = "outlines",
    ) -> None:
        check_config(
            {name: value for name, value in locals().items() if name not in ("self", "__class__")}, "ControlNet"
        )
        if num_attention_heads * attention_head_dim != model_channels:
            raise DitError(
                f"The ControlNet's config has model_channels {model_channels}; expected {num_attention_heads} heads of "
                f"{attention_head_dim}, {num_attention_heads * attention_head_dim}."
            )
        super().__init__(
            n_controlnet_blocks=n_controlnet_blocks,
            in_channels=in_channels,
            latent_channels=latent_channels,
            model_channels=model_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            mlp_ratio=mlp_ratio,
            text_embed_dim=text_embed_dim,
            adaln_lora_dim=adaln_lora_dim,
            patch_size=patch_size,
            max_size=max_size,
            rope_scale=rope_scale,
            extra_pos_embed_type=extra_pos_embed_type,
            img_context_dim_in=img_context_dim_in,
            img_context_dim_out=img_context_dim_out,
            use_crossattn_projection=use_crossattn_projection,
            crossattn_proj_in_channels=crossattn_proj_in_channels,
            encoder_hidden_states_channels=encoder_hidden_states_channels,
        )
        for block in self.control_blocks:
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
    ) -> PackedControlNet:
        """Reads a folder with config.json and diffusion_pytorch_model.safetensors, ours or diffusers'; strict.
        Arguments as in weights.module.fill_module."""
        where = Path(folder) / "config.json"
        if not where.is_file():
            raise DitError(f"No ControlNet in {folder}: expected config.json and diffusion_pytorch_model.safetensors.")
        config = read_json(where, "configuration of a ControlNet")
        named = config.get("_class_name") if isinstance(config, dict) else None
        if named not in CLASSES:
            raise DitError(f"{where} names the model {named}; expected a ControlNet, {' or '.join(CLASSES)}.")
        weights = find_weights(folder, "weights of the ControlNet", DIFFUSERS_STEM)
        check_sizes(config, weights.entries, where)
        net = build_empty(lambda: cls.from_config(config), where, f"a {cls.__name__}")
        formats = check_module(net, weights, folder, "ControlNet")
        return fill_module(net, weights, formats, dtype=dtype, prepare=prepare or use_scaled_linear, copy=copy)

    @classmethod
    def of_dit(cls, dit: PackedCosmos, blocks: int) -> PackedControlNet:
        """A new one for this DiT: copies of its embeddings and first blocks, which change nothing until trained."""
        check_family(dit)
        own = {name: dit.config[name] for name in cls._shared if name in dit.config}
        width = dit.config.num_attention_heads * dit.config.attention_head_dim
        channels = dit.config.out_channels + MASKS
        net = cls(
            n_controlnet_blocks=blocks, in_channels=channels, latent_channels=channels, model_channels=width, **own
        )
        embedding = dit.patch_embed.state_dict()
        net.patch_embed.load_state_dict(embedding)
        net.patch_embed_base.load_state_dict(embedding)
        net.time_embed.load_state_dict(dit.time_embed.state_dict())
        for mine, theirs in zip(net.control_blocks, dit.transformer_blocks):
            mine.load_state_dict(theirs.state_dict(), strict=False)
            nn.init.zeros_(mine.after_proj.weight)
            nn.init.zeros_(mine.after_proj.bias)
        # What comes in may be open from the first step on, since nothing comes out: the control is seen at once.
        first = net.control_blocks[0].before_proj
        nn.init.eye_(first.weight)
        nn.init.zeros_(first.bias)
        return net

    _shared = (
        "num_attention_heads", "attention_head_dim", "mlp_ratio", "text_embed_dim", "adaln_lora_dim", "patch_size",
        "max_size", "rope_scale",
    )  # fmt: skip

    def check_fits(self, dit: PackedCosmos) -> None:
        """A DitError where this ControlNet was made for a DiT of another shape."""
        check_family(dit)
        own, its = self.config, dit.config
        pairs = [
            ("channels", own.model_channels, its.num_attention_heads * its.attention_head_dim),
            ("numbers a text token", own.text_embed_dim, its.text_embed_dim),
            ("channels of a latent", own.latent_channels - MASKS, its.out_channels),
            ("patch", tuple(own.patch_size), tuple(its.patch_size)),
        ]
        wrong = next(((what, a, b) for what, a, b in pairs if a != b), None)
        if wrong is not None:
            raise DitError(
                f"This ControlNet was made for another diffusion transformer: it has {wrong[0]} {wrong[1]}, the model "
                f"{wrong[2]}; take the ControlNet that belongs to this checkpoint."
            )
        if own.n_controlnet_blocks > its.num_layers:
            raise DitError(
                f"This ControlNet has {own.n_controlnet_blocks} blocks, more than the model's {its.num_layers}; take "
                "the ControlNet that belongs to this checkpoint."
            )

    def places(self, layers: int) -> list[int]:
        """The blocks of a DiT of so many layers behind which its residuals are added: every n-th, the first one too."""
        every = self.config.block_every_n or max(1, layers // len(self.control_blocks))
        return list(range(0, layers, every))[: len(self.control_blocks)]

    # A DiT of its own size, to what prepares text and positions.
    transformer_blocks = property(lambda self: self.control_blocks)
    grid, rope_of, rope_dtype = PackedFrames.grid, PackedFrames.rope_of, PackedFrames.rope_dtype
    rope_axes, rope_layout, timed = CosmosFrames.rope_axes, CosmosFrames.rope_layout, CosmosFrames.timed

    def patches(self, latent: Tensor, channels: int) -> Tensor:
        """[B, c, h, w] -> [B, tokens, channels of a patch]; the other channels, masks among them, are 0."""
        (gh, gw), (_, ph, pw) = self.grid(latent.shape), self.config.patch_size
        if latent.shape[1] > channels - MASKS:
            raise DitError(f"A latent has {latent.shape[1]} channels; this ControlNet takes {channels - MASKS}.")
        x = F.pad(latent, (0, 0, 0, 0, 0, channels - latent.shape[1])).unflatten(3, (gw, pw)).unflatten(2, (gh, ph))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def embed_control(self, latent: Tensor) -> Tensor:
        """[B, 16, h, w] -> [B, tokens, C], what no step changes."""
        return self.patch_embed.proj(self.patches(latent, self.config.in_channels))

    def embed_target(self, latent: Tensor) -> Tensor:
        return self.patch_embed_base.proj(self.patches(latent, self.config.latent_channels))

    def run(self, control: Tensor, target: Tensor, inputs: FrameInputs) -> list[Tensor]:
        """Embedded control and noisy target [rows, tokens, C] -> the residual of each control block."""
        blocks, out = self.control_blocks, []
        x = (blocks[0].before_proj(control) + target)[:, None]
        for number, block in enumerate(blocks):
            x = block(x, inputs, number)
            out.append(block.after_proj(x[:, 0]))
        return out

    # -------------------------------------------------------- drawing

    @torch.no_grad()
    def prepare(
        self, control: Tensor, texts: Sequence[tuple[Tensor, Hidden | None]], layers: int, size: Sequence[int]
    ) -> PreparedControl:
        """What no step of one image changes. control: the latent [1 or B, 16, h, w] of the control image. texts: as of
        the DiT's `prepare`, one for each branch of guidance. layers: of the DiT. size: of the target's latent."""
        if tuple(control.shape[-2:]) != tuple(size[-2:]):
            raise DitError(
                f"The control image's latent is {control.shape[-1]}x{control.shape[-2]}; expected that of the image "
                f"to be drawn, {size[-1]}x{size[-2]}."
            )
        return PreparedControl(self, control, texts, layers)

    # -------------------------------------------------------- training

    def residuals_train(
        self, sequences: Sequence[TrainingSequence], controls: Sequence[Sequence[Tensor]], layers: int
    ) -> dict[int, list[list[Tensor]]]:
        """For `PackedCosmos.forward_train`: {block: per sequence, of each noisy frame, [tokens, C]}.

        controls: per sequence the control latent [16, h, w] of each noisy frame. Frames of one size run as one batch,
        each with the text it sees.
        """
        frames = [
            (
                number,
                place,
                latent,
                control,
                sequence.timestep[place],
                sequence.text,
                sequence.sees[len(sequence.clean) + place],
            )
            for number, (sequence, own) in enumerate(zip(sequences, controls, strict=True))
            for place, (latent, control) in enumerate(zip(sequence.noisy, own, strict=True))
        ]
        places = self.places(layers)
        found: dict[int, list[list[Tensor]]] = {block: [[None] * len(s.noisy) for s in sequences] for block in places}
        for shape in {frame[2].shape for frame in frames}:
            alike = [frame for frame in frames if frame[2].shape == shape]
            numbers, indices, latents, hints, times, texts, sees = zip(*alike)
            target = self.embed_target(torch.stack(latents))
            control = self.embed_control(torch.stack(hints))
            embedded, temb = self.timed(torch.stack(times)[:, None], target)
            rope = self.rope_of([(0, *self.grid(shape))], target.device)
            inputs = FrameInputs(embedded, temb, rope, _sdpa, _masked_text(texts, sees, target))
            for block, residual in zip(places, self.run(control, target, inputs), strict=True):
                for number, index, own in zip(numbers, indices, residual, strict=True):
                    found[block][number][index] = own
        return found


def _sdpa(_block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _masked_text(texts: Sequence[Tensor], sees: Sequence[Tensor], like: Tensor) -> Any:
    """Cross-attention in which each row looks at those tokens of its own text that it sees."""
    rows = [text[own.to(text.device)] for text, own in zip(texts, sees, strict=True)]
    longest = max(map(len, rows))
    if not longest:
        return None
    text = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest)[None] < lengths[:, None]
    any_text = mask.any(1)
    bias = additive(mask | ~any_text[:, None], like.dtype)[:, None, None].to(like.device)
    seen = any_text.to(like.dtype)[:, None, None, None].to(like.device)

    def attend(_index: int, block: Any, q: Tensor) -> Tensor:
        k, v = block.text_keys_values(text)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)) * seen.to(q.dtype)

    return attend


class PreparedControl:
    """One control image for the steps of one picture: its embedding, positions, and the text's keys and values."""

    def __init__(
        self, net: PackedControlNet, control: Tensor, texts: Sequence[tuple[Tensor, Hidden | None]], layers: int
    ) -> None:
        self.net, self.places, self.batch = net, net.places(layers), texts[0][0].shape[0]
        self.control = net.embed_control(control)
        self.rope = net.rope_of([(0, *net.grid(control.shape))], control.device)
        known: list[tuple[Tensor, TextKeys]] = []
        self.branches: list[tuple[TextKeys, int]] = []  # of each branch, and how many of its tokens are seen
        for text, hidden in texts:
            start, end = hidden or (0, 0)
            # One buffer for both branches where they differ only in what is hidden: in the order the hiding one wants.
            hiding = next(((a, b) for other, h in texts if other is text for a, b in [h or (0, 0)] if b > a), (0, 0))
            keys = next((keys for other, keys in known if other is text and keys.hidden == hiding), None)
            if keys is None or (end > start and (start, end) != keys.hidden):
                keys = TextKeys(net, text, (start, end) if end > start else hiding)
                known.append((text, keys))
            self.branches.append((keys, keys.length - (end - start)))

    @torch.no_grad()
    def residuals(self, x: Tensor, t: Tensor, strength: float = 1.0) -> dict[int, Tensor]:
        """x [B, 16, h, w] at the times t [B], or a row for every branch -> {block: [G * B, tokens, C]}."""
        net, count = self.net, len(self.branches)
        target = net.embed_target(x.to(self.control.dtype))
        embedded, temb = net.timed(t[:, None], target)
        rows = count * self.batch
        if len(target) < rows:  # all branches begin alike
            target, embedded, temb = (each.repeat(count, *[1] * (each.ndim - 1)) for each in (target, embedded, temb))
        control = (
            self.control.expand(rows, -1, -1)
            if len(self.control) == 1
            else self.control.repeat(rows // len(self.control), 1, 1)
        )
        inputs = FrameInputs(embedded, temb, self.rope, _attend, self._attend_text, spans=(target.shape[1],))
        if not any(seen for _, seen in self.branches):
            inputs = replace(inputs, attend_text=None)
        found = net.run(control, target, inputs)
        return {block: each if strength == 1.0 else each * strength for block, each in zip(self.places, found)}

    def steps_of(self, prepared: Prepared, strength: float) -> ControlledSteps:
        return ControlledSteps(prepared, self, strength)

    def _attend_text(self, index: int, block: Any, q: Tensor) -> Tensor:
        out = []
        for (keys, seen), own in zip(self.branches, q.chunk(len(self.branches)), strict=True):
            pair = (each[:, :, :seen].expand(len(own), -1, -1, -1) for each in keys.of_block(index, block))
            out.append(attention(own, *pair) if seen else torch.zeros_like(own))
        return torch.cat(out)


@dataclass(frozen=True)
class ControlledSteps:
    """`Prepared` with a ControlNet beside it, to whoever takes the steps."""

    prepared: Prepared
    control: PreparedControl
    strength: float

    @property
    def device(self) -> torch.device:
        return self.prepared.device

    def velocities(self, x: Tensor, t: Tensor) -> list[Tensor]:
        return self.prepared.velocities(x, t, self.control.residuals(x, t, self.strength))


def _attend(_block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)
