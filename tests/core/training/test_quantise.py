"""QLoRA: layers in four bits, their memory, what learns beside them; the adapter belongs to the whole model."""

from __future__ import annotations

import builtins
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.mllm.loading import load_mllm
from duogen_core.training import stage1
from duogen_core.training.lora import MLLM_TARGETS, LoraSettings, add_lora, merged_state, trainable
from duogen_core.training.quantise import quantise
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Stage2Config
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, write_jsonl
from tests.core.tiny import random_components

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")
LAYERS = "model.language_model.layers"


def packed_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def test_layers_take_half_a_byte_a_weight_and_answer_nearly_the_same():
    model = random_components().mllm.model
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        linear = {n: m for n, m in model.get_submodule(LAYERS).named_modules() if isinstance(m, torch.nn.Linear)}
        weights = sum(m.weight.numel() for m in linear.values())
        other = sum(p.numel() for n, p in model.named_parameters() if LAYERS not in n)
        quantise(model, within=LAYERS, computes=torch.float32)
        found = model(input_ids=ids).logits
    packed = packed_layers(model)
    assert len(packed) == len(linear) and {m.weight.dtype for m in packed.values()} == {torch.uint8}
    scales = 0
    for layer in packed.values():
        state = layer.weight.quant_state
        scales += state.absmax.nbytes + state.state2.absmax.nbytes
    assert sum(m.weight.nbytes for m in packed.values()) == weights / 2
    assert scales <= weights / 64 + len(packed) * 4 * (
        1 + max(m.weight.numel() for m in packed.values()) / 64 / 256 * 2
    )
    assert other == sum(p.numel() for n, p in model.named_parameters() if LAYERS not in n)
    error = (found - wanted).norm() / wanted.norm()
    assert 0 < error < 0.3


@pytest.mark.slow
def test_a_run_learns_stays_in_four_bits_and_exports_for_the_whole_model(tmp_path, monkeypatch):
    components = random_components()
    components.mllm.save_pretrained(tmp_path / "mllm")
    write_jsonl(tmp_path / "train.jsonl", [guide(k) for k in range(4)])
    config = Stage1Config(
        init=tmp_path / "mllm", data=[f"jsonl:{tmp_path / 'train.jsonl'}"], out=tmp_path / "run", batch=4, steps=12,
        warmup=1, log_every=1, bf16=False, tensorboard=False, lr=0.02, lora=LoraSettings(rank=4, quantise="nf4"),
        eval_data=[f"jsonl:{tmp_path / 'train.jsonl'}"], eval_cases=1, eval_minutes=0.0, sample_minutes=1e-9,
    )  # fmt: skip
    seen = []
    adapt = stage1.adapt

    def watch(mllm, *args):
        adapt(mllm, *args)
        seen.append((mllm.model, {n: m.weight.detach().clone() for n, m in packed_layers(mllm.model).items()}))

    monkeypatch.setattr(stage1, "adapt", watch)
    with stopped_in(5):
        stage1.train(config)
    assert stage1.train(config).finished
    found = losses(config.out)
    assert len(found) == 12 and sum(found[-3:]) < 0.9 * sum(found[:3])
    whole = replace(config, out=tmp_path / "whole")  # a run that nothing stopped, and nothing looked at
    stage1.train(replace(whole, eval_minutes=9.0, sample_minutes=0.0))
    assert losses(whole.out) == found
    for model, packed in seen:
        now = packed_layers(model)
        assert len(now) == 14 and all(torch.equal(m.weight, packed[n]) for n, m in now.items())
        assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert set(load_file(config.out / "checkpoint" / "model.safetensors")) == set(trainable(seen[0][0]))

    # The adapter on the full-precision model is the export.
    base = load_mllm(config.init).model
    on_base = peft.PeftModel.from_pretrained(base, config.out / "adapter")
    exported = load_mllm(config.out / "export").model
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(on_base(input_ids=ids).logits, exported(input_ids=ids).logits, atol=1e-4, rtol=0)
    layer = f"{LAYERS}.0.mlp.up_proj.weight"
    assert not torch.equal(exported.state_dict()[layer], load_mllm(config.init).model.state_dict()[layer])


def test_merging_adds_to_the_weights_as_they_were():
    """Also in layers that LoRA leaves alone."""
    model = random_components().mllm.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise(model, within=LAYERS, computes=torch.float32)
    add_lora(model, LoraSettings(rank=2, targets=("q_proj",)), within=LAYERS, usual=MLLM_TARGETS)
    merged = merged_state(model)
    assert merged.keys() == before.keys() and all(torch.equal(merged[name], before[name]) for name in before)


def test_what_cannot_be(monkeypatch):
    with pytest.raises(DuoGenError, match="'quantise' of lora is for the MLLM, in stage 1"):
        Stage2Config(lora=LoraSettings(quantise="nf4"))
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "bitsandbytes":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackage, match=r"QLoRA.*bitsandbytes.*qlora"):
        quantise(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), within="a", computes=torch.float32)
