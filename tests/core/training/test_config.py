from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from duogen_core.cli import main
from duogen_core.sketchbook.pretrain import PretrainConfig
from duogen_core.sketchbook.vae import VaeConfig
from duogen_core.training.configuration import ConfigError, find_config, load_config, recipes_of, to_yaml
from duogen_core.training.metrics import changes
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Stage2Config


@dataclass(kw_only=True)
class Inner:
    width: int = 4
    name: str = "a"


@dataclass(kw_only=True)
class Settings:
    lr: float = 1e-3
    steps: int | None = None
    bf16: bool = True
    out: Path = Path("runs/x")
    kind: Literal["full", "lora"] = "full"
    weights: Mapping[str, float] = field(default_factory=lambda: {"guide": 1.0})
    names: tuple[str, ...] = ("q", "k")
    anything: Any = None
    inner: Inner = field(default_factory=Inner)


def write(tmp_path, text, name="c.yaml"):
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


def test_defaults_file_and_overrides_in_this_order(tmp_path):
    file = write(tmp_path, "lr: 1e-4\nsteps: 10\nweights: {guide: 2, draw: 1}\ninner: {width: 8}\nnames: [v]\n")
    config = load_config(Settings, file, ["steps=20", "inner.name=b", "weights.draw=0.5", "out=runs/y", "bf16=false"])
    assert config == Settings(
        lr=1e-4, steps=20, bf16=False, out=Path("runs/y"), weights={"guide": 2.0, "draw": 0.5}, names=("v",),
        inner=Inner(width=8, name="b"),
    )  # fmt: skip
    assert load_config(Settings) == Settings()


def test_what_is_written_reads_back(tmp_path):
    config = load_config(Settings, None, ["lr=3e-5", "steps=null", "kind=lora", "anything={a: [1, 2]}"])
    assert load_config(Settings, write(tmp_path, to_yaml(config))) == config


def test_toml(tmp_path):
    file = write(tmp_path, 'lr = 0.01\nsteps = 3\nnames = ["q"]\n[inner]\nwidth = 2\n', "c.toml")
    assert load_config(Settings, file) == Settings(lr=0.01, steps=3, names=("q",), inner=Inner(width=2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stpes: 3", "no setting 'stpes' in .*did you mean 'steps'"),
        ("zzz: 3", "no setting 'zzz' in .*it can have lr, steps"),
        ("inner: {widht: 3}", "no setting 'widht' in 'inner' of .*did you mean 'width'"),
        ("inner: 3", "'inner' in .* is 3; expected a section of settings, such as inner.width"),
        ("lr: fast", "'lr' in .* is 'fast'; expected a number"),
        ("steps: 1.5", "'steps' in .* is 1.5; expected a whole number"),
        ("steps: true", "expected a whole number"),
        ("bf16: 1", "expected true or false"),
        ("kind: half", "expected one of full, lora"),
        ("weights: 3", "expected a section"),
        ("weights: {guide: much}", "'weights.guide' in .* expected a number"),
        ("names: q", "expected a list"),
        ("- lr", "must be a list of settings"),
        ("lr: [", "is not valid"),
    ],
)
def test_bad_files_are_named(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(Settings, write(tmp_path, text))
    assert "c.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "file, override, said",
    [
        ("lr: 0.1", "lrr=1", "'lrr' in the settings given on the command line"),
        ("lr: 0.1", "lr=fast", "'lr' in the settings given on the command line is 'fast'"),
        ("lr: 0.1", "inner.widht=3", "'widht' in 'inner' of the settings given on the command line"),
        ("inner: {name: b}", "inner.width=x", "'width' in 'inner' of the settings given on the command line"),
        ("weights: {guide: 2}", "weights.draw=x", "'weights.draw' in the settings given on the command line"),
        ("lrr: 1", "lr=0.1", r"'lrr' in \S*c.yaml"),
        ("inner: {widht: 3}", "inner.name=b", r"'widht' in 'inner' of \S*c.yaml"),
        ("weights: {guide: x}", "weights.draw=2", r"'weights.guide' in \S*c.yaml"),
    ],
)
def test_an_error_names_the_file_or_the_command_line_whichever_it_was(tmp_path, file, override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Settings, write(tmp_path, file), [override])


