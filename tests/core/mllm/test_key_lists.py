"""Published MLLMs, by the names and shapes of their tensors alone: each loads whole, and anything else is refused.

key_lists/mllm-*.txt: a checkpoint's tensors, its config.json and where both are known from.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.mllm import family_class
from duogen_core.mllm.loading import build, check, infer_config
from duogen_core.weights.headers import Entry
from duogen_core.weights.reading import WeightFiles
from tests.core.headers import LISTS, hollow, key_list

NAMES = [file.stem for file in sorted(LISTS.glob("mllm-*.txt"))]
QUICK = (
    "mllm-qwen2.5-vl-3b", "mllm-qwen2.5-vl-7b", "mllm-qwen3-vl-8b", "mllm-llava-onevision-0.5b",
    "mllm-llava-onevision-7b", "mllm-llava-onevision-0.5b.authors", "mllm-llava-onevision-7b.authors",
)  # fmt: skip
every = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


def note(name: str, key: str) -> str:
    lines = (LISTS / f"{name}.txt").read_text("utf-8").splitlines()
    return next(line.removeprefix(f"# {key}: ") for line in lines if line.startswith(f"# {key}: "))


@lru_cache(maxsize=1)
def published(name: str):
    """Family and empty module of a published configuration."""
    config = json.loads(note(name, "config"))
    family = family_class(config["model_type"])
    return family, build(family, config, Path(name))


def listed(shapes: dict[str, tuple[int, ...]]) -> WeightFiles:
    weights = WeightFiles([])
    weights.entries = {name: Entry("BF16", shape) for name, shape in shapes.items()}
    return weights


@every
def test_a_published_checkpoint_fits(name) -> None:
    shapes = key_list(name)
    assert sum(map(math.prod, shapes.values())) == int(note(name, "parameters"))
    family, module = published(name)
    assert check(family, module, listed(shapes), Path(name)) == {}
    assert module.get_input_embeddings().weight.is_meta  # nothing was filled in
    tied = not any(key.endswith("lm_head.weight") for key in shapes)
    assert module.config.tie_word_embeddings is tied


@every
def test_a_file_without_a_configuration_gets_the_published_one(name) -> None:
    """Everything that decides a number, not only what decides a shape."""
    family, module = published(name)
    guessed, config = infer_config(listed(key_list(name)), Path("file.safetensors"))
    assert guessed is family
    other = build(family, config, Path("file.safetensors"))
    assert check(family, other, listed(key_list(name)), Path(name)) == {}
    told = {"bos_token_id", "eos_token_id", "max_window_layers", "sliding_window", "initializer_range", "dtype"}
    for part in ("text_config", "vision_config"):
        want, have = (getattr(m.config, part).to_dict() for m in (module, other))
        differs = {key for key in want.keys() | have.keys() if want.get(key) != have.get(key)} - told
        differs -= {"rope_scaling", "spatial_patch_size", "in_chans", "layer_types", "architectures"}
        assert differs <= {"vision_token_id"}, differs  # transformers 4 keeps it; no model reads it
    for module_, other_ in zip(module.modules(), other.modules()):
        if hasattr(module_, "inv_freq"):
            assert module_.inv_freq.equal(other_.inv_freq)


MUTATIONS = {
    "renamed": (lambda s, last: {k.replace(last, last + "x"): v for k, v in s.items()}, "are missing .*do not belong"),
    "missing": (lambda s, last: {k: v for k, v in s.items() if k != last}, "1 of .* tensors are missing"),
    "one more": (lambda s, last: {**s, "model.extra.weight": (2, 2)}, "1 do not belong there .*extra"),
    "wrong shape": (lambda s, last: {**s, last: (7,)}, r"1 have another shape .*is \[7\] instead of"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@every
def test_a_changed_list_is_refused_by_name(name, mutation) -> None:
    family, module = published(name)
    shapes = key_list(name)
    last = [key for key in shapes if key.endswith("post_attention_layernorm.weight")][-1]
    change, message = MUTATIONS[mutation]
    with pytest.raises(DuoGenError, match=message) as caught:
        check(family, module, listed(change(shapes, last)), Path(name))
    assert mutation == "one more" or family.module_name(last) in str(caught.value)


@every
def test_the_weights_of_another_model_are_refused(name) -> None:
    family, module = published(name)
    for other in NAMES:
        if other != name:
            with pytest.raises(DuoGenError, match="are missing|do not belong|have another shape"):
                check(family, module, listed(key_list(other)), Path(other))


def test_packed_and_filled_up_weights_have_the_shape_they_stand_for() -> None:
    """nvfp4: two numbers a byte, rows and columns in blocks of 16; 3420 is not one of whole blocks."""
    name = "mllm-qwen2.5-vl-7b"
    layer = "visual.blocks.0.mlp.gate_proj"
    shapes = key_list(name)
    assert shapes[f"{layer}.weight"] == (3420, 1280)
    weights = listed(shapes | {f"{layer}.weight": (3424, 640), f"{layer}.weight_scale": (3424, 80)})
    weights.metadata["_quantization_metadata"] = json.dumps({"layers": {layer: {"format": "nvfp4"}}})
    assert check(*published(name), weights, Path(name)) == {f"model.{layer}": "nvfp4"}
    weights.entries[f"{layer}.weight"] = Entry("U8", (3440, 640))
    with pytest.raises(DuoGenError, match=r"gate_proj\.weight is \[3440, 1280\] instead of \[3420, 1280\]"):
        check(*published(name), weights, Path(name))
    with pytest.raises(DuoGenError, match="holds no weight of that layer"):
        weights = listed(shapes)
        weights.metadata["_quantization_metadata"] = json.dumps({"layers": {"visual.extra": {"format": "nvfp4"}}})
        check(*published(name), weights, Path(name))


def test_a_real_file_of_the_full_size(tmp_path) -> None:
    """A header like that of the published 7B, and a hole of 16 GB where its tensors would be."""
    file = hollow(tmp_path / "qwen_2.5_vl_7b.safetensors", key_list("mllm-qwen2.5-vl-7b"))
    weights = WeightFiles([file])
    family, _ = infer_config(weights, file)
    assert family.model_type == "qwen2_5_vl" and weights.bytes == 16584333312
    assert check(*published("mllm-qwen2.5-vl-7b"), weights, file) == {}
