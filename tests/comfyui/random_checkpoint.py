"""A checkpoint with random weights that answers like a trained one: some words, a picture, some words, a picture, …

The parts and the folder are the real ones, a tenth of the size. Only the words are arranged: the output layer is untied
and its row for a token points along the embedding of the token before it in SENTENCES, so that the model goes through
them whatever it is asked, and through the layers as always.
In: a folder to write. Out: the folder, loadable by `load_checkpoint`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

# The last token of a context leads on: "\n" of the assistant's header, and <|vision_end|> of a drawn picture.
FIRST, NEXT = "First a wall.", " Now the roof"


def write(
    folder: Path, *, attention: str = "frame_causal", heads: int = 2, layers: int = 2, hidden: int = 64,
    width: int = 48, draws: bool = True, words: bool = True, family: str = "PackedCosmos",
) -> Path:  # fmt: skip
    """heads, layers: of the DiT; hidden: width of the MLLM; width: of the DiT's text input. A model that does not draw
    writes its first words over and over; one without words draws picture after picture. family: of the DiT."""
    import torch

    from duogen_core.checkpoint import (
        CheckpointConfig,
        Components,
        PictureSize,
        save_checkpoint,
    )
    from duogen_core.connector import Connector, ConnectorConfig
    from duogen_core.mllm.qwen2_5_vl import create_tiny
    from duogen_core.mllm.tokenizer import train_tokenizer
    from duogen_core.sampling import Sampling
    from duogen_core.vae import PictureVae, new_vae

    torch.manual_seed(7)
    tokenizer = train_tokenizer([FIRST, NEXT, "Draw a red star."], vocab_size=300)
    mllm = create_tiny(
        tokenizer, hidden_size=hidden, layers=2, heads=hidden // 32, kv_heads=1, intermediate_size=64,
        vision_hidden_size=64, vision_layers=1, vision_heads=2, vision_intermediate_size=64,
    )  # fmt: skip
    _lead(mllm, draws, words)
    connector = Connector(ConnectorConfig(num_layers=2, hidden_size=hidden, cross_width=width))
    dit = transformer(family, heads, layers, width, attention)
    config = CheckpointConfig(
        name=folder.name, sampling=Sampling(steps=4, guidance=2.0, shift=2.0), picture=PictureSize(96, 64, 160)
    )
    return save_checkpoint(Components(mllm, connector, dit.eval(), PictureVae(new_vae(8)), config), folder)


def transformer(family: str, heads: int, layers: int, width: int, attention: str):
    """A DiT with the random weights that its class begins with."""
    from importlib import import_module

    from duogen_core.dit import FAMILIES

    own = {"PackedCosmos": {"mlp_ratio": 2.0, "adaln_lora_dim": 8}, "PackedWan": {"ffn_dim": 128, "freq_dim": 32}}
    module, cls = FAMILIES[family]
    return getattr(import_module(module), cls)(
        num_attention_heads=heads, attention_head_dim=32, num_layers=layers, text_embed_dim=width, attention=attention,
        **own[family],
    )  # fmt: skip


def _lead(mllm, draws: bool, words: bool) -> None:
    import torch

    model, tokenizer, control = mllm.model, mllm.tokenizer, mllm.control
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    chain = [(encode("assistant\n")[-1], *encode(FIRST), control.bov), (control.vision_end, *encode(NEXT), control.bov)]
    if not words:
        chain = [(before, after) for before, *_, after in chain]
    if not draws:
        chain = [(*chain[0][:-1], chain[0][1])]
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.copy_(
            torch.nn.functional.normalize(torch.randn_like(embedding), dim=-1) * 8
        )  # over the layers' noise
        rows = torch.zeros_like(embedding)
        for words in chain:
            for before, after in pairwise(words):
                rows[after] += embedding[before]
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(rows)
