"""Qwen2.5-VL and Qwen3-VL as llama.cpp keeps them: a GGUF of the language model, and its "mmproj", one of the vision.

In: the path of the first; the second lies beside it, or is named. Out: what `loading` needs of any model: the family,
its config.json as it would be, the tensors under the module's names, a tokenizer, the settings for images.
llama.cpp's converter splits vision from language, the patches' 3D convolution into its two frames, and Qwen2.5-VL's
joined queries, keys and values into three; it numbers deepstack mergers by their block. `PairedFiles` undoes that:
three quantised matrices of one type are joined as blocks, since a row never shares a block with another.
Source: ggml-org/llama.cpp conversion of Qwen2_5_VL and Qwen3VL, gguf-py constants (`clip.vision.…`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from duogen_core.errors import DuoGenError
from duogen_core.mllm import family_class
from duogen_core.mllm.gguf_tokenizer import gguf_tokenizer, note
from duogen_core.mllm.image_processor import QwenImages, picture_processing
from duogen_core.mllm.tokenizer import load_tokenizer, wrap_tokenizer
from duogen_core.weights.gguf import TEXT_MODELS, is_packed
from duogen_core.weights.gguf_layers import unpacked
from duogen_core.weights.headers import Entry, WeightError
from duogen_core.weights.reading import GgufFiles, WeightFiles

WHAT = "weights of the MLLM"
VISION = "clip"  # the architecture of every mmproj
# The language model's architecture -> our family, and the projector that its mmproj must have.
KNOWN = {"qwen2vl": ("qwen2_5_vl", "qwen2.5vl_merger"), "qwen3vl": ("qwen3_vl", "qwen3vl_merger")}
PROJECTORS = {
    "qwen2vl_merger": "Qwen2-VL, the generation before Qwen2.5-VL",
    "qwen2.5vl_merger": "Qwen2.5-VL",
    "qwen3vl_merger": "Qwen3-VL",
}

_TEXT = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_TEXT_TOP = {"token_embd": "model.language_model.embed_tokens", "output_norm": "model.language_model.norm",
             "output": "lm_head"}  # fmt: skip
_VISION = {
    "qwen2_5_vl": {
        "ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    },
    "qwen3_vl": {
        "ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj", "ffn_up": "mlp.linear_fc1",
        "ffn_down": "mlp.linear_fc2",
    },
}  # fmt: skip
_VISION_TOP = {
    "qwen2_5_vl": {
        "v.patch_embd": "patch_embed.proj", "v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2"
    },
    "qwen3_vl": {
        "v.patch_embd": "patch_embed.proj", "v.position_embd": "pos_embed", "v.post_ln": "merger.norm",
        "mm.0": "merger.linear_fc1", "mm.2": "merger.linear_fc2",
    },
}  # fmt: skip
_DEEPSTACK = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}


@dataclass(frozen=True)
class Opened:
    """A pair of which only headers were read."""

    family: type
    config: dict[str, Any]
    weights: PairedFiles
    images: Any


def open_pair(path: str | Path, mmproj: str | Path | None = None) -> Opened:
    """Reads both headers and matches them; mmproj: None looks beside the language model."""
    path = Path(path)
    text = GgufFiles(path, WHAT)
    family_name, projector = family_of_gguf(text, path)
    mmproj = find_mmproj(path) if mmproj is None else Path(mmproj)
    vision = GgufFiles(mmproj, "weights of the vision")
    if vision.architecture != VISION:
        raise WeightError(
            f"{mmproj} is a GGUF file of the architecture {vision.architecture[:80]!r}; expected an mmproj, which is "
            f"of {VISION!r}."
        )
    said = projector_of(vision)
    if said != projector:
        of = PROJECTORS.get(said, f"another model ({said[:80]})")
        raise WeightError(f"{mmproj} is the mmproj of {of}; {path.name} needs one of {PROJECTORS[projector]}.")
    family = family_class(family_name)
    layers = sorted({int(m[1]) for name in vision.entries if (m := re.match(r"v\.deepstack\.(\d+)\.", name))})
    weights = PairedFiles(text, vision, family_name, layers)
    config = _config(family_name, text, vision, weights, layers, mmproj)
    settings = dict(family.picture_settings)
    for theirs, ours in (("patch_size", "patch_size"), ("image_min_pixels", "min_pixels"),
                         ("image_max_pixels", "max_pixels"), ("spatial_merge_size", "merge_size")):  # fmt: skip
        if type(value := vision.notes.get(f"clip.vision.{theirs}")) is int:
            settings[ours] = value
    for name in ("image_mean", "image_std"):
        value = note(vision.notes, f"clip.vision.{name}")
        if isinstance(value, list) and len(value) == 3 and all(type(each) in (int, float) for each in value):
            settings[name] = [float(number) for number in value]
    return Opened(family, config, weights, QwenImages(picture_processing()[0].from_dict(settings)))


def projector_of(vision: GgufFiles) -> str:
    """What an mmproj says that it is; see PROJECTORS."""
    return str(vision.notes.get("clip.vision.projector_type", vision.notes.get("clip.projector_type")))


def tokenizer_of(path: Path, weights: PairedFiles, folder: str | Path | None) -> Any:
    """The tokenizer in the language model's own notes, or that of a folder where one is named."""
    if folder is not None:
        return load_tokenizer(folder)
    return wrap_tokenizer(gguf_tokenizer(weights.text.notes, path).backend_tokenizer)


