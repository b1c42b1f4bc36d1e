"""LoRA on MLLM and DiT: what is learnt, what is frozen, and that merging and PEFT's own reader agree with it."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from safetensors.torch import load_file

from duogen_core.dit.loading import load_dit
from duogen_core.errors import DuoGenError
from duogen_core.training.configuration import load_config
from duogen_core.training.lora import (
    DIT_TARGETS,
    MLLM_TARGETS,
    LoraSettings,
    TrainableOnly,
    add_lora,
    merged_state,
    save_adapter,
    save_dit,
    trainable,
)
from tests.core.dit.families import TINY, WIDTH, tiny
from tests.core.tiny import random_components

LAYERS = "model.language_model.layers"
peft = pytest.importorskip("peft")


def adapted(seed=0, tied=True, **settings):
    """(base state, model with an adapter that is not zero, id of <BOV>)"""
    mllm = random_components(seed).mllm
    model, bov = mllm.model, mllm.control.bov
    if not tied:
        untie(model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = {"embed_tokens": [bov]} | ({} if tied else {"lm_head": [bov]})
    add_lora(model, LoraSettings(rank=3, **settings), within=LAYERS, usual=MLLM_TARGETS, tokens=tokens)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return base, model, bov


def untie(model):
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone().roll(1, 0))


def fresh(model, state):
    new = type(model)(model.config).eval()
    new.load_state_dict(state)
    return new


def logits(model, bov):
    ids = torch.arange(20, 30).roll(3)[None].clone()
    ids[0, 4] = bov
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_and_pefts_own_reader_answer_like_base_and_adapter(tied, tmp_path):
    base, model, bov = adapted(tied=tied)
    found = logits(model, bov)
    assert (found - logits(fresh(model, base), bov)).abs().max() > 1e-2
    state = merged_state(model)
    assert state.keys() == base.keys()
    torch.testing.assert_close(logits(fresh(model, state), bov), found, atol=1e-5, rtol=1e-5)
    save_adapter(model, tmp_path)
    read = peft.PeftModel.from_pretrained(fresh(model, base), tmp_path).eval()
    torch.testing.assert_close(logits(read, bov), found, atol=1e-5, rtol=1e-5)
    assert all(name.startswith("base_model.model.") for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3


def test_only_the_language_models_layers_and_the_tokens_row_are_learnt():
    base, model, bov = adapted()
    after = merged_state(model)
    changed = {name for name in base if not torch.equal(after[name], base[name])}
    embeddings = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert changed - embeddings == {
        f"{LAYERS}.{k}.{part}.{name}.weight"
        for k in range(2)
        for name in MLLM_TARGETS
        for part in ("self_attn" if name in MLLM_TARGETS[:4] else "mlp",)
    }
    for name in embeddings:
        rows = (after[name] != base[name]).any(1).nonzero().flatten().tolist()
        assert rows == [bov]
    assert all("lora_" in name or "trainable_tokens" in name for name in trainable(model))


def test_targets_can_be_chosen_and_a_misspelt_one_is_named():
    _, model, _ = adapted(targets=("q_proj",))
    assert {name.split(".")[-4] for name in trainable(model) if "lora" in name} == {"q_proj"}
    with pytest.raises(DuoGenError, match="'qproj' is not known; did you mean 'q_proj'"):
        adapted(targets=("qproj",))
    with pytest.raises(DuoGenError, match="the layer 'proj' is not known"):  # the tower's, which stays as it is
        adapted(targets=("proj",))


@pytest.mark.parametrize("name", TINY)
def test_each_family_of_dits_takes_it_too(name, tmp_path):
    dit = tiny(name)
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    add_lora(dit, LoraSettings(rank=2), within=dit.lora_within, usual=DIT_TARGETS)
    assert {name.rsplit(".lora_", 1)[0].split(".", 2)[2] for name in trainable(dit)} == {
        f"{attn}.{name}" for attn in ("attn1", "attn2") for name in DIT_TARGETS
    }
    assert merged_state(dit).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged_state(dit).items())  # B begins at zero
    with torch.no_grad():
        for weight in trainable(dit).values():
            weight += 0.1 * torch.randn_like(weight)
    save_dit(dit, tmp_path / "merged")
    merged, x, text = load_dit(tmp_path / "merged"), torch.randn(1, 16, 4, 6), torch.randn(1, 5, WIDTH)
    expected = dit.forward_packed([x], torch.tensor([0.4]), text)
    torch.testing.assert_close(merged.forward_packed([x], torch.tensor([0.4]), text), expected, atol=1e-5, rtol=1e-4)


def test_checkpoints_hold_the_learnt_weights_alone():
    _, model, bov = adapted()
    state = {name: tensor.clone() for name, tensor in TrainableOnly(model).state_dict().items()}
    assert state.keys() == trainable(model).keys() and len(state) == 2 * 14 + 1
    _, other, _ = adapted()
    for parameter in trainable(other).values():
        parameter.data += 0.1
    assert not torch.equal(logits(model, bov), logits(other, bov))
    for name, tensor in TrainableOnly(other).state_dict().items():
        tensor.copy_(state[name])
    assert torch.equal(logits(model, bov), logits(other, bov))


def test_learnt_weights_are_in_single_precision_on_a_frozen_half():
    mllm = random_components().mllm
    mllm.model.bfloat16()
    add_lora(mllm.model, LoraSettings(), within=LAYERS, usual=MLLM_TARGETS, tokens={"embed_tokens": [5]})
    assert {parameter.dtype for parameter in trainable(mllm.model).values()} == {torch.float32}
    assert {tensor.dtype for tensor in merged_state(mllm.model).values()} == {torch.bfloat16}


@pytest.mark.parametrize("wrong", ["rank=0", "alpha=0", "dropout=1.0"])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(DuoGenError, match=f"'{wrong.split('=')[0]}' of lora is"):
        load_config(LoraSettings, None, [wrong])


def test_without_the_library_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DuoGenError, match=r"\.\[lora\]"):
        add_lora(random_components().dit, LoraSettings(), within="transformer_blocks", usual=DIT_TARGETS)
