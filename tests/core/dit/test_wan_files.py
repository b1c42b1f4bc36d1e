"""Published Wan files, every size in every layout: read whole from their full key lists, refused by name when changed;
small random ones give the numbers of diffusers' own transformer, fp8 included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.cli import main
from duogen_core.dit.loading import open_published
from duogen_core.dit.wan import PackedWan
from duogen_core.errors import DuoGenError
from duogen_core.weights.wan_keys import to_official
from tests.core.dit.families import randomised
from tests.core.headers import hollow, key_list

PUBLISHED = {"wan2.1_t2v_1.3b": (12, 30, 16), "wan2.1_t2v_14b": (40, 40, 16), "wan2.2_ti2v_5b": (24, 30, 48)}
LAYOUTS = ["official", "comfyui", "diffusers"]
Shapes = dict[str, tuple[int, ...]]


def layout(size: str, kind: str) -> Shapes:
    if kind == "diffusers":
        return key_list(f"{size}.diffusers")
    prefix = "model.diffusion_model." if kind == "comfyui" else ""
    return {prefix + name: shape for name, shape in key_list(f"{size}.official").items()}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("size", PUBLISHED)
def test_every_published_list_is_read_whole(tmp_path: Path, size: str, kind: str):
    file = open_published(hollow(tmp_path / "model.safetensors", layout(size, kind)))
    heads, layers, channels = PUBLISHED[size]
    assert file.name.lower().replace("-", "_") == size
    config = file.config
    assert (config["num_attention_heads"], config["num_layers"], config["out_channels"]) == (heads, layers, channels)
    assert config["text_dim"] == 4096 and file.dtype == torch.bfloat16 and not file.left_out


CHANGES: dict[str, tuple[Callable[[Shapes, str], Shapes], str]] = {
    "renamed": (
        lambda s, n: {(f"{k}_x" if k == n else k): v for k, v in s.items()},
        r"1 of \d+ .*are missing .*1 do not",
    ),
    "missing": (lambda s, n: {k: v for k, v in s.items() if k != n}, r"1 of \d+ tensors are missing"),
    "one more": (lambda s, n: {**s, f"{n}_x": (2, 2)}, r"1 do not belong there"),
    "wrong shape": (lambda s, n: {**s, n: s[n][::-1]}, r"1 have another shape"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("size", PUBLISHED)
def test_a_changed_list_is_refused_by_name(tmp_path: Path, size: str, kind: str, change: str):
    shapes, last = layout(size, kind), PUBLISHED[size][1] - 1
    ours = f"blocks.{last}.ffn.net.2.weight"
    end = ours if kind == "diffusers" else f"blocks.{last}.ffn.2.weight"
    name = next(name for name in shapes if name.endswith(end))
    changed, match = CHANGES[change]
    with pytest.raises(DuoGenError, match=match) as caught:
        open_published(hollow(tmp_path / "model.safetensors", changed(shapes, name)))
    assert ("_x" if change == "one more" else ours) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"img_emb.proj.1.weight": (1280, 1280)}, "is an image-to-video Wan"),
        ({"vace_blocks.0.after_proj.weight": (8, 8)}, "is a VACE Wan"),
        ({"face_adapter.fuser_blocks.0.k_norm.weight": (8,)}, "is Wan Animate"),
        ({"patch_embedding.weight": (1536, 36, 1, 2, 2)}, "is a Wan that reads 36 channels and writes 16"),
        ({"patch_embedding.weight": (1536, 16, 1, 4, 4)}, "it reads patches of 1x4x4"),
        ({"blocks.31.ffn.0.weight": (8960, 1536)}, "its block 30 is missing"),
    ],
)
def test_relatives_are_refused_by_their_names(tmp_path: Path, change: Shapes, sentence: str):
    with pytest.raises(DuoGenError, match=sentence):
        open_published(hollow(tmp_path / "model.safetensors", layout("wan2.1_t2v_1.3b", "official") | change))


def test_it_has_no_connector(tmp_path: Path):
    file = open_published(hollow(tmp_path / "model.safetensors", layout("wan2.1_t2v_1.3b", "official")))
    with pytest.raises(DuoGenError, match=r"is Wan2.1-T2V-1.3B as published, which has no connector: it reads umT5's"):
        file.load_connector((28, 3584))


# ---------------------------------------------------------------- numbers


def small() -> PackedWan:
    """Heads of 128, as no tensor shows another size."""
    torch.manual_seed(0)
    return randomised(
        PackedWan(num_attention_heads=1, attention_head_dim=128, num_layers=2, ffn_dim=64, text_dim=20, freq_dim=16)
    ).eval()


def velocity(dit: PackedWan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x, text = torch.randn(1, 16, 8, 6, generator=generator), torch.randn(1, 7, 20, generator=generator)
    return dit.forward_packed([x], torch.tensor([0.6]), text)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_small_file_gives_diffusers_numbers(tmp_path: Path, kind: str):
    from diffusers import WanTransformer3DModel

    dit = small()
    prefix = "model.diffusion_model." if kind == "comfyui" else ""
    rename = str if kind == "diffusers" else lambda name: prefix + to_official(name)
    weights = {rename(name): tensor.contiguous() for name, tensor in dit.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    found = open_published(tmp_path / "model.safetensors").load_dit()
    stock = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, num_layers=2, ffn_dim=64, text_dim=20, freq_dim=16
    ).eval()
    stock.load_state_dict(dit.state_dict())
    generator = torch.Generator().manual_seed(4)
    x, text = torch.randn(1, 16, 8, 6, generator=generator), torch.randn(1, 7, 20, generator=generator)
    with torch.no_grad():
        expected = stock(x[:, :, None], torch.tensor([600.0]), text, return_dict=False)[0][:, :, 0]
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in dit.state_dict().items())
    torch.testing.assert_close(velocity(found), expected, atol=1e-5, rtol=1e-5)  # numbers of up to 20


def test_a_diffusers_folder_with_its_configuration(tmp_path: Path):
    dit, folder = small(), tmp_path / "transformer"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in dit.state_dict().items()},
              folder / "diffusion_pytorch_model.safetensors")  # fmt: skip
    config = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_published(tmp_path).load_dit().config.num_attention_heads == 2, "no tensor shows the size of a head"
    (folder / "config.json").write_text(json.dumps({**config, "ffn_dim": 65}))
    with pytest.raises(
        DuoGenError, match="says ffn_dim 65, but the weights beside it have 64; they belong to two models"
    ):
        open_published(tmp_path)
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "PackedWan"}))
    with pytest.raises(DuoGenError, match="is the DiT of a DuoGen model"):
        open_published(tmp_path)


@pytest.mark.parametrize("scaled", [False, True], ids=["plainly cast", "scaled_fp8"])
def test_fp8_layers_stay_fp8_and_compute_what_they_hold(tmp_path: Path, scaled: bool):
    weights, whole = {}, {}
    for name, tensor in small().state_dict().items():
        name = to_official(name)
        if tensor.ndim != 2 or not name.startswith("blocks."):
            weights[name] = whole[name] = tensor.contiguous()
            continue
        scale = tensor.abs().max() / 448 if scaled else torch.tensor(1.0)
        weights[name] = (tensor / scale).to(torch.float8_e4m3fn)
        whole[name] = weights[name].float() * scale
        if scaled:
            weights[f"{name.removesuffix('weight')}scale_weight"] = scale
    if scaled:
        weights["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(weights, tmp_path / "fp8.safetensors")
    save_file(whole, tmp_path / "whole.safetensors")
    found, expected = (open_published(tmp_path / f"{name}.safetensors").load_dit() for name in ("fp8", "whole"))
    assert sum(weight.dtype == torch.float8_e4m3fn for weight in found.state_dict().values()) == 2 * 10
    assert (velocity(found) - velocity(expected)).abs().max() < 1e-5


def test_convert_says_that_it_writes_no_wan(tmp_path: Path, capsys):
    path = hollow(tmp_path / "a.safetensors", layout("wan2.1_t2v_1.3b", "official"))
    assert main(["convert", str(path), str(tmp_path / "b.safetensors"), "--quiet"]) == 2
    assert "is a Wan transformer, which convert does not write" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
