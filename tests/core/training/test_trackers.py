"""TensorBoard and Weights & Biases get figures and pictures once; what is missing is said; no password is written."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from duogen_core.document import Document, Picture
from duogen_core.training.run import Run
from duogen_core.training.trackers import Trackers, scalars, without_secrets
from tests.core.training.test_loop import train


def test_trackers_get_every_figure():
    values = {"loss": 0.5, "eval": {"draw": {"token": 0.25}}, "note": "text", "flag": True}
    assert dict(scalars(values)) == {"loss": 0.5, "eval/draw/token": 0.25}


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    return found


def test_tensorboard_has_every_step_once_though_a_session_was_killed(tmp_path):
    train(tmp_path, stop_at=4, tensorboard=True)
    run = Run(tmp_path, {}, steps=12, log_every=1, tensorboard=True)  # a session that dies without a checkpoint
    run.metrics.begun = 5
    for missing in run.metrics.begin(5, {}):
        pytest.fail(missing)
    for step in (6, 7):
        run.metrics.add(step, 0.0, {"loss": 9.0})
    train(tmp_path, tensorboard=True)
    found = events(tmp_path)
    figures = {event.step: event.value for event in found.Scalars("loss")}
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 13)) and 9.0 not in figures.values()
    assert "speed/step_seconds" in found.Tags()["scalars"]


def answer() -> Document:
    pixels = [np.full((8, 12 + 4 * k, 3), 60 * (k + 1), np.uint8) for k in range(2)]  # of unlike sizes
    return Document().begin_turn("assistant", [Picture(each) for each in pixels])


def test_tensorboard_shows_the_samples_pictures(tmp_path):
    import io

    from PIL import Image

    run = Run(tmp_path, {}, steps=1, tensorboard=True)
    run.attach({"model": torch.nn.Linear(1, 1)}, {})
    run.show_pictures("draw", answer())
    run.metrics.trackers.log(0, {"loss": 1.0})  # which writes it to the disk
    found = events(tmp_path)
    assert found.Tags()["images"] == ["samples/draw/0", "samples/draw/1"]
    for k, picture in enumerate(answer().pictures):
        (event,) = found.Images(f"samples/draw/{k}")
        assert np.array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), picture.pixels)


@pytest.mark.parametrize(
    ("asked", "module", "said"),
    [
        (
            {"tensorboard": True},
            "torch.utils.tensorboard",
            "tensorboard is not installed; run pip install -e '.[train]'",
        ),
        ({"wandb": "mine"}, "wandb", "is not installed; run pip install -e '.[wandb]'"),
    ],
)
def test_without_its_package_a_run_names_the_extra_and_goes_on(tmp_path, monkeypatch, capsys, asked, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    run, _, _ = train(tmp_path, steps=2, **asked)
    told = capsys.readouterr().out
    assert run.finished and said in told and "The run goes on without them." in told


def test_weights_and_biases_gets_the_figures_of_one_run_whatever_the_session(tmp_path, monkeypatch, capsys):
    begun, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, *values)))
    wandb = SimpleNamespace(init=lambda **settings: begun.append(settings) or run, Settings=lambda **_: "settings")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tmp_path, stop_at=4, wandb="mine")
    train(tmp_path, wandb="mine")
    assert [step for step, *_ in logged] == list(range(1, 13)) and "loss" in logged[0]
    assert begun[0] == begun[1] and begun[0]["project"] == "mine" and begun[0]["resume"] == "allow"
    assert begun[0]["config"]["config"] == {"width": 8}, "the settings go with it"

    def unreachable(**_):
        raise RuntimeError("no API key configured")

    monkeypatch.setattr(wandb, "init", unreachable)
    assert train(tmp_path / "other", wandb="mine")[0].finished
    assert "no figures at Weights & Biases: no API key configured." in capsys.readouterr().out


SECRETS = ("hunter2", "5" * 40, "AKIAEXAMPLE")
SETTINGS = {
    "data": ["webdataset:s3://reader:hunter2@store/a.tar", "webdataset:https://h/a.tar?X-Amz-Signature=AKIAEXAMPLE&v=1"],
    "store": {"access_key": "AKIAEXAMPLE", "max_tokens": 77, "tokenizer": "own"},
    "password": "",
    "storage": {"headers": {"Authorization": "Bearer hunter2"}, "connection_string": "AccountKey=hunter2"},
}  # fmt: skip


def test_passwords_and_keys_are_hidden_and_the_rest_stays():
    assert without_secrets(SETTINGS) == {
        "data": ["webdataset:s3://***@store/a.tar", "webdataset:https://h/a.tar?X-Amz-Signature=***&v=1"],
        "store": {"access_key": "***", "max_tokens": 77, "tokenizer": "own"},
        "password": "",
        "storage": {"headers": {"Authorization": "***"}, "connection_string": "***"},
    }


def test_weights_and_biases_offline_keeps_all_in_the_folder_and_no_secret_in_it(tmp_path, monkeypatch):
    """With the real package: figures, pictures and settings are in its file, as `wandb sync` would send them."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRETS[1])
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["train", f"data={SETTINGS['data'][0]}"])
    run = Run(tmp_path / "run", SETTINGS, steps=1, log_every=1, wandb="mine", tensorboard=True)
    model = torch.nn.Linear(1, 1)
    run.attach({"model": model}, {"adamw": torch.optim.AdamW(model.parameters())})
    for _ in run:
        run.report(loss=0.25)
    run.show_pictures("draw", answer())
    for tracker in run.metrics.trackers.started:
        tracker.finish()
    assert {tracker.name for tracker in run.metrics.trackers.started} == {"tensorboard", "wandb"}
    until = time.monotonic() + 60
    record = b""
    while b"step_seconds" not in record and time.monotonic() < until:  # its service writes after `finish` has returned
        time.sleep(0.1)
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        (record,) = [content for path, content in files.items() if path.suffix == ".wandb"]
    assert b"samples/draw/0" in record and b"step_seconds" in record and b"s3://***@store/a.tar" in record
    assert sum("media" in path.parts and path.suffix == ".png" for path in files) == 2
    for secret in SECRETS:
        assert [str(path) for path, content in files.items() if secret.encode() in content] == []
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == without_secrets(SETTINGS)
    assert wandb.run is None


def test_a_run_with_a_password_in_an_address_resumes_without_a_word(tmp_path, capsys):
    for _ in range(2):
        run = Run(tmp_path, SETTINGS, steps=2, log_every=1)
        model = torch.nn.Linear(1, 1)
        run.attach({"model": model}, {"adamw": torch.optim.AdamW(model.parameters())})
        for _step in run:
            run.report(loss=1.0)
    assert "Settings changed" not in capsys.readouterr().out


def test_no_tracker_is_asked_for():
    trackers = Trackers(None, False, None)  # type: ignore[arg-type]
    assert list(trackers.begin(0, {})) == []
    trackers.log(1, {"loss": 1.0})
