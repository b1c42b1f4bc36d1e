"""The models that benchmarks measure: random ones of middle size, made in code, or a folder of the user's own.

A random MLLM would write noise, and stop wherever. Here its output layer is arranged instead: the row of a token points
along the embedding of the token before it in a fixed sentence, and embeddings are long against what the layers add. So
it goes through the sentence, token by token, whatever it is asked, through all layers as always: both sides write the
same text without any of their code being touched.
Out: `Components`, in eval mode, on the device and in the type asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.checkpoint import CheckpointConfig, Components, PictureSize
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import CONTROL_TOKENS
from duogen_core.mllm.qwen2_5_vl import create_tiny
from duogen_core.mllm.tokenizer import train_tokenizer, wrap_tokenizer
from duogen_core.sampling import Sampling
from duogen_core.vae import PictureVae, new_vae

# Twenty tokens an image: every word is one token, and none comes twice.
SENTENCE = (
    " first draw four walls under one wide roof then add a small door with two round windows paint everything red"
)
REQUEST = "How do I draw a house with a red roof?"  # the bundled model answers it with four images
LOUD = 4.0  # standard deviation of an embedding: the layers of a fresh model add about 1 to it
QWEN_VOCABULARY = 151_936
PAPER_CONNECTOR = ConnectorConfig(28, 3584, 1024)  # Qwen2.5-VL-7B to Cosmos-Predict2.5-2B


@dataclass(frozen=True)
class Sizes:
    """Sizes of a random model; the defaults are the middle ones: MLLM 100M, DiT 61M, images of 256x256."""

    hidden: int = 640
    layers: int = 12
    heads: int = 10
    kv_heads: int = 2
    intermediate: int = 2560
    vision_hidden: int = 480
    vision_layers: int = 6
    vocabulary: int = 4096
    dit_heads: int = 8
    dit_head_width: int = 64
    dit_layers: int = 12
    text_width: int = 512
    vae_width: int = 16
    picture: int = 256


MIDDLE = Sizes()
# For writing alone: 197M, of which 156M are the two matrices of Qwen's vocabulary.
WRITING = Sizes(hidden=512, heads=8, intermediate=2048, vision_hidden=256, vision_layers=2, vocabulary=QWEN_VOCABULARY)


def random_components(sizes: Sizes = MIDDLE, attention: str = "frame_causal", *, draws: bool = True) -> Components:
    """A whole random model; draws=False: its MLLM writes SENTENCE over and over, and no <BOV>."""
    mllm = random_mllm(sizes, draws=draws)
    connector = Connector(ConnectorConfig(sizes.layers, sizes.hidden, sizes.text_width)).eval()
    side = sizes.picture
    config = CheckpointConfig("random", Sampling(steps=4, guidance=2.0), PictureSize(side, side, side))
    return Components(mllm, connector, random_dit(sizes, attention), PictureVae(new_vae(sizes.vae_width)), config)


def random_dit(sizes: Sizes, attention: str) -> PackedCosmos:
    torch.manual_seed(1)
    dit = PackedCosmos(
        num_attention_heads=sizes.dit_heads, attention_head_dim=sizes.dit_head_width, num_layers=sizes.dit_layers,
        mlp_ratio=4.0, text_embed_dim=sizes.text_width, adaln_lora_dim=128, attention=attention,
    )  # fmt: skip
    return dit.eval()


def random_mllm(sizes: Sizes, *, draws: bool = True) -> Mllm:
    """A Qwen2.5-VL that writes SENTENCE, then <BOV>, and after an image the same again."""
    torch.manual_seed(0)
    width = sizes.hidden // sizes.heads // 2
    mllm = create_tiny(
        padded_tokenizer(sizes.vocabulary), mrope_section=(width - 2 * (width * 3 // 8), *[width * 3 // 8] * 2),
        hidden_size=sizes.hidden, layers=sizes.layers, heads=sizes.heads, kv_heads=sizes.kv_heads,
        intermediate_size=sizes.intermediate, vision_hidden_size=sizes.vision_hidden,
        vision_layers=sizes.vision_layers, vision_heads=sizes.heads, max_positions=32768,
        vision_intermediate_size=sizes.vision_hidden * 8 // 3 // 8 * 8,
    )  # fmt: skip
    encode = lambda text: mllm.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    words = encode(SENTENCE)
    # What the last token before an answer, and before a text that follows an image, leads on to.
    before = (encode("assistant\n")[-1], mllm.control.vision_end)
    chains = [(token, *words, mllm.control.bov) for token in before] if draws else [(token, *words) for token in before]
    lead(mllm.model, chains if draws else [*chains, (words[-1], words[0])])
    return mllm


@torch.no_grad()
def lead(model: nn.Module, chains: Sequence[Sequence[int]]) -> None:
    """Arranges the output layer so that the model goes along the chains of tokens, on its own (untied) matrix."""
    embedding = model.get_input_embeddings().weight
    embedding.normal_(std=LOUD)
    rows = torch.randn_like(embedding) * 0.02  # not zeros: equal numbers would sort faster than a real model's
    for pair in {pair for chain in chains for pair in pairwise(chain)}:
        rows[pair[1]] += embedding[pair[0]] / LOUD
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(rows)


@torch.no_grad()
def level(model: nn.Module) -> Tensor:
    """Makes every token about as likely as any other: the worst case for choosing. Returns the arranged matrix."""
    arranged = model.lm_head.weight
    torch.manual_seed(2)
    model.lm_head.weight = nn.Parameter(torch.randn_like(arranged) * arranged.shape[1] ** -0.5)
    return arranged


def padded_tokenizer(vocabulary: int) -> Any:
    """A tokenizer that knows the words of SENTENCE, filled up to `vocabulary` entries that no text is cut into."""
    from tokenizers import Tokenizer

    spec = json.loads(train_tokenizer([SENTENCE, REQUEST] * 8, 1000).backend_tokenizer.to_str())
    known, filler = spec["model"]["vocab"], 0
    while len(known) < vocabulary - len(CONTROL_TOKENS):
        known.setdefault(f"filler{filler}", len(known))
        filler += 1
    for place, token in enumerate(spec["added_tokens"]):
        token["id"] = len(known) + place
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(spec)))
