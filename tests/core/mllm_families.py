"""Every MLLM family, tiny and random, and conversations with pictures in many places, for the tests all must pass."""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
import transformers
from torch import nn

from duogen_core.connector import ConnectorConfig
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.mllm import family_class
from duogen_core.mllm import llava_onevision as llava
from duogen_core.mllm import qwen2_5_vl as qwen25
from duogen_core.mllm import qwen3_vl as qwen3
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import LLAVA_TOKENS, build_inputs, model_inputs
from duogen_core.mllm.tokenizer import train_tokenizer

TEXTS = ["Draw a small red circle at the top left, then a large blue square in the centre."] * 8
SIZES = {
    "hidden_size": 64, "layers": 3, "heads": 2, "kv_heads": 1, "intermediate_size": 96, "vision_hidden_size": 32,
    "vision_layers": 2, "vision_heads": 2, "vision_intermediate_size": 48,
}  # fmt: skip
MODULES = {"qwen2_5_vl": qwen25, "qwen3_vl": qwen3, "llava_onevision": llava}
CREATE = {name: module.create_tiny for name, module in MODULES.items()}


@lru_cache(maxsize=2)
def tokenizer(family: str = "qwen2_5_vl"):
    return train_tokenizer(TEXTS, 400, LLAVA_TOKENS) if family == "llava_onevision" else train_tokenizer(TEXTS, 400)


def lively(family: str, seed: int = 0, words=None, **sizes) -> Mllm:
    """A random model whose answers depend on its whole context (a fresh one repeats its last token)."""
    torch.manual_seed(seed)
    mllm = CREATE[family](words or tokenizer(family), **{**SIZES, **sizes})
    for name, weight in mllm.model.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.5 if "embed_tokens" in name else 1.5 * weight[0].numel() ** -0.5)
    if family == "qwen2_5_vl":  # as published: most blocks of the tower look through windows
        tower = mllm.model.model.visual
        tower.config.fullatt_block_indexes = tower.fullatt_block_indexes = [1]
        tower.config.window_size = tower.window_size = 64
    return mllm


def published_name(name: str) -> str:
    """LLaVA-OneVision's tensors as the published files name them (transformers before 4.52)."""
    if name == "lm_head.weight":
        return f"language_model.{name}"
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
    if name.startswith("vision_tower.") and "vision_model." not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def authors_name(name: str) -> str:
    """The same as LLaVA-OneVision's authors name them."""
    name = published_name(name).removeprefix("language_model.")
    name = name.replace("vision_tower.", "model.vision_tower.vision_tower.", 1)
    for number in (1, 2):
        name = name.replace(f"multi_modal_projector.linear_{number}.", f"model.mm_projector.{2 * number - 2}.")
    return "model.image_newline" if name == "image_newline" else name


def another(mllm: Mllm) -> Mllm:
    """The same weights, nothing cached."""
    return family_class(mllm.model_type)(mllm.model, mllm.tokenizer, mllm.image_processor)


def picture(width: int, height: int, seed: int = 0, **meta) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), meta)


CONTEXTS = {
    "text only": Document((Turn("user", (Text("Draw a circle."),)),)),
    "system and user picture": Document(
        (Turn("system", (Text("Be brief."),)), Turn("user", (picture(64, 32), Text("Describe."))))
    ),
    "drawn pictures, then text": Document(
        (
            Turn("user", (Text("How?"),)),
            Turn("assistant", (Text("First"), picture(64, 64, 1), Text(" then"), picture(96, 32, 2), Text(" now"))),
        )
    ),
    "ends with a picture": Document(
        (Turn("user", (picture(32, 96), Text("Go on."))), Turn("assistant", (Text("a"), picture(64, 96, 3))))
    ),
    "two drawn pictures and no text": Document(
        (Turn("user", (Text("Two."),)), Turn("assistant", (picture(32, 32, 4), picture(64, 32, 5))))
    ),
    "several turns, sizes that are scaled": Document(
        (
            Turn("user", (Text("One"), picture(50, 70), Text("or"), picture(33, 31, 6), Text("?"))),
            Turn("assistant", (Text("That"), picture(64, 32, 7))),
            Turn("user", (Text("And <|im_end|> now <BOV>?"), picture(128, 128, 8))),
        )
    ),
}