def test_a_section_that_is_null_in_the_file_can_be_given_on_the_command_line(tmp_path):
    """As in a printed configuration: lora: null."""
    assert load_config(Settings, write(tmp_path, "anything: null"), ["anything.rank=3"]).anything == {"rank": 3}


def test_a_setting_without_default_is_asked_for():
    @dataclass(kw_only=True)
    class Needs:
        init: int

    Needs.__annotations__["init"] = int
    with pytest.raises(ConfigError, match="setting 'init' is missing"):
        load_config(Needs)


def test_bad_overrides_and_missing_files(tmp_path):
    for override, expected in (
        ("lr", "expected name=value"),
        ("lr.x=3", "no setting|single value|expected"),
        ("lr=[1,", "cannot be read.*put name=value in quotes"),  # what a shell leaves of lr=[1, 2]
    ):
        with pytest.raises(ConfigError, match=expected):
            load_config(Settings, None, [override])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Settings, tmp_path / "none.yaml")


@pytest.mark.parametrize("settings", [VaeConfig, PretrainConfig, Stage1Config, Stage2Config])
def test_every_recipe_is_a_configuration_of_its_command(settings):
    command = settings.command
    recipes = recipes_of(command)
    assert f"tiny-{command}" in recipes and all(recipes.values())
    for name in recipes:
        config = load_config(settings, find_config(name, command))
        assert config.steps or config.minutes


def test_a_file_goes_before_a_recipe_and_unknown_names_are_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("tiny-vae", "vae").is_absolute()
    write(tmp_path, "minutes: 1", "tiny-vae")
    assert find_config("tiny-vae", "vae") == Path("tiny-vae")
    for name, expected in (
        ("tiny-stage-1", "did you mean 'tiny-stage1'"),
        ("tiny-stage2", "is a recipe of train stage2, not of train stage1"),
        ("zzz", "no recipe 'zzz'; there are .*tiny-stage1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            find_config(name, "stage1")


def test_help_names_the_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["train", "vae", "--help"])
    assert "tiny-vae  the bundled model's VAE" in capsys.readouterr().out
    assert main(["train", "vae", "--config", "tiny-vae", "--print-config", "minutes=3"]) == 0
    assert "minutes: 3" in capsys.readouterr().out


def test_several_processes_only_where_they_share_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "vae", "steps=1", f"out={tmp_path / 'run'}"]) == 2
    assert "train vae runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, works",
    [
        ("train vae", "duogen_core.sketchbook.vae.train"),
        ("train finetune", "duogen_core.training.finetune.train"),
        ("ablation", "duogen_core.sketchbook.ablation.command.Ablation.run"),
    ],
)
def test_a_full_disk_is_one_sentence(command, works, capsys, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(works, full)
    settings = [] if command == "train finetune" else ["steps=1"]
    assert main([*command.split(), *settings, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "No space left on device. Free some space" in error and error.count("\n") == 1


def test_two_precisions_are_not_mixed_up(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert main(["train", "stage2", "steps=1", "bf16=false", f"out={tmp_path / 'run'}"]) == 2
    assert "bf16 is false, but accelerate's mixed_precision" in capsys.readouterr().err


def test_settings_by_their_old_names_still_work_and_are_no_change(tmp_path):
    old = write(tmp_path, "alone: 2\nunshifted: 0.25\nstates: on_the_fly\n", "old.yaml")
    config = load_config(Stage2Config, old)
    assert (config.single_image_weight, config.unshifted_share, config.states) == (2.0, 0.25, "online")
    assert load_config(Stage1Config, None, ["recall_weight=0.5"]).probe_weight == 0.5
    before = {"config": {"alone": 2.0, "unshifted": 0.25, "states": "on_the_fly"}}
    now = {"single_image_weight": 2.0, "unshifted_share": 0.25, "states": "online"}
    assert changes(before, {"config": now}) == {}
    assert changes(before, {"config": now | {"unshifted_share": 0.5}}) == {"unshifted_share": [0.25, 0.5]}
