"""The validation loss: the same noise and times every time, of the averaged weights, and the run stays as it is."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from duogen_core.data.sources import Limits
from duogen_core.errors import DuoGenError
from duogen_core.training import distributed, flow, stage1, stage2
from duogen_core.training.configuration import ConfigError
from duogen_core.training.data import Samples, held_out, is_held_out, without_held_out
from duogen_core.training.lora import LoraSettings
from duogen_core.training.metrics import read_lines
from duogen_core.training.prepared import Reader
from duogen_core.training.run import Every, Run, rng_for
from duogen_core.training.stage2_data import CachedBatches, DrawnLimits, Stage2Config
from duogen_core.training.validation import TIMES, Validation
from tests.core.runs import losses
from tests.core.sample_sets import guide, write_jsonl
from tests.core.tiny import random_components

CONFIG = Stage2Config(
    out=Path("."), vae=Path("."), mllm=Path("."), layers=2, heads=2, cross_width=32, tokens=800, steps=4, log_every=1,
    eval_cases=1, eval_steps=2, bf16=False, optimizer="adamw", warmup=1, sample_minutes=0.0,
)  # fmt: skip
SETTINGS = replace(stage2.flow_settings(CONFIG), drop_text=0.0)


@pytest.fixture(scope="module")
def components():
    return random_components(layers=2)


@pytest.fixture(scope="module")
def reader(components):
    return Reader(components.vae, components.mllm, 64)


@pytest.fixture(scope="module")
def cases():
    found = held_out(CONFIG, DrawnLimits())
    return {name: found[name] for name in ("draw", "guide")}


@pytest.fixture(scope="module")
def documents(cases, reader):
    return reader([example.document for some in cases.values() for example in some], ["a", "b"])


def new_parts():
    torch.manual_seed(1)
    dit, connector = stage2.new_models(CONFIG, 2, 64)
    for parameter in (*dit.parameters(), *connector.parameters()):  # its first prediction would be 0 whatever it sees
        parameter.data += 0.02 * torch.randn_like(parameter)
    return dit, connector


def validation_of(run, cases, reader):
    return Validation(run, cases, reader, partial(flow.sample_of, settings=SETTINGS))


def test_world_families_that_draw_are_scored_and_others_are_not():
    found = held_out(CONFIG, DrawnLimits())
    assert {"draw", "guide", "edit"} <= found.keys() and "describe" not in found
    assert held_out(replace(CONFIG, eval_cases=0), DrawnLimits()) == {}


def test_the_scores_are_the_flow_loss_at_fixed_times_and_noise(tmp_path, cases, reader, documents):
    run = Run.of(replace(CONFIG, out=tmp_path))
    module = flow.FlowLoss(*new_parts())
    validation = validation_of(run, cases, reader)
    scores = validation(module)
    assert list(scores) == ["all", "draw", "guide"]
    every, targets = [], []
    for number, (name, document) in enumerate(zip(("draw", "guide"), documents, strict=True)):
        for place, t in enumerate(TIMES):
            sample = flow.sample_of(document, rng_for(0, "validation", number, place), SETTINGS)
            sample = replace(sample, timestep=torch.full((len(sample.targets),), t))
            with torch.no_grad():
                loss = float(module([sample]))
            assert scores[name][f"loss_t{t:g}"] == pytest.approx(loss, rel=1e-5)
            every.append(loss * len(sample.targets))
            targets.append(len(sample.targets))
        assert scores[name]["loss"] == pytest.approx(sum(scores[name][f"loss_t{t:g}"] for t in TIMES) / 4, rel=1e-5)
    assert len(document.drawn) > 1, "the guide has several targets, each of which counts"
    assert scores["all"]["loss"] == pytest.approx(sum(every) / sum(targets), rel=1e-4)
    assert len({scores["guide"][f"loss_t{t:g}"] for t in TIMES}) == 4

    random.random(), torch.rand(3)  # whatever else is drawn
    assert validation(module) == scores, "the kept documents"
    assert validation_of(run, cases, reader)(module) == scores, "read anew"
    module.connector.proj.weight.data *= 2
    assert validation(module) != scores


def test_dropout_is_off_and_the_random_generators_are_as_before(tmp_path, cases, reader):
    module = flow.FlowLoss(*new_parts())
    stage2.add_lora(module.dit, LoraSettings(dropout=0.5), within="transformer_blocks", usual=stage2.DIT_TARGETS)
    for name, parameter in module.dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    module.train()
    validation = validation_of(Run.of(replace(CONFIG, out=tmp_path)), cases, reader)
    before = torch.get_rng_state(), random.getstate()
    scores = validation(module)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert validation(module) == scores and module.training and module.dit.training
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.3)], ids=["whole", "lora"])
def test_a_run_is_bit_for_bit_the_same_with_and_without(tmp_path, cases, reader, documents, lora):
    found = {}
    for name in ("with", "without"):
        config = replace(CONFIG, out=tmp_path / name, lora=lora)
        run = Run.of(config)
        dit, connector = new_parts()
        validation = validation_of(run, cases, reader) if name == "with" else None
        batches = CachedBatches(documents, CONFIG.tokens)
        stage2.learn(run, config, batches, dit, connector, validation=validation)
        found[name] = losses(config.out), dit.state_dict(), run.emas["dit"].shadow
    assert found["with"][0] == found["without"][0] and len(found["with"][0]) == 4
    for one, two in zip(found["with"][1:], found["without"][1:], strict=True):
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    lines = [line for line in read_lines(tmp_path / "with" / "metrics.jsonl") if "eval" in line]
    assert [line["step"] for line in lines] == [2, 4], "every eval_steps, and at the end"
    assert lines[0]["eval"].keys() == {"all", "draw", "guide"} and lines[0]["eval"] != lines[1]["eval"]
    assert not [line for line in read_lines(tmp_path / "without" / "metrics.jsonl") if "eval" in line]


def test_the_averaged_weights_are_scored(tmp_path, cases, reader, documents):
    config = replace(CONFIG, out=tmp_path, steps=3, eval_steps=100, ema=0.9, lr=0.05)
    run, (dit, connector) = Run.of(config), new_parts()
    validation = validation_of(run, cases, reader)
    stage2.learn(run, config, CachedBatches(documents, CONFIG.tokens), dit, connector, validation=validation)
    (told,) = [line["eval"] for line in read_lines(tmp_path / "metrics.jsonl") if "eval" in line]
    module = flow.FlowLoss(dit, connector)
    plain = validation(module)
    dit.load_state_dict(run.emas["dit"].shadow)
    connector.load_state_dict(run.emas["connector"].shadow)
    assert validation(module) == told != plain


def test_a_document_that_cannot_be_scored_costs_the_scores_and_not_the_run(tmp_path, cases, reader, documents, capsys):
    """Also where another process met it."""
    config = replace(CONFIG, out=tmp_path, steps=2, eval_steps=100)
    run, (dit, connector) = Run.of(config), new_parts()

    def full(documents, names):
        raise MemoryError("Unable to allocate 2.00 GiB")

    validation = Validation(run, cases, full, partial(flow.sample_of, settings=SETTINGS))
    stage2.learn(run, config, CachedBatches(documents, CONFIG.tokens), dit, connector, validation=validation)
    assert run.finished and len(losses(tmp_path)) == 2 and "eval" not in (tmp_path / "metrics.jsonl").read_text()
    said = "The scores of step 2 are left out: Unable to allocate 2.00 GiB. The training goes on."
    assert said in capsys.readouterr().out

    elsewhere = validation_of(run, cases, reader)
    gather = run.processes.gather
    run.processes.gather = lambda value: [value, "No space left on device"] if value == "" else gather(value)
    with pytest.raises(DuoGenError, match="No space left on device"):
        elsewhere(flow.FlowLoss(dit, connector))
    run.processes.sharded, run.processes._wrapped = True, dit  # its pass is one of all processes
    with pytest.raises(MemoryError), run.looking("The scores", together=True):
        validation(flow.FlowLoss(dit, connector))


def test_samples_under_fsdp_are_left_out_unless_a_process_failed_while_all_gather(tmp_path, documents, monkeypatch):
    """Who goes on from the middle of a gather meets the others, who are still in it, in another one: all would hang."""
    config = replace(CONFIG, out=tmp_path, steps=1, eval_steps=100)
    run, (dit, connector) = Run.of(config), new_parts()
    stage2.learn(run, config, CachedBatches(documents, CONFIG.tokens), dit, connector)
    run.processes.sharded, run.processes._wrapped = True, dit
    said, drawn = [], []
    monkeypatch.setattr(run, "say", said.append)

    def show():
        stage2.show(run, lambda *parts: drawn.append(parts), dit, connector, False)

    show()
    assert len(drawn) == 1 and drawn[0][0] is not dit and not said

    class Full(torch.Tensor):
        def cpu(self):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(distributed, "full_tensor", lambda tensor: tensor.as_subclass(Full))
    show()
    assert len(drawn) == 1 and len(said) == 1 and "The samples of step 1 are left out: the host has no mem" in said[0]

    def card_full(tensor):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(distributed, "full_tensor", card_full)
    with pytest.raises(torch.OutOfMemoryError):
        show()
    assert len(drawn) == 1 and len(said) == 1


# ---------------------------------------------------------------- a share of the data


@pytest.fixture
def data(tmp_path):
    return [f"jsonl:{write_jsonl(tmp_path / 'set' / 'train.jsonl', [guide(k) for k in range(40)])}"]


def test_what_is_held_out_is_not_learnt_from(tmp_path, data):
    config = replace(CONFIG, data=data, eval_share=0.25, eval_cases=100)
    ((name, scored),) = held_out(config, DrawnLimits()).items()
    assert name.endswith("held out") and 3 <= len(scored) <= 20
    run = Run.of(replace(config, out=tmp_path / "run"))
    run.folder.mkdir()
    samples = Samples(run, data, 4, without_held_out(DrawnLimits(), config.eval_share))
    drawn = {samples.mixture.draw(k).document for k in range(200)}
    words = {example.document.turns[0].text for example in scored}
    assert not any(document.turns[0].text in words for document in drawn)
    assert len({document.turns[0].text for document in drawn} | words) == 40, "each document is on one side"


def test_which_documents_are_held_out_follows_from_their_words():
    found = [is_held_out(guide(k), 0.3) for k in range(300)]
    assert 60 < sum(found) < 120 and found == [is_held_out(guide(k), 0.3) for k in range(300)]
    assert [is_held_out(guide(k), 0.3, wanted=False) for k in range(300)] == [not each for each in found]
    more = [is_held_out(guide(k), 0.5) for k in range(300)]
    assert all(b or not a for a, b in zip(found, more, strict=True)), "a larger share holds out the same ones and more"


def test_a_share_that_holds_out_nothing_is_said(data):
    config = replace(CONFIG, data=data, eval_share=1e-9)
    with pytest.raises(DuoGenError, match="eval_share=1e-09 holds out none of the samples.*larger share"):
        held_out(config, DrawnLimits())
    with pytest.raises(ConfigError, match="'eval_share' is 0.7"):
        replace(CONFIG, eval_share=0.7)


def test_stage_1_holds_out_a_share_too(tmp_path, data):
    random_components().mllm.save_pretrained(tmp_path / "mllm")
    config = stage1.Stage1Config(
        out=tmp_path / "run", init=tmp_path / "mllm", data=data, batch=2, steps=3, warmup=1, log_every=1,
        eval_share=0.25, eval_cases=2, eval_steps=2, sample_minutes=0.0, bf16=False,
    )  # fmt: skip
    stage1.train(config)
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval" in line]
    assert [line["step"] for line in lines] == [2, 3]
    ((name, scores),) = lines[1]["eval"].items()
    assert name.endswith("held out") and scores["loss"] > 0
    assert "held-out" in (tmp_path / "run" / "STATUS").read_text()
    assert held_out(replace(config, eval_share=0.0, eval_data=data), Limits()).keys() == {data[0]}


def test_something_is_due_by_steps_or_by_minutes(tmp_path):
    run = Run(tmp_path, {}, steps=9)
    by_steps, by_minutes, never = Every(run, 1.0, 3), Every(run, 1.0), Every(run, None)
    found = []
    for run.step in range(8):
        run.elapsed = 25.0 * run.step
        found.append((by_steps(), by_minutes(), never()))
    assert [step for step, each in enumerate(found) if each[0]] == [3, 6]
    assert [step for step, each in enumerate(found) if each[1]] == [3, 6]  # at 75 and 150 seconds
    assert not any(each[2] for each in found)
