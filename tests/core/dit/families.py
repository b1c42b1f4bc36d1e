"""The smallest model of each DiT family, with random weights: what the tests of the contract run."""

from __future__ import annotations

import importlib

import torch

from duogen_core.dit import FAMILIES

WIDTH = 20  # of the text condition
TINY = {
    "PackedCosmos": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 8,
    },
    "PackedWan": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "ffn_dim": 96,
        "text_embed_dim": WIDTH,
        "freq_dim": 16,
    },
}


def family(name: str) -> type:
    module, cls = FAMILIES[name]
    return getattr(importlib.import_module(module), cls)


def tiny(name: str, seed: int = 0, **options):
    torch.manual_seed(seed)
    cls = family(name)
    return randomised(cls(**{**TINY[cls.__name__], **options}).eval())


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model
