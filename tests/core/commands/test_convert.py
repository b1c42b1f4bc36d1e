"""convert: layouts into one another and back, .pt files in, nothing half-written, no code run."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core import cli
from duogen_core.dit.loading import open_published
from duogen_core.vae import PictureVae, new_vae
from duogen_core.weights import writing
from duogen_core.weights.cosmos_keys import to_official
from tests.core.dit.test_cosmos_files import note, quantised, tiny
from tests.core.test_folder_lock import holder

COUNTERS = {"net.accum_iteration": torch.tensor(5), "net.accum_video_sample_counter": torch.tensor(7)}


@pytest.fixture
def weights():
    return {to_official(name): tensor.contiguous() for name, tensor in tiny().state_dict().items()}


def convert(*arguments, code: int = 0) -> None:
    assert cli.main(["convert", *map(str, arguments), "--quiet"]) == code


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_the_official_pt_becomes_a_single_file_and_a_folder_and_back(tmp_path, weights, nested, capsys):
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    held = {**half, **COUNTERS, "net.blocks.0.self_attn._extra_state": io.BytesIO(b"notes")}
    torch.save({nested: held} if nested else held, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "one.safetensors", "--convention", "pre-trained")
    said = capsys.readouterr().out
    assert "pre-trained (asked for)" in said and "left out, no weights: net.accum_iteration" in said
    assert "_extra_state" in said
    assert same(load_file(tmp_path / "one.safetensors"), half)
    convert(tmp_path / "one.safetensors", tmp_path / "folder")
    found = open_published(tmp_path / "folder")
    assert (found.layout, found.convention) == ("diffusers", "pre-trained") and found.load_dit() is not None
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_the_folder_is_one_that_diffusers_reads(tmp_path, weights):
    from diffusers import CosmosTransformer3DModel

    save_file(weights, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "folder")
    _, report = CosmosTransformer3DModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(report.values())


def test_large_folders_are_sharded(tmp_path, weights, monkeypatch):
    save_file(weights, tmp_path / "one.safetensors")
    monkeypatch.setattr(writing.write_folder, "__defaults__", (20_000,))
    convert(tmp_path / "one.safetensors", tmp_path / "folder")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 3
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), weights)


@pytest.mark.parametrize("form", ["comfy_quant", "metadata"])
def test_quantised_files_keep_their_scales(tmp_path, weights, form):
    tensors, layers = quantised(weights, scaled=True)
    metadata = None
    if form == "comfy_quant":
        tensors.update({f"{layer}.comfy_quant": note(layer) for layer in layers})
    else:
        metadata = {"_quantization_metadata": json.dumps({"layers": {n: {"format": "float8_e4m3fn"} for n in layers}})}
    plain = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    if metadata:
        metadata = {key: value.replace("net.", "") for key, value in metadata.items()}
    save_file(plain, tmp_path / "comfyui.safetensors", metadata)
    convert(tmp_path / "comfyui.safetensors", tmp_path / "one.safetensors")
    assert same(load_file(tmp_path / "one.safetensors"), tensors)
    before, after = (open_published(tmp_path / name).load_dit() for name in ("comfyui.safetensors", "one.safetensors"))
    assert same(before.state_dict(), after.state_dict())


def test_the_vae_too(tmp_path):
    vae = PictureVae(new_vae(4))
    torch.save(vae.to_single_file(), tmp_path / "tokenizer.pth")
    convert(tmp_path / "tokenizer.pth", tmp_path / "a.safetensors")
    vae.save_pretrained(tmp_path / "vae")
    convert(tmp_path / "vae", tmp_path / "b.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))
    assert PictureVae.from_pretrained(tmp_path / "a.safetensors").model.config.base_dim == 4


def test_a_vae_that_is_none_of_wan_is_refused(tmp_path, capsys):
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "vae")
    convert(tmp_path / "vae", tmp_path / "out.safetensors", code=2)
    assert "not one of Wan" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


class Bomb:
    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize("data", ["bomb", "rubbish", "text", "list"])
def test_a_pickle_that_holds_more_than_weights_is_refused_and_nothing_runs(tmp_path, capsys, data, weights):
    path = tmp_path / "model.pt"
    if data == "bomb":
        torch.save({**weights, "net.extra": Bomb()}, path)
    elif data == "rubbish":
        path.write_bytes(pickle.dumps(Bomb()))
    elif data == "text":
        torch.save({**weights, "net.extra": "hello"}, path)
    else:
        torch.save([torch.zeros(1)], path)
    convert(path, tmp_path / "out.safetensors", code=2)
    shown = capsys.readouterr()
    assert "the pickle ran" not in shown.out + shown.err and shown.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


def test_another_model_is_refused(tmp_path, capsys):
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out.safetensors", code=2)
    assert "holds no Cosmos-Predict2.5 transformer" in capsys.readouterr().err
    convert(tmp_path / "nowhere.pt", tmp_path / "out.safetensors", code=2)
    assert "There is no file or folder" in capsys.readouterr().err


def fails(tmp_path, weights, capsys, match: str, target="out.safetensors") -> None:
    save_file(weights, tmp_path / "one.safetensors")
    before = sorted(p.name for p in tmp_path.iterdir())
    convert(tmp_path / "one.safetensors", tmp_path / target, code=2)
    assert match in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, weights, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    fails(tmp_path, weights, capsys, "but its disk has only 1000 bytes left")


@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, weights, capsys, monkeypatch, target):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    fails(tmp_path, weights, capsys, "cannot be written (No space left on device)", target)


def test_what_stands_there_is_not_replaced(tmp_path, weights, capsys):
    (tmp_path / "out.safetensors").write_text("mine")
    fails(tmp_path, weights, capsys, "exists already")
    assert (tmp_path / "out.safetensors").read_text() == "mine"


KILLED = """
import os, sys
from duogen_core import cli
from duogen_core.weights import writing
writing.os.fsync = lambda file: os._exit(9)  # as a kill does it: nothing is cleared away
cli.main(["convert", sys.argv[1], sys.argv[2], "--quiet"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_what_a_killed_run_left_is_gone_after_the_next(tmp_path, weights, target):
    save_file(weights, tmp_path / "one.safetensors")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "one.safetensors", tmp_path / target])
    assert killed.returncode == 9 and not (tmp_path / target).exists()
    assert len(list(tmp_path.iterdir())) > 1, "nothing was left behind: this kill tests nothing"
    convert(tmp_path / "one.safetensors", tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.safetensors", target]


def test_two_runs_at_once_do_not_write_one_file(tmp_path, weights, capsys):
    other = holder(tmp_path / "out.safetensors")
    try:
        save_file(weights, tmp_path / "one.safetensors")
        convert(tmp_path / "one.safetensors", tmp_path / "out.safetensors", code=2)
        assert "is in use by another run" in capsys.readouterr().err
    finally:
        other.communicate("\n")
    convert(tmp_path / "one.safetensors", tmp_path / "out.safetensors")


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, weights, capsys, monkeypatch):
    save_file(weights, tmp_path / "one.safetensors")
    from duogen_core.dit import loading as cosmos

    match = cosmos.match_cosmos

    def then_touched(*args):
        found = match(*args)
        (tmp_path / "one.safetensors").write_bytes(b"new")
        return found

    monkeypatch.setattr(cosmos, "match_cosmos", then_touched)
    convert(tmp_path / "one.safetensors", tmp_path / "out.safetensors", code=2)
    assert "changed while it was being read" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists() and len(list(tmp_path.iterdir())) == 1
