"""Reading MLLMs from disk: folders, shards, ComfyUI's single files, fp8; and every fault a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.errors import DuoGenError
from duogen_core.mllm import family_class
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.image_processor import image_processor_of
from duogen_core.mllm.loading import load_mllm
from duogen_core.mllm.tokenizer import OLDER_FILES, load_tokenizer
from duogen_core.weights.headers import shapes_of
from duogen_core.weights.quantised import ScaledLinear
from tests.core.mllm_families import (
    CONTEXTS,
    CREATE,
    MODULES,
    SIZES,
    another,
    authors_name,
    lively,
    published_name,
    tokenizer,
    written,
)

CONTEXT = CONTEXTS["ends with a picture"]


@pytest.fixture(scope="module", params=CREATE)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def mllm(family) -> Mllm:
    return lively(family)


def test_save_and_load(mllm, tmp_path) -> None:
    mllm.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    prepared = []
    back = load_mllm(tmp_path, prepare=lambda model, _: prepared.extend(p.is_meta for p in model.parameters()))
    assert type(back) is type(mllm) and not back.model.training and prepared and all(prepared)
    assert back.model.lm_head.weight is back.model.get_input_embeddings().weight
    assert all(parameter.requires_grad for parameter in back.model.parameters())
    assert load_mllm(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert written(back, CONTEXT, max_new_tokens=8) == written(another(mllm), CONTEXT, max_new_tokens=8)
    connector = Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24)).eval()
    assert torch.equal(back.encode(CONTEXT, connector).states, another(mllm).encode(CONTEXT, connector).states)


@pytest.fixture
def shards(mllm, tmp_path):
    mllm.model.save_pretrained(tmp_path, max_shard_size="100KB")
    mllm.tokenizer.save_pretrained(tmp_path)
    mllm.image_processor.save_pretrained(tmp_path)
    return tmp_path


def test_several_weight_files(mllm, shards) -> None:
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    state = load_mllm(shards).model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in mllm.model.state_dict().items())


def test_a_broken_shard_is_named(shards) -> None:
    second = sorted(shards.glob("model-*.safetensors"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-10])
    with pytest.raises(DuoGenError, match=rf"{second.name} is cut off"):
        load_mllm(shards)
    second.write_bytes(b"\x00" * 4 + whole[4:])
    with pytest.raises(DuoGenError, match=rf"{second.name} is not"):
        load_mllm(shards)
    second.unlink()
    with pytest.raises(DuoGenError, match=rf"missing.*{second.name}"):
        load_mllm(shards)


def test_two_candidates(shards) -> None:
    first = next(shards.glob("model-*.safetensors"))
    (shards / "other.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(DuoGenError, match=r"more than one set of weights.*other\.safetensors"):
        load_mllm(shards)
    (shards / "config.json").unlink()
    with pytest.raises(DuoGenError, match=r"no config\.json, only weights \(model-"):
        load_mllm(shards)


def test_wrong_folders_are_named(tmp_path) -> None:
    mllm = lively("qwen2_5_vl")
    with pytest.raises(DuoGenError, match=r"no config\.json"):
        load_mllm(tmp_path)
    mllm.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = {k: v.clone() for k, v in load_file(weights).items()}  # not mapped: the file is overwritten
    save_file({k: v for k, v in whole.items() if "layers.1.mlp.up_proj" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(DuoGenError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_mllm(tmp_path)
    save_file(whole | {"visual.extra": torch.zeros(2)}, weights, metadata={"format": "pt"})
    with pytest.raises(DuoGenError, match=r"visual\.extra"):
        load_mllm(tmp_path)
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DuoGenError, match=r"pickle"):
        load_mllm(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(whole, weights, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide", "text_config": 3}))
    with pytest.raises(DuoGenError, match="does not describe"):
        load_mllm(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(DuoGenError, match="'llama'"):
        load_mllm(tmp_path)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(DuoGenError, match="mrope_section"):
        MODULES["qwen2_5_vl"].new_model(tokenizer(), hidden_size=100)
    with pytest.raises(DuoGenError, match="deepstack"):
        MODULES["qwen3_vl"].new_model(tokenizer(), deepstack=(0, 7))


def test_the_bundled_size() -> None:
    with torch.device("meta"):
        model = MODULES["qwen2_5_vl"].new_model(tokenizer())
    text = model.config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (192, 5, 6)
    assert sum(p.numel() for p in model.parameters()) < 6_000_000


# -- single files -----------------------------------------------------------------------------------------------------

PUBLISHED_ROPE = {"qwen2_5_vl": (16, 24, 24), "qwen3_vl": (24, 20, 20)}


@pytest.fixture(scope="module")
def published(family) -> Mllm:
    """As small as a model with the published head sizes can be, with a head of its own."""
    if family == "llava_onevision":
        return smallest_llava()
    small = lively(
        family, hidden_size=256, mrope_section=PUBLISHED_ROPE[family], vision_heads=16, vision_hidden_size=256,
        patch_size=14 if family == "qwen2_5_vl" else 16,
    )  # fmt: skip
    shapes = shapes_of(small.model)
    config = family_class(family).guess_config(shapes)
    torch.manual_seed(1)
    module = family_class(family).build(config).eval()
    assert module.lm_head.weight is not module.get_input_embeddings().weight
    assert shapes_of(module) == shapes
    return family_class(family)(module, small.tokenizer, small.image_processor)


def smallest_llava() -> Mllm:
    """Squares of 384 pixels and the published tiles, and little else."""
    words = tokenizer("llava_onevision")
    config = {
        "image_token_index": words.convert_tokens_to_ids("<image>"), "video_token_index": len(words),
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2", "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 96, "vocab_size": len(words), "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 16,
            "intermediate_size": 48, "image_size": 384, "patch_size": 14, "vision_use_head": False,
        },
    }  # fmt: skip
    torch.manual_seed(1)
    family = family_class("llava_onevision")
    images = image_processor_of(family.picture_settings, Path("preprocessor_config.json"))
    return family(family.build(config | {"model_type": "llava_onevision"}).eval(), words, images)


def flat(mllm: Mllm) -> dict[str, torch.Tensor]:
    """The weights under the names that ComfyUI's files have: flat, but for Qwen3-VL 4B and 8B."""
    state = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    if mllm.model_type == "qwen3_vl":
        return state
    if mllm.model_type == "llava_onevision":  # as published, before transformers 4.52
        return {published_name(name): tensor for name, tensor in state.items()}
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in state.items()
    }


