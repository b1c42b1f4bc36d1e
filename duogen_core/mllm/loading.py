"""A model on disk -> an Mllm: a Hugging Face folder, or one of the single files ComfyUI keeps in `text_encoders`.

Looked at first: configuration, tokenizer, and the names and shapes of all tensors, from headers alone. Then the module
is built without memory and the tensors are put in as they come from the disk (mapped, where nothing has to be
converted), so that loading needs little more memory than the model. Whatever does not fit is named before that.
A GGUF file of the language model and the mmproj beside it: gguf.py; its layers stay in their blocks
(weights/gguf_layers.py), unless a dtype is given, in which they are made whole: faster, in more memory.
A single file has no configuration and no tokenizer: the first follows from its shapes, the second lies in a folder that
the caller names: the model's own, or ComfyUI's comfy/text_encoders/qwen25_tokenizer, which serves both families.
Layers in fp8 stay in fp8 (weights/quantised.py); other formats need layer classes that `prepare` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from duogen_core.devices import move, packed_dtype
from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.mllm import FAMILIES, family_class, family_of
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import BOV, IMAGE, IMAGE_PAD
from duogen_core.mllm.gguf import open_pair, tokenizer_of
from duogen_core.mllm.image_processor import image_processor_of, load_image_processor
from duogen_core.mllm.token_sampling import TokenSampling
from duogen_core.mllm.tokenizer import add_bov, load_tokenizer, start_bov
from duogen_core.weights.gguf import is_gguf
from duogen_core.weights.gguf_layers import tie_packed
from duogen_core.weights.headers import Entry, check_sizes
from duogen_core.weights.module import (
    FLOATS,
    build_empty,
    check_filled,
    check_module,
    fill_module,
    main_dtype,
    plain_entries,
    use_quantised_layers,
)
from duogen_core.weights.quantised import FP8, Prepare, is_extra, use_scaled_linear
from duogen_core.weights.reading import WeightFiles, find_weights

WHAT = "weights of the MLLM"
EMBEDDING = "model.language_model.embed_tokens"
FILE_MARKS = ("scaled_fp8",)  # tensors that say something of the whole file


def load_mllm(
    path: str | Path,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
    *,
    tokenizer: str | Path | None = None,
    mmproj: str | Path | None = None,
) -> Mllm:
    """Reads a Hugging Face folder, or one of ComfyUI's text encoder files, of any family. Never touches the network.

    dtype: None keeps the file's. prepare(module, formats) comes before the weights, to give layers other classes;
    formats names the quantised ones (weights/quantised.py). tokenizer: for a single file, a folder that holds one.
    mmproj: the vision of a GGUF file, where it does not lie beside it.
    """
    path = Path(path)
    if is_gguf(path):
        return _load_gguf(path, dtype, prepare, tokenizer, mmproj)
    family, config = detect_family(path)
    if path.is_dir():
        tokens, images = load_tokenizer(path), load_image_processor(path)
    else:
        tokens, images = _tokenizer_of_file(path, tokenizer), _picture_settings(family, tokenizer)
    weights = find_weights(path, WHAT)
    module = build(family, config, path, weights.entries)
    _check_tokenizer(family, tokens, module, path)
    family.check_parts(module, images, path)
    formats = check(family, module, weights, path)
    fill_module(
        module,
        weights,
        formats,
        rename=family.module_name,
        skip=FILE_MARKS,
        dtype=dtype or _common_dtype(weights),
        prepare=prepare or use_scaled_linear,
    )
    _tie(module, weights, formats)
    check_filled(module, formats, weights.files[0])
    mllm = family(module, tokens, images)
    mllm.generation = read_generation(path) if path.is_dir() else {}
    return mllm


def _load_gguf(path: Path, dtype: torch.dtype | None, prepare: Prepare | None, tokenizer: Any, mmproj: Any) -> Mllm:
    opened = open_pair(path, mmproj)
    family, weights = opened.family, opened.weights
    tokens = tokenizer_of(path, weights, tokenizer)
    module = build(family, opened.config, path, weights.entries)
    _check_tokenizer(family, tokens, module, path)
    family.check_parts(module, opened.images, path)
    formats = check(family, module, weights, path)
    whole = dtype is not None and prepare is None
    kept = dtype or packed_dtype(torch.device("cpu"))
    fill_module(module, weights, formats, dtype=kept, prepare=None if whole else prepare or use_quantised_layers)
    move(module, dtype=kept)  # what embeddings in blocks answer in
    if module.config.tie_word_embeddings and tie_packed(module, "lm_head"):
        formats = formats | {"lm_head": formats[EMBEDDING]}
    else:
        _tie(module, weights, formats)
    check_filled(module, formats, path)
    return family(module, tokens, opened.images)


def read_generation(folder: Path) -> dict[str, Any]:
    """Returns how a model's generation_config.json wants its tokens chosen: do_sample and what TokenSampling knows.

    {} where there is no such file. What is not taken from it: `TokenSampling.resolved`.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    config = read_json(file, "settings of a model's generation")
    if not isinstance(config, dict) or not isinstance(config.get("do_sample") or False, bool):
        raise DuoGenError(f"{file} is not a generation configuration; expected a JSON object, do_sample true or false.")
    names = [field.name for field in fields(TokenSampling)]
    values = {name: config[name] for name in names if config.get(name) is not None}
    try:
        TokenSampling(**values)
    except DuoGenError as error:
        raise DuoGenError(f"{file}: {error}") from None
    return values | ({"do_sample": True} if config.get("do_sample") else {})


