"""A stand-in for Stable Diffusion 1.5: a checkpoint that ComfyUI's own loader takes for one, with random weights.

The loader reads the depth of the UNet from the names of its weights, so two blocks are enough; its widths (320 and 768)
tell the family and stay. The VAE is of the small kind (TAESD). The text encoder has one size only: its twelve layers
are zeros, which hand the embedding of each token on, so that a prompt still decides what it becomes.
In: a file to write. Out: the file, for CheckpointLoaderSimple (about 290 MB, most of it zeros).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

Shapes = Iterator[tuple[str, tuple[int, ...]]]
CHANNELS, CONTEXT, TIME = 320, 768, 1280
TOKENS, POSITIONS, LAYERS = 49408, 77, 12


def write(file: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(11)

    def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if ".encoder.layers." in name:
            return torch.zeros(shape, dtype=torch.float16)
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=torch.float16)
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.float16)
        inputs = torch.tensor(shape[1:]).prod().item()
        return (torch.randn(shape, generator=generator) / inputs**0.5).half()

    parts = (
        ("model.diffusion_model.", _unet()),
        ("first_stage_model.", _vae()),
        ("cond_stage_model.", _text_encoder()),
    )
    weights = {prefix + name: weight(prefix + name, shape) for prefix, shapes in parts for name, shape in shapes}
    save_file(weights, file)
    return file


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _unet() -> Shapes:
    yield from _layer("time_embed.0", TIME, CHANNELS)
    yield from _layer("time_embed.2", TIME, TIME)
    yield from _layer("input_blocks.0.0", CHANNELS, 4, 3, 3)
    yield from _residual_block("input_blocks.1.0", CHANNELS)
    yield from _transformer("input_blocks.1.1")
    for block in range(2):
        yield from _residual_block(f"output_blocks.{block}.0", 2 * CHANNELS)
    yield from _layer("out.0", CHANNELS)
    yield from _layer("out.2", 4, CHANNELS, 3, 3)


def _residual_block(name: str, inputs: int) -> Shapes:
    yield from _layer(f"{name}.in_layers.0", inputs)
    yield from _layer(f"{name}.in_layers.2", CHANNELS, inputs, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", CHANNELS, TIME)
    yield from _layer(f"{name}.out_layers.0", CHANNELS)
    yield from _layer(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3)
    if inputs != CHANNELS:
        yield from _layer(f"{name}.skip_connection", CHANNELS, inputs, 1, 1)


def _transformer(name: str) -> Shapes:
    yield from _layer(f"{name}.norm", CHANNELS)
    yield from _layer(f"{name}.proj_in", CHANNELS, CHANNELS, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", CHANNELS), ("attn2", CONTEXT)):
        yield from _layer(f"{block}.{attention}.to_q", CHANNELS, CHANNELS, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", CHANNELS, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", CHANNELS, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.2", CHANNELS, 4 * CHANNELS)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _layer(f"{block}.{norm}", CHANNELS)
    yield from _layer(f"{name}.proj_out", CHANNELS, CHANNELS, 1, 1)


def _vae() -> Shapes:
    yield from _convolutions("taesd_encoder", {0: 3, 14: 64}, {14: 4}, (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    yield from _convolutions("taesd_decoder", {1: 4, 19: 64}, {19: 3}, (7, 12, 17), (3, 4, 5, 8, 9, 10, 13, 14, 15, 18))


def _convolutions(
    name: str, ends: dict[int, int], outputs: dict[int, int], resizing: tuple[int, ...], blocks: tuple[int, ...]
) -> Shapes:
    """ends: input channels of the first and the last layer; resizing layers are without a bias."""
    for index, inputs in ends.items():
        yield from _layer(f"{name}.{index}", outputs.get(index, 64), inputs, 3, 3)
    for index in resizing:
        yield from _layer(f"{name}.{index}", 64, 64, 3, 3, bias=False)
    for index in blocks:
        for convolution in (0, 2, 4):
            yield from _layer(f"{name}.{index}.conv.{convolution}", 64, 64, 3, 3)


def _text_encoder() -> Shapes:
    name = "transformer.text_model"
    yield from _layer(f"{name}.embeddings.token_embedding", TOKENS, CONTEXT, bias=False)
    yield from _layer(f"{name}.embeddings.position_embedding", POSITIONS, CONTEXT, bias=False)
    for index in range(LAYERS):
        layer = f"{name}.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{projection}", CONTEXT, CONTEXT)
        yield from _layer(f"{layer}.layer_norm1", CONTEXT)
        yield from _layer(f"{layer}.layer_norm2", CONTEXT)
        yield from _layer(f"{layer}.mlp.fc1", 4 * CONTEXT, CONTEXT)
        yield from _layer(f"{layer}.mlp.fc2", CONTEXT, 4 * CONTEXT)
    yield from _layer(f"{name}.final_layer_norm", CONTEXT)