@pytest.fixture
def words(tmp_path, family):
    """A tokenizer in the form ComfyUI ships: vocab.json, merges.txt, tokenizer_config.json."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer(family).backend_tokenizer.model.save(str(folder))
    added = {
        str(number): {"content": token.content, "special": token.special}
        for number, token in tokenizer(family).added_tokens_decoder.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


def test_a_tokenizer_in_the_older_form(words, family) -> None:
    ours, theirs = load_tokenizer(words), tokenizer(family)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in ("Draw a large blue square.", "日本 12 🎨\n\n <BOV>", "<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)
    config = (words / OLDER_FILES[2]).read_text()
    for wrong in ("{}", '{"added_tokens_decoder": []}', "[]"):
        (words / OLDER_FILES[2]).write_text(wrong)
        with pytest.raises(DuoGenError, match="tokenizer_config.json lists no control tokens"):
            load_tokenizer(words)
    (words / OLDER_FILES[2]).write_text(config)
    (words / OLDER_FILES[1]).unlink()
    with pytest.raises(DuoGenError, match=r"no tokenizer\.json, nor .*merges\.txt"):
        load_tokenizer(words)


def test_the_folder_says_which_family_it_is(mllm, tmp_path) -> None:
    mllm.save_pretrained(tmp_path)
    assert type(load_mllm(tmp_path)) is type(mllm)


def test_a_single_file(published, words, tmp_path) -> None:
    file = tmp_path / "qwen_vl.safetensors"
    save_file(flat(published), file)
    with pytest.raises(DuoGenError, match=r"weights alone.*qwen25_tokenizer"):
        load_mllm(file)
    back = load_mllm(file, tokenizer=words)
    assert type(back) is type(published)
    state = back.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in published.model.state_dict().items())
    assert back.image_processor.patch_size == published.image_processor.patch_size
    assert list(back.image_processor.image_mean) == type(published).picture_settings["image_mean"]
    half = load_mllm(file, dtype=torch.float16, tokenizer=words).model
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@pytest.mark.parametrize("naming", ["module", "published", "authors"])
def test_llava_under_all_its_names(tmp_path, naming) -> None:
    """As transformers writes them today, as the published files were written, and as the authors' own code does."""
    mllm = smallest_llava()
    rename = {"module": str, "published": published_name, "authors": authors_name}[naming]
    state = {rename(name): tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    assert len(state) == len(mllm.model.state_dict())
    file = tmp_path / "llava.safetensors"
    save_file(state, file)
    mllm.tokenizer.save_pretrained(tmp_path)
    back = load_mllm(file, tokenizer=tmp_path).model.state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in mllm.model.state_dict().items())


