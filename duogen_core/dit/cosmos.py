"""PackedCosmos: diffusers' Cosmos transformer (Predict2.5) over pictures of unlike sizes. No new weights.

What this family has in its own way (base.py, frames.py): channel 17 marks finished pictures, channel 18 is the (empty)
padding mask; adaLN with low-rank layers of its own in front of each part of a block; query and key norms per head;
NTK-stretched rotary frequencies. `attention="full"` equals diffusers on frames of one size to float32's rounding: adaLN
is evaluated once per frame there, once per token in diffusers. `attention="frame_causal"` is ours (frame_cache.py).
Follows DuoGen, section 3.2, and Cosmos-Predict2.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import Tensor, nn

from duogen_core.dit import DitError
from duogen_core.dit.base import (
    NONE,
    THREE_WHOLE,
    WHOLE,
    YES_OR_NO,
    PackedDit,
    Rule,
    check_settings,
    check_values,
    number,
    three,
    whole,
)
from duogen_core.dit.frames import FrameInputs, PackedBlock, PackedFrames, Rope, heads, modulate
from duogen_core.linear import use_fast_linear

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers", "text_embed_dim",
            "adaln_lora_dim", "crossattn_proj_in_channels", "encoder_hidden_states_channels", "img_context_num_tokens",
            "img_context_dim_out", "n_controlnet_blocks", "latent_channels", "model_channels",
        ),
        WHOLE,
    ),
    **dict.fromkeys(("concat_padding_mask", "use_crossattn_projection", "references"), YES_OR_NO),
    **dict.fromkeys(("max_size", "patch_size"), THREE_WHOLE),
    **dict.fromkeys(("controlnet_block_every_n", "img_context_dim_in", "extra_pos_embed_type"), NONE),
    "rope_scale": (lambda value: three(value, lambda n: number(n, 1e-3, 1e3)), "three numbers of 0.001 to 1000"),
    "mlp_ratio": (lambda value: number(value, 1e-3, 1e3), "a number of 0.001 to 1000"),
    "clean_timestep": (lambda value: number(value, -1, 1), "a number of -1 to 1"),
    "block_every_n": (lambda value: value is None or whole(value), "none, or a whole number of at least 1"),
}  # fmt: skip


def check_config(config: Mapping[str, object], what: str = "DiT") -> None:
    """Every value is of its kind and range, or a DitError names it: some would fail only while a picture is drawn."""
    check_values(config, RULES, what)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary positions of [B, heads, L, D], in float32; number for number diffusers' apply_rotary_emb."""
    cos, sin = rope
    wide, half = x.float(), x.shape[-1] // 2
    out = wide * cos
    # Into the halves of the product: diffusers builds the rotated tensor first, four more passes over memory.
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return out.to(x.dtype)


def modulation(norm: nn.Module, inputs: FrameInputs) -> tuple[Tensor, ...]:
    """adaLN of one layer: chunks [B, F, 1, C], or [B, tokens, 1, C] where they are gathered for each token."""
    out = norm.linear_2(norm.linear_1(norm.activation(inputs.embedded)))
    out = out + inputs.temb[..., : out.shape[-1]]
    if inputs.token_frame is not None:
        out = out.index_select(1, inputs.token_frame)
    return out.chunk(out.shape[-1] // inputs.embedded.shape[-1], dim=-1)


class PackedCosmosBlock(PackedBlock, CosmosTransformerBlock):
    def modulated(self, x: Tensor, part: int, inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        norm = (self.norm1, self.norm2, self.norm3)[part]
        shift, scale, gate = modulation(norm, inputs)
        return modulate(norm.norm(x), shift, scale, inputs.spans), gate

    def normed_heads(self, x: Tensor, attn: nn.Module, norm: nn.Module) -> Tensor:
        return norm(heads(x, attn))

    def turned(self, x: Tensor, rope: Rope) -> Tensor:
        return rotate(x, rope)

    def feed_forward(self, h: Tensor) -> Tensor:
        return self.ff(h)


class CosmosFrames(PackedFrames):
    """Cosmos' embeddings, positions and head; a ControlNet has the first two as well."""

    @property
    def rope_axes(self) -> tuple[tuple[int, float], ...]:
        # The factors (NTK) stretch the frequencies as in training.
        rope = self.rope
        return (
            (rope.dim_t, 10000.0 * rope.t_ntk_factor),
            (rope.dim_h, 10000.0 * rope.h_ntk_factor),
            (rope.dim_w, 10000.0 * rope.w_ntk_factor),
        )

    def rope_layout(self, t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return torch.cat([t, h, w] * 2, dim=-1)

    def extra_channels(self, latent: Tensor, clean: bool) -> list[Tensor]:
        batch, _, height, width = latent.shape
        # Channel 17 is Cosmos' condition mask: 1 where a frame is given, 0 where it is to be drawn.
        extra = [latent.new_full((batch, 1, height, width), 1.0 if clean else 0.0)]
        if self.config.concat_padding_mask:
            extra.append(latent.new_zeros(batch, 1, height, width))
        return extra

    def embed(self, patches: Tensor) -> Tensor:
        return self.patch_embed.proj(patches)

    def project_text(self, text: Tensor) -> Tensor:
        """Checkpoints that carry the connector inside (Predict2.5) also take the raw states."""
        if self.config.use_crossattn_projection and text.shape[-1] == self.config.crossattn_proj_in_channels:
            text = self.crossattn_proj(text)
        if text.shape[-1] != self.config.text_embed_dim:
            raise DitError(f"The text condition is {text.shape[-1]} wide; this DiT takes {self.config.text_embed_dim}.")
        return text

    def timed(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B, F] -> (embedded, temb), each [B, F, 1, channels]."""
        temb, embedded = self.time_embed(like, timestep.flatten())
        return embedded.view(*timestep.shape, 1, -1), temb.view(*timestep.shape, 1, -1)

    def head(self, x: Tensor, inputs: FrameInputs) -> Tensor:
        """The last norm and projection: [B, F, S, C] -> [B, F, S, patch]"""
        shift, scale = modulation(self.norm_out, inputs)
        return self.proj_out(modulate(self.norm_out.norm(x), shift, scale, inputs.spans))


class PackedCosmos(PackedDit, CosmosFrames, CosmosTransformer3DModel):
    _no_split_modules = ["PackedCosmosBlock"]
    family = "cosmos"
    lora_within = "transformer_blocks"
    outer_parts = ("patch_embed", "proj_out", "time_embed", "norm_out", "linear_1", "linear_2")

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
        check_settings(attention, clean_timestep)
        if in_channels != out_channels + 1:
            raise DitError(f"The DiT's config has in_channels {in_channels}; packing images needs {out_channels + 1}.")
        for block in self.transformer_blocks:
            block.__class__ = PackedCosmosBlock  # same weights, one more way to be called
        use_fast_linear(self)


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