def interleaved(seed: int) -> list[Document]:
    """A conversation as it grows: after the request, and after every text and picture of the answer."""
    draw = random.Random(seed)
    sides = (32, 64, 96, 128, 50, 75)
    words = ["Draw a red circle.", "How?", "First", " then the large blue square", " now", "", " at the top left"]
    turns = [Turn("system", (Text("Be brief."),))] if draw.random() < 0.3 else []
    asked = [Text(draw.choice(words[:2]))]
    if draw.random() < 0.5:
        asked.insert(draw.randrange(2), picture(draw.choice(sides), draw.choice(sides), 100 + seed))
    grown = [Document((*turns, Turn("user", tuple(asked))))]
    document = grown[0].begin_turn("assistant")
    for k in range(draw.randint(2, 4)):
        if text := draw.choice(words[2:]):
            document = document.append(Text(text))
            grown.append(document)
        document = document.append(picture(draw.choice(sides), draw.choice(sides), 10 * seed + k))
        grown.append(document)
    if draw.random() < 0.3:
        grown.append(document.begin_turn("user", [Text("And then?")]))
    return grown


def for_generate(batch: dict) -> dict:
    """transformers 4 finds the pictures by their token and refuses mm_token_type_ids."""
    batch = model_inputs(batch, labels=False)
    if int(transformers.__version__.split(".")[0]) < 5:
        batch.pop("mm_token_type_ids", None)
    return batch


def written(mllm: Mllm, context: Document, **kwargs) -> list[int]:
    """The ids that a continuation wrote."""
    before = len(mllm._layout(context).ids)
    out = mllm.continue_(context, **kwargs)
    ids = mllm._cache.keys[before:]
    assert len(ids) == out.tokens
    return ids


def generated(mllm: Mllm, context: Document, max_new_tokens: int) -> list[int]:
    """What transformers' own generate writes greedily, from scratch, without the token that ends it."""
    inputs = build_inputs([context], mllm.tokenizer, mllm.image_processor, open_turn=True)
    control = mllm.control
    banned = mllm._banned_ids(mllm.model.config.text_config.vocab_size).nonzero().flatten().tolist()
    ends = [control.bov, control.im_end, control.end_of_text]
    mllm.model.model.rope_deltas = None  # what an earlier call left behind must not matter here
    out = mllm.model.generate(
        **for_generate(inputs),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=banned,
        eos_token_id=ends,
        pad_token_id=control.end_of_text,
    )[0, inputs["input_ids"].shape[1] :].tolist()
    return out[:-1] if out[-1] in ends else out


class AllStates(nn.Module):
    """In place of a connector: every token keeps the outputs of all layers side by side, untouched."""

    def __init__(self, mllm: Mllm) -> None:
        super().__init__()
        self.layers, self.width = mllm.num_layers, mllm.hidden_size
        self.config = ConnectorConfig(self.layers, self.width, self.layers * self.width)

    def project_layer(self, layer: int, h: torch.Tensor, total: torch.Tensor | None = None) -> torch.Tensor:
        out = h.new_zeros(len(h), self.layers, self.width) if total is None else total.unflatten(1, (self.layers, -1))
        out[:, layer] = h
        return out.flatten(1)

    def project_layers(self, states: torch.Tensor) -> torch.Tensor:
        return states.flatten(1)

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        return total


TRANSFORMERS_4 = transformers.__version__.startswith("4.")


@contextmanager
def unchanged_states(mllm: Mllm):
    """transformers 4 adds deepstack features to the states it has already reported; 5 reports them without."""
    text = type(mllm.model.model.language_model)
    add = getattr(text, "_deepstack_process", None)
    if add is None or not TRANSFORMERS_4:
        yield
        return
    text._deepstack_process = lambda self, states, *rest: add(self, states.clone(), *rest)
    try:
        yield
    finally:
        text._deepstack_process = add


def all_states(mllm: Mllm, batch: dict) -> tuple[torch.Tensor, ...]:
    """transformers' output_hidden_states of the decoder layers, [B, N, hidden] each, the last after the final norm."""
    with torch.no_grad(), unchanged_states(mllm):
        out = mllm.model.model(**batch, output_hidden_states=True)
    return (*out.hidden_states[1:-1], out.last_hidden_state)  # transformers 4 reports Qwen3-VL's before that norm


def reported(mllm: Mllm, context: Document) -> torch.Tensor:
    """transformers' output_hidden_states of the whole context in one pass, [N, layers * width]."""
    batch = build_inputs([context], mllm.tokenizer, mllm.image_processor, open_turn=True)
    mllm.model.model.rope_deltas = None
    return torch.cat([each[0] for each in all_states(mllm, for_generate(batch))], dim=-1)
