"""Qwen-VL models in GGUF pairs, against the same weights in the module they were written from."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.errors import DuoGenError
from duogen_core.mllm.gguf import find_mmproj
from duogen_core.mllm.loading import detect_family, load_mllm
from duogen_core.weights.gguf_layers import PackedEmbedding, PackedLinear, unpack_layers
from tests.core.gguf_files import write_causal, write_gguf, write_pair
from tests.core.mllm_families import CONTEXTS, SIZES, another, lively, written

CONTEXT = CONTEXTS["ends with a picture"]
FAMILIES = ("qwen2_5_vl", "qwen3_vl")  # of which GGUF files are read


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request):
    made = lively(request.param)
    with torch.no_grad():  # what the files hold: matrices of the tower in half precision
        for name, weight in made.model.named_parameters():
            if "visual" in name and weight.ndim > 1:
                weight.copy_(weight.half().float())
    return made


def states(model, context=CONTEXT):
    torch.manual_seed(1)
    connector = Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24)).eval()
    return model.encode(context, connector).states


def test_a_pair_writes_what_the_same_weights_in_safetensors_write(mllm, tmp_path) -> None:
    path = write_pair(tmp_path, mllm, kind=None)
    back = load_mllm(path, torch.float32)
    assert type(back) is type(mllm) and back.model.lm_head.weight is back.model.get_input_embeddings().weight
    state = back.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in mllm.model.state_dict().items())
    mllm.save_pretrained(tmp_path / "folder")
    reference = load_mllm(tmp_path / "folder")
    assert torch.equal(states(back), states(reference))
    assert written(back, CONTEXT, max_new_tokens=8) == written(reference, CONTEXT, max_new_tokens=8)
    assert back.tokenizer.get_vocab() == mllm.tokenizer.get_vocab()
    text = "Draw a <|im_end|> e\u0301 12 <BOV>?"
    assert back.tokenizer.encode(text) == mllm.tokenizer.encode(text)


@pytest.mark.parametrize("vision", [None, "Q8_0"])
def test_layers_stay_in_their_blocks(mllm, tmp_path, vision, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.loading.packed_dtype", lambda device: torch.float32)
    path = write_pair(tmp_path, mllm, vision_kind=vision)
    back = load_mllm(path)
    assert isinstance(back.model.get_input_embeddings(), PackedEmbedding)
    packed = [name for name, layer in back.model.named_modules() if isinstance(layer, PackedLinear)]
    assert len(packed) >= 7 * SIZES["layers"] + 1 and any("visual" in name for name in packed) == (vision is not None)
    assert not vision or "model.visual.blocks.0.attn.qkv" in packed
    whole = load_mllm(path, torch.float32)
    assert not any(isinstance(layer, (PackedLinear, PackedEmbedding)) for layer in whole.model.modules())
    for context in CONTEXTS.values():
        assert torch.allclose(states(back, context), states(whole, context), atol=1e-4)
    assert (states(back) - states(another(mllm))).abs().max() < 0.2 * states(another(mllm)).abs().max()
    ours = states(back)
    unpack_layers(back.model, torch.float32)
    assert not any(isinstance(layer, (PackedLinear, PackedEmbedding)) for layer in back.model.modules())
    assert back.model.lm_head.weight is back.model.get_input_embeddings().weight
    back.clear_cache()
    assert torch.allclose(states(back), ours, atol=1e-4)


def test_half_precision_where_the_processor_has_it(mllm, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.loading.packed_dtype", lambda device: torch.bfloat16)
    back = load_mllm(write_pair(tmp_path, mllm))
    assert back.model.model.visual.patch_embed.proj.weight.dtype == torch.bfloat16
    assert back.model.get_input_embeddings().weight.dtype == torch.uint8
    assert states(back).isfinite().all()


@pytest.mark.parametrize(
    ("model", "beside", "chosen"),
    [
        ("Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", ["mmproj-F16.gguf"], "mmproj-F16.gguf"),
        ("Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf", ["mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (
            "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf",
            ["mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf", "mmproj-Qwen3-VL-8B-F16.gguf"],
            "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf",
        ),
        (
            "Qwen3VL-8B-Instruct-Q8_0.gguf",
            ["mmproj-Qwen3VL-8B-Instruct-Q8_0.gguf", "mmproj-F16.gguf"],
            "mmproj-Qwen3VL-8B-Instruct-Q8_0.gguf",
        ),
        ("Qwen2.5-VL-7B.i1-Q4_K_M.gguf", ["Qwen2.5-VL-7B.mmproj-f16.gguf"], "Qwen2.5-VL-7B.mmproj-f16.gguf"),
        (
            "Qwen2.5-VL-72B-Q8_0-00001-of-00003.gguf",
            ["Qwen2.5-VL-72B-mmproj-f16.gguf", "Qwen2.5-VL-72B-Q8_0-00002-of-00003.gguf"],
            "Qwen2.5-VL-72B-mmproj-f16.gguf",
        ),
    ],
)
def test_the_mmproj_beside_a_model_is_found_by_the_names_people_give(tmp_path, model, beside, chosen) -> None:
    for name in (model, *beside):
        (tmp_path / name).touch()
    assert find_mmproj(tmp_path / model).name == chosen


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        (
            ["mmproj-F16.gguf", "mmproj-BF16.gguf"],
            r"Several files beside .* can be its vision .*; keep one of them there\.$",
        ),
        ([], "no mmproj of it lies beside it; put its mmproj there as mmproj-Qwen2.5-VL-7B.gguf, without"),
        (["mmproj-Qwen3-VL-8B-F16.gguf"], r"\(mmproj-Qwen3-VL-8B-F16.gguf is named for another model\); put its"),
        (["mmproj-a.gguf", "mmproj-b.gguf"], r"\(mmproj-a.gguf, mmproj-b.gguf are named for another model\); put its"),
    ],
)
def test_without_exactly_one_mmproj_a_sentence_says_so(tmp_path, beside, sentence) -> None:
    for name in ("Qwen2.5-VL-7B-Q4_K_M.gguf", *beside):
        (tmp_path / name).touch()
    with pytest.raises(DuoGenError, match=sentence):
        find_mmproj(tmp_path / "Qwen2.5-VL-7B-Q4_K_M.gguf")


def test_the_name_that_is_asked_for_is_found(tmp_path) -> None:
    model, name = tmp_path / "Qwen2.5-VL-7B-Q4_K_M.gguf", "mmproj-Qwen2.5-VL-7B.gguf"
    for each in (model.name, "mmproj-Qwen3-VL-8B-F16.gguf", name):
        (tmp_path / each).touch()
    assert find_mmproj(model).name == name


def test_a_named_mmproj_is_taken(mllm, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write_pair(tmp_path, mllm, mmproj="elsewhere/eyes.gguf")
    with pytest.raises(DuoGenError, match="no mmproj of it lies beside it"):
        load_mllm(path)
    assert load_mllm(path, mmproj=tmp_path / "elsewhere" / "eyes.gguf").model_type == mllm.model_type


def test_what_does_not_go_together_is_refused(mllm, tmp_path) -> None:
    path = write_pair(tmp_path, mllm)
    other = next(name for name in FAMILIES if name != mllm.model_type)
    (tmp_path / "other").mkdir()
    write_pair(tmp_path / "other", lively(other))
    foreign = tmp_path / "other" / "mmproj-F16.gguf"
    with pytest.raises(DuoGenError, match=r"is the mmproj of Qwen.*; model-Q8_0.gguf needs one of Qwen"):
        load_mllm(path, mmproj=foreign)
    with pytest.raises(DuoGenError, match="an mmproj, the vision of a model alone"):
        load_mllm(foreign)
    with pytest.raises(DuoGenError, match=r"is a GGUF file of the architecture 'qwen.*'; expected an mmproj"):
        load_mllm(path, mmproj=path)
    wider = lively(mllm.model_type, hidden_size=128, heads=4)
    (tmp_path / "wider").mkdir()
    write_pair(tmp_path / "wider", wider)
    with pytest.raises(DuoGenError, match="128 numbers a token, but that in model-Q8_0.gguf is 64 wide"):
        load_mllm(path, mmproj=tmp_path / "wider" / "mmproj-F16.gguf")


def test_other_architectures_are_refused_by_name(tmp_path) -> None:
    for architecture, sentence in (
        ("qwen3vlmoe", "with experts"),
        ("llama", "of the architecture 'llama'; as an MLLM this pack reads qwen2vl, qwen3vl"),
        ("t5", r"of the architecture 't5'; as an MLLM .* which can look at images\.$"),
        ("clip", "the vision of a model alone"),
    ):
        path = write_gguf(tmp_path / f"{architecture}.gguf", architecture, {"a": torch.zeros(4).numpy()})
        with pytest.raises(DuoGenError, match=sentence):
            detect_family(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clip.projector_type": "qwen2vl_merger"}, "mmproj of Qwen2-VL, the generation before"),
        ({"clip.projector_type": "ldp"}, r"mmproj of another model \(ldp\)"),
        ({"clip.projector_type": ["ldp"]}, "mmproj of another model"),
        (
            dict.fromkeys(("qwen2vl.rope.dimension_sections", "qwen3vl.rope.dimension_sections"), ["x"] * 4),
            "sections are",
        ),
        ({"clip.vision.attention.head_count": "two"}, "its note clip.vision.attention.head_count is missing"),
        ({"clip.vision.attention.head_count": 0}, "does not describe a qwen"),
        ({"qwen2vl.block_count": 10**6, "qwen3vl.block_count": 10**6}, "num_hidden_layers"),
        ({"qwen2vl.attention.head_count": 3, "qwen3vl.attention.head_count": 3}, "gguf"),
        ({"qwen2vl.rope.dimension_sections": [1, 1, 1], "qwen3vl.rope.dimension_sections": [1, 1, 1]}, "mrope_section"),
    ],
)
def test_wrong_notes_are_refused_in_a_sentence(mllm, tmp_path, change, sentence) -> None:
    with pytest.raises(DuoGenError, match=sentence):
        load_mllm(write_pair(tmp_path, mllm, **change))


@pytest.mark.parametrize("key", ["clip.vision.image_mean", "clip.vision.fullatt_block_indexes"])
def test_notes_of_another_type_count_as_missing(mllm, tmp_path, key) -> None:
    assert load_mllm(write_pair(tmp_path, mllm, **{key: ["x", "y", "z"]})).model_type == mllm.model_type


def test_a_missing_tensor_is_named(mllm, tmp_path, monkeypatch) -> None:
    import tests.core.gguf_files as files

    real = files.write_gguf

    def without(path, architecture, tensors, notes):
        tensors.pop("blk.1.ffn_up.weight", None)
        return real(path, architecture, tensors, notes)

    monkeypatch.setattr(files, "write_gguf", without)
    with pytest.raises(DuoGenError, match=r"1 of \d+ tensors are missing \(model.language_model.layers.1.mlp.up_proj"):
        load_mllm(write_pair(tmp_path, mllm))


def test_a_language_model_without_vision_says_what_it_is(tmp_path) -> None:
    from tests.core.llm.test_gguf_model import tiny
    from tests.core.mllm_families import tokenizer

    path = write_causal(tmp_path / "text.gguf", tiny("qwen2", tokenizer()), "qwen2", tokenizer())
    with pytest.raises(
        DuoGenError, match="architecture 'qwen2'; as an MLLM this pack reads.* can plan: on the command line"
    ):
        load_mllm(path)


def test_what_quantised_weights_cannot_do_is_said(mllm, tmp_path, capsys) -> None:
    from duogen_core import cli
    from duogen_core.mllm.adapter import read_adapter
    from duogen_core.mllm.loading import load_with_bov

    path = write_pair(tmp_path, mllm)
    with pytest.raises(DuoGenError, match="train from the model's safetensors"):
        load_with_bov(path)
    assert cli.main(["convert", str(path), str(tmp_path / "a.safetensors")]) == 2
    assert "convert" in capsys.readouterr().err and not (tmp_path / "a.safetensors").exists()
    lora = {f"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{part}.weight": matrix
            for part, matrix in (("A", torch.zeros(2, 64)), ("B", torch.zeros(64, 2)))}  # fmt: skip
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(DuoGenError, match="cannot be applied to a language model in GGUF"):
        read_adapter(tmp_path / "lora", load_mllm(path))


def test_a_dtype_that_is_asked_for_makes_it_whole(mllm, tmp_path) -> None:
    from duogen_core.device_options import Placement
    from duogen_core.placement import place_mllm

    path = write_pair(tmp_path, mllm)
    kept = place_mllm(load_mllm(path), Placement("cpu"))
    assert isinstance(kept.model.lm_head, PackedLinear)
    whole = place_mllm(load_mllm(path), Placement("cpu", "fp32"))
    assert whole.model.lm_head.weight.dtype == torch.float32 and states(whole).isfinite().all()
