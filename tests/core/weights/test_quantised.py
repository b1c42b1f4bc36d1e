"""convert --quantise: what it writes is read again by every loader, close to the original, whole or not at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core import cli
from duogen_core.checkpoint import load_checkpoint, save_checkpoint
from duogen_core.dit.loading import open_published
from duogen_core.errors import DuoGenError
from duogen_core.weights import writing
from duogen_core.weights.quantised import FORMATS, ScaledLinear, layer_formats, quantise
from duogen_core.weights.reading import find_weights
from tests.core.dit.test_cosmos_files import official, tiny
from tests.core.tiny import random_components, request


def convert(*arguments, code: int = 0) -> None:
    assert cli.main(["convert", *map(str, arguments), "--quiet"]) == code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(random_components(), tmp_path_factory.mktemp("checkpoint") / "tiny")


def velocity(dit) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(1, 16, h, w, generator=generator) for h, w in ((4, 6), (6, 4))]
    with torch.no_grad():
        return dit.forward_packed(
            frames, torch.tensor([0.7]), torch.randn(1, 5, 32, generator=generator), frame_ends=[2]
        )


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def whole(file) -> dict[str, torch.Tensor]:
    """The tensors of a quantised file, multiplied out."""
    tensors = load_file(file)
    scales = {name.removesuffix("_scale"): tensors.pop(name) for name in list(tensors) if name.endswith("weight_scale")}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("comfy_quant")}
    return {name: t.float() * scales[name] if name in scales else t for name, t in tensors.items()}


@pytest.mark.parametrize("kind, bar", [("fp8", 0.04), ("int8", 0.01)])
def test_every_weight_of_a_checkpoint_is_there_and_close(tmp_path, checkpoint, kind, bar):
    convert(checkpoint, tmp_path / "small", "--quantise", kind)
    for file in ("mllm/model.safetensors", "dit/diffusion_pytorch_model.safetensors"):
        before, after = load_file(checkpoint / file), whole(tmp_path / "small" / file)
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(after[name], before[name])}
        blocks = (2 * 7) if "mllm" in file else (2 * 10)  # two layers each: seven, and four twice and two
        assert len(changed) == blocks and all(before[name].ndim == 2 for name in changed)
        assert all(0 < relative(after[name], before[name]) < bar for name in changed)
    notes = {bytes(t.tolist()) for n, t in load_file(tmp_path / "small" / file).items() if n.endswith("comfy_quant")}
    (note,) = map(json.loads, notes)
    assert note["format"] == FORMATS[kind].name and note.get("full_precision_matrix_mult", False) is (kind == "fp8")
    for file in ("connector/model.safetensors", "vae/wan_vae.safetensors", "mllm/tokenizer.json", "model_index.json"):
        assert (tmp_path / "small" / file).read_bytes() == (checkpoint / file).read_bytes()


def test_a_checkpoint_in_fp8_runs_and_stays_in_fp8(tmp_path, checkpoint):
    convert(checkpoint, tmp_path / "small", "--quantise", "fp8")
    plain, small = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "small")
    layer = small.dit.transformer_blocks[1].ff.net[0].proj
    assert isinstance(layer, ScaledLinear) and layer.weight.dtype == torch.float8_e4m3fn
    assert small.mllm.model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    assert 0 < relative(velocity(small.dit), velocity(plain.dit)) < 0.05
    states = [parts.mllm.encode(request(), plain.connector).states for parts in (plain, small)]
    assert 0 < relative(states[1], states[0]) < 0.05


def test_a_checkpoint_in_int8_says_that_it_needs_comfyui(tmp_path, checkpoint):
    convert(checkpoint, tmp_path / "small", "--quantise", "int8")
    with pytest.raises(DuoGenError, match="is quantised as int8_tensorwise, which runs in ComfyUI alone"):
        load_checkpoint(tmp_path / "small")


def test_an_mllm_becomes_one_file(tmp_path, checkpoint):
    """Read back beside its configuration: that of so small a model does not follow from shapes."""
    from duogen_core.mllm.loading import load_mllm

    parts = load_checkpoint(checkpoint)
    wanted = parts.mllm.encode(request(), parts.connector).states
    for name, how, bar in (("whole", (), 0.0), ("fp8", ("--quantise", "fp8"), 0.05)):
        folder = shutil.copytree(checkpoint / "mllm", tmp_path / name)
        (folder / "model.safetensors").unlink()
        convert(checkpoint / "mllm", folder / "model.safetensors", *how)
        found = load_mllm(folder).encode(request(), parts.connector).states
        assert (relative(found, wanted) > 0) == bool(how) and relative(found, wanted) <= bar


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cosmos_from_any_layout_in_fp8(tmp_path, dtype):
    model = tiny()
    save_file({name: tensor.to(dtype) for name, tensor in official(model).items()}, tmp_path / "one.safetensors")
    torch.save({"model": {name: t.to(dtype) for name, t in official(model).items()}}, tmp_path / "one.pt")
    for source in ("one.safetensors", "one.pt"):
        convert(tmp_path / source, tmp_path / f"{source}.fp8.safetensors", "--quantise", "fp8")
    files = [(tmp_path / f"{source}.fp8.safetensors") for source in ("one.safetensors", "one.pt")]
    assert {n: t.tolist() for n, t in whole(files[0]).items()} == {n: t.tolist() for n, t in whole(files[1]).items()}
    found = open_published(files[0])
    assert set(found.formats.values()) == {"float8_e4m3fn"} and len(found.formats) == 20
    assert found.dtype == dtype and found.load_connector((2, 32)).proj.weight.dtype == dtype
    blocks = found.load_dit().transformer_blocks
    assert blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert (
        relative(whole(files[0])["net.blocks.0.mlp.layer1.weight"], official(model)["net.blocks.0.mlp.layer1.weight"])
        < 0.04
    )


def test_zeros_and_outliers_survive():
    for to in FORMATS.values():
        numbers, scale = quantise(torch.zeros(3, 4), to)
        assert torch.equal(numbers.float() * scale, torch.zeros(3, 4))
        numbers, scale = quantise(torch.tensor([[1e4, -1e4], [1.0, 0.5]]), to)
        whole = numbers.float() * scale
        assert whole.isfinite().all() and whole[0].tolist() == pytest.approx([1e4, -1e4])


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(tmp_path, checkpoint, capsys, monkeypatch):
    def fails(*arguments, match: str) -> None:
        before = sorted(tmp_path.iterdir())
        convert(*arguments, code=2)
        said = capsys.readouterr().err
        assert match in said and said.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before

    save_file({n: t.bfloat16() for n, t in official(tiny()).items()}, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "fp8.safetensors", "--quantise", "fp8")
    capsys.readouterr()
    again = (tmp_path / "fp8.safetensors", tmp_path / "out.safetensors", "--quantise", "int8")
    fails(*again, match="is quantised already: net.blocks.")
    fails(tmp_path / "one.safetensors", tmp_path / "folder", "--quantise", "fp8", match="--quantise writes one file")
    fails(checkpoint, tmp_path / "out", match="which needs no other layout; give --quantise")
    fails(checkpoint / "vae" / "wan_vae.safetensors", tmp_path / "out.safetensors", "--quantise", "fp8",
          match="is a VAE, which is not quantised")  # fmt: skip
    fails(checkpoint, checkpoint, "--quantise", "fp8", match="exists already; choose another name")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    fails(checkpoint, tmp_path / "out", "--quantise", "fp8", match="but its disk has only 1000 bytes left")


def test_a_half_matching_quantised_dit_is_refused(tmp_path, checkpoint):
    convert(checkpoint, tmp_path / "small", "--quantise", "fp8")
    file = tmp_path / "small" / "dit" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    layer = "transformer_blocks.1.attn1.to_q"
    save_file({name: tensor for name, tensor in tensors.items() if name != f"{layer}.weight"}, file)
    with pytest.raises(DuoGenError, match=f"says how {layer} is quantised, but holds no weight"):
        load_checkpoint(tmp_path / "small")
    save_file({**tensors, f"{layer}.weight_scale": torch.ones(3)}, file)
    with pytest.raises(DuoGenError, match="The scale of .* has 3 numbers; expected 1 or 64"):
        load_checkpoint(tmp_path / "small")
    note = torch.tensor(list(json.dumps({"form": "x"}).encode()), dtype=torch.uint8)
    save_file({**tensors, f"{layer}.comfy_quant": note}, file)
    with pytest.raises(DuoGenError, match="does not say how its layer is quantised"):
        load_checkpoint(tmp_path / "small")
    assert len(layer_formats(find_weights(checkpoint / "dit"))) == 0