def family_of_gguf(text: GgufFiles, path: Path) -> tuple[str, str]:
    """(family, projector its mmproj must have); an error that names what is no MLLM of ours."""
    architecture = text.architecture
    if architecture in KNOWN:
        return KNOWN[architecture]
    if architecture == VISION:
        raise DuoGenError(
            f"{path} is an mmproj, the vision of a model alone; give the GGUF of its language model, beside which it "
            f"lies."
        )
    if architecture == "qwen3vlmoe":
        raise DuoGenError(
            f"{path} is a Qwen3-VL with experts (qwen3vlmoe), which this pack does not run; take a dense one."
        )
    plans = (
        " A language model alone can plan: on the command line with --writer, in ComfyUI from a server (llama.cpp, "
        "Ollama) with DuoGen Plan with Endpoint."
    )
    raise DuoGenError(
        f"{path} is a GGUF file of the architecture {architecture[:80]!r}; as an MLLM this pack reads "
        f"{', '.join(KNOWN)} (Qwen2.5-VL, Qwen3-VL), which can look at images."
        f"{plans if architecture in TEXT_MODELS else ''}"
    )


# ---------------------------------------------------------------- which mmproj

_QUANTISED = re.compile(r"(?i)[-_.]?(ud-)?(i?q\d\w*|b?f16|f32|fp16|fp32|mxfp4\w*|i1|imat(rix)?|\d{5}-of-\d{5})$")


def _model_name(stem: str) -> str:
    """A file's name without what it is quantised in."""
    while (shorter := _QUANTISED.sub("", stem)) != stem:
        stem = shorter
    return stem


