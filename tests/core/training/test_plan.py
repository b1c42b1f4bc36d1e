"""The plan counts what a run allocates: sizes of the published models, and a tiny pair's peak as it was measured."""

from __future__ import annotations

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from duogen_core.cli import main
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.training import flow, plan, stage2
from duogen_core.training.flops import SequenceShape
from duogen_core.training.next_token import Batcher, NextTokenLoss
from duogen_core.training.plan import Average, Machine, build_dit, build_mllm, kept_by_dit, kept_by_mllm, shape_of
from duogen_core.training.stage1 import checkpoint_layers
from tests.core.headers import key_list
from tests.core.mllm_families import lively
from tests.core.sample_sets import guide
from tests.core.tiny import random_components

SCALE = Path(__file__).parents[3] / "docs" / "training-scale.md"


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were; from its beginning on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.seen or storage._cdata in inputs:
                continue
            self.seen.add(storage._cdata)
            size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, size)
        return out

    def _gone(self, number: int, size: int) -> None:
        self.seen.discard(number)
        self.now -= size


def peak_of(forward) -> int:
    """Most bytes beyond what there was before, over a forward and its backward."""
    live = Live()
    with live, torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        forward().backward()
    return live.most


def tiny_mllm_shape(model) -> dict:
    return json.loads(model.config.to_json_string(use_diff=False))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_stage_1_of_a_tiny_model_takes_what_is_planned(checkpointed):
    mllm = random_components(layers=6).mllm
    model = mllm.model.train()
    model.model.visual.requires_grad_(False)
    if checkpointed:
        checkpoint_layers(model, torch.device("cpu"))
    documents = [guide(k) for k in range(40)]
    batches, pixels = Batcher(mllm.tokenizer, mllm.image_processor, tokens=10**6)(documents)
    (batch,) = batches
    module = NextTokenLoss(model)
    measured = peak_of(lambda: module(batches, pixels)[0])
    kept = kept_by_mllm(
        tiny_mllm_shape(model), *batch.ids.shape, int((batch.weight[:, 1:] > 0).sum()), torch.float32
    )  # fmt: skip
    gradients = 4 * plan.numel(model, True)
    assert kept.peak(6, checkpointed) + gradients == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["PackedCosmos", "PackedWan"])
@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_stage_2_of_a_tiny_dit_takes_what_is_planned(name, attention, checkpointed):
    shape = {"_class_name": name, "num_layers": 6, "num_attention_heads": 2, "text_embed_dim": 24}
    torch.manual_seed(0)
    dit = stage2.new_dit({"PackedCosmos": "cosmos", "PackedWan": "wan"}[name], attention=attention,
                         **{key: value for key, value in shape.items() if key != "_class_name"}).train()  # fmt: skip
    connector = Connector(ConnectorConfig(2, 8, 24))
    places = (0, 1, 2) if attention == "full" else (0, 1, 1, 2)
    # Small frames: attention's scores, which a CPU keeps and fused attention does not, must not outweigh the rest.
    clean, noisy = tuple(torch.randn(16, 16, 16) for _ in range(2)), tuple(torch.randn(16, 16, 16) for _ in places[2:])
    samples = [
        flow.FlowSample(
            clean, noisy, noisy, places, torch.rand(len(noisy)), torch.randn(50, 16),
            torch.ones(len(places), 50, dtype=torch.bool),
        )
        for _ in range(8)
    ]  # fmt: skip
    if checkpointed:
        stage2.checkpoint_blocks(dit)
    module = flow.FlowLoss(dit, connector)
    measured = peak_of(lambda: module(samples))
    sequence = SequenceShape((64, 64), (64,) * len(noisy), places, 50)
    kept = kept_by_dit(shape, [sequence] * 8, (16, 16), torch.float32, attention=attention)
    gradients = 4 * (plan.numel(dit) + plan.numel(connector))
    assert kept.peak(6, checkpointed) + gradients == pytest.approx(measured, rel=0.15)


# ---------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("name", "list_name"),
    [("Qwen2.5-VL-7B-Instruct", "mllm-qwen2.5-vl-7b"), ("Qwen3-VL-8B-Instruct", "mllm-qwen3-vl-8b")],
)
def test_the_mllms_have_the_published_shapes(name, list_name):
    found = sorted(tuple(p.shape) for p in build_mllm(shape_of(Path("models") / name)).parameters())
    assert found == sorted(key_list(list_name).values())


@pytest.mark.parametrize(
    ("name", "list_name"),
    [
        ("Cosmos-Predict2.5-2B", "cosmos_predict2.5_2b.diffusers"),
        ("Wan2.1-T2V-1.3B", "wan2.1_t2v_1.3b.diffusers"),
    ],
)
def test_the_dits_have_the_published_shapes(name, list_name):
    found = {key: tuple(weight.shape) for key, weight in build_dit(shape_of(Path("models") / name)).named_parameters()}
    published = {key: shape for key, shape in key_list(list_name).items() if not key.startswith("crossattn_proj")}
    assert found == {key: shape for key, shape in published.items() if key in found}
    assert found.keys() == {key for key in published if "rope" not in key and "pos_embed" not in key}


def test_a_run_that_another_recipe_makes_is_known_by_what_it_begins_with():
    assert shape_of(Path("runs/qwen2.5-vl-7b/export")) == shape_of(Path("models/Qwen2.5-VL-7B-Instruct"))


# ---------------------------------------------------------------- sums


def needs(recipe: str, machine: Machine, *settings: str):
    _, config = plan.read_recipe(recipe, None, settings)
    return (plan.stage1_needs if config.command == "stage1" else plan.stage2_needs)(config, machine, Average())


