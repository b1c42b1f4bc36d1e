"""A whole DuoGen model, tiny and random, for every test that needs one: `random_components(seed)`.

Its MLLM writes nonsense; tests that need a known answer put a script on it with `scripted`.
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch

from duogen_core.checkpoint import (
    CheckpointConfig,
    Components,
    PictureSize,
)
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.document import Document, Text
from duogen_core.mllm.base import Continuation
from duogen_core.mllm.qwen2_5_vl import create_tiny
from duogen_core.mllm.tokenizer import train_tokenizer
from duogen_core.sampling import Sampling
from duogen_core.vae import PictureVae, new_vae

LINES = ["How do I draw a house with a red roof?", "Draw a large blue square.", "Add a yellow star in the top left."]


@lru_cache(maxsize=1)
def tokenizer():
    return train_tokenizer(LINES, vocab_size=300)


def random_components(
    seed: int = 0, *, attention: str = "frame_causal", layers: int = 2, cross_width: int = 32, name: str = "tiny"
) -> Components:
    """MLLM 64 wide, DiT 2 heads of 32, VAE of base width 4; pictures of 32x32."""
    torch.manual_seed(seed)
    mllm = create_tiny(
        tokenizer(), hidden_size=64, layers=layers, heads=2, kv_heads=1, intermediate_size=96,
        vision_hidden_size=32, vision_layers=1, vision_heads=2, vision_intermediate_size=48,
    )  # fmt: skip
    connector = Connector(ConnectorConfig(layers, 64, cross_width)).eval()
    dit = PackedCosmos(
        num_attention_heads=2, num_layers=2, mlp_ratio=2.0, text_embed_dim=cross_width, adaln_lora_dim=8,
        attention=attention,
    ).eval()  # fmt: skip
    for parameter in dit.parameters():  # everything a little off its start, or zeros would hide mistakes
        parameter.data += 0.02 * torch.randn_like(parameter)
    vae = PictureVae(new_vae(base_dim=4))
    config = CheckpointConfig(name, Sampling(steps=2, guidance=2.0, shift=1.0), PictureSize(32, 32, 64))
    return Components(mllm, connector, dit, vae, config)


def request(text: str = "Draw a large blue square.") -> Document:
    return Document().begin_turn("user", [Text(text)])


def scripted(components: Components, *script: tuple[str, str]) -> list[Document]:
    """Makes the MLLM write this, (text, why it stopped) at a time; the states still come from the model itself.

    Returns the documents that it was asked to continue.
    """
    asked: list[Document] = []

    def continue_(document, *, on_token=None, max_new_tokens=256, cancelled=None, **_):
        asked.append(document)
        text, stop = script[len(asked) - 1]
        if cancelled and cancelled():
            return Continuation("", "interrupted", 0)
        for word in re.findall(r"\S+\s*", text) if on_token else ():
            on_token(word)
        return Continuation(text, stop, len(text.split()))

    components.mllm.continue_ = continue_
    return asked


def drawing(components: Components) -> Components:
    """Makes the MLLM ask for an image after a few tokens, how many follows from the conversation alone."""
    mllm, choose = components.mllm, components.mllm._choose

    def asks(rows, sampling):
        due = [row.count > len(row.cache.keys) % 4 for row in rows]
        return [mllm.control.bov if now else token for now, token in zip(due, choose(rows, sampling))]

    mllm._choose = asks
    return components