def _plain(stem: str) -> str:
    """The name of the model that a file is of, to compare: without the word mmproj, in letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(?i)mmproj(-model)?", "", _model_name(stem)).lower())


def find_mmproj(path: Path) -> Path:
    """The one mmproj beside a language model: the one that bears its name, else the only one that bears none."""
    beside = sorted(
        file for file in path.parent.iterdir()
        if file.suffix.lower() == ".gguf" and "mmproj" in file.name.lower() and file != path
    )  # fmt: skip
    own = [file for file in beside if _plain(file.stem) == _plain(path.stem)]
    nameless = [file for file in beside if not _plain(file.stem)]
    for found in (own, nameless):
        if len(found) == 1:
            return found[0]
        if found:
            raise DuoGenError(
                f"Several files beside {path.name} can be its vision ({', '.join(file.name for file in found[:6])}); "
                f"keep one of them there."
            )
    names = ", ".join(file.name for file in beside[:4])
    others = f" ({names} {'is' if len(beside) == 1 else 'are'} named for another model)" if beside else ""
    raise DuoGenError(
        f"{path} holds the language model alone, and no mmproj of it lies beside it{others}; put its mmproj there as "
        f"mmproj-{_model_name(path.stem)}.gguf, without which it cannot look at images."
    )


# ---------------------------------------------------------------- names


class PairedFiles(WeightFiles):
    """Both files as one set of weights, under the names of transformers' module."""

    def __init__(self, text: GgufFiles, vision: GgufFiles, family: str, deepstack: list[int]) -> None:
        self.text, self.vision = text, vision
        self.files, self.what, self.rest = (*text.files, *vision.files), WHAT, {}
        self.metadata, self.places = text.metadata, {}
        self._made_of: dict[str, tuple[GgufFiles, tuple[str, ...]]] = {}
        for name in text.entries:
            self._made_of[_text_name(name)] = (text, (name,))
        joined: dict[str, dict[str, str]] = {}  # {name in the module: {part: name in the file}}
        for name in vision.entries:
            ours, part = _vision_name(name, family, deepstack)
            joined.setdefault(ours, {})[part] = name
        for ours, parts in joined.items():
            self._made_of[ours] = (vision, tuple(parts[part] for part in sorted(parts)))
        self.entries = {name: self._entry(*of) for name, of in self._made_of.items()}

    @property
    def bytes(self) -> int:
        return self.text.bytes + self.vision.bytes

    def _entry(self, files: GgufFiles, names: tuple[str, ...]) -> Entry:
        found = [files.entries[name] for name in names]
        first = found[0]
        if len(found) == 1:
            return first
        if len(first.shape) == 4:  # two frames of a convolution
            return Entry(first.dtype, (*first.shape[:2], len(found), *first.shape[2:]))
        alike = len({entry.dtype for entry in found}) == 1
        return Entry(first.dtype if alike else "F32", (sum(e.shape[0] for e in found), *first.shape[1:]))

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        wanted = set(self.entries if names is None else names)
        for name, (files, parts) in self._made_of.items():
            if name in wanted:
                found = [files.tensor(part) for part in parts]
                yield name, found[0] if len(found) == 1 else self._joined(name, files, parts, found)

    def _joined(self, name: str, files: GgufFiles, parts: tuple[str, ...], found: list[Tensor]) -> Tensor:
        if found[0].ndim == 4:
            return torch.stack(found, 2)
        if self.entries[name].dtype == "F32":
            kinds = [files.entries[part].dtype for part in parts]
            found = [
                unpacked(tensor, kind, torch.float32) if is_packed(kind) else tensor.float()
                for tensor, kind in zip(found, kinds)
            ]
        return torch.cat(found)

    def check_unchanged(self, *files: Path) -> None:
        self.text.check_unchanged()
        self.vision.check_unchanged()


def _text_name(name: str) -> str:
    stem, _, last = name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in _TEXT:
        return f"model.language_model.layers.{match[1]}.{_TEXT[match[2]]}.{last}"
    return f"{_TEXT_TOP[stem]}.{last}" if stem in _TEXT_TOP else name


def _vision_name(name: str, family: str, deepstack: list[int]) -> tuple[str, str]:
    """(name in the module, which part of that tensor this is)."""
    if name == "v.patch_embd.weight.1":
        return "model.visual.patch_embed.proj.weight", "1"
    stem, _, last = name.rpartition(".")
    top, block = _VISION_TOP[family], _VISION[family]
    if stem in top:
        return f"model.visual.{top[stem]}.{last}", "0"
    if match := re.fullmatch(r"v\.blk\.(\d+)\.(\w+)", stem):
        if match[2] in ("attn_q", "attn_k", "attn_v"):
            return f"model.visual.blocks.{match[1]}.attn.qkv.{last}", str("qkv".index(match[2][-1]))
        if match[2] in block:
            return f"model.visual.blocks.{match[1]}.{block[match[2]]}.{last}", "0"
    if (match := re.fullmatch(r"v\.deepstack\.(\d+)\.(\w+)", stem)) and match[2] in _DEEPSTACK:
        number = deepstack.index(int(match[1]))
        return f"model.visual.deepstack_merger_list.{number}.{_DEEPSTACK[match[2]]}.{last}", "0"
    return name, "0"


# ---------------------------------------------------------------- configuration


