"""A model on disk -> an Mllm: a Hugging Face folder, or one of the single files ComfyUI keeps in `text_encoders`.

Looked at first: configuration, tokenizer, and the names and shapes of all tensors, from headers alone. Then the module
is built without memory and the tensors are put in as they come from the disk (mapped, where nothing has to be
converted), so that loading needs little more memory than the model. Whatever does not fit is named before that.
A single file has no configuration and no tokenizer: the first follows from its shapes, the second lies in a folder that
the caller names: the model's own, or ComfyUI's comfy/text_encoders/qwen25_tokenizer, which serves both families.
Layers in fp8 stay in fp8 (weights/quantised.py); other formats need layer classes that `prepare` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.weights.headers import (
    Entry,
    check_sizes,
    check_tensors,
    shapes_of,
)
from duogen_core.weights.quantised import (
    FP8,
    Prepare,
    check_names,
    dequantised,
    is_extra,
    layer_formats,
    plain_entry,
    unified,
    use_scaled_linear,
)
from duogen_core.weights.reading import WeightFiles, find_weights

if TYPE_CHECKING:
    from duogen_core.mllm.base import Mllm

WHAT = "weights of the MLLM"
FILE_MARKS = ("scaled_fp8",)  # tensors that say something of the whole file
BLOCKS = {"nvfp4": 16, "mxfp8": 32}  # weights in these formats have whole blocks of rows and columns
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
    *,
    tokenizer: str | Path | None = None,
    wanted: type[Mllm] | None = None,
) -> Mllm:
    """See Mllm.from_pretrained; `wanted` is the class it was called on."""
    from duogen_core.mllm.image_processor import load_image_processor
    from duogen_core.mllm.tokenizer import load_tokenizer

    path = Path(path)
    family, config = what_is(path)
    if wanted is not None and not issubclass(family, wanted):
        raise DuoGenError(
            f"{path} is a {family.model_type} model, and {wanted.__name__} reads {wanted.model_type} alone; "
            f"load it with {family.__name__}, or with Mllm, which takes every family."
        )
    if path.is_dir():
        words, eyes = load_tokenizer(path), load_image_processor(path)
    else:
        words, eyes = _tokenizer_of_file(path, tokenizer), _picture_settings(family, tokenizer)
    weights = find_weights(path, WHAT)
    module = build(family, config, path, weights.entries)
    _check_tokenizer(words, module, path)
    family.check_parts(module, eyes, path)
    formats = check(family, module, weights, path)
    if prepare is not None:
        prepare(module, formats)
    else:
        use_scaled_linear(module, formats)
    fill(family, module, weights, formats, dtype)
    return family(module, words, eyes)


def what_is(path: Path) -> tuple[type[Mllm], dict[str, Any]]:
    """Which family it is, and its config.json or what follows from its shapes; nothing is loaded."""
    from duogen_core.mllm import family_of

    if path.is_dir():
        if not (path / "config.json").is_file() and (files := sorted(path.glob("*.safetensors"))):
            names = ", ".join(file.name for file in files[:4])
            raise DuoGenError(f"{path} has no config.json, only weights ({names}); give the path of one of those.")
        return family_of(path), read_json(path / "config.json", "configuration of an MLLM")
    return guess(WeightFiles([path], WHAT), path)


def stored_in(path: str | Path, what: str = WHAT) -> tuple[torch.dtype, int]:
    """(what most of the weights that are not quantised are stored in, how many weights there are), from headers."""
    weights = find_weights(path, what)
    counts = {"BF16": 0}
    for name, entry in weights.entries.items():
        if entry.dtype in FLOATS and not is_extra(name):
            counts[entry.dtype] = counts.get(entry.dtype, 0) + math.prod(entry.shape)
    total = sum(math.prod(entry.shape) for name, entry in weights.entries.items() if not is_extra(name))
    return FLOATS[max(counts, key=counts.__getitem__)], total


def guess(weights: WeightFiles, path: Path) -> tuple[type[Mllm], dict[str, Any]]:
    """The family and configuration of weights that come without one, from their names and shapes."""
    from duogen_core.mllm import FAMILIES, family_class

    for model_type in FAMILIES:
        family = family_class(model_type)
        shapes = {name: entry.shape for name, entry in found_tensors(family, weights, path)[0].items()}
        try:
            config = family.guess_config(shapes)
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
        f"{', '.join(FAMILIES)} in one file; a text encoder without a vision tower cannot look at pictures."
    )


def build(
    family: type[Mllm], config: dict[str, Any], path: Path, entries: Mapping[str, Entry] | None = None
) -> nn.Module:
    """The module without memory for its weights. entries: the weights, which say how many layers there can be."""
    from accelerate import init_empty_weights

    where = path / "config.json" if path.is_dir() else path
    if entries is not None:
        check_sizes(config, entries, where)
    try:
        with init_empty_weights(include_buffers=False):  # the rotary tables are in no file: they are made here
            return family.build(config)
    except ImportError:
        raise DuoGenError(f"{path} is a {family.model_type} model, which needs transformers 4.57 or newer.") from None
    except Exception as error:  # a wrong value raises whatever the layer that meets it raises
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{where} does not describe a {family.model_type} model: {first_line(error)}.") from error


def found_tensors(family: type[Mllm], weights: WeightFiles, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The model's tensors by the module's names, in the shapes they had before any quantising, and the quantised layers
    with their formats."""
    formats = _formats(family, weights)
    check_names(weights, formats, path, family.module_name, FILE_MARKS)
    found: dict[str, Entry] = {}
    for name, entry in weights.entries.items():
        if is_extra(name) or name in FILE_MARKS:
            continue
        name = family.module_name(name)
        format_ = formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        found[name] = plain_entry(entry, format_)
    return found, formats