def load_with_bov(folder: Path) -> tuple[Mllm, list[str]]:
    """Loads an MLLM to train, with a <BOV> of its own; also returns which rows of it were set anew (`start_bov`)."""
    if is_gguf(folder):
        raise DuoGenError(f"{folder} is a GGUF file, whose weights are quantised; train from the model's safetensors.")
    mllm = load_mllm(folder)
    if BOV not in mllm.tokenizer.get_vocab():
        tokenizer = load_tokenizer(folder)
        add_bov(tokenizer, mllm.model.get_input_embeddings().num_embeddings)
        own, mllm = mllm.generation, type(mllm)(mllm.model, tokenizer, mllm.image_processor)
        mllm.generation = own
    return mllm, start_bov(mllm.model, mllm.tokenizer)


def detect_family(path: Path) -> tuple[type[Mllm], dict[str, Any]]:
    """Returns the family, and its config.json or what follows from its shapes; loads nothing."""
    if is_gguf(path):
        opened = open_pair(path)
        return opened.family, opened.config
    if path.is_dir():
        if not (path / "config.json").is_file() and (files := sorted(path.glob("*.safetensors"))):
            names = ", ".join(file.name for file in files[:4])
            raise DuoGenError(f"{path} has no config.json, only weights ({names}); give the path of one of those.")
        return family_of(path), read_json(path / "config.json", "configuration of an MLLM")
    return infer_config(WeightFiles([path], WHAT), path)


def stored_in(path: str | Path, what: str = WHAT) -> tuple[torch.dtype, int]:
    """Returns the type of most weights that are not quantised, and the number of weights; from headers."""
    weights = open_pair(path).weights if is_gguf(path) else find_weights(path, what)
    total = sum(math.prod(entry.shape) for name, entry in weights.entries.items() if not is_extra(name))
    return main_dtype(weights), total


def infer_config(weights: WeightFiles, path: Path) -> tuple[type[Mllm], dict[str, Any]]:
    """Returns family and configuration of weights that come without one, from their names and shapes."""
    for model_type in FAMILIES:
        family = family_class(model_type)
        entries, _ = plain_entries(weights, path, family.module_name, FILE_MARKS)
        try:
            config = family.guess_config({name: entry.shape for name, entry in entries.items()})
        except DuoGenError as error:
            raise DuoGenError(f"{path} {error}") from None
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise DuoGenError(
                f"{path} looks like a {model_type} model but is not a whole one: {error} is not as expected."
            ) from None
        if config is not None:
            return family, config
    raise DuoGenError(
        f"{path} is not an MLLM that this pack knows: expected the language model and the vision tower of one of "
        f"{', '.join(FAMILIES)} in one file; a text encoder without a vision tower cannot look at images."
    )


