"""inspect: names what a file is from its header, refuses what is none, and shows its sums."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from duogen_core import cli
from duogen_core.checkpoint import models_folder
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.wan import PackedWan
from duogen_core.errors import DuoGenError
from duogen_core.identify import Found, identify
from duogen_core.memory import (
    DIT_BLOCK,
    DIT_MLP,
    GIB,
    Need,
    terms,
    verdict,
)
from duogen_core.mllm.loading import load_mllm
from tests.core.headers import hollow, key_list

BUNDLED = models_folder() / "duogen-tiny"


def one(path) -> Found:
    (found,) = identify(path)
    return found


# ---------------------------------------------------------------- what it is


def test_a_published_dit_is_named_with_what_it_needs(tmp_path):
    found = one(hollow(tmp_path / "a.safetensors", key_list("cosmos_predict2.5_2b.official")))
    assert (found.kind, found.family, found.layout) == ("DiT", "Cosmos-Predict2.5-2B", "official")
    assert found.parameters == 2_059_174_912 + 4 and found.bytes == 2 * found.parameters  # and four counters
    assert found.dtypes == {"BF16": found.bytes}
    assert "28 layers of width 3584" in found.needs[0] and "Wan 2.1 VAE" in found.needs[1]
    assert any("post-trained (assumed)" in note for note in found.notes)
    assert any("net.accum_iteration" in note for note in found.notes)


@pytest.mark.parametrize(
    "names, family, parameters, vae",
    [
        ("wan2.1_t2v_1.3b", "Wan2.1-T2V-1.3B", 1_418_996_800, "the Wan 2.1 VAE"),
        ("wan2.1_t2v_14b", "Wan2.1-T2V-14B", 14_288_491_584, "the Wan 2.1 VAE"),
        ("wan2.2_ti2v_5b", "Wan2.2-TI2V-5B", 4_999_787_712, "the VAE of Wan 2.2 TI2V-5B"),
    ],
)
@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_a_published_wan_is_named_and_said_to_need_stage_2(tmp_path, names, family, parameters, vae, layout):
    found = one(hollow(tmp_path / "a.safetensors", key_list(f"{names}.{layout}")))
    assert (found.kind, found.family, found.layout, found.parameters) == ("DiT", family, layout, parameters)
    assert "stage 2" in found.needs[0] and "4096 numbers" in found.needs[0] and found.needs[1] == vae
    assert any("draws nothing from an MLLM's states" in note for note in found.notes)


def test_a_relative_of_wan_is_named(tmp_path):
    names = {**key_list("wan2.1_t2v_1.3b.official"), "vace_blocks.0.after_proj.weight": (8, 8)}
    found = one(hollow(tmp_path / "a.safetensors", names))
    assert found.family.startswith("a VACE Wan") and "Wan 2.1 text-to-video" in found.notes[0]


def test_the_14b_model_in_fp8_is_known_with_its_quantisation(tmp_path):
    names = key_list("cosmos_predict2.5_14b.diffusers")
    found = one(hollow(tmp_path / "a.safetensors", names, "F8_E4M3"))
    assert found.family == "Cosmos-Predict2.5-14B" and found.quantised["float8_e4m3fn"] > 36 * 10


@pytest.mark.parametrize(
    "names, kind, family",
    [
        ({"blocks.0.mlp.layer1.weight": (8, 2), "x_embedder.proj.1.weight": (2, 68)}, "DiT", "Text2Image"),
        ({"blocks.0.mlp.layer1.weight": (8, 2), "llm_adapter.x": (2, 2)}, "DiT", "Anima"),
        ({"model.diffusion_model.txt_norm.weight": (3584,)}, "DiT", "Qwen-Image"),
        ({"double_stream_modulation_img.lin.weight": (8, 8)}, "DiT", "FLUX.2"),
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": (8, 8)}, "text encoder", "T5"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, "text encoder", "CLIP"),
        ({"model.embed_tokens.weight": (8, 8), "layers.0.mlp.up_proj.weight": (8, 8)}, "text encoder", "language"),
        ({"decoder.head.0.gamma": (96, 1, 1, 1), "conv2.weight": (16, 16, 1, 1, 1)}, "VAE", "Wan 2.1"),
        ({"decoder.head.0.gamma": (256, 1, 1, 1), "conv2.weight": (48, 48, 1, 1, 1)}, "VAE", "Wan 2.2, 48 channels"),
        ({"decoder.conv_in.weight": (8, 4, 3, 3)}, "VAE", "another than Wan 2.1"),
        ({"proj.weight": (1024, 100352), "proj.bias": (1024,)}, "connector", "DuoGen"),
        ({"something.weight": (3, 3)}, "unknown", "not known"),
    ],
)  # fmt: skip
def test_files_of_all_kinds_are_told_apart(tmp_path, names, kind, family):
    found = one(hollow(tmp_path / "a.safetensors", names))
    assert found.kind == kind and family in found.family


LORA = {
    "diffusers/PEFT": "transformer.transformer_blocks.0.attn1.to_q.{}.weight",
    "PEFT": "base_model.model.transformer_blocks.0.attn1.to_q.{}.default.weight",
    "ComfyUI": "diffusion_model.blocks.0.self_attn.q_proj.{}.weight",
    "kohya": "lora_unet_transformer_blocks_0_attn1_to_q.{}.weight",
}


@pytest.mark.parametrize("naming", LORA)
def test_lora_files_are_told_apart_by_naming_and_target(tmp_path, naming):
    down, up = ("lora_down", "lora_up") if naming == "kohya" else ("lora_A", "lora_B")
    names = {LORA[naming].format(down): (4, 48), LORA[naming].format(up): (48, 4)}
    found = one(hollow(tmp_path / "a.safetensors", names))
    assert (found.kind, found.layout, found.family) == ("LoRA", naming, "for a DiT")
    assert found.notes == ["LoRA: 1 layers, rank 4"]
    text = "base_model.model.model.language_model.layers.3.self_attn.q_proj"
    found = one(hollow(tmp_path / "b.safetensors", {f"{text}.lora_A.weight": (2, 8), f"{text}.lora_B.weight": (8, 2)}))
    assert found.family == "for an MLLM"


def test_the_adapter_folder_of_a_training_is_one_lora(tmp_path):
    names = {"base_model.model.blocks.0.attn1.to_q.lora_A.weight": (4, 48)}
    names |= {"base_model.model.blocks.0.attn1.to_q.lora_B.weight": (48, 4)}
    hollow(tmp_path / "adapter_model.safetensors", names)
    hollow(tmp_path / "pytorch_lora_weights.safetensors", names)
    with pytest.raises(DuoGenError, match="more than one set of weights"):
        one(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}', "utf-8")
    assert one(tmp_path).kind == "LoRA"


@pytest.mark.parametrize(
    "names, match",
    [
        ({"a.lora_A.weight": (4, 8)}, "a has one of its two matrices"),
        ({"a.lora_A.weight": (4, 8), "a.lora_B.weight": (8, 3)}, "have the ranks 4 and 3"),
        ({"a.lora_A.weight": (4,), "a.lora_B.weight": (8, 4)}, "expected a matrix"),
        ({"a.lora_A.weight": (4, 8), "a.lora_B.weight": (8, 4), "b": (1,)}, "b is not part of one"),
    ],
)
def test_broken_lora_files_are_refused(tmp_path, names, match):
    with pytest.raises(DuoGenError, match=match):
        identify(hollow(tmp_path / "a.safetensors", names))


def test_a_lora_must_fit_its_model():
    from duogen_core.weights.headers import Entry, shapes_of
    from duogen_core.weights.lora import check_lora, read_lora

    with torch.device("meta"):
        shapes = shapes_of(PackedCosmos(num_attention_heads=2, attention_head_dim=24, num_layers=2))

    def lora(layer: str, inputs: int = 48):
        names = {f"{layer}.lora_A.weight": (4, inputs), f"{layer}.lora_B.weight": (48, 4)}
        return read_lora({name: Entry("F32", shape) for name, shape in names.items()}, "x.safetensors")

    for layer in ("transformer.transformer_blocks.1.attn1.to_q", "diffusion_model.blocks.1.self_attn.q_proj"):
        check_lora(lora(layer), shapes, "x.safetensors", "the DiT")
    with pytest.raises(DuoGenError, match=r"is a LoRA for another model: 1 of its 1 layers are not in the DiT"):
        check_lora(lora("transformer.transformer_blocks.5.attn1.to_q"), shapes, "x.safetensors", "the DiT")
    with pytest.raises(DuoGenError, match="is a LoRA for another size of model: .* is for 48x64, the model's is 48x48"):
        check_lora(lora("transformer.transformer_blocks.1.attn1.to_q", 64), shapes, "x.safetensors", "the DiT")


def test_the_bundled_checkpoint_is_four_parts():
    found = identify(BUNDLED)
    assert [each.kind for each in found] == ["MLLM", "connector", "DiT", "VAE"]
    assert found[0].notes == ["5 layers of width 192"] and "(5 layers of width 192)" in found[1].needs[0]
    assert (
        found[0].family == "qwen2_5_vl"
        and found[2].family == "DuoGen's Cosmos, frame_causal attention"
        and found[3].family == "Wan 2.1"
    )


def test_a_connector_says_which_pair_it_is_of(tmp_path):
    shutil.copytree(BUNDLED / "connector", tmp_path / "connector")
    file = tmp_path / "connector" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "mllm": "qwen3_vl", "dit": "wan"}), "utf-8")
    assert one(tmp_path / "connector").needs == [
        "the MLLM it was trained with (qwen3_vl, 5 layers of width 192)", "the DiT it was trained with (wan)",
    ]  # fmt: skip


def test_what_bitsandbytes_can_do_without_is_not_told(monkeypatch, capsys):
    """diffusers imports it where it is installed, in commands that have nothing to do with four bits."""
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    cli.main(["inspect", str(BUNDLED / "vae")])
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load kernels")
    assert "kernels" not in capsys.readouterr().err and logger.level == logging.ERROR


def test_a_small_mllm_in_one_file_has_its_heads_or_a_sentence(tmp_path):
    """The width of a head is in no shape: it is that of the published sizes, or the configuration's beside the file."""
    found = one(BUNDLED / "mllm" / "model.safetensors")
    assert (found.shape["kv_heads"], found.shape["head_dim"]) == (2, 32) and "by its folder" in found.needs[0]
    shutil.copy(BUNDLED / "mllm" / "model.safetensors", tmp_path / "copy.safetensors")
    found = one(tmp_path / "copy.safetensors")
    assert found.kind == "MLLM" and not found.shape and "give the model's folder" in found.notes[0]
    with pytest.raises(DuoGenError, match=r"copy.safetensors has no configuration.*another size"):
        load_mllm(tmp_path / "copy.safetensors", tokenizer=BUNDLED / "mllm")


