"""Cosmos-Predict2.5 as published: every layout loads with nothing missing, and nothing half-matching gets in."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.loading import CONVENTIONS, NOTE, open_published
from duogen_core.errors import DuoGenError
from duogen_core.weights.cosmos_keys import to_diffusers, to_official
from tests.core.headers import hollow, key_list

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "mlp_ratio": 2.0, "text_embed_dim": 20,
    "adaln_lora_dim": 8, "rope_scale": (1.0, 3.0, 3.0), "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 2 * 32, "encoder_hidden_states_channels": 20,
}  # fmt: skip
PUBLISHED = {"2b": (16, 28, "Cosmos-Predict2.5-2B"), "14b": (40, 36, "Cosmos-Predict2.5-14B")}


def layout(size: str, kind: str) -> dict[str, tuple[int, ...]]:
    """The published key lists; ComfyUI's names are the official ones with another prefix, without counters."""
    if kind in ("official", "diffusers"):
        return key_list(f"cosmos_predict2.5_{size}.{kind}")
    prefix = {"comfyui": "", "comfyui checkpoint": "model.diffusion_model."}[kind]
    names = key_list(f"cosmos_predict2.5_{size}.official")
    return {prefix + name.removeprefix("net."): shape for name, shape in names.items() if "accum_" not in name}


def tiny(**config) -> PackedCosmos:
    torch.manual_seed(0)
    model = PackedCosmos(**{**TINY, **config}).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1)
    return model


def official(model: PackedCosmos) -> dict[str, torch.Tensor]:
    return {to_official(name): tensor.contiguous() for name, tensor in model.state_dict().items()}


def run(dit, text: torch.Tensor) -> torch.Tensor:
    dtype = next(p.dtype for p in dit.parameters() if p.ndim == 1)
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(1, 16, h, w, generator=generator).to(dtype) for h, w in ((4, 6), (6, 4))]
    with torch.no_grad():
        return dit.forward_packed(frames, torch.tensor([0.7]), text.to(dtype)).float()


def fails(path, match, **kwargs):
    with pytest.raises(DuoGenError, match=match) as caught:
        open_published(path, **kwargs)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- key lists


@pytest.mark.parametrize("kind", ["official", "comfyui", "comfyui checkpoint", "diffusers"])
@pytest.mark.parametrize("size", PUBLISHED)
def test_every_published_layout_matches_whole(tmp_path, size, kind):
    heads, layers, name = PUBLISHED[size]
    found = open_published(hollow(tmp_path / "model.safetensors", layout(size, kind)))
    assert found.name == name
    expected = {"num_attention_heads": heads, "attention_head_dim": 128, "num_layers": layers, "mlp_ratio": 4.0,
                "in_channels": 17, "out_channels": 16, "text_embed_dim": 1024, "adaln_lora_dim": 256,
                "rope_scale": (1.0, 3.0, 3.0), "crossattn_proj_in_channels": 100352}  # fmt: skip
    assert {key: found.config[key] for key in expected} == expected
    assert set(found.names.values()) == set(layout(size, "diffusers"))
    assert [name.removeprefix("net.") for name in found.left_out] == (
        ["accum_image_sample_counter", "accum_iteration", "accum_train_in_hours", "accum_video_sample_counter"]
        if kind == "official" else []
    )  # fmt: skip


def test_our_names_are_those_of_the_classes_that_own_them():
    """The official list comes from ComfyUI's class, the other from diffusers': the renaming joins the two."""
    for size in PUBLISHED:
        theirs, ours = layout(size, "comfyui"), layout(size, "diffusers")
        assert {to_diffusers(name, ""): shape for name, shape in theirs.items()} == ours
        assert {to_official(name): shape for name, shape in ours.items()} == {f"net.{n}": s for n, s in theirs.items()}


def test_every_tensor_goes_where_diffusers_own_converter_puts_it():
    """Query and key have one shape: only an independent map can tell that they are not swapped."""
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

    names = list(layout("2b", "official"))
    theirs = convert_cosmos_transformer_checkpoint_to_diffusers({name: name for name in names})
    assert {to_diffusers(name): name for name in names if "accum_" not in name} == theirs


