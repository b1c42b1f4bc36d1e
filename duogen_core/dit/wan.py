"""PackedWan: diffusers' Wan transformer (2.1, 2.2 TI2V-5B) over pictures of unlike sizes. No new weights.

What this family has in its own way (base.py, frames.py): one table of modulations per block, to which one projection
of the timestep is added; query and key norms over all heads together; rotary positions in pairs of neighbours;
attention to the text with a norm of its own but no gate; biases everywhere. Timesteps are 0..1 here and 0..1000 in the
model. No channel marks a finished picture: it has the timestep `clean_timestep`, 0, as the first frame has in Wan 2.2
TI2V-5B; Wan 2.1 text-to-video has never seen one before stage 2.

Text: `project_text` is the model's own (Linear, GELU, Linear), which reads umT5's states in the published weights,
`text_dim` = 4096 wide. The connector learns to that width. Without stage 2 the published weights make nothing of our
MLLM's states.
A frame that sees no text gets what attention to nothing gives, 0, through the output layer: its bias.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
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
)
from duogen_core.dit.frames import MLP, TEXT, FrameInputs, PackedBlock, Rope, heads, modulate
from duogen_core.linear import use_fast_linear

TIMES = 1000  # the model's timestep of pure noise, ours is 1
THETA = 10000.0

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "text_embed_dim",
            "ffn_dim", "num_layers", "rope_max_seq_len",
        ),
        WHOLE,
    ),
    **dict.fromkeys(("cross_attn_norm", "references"), YES_OR_NO),
    **dict.fromkeys(("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"), NONE),
    "patch_size": THREE_WHOLE,
    "freq_dim": (lambda value: number(value, 2, 2**16) and value % 2 == 0, "an even number of at least 2"),
    "qk_norm": (lambda value: value == "rms_norm_across_heads", "rms_norm_across_heads"),
    "eps": (lambda value: number(value, 0, 1), "a number of 0 to 1"),
    "clean_timestep": (lambda value: number(value, -1, 1), "a number of -1 to 1"),
}  # fmt: skip


class WanRope(WanRotaryPosEmbed):
    """The stock tables without buffers, which no file holds and a model made without memory would lack."""

    def forward(self, hidden_states: Tensor) -> Rope:
        counts = (n // patch for n, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True))
        cos, sin = WanRotaryPosEmbed(self.attention_head_dim, self.patch_size, max(counts))(hidden_states)
        return cos.to(hidden_states.device), sin.to(hidden_states.device)


class PackedWanBlock(PackedBlock, WanTransformerBlock):
    def modulated(self, x: Tensor, part: int, inputs: FrameInputs) -> tuple[Tensor, Tensor | None]:
        if part == TEXT:
            return self.norm2(x), None
        first = 3 if part == MLP else 0  # shift, scale and gate of attention between frames, then of the MLP
        table, temb = self.scale_shift_table[:, first : first + 3].flatten(1), inputs.temb
        width = table.shape[1]
        own = table.to(temb.dtype) + temb[..., first // 3 * width :][..., :width]
        if inputs.token_frame is not None:
            own = own.index_select(1, inputs.token_frame)
        shift, scale, gate = own.chunk(3, dim=-1)
        norm = self.norm3 if part == MLP else self.norm1
        return modulate(norm(x), shift, scale, inputs.spans), gate

    def normed_heads(self, x: Tensor, attn: nn.Module, norm: nn.Module) -> Tensor:
        # Under autocast x is in half precision and the weight is not, for which torch has no fused norm.
        wide = x.float() if norm.weight.dtype == torch.float32 else x
        return heads(norm(wide).to(x.dtype), attn)

    def turned(self, x: Tensor, rope: Rope) -> Tensor:
        """Each number of a head turns with its neighbour, in float32."""
        cos, sin = rope
        wide = x.float()
        first, second = wide[..., 0::2], wide[..., 1::2]
        pairs = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
        return torch.stack(pairs, dim=-1).flatten(-2).to(x.dtype)

    def feed_forward(self, h: Tensor) -> Tensor:
        return self.ffn(h)

    def without_text(self, x: Tensor) -> Tensor:
        return x + self.attn2.to_out[0](x.new_zeros(1, 1, 1, self.attn2.inner_dim))


class PackedWan(PackedDit, WanTransformer3DModel):
    _no_split_modules = ["PackedWanBlock"]
    family = "wan"
    lora_within = "blocks"
    outer_parts = ("patch_embedding", "proj_out", "condition_embedder", "scale_shift_table")
    rope_dtype = torch.float64  # as diffusers makes its tables

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 6,
        attention_head_dim: int = 32,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int | None = None,
        freq_dim: int = 256,
        ffn_dim: int | None = None,
        num_layers: int = 8,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        text_embed_dim: int | None = None,
        attention: str = "full",
        clean_timestep: float = 0.0,
        references: bool = True,
    ) -> None:
        """text_embed_dim: the contract's name for what diffusers calls text_dim; one of them is enough."""
        if None not in (text_dim, text_embed_dim) and text_dim != text_embed_dim:
            raise DitError(
                f"The DiT's config has text_dim {text_dim} and text_embed_dim {text_embed_dim}; expected the same, as "
                "they are two names of the text condition's width."
            )
        text_dim = text_embed_dim = text_embed_dim or text_dim or 192
        ffn_dim = ffn_dim or 4 * num_attention_heads * attention_head_dim
        check_values({name: value for name, value in locals().items() if name not in ("self", "__class__")}, RULES)
        if in_channels != out_channels:
            raise DitError(
                f"The DiT's config has in_channels {in_channels} and out_channels {out_channels}; expected the same, "
                "as text-to-video has: image-to-video, control and inpainting models read a second latent."
            )
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=2,  # WanRope makes tables of the length that is needed
        )
        check_settings(attention, clean_timestep)
        self.register_to_config(
            text_dim=text_dim, text_embed_dim=text_dim, ffn_dim=ffn_dim, rope_max_seq_len=rope_max_seq_len
        )
        for block in self.blocks:
            block.__class__ = PackedWanBlock  # same weights, one more way to be called
        self.rope.__class__ = WanRope
        for name in list(self.rope._buffers):
            delattr(self.rope, name)
        use_fast_linear(self)

    transformer_blocks = property(lambda self: self.blocks)

    # -------------------------------------------------------- what frames.py asks of a family

    @property
    def rope_axes(self) -> tuple[tuple[int, float], ...]:
        rope = self.rope
        return (rope.t_dim, THETA), (rope.h_dim, THETA), (rope.w_dim, THETA)

    def rope_layout(self, t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return torch.cat([t, h, w], dim=-1)

    def embed(self, patches: Tensor) -> Tensor:
        """The convolution over one long row of patches, since it is as wide as a patch."""
        _, ph, pw = self.config.patch_size
        x = patches.unflatten(2, (-1, ph, pw)).permute(0, 2, 3, 1, 4).flatten(3)  # [B, channels, ph, L * pw]
        return self.patch_embedding(x[:, :, None]).flatten(2).transpose(1, 2)

    def project_text(self, text: Tensor) -> Tensor:
        if text.shape[-1] != self.config.text_embed_dim:
            raise DitError(f"The text condition is {text.shape[-1]} wide; this DiT takes {self.config.text_embed_dim}.")
        return self.condition_embedder.text_embedder(text)

    def timed(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B, F] in 0..1 -> what the head and what the blocks are modulated by, [B, F, 1, C] and 6 C."""
        embedder = self.condition_embedder
        waves = embedder.timesteps_proj(timestep.flatten().float() * TIMES).to(like.dtype)
        embedded = embedder.time_embedder(waves)
        temb = embedder.time_proj(embedder.act_fn(embedded))
        return embedded.view(*timestep.shape, 1, -1), temb.view(*timestep.shape, 1, -1)

    def head(self, x: Tensor, inputs: FrameInputs) -> Tensor:
        own = self.scale_shift_table.flatten().to(inputs.embedded.dtype) + inputs.embedded.repeat(1, 1, 1, 2)
        if inputs.token_frame is not None:
            own = own.index_select(1, inputs.token_frame)
        shift, scale = own.chunk(2, dim=-1)
        return self.proj_out(modulate(self.norm_out(x), shift, scale, inputs.spans))


def init_weights(model: PackedWan) -> PackedWan:
    """Weights to train from scratch.

    - Linear layers and the patches' convolution: Xavier, biases zero; the timestep's embedding small, as in Wan.
    - Every block starts as the identity and opens as it learns (adaLN-zero, DiT section 3.2): the tables of
      modulations and the projection of the timestep are zero, and so is the way out of attention to the text, which
      has no gate.
    - The output projection: zero, so that the first prediction is 0, the mean of the target.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    embedder = model.condition_embedder
    for layer in (embedder.time_embedder.linear_1, embedder.time_embedder.linear_2):
        nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(embedder.time_proj.weight)
    for block in model.blocks:
        nn.init.zeros_(block.scale_shift_table)
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.scale_shift_table)
    nn.init.zeros_(model.proj_out.weight)
    return model
