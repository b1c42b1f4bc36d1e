"""Cosmos-Predict2.5 in GGUF, as ComfyUI-GGUF's converter writes it, against the same weights whole."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from duogen_core.dit.loading import open_published
from duogen_core.errors import DuoGenError
from duogen_core.weights.gguf_layers import PackedLinear, unpack_layers
from tests.core.dit.test_cosmos_files import TINY, official, run, tiny
from tests.core.gguf_files import Types, write_gguf

WIDE = {"attention_head_dim": 32, "text_embed_dim": 32, "adaln_lora_dim": 32, "encoder_hidden_states_channels": 32}


def write(path, model, kind="Q8_0", architecture="cosmos", prefix="", **notes):
    """What has few numbers or one side stays whole, as there."""
    tensors = {}
    for name, tensor in official(model).items():
        value = tensor.detach().float().numpy()
        large = value.ndim == 2 and name.endswith(".weight") and value.shape[1] % 32 == 0 and "pos_embedder" not in name
        name = prefix + name.removeprefix("net.")
        tensors[name] = (gguf.quantize(value, Types[kind]), kind) if large and kind else value
    return write_gguf(path, architecture, tensors, notes)


@pytest.mark.parametrize("prefix", ["", "net.", "model.diffusion_model."])
def test_blocks_are_kept_and_give_what_whole_weights_give(tmp_path, prefix, monkeypatch):
    monkeypatch.setattr("duogen_core.devices.packed_dtype", lambda device: torch.float32)
    model = tiny(**WIDE)
    path = write(tmp_path / "tiny-post-trained.gguf", model, prefix=prefix)
    found = open_published(path)
    assert found.convention == "post-trained" and found.config["num_layers"] == TINY["num_layers"]
    dit = found.load_dit()
    packed = [name for name, layer in dit.named_modules() if isinstance(layer, PackedLinear)]
    assert len(packed) > 20 and "transformer_blocks.1.attn1.to_q" in packed
    whole = found.load_dit(torch.float32)
    assert not any(isinstance(layer, PackedLinear) for layer in whole.modules())
    text = torch.randn(1, 5, 32)
    assert torch.allclose(run(dit, text), run(whole, text), atol=1e-4)
    unquantised = run(open_published(write(tmp_path / "plain.gguf", model, None)).load_dit(torch.float32), text)
    error = (run(dit, text) - unquantised).norm() / unquantised.norm()
    assert 0 < error < 0.1
    assert torch.allclose(run(unpack_layers(dit, torch.float32), text), run(whole, text), atol=1e-4)
    connector = found.load_connector((2, 32))
    assert connector.proj.weight.dtype == torch.bfloat16 and connector.proj.weight.shape == (32, 64)


def test_half_precision_where_the_processor_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("duogen_core.devices.packed_dtype", lambda device: torch.bfloat16)
    dit = open_published(write(tmp_path / "tiny.gguf", tiny(**WIDE), "Q4_0")).load_dit()
    assert {p.dtype for p in dit.parameters() if p.ndim == 1} == {torch.bfloat16}
    assert run(dit, torch.randn(1, 5, 32)).isfinite().all()


def test_a_shape_that_the_converter_noted_is_the_shape(tmp_path):
    model = tiny(**WIDE)
    name = "blocks.0.mlp.layer1.weight"
    path = write(tmp_path / "a.gguf", model)
    shape = open_published(path).weights.entries[name].shape
    flat = write(tmp_path / "b.gguf", model, **{f"comfy.gguf.orig_shape.{name}": [int(n) for n in shape]})
    assert open_published(flat).weights.entries[name].shape == shape
    wrong = write(tmp_path / "c.gguf", model, **{f"comfy.gguf.orig_shape.{name}": [3, 3]})
    with pytest.raises(DuoGenError, match=r"blocks.0.mlp.layer1.weight cannot have the shape \[3, 3\]"):
        open_published(wrong)


def test_another_model_is_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", "flux", {"double_blocks.0.x": np.zeros(4, dtype=np.float32)})
    with pytest.raises(DuoGenError, match=r"a\.gguf holds no Cosmos-Predict2.5 transformer"):
        open_published(path)