def _formats(family: type[Mllm], weights: WeightFiles) -> dict[str, str]:
    """{layer of the module: format} of the quantised layers."""
    return {family.module_name(layer): format_ for layer, format_ in layer_formats(weights).items()}


def check(family: type[Mllm], module: nn.Module, weights: WeightFiles, path: Path) -> dict[str, str]:
    """Nothing missing, nothing unexpected, every shape right; else a sentence that names what is not.

    Returns the Linear layers that are quantised, with their formats.
    """
    tied = ("lm_head.weight",) if module.config.tie_word_embeddings else ()
    (found, formats), expected = found_tensors(family, weights, path), shapes_of(module)
    for name in (f"{layer}.weight" for layer, format_ in formats.items() if format_ in BLOCKS):
        want, block = expected.get(name), BLOCKS[formats[name.removesuffix(".weight")]]
        if want and name in found and found[name].shape == tuple(-(-n // block) * block for n in want):
            found[name] = Entry(found[name].dtype, want)  # filled up to whole blocks
    check_tensors(found, expected, path, "MLLM", optional=tied)
    linear = {layer: f for layer, f in formats.items() if isinstance(module.get_submodule(layer), nn.Linear)}
    other = next((layer for layer in formats if layer not in linear and formats[layer] not in FP8.values()), None)
    if other is not None:
        raise DuoGenError(f"{path}: {other} is quantised as {formats[other]}, which only linear layers can be.")
    return linear


def fill(
    family: type[Mllm],
    module: nn.Module,
    weights: WeightFiles,
    formats: dict[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """The weights into their places, one by one; layers of `formats` get theirs as they are."""
    dtype = dtype or _common_dtype(family, weights)
    quantised: dict[str, dict[str, Tensor]] = {layer: {} for layer in formats}
    scales: dict[str, dict[str, Tensor]] = {}  # of layers that are in fp8 but cannot stay so
    own = _formats(family, weights)
    # Names first: a layer's weight and its scale may have the names of two layouts.
    tensors = ((family.module_name(name), tensor) for name, tensor in weights.tensors() if name not in FILE_MARKS)
    for name, tensor in unified(tensors, own):
        layer, _, last = name.rpartition(".")
        if layer in quantised:
            quantised[layer][last] = tensor.to(dtype) if dtype is not None and last == "bias" else tensor
        elif layer in own and last != "bias":
            scales.setdefault(layer, {})[last] = tensor
        else:
            put(module, name, tensor if dtype is None else tensor.to(dtype))
    for layer, state in quantised.items():
        module.get_submodule(layer).load_state_dict(state, strict=False, assign=True)
    for layer, state in scales.items():
        put(module, f"{layer}.weight", dequantised(state["weight"], state.get("weight_scale"), dtype or torch.bfloat16))
    weights.check_unchanged()
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
    empty = [name for name, weight in module.named_parameters() if weight.is_meta]
    empty = [name for name in empty if name.rpartition(".")[0] not in formats]  # those layers' classes are others'
    if empty:
        raise DuoGenError(f"{weights.files[0]}: no weights came for {empty[0]} and {len(empty) - 1} more.")
    module.eval()


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module.get_submodule(owner)._parameters[attribute] = nn.Parameter(tensor, tensor.is_floating_point())


def _common_dtype(family: type[Mllm], weights: WeightFiles) -> torch.dtype | None:
    """What all unquantised weights are brought to: nothing where they are of one kind, else the embedding's."""
    kinds = {entry.dtype for name, entry in weights.entries.items() if entry.dtype in FLOATS and not is_extra(name)}
    if len(kinds) == 1 and not any(entry.dtype in FP8 for entry in weights.entries.values()):
        return None
    embedding = next((e.dtype for n, e in weights.entries.items() if n.endswith("embed_tokens.weight")), "BF16")
    return FLOATS.get(embedding, torch.bfloat16)


def _tokenizer_of_file(path: Path, folder: str | Path | None) -> Any:
    from duogen_core.mllm.tokenizer import load_tokenizer

    if folder is None:
        raise DuoGenError(
            f"{path} holds weights alone; name a folder with their tokenizer as well: the model's Hugging Face folder, "
            "or comfy/text_encoders/qwen25_tokenizer of ComfyUI."
        )
    return load_tokenizer(folder)


def _check_tokenizer(words: Any, module: nn.Module, path: Path) -> None:
    """A tokenizer of another model gives numbers that this one has no rows for, or means other words by them."""
    rows, last = module.get_input_embeddings().num_embeddings, max(words.get_vocab().values(), default=0)
    if last >= rows:
        raise DuoGenError(
            f"The tokenizer's last token has the id {last}, but the MLLM in {path} knows {rows} tokens; give the one "
            f"of this model."
        )


def _picture_settings(family: type[Mllm], folder: str | Path | None) -> Any:
    from duogen_core.mllm.image_processor import load_image_processor, picture_processing

    if folder is not None and (Path(folder) / "preprocessor_config.json").is_file():
        return load_image_processor(folder)
    return picture_processing()[0].from_dict(dict(family.picture_settings))
