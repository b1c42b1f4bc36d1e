"""Stage 1 on documents of one's own: what is learnt and what not, bad data, resume, LoRA, memory, samples."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from duogen_core.cli import main
from duogen_core.compiling import Compiled
from duogen_core.data.sources import Limits, open_mixture
from duogen_core.document import Document, Text, Turn
from duogen_core.document.store import document_json
from duogen_core.errors import DuoGenError
from duogen_core.mllm.loading import load_mllm
from duogen_core.training import checkpoints, samples, stage1
from duogen_core.training import stage1 as mllm_training
from duogen_core.training.configuration import load_config
from duogen_core.training.data import held_out
from duogen_core.training.lora import LoraSettings
from duogen_core.training.next_token import Batcher, NextTokenLoss
from duogen_core.training.samples import answer, write_answers
from duogen_core.training.stage1 import Stage1Config, checkpoint_layers, evaluate
from tests.core.documents import picture
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import ANSWER, USER, guide, write_documents, write_jsonl
from tests.core.tiny import random_components, request, scripted


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    random_components().mllm.save_pretrained(folder)
    return folder


@pytest.fixture
def config(init, tmp_path) -> Stage1Config:
    data = [f"jsonl:{write_jsonl(tmp_path / 'set' / 'train.jsonl', [guide(k) for k in range(7)])}"]
    return Stage1Config(
        out=tmp_path / "run", init=init, data=data, batch=3, steps=4, warmup=2, log_every=1, eval_cases=0,
        sample_minutes=0.0, bf16=False,
    )  # fmt: skip


def export_of(config: Stage1Config) -> dict[str, torch.Tensor]:
    return load_file(config.out / "export" / "model.safetensors")


def bad_of(config: Stage1Config) -> list[dict]:
    return [json.loads(line) for line in (config.out / "bad_samples.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- what is learnt


def test_only_the_assistants_turns_count_and_a_picture_to_be_drawn_is_one_token():
    mllm = random_components().mllm
    document = Document(
        (Turn("system", (Text("Be kind."),)), Turn("user", (Text("Draw"), picture(1))), *guide(3).turns[1:])
    )
    (batch,), _ = Batcher(mllm.tokenizer, mllm.image_processor)([document])
    learnt = mllm.tokenizer.decode(batch.ids[0][batch.weight[0] > 0].tolist())
    assert learnt == "Step 1.<BOV>Done.<|im_end|>"
    assert set(batch.weight.flatten().tolist()) == {0.0, 1.0}


def test_a_run_learns_the_documents(config):
    assert stage1.train(replace(config, steps=25)).finished
    found = losses(config.out)
    assert found[-1] < 0.7 * found[0]
    assert json.loads((config.out / "config.json").read_text())["config"]["probe_weight"] == 0.0


def test_a_single_source_needs_no_list():
    assert load_config(Stage1Config, None, ["data=jsonl:a.jsonl"]).data == ["jsonl:a.jsonl"]
    assert load_config(Stage1Config, None, ["data={source: sketchbook, weight: 2}"]).data == [
        {"source": "sketchbook", "weight": 2}
    ]


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.2)], ids=["full", "lora"])
def test_a_run_killed_and_continued_has_the_losses_of_an_unbroken_one(config, lora):
    with Path(config.data[0].partition(":")[2]).open("a") as lines:
        lines.write("{broken\n" * 3)  # what takes the place of a bad sample is a function of (seed, k) too
    config = replace(config, data=[f"2*{config.data[0]}", "sketchbook"], steps=5, lora=lora)
    whole, broken = replace(config, out=config.out / "whole"), replace(config, out=config.out / "broken")
    stage1.train(whole)
    for step in (1, 3):
        with stopped_in(step):
            assert stage1.train(broken).interrupted
    stage1.train(broken)
    assert losses(broken.out) == losses(whole.out) and len(set(losses(whole.out))) == 5
    one, two = export_of(whole), export_of(broken)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert {bad["index"] for bad in bad_of(broken)} == {bad["index"] for bad in bad_of(whole)} != set()


def test_other_data_on_resume_is_said(config, capsys):
    with stopped_in(1):
        stage1.train(config)
    write_jsonl(Path(config.data[0].partition(":")[2]), [guide(k) for k in range(9)])
    stage1.train(config)
    assert "The data is not that of the session before: " in (said := capsys.readouterr().out)
    assert "samples of source 1 (jsonl): was 7, is 9" in said
    assert any("changed_data" in line for line in (config.out / "metrics.jsonl").read_text().splitlines())


# ---------------------------------------------------------------- bad data


def lines_of(*documents: Document, names: tuple[str, ...] = ()) -> bytes:
    return b"".join(json.dumps(document_json(each, list(names))).encode() + b"\n" for each in documents)


def wide() -> Document:
    return Document((USER, Turn("assistant", (Text("Wide."), picture(0, (10_000, 60))))))


def test_bad_samples_are_passed_over_counted_and_named(config, tmp_path, capsys):
    robot = lines_of(Document((USER, ANSWER))).replace(b'"user"', b'"robot"')
    no_turn = (
        b'{"format": "duogen-document", "version": 1, "parts": [{"type": "image", "file": "a.png"}], "turns": []}\n'
    )
    tail = lines_of(Document((USER,))) + robot + no_turn
    tail += lines_of(guide(1), names=("nowhere.png", "nowhere.png"))
    file = write_jsonl(tmp_path / "bad" / "a.jsonl", [guide(0), wide(), guide(2)], tail=tail)
    stage1.train(replace(config, data=[f"jsonl:{file}"], steps=6))
    assert len(losses(config.out)) == 6
    named = {bad["index"]: bad["sentence"] for bad in bad_of(config)}
    for index, match in (
        (1, "turns[1].parts[1], an image, is 10000x60 pixels; at most 8,192 a side"),
        (3, "no assistant turn"),
        (4, "turns[0]: the role is 'robot'"),
        (5, "'parts'"),
        (6, "nowhere.png (named by"),
    ):
        assert f"a.jsonl, line {index + 1}" in named[index] and match in named[index]
    assert len(named) == 5
    said = capsys.readouterr().out
    assert "5 of 7 samples looked at cannot be used, such as: " in said
    assert said.count("Bad sample, passed over: ") == 3
    assert f"5 bad samples passed over, named in {config.out / 'bad_samples.jsonl'}." in said


@pytest.mark.parametrize(
    "tail, match",
    [
        (b"", "a.jsonl is empty; expected one JSON document a line"),
        (b"{broken\n" * 3, "none of 3 samples looked at can be used; the first one: .*a.jsonl, line 1 is not valid"),
    ],
    ids=["empty", "all bad"],
)
def test_data_without_a_good_sample_is_refused_before_the_first_step(config, tmp_path, tail, match):
    file = write_jsonl(tmp_path / "bad" / "a.jsonl", [], tail=tail)
    with pytest.raises(DuoGenError, match=match):
        stage1.train(replace(config, data=[f"jsonl:{file}"]))
    assert not (config.out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "settings, match",
    [
        (["data=[jsonl:/nowhere.jsonl]"], "/nowhere.jsonl does not exist"),
        (["data=[jsnl:a.jsonl]"], "did you mean 'jsonl'"),
        (["data=[{source: sketchbook, familes: {}}]"], "did you mean 'families'"),
        (["data=[{source: sketchbook, alignment: 3}]"], "alignment is 3; expected true or false"),
        (["data=[sketchbook]", "eval_data=[jsonl:/nowhere.jsonl]"], "/nowhere.jsonl does not exist"),
        (["batch=0"], "'batch' is 0"),
        (["lora.rank=4", "tower_lr=0.001"], "'tower_lr' trains the vision tower"),
        (["lora.rnk=4"], "no setting 'rnk' in 'lora'"),
    ],
)
def test_wrong_settings_exit_2_with_a_sentence(config, settings, match, capsys):
    arguments = [f"init={config.init}", f"out={config.out}", "steps=1", *settings]
    assert main(["train", "stage1", *arguments]) == 2
    assert match in capsys.readouterr().err


def test_a_sample_too_long_for_the_model_or_the_machine_is_passed_over(config, tmp_path):
    long = Document((USER, Turn("assistant", (Text("word " * 200),))))
    file = write_jsonl(tmp_path / "long" / "a.jsonl", [guide(0), long])
    stage1.train(replace(config, data=[f"jsonl:{file}"], max_tokens=100))
    (bad,) = bad_of(config)
    assert bad["index"] == 1 and "tokens; at most 100 are allowed" in bad["sentence"]


# ---------------------------------------------------------------- alignment data


def test_alignment_data_is_left_out_counted_and_said(config, tmp_path, capsys):
    marked = [replace(guide(k), meta={"number": k, "alignment": k % 2 == 1}) for k in range(6)]
    file = write_jsonl(tmp_path / "mixed" / "a.jsonl", marked)
    captions = write_documents(tmp_path / "captions", [guide(90), guide(91)])
    data = [f"jsonl:{file}", {"source": f"documents:{captions}", "alignment": True}]

    def numbers_seen(**limits):
        mixture = open_mixture(data, 0, limits=Limits(**limits))
        return {mixture.draw(k).document.meta["number"] for k in range(60)}

    assert numbers_seen(alignment=False) == {0, 2, 4}
    assert numbers_seen() == {0, 1, 2, 3, 4, 5, 90, 91}

    stage1.train(replace(config, data=data, steps=6))
    said = capsys.readouterr().out
    assert f"Left out as alignment data: documents:{captions}." in said
    assert "3 of alignment data passed over" in said and "bad samples" not in said.replace("bad_samples", "")
    assert {bad["index"] for bad in bad_of(config)} == {1, 3, 5} and all(bad["excluded"] for bad in bad_of(config))

    with_it = replace(config, data=data, include_alignment=True, out=tmp_path / "with")
    stage1.train(with_it)
    assert not (with_it.out / "bad_samples.jsonl").exists()
    assert "Left out" not in capsys.readouterr().out
    with pytest.raises(DuoGenError, match="All sources are alignment data"):
        stage1.train(replace(config, data=data[1:], out=tmp_path / "none"))


# ---------------------------------------------------------------- memory


def gradients(init: Path, documents, checkpointed: bool) -> dict[str, torch.Tensor]:
    mllm = load_mllm(init)
    model = mllm.model.train()
    calls = []
    layer = model.model.language_model.layers[0].input_layernorm
    layer.register_forward_hook(lambda *_: calls.append(1))
    if checkpointed:
        checkpoint_layers(model, torch.device("cpu"))
    NextTokenLoss(model)(*Batcher(mllm.tokenizer, mllm.image_processor)(documents))[0].backward()
    assert len(calls) == 1 + checkpointed  # a second time on the way back
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointed_layers_have_the_same_gradients(init):
    plain, checkpointed = (gradients(init, [guide(1), guide(2)], each) for each in (False, True))
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_less_memory_gives_the_same_run(config):
    whole = replace(config, tokens=60)
    stage1.train(whole)
    small = replace(whole, out=config.out / "small", accumulate=True, gradient_checkpointing=True)
    backward = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda t, *a, _b=torch.Tensor.backward, **k: backward.append(_b(t)))
        stage1.train(small)
    assert len(backward) > 4  # several in a step
    assert losses(small.out) == pytest.approx(losses(whole.out), abs=1e-5)
    one, two = export_of(whole), export_of(small)
    assert all(torch.allclose(tensor, two[name], atol=1e-3) for name, tensor in one.items())


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.exhaustive),
        pytest.param({"lora": LoraSettings(rank=2)}, marks=pytest.mark.exhaustive),
    ],
    ids=["whole", "checkpointed", "LoRA"],
)
def test_compiled_layers_learn_the_same(config, monkeypatch, extra):
    if "lora" in extra:
        pytest.importorskip("peft")
    graphs, made = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def compiled(pieces, say, **how):
        made.append(Compiled(pieces, pytest.fail, backend=backend, **how))
        assert len(made[0].pieces) == random_components().mllm.num_layers
        return made[0]

    monkeypatch.setattr(stage1, "Compiled", compiled)
    # With scores and samples: answers have a cache that grows, and each length would be a graph.
    given = replace(config, eval_cases=2, eval_share=0.3, eval_steps=1, sample_minutes=1e-3, **extra)
    stage1.train(replace(given, out=config.out / "plain"))
    stage1.train(replace(given, compile=True))
    assert losses(config.out) == pytest.approx(losses(config.out / "plain"), abs=1e-5)
    assert 1 <= len(graphs) <= (4 if not extra else 8)
    assert not made[0].pieces  # who goes on with the model may let it answer


# ---------------------------------------------------------------- LoRA


def test_lora_learns_and_its_export_is_base_and_adapter(config):
    peft = pytest.importorskip("peft")
    config = replace(config, steps=12, lr=5e-3, lora=LoraSettings(rank=4))
    run = stage1.train(config)
    assert losses(config.out)[-1] < 0.9 * losses(config.out)[0]
    before, after = load_file(config.init / "model.safetensors"), export_of(config)
    bov = load_mllm(config.init).control.bov
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    embedding = next(name for name in before if "embed_tokens" in name)
    assert changed and all("layers" in name or name == embedding for name in changed)
    assert (before[embedding] != after[embedding]).any(1).nonzero().flatten().tolist() == [bov]
    size = (config.out / "checkpoint" / "model.safetensors").stat().st_size
    assert size < 0.5 * (config.out / "export" / "model.safetensors").stat().st_size

    base, merged = (load_mllm(folder) for folder in (config.init, config.out / "export"))
    adapted = peft.PeftModel.from_pretrained(base.model, config.out / "adapter").eval()
    ids = torch.tensor([[5, 9, bov, 40, 41]])
    with torch.no_grad():
        wanted = run.modules["model"].model.eval()(input_ids=ids).logits
        for model in (adapted, merged.model):
            torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_lora_on_a_model_in_half_precision(config, tmp_path):
    """As the published ones are: frozen weights stay as they are kept, everything learnt is in single precision."""
    pytest.importorskip("peft")
    mllm = random_components().mllm
    mllm.model.bfloat16()
    mllm.save_pretrained(tmp_path / "half")
    config = replace(
        config, init=tmp_path / "half", lora=LoraSettings(), eval_data=config.data, eval_cases=1, bf16=True
    )
    stage1.train(config)
    assert {tensor.dtype for tensor in export_of(config).values()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(config.out / "checkpoint" / "model.safetensors").values()} == {torch.float32}
    full = replace(config, lora=None, out=tmp_path / "full", steps=1)
    stage1.train(full)
    assert {tensor.dtype for tensor in export_of(full).values()} == {torch.float32}


def test_lora_without_merging_writes_the_adapter_alone(config):
    pytest.importorskip("peft")
    stage1.train(replace(config, lora=LoraSettings(merge=False)))
    assert (config.out / "adapter" / "adapter_model.safetensors").exists() and not (config.out / "export").exists()


# ---------------------------------------------------------------- scores and samples


def test_scores_and_samples_on_held_out_documents(config, tmp_path):
    held = write_documents(tmp_path / "held", [guide(50), guide(51), guide(52)])
    stage1.train(replace(config, eval_data=[f"documents:{held}"], eval_cases=2, sample_minutes=1.0))
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    (scores,) = [line["eval"] for line in lines if "eval" in line]
    assert scores.keys() == {f"documents:{held}"} and 0 <= scores[f"documents:{held}"]["token"] <= 1
    (page,) = (config.out / "samples" / "000004").iterdir()
    assert page.name.endswith("held.html") and "Request 5" in page.read_text()


def test_scores_under_lora_are_taken_without_dropout(config, monkeypatch):
    pytest.importorskip("peft")
    dropping = []

    def watched(model, *given):
        dropping.append([m.training for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.5])
        return evaluate(model, *given)

    monkeypatch.setattr(mllm_training, "evaluate", watched)
    config = replace(config, steps=2, eval_data=config.data, eval_cases=1, eval_minutes=0.0)
    run = stage1.train(replace(config, lora=LoraSettings(rank=4, dropout=0.5)))
    assert len(dropping) == 3 and all(dropping) and not any(map(any, dropping))
    assert run.modules["model"].model.training


def test_without_held_out_documents_samples_answer_one_of_each_source(config, tmp_path):
    other = write_documents(tmp_path / "other", [guide(60)])
    stage1.train(replace(config, data=[*config.data, f"documents:{other}"], steps=1, sample_minutes=1.0))
    pages = sorted(path.name for path in (config.out / "samples" / "000001").iterdir())
    assert len(pages) == 2 and pages[0].endswith("other.html") and pages[1].endswith("train.jsonl.html")


def test_a_mixture_with_sketchbook_is_scored_on_its_families(config, init):
    mllm = load_mllm(init)
    config = replace(config, data=[*config.data, "sketchbook"], eval_cases=1)
    cases = held_out(config, Limits())
    assert {"guide", "describe"} <= cases.keys()
    scores = evaluate(mllm.model, Batcher(mllm.tokenizer, mllm.image_processor), {"draw": cases["draw"]})
    assert scores.keys() == {"draw"}
    assert held_out(replace(config, eval_cases=0), Limits()) == {}


def test_samples_show_the_ideal_pictures_where_the_model_would_draw(tmp_path):
    components = random_components()
    ideal = request().begin_turn("assistant", [Text("One."), picture(1), Text("Two."), picture(2)])
    scripted(components, ("First.", "picture"), ("Then.", "picture"), ("More.", "picture"))
    found = answer(components.mllm, ideal)
    parts = [part.text if isinstance(part, Text) else part for part in found.last_turn.parts]
    assert parts == [
        "First.", picture(1), "Then.", picture(2), "More.", "\n[an image, where the ideal answer has none left]"
    ]  # fmt: skip
    scripted(components, ("<script>", "end"))
    components.mllm.model.train()
    (page,) = write_answers(components.mllm, {"jsonl:a/../b.jsonl": ideal}, tmp_path, 7)
    assert page == tmp_path / "samples" / "000007" / "jsonl-a-..-b.jsonl.html"
    assert "<script>" not in page.read_text().split("<body", 1)[1] and components.mllm.model.training


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.5)], ids=["full", "lora"])
def test_scores_and_samples_leave_the_losses_alone(config, lora):
    """Whenever the clock has them taken: LoRA's dropout draws as it would have."""
    plain = replace(config, eval_data=config.data, eval_cases=1, steps=2, lora=lora)
    stage1.train(plain)
    often = replace(plain, out=config.out / "often", eval_minutes=0.0, sample_minutes=1e-9)
    stage1.train(often)
    assert losses(often.out) == losses(plain.out)
    assert len(list((often.out / "samples").iterdir())) == 2


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("render_html", OSError(errno.ENOSPC, "No space left on device"), "The samples of step 1 are left out: No sp"),
        ("generate", MemoryError(), "The samples of step 1 are left out: no mem"),
        ("scores", torch.OutOfMemoryError("CUDA out of memory."), "The scores of step 1 are left out: CUDA o"),
    ],
)  # fmt: skip
def test_what_fails_while_a_training_is_looked_at_is_said_and_ends_nothing(
    config, monkeypatch, capsys, what, error, said
):
    plain = replace(config, eval_data=config.data, eval_cases=1, steps=2)
    stage1.train(plain)

    def fail(*_, **__):
        raise error

    module, name = {
        "render_html": (samples, "render_html"),
        "generate": (samples, "answer"),
        "scores": (stage1, "evaluate"),
    }[what]
    monkeypatch.setattr(module, name, fail)
    often = replace(plain, out=config.out / "often", eval_minutes=0.0, sample_minutes=1e-9)
    assert stage1.train(often).finished and losses(often.out) == losses(plain.out)
    assert capsys.readouterr().out.count(said) == 1 and (often.out / "export" / "model.safetensors").exists()
    assert ("eval" in (often.out / "metrics.jsonl").read_text()) == (what != "scores")


def test_a_checkpoint_that_cannot_be_written_ends_the_run_all_the_same(config, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(DuoGenError, match="The checkpoint of step 4 cannot be written.*No space left"):
        stage1.train(config)