def test_a_dit_of_ours_is_never_called_anothers(tmp_path, capsys):
    for arguments in (
        ["convert", BUNDLED / "dit", tmp_path / "x.safetensors"],
        ["generate", "x", "--out", tmp_path / "x", "--mllm", BUNDLED / "mllm", "--dit", BUNDLED / "dit", "--vae",
         BUNDLED / "vae"],
    ):  # fmt: skip
        assert cli.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert (
            "is the DiT of a DuoGen model" in error and "give the whole model" in error and "Video2World" not in error
        )
    shutil.copy(BUNDLED / "dit" / "diffusion_pytorch_model.safetensors", tmp_path / "alone.safetensors")
    assert one(tmp_path / "alone.safetensors").family == (
        "a Cosmos transformer of 6 blocks, 192 wide, without crossattn_proj, as in DuoGen models"
    )


# ---------------------------------------------------------------- what it is not


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "name, data, match",
    [
        ("a.gguf", b"GGUF\x03\0\0\0" + b"\0" * 8, "is cut off: it has 16 bytes"),
        ("a.gguf", b"GGUF\x09\0\0\0" + b"\0" * 40, "is a GGUF file of version 9; expected version 2 or 3"),
        ("a.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 40, "is cut off or broken: a list of .* notes"),
        ("a.safetensors", b"GGUF\x03\0\0\0" + b"\0" * 40, "is a GGUF file by its first bytes"),
        ("a.pt", b"PK\x03\x04" + b"\0" * 40, "is a PyTorch checkpoint, which can run code.*convert a.pt"),
        ("a.ckpt", b"\x80\x02}q\0.", "is an old PyTorch checkpoint, a bare pickle"),
        ("a.safetensors", b"\x80\x02}q\0." + b"\0" * 40, "never reads pickles"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.safetensors", b"<!doctype html><title>Sign in</title>", "is a web page, not weights"),
        ("a.safetensors", b"", "is cut off"),
        ("a.safetensors", struct.pack("<Q", 2**63), "is not a safetensors file"),
        ("a.safetensors", header(b"[" * 200_000), "is not a safetensors file"),
        ("a.safetensors", header(b'{"a":' + b"[" * 200_000), "its header is broken"),
        ("a.safetensors", header(b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}'), "its header is broken"),
        ("a.safetensors", header(b'{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}') + b"1234", "is broken"),
        ("a.safetensors", header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}') + b"1234", "not fit it"),
    ],
)  # fmt: skip
def test_hostile_and_broken_files_get_a_sentence(tmp_path, capsys, name, data, match):
    (tmp_path / name).write_bytes(data)
    assert cli.main(["inspect", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(match, error), error


@pytest.mark.parametrize(
    "names",
    [
        {"decoder.head.0.gamma": ()},
        {"blocks.0.mlp.layer1.weight": (), "x_embedder.proj.1.weight": ()},
        {name: (1,) * len(shape) for name, shape in key_list("cosmos_predict2.5_2b.official").items()},
        {"model.embed_tokens.weight": (), "visual.patch_embed.proj.weight": ()},
        {"a.lora_A.weight": (), "a.lora_B.weight": ()},
    ],
)
def test_impossible_shapes_get_a_sentence(tmp_path, capsys, names):
    path = hollow(tmp_path / "a.safetensors", names)
    assert cli.main(["inspect", str(path)]) in (0, 2)
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize(
    "values", [{"max_size": "big"}, {"patch_size": []}, {"rope_scale": ["a"]}, {"patch_size": 3}, {"attention": {}}]
)
def test_impossible_configurations_get_a_sentence(tmp_path, capsys, values):
    hollow(tmp_path / "model.safetensors", key_list("cosmos_predict2.5_2b.diffusers"))
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_block_number_beyond_reason_costs_no_time(tmp_path):
    names = key_list("cosmos_predict2.5_2b.official") | {"net.blocks.999999999.mlp.layer1.weight": (1, 1)}
    with pytest.raises(DuoGenError, match="its block 28 is missing"):
        identify(hollow(tmp_path / "a.safetensors", names))


@pytest.mark.parametrize("make", ["empty", "none", "two"])
def test_folders_without_one_model_are_refused(tmp_path, make):
    if make == "two":
        for name in "ab":
            save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    path = tmp_path / "nowhere" if make == "none" else tmp_path
    match = {"empty": "holds no .safetensors", "none": "There is no file", "two": "more than one set"}[make]
    with pytest.raises(DuoGenError, match=match):
        identify(path)


# ---------------------------------------------------------------- does it fit


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once, but for those of `static`."""

    def __init__(self, static) -> None:
        super().__init__()
        self.static = {tensor.untyped_storage().data_ptr() for tensor in static}
        self.users: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self.static:
                self.sizes[place] = tensor.untyped_storage().nbytes()
                self.users[place] = self.users.get(place, 0) + 1
                self.peak = max(self.peak, sum(self.sizes.values()))
                weakref.finalize(tensor, self._gone, place)
        return out

    def _gone(self, place: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place], self.sizes[place]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("family", "config", "mlp"),
    [
        (PackedCosmos, {"text_embed_dim": 64}, 2048),
        (PackedWan, {"text_dim": 64, "ffn_dim": 2986}, 2986),  # as in Wan 2.1 1.3B, whose MLP is the widest
        (PackedWan, {"text_dim": 64, "ffn_dim": 1382}, 1382),  # 14B, the narrowest
    ],
)
def test_the_estimate_of_a_step_is_what_its_tensors_take(family, config, mlp, count):
    dit = family(num_attention_heads=4, attention_head_dim=128, num_layers=2, **config).eval()
    frames = [torch.randn(1, 16, 24, 24) for _ in range(count)]
    with torch.no_grad(), Alive(dit.parameters()) as alive:
        dit.forward_packed(frames, torch.tensor([0.5]), torch.randn(1, 32, 64))
    estimated = count * 144 * (512 * DIT_BLOCK + mlp * DIT_MLP) * 4
    assert 0.9 * alive.peak < estimated < 1.25 * alive.peak


def test_the_sum_is_shown_and_its_parts_add_up(tmp_path, capsys):
    path = hollow(tmp_path / "a.safetensors", key_list("cosmos_predict2.5_2b.diffusers"))
    need = Need(768, 512, 3, 1000)
    counted = terms(identify(path), need)
    assert [term.bytes for term in counted] == [
        2 * 2_059_174_912, 48 * 32 * 2048 * 15 * 2, 1000 * 28 * 2 * 2048 * 2, 3 * 48 * 32 * 2048 * 15 * 2
    ]  # fmt: skip
    arguments = ["inspect", str(path), "--size", "768x512", "--references", "3", "--tokens", "1000", "--memory"]
    assert cli.main([*arguments, "12"]) == 0
    shown = capsys.readouterr().out
    assert "DiT: Cosmos-Predict2.5-2B, diffusers layout" in shown and "2,059,174,912 parameters, 3.8 GiB" in shown
    assert "1,536 tokens x (7 x 2048 + 2 x 8192) x 2 bytes" in shown and "It fits: 4.4 GiB of 12.0 GiB." in shown
    assert cli.main([*arguments, "2", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["fits"]["answer"] == "offloaded" and value["found"][0]["family"] == "Cosmos-Predict2.5-2B"
    assert value["memory_total"] == sum(term.bytes for term in counted)


def test_the_tokens_and_maps_of_wan_2_2_are_larger_in_pixels(tmp_path):
    need = Need(768, 512, 1, 1000)
    dit = terms([one(hollow(tmp_path / "dit.safetensors", key_list("wan2.2_ti2v_5b.official")))], need)
    assert [term.bytes for term in dit[1:]] == [
        24 * 16 * (7 * 3072 + 2 * 14336) * 2, 1000 * 30 * 2 * 3072 * 2, 24 * 16 * (7 * 3072 + 2 * 14336) * 2
    ]  # fmt: skip
    for layout in ("official", "diffusers"):
        for version, sum_ in (("2.1", "768 x 512 x 96"), ("2.2", "384 x 256 x 256")):
            vae = terms([one(hollow(tmp_path / "vae.safetensors", key_list(f"wan_{version}_vae.{layout}")))], need)
            assert vae[-1].arithmetic == f"{sum_} channels x 6 maps x 2 bytes", (version, layout)


def test_a_vae_without_its_last_norm_is_counted_without_its_work(tmp_path, capsys):
    names = {f"decoder.{name}": (8,) for name in ("conv_in.weight", "mid_block.resnets.0.norm1.gamma")}
    hollow(tmp_path / "vae.safetensors", {**names, "post_quant_conv.weight": (48, 48, 1, 1, 1)})
    assert cli.main(["inspect", str(tmp_path / "vae.safetensors"), "--size", "64x64"]) == 0
    assert "Wan 2.2, 48 channels" in capsys.readouterr().out


def test_all_sizes_are_in_the_units_of_memory(capsys):
    assert cli.main(["inspect", str(BUNDLED), "--memory", "12"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"\b[kMG]B\b", shown) and re.search(r"MLLM, weights +18\.9 MiB", shown)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_the_exit_code_says_whether_it_can_run(capsys, as_json):
    """1 only where it does not run in any way, as grep's for what is not found."""
    arguments = ["inspect", str(BUNDLED), *as_json, "--memory"]
    assert cli.main([*arguments, "0.3"]) == 0  # in turn
    assert cli.main([*arguments, "0.1"]) == 1
    assert cli.main(["inspect", str(BUNDLED), *as_json]) == 0
    assert "Error" not in capsys.readouterr().err


def test_parts_that_fit_one_at_a_time_are_said_to():
    counted = terms(identify(BUNDLED), Need())
    total, vae = sum(t.bytes for t in counted), sum(t.bytes for t in counted if t.part == "VAE")
    assert verdict(counted, total)[0] == "whole"
    assert verdict(counted, max(vae, total * 2 // 3))[0] == "in turn"
    assert verdict(counted, 1000)[0] == "no"
    assert verdict(terms(identify(BUNDLED), Need(4096, 4096)), GIB)[0] == "no"


@pytest.mark.parametrize(
    "arguments, match",
    [(["--size", "big"], "WIDTHxHEIGHT"), (["--memory", "0"], "at least 0.1"), (["--references", "-1"], "at least 0")],
)
def test_bad_options_are_named(tmp_path, capsys, arguments, match):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert cli.main(["inspect", str(tmp_path / "a.safetensors"), *arguments]) == 2
    assert match in capsys.readouterr().err


# ---------------------------------------------------------------- GGUF


def test_gguf_files_of_all_kinds_are_told_apart(tmp_path, capsys):
    from tests.core.dit.test_cosmos_files import tiny
    from tests.core.dit.test_cosmos_gguf import WIDE
    from tests.core.dit.test_cosmos_gguf import write as write_cosmos
    from tests.core.gguf_files import write_causal, write_gguf, write_pair
    from tests.core.llm.test_gguf_model import tiny as tiny_causal
    from tests.core.mllm_families import lively, tokenizer

    pair = write_pair(tmp_path, lively("qwen3_vl"))
    mllm = one(pair)
    assert (mllm.kind, mllm.family, mllm.layout) == ("MLLM", "qwen3_vl", "GGUF")
    assert mllm.notes == ["3 layers of width 64", "vision: mmproj-F16.gguf"] and mllm.quantised == {"Q8_0": 22}
    assert mllm.bytes == sum(mllm.dtypes.values()) and set(mllm.dtypes) == {"Q8_0", "F32", "F16"}
    counted = {term.what: term.bytes for term in terms([mllm], Need())}
    assert counted["weights"] == mllm.bytes and counted["one layer, made whole"] == mllm.shape["largest"] * 6
    eyes = one(tmp_path / "mmproj-F16.gguf")
    assert (eyes.kind, eyes.family) == ("vision of an MLLM", "Qwen3-VL")
    (tmp_path / "mmproj-F16.gguf").rename(tmp_path / "eyes.gguf")
    assert "no mmproj of it lies beside it" in one(pair).notes[1]
    text = one(write_causal(tmp_path / "text.gguf", tiny_causal("qwen2", tokenizer()), "qwen2", tokenizer()))
    assert (text.kind, text.family) == ("MLLM", "qwen2, a language model alone") and "it can plan" in text.notes[1]
    dit = one(write_cosmos(tmp_path / "dit.gguf", tiny(**WIDE), "Q4_0"))
    assert dit.kind == "DiT" and dit.family.startswith("Cosmos-Predict2.5") and dit.quantised["Q4_0"] > 20
    wan = write_gguf(tmp_path / "wan.gguf", "wan", {"text_embedding.0.weight": torch.zeros(4, 4).numpy()})
    assert (one(wan).kind, one(wan).family) == ("DiT", "Wan video")
    other = write_gguf(tmp_path / "other.gguf", "bert", {"x": torch.zeros(4).numpy()})
    assert one(other).kind == "unknown"
    odd = {"llama.block_count": float("nan"), "llama.embedding_length": float("inf")}
    llama = write_gguf(tmp_path / "llama.gguf", "llama", {"token_embd.weight": torch.zeros(4, 4).numpy()}, odd)
    assert (one(llama).shape["layers"], one(llama).shape["width"]) == (0, 0), "no whole numbers, so none"
    assert cli.main(["inspect", str(pair)]) == 0 and "22 layers Q8_0" in capsys.readouterr().out