@pytest.mark.slow
def test_the_whole_2b_model_loads_and_its_projection_becomes_the_connector(tmp_path):
    found = open_published(hollow(tmp_path / "model.safetensors", layout("2b", "official")))
    dit, connector = found.load_dit(), found.load_connector()
    assert sum(p.numel() for p in dit.parameters()) + sum(p.numel() for p in connector.parameters()) == 2_059_174_912
    assert {p.dtype for p in dit.parameters()} == {torch.bfloat16} and not hasattr(dit, "crossattn_proj")
    config = connector.config
    assert (config.num_layers, config.hidden_size, config.cross_width) == (28, 3584, 1024)


def change(names: dict, **kwargs) -> dict:
    return {**{name: shape for name, shape in names.items() if name not in kwargs.get("drop", ())}, **kwargs["add"]}


@pytest.mark.parametrize(
    "drop, add, match",
    [
        (["net.blocks.3.mlp.layer2.weight"], {"net.blocks.3.mlp.second.weight": (2048, 8192)},
         r"1 of \d+ tensors are missing \(transformer_blocks.3.ff.net.2.weight\); 1 do not belong there .*mlp.second"),
        ([], {"net.blocks.7.cross_attn.k_proj.weight": (2048, 4096)},
         r"1 have another shape \(transformer_blocks.7.attn2.to_k.weight is \[2048, 4096\] instead of \[2048, 1024\]"),
        ([], {"net.blocks.40.mlp.layer1.weight": (8192, 2048)}, "its block 28 is missing"),
        (["net.t_embedding_norm.weight"], {}, "tensors are missing .time_embed.norm.weight"),
        (["net.crossattn_proj.0.weight"], {}, "is Cosmos-Predict2 Video2World, which reads T5 text, or a Cosmos-"),
        ([], {"net.x_embedder.proj.1.weight": (2048, 68)}, "is Cosmos-Predict2 Text2Image, which reads T5 text"),
        ([], {"net.llm_adapter.blocks.0.weight": (4, 4)}, "is Anima"),
        ([], {"net.control_embedder.proj.1.weight": (4, 4)}, "is a Cosmos-Transfer2.5 model"),
        ([], {"net.x_embedder.proj.1.weight": (2048, 80)}, "it reads 80 numbers a patch and writes 64"),
        ([], {"net_ema.blocks.0.mlp.layer1.weight": (8192, 2048)}, r"1 do not belong there \(net_ema"),
        ([], {"net.blocks.0.mlp.layer1.weight": (8192,)}, r"ff.net.0.proj.weight has the shape \[8192\]"),
        ([], {"net.blocks.0.self_attn.q_proj.weight_scale": ()}, "describes the quantisation of"),
    ],
)  # fmt: skip
def test_a_mutated_list_is_refused_by_name(tmp_path, drop, add, match):
    names = change(layout("2b", "official"), drop=drop, add=add)
    fails(hollow(tmp_path / "model.safetensors", names), match)


def test_other_models_are_refused(tmp_path):
    fails(hollow(tmp_path / "a.safetensors", {"double_blocks.0.img_attn.qkv.weight": (8, 8)}), "holds no Cosmos-Pred")
    (tmp_path / "b.safetensors").write_bytes(b"GGUF" + b"\0" * 60)
    fails(tmp_path / "b.safetensors", "GGUF|is not a safetensors file")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04")
    fails(tmp_path / "c.pt", "never reads pickles.*duogen_core convert")


# ---------------------------------------------------------------- folders and conventions


@pytest.fixture
def folder(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "dit", max_shard_size="20KB")
    config = json.loads((tmp_path / "dit" / "config.json").read_text())
    for ours in ("attention", "clean_timestep", "references"):
        del config[ours]  # as diffusers itself writes it
    (tmp_path / "dit" / "config.json").write_text(json.dumps(config))
    return tmp_path / "dit"


