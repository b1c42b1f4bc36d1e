"""Checkpoint folders: written whole, read strictly, every fault named before anything is loaded."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from duogen_core import checkpoint, cli
from duogen_core.checkpoint import (
    VAE_FILE,
    CheckpointError,
    check_checkpoint,
    load_checkpoint,
    resolve_model,
    save_checkpoint,
)
from duogen_core.errors import DuoGenError
from duogen_core.vae import PictureVae
from tests.core.tiny import random_components, request


@pytest.fixture(scope="module")
def components():
    return random_components()


@pytest.fixture(scope="module")
def saved(components, tmp_path_factory):
    return save_checkpoint(components, tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fails(folder, match, load=load_checkpoint):
    with pytest.raises(DuoGenError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


WEIGHTS = {
    "MLLM": "mllm/model.safetensors",
    "connector": "connector/model.safetensors",
    "DiT": "dit/diffusion_pytorch_model.safetensors",
    "VAE": "vae/wan_vae.safetensors",
}


def test_what_was_saved_is_loaded(components, saved):
    parts = []
    loaded = load_checkpoint(saved, on_part=parts.append)
    assert parts == ["mllm", "connector", "dit", "vae"]
    assert loaded.config == components.config
    for part in ("connector", "dit"):
        before, after = getattr(components, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    states = [each.mllm.encode(request().begin_turn("assistant"), each.connector) for each in (components, loaded)]
    assert torch.equal(states[0].states, states[1].states)
    latent = torch.randn(1, 16, 4, 4)
    assert torch.equal(components.vae.decode(latent), loaded.vae.decode(latent))


def test_a_diffusers_vae_folder_is_read_too(components, folder):
    shutil.rmtree(folder / "vae")
    components.vae.save_pretrained(folder / "vae")
    latent = torch.randn(1, 16, 4, 4)
    assert torch.equal(load_checkpoint(folder).vae.decode(latent), components.vae.decode(latent))


def test_saving_again_replaces_the_model_and_keeps_the_log_beside_it(components, folder):
    (folder / "log.jsonl").write_text("{}")
    (folder / "vae" / "stale.safetensors").write_text("")
    save_checkpoint(components, folder)
    check_checkpoint(folder)
    assert (folder / "log.jsonl").read_text() == "{}"
    assert not (folder / "vae" / "stale.safetensors").exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"),
    ],
)
def test_a_save_on_a_full_disk_is_a_sentence_and_leaves_the_earlier_model(components, folder, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(checkpoint, "write_config", full)
    with pytest.raises(DuoGenError, match=r"The disk is full: .*tiny could not be written"):
        save_checkpoint(components, folder)
    check_checkpoint(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("renames", range(3))
def test_a_save_that_is_killed_loses_neither_model_nor_log(components, folder, monkeypatch, renames):
    """Killed before the renames of the swap, between them and after: the same save again leaves a whole model."""

    class Killed(BaseException):
        pass

    (folder / "log.jsonl").write_text("{}")
    rename, done = os.rename, []

    def killed(source, target):
        if len(done) == renames:
            raise Killed
        done.append(rename(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr(Path, "rename", lambda self, target: killed(self, target))
        patch.setattr(checkpoint, "discard", lambda path: None)  # nor does a kill clear anything away
        with pytest.raises(Killed):
            save_checkpoint(components, folder)
    assert len(list(folder.parent.iterdir())) > 1, "nothing was left behind: this kill tests nothing"
    save_checkpoint(components, folder)
    check_checkpoint(folder)
    assert (folder / "log.jsonl").read_text() == "{}"
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


def test_a_folder_of_something_else_is_not_replaced(components, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a DuoGen model"):
        save_checkpoint(components, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("file", WEIGHTS.values())
def test_a_missing_weight_file_is_named(folder, file):
    (folder / file).unlink()
    fails(folder, f"expected the file .*{file}", check_checkpoint)


def test_bytes_behind_the_weights_of_any_part_are_left_alone(components, folder, capsys):
    components.vae.save_pretrained(folder / "diffusers-vae")
    files = [folder / file for file in (*WEIGHTS.values(), "diffusers-vae/diffusion_pytorch_model.safetensors")]
    for file in files:
        with open(file, "ab") as opened:
            opened.write(b"\0" * 13)
    back = load_checkpoint(folder)
    assert torch.equal(back.mllm.model.lm_head.weight, components.mllm.model.lm_head.weight)
    for part in ("connector", "dit"):
        mine, theirs = (getattr(c, part).state_dict() for c in (back, components))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for vae in (back.vae, PictureVae.from_pretrained(folder / "diffusers-vae")):
        mine, theirs = vae.model.state_dict(), components.vae.model.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert cli.main(["inspect", str(folder)]) == 0
    assert capsys.readouterr().out.count("13 bytes follow the last tensor") == 4


TOO_MANY = {
    "dit/config.json": [["num_layers"], ["attention_head_dim"]],
    "connector/config.json": [["num_layers"], ["hidden_size"], ["cross_width"]],
    "mllm/config.json": [
        ["text_config", "num_hidden_layers"], ["vision_config", "depth"], ["text_config", "hidden_size"],
        ["vision_config", "num_heads"], ["text_config", "vocab_size"], ["vision_config", "fullatt_block_indexes"],
    ],
    "vae/config.json": [["num_res_blocks"], ["base_dim"], ["z_dim"]],
}  # fmt: skip


@pytest.mark.parametrize("value", [10**9, 2**63 + 1])
@pytest.mark.parametrize("file, keys", [(file, keys) for file in TOO_MANY for keys in TOO_MANY[file]], ids=str)
def test_sizes_that_the_weights_cannot_have_are_refused_before_anything_is_built(components, folder, file, keys, value):
    """They were built for hours; the time here only ends a test that would hang."""
    if file == "vae/config.json":
        (folder / "vae" / VAE_FILE).unlink()
        components.vae.save_pretrained(folder / "vae")
    config = json.loads((folder / file).read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / file).write_text(json.dumps(config))
    with time_limit(120):
        fails(folder, keys[-1] if keys[-1] != "fullatt_block_indexes" else "mllm")


@pytest.mark.parametrize("file", WEIGHTS.values())
def test_a_cut_off_weight_file_is_named(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    fails(folder, f"{file} is cut off: it has {len(data) // 2} bytes of the {len(data)}", check_checkpoint)


@pytest.mark.parametrize("what, file", WEIGHTS.items())
def test_a_foreign_weight_file_is_named_with_what_was_expected(folder, what, file):
    other = "connector" if what != "connector" else "VAE"
    shutil.copyfile(folder / WEIGHTS[other], folder / file)
    fails(folder, f"{file.split('/')[0]}.*(does not|do not|is not|cannot)")


@pytest.mark.parametrize("what, file", WEIGHTS.items())
def test_a_missing_tensor_is_refused(folder, what, file):
    edit_weights(folder / file, lambda tensors: tensors.pop(sorted(tensors)[0]))
    fails(folder, file.split("/")[0])


@pytest.mark.parametrize("what, file", WEIGHTS.items())
def test_a_foreign_tensor_is_refused(folder, what, file):
    edit_weights(folder / file, lambda tensors: tensors.update(intruder=torch.zeros(1)))
    fails(folder, "intruder")


@pytest.mark.parametrize("what, file", WEIGHTS.items())
def test_a_tensor_of_another_shape_is_refused(folder, what, file):
    def widen(tensors):
        name = sorted(tensors)[0]
        tensors[name] = torch.zeros(7, 3)

    edit_weights(folder / file, widen)
    fails(folder, r"[\[(]7, 3[\])]")


@pytest.mark.parametrize("file", WEIGHTS.values())
def test_pickled_weights_are_never_read(folder, file):
    path = folder / file
    path.unlink()
    pickled = path.with_name("pytorch_model.bin")
    pickled.write_bytes(pickle.dumps(print))
    fails(folder, r"pytorch_model\.bin lies there, but DuoGen never reads pickled weights")


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin"])
def test_a_pickle_as_the_model_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    fails(tmp_path / name, r"never reads pickles.*\.safetensors", resolve_model)


@pytest.mark.parametrize("part", ["mllm", "connector", "dit", "vae", "mllm/tokenizer.json", "dit/config.json"])
def test_an_incomplete_folder_is_named(folder, part):
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fails(folder, f"incomplete: expected the (folder|file) .*{part}", check_checkpoint)


@pytest.mark.parametrize(
    "values, match",
    [
        ({"format": "else"}, "has the format 'else'; expected 'duogen-checkpoint'"),
        ({"version": 2}, "has the version 2; this DuoGen reads version 1"),
        ({"name": 3}, "name must be a string"),
        ({"sampling": []}, "sampling must be an object, not list"),
        ({"sampling": {"steps": 0}}, r"sampling\.steps is 0; expected a positive whole number"),
        ({"sampling": {"guidance": "high"}}, r"sampling\.guidance is 'high'; expected a number"),
        ({"picture": {"width": 12.5}}, r"picture\.width is 12\.5; expected a positive whole number"),
    ],
)
def test_a_wrong_model_index_is_named(folder, values, match):
    edit_json(folder / "model_index.json", **values)
    fails(folder, match, check_checkpoint)


def test_a_broken_model_index_is_named(folder):
    (folder / "model_index.json").write_text('{"format": ')
    fails(folder, "model_index.json is not valid JSON", check_checkpoint)


def test_parts_of_two_models_do_not_mix(folder, tmp_path):
    other = save_checkpoint(random_components(cross_width=48), tmp_path / "other")
    shutil.rmtree(folder / "connector")
    shutil.copytree(other / "connector", folder / "connector")
    fails(folder, "connector of tiny writes 48 numbers a token, but its DiT reads 32")


def test_a_connector_of_another_mllm_is_refused(folder, tmp_path):
    other = save_checkpoint(random_components(layers=3), tmp_path / "other")
    shutil.rmtree(folder / "connector")
    shutil.copytree(other / "connector", folder / "connector")
    fails(folder, "was made for 3 layers of width 64, but its MLLM \\(qwen2_5_vl\\) has 2")


def test_models_are_found_by_name_and_by_path(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "models_folder", lambda: folder.parent)
    assert resolve_model("tiny") == folder
    assert resolve_model(folder) == resolve_model(folder / "model_index.json") == folder
    fails("huge", "There is no model 'huge'; give the path of a model folder, or one of: tiny", resolve_model)
    fails(" ", "has no name; available: tiny", resolve_model)
    fails(folder / "mllm", "is not a DuoGen model: it has no model_index.json", resolve_model)
    fails("../" + folder.parent.name, "There is no model", resolve_model)