def _config(
    family: str, text: GgufFiles, vision: GgufFiles, weights: PairedFiles, deepstack: list[int], mmproj: Path
) -> dict[str, Any]:
    """The config.json that both files' notes describe."""

    def number(files: GgufFiles, key: str, default: Any = None) -> Any:
        value = files.notes.get(key, default)
        if type(value) not in (int, float):
            raise WeightError(f"{files.files[0]} is not a whole GGUF file of its kind: its note {key} is missing.")
        return value

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights.entries:
            raise WeightError(f"{text.files[0]} and {mmproj.name} are no whole model: {name} is missing.")
        return weights.entries[name].shape

    arch = text.architecture
    vocabulary, width = shape("model.language_model.embed_tokens.weight")
    sections = note(text.notes, f"{arch}.rope.dimension_sections")
    if not _are_whole(sections) or len(sections) < 3:
        raise WeightError(
            f"{text.files[0]} is not a whole GGUF file of its kind: its rope.dimension_sections are missing."
        )
    heads = number(text, f"{arch}.attention.head_count")
    tied = "lm_head.weight" not in weights.entries
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": sections[:3]}
    text_config: dict[str, Any] = {
        "hidden_size": width,
        "vocab_size": vocabulary,
        "intermediate_size": number(text, f"{arch}.feed_forward_length"),
        "num_hidden_layers": number(text, f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number(text, f"{arch}.attention.head_count_kv", heads),
        "max_position_embeddings": number(text, f"{arch}.context_length", 32768),
        "rms_norm_eps": number(text, f"{arch}.attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": number(text, f"{arch}.rope.freq_base", 1e6),
        "rope_scaling": rope,
        "tie_word_embeddings": tied,
    }
    patches = shape("model.visual.patch_embed.proj.weight")
    if len(patches) != 5:
        raise WeightError(f"{mmproj} is no whole mmproj: its patches have one frame; expected two.")
    out = shape("model.visual.merger." + ("mlp.2.weight" if family == "qwen2_5_vl" else "linear_fc2.weight"))[0]
    if out != width:
        raise WeightError(
            f"{mmproj} gives the language model {out} numbers a token, but that in {text.files[0].name} is {width} "
            f"wide; they belong to two models."
        )
    blocks = {int(m[1]) for name in weights.entries if (m := re.match(r"model\.visual\.blocks\.(\d+)\.", name))}
    depth = max(blocks, default=-1) + 1
    vision_config: dict[str, Any] = {
        "depth": depth,
        "hidden_size": patches[0],
        "num_heads": number(vision, "clip.vision.attention.head_count"),
        "out_hidden_size": width,
        "patch_size": patches[-1],
        "temporal_patch_size": patches[2],
        "spatial_merge_size": number(vision, "clip.vision.spatial_merge_size", 2),
    }
    if family == "qwen2_5_vl":
        vision_config |= {
            "intermediate_size": shape("model.visual.blocks.0.mlp.gate_proj.weight")[0],
            "window_size": number(vision, "clip.vision.window_size", 112),
            "fullatt_block_indexes": _full_attention(vision, depth),
            "tokens_per_second": 2,
        }
    else:
        rope["mrope_interleaved"] = True
        text_config["head_dim"] = number(text, f"{arch}.attention.key_length", width // max(heads, 1))
        vision_config |= {
            "intermediate_size": shape("model.visual.blocks.0.mlp.linear_fc1.weight")[0],
            "num_position_embeddings": shape("model.visual.pos_embed.weight")[0],
            "deepstack_visual_indexes": deepstack,
        }
        levels = text.notes.get(f"{arch}.n_deepstack_layers", len(deepstack))
        if levels != len(deepstack):
            raise WeightError(
                f"{mmproj} has {len(deepstack)} deepstack layers, but {text.files[0].name} takes {levels}; they belong "
                f"to two models."
            )
    common = {"model_type": family, "tie_word_embeddings": tied, "vision_config": vision_config}
    return common | {"text_config": text_config}


def _are_whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _full_attention(vision: GgufFiles, depth: int) -> list[int]:
    """Which blocks of Qwen2.5-VL's vision see the whole image: every n-th, or those of an older file's list."""
    listed = note(vision.notes, "clip.vision.fullatt_block_indexes")
    if _are_whole(listed):
        return listed
    every = vision.notes.get("clip.vision.n_wa_pattern", 8)
    if type(every) is not int or every < 0:
        raise WeightError(f"{vision.files[0]} has n_wa_pattern {every!r}; expected a whole number.")
    return list(range(depth)) if every == 0 else list(range(every - 1, depth, every))