def test_a_sharded_folder_and_a_single_file_are_the_same_model(tmp_path, folder):
    assert len(list(folder.glob("*.safetensors"))) > 1
    text = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(2))
    model = tiny(clean_timestep=CONVENTIONS["post-trained"].clean_timestep)
    expected = run(model, text)
    save_file(official(model), tmp_path / "one.safetensors")
    for path in (folder, tmp_path / "one.safetensors"):
        found = open_published(path)
        loaded = found.load_dit()
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())
        # A product with one row is summed in another order where a file's weights lie at other addresses.
        torch.testing.assert_close(run(loaded, text), expected, atol=1e-5, rtol=1e-5)
        states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(3))
        connector = found.load_connector((2, 32))
        assert torch.equal(connector.project(states), model.crossattn_proj(states))
    assert open_published(folder.rename(tmp_path / "transformer").parent).layout == "diffusers"  # a pipeline's folder


def test_the_convention_is_the_users_else_the_files_else_post_trained(tmp_path, folder):
    weights = official(tiny())
    (tmp_path / "pre-trained").mkdir()
    for name, metadata, expected, by in (
        ("plain.safetensors", {}, "post-trained", "assumed"),
        ("noted.safetensors", {NOTE: "pre-trained"}, "pre-trained", "metadata"),
        ("pre-trained/plain.safetensors", {}, "pre-trained", "the name pre-trained"),
        ("d20b7120-df3e-4911-919d-db6e08bad31c_ema_bf16.safetensors", {}, "pre-trained", "the name d20b7120"),
    ):
        save_file(weights, tmp_path / name, metadata or None)
        found = open_published(tmp_path / name)
        assert found.convention == expected and by in found.convention_from
        assert open_published(tmp_path / name, "post-trained").convention == "post-trained"
    assert open_published(tmp_path / "noted.safetensors").load_dit().config.clean_timestep == -1
    assert open_published(tmp_path / "noted.safetensors").sampling.shift == 5
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "clean_timestep": -1}))
    assert open_published(folder).convention == "pre-trained"
    fails(folder, "The convention is 'trained'; expected post-trained or pre-trained", convention="trained")


def test_conventions_differ_in_what_is_drawn(tmp_path):
    save_file(official(tiny()), tmp_path / "m.safetensors")
    text = torch.randn(1, 3, 20)
    post, pre = (run(open_published(tmp_path / "m.safetensors", name).load_dit(), text) for name in CONVENTIONS)
    assert not torch.allclose(post, pre, atol=1e-3)


