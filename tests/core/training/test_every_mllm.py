"""Stage 1 trains every MLLM family: whole and by LoRA, the vision tower frozen or not; it resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core.errors import DuoGenError
from duogen_core.mllm.adapter import CONFIG, FILE, read_adapter
from duogen_core.mllm.chat import build_inputs, model_inputs
from duogen_core.mllm.loading import load_mllm
from duogen_core.training import stage1
from duogen_core.training.lora import LoraSettings
from duogen_core.training.next_token import Batcher, NextTokenLoss
from duogen_core.training.stage1 import Stage1Config, checkpoint_layers
from tests.core.mllm.test_prompted import without_bov
from tests.core.mllm_families import CONTEXTS, CREATE, lively, tokenizer, written
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, write_jsonl

LORA = LoraSettings(rank=4)


@pytest.fixture(scope="module", params=CREATE)
def init(request, tmp_path_factory) -> Path:
    """A model as published: without <BOV>, but with rows to spare."""
    folder = tmp_path_factory.mktemp(request.param)
    mllm = lively(request.param, words=without_bov(size=400, family=request.param))
    rows = mllm.model.get_input_embeddings().num_embeddings + 7
    mllm.model.resize_token_embeddings(rows, mean_resizing=False)
    mllm.save_pretrained(folder)
    return folder


@pytest.fixture
def config(init, tmp_path) -> Stage1Config:
    data = [f"jsonl:{write_jsonl(tmp_path / 'set' / 'train.jsonl', [guide(k, (70, 40)) for k in range(5)])}"]
    return Stage1Config(
        out=tmp_path / "run", init=init, data=data, batch=3, steps=2, warmup=1, log_every=1, eval_cases=0,
        sample_minutes=0.0, bf16=False, optimizer="adamw", lr=2e-3,
    )  # fmt: skip


def changed(config: Stage1Config) -> set[str]:
    """Names of the weights that the run changed, in the module's naming."""
    before, after = (load_mllm(folder).model.state_dict() for folder in (config.init, config.out / "export"))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())}


def test_it_learns_with_the_tower_frozen(config):
    assert stage1.train(replace(config, steps=12)).finished
    found = losses(config.out)
    assert found[-1] < 0.8 * found[0]
    learnt, family = changed(config), type(load_mllm(config.init))
    assert learnt and not any(family.sees(name) for name in learnt)
    assert {name.partition("layers.")[0] for name in learnt} >= {"model.language_model.", "lm_head.weight"}
    answer = load_mllm(config.out / "export")
    assert answer.prompted is None and written(answer, CONTEXTS["ends with a picture"], max_new_tokens=3)


def test_it_learns_with_the_tower_too(config):
    assert stage1.train(replace(config, tower_lr=1e-3)).finished
    learnt, mllm = changed(config), load_mllm(config.init)
    sees = {name for name, _ in mllm.model.named_parameters() if mllm.sees(name)}
    assert {name.partition("post_layernorm.")[1] for name in sees - learnt} <= {"post_layernorm."}


def test_lora_learns_and_its_export_is_base_and_adapter(config):
    assert stage1.train(replace(config, lora=LORA, steps=6)).finished
    found = losses(config.out)
    assert found[-1] < found[0]
    base, whole = load_mllm(config.init), load_mllm(config.out / "export")
    adapter = read_adapter(config.out / "adapter", base)
    assert len(adapter.layers) == base.num_layers * 7 and adapter.tokens == {whole.control.bov}
    expected = base.model.state_dict()
    for name, change in adapter.layers.items():
        expected[f"{name}.weight"] = change.merged(expected[f"{name}.weight"])
    for name, tensor in whole.model.state_dict().items():
        if "embed_tokens" not in name and name != "lm_head.weight":
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_in_two_parts_has_the_losses_of_an_unbroken_one(config, lora):
    whole, parts = (replace(config, out=config.out / name, lora=lora, tower_lr=0.0) for name in ("whole", "parts"))
    stage1.train(replace(whole, steps=4))
    with stopped_in(2):
        assert stage1.train(replace(parts, steps=4)).interrupted
    stage1.train(replace(parts, steps=4))
    assert losses(parts.out) == losses(whole.out) and len(set(losses(whole.out))) == 4


@pytest.mark.parametrize("family", CREATE)
def test_checkpointed_layers_have_the_same_gradients_as_transformers_own_loss(family):
    documents = [each for each in CONTEXTS.values() if each.turns[-1].role == "assistant"]

    def gradients(loss_of) -> dict[str, torch.Tensor]:
        mllm = lively(family)
        mllm.model.train()
        loss_of(mllm).backward()
        return {name: p.grad for name, p in mllm.model.named_parameters() if p.grad is not None}

    def own(mllm) -> torch.Tensor:
        return mllm.model(**model_inputs(build_inputs(documents, mllm.tokenizer, mllm.image_processor))).loss

    def ours(mllm) -> torch.Tensor:
        checkpoint_layers(mllm.model, torch.device("cpu"))
        return NextTokenLoss(mllm.model)(*Batcher(mllm.tokenizer, mllm.image_processor)(documents))[0]

    wanted, found = gradients(own), gradients(ours)
    text = [name for name in wanted if not type(lively(family)).sees(name)]  # drawn pictures teach no tower here
    assert len(text) > 20
    for name in text:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-3, msg=name)


OTHERS = [(one, two) for one in CREATE for two in CREATE if one != two]


@pytest.mark.parametrize(("trained", "used"), OTHERS)
def test_a_lora_of_another_family_is_refused_by_both_names(trained, used, tmp_path):
    """Layers of one size and name: only what the file says can tell. Qwen2.5-VL-7B and LLaVA-OneVision-7B are so."""
    from duogen_core.training.lora import MLLM_TARGETS, add_lora, save_adapter

    mllm = lively(trained)
    add_lora(mllm.model, LORA, within="model.language_model.layers", usual=MLLM_TARGETS[4:])
    save_adapter(mllm.model, tmp_path)
    assert len(read_adapter(tmp_path, lively(trained)).layers) == 9
    with pytest.raises(DuoGenError, match=f"a LoRA for {trained}, but this language model is {used}"):
        read_adapter(tmp_path, lively(used))


@pytest.mark.parametrize(
    "said",
    [
        {"auto_mapping": {"base_model_class": "LlavaOnevisionForConditionalGeneration"}},
        {"base_model_name_or_path": "llava-hf/llava-onevision-qwen2-7b-ov-hf"},
    ],
)
def test_a_lora_made_elsewhere_says_its_family_in_its_configuration(said, tmp_path):
    from duogen_core.training.lora import MLLM_TARGETS, add_lora, save_adapter

    mllm = lively("qwen2_5_vl")
    add_lora(mllm.model, LORA, within="model.language_model.layers", usual=MLLM_TARGETS[4:])
    save_adapter(mllm.model, tmp_path)
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, metadata={"format": "pt"})  # as PEFT writes it
    file = tmp_path / CONFIG
    settings = json.loads(file.read_text())
    assert len(read_adapter(tmp_path, mllm_of()).layers) == 9
    file.write_text(json.dumps(settings | said))
    with pytest.raises(DuoGenError, match="a LoRA for llava_onevision, but this language model is qwen2_5_vl"):
        read_adapter(tmp_path, mllm_of())


def mllm_of():
    return lively("qwen2_5_vl", words=tokenizer())
