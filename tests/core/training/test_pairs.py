"""Every MLLM family with every DiT family: both stages, resumed exactly, put together, and an answer; and what is
refused where parts of two pairs meet."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from duogen_core.checkpoint import CheckpointConfig, PictureSize, load_checkpoint
from duogen_core.cli import main
from duogen_core.connector import Connector
from duogen_core.dit import FAMILIES as DIT_FAMILIES
from duogen_core.dit.loading import load_dit
from duogen_core.document import Document, Text
from duogen_core.document.reading import load_document
from duogen_core.errors import DuoGenError
from duogen_core.mllm import FAMILIES as MLLM_FAMILIES
from duogen_core.mllm.adapter import CONFIG, read_adapter
from duogen_core.mllm.loading import load_mllm
from duogen_core.pipeline import generate
from duogen_core.sampling import Sampling
from duogen_core.settings import Settings
from duogen_core.training import run as run_module
from duogen_core.training import stage1, stage2
from duogen_core.training.assemble import assemble
from duogen_core.training.lora import DIFFUSERS_FILE, LoraSettings
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Stage2Config
from duogen_core.vae import new_vae
from duogen_core.weights.headers import read_header, shapes_of
from duogen_core.weights.lora import check_lora, read_lora
from tests.core.dit.families import family as dit_class
from tests.core.mllm_families import CREATE, SIZES, tokenizer
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, write_jsonl
from tests.core.tiny import scripted

DITS = sorted({dit_class(name).family for name in DIT_FAMILIES})
MLLM_OF_DIT = {"cosmos": "qwen2_5_vl", "wan": "llava_onevision"}
PAIRS = list(product(MLLM_FAMILIES, DITS))
SHARED = {
    "steps": 2, "batch": 2, "warmup": 1, "log_every": 1, "eval_cases": 0, "bf16": False, "tensorboard": False,
    "sample_minutes": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(run_module, "plot_metrics", lambda folder: None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """vae/, documents, and bases/<family>/: every family as small as it goes. All MLLMs have the same sizes, so that
    nothing but their family tells them apart."""
    root = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    new_vae(base_dim=4).save_pretrained(root / "vae")
    for family, create in CREATE.items():
        create(
            tokenizer(family) if tokenizer.__wrapped__.__code__.co_argcount else tokenizer(), **SIZES
        ).save_pretrained(root / "bases" / family)
    write_jsonl(root / "set" / "train.jsonl", [guide(k, (32, 32)) for k in range(5)])
    return root


def first_stage(inputs: Path, mllm: str, out: Path, **changes) -> Stage1Config:
    data = [f"jsonl:{inputs / 'set' / 'train.jsonl'}"]
    return Stage1Config(**{"out": out, "init": inputs / "bases" / mllm, "data": data, **SHARED, **changes})


def second_stage(inputs: Path, mllm: Path, dit: str, out: Path, **changes) -> Stage2Config:
    values = {
        "out": out, "mllm": mllm, "vae": inputs / "vae", "data": [f"jsonl:{inputs / 'set' / 'train.jsonl'}"],
        "dit": dit, "layers": 1, "heads": 2, "cross_width": 16, "max_side": 32, "states": "online", "tokens": 400,
        "precision": "float32", "lr": 0.02, "optimizer": "adamw",
    }  # fmt: skip
    return Stage2Config(**{**values, **SHARED, **changes})


@pytest.fixture(scope="module")
def first(inputs, tmp_path_factory):
    """first(mllm) -> run folder of stage 1, trained once."""
    done: dict[str, Path] = {}

    def of(mllm: str) -> Path:
        if mllm not in done:
            done[mllm] = tmp_path_factory.mktemp("stage1") / mllm
            assert stage1.train(first_stage(inputs, mllm, done[mllm])).finished
        return done[mllm]

    return of


@pytest.fixture(scope="module")
def second(inputs, first, tmp_path_factory):
    """second(mllm, dit) -> run folder of stage 2, trained once."""
    done: dict[tuple[str, str], Path] = {}

    def of(mllm: str, dit: str) -> Path:
        if (mllm, dit) not in done:
            out = done[mllm, dit] = tmp_path_factory.mktemp("stage2") / f"{mllm}-{dit}"
            assert stage2.train(second_stage(inputs, first(mllm) / "export", dit, out)).finished
        return done[mllm, dit]

    return of


def weights(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


# ---------------------------------------------------------------- what must work


@pytest.mark.parametrize("mllm", MLLM_FAMILIES)
def test_stage_1_learns_and_resumes_exactly(mllm, inputs, first, tmp_path):
    whole, broken = first(mllm), first_stage(inputs, mllm, tmp_path / "broken")
    with stopped_in(0):
        assert stage1.train(broken).interrupted
    assert stage1.train(broken).finished
    assert losses(broken.out) == losses(whole) and len(set(losses(whole))) == 2
    assert weights(broken.out) == weights(whole) != {}
    base = load_mllm(inputs / "bases" / mllm).model.state_dict()
    trained = load_mllm(whole / "export").model.state_dict()
    assert any(not torch.equal(base[name], trained[name]) for name in base)


@pytest.mark.parametrize(("mllm", "dit"), PAIRS)
def test_stage_2_learns_and_resumes_exactly(mllm, dit, inputs, first, second, tmp_path):
    whole = second(mllm, dit)
    broken = second_stage(inputs, first(mllm) / "export", dit, tmp_path / "broken")
    with stopped_in(0):
        assert stage2.train(broken).interrupted
    assert stage2.train(broken).finished
    assert losses(broken.out) == losses(whole) and len(set(losses(whole))) == 2 and np.isfinite(losses(whole)).all()
    assert weights(broken.out) == weights(whole) != {}
    config = json.loads((whole / "export" / "connector" / "config.json").read_text())
    assert (config["mllm"], config["dit"]) == (mllm, dit)


@pytest.mark.parametrize(("mllm", "dit"), PAIRS)
def test_a_pair_is_put_together_and_answers(mllm, dit, inputs, first, second, tmp_path):
    sampling = Sampling(steps=2, guidance=2.0, shift=1.0)
    config = CheckpointConfig("pair", sampling, PictureSize(32, 32, 64))
    model = assemble(inputs / "vae", first(mllm), second(mllm, dit), tmp_path / "model", config)
    components = load_checkpoint(model)
    assert (components.mllm.model_type, components.dit.family) == (mllm, dit)
    command = ["generate", "Draw a square.", "--model", str(model), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--seed", "3", "--max-tokens", "4", "--max-images", "1"]) == 0
    assert load_document(tmp_path / "out").last_turn.role == "assistant"
    # What a model of two steps writes is chance: here the words are given, the states are its own.
    asked = Document().begin_turn("user", [Text("Draw it like this."), guide(7, (48, 32)).pictures[1]])
    scripted(components, ("Step 1.", "picture"), ("Step 2.", "picture"), ("Done.", "end"))
    answer = generate(components, asked, Settings(seed=3)).last_turn
    drawn = [picture.pixels for picture in answer.pictures]
    assert len(drawn) == 2 and all(pixels.std() > 0 for pixels in drawn)
    components.connector.proj.weight.data.zero_()
    scripted(components, ("Step 1.", "picture"), ("Step 2.", "picture"), ("Done.", "end"))
    blind = [picture.pixels for picture in generate(components, asked, Settings(seed=3)).last_turn.pictures]
    assert any(not np.array_equal(one, two) for one, two in zip(drawn, blind)), "it draws what the states say"


@pytest.mark.parametrize("mllm", MLLM_FAMILIES)
def test_stage_1_in_bfloat16_learns_the_same(mllm, inputs, first, tmp_path):
    """bf16 is the default; the other tests here turn it off, to compare exactly."""
    config = first_stage(inputs, mllm, tmp_path / "run", bf16=True)
    assert stage1.train(config).finished
    assert losses(config.out) == pytest.approx(losses(first(mllm)), rel=0.03)


@pytest.mark.parametrize("states", ["cached", "online"])
@pytest.mark.parametrize("dit", DITS)
def test_stage_2_in_bfloat16_learns_the_same(dit, states, inputs, first, tmp_path):
    """Cached states lie in float16, which autocast to bfloat16 cannot concatenate by itself."""
    mllm, found = MLLM_OF_DIT[dit], {}
    for name, changes in {"exact": {"precision": "float32"}, "half": {"precision": "float16", "bf16": True}}.items():
        config = second_stage(inputs, first(mllm) / "export", dit, tmp_path / name, states=states, shards=1, **changes)
        assert stage2.train(config).finished
        found[name] = losses(config.out)
    assert found["half"] == pytest.approx(found["exact"], rel=0.03)


# ---------------------------------------------------------------- what is refused


def refused(words: tuple[str, ...], call, *args) -> None:
    with pytest.raises(DuoGenError) as caught:
        call(*args)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_connector_of_another_pair(inputs, first, second, tmp_path, monkeypatch):
    """All MLLMs here have the same layers and widths, and all DiTs read as many numbers: only the names tell."""
    own, (other_mllm, other_dit) = ("qwen2_5_vl", "cosmos"), ("qwen3_vl", "wan")
    config = CheckpointConfig("mixed", Sampling(steps=2), PictureSize(32, 32, 64))
    for mllm, dit in ((other_mllm, "cosmos"), ("qwen2_5_vl", other_dit)):
        run = tmp_path / f"{mllm}-{dit}"
        shutil.copytree(second(mllm, dit), run)
        shutil.rmtree(run / "export" / "connector")
        shutil.copytree(second(*own) / "export" / "connector", run / "export" / "connector")
        out = tmp_path / f"{mllm}-{dit}-model"
        words = ("The connector of mixed was trained for qwen2_5_vl and cosmos", f"{mllm} and {dit}")
        refused(words, assemble, inputs / "vae", first(mllm), run, out, config)
        assert not out.exists()
        again = second_stage(inputs, first(mllm) / "export", None, tmp_path / "again", init=run / "export")
        with monkeypatch.context() as changed:  # said before the documents are read, which may take hours
            changed.setattr(stage2, "batches_of", lambda *_: pytest.fail("documents were read"))
            refused(("trained for qwen2_5_vl and cosmos", f"{mllm} and {dit}"), stage2.train, again)
        assert not (tmp_path / "again" / "checkpoint").exists()


def test_a_connector_that_does_not_say_its_pair_goes_by_its_shape(inputs, first, second, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(second("qwen2_5_vl", "cosmos"), run)
    file = run / "export" / "connector" / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({name: said[name] for name in said if name not in ("mllm", "dit")}))
    config = CheckpointConfig("old", Sampling(steps=2), PictureSize(32, 32, 64))
    assert assemble(inputs / "vae", first("qwen2_5_vl"), run, tmp_path / "model", config).is_dir()
    file.write_text(json.dumps({**said, "mllm": 3}))
    refused(("mllm", "3"), Connector.from_pretrained, file.parent)


@pytest.mark.parametrize("mllm", ["qwen2_5_vl"])
def test_a_lora_of_the_other_family(mllm, inputs, first, tmp_path):
    """Of an MLLM with the same names and sizes, and of the other DiT."""
    lora = LoraSettings(rank=2)
    learnt = first_stage(inputs, mllm, tmp_path / "lora", lora=lora)
    assert stage1.train(learnt).finished
    for other in MLLM_FAMILIES:
        base = load_mllm(inputs / "bases" / other)
        if other == mllm:
            assert read_adapter(learnt.out / "adapter", base).layers
        else:
            refused((mllm, other), read_adapter, learnt.out / "adapter", base)
    assert json.loads((learnt.out / "adapter" / CONFIG).read_text())["r"] == 2


@pytest.mark.parametrize(("dit", "other"), [("cosmos", "wan"), ("wan", "cosmos")])
def test_a_lora_of_the_other_dit(dit, other, inputs, first, second, tmp_path):
    mllm = first("qwen2_5_vl") / "export"
    started = second("qwen2_5_vl", dit) / "export"
    learnt = second_stage(inputs, mllm, None, tmp_path / "lora", init=started, lora=LoraSettings(rank=2))
    assert stage2.train(learnt).finished
    file = learnt.out / "adapter" / DIFFUSERS_FILE
    lora = read_lora(read_header(file), str(file))
    own, its = (shapes_of(load_dit(second("qwen2_5_vl", each) / "export" / "dit")) for each in (dit, other))
    assert len(check_lora(lora, own, str(file), f"this {dit}")) == len(lora.layers) > 4
    refused((str(file), "is a LoRA for another"), check_lora, lora, its, str(file), f"this {other}")


def test_a_resume_on_another_pair(inputs, first, second, tmp_path):
    run = tmp_path / "stage1"
    shutil.copytree(first("qwen2_5_vl"), run)
    other = first_stage(inputs, "qwen3_vl", run, steps=3)
    before = weights(run)
    refused(("was begun with qwen2_5_vl, and these are qwen3_vl", "another out"), stage1.train, other)
    run = tmp_path / "stage2"
    shutil.copytree(second("qwen2_5_vl", "cosmos"), run)
    for mllm, dit in (("qwen3_vl", "cosmos"), ("qwen2_5_vl", "wan")):
        other = second_stage(inputs, first(mllm) / "export", dit, run, steps=3)
        words = ("was begun with qwen2_5_vl and cosmos", f"these are {mllm} and {dit}")
        refused(words, stage2.train, other)
    assert weights(tmp_path / "stage1") == before
    assert stage2.train(second_stage(inputs, first("qwen2_5_vl") / "export", "cosmos", run, steps=3)).finished


def test_a_base_of_an_unknown_family(inputs, first, second, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(inputs / "bases" / "qwen2_5_vl", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "mistral3"}))
    known = tuple(MLLM_FAMILIES)
    refused(("'mistral3'", *known), stage1.train, replace(first_stage(inputs, "qwen3_vl", tmp_path / "a"), init=base))
    refused(("'mistral3'", *known), stage2.train, second_stage(inputs, base, "cosmos", tmp_path / "b"))
    dit = tmp_path / "init" / "dit"
    shutil.copytree(second("qwen2_5_vl", "wan") / "export" / "dit", dit)
    config = json.loads((dit / "config.json").read_text())
    (dit / "config.json").write_text(json.dumps({**config, "_class_name": "FluxTransformer2DModel"}))
    mllm = first("qwen2_5_vl") / "export"
    started = second_stage(inputs, mllm, None, tmp_path / "c", init=tmp_path / "init")
    refused(("FluxTransformer2DModel", "PackedCosmos", "PackedWan"), stage2.train, started)
    assert main(["train", "stage2", "dit=flux", "steps=1"]) == 2
    assert "expected one of" in (said := capsys.readouterr().err) and all(family in said for family in DITS)
    assert not any((tmp_path / name / "checkpoint").exists() for name in "abc")