def test_bad_folders_are_refused_in_a_sentence(tmp_path, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    fails(folder, r"says num_layers 3, but the weights beside it have 2; they belong to two models")
    (folder / "config.json").write_text("[]")
    fails(folder, "holds a list; expected a JSON object")
    (folder / "config.json").write_text(json.dumps(config))
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    fails(folder, f"{shard.name} is cut off")
    shard.write_bytes(b"\0" * len(data))
    fails(folder, f"{shard.name} is not a safetensors file")
    shard.write_bytes(sorted(folder.glob("*.safetensors"))[0].read_bytes())
    fails(folder, "both hold")
    shard.unlink()
    fails(folder, f"expected the file .*{shard.name}")


def test_a_folder_with_two_candidates_is_not_guessed_about(tmp_path):
    save_file(official(tiny()), tmp_path / "a.safetensors")
    open_published(tmp_path)
    save_file(official(tiny()), tmp_path / "b.safetensors")
    fails(tmp_path, r"more than one set of weights of the DiT \(a.safetensors, b.safetensors\); give the path")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(official(tiny()), path)
    found = open_published(path)
    path.write_bytes(path.read_bytes())
    with pytest.raises(DuoGenError, match="changed while it was being read"):
        found.load_dit()


def test_a_connector_for_another_mllm_is_refused(tmp_path):
    found = open_published(hollow(tmp_path / "model.safetensors", layout("2b", "official")))
    with pytest.raises(DuoGenError, match=r"36 layers of width 2048.*28 layers of width 3584, such as Qwen2.5-VL-7B"):
        found.load_connector((36, 2048))


# ---------------------------------------------------------------- numbers of fewer bits


def quantised(tensors: dict[str, torch.Tensor], scaled: bool) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every matrix of the blocks in fp8, as ComfyUI's converters write it; the rest in bf16."""
    out, layers = {}, []
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if tensor.ndim == 2 and ".blocks." in f".{name}" and "adaln" not in name:
            scale = tensor.abs().max() / 448 if scaled else torch.ones(())
            out[name] = (tensor / scale).to(torch.float8_e4m3fn)
            layers.append(layer)
            if scaled:
                out[f"{layer}.weight_scale"] = scale.float()
        else:
            out[name] = tensor.bfloat16()
    return out, layers


def note(layer: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("form", ["comfy_quant", "metadata", "scaled_fp8", "cast"])
def test_fp8_files_of_all_four_forms_stay_small_and_draw_the_same(tmp_path, form):
    model = tiny()
    tensors, layers = quantised(official(model), scaled=form != "cast")
    metadata = {}
    if form == "comfy_quant":
        tensors.update({f"{layer}.comfy_quant": note(layer) for layer in layers})
    elif form == "metadata":
        notes = {"layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}}
        metadata = {"_quantization_metadata": json.dumps(notes)}
    elif form == "scaled_fp8":
        tensors = {name.replace("weight_scale", "scale_weight"): tensor for name, tensor in tensors.items()}
        tensors["net.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        tensors.update({f"{layer}.scale_input": torch.ones(()) for layer in layers})
    save_file(tensors, tmp_path / "m.safetensors", metadata or None)
    found = open_published(tmp_path / "m.safetensors")
    assert set(found.formats) == set(layers) and found.dtype == torch.bfloat16
    dit = found.load_dit()
    assert dit.transformer_blocks[1].ff.net[0].proj.weight.dtype == torch.float8_e4m3fn
    assert dit.time_embed.norm.weight.dtype == torch.bfloat16
    text = torch.randn(1, 3, 20)
    wanted, got = run(model, text), run(dit, text)
    assert (got - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    assert not torch.equal(got, wanted)


def test_types_are_kept_or_converted(tmp_path):
    half = {name: tensor.half() for name, tensor in official(tiny()).items()}
    save_file(half, tmp_path / "m.safetensors")
    found = open_published(tmp_path / "m.safetensors")
    assert found.load_dit().time_embed.norm.weight.dtype == torch.float16
    assert {p.dtype for p in found.load_dit(torch.float32).parameters()} == {torch.float32}
    assert found.load_connector((2, 32), torch.bfloat16).proj.weight.dtype == torch.bfloat16
    mixed, _ = quantised(half, scaled=True)
    mixed = {name: tensor.half() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in mixed.items()}
    save_file(mixed, tmp_path / "m.safetensors")
    assert open_published(tmp_path / "m.safetensors").load_dit().time_embed.norm.weight.dtype == torch.float16


def test_formats_that_only_comfyui_runs_are_refused_by_name(tmp_path):
    tensors, layers = quantised(official(tiny()), scaled=True)
    told = torch.tensor(list(json.dumps({"format": "mxfp8"}).encode()), dtype=torch.uint8)
    tensors[f"{layers[0]}.comfy_quant"] = told
    save_file(tensors, tmp_path / "m.safetensors")
    found = open_published(tmp_path / "m.safetensors")
    with pytest.raises(DuoGenError, match="is quantised as mxfp8, which runs in ComfyUI alone"):
        found.load_dit()
    seen = {}
    found.load_dit(prepare=lambda module, formats: seen.update(formats) or _hold(module, formats))
    assert seen["transformer_blocks.0.attn1.to_q"] == "mxfp8"  # a node's own layers take it
    tensors[f"{layers[0]}.comfy_quant"] = torch.zeros(8, dtype=torch.uint8)
    save_file(tensors, tmp_path / "m.safetensors")
    fails(tmp_path / "m.safetensors", "does not say how its layer is quantised")


def _hold(module, formats):
    from duogen_core.weights.quantised import ScaledLinear

    for layer in formats:
        module.get_submodule(layer).__class__ = ScaledLinear
