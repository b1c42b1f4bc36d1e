"""train finetune: both stages on one's own documents with replay, one checkpoint; stopped and continued; bad input."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from duogen_core.checkpoint import (
    check_checkpoint,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from duogen_core.cli import main
from duogen_core.document import Document, Text
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.tasks import evaluation_case
from duogen_core.training import finetune, stage2_data
from duogen_core.training.configuration import plain
from duogen_core.training.finetune import (
    FinetuneConfig,
    Stage2Settings,
    entry,
    mixed,
    sources_of,
    times_of,
)
from tests.core.runs import stopped_in
from tests.core.tiny import random_components

SMALL = ["stage1.steps=2", "stage1.batch=2", "stage2.steps=2", "stage2.shards=1", "stage2.tokens=600", "threads=1"]
SILENT = ["stage1.sample_minutes=0", "stage2.sample_minutes=0"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(stage2_data, "SHARD", 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_checkpoint(random_components(), tmp_path_factory.mktemp("finetune") / "base")


@pytest.fixture(scope="module")
def guides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "guides"
    for k in range(3):
        case = evaluation_case("guide", random.Random(k), thing="snow globe")
        save_document(case.document, folder / f"{k}")
    return folder


@pytest.fixture(scope="module")
def words_only(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "words"
    document = Document().begin_turn("user", [Text("Hello!")]).begin_turn("assistant", [Text("Hello.")])
    save_document(document, folder / "0")
    return folder


def tune(base: Path, guides: Path, out: Path, *settings: str) -> int:
    return main(["train", "finetune", f"data={guides}", f"model={base}", f"out={out}", *SMALL, *SILENT, *settings])


def weights(model: Path) -> dict[str, torch.Tensor]:
    parts = load_checkpoint(model)
    modules = {"mllm": parts.mllm.model, "connector": parts.connector, "dit": parts.dit}
    modules["vae"] = parts.vae if isinstance(parts.vae, torch.nn.Module) else parts.vae.model
    return {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}


@pytest.fixture(scope="module")
def tuned(base, guides, tmp_path_factory) -> tuple[Path, str]:
    """A finished run, and what it printed."""
    import contextlib

    out, said = tmp_path_factory.mktemp("finetune") / "globe", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(stage2_data, "SHARD", 6)
        assert tune(base, guides, out, "stage1.sample_minutes=3", "stage2.sample_minutes=3") == 0
    return out, said.getvalue()


def test_one_command_gives_a_checkpoint_that_answers(tuned, base, tmp_path, capsys):
    out, said = tuned
    assert check_checkpoint(out / "model").name == "globe"
    before, after = weights(base), weights(out / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"mllm", "connector", "dit"}
    assert not any("visual" in name for name in changed)  # the tower is frozen
    assert any("embed_tokens" in name for name in changed)
    recorded = json.loads((out / "model/training/stage2/config.json").read_text())["config"]
    assert Path(recorded["mllm"]) == out / "stage1" / "export"  # the states are those of the fine-tuned MLLM
    # without a record
    assert recorded["unshifted_share"] == 0.0 and recorded["shift"] == read_config(base).sampling.shift
    assert all(list((out / stage / "samples").rglob("*.html")) for stage in ("stage1", "stage2"))  # answers to look at
    assert "3 documents with 12 images to draw" in said and "50% of it replay of sketchbook" in said
    assert (
        said.index("Stage 1 of 2") < said.index("Stage 2 of 2") < said.index("Try it: python -m duogen_core generate")
    )
    answer = ["generate", "How do I draw it?", "--model", str(out / "model"), "--out", str(tmp_path / "a")]
    assert main([*answer, "--max-tokens", "8", "--max-images", "1"]) == 0
    assert load_document(tmp_path / "a").last_turn.role == "assistant"


def test_a_stopped_run_goes_on_and_ends_the_same(tuned, base, guides, tmp_path, capsys):
    for step in (1, 1):  # once in each stage
        with stopped_in(step - 1):
            assert tune(base, guides, tmp_path / "globe") == 130
    printed = capsys.readouterr().out
    assert "Stopped at step 1 of stage1" in printed and "Stopped at step 1 of stage2" in printed
    assert not (tmp_path / "globe/model").exists()
    assert tune(base, guides, tmp_path / "globe") == 0
    whole, parts = weights(tuned[0] / "model"), weights(tmp_path / "globe/model")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_lora_in_both_stages_gives_a_whole_checkpoint(base, guides, tmp_path):
    pytest.importorskip("peft")
    lora = [f"{stage}.lora.{name}" for stage in ("stage1", "stage2") for name in ("rank=2", "alpha=4")]
    assert tune(base, guides, tmp_path / "globe", *lora) == 0
    before, after = weights(base), weights(tmp_path / "globe/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and {name.partition(".")[0] for name in changed} == {
        "mllm",
        "connector",
        "dit",
    }
    assert (tmp_path / "globe/stage1/adapter").is_dir() and (tmp_path / "globe/stage2/adapter").is_dir()


def test_the_same_command_again_trains_nothing(tuned, base, guides, tmp_path, capsys):
    shutil.copytree(tuned[0], tmp_path / "globe")
    shutil.rmtree(tmp_path / "globe/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda *a, **k: pytest.fail("trained again"))
        assert tune(base, guides, tmp_path / "globe") == 0
    assert (tmp_path / "globe/model/model_index.json").is_file()


def test_shares_of_the_mixture():
    own = sources_of(["3*jsonl:a.jsonl", "jsonl:b.jsonl"], "data")
    replay = sources_of("sketchbook", "replay")
    families = {"draw": 1.0}
    found = mixed(own, replay, 0.4, families)
    assert [each["weight"] for each in found] == [0.45, 0.15, 0.4]
    assert found[2] == {"source": "sketchbook", "weight": 0.4, "families": families}
    assert [each["weight"] for each in mixed(own, [], 0, families)] == [3, 1]
    chosen = sources_of([{"source": "sketchbook", "families": {"plan": 1}}], "replay")[0]
    assert entry(chosen, 1.0, families)["families"] == {"plan": 1}


def test_times_are_those_the_model_was_trained_at(base, tmp_path):
    settings = Stage2Settings()
    assert times_of(base, settings) == {"shift": read_config(base).sampling.shift, "unshifted_share": 0.0}
    model = tmp_path / "model"
    shutil.copytree(base, model)
    for part, times in (("19-stage2", {"shift": 9.0}), ("20-stage2", {"shift": 6.0, "unshifted": 0.35})):
        (model / "training" / part).mkdir(parents=True)
        (model / "training" / part / "config.json").write_text(json.dumps({"config": times}))
    assert times_of(model, settings) == {"shift": 6.0, "unshifted_share": 0.35}
    assert times_of(model, Stage2Settings(shift=5.0)) == {"shift": 5.0, "unshifted_share": 0.35}
    record = model / "training" / "20-stage2" / "config.json"
    for broken in ("{", "[]", '{"config": {"shift": "six"}}'):
        record.write_text(broken)
        with pytest.raises(DuoGenError, match="is not the record of a training"):
            times_of(model, settings)


def test_a_folder_or_a_file_is_a_source(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    found = sources_of([str(tmp_path), str(tmp_path / "a.jsonl"), "sketchbook"], "data")
    assert [spec.kind for spec in found] == ["documents", "jsonl", "sketchbook"]


def test_defaults_are_those_of_the_documentation():
    config = FinetuneConfig()
    assert config.share == 0.5 and config.replay == "sketchbook" and config.stage1.tower_lr == 0.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["data="], "No documents are given; expected data=DIR"),
        (["data=nowhere"], "nowhere: there is no such folder or file, and no kind of source"),
        (["data=/missing/guides"], "/missing/guides: there is no such folder or file"),
        (["data=guides.jsonl"], "guides.jsonl: there is no such folder or file"),
        (["data=documents:nowhere"], "nowhere does not exist"),
        (["data=empty"], "holds no document"),
        (["data=broken"], "None of the 1 documents can be used"),
        (["data={words}"], "None of the 1 documents has an image in an assistant turn"),
        (["model=no-such-model"], "There is no model 'no-such-model'"),
        (["replay="], "No documents are given; expected replay=DIR"),
        (["replay=sketchbok"], "did you mean 'sketchbook'?"),
        (["share=1"], "expected a share of replay from 0 to below 1"),
        (["shares=0.5"], "did you mean 'share'?"),
        (["stage1.stepps=4"], "did you mean 'steps'?"),
        (["stage1.data=[sketchbook]"], "'stage1.data' cannot be set in the settings given on the command line: it is"),
        (["stage1.out=x"], "it is <out>/stage1; give out."),
        (["stage2.attention=full"], "it is a property of the model's weights"),
        (["stage2.atention=full"], "There is no setting 'atention'"),
        (["stage1.lora.merge=false"], "leave stage1.lora.merge at true"),
        (["out=full"], "has other things in it than a fine-tuning"),
        (["out=full/file"], "is a file; give another out=DIR"),
        (["out={base_parent}"], "lies in"),
    ],
)
def test_bad_input_is_one_sentence(settings, sentence, base, guides, words_only, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("full", "empty", "broken/0"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full/file").write_text("mine")
    (tmp_path / "broken/0/document.json").write_text("{")
    monkeypatch.setattr(finetune.stage1, "train", lambda config: pytest.fail("training began"))
    settings = [s.format(words=words_only, base_parent=base.parent) for s in settings]
    assert tune(base, guides, Path("new"), *settings) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors and errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


SHARED = {
    "minutes": 5.0, "steps": 7, "device": "cpu:0", "warmup": 3, "checkpoint_minutes": 1.5, "log_every": 2,
    "tensorboard": False, "wandb": "mine", "bf16": False, "batch": 3, "lr": 0.5, "optimizer": "adamw",
    "weight_decay": 0.25, "lr_floor": 0.25, "peak_tflops": 40.0, "betas": [0.5, 0.75], "eval_share": 0.125,
    "eval_steps": 9,
    "gradient_checkpointing": True, "compile": True, "sample_minutes": 0.5, "max_side": 64,
    "lora": {"rank": 3, "alpha": 5.0, "dropout": 0.25, "targets": ["q_proj"], "merge": True, "quantise": None},
}  # fmt: skip
CHANGED = {
    "stage1": SHARED | {
        "muon_lr": 0.5, "tower_lr": 0.0, "probe_weight": 0.25, "tokens": 99, "workers": 3, "accumulate": True,
        "eval_data": ["jsonl:a.jsonl"], "include_alignment": True, "max_tokens": 77, "eval_cases": 2,
        "eval_minutes": 0.5, "lora": SHARED["lora"] | {"quantise": "nf4"},
    },
    "stage2": SHARED | {
        "states": "online", "shards": 2, "documents": "elsewhere", "precision": "float32", "packing": False,
        "tokens": 500, "workers": 2, "single_image_weight": 2.0, "shift": 5.5, "unshifted_share": 0.125,
        "drop_text": 0.75, "ema": 0.5, "clip": 0.5, "eval_data": ["jsonl:b.jsonl"], "eval_cases": 3,
        "eval_minutes": 2.5, "connector_lr": 0.75, "export_steps": 11,
        "loss": "x0", "edge_weight": 1.5, "decoder_weight": 0.25, "reference_noise": 0.125, "own_references": 0.625,
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_listed_setting_is_used_and_printed_and_every_other_one_refused(
    stage, base, guides, tmp_path, monkeypatch, capsys
):
    listed = plain(FinetuneConfig(), fixed=False)[stage]
    assert CHANGED[stage].keys() == listed.keys()  # a new setting is tried here too
    given = yaml.safe_dump({stage: CHANGED[stage]})
    (tmp_path / "mine.yaml").write_text(given)
    command = ["train", "finetune", f"data={guides}", f"model={base}", f"out={tmp_path / 'out'}", "seed=3"]
    command += ["--config", str(tmp_path / "mine.yaml")]
    seen = {}

    def stopped(config):
        seen[type(config).__name__] = config
        return SimpleNamespace(interrupted=type(config).__name__.lower().startswith(stage), step=0, folder=config.out)

    monkeypatch.setattr(finetune.stage1, "train", stopped)
    monkeypatch.setattr(finetune.stage2, "train", stopped)
    assert main(command) == 130
    used = seen[f"{stage.capitalize()}Settings"]
    assert {name: plain(used)[name] for name in CHANGED[stage]} == CHANGED[stage]
    assert used.out == tmp_path / "out" / stage and used.seed == 3
    capsys.readouterr()
    assert main([*command, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed[stage] == CHANGED[stage]
    found = {
        "stage1": ["probe_weight"],
        "stage2": ["max_side", "shift", "unshifted_share"],
    }  # in the model, where not given
    assert all(printed[part][name] is not None for part, names in found.items() for name in names)

    with pytest.raises(SystemExit):
        main(["train", "finetune", "--help"])
    settings = yaml.safe_load(capsys.readouterr().out.partition("settings and their defaults:\n")[2])
    assert settings[stage].keys() == listed.keys()
    fixed = type(getattr(FinetuneConfig(), stage)).fixed
    everything = {field.name for field in fields(getattr(FinetuneConfig(), stage))}
    assert everything == listed.keys() | fixed.keys()
    for name in fixed:
        assert main([*command, f"{stage}.{name}=1"]) == 2
        assert f"'{stage}.{name}' cannot be set in the settings given" in capsys.readouterr().err


def test_a_larger_max_side_is_that_of_the_new_model(base, guides, tmp_path):
    side = read_config(base).picture.max_side + 32
    assert tune(base, guides, tmp_path / "out", f"stage2.max_side={side}", "stage1.steps=1", "stage2.steps=1") == 0
    assert read_config(tmp_path / "out/model").picture.max_side == side


def test_help_shows_what_lora_can_have(capsys):
    for command in ("stage1", "stage2", "finetune"):
        with pytest.raises(SystemExit):
            main(["train", command, "--help"])
        said = capsys.readouterr().out
        assert all(f"# {name}:" in said for name in ("rank", "alpha", "dropout", "targets", "merge"))
        assert ("one of the recipes" in said) == (command != "finetune")


def test_finetune_under_a_launcher_of_several_processes_is_refused(base, guides, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tune(base, guides, tmp_path / "out") == 2
    assert "train finetune runs in one process" in capsys.readouterr().err


def test_first_lines_are_printed_at_once_into_a_pipe(base, guides, tmp_path, monkeypatch):
    written = io.BytesIO()

    def train(config):
        assert b"3 documents with 12 images" in written.getvalue() and b"Stage 1 of 2" in written.getvalue()
        return SimpleNamespace(interrupted=True, step=0, folder=config.out)

    monkeypatch.setattr(finetune.stage1, "train", train)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "utf-8"))  # keeps what is printed, as for a pipe
    assert tune(base, guides, tmp_path / "out") == 130


def test_another_fine_tuning_in_the_same_folder_is_refused(tuned, base, words_only, guides, capsys):
    for settings, word in (([f"data={words_only}"], "data was"), (["share=0.25"], "share was 0.5 and is 0.25")):
        recipe = (tuned[0] / "finetune.json").read_text()
        assert tune(base, guides, tuned[0], *settings) == 2
        assert word in capsys.readouterr().err and (tuned[0] / "finetune.json").read_text() == recipe


def test_bad_documents_are_named_and_passed_over(guides, tmp_path, capsys):
    shutil.copytree(guides, tmp_path / "some")
    (tmp_path / "some/x").mkdir()
    (tmp_path / "some/x/document.json").write_text("{")
    finetune.look_over(sources_of(str(tmp_path / "some"), "data"), print, 160)
    printed = capsys.readouterr().out
    assert "3 documents with 12 images" in printed and "1 of 4 documents cannot be used" in printed
    assert "made smaller" not in printed
    finetune.look_over(sources_of(str(guides), "data"), print, 64)
    assert "3 of them have images larger than 64 pixels, which are made smaller" in capsys.readouterr().out