def test_what_learns_costs_16_bytes_a_weight_and_fsdp_divides_it():
    one, eight = (needs("cosmos-predict2.5-2b", Machine(gpus)) for gpus in (1, 8))
    learn = plan.numel(build_dit(shape_of(Path("Cosmos-Predict2.5-2B")))) + (28 * 3584 + 1) * 1024
    assert one.gpu["weights"] == 4 * learn and one.gpu["gradients"] == 4 * learn and one.gpu["AdamW"] == 8 * learn
    assert [eight.gpu[part] for part in ("weights", "gradients", "AdamW")] == [learn / 2, learn / 2, learn]
    assert one.gpu["MLLM and VAE"] == eight.gpu["MLLM and VAE"], "what only reads is whole on each GPU"
    assert eight.seconds == pytest.approx(one.seconds / 8, rel=0.01) and eight.work == one.work
    assert 2.0e9 < learn < 2.1e9


def test_lora_learns_little_and_is_copied_by_ddp():
    one, eight = (needs("qwen2.5-vl-7b-lora", Machine(gpus)) for gpus in (1, 8))
    assert one.gpu["weights"] == eight.gpu["weights"] == pytest.approx(2 * 8.292e9 + 4 * 0.0404e9, rel=0.001)
    assert one.gpu["AdamW"] == pytest.approx(8 * 0.0404e9, rel=0.01)


def test_checkpointing_saves_memory_and_takes_time():
    plain, less = (
        needs("cosmos-predict2.5-2b", Machine(8), f"gradient_checkpointing={on}") for on in ("false", "true")
    )
    assert plain.gpu["activations"] > 5 * less.gpu["activations"]
    assert plain.work.repeated == 0 and 1.1 < less.work.done / plain.work.done < 1.34


def test_a_step_waits_for_the_gpu_with_most_documents():
    assert plan.shared_out(64, 5, 8) == (2, 4) and plan.shared_out(64, 5, 64) == (1, 1)
    assert plan.shared_out(3, 8, 2) == (1, 2)
    machine = replace(Machine(2), tflops=1.0, share=1.0)
    assert plan.seconds_of(plan.Flops(3e12), machine, 3) == pytest.approx(2.0)


# ---------------------------------------------------------------- the command and the page


def run(capsys, *arguments: str) -> str:
    assert main(["train", "plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_page_shows_what_the_command_prints(capsys):
    """Each command on the page, with the table below it."""
    found = re.findall(r"```\npython -m duogen_core train plan (.+)\n```\n\n((?:\|.*\n)+)", SCALE.read_text("utf-8"))
    assert len(found) >= 4
    for command, table in found:
        assert run(capsys, *command.split()).strip() == table.strip(), command


def test_settings_may_stand_behind_the_numbers_of_gpus(capsys):
    table = run(capsys, "tiny-wan-stage2", "--gpus", "1", "2", "steps=70", "--memory", "24", "layers=2")
    assert "| 1 GPU | 2 GPUs, FSDP |" in table and "hours of 70 steps" in table
    assert table == run(capsys, "--gpus", "1", "2", "steps=70", "--memory", "24", "tiny-wan-stage2", "layers=2")
    assert table == run(capsys, "tiny-wan-stage2", "layers=2", "--gpus", "1", "2", "steps=70", "--memory", "24")


@pytest.mark.parametrize("side", [384, 512, 1000])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_an_image_takes_the_tokens_that_its_family_gives_it(family, side):
    mllm = lively(family)
    grid = mllm.image_processor.grid((side, side))
    tokens, patches = plan.seen_by(mllm.model, side)
    assert tokens == pytest.approx(mllm.image_processor.tokens(grid), rel=0.06)  # Qwen-VL's sides are rounded
    assert patches == pytest.approx(mllm.image_processor.seen(grid), rel=0.06)


@pytest.mark.parametrize("recipe", ["qwen2.5-vl-7b", "cosmos-predict2.5-2b"])
def test_llava_is_planned_too(recipe, capsys):
    """Its images take three times as many tokens."""
    name = "mllm" if recipe.startswith("cosmos") else "init"
    shape = "llava-onevision-qwen2-0.5b-ov-hf"
    table = run(capsys, recipe, "--gpus", "8", "--images", "2", f"{name}={shape}", "batch=8")
    assert "| fits 80 GB | yes |" in table


def test_a_plan_says_what_does_not_fit(capsys):
    table = run(capsys, "qwen2.5-vl-7b", "--gpus", "1", "8", "--memory", "24")
    (row,) = [line for line in table.splitlines() if line.startswith("| fits 24 GB")]
    assert row.count("no, ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["qwen2.5-vl-7"], "the recipe 'qwen2.5-vl-7' is not known; did you mean 'qwen2.5-vl-7b'"),
        (["qwen2.5-vl-7b", "--gpus", "0"], "--gpus is 0; expected more than 0"),
        (["qwen2.5-vl-7b", "--share", "2"], "--share is 2; expected a share of the peak"),
        (["qwen2.5-vl-7b", "init=models/Unknown-9B"], "There is no config.json in models/Unknown-9B, and as"),
        (["tiny-stage2"], "There is no config.json in runs/pretrain/export"),
        (["qwen2.5-vl-7b", "lrr=1"], "no setting 'lrr'"),
        (["qwen2.5-vl-7b", "--gpus", "8", "x"], "--gpus: 'x' is no whole number"),
        (["qwen2.5-vl-7b", "--gpus", "lr=1"], "--gpus: expected at least one number"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys, arguments, said):
    assert main(["train", "plan", *arguments]) == 2
    assert said in capsys.readouterr().err