def build(
    family: type[Mllm], config: dict[str, Any], path: Path, entries: Mapping[str, Entry] | None = None
) -> nn.Module:
    """Builds the module without memory for its weights. entries: the weights, which bound the number of layers."""
    where = path / "config.json" if path.is_dir() else path
    if entries is not None:
        check_sizes(config, entries, where)

    def make() -> nn.Module:
        try:
            return family.build(config)
        except ImportError:
            raise DuoGenError(f"a {family.model_type} model needs transformers 4.57 or newer.") from None

    return build_empty(make, where, f"a {family.model_type} model", real_buffers=True)


def check(family: type[Mllm], module: nn.Module, weights: WeightFiles, path: Path) -> dict[str, str]:
    """Checks names and shapes of all tensors; returns the quantised layers with their formats."""
    tied = ("lm_head.weight",) if module.config.tie_word_embeddings else ()
    return check_module(module, weights, path, "MLLM", rename=family.module_name, skip=FILE_MARKS, optional=tied)


def _tie(module: nn.Module, weights: WeightFiles, formats: Mapping[str, str]) -> None:
    """Makes embedding and output one matrix where the configuration says so, and the file does not say otherwise."""
    embedding, head = module.get_input_embeddings().weight, module.lm_head.weight
    own_head = "lm_head" in formats or (
        not head.is_meta and (head.dtype != embedding.dtype or not torch.equal(head, embedding))
    )
    if own_head and module.config.tie_word_embeddings:  # tying would drop it
        raise DuoGenError(
            f"{weights.files[0]} holds an output matrix of its own (lm_head.weight), but the configuration says "
            f"tie_word_embeddings; set that to false, or leave lm_head.weight out."
        )
    module.tie_weights()


def _common_dtype(weights: WeightFiles) -> torch.dtype | None:
    """Returns the type for all unquantised weights: None where they are of one type already, else the embedding's."""
    kinds = {entry.dtype for name, entry in weights.entries.items() if entry.dtype in FLOATS and not is_extra(name)}
    if len(kinds) == 1 and not any(entry.dtype in FP8 for entry in weights.entries.values()):
        return None
    embedding = next((e.dtype for n, e in weights.entries.items() if n.endswith("embed_tokens.weight")), "BF16")
    return FLOATS.get(embedding, torch.bfloat16)


def _tokenizer_of_file(path: Path, folder: str | Path | None) -> Any:
    if folder is None:
        raise DuoGenError(
            f"{path} holds weights alone; name a folder with their tokenizer as well: the model's Hugging Face folder, "
            "or comfy/text_encoders/qwen25_tokenizer of ComfyUI."
        )
    return load_tokenizer(folder)


def _check_tokenizer(family: type[Mllm], tokenizer: Any, module: nn.Module, path: Path) -> None:
    """Refuses a tokenizer of another model, which gives ids that this one has no rows for."""
    rows, last = module.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values(), default=0)
    if last >= rows:
        raise DuoGenError(
            f"The tokenizer's last token has the id {last}, but the MLLM in {path} knows {rows} tokens; give the one "
            f"of this model."
        )
    known = tokenizer.get_vocab()
    if family.image_token not in known or (family.image_token == IMAGE and IMAGE_PAD in known):
        stand = IMAGE_PAD if IMAGE_PAD in known else "no token"
        raise DuoGenError(
            f"The tokenizer is not that of {path}: images of {family.model_type} stand at {family.image_token}, "
            f"of this tokenizer at {stand}; give the one of this model."
        )
    said = module.config.image_token_id  # training finds the places of pictures by it, drawing by the tokenizer
    if path.is_dir() and said != known[family.image_token]:  # that of a file alone is the published one
        raise DuoGenError(
            f"The configuration of {path} says that {said} is the token of an image, but the tokenizer gives "
            f"{family.image_token} the id {known[family.image_token]}; they belong to two models."
        )


def _picture_settings(family: type[Mllm], folder: str | Path | None) -> Any:
    if folder is not None and (Path(folder) / "preprocessor_config.json").is_file():
        return load_image_processor(folder)
    return image_processor_of(family.picture_settings, Path(folder or ".") / "preprocessor_config.json")