def test_a_single_file_without_what_it_needs(published, words, tmp_path) -> None:
    file, state = tmp_path / "encoder.safetensors", flat(published)
    save_file({k: v for k, v in state.items() if not k.endswith("lm_head.weight")}, file)
    with pytest.raises(DuoGenError, match=r"missing \(lm_head\.weight\)"):
        load_mllm(file, tokenizer=words)
    save_file({k: v for k, v in state.items() if "visual" not in k and "vision" not in k}, file)
    with pytest.raises(DuoGenError, match="without a vision tower"):
        load_mllm(file, tokenizer=words)
    save_file({k: v for k, v in state.items() if "embed_tokens" not in k}, file)
    with pytest.raises(DuoGenError, match=r"not a whole one: .*embed_tokens"):
        load_mllm(file, tokenizer=words)
    if published.model_type == "qwen2_5_vl":  # the width of a head follows from no shape of this family
        narrow = {
            k: v[:32].contiguous() if k.endswith("layers.0.self_attn.q_proj.weight") else v for k, v in state.items()
        }
        save_file(narrow, file)
        with pytest.raises(DuoGenError, match="of another size than the published Qwen2.5-VL models"):
            load_mllm(file, tokenizer=words)
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(DuoGenError, match="not an MLLM that this pack knows"):
        load_mllm(file, tokenizer=words)


# -- fp8 --------------------------------------------------------------------------------------------------------------


def in_fp8(state: dict[str, torch.Tensor], form: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """ComfyUI's four ways to store a model in fp8, and the file's metadata."""
    out, layers = {}, {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if not name.endswith("proj.weight") or tensor.ndim != 2:
            out[name] = tensor.to(torch.bfloat16)
            continue
        scale = tensor.abs().max().float() / 448 if form != "cast" else torch.ones(())
        out[name] = (tensor / scale).to(torch.float8_e4m3fn)
        note = {"format": "float8_e4m3fn"}
        if form == "comfy_quant":
            out[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        if form in ("comfy_quant", "metadata"):
            out[f"{layer}.weight_scale"] = scale
            layers[layer] = note
        if form == "scaled_fp8":
            out[f"{layer}.scale_weight"], out[f"{layer}.scale_input"] = scale, torch.ones(())
    if form == "scaled_fp8":
        out["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return out, {"_quantization_metadata": json.dumps({"layers": layers})} if form == "metadata" else {}


@pytest.mark.parametrize("form", ["comfy_quant", "metadata", "scaled_fp8", "cast"])
def test_fp8_stays_fp8_and_gives_the_same(published, words, tmp_path, form) -> None:
    file = tmp_path / "qwen_vl_fp8.safetensors"
    state, metadata = in_fp8(flat(published), form)
    save_file(state, file, metadata=metadata)
    back = load_mllm(file, tokenizer=words, dtype=torch.float32)
    layers = [module for module in back.model.modules() if isinstance(module, ScaledLinear)]
    assert len(layers) > 20 and all(layer.weight.dtype == torch.float8_e4m3fn for layer in layers)
    whole = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if name in flat(published):
            scale = state.get(f"{layer}.weight_scale", state.get(f"{layer}.scale_weight"))
            whole[name] = tensor.float() * (scale if name.endswith(".weight") and scale is not None else 1)
    reference = published.model.state_dict()
    reference = {k: whole[n] for k, n in zip(reference, flat(published))}
    again = type(published).build(type(published).guess_config(shapes_of(published.model)))
    again.load_state_dict(reference)
    expected = type(published)(again.eval(), back.tokenizer, back.image_processor)
    connector = Connector(ConnectorConfig(back.num_layers, back.hidden_size, 24)).eval()
    ours, theirs = back.encode(CONTEXT, connector).states, expected.encode(CONTEXT, connector).states
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert written(load_mllm(file, tokenizer=words), CONTEXT, max_new_tokens=3)  # in the file's own bf16


def test_formats_that_need_comfyui_say_so(published, words, tmp_path) -> None:
    file, state = tmp_path / "int8.safetensors", flat(published)
    name = next(name for name in state if name.endswith("self_attn.q_proj.weight") and "vision" not in name)
    layer = name.removesuffix(".weight")
    note = torch.tensor(list(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)
    state |= {name: state[name].to(torch.int8), f"{layer}.weight_scale": torch.ones(()), f"{layer}.comfy_quant": note}
    save_file(state, file)
    with pytest.raises(DuoGenError, match=r"q_proj is quantised as int8_tensorwise, which runs in ComfyUI alone"):
        load_mllm(file, tokenizer=words)
    told, kept = {}, {}

    class Kept(torch.nn.Linear):
        """As ComfyUI's own layers do, it takes what the file says of it."""

        def _load_from_state_dict(self, state, prefix, *rest):
            kept.update({key.removeprefix(prefix): tensor for key, tensor in state.items()})
            self.weight = torch.nn.Parameter(torch.zeros(self.weight.shape), requires_grad=False)

    def prepare(module, formats):
        told.update(formats)
        for layer in formats:
            module.get_submodule(layer).__class__ = Kept

    load_mllm(file, tokenizer=words, prepare=prepare)
    assert list(told.values()) == ["int8_tensorwise"] and next(iter(told)).startswith("model.language_model.layers.0.")
    assert kept.keys() - {"bias"} == {"weight", "weight_scale", "comfy_quant"} and torch.equal(
        kept["comfy_quant"], note
    )
    assert kept["weight"].dtype == torch.int8
