"""What a file or a folder is, from headers and JSON alone: no weight is read, nothing of it is run.

In: a path. Out: `Found`s, one a model (a DuoGen checkpoint or a pipeline's folder gives several), or a WeightError
whose sentence says what the file is instead (a pickle, a download that failed) and what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, shown
from duogen_core.files import read_json
from duogen_core.weights import cosmos_keys, quantised, wan_keys
from duogen_core.weights.gguf import TEXT_MODELS, is_gguf, is_packed
from duogen_core.weights.headers import WeightError, refuse_pickle
from duogen_core.weights.lora import is_lora, read_lora
from duogen_core.weights.reading import GgufFiles, WeightFiles, find_weights

FOREIGN = {
    b"GGUF": "is a GGUF file by its first bytes; give it a name that ends in .gguf",
    b"version https://git-lfs": "is a Git LFS pointer, not the weights themselves; download the file it stands for",
    b"<": "is a web page, not weights: the download failed; fetch it again, signed in if its site asks for that",
}
# Tensors that only one kind of model has. Order matters: the first that is there decides.
MARKS = (
    ("decoder.head.0.gamma", "VAE", "Wan 2.1"),
    ("decoder.conv_in.weight", "VAE", "diffusers"),
    ("txt_norm.weight", "DiT", "Qwen-Image"),
    ("double_stream_modulation_img.lin.weight", "DiT", "FLUX.2"),
    ("double_blocks.0.img_attn.qkv.weight", "DiT", "FLUX"),
    ("time_caption_embed.timestep_embedder.linear_1.bias", "DiT", "OmniGen2"),
    ("text_embedding.0.weight", "DiT", "Wan video"),
    ("encoder.block.0.layer.0.SelfAttention.k.weight", "text encoder", "T5"),
    ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder", "CLIP"),
)
PREFIXES = ("", "model.diffusion_model.", "first_stage_model.")
PAINTERS = ("Qwen-Image", "FLUX.2", "FLUX", "OmniGen2", "Wan video")  # ComfyUI samples them; the loop nodes take them


@dataclass(frozen=True)
class Found:
    """shape: what the memory estimate needs to know of the architecture. needs: what else an answer takes."""

    path: str
    kind: str
    family: str
    layout: str
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    quantised: dict[str, int] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: dict[str, int] = field(default_factory=dict)


def identify(path: str | os.PathLike) -> list[Found]:
    path = Path(path)
    if not path.exists():
        raise DuoGenError(f"There is no file or folder {path}.")
    if path.is_file():
        if is_gguf(path):
            return [_of_weights(GgufFiles(path), path)]
        refuse_foreign(path)
        return [_of_weights(WeightFiles([path]), path)]
    index = _json(path / "model_index.json")
    if index.get("format") == "duogen-checkpoint":
        from duogen_core.checkpoint import check_checkpoint, vae_path

        check_checkpoint(path)
        return [_part(path / name) for name in ("mllm", "connector", "dit")] + [_part(vae_path(path))]
    if index:
        parts = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".") and _has_weights(p)]
        if not parts:
            raise WeightError(f"{path} is a folder of {index.get('_class_name', 'a pipeline')}, but holds no weights.")
        return [_part(part) for part in parts]
    return [_part(path)]


def _has_weights(folder: Path) -> bool:
    return any(file.suffix == ".safetensors" for file in folder.iterdir())


def _part(path: Path) -> Found:
    # Beside PEFT's file stage 2 writes the same adapter under diffusers' names.
    stem = "adapter_model" if (path / "adapter_config.json").is_file() else None
    return _of_weights(WeightFiles([path]) if path.is_file() else find_weights(path, stem=stem), path)


def refuse_foreign(path: Path) -> None:
    """Refuses files that are not safetensors; their first bytes say what they are."""
    with open(path, "rb") as file:
        start = file.read(64)
    for opening, sentence in FOREIGN.items():
        if start.lstrip().startswith(opening):
            raise WeightError(f"{path} {sentence}.")
    if start[:4] == b"PK\x03\x04" or path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        kind = "a PyTorch checkpoint" if start[:4] == b"PK\x03\x04" else "an old PyTorch checkpoint, a bare pickle"
        raise WeightError(
            f"{path} is {kind}, which can run code when it is opened and is not looked into; "
            f"python -m duogen_core convert {path.name} NAME.safetensors makes a safe file of Cosmos weights or a VAE."
        )
    refuse_pickle(path)


def _of_weights(weights: WeightFiles, path: Path) -> Found:
    try:
        found = _recognised(weights, path)
        if not all(isinstance(value, int) and 0 <= value < 10**9 for value in found.shape.values()):
            raise ValueError(f"{found.shape}")
        return found
    except DuoGenError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise WeightError(f"{path} describes an impossible model: {type(error).__name__} at {error}.") from error


def _recognised(weights: WeightFiles, path: Path) -> Found:
    formats = quantised.layer_formats(weights)
    if isinstance(weights, GgufFiles) and (found := _gguf(weights, path, formats)) is not None:
        return found
    if is_lora(weights.entries):
        return _lora(weights, path)
    for recognise in (_saved_dit, _cosmos, _wan, _connector, _marked, _mllm):
        found = recognise(weights, path, formats)
        if found is not None:
            return found
    method = _json((path if path.is_dir() else path.parent) / "adapter_config.json").get("peft_type")
    if isinstance(method, str):
        notes = ["not applied by DuoGen, which reads LoRA, LoHa and LoKr, with DoRA and rsLoRA"]
        return _found(weights, path, formats, kind="adapter", family=shown(method), layout="PEFT", notes=notes)
    return _found(weights, path, formats, kind="unknown", family="not known to DuoGen", layout="")


def _saved_dit(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    from duogen_core.dit.loading import SAVED, open_saved

    saved = open_saved(path) if SAVED in weights.entries else None
    return None if saved is None else _own_dit(weights, path, formats, saved.config, "ComfyUI's Save Diffusion Model")


def _cosmos(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    layout = cosmos_keys.layout_of(weights.entries)
    if layout is None:
        return None
    if layout[0] == "diffusers":
        config = _json(path / "config.json" if path.is_dir() else path.with_name("config.json"))
        if config.get("_class_name") == "PackedCosmos":
            return _own_dit(weights, path, formats, config)
        if "patch_embed.proj.weight" not in weights.entries:
            return None
    from duogen_core.dit.loading import match_cosmos

    shapes = cosmos_keys.shapes_in_diffusers(weights.entries, layout[1], layout[0])
    relative = cosmos_keys.relative(shapes)
    if relative is not None:
        return _found(weights, path, formats, kind="DiT", family=relative, layout=layout[0],
                      notes=["DuoGen's own loop cannot draw with it; ComfyUI can, in the loop nodes"])  # fmt: skip
    match = match_cosmos(weights, path)
    config = match.config
    notes = ["its crossattn_proj is the connector", f"convention: {match.convention} ({match.convention_from})"]
    notes += [f"left out, no weights: {', '.join(match.left_out)}"] if match.left_out else []
    states = config["crossattn_proj_in_channels"]
    of = f"{states} numbers a token" if states not in cosmos_keys.STATES else (
        "{} layers of width {}: Qwen2.5-VL-7B or Cosmos-Reason1-7B".format(*cosmos_keys.STATES[states])
    )  # fmt: skip
    return _found(
        weights, path, formats, kind="DiT", family=match.name, layout=match.layout, notes=notes,
        shape=dit_shape(config) | _largest(weights, formats), needs=[f"an MLLM of {of}", "the Wan 2.1 VAE"],
    )  # fmt: skip


def _wan(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    layout = wan_keys.layout_of(weights.entries)
    if layout is None:
        return None
    if layout[0] == "diffusers":
        config = _json(path / "config.json" if path.is_dir() else path.with_name("config.json"))
        if config.get("_class_name") == "PackedWan":
            return _own_dit(weights, path, formats, config)
    from duogen_core.dit.wan_files import match_wan

    relative = wan_keys.relative(wan_keys.shapes_in_diffusers(weights.entries, layout[1], layout[0]))
    if relative is not None:
        return _found(weights, path, formats, kind="DiT", family=relative, layout=layout[0],
                      notes=["DuoGen takes Wan 2.1 text-to-video and Wan 2.2 TI2V-5B"])  # fmt: skip
    match = match_wan(weights, path)
    vae = "the Wan 2.1 VAE" if match.config["out_channels"] == 16 else "the VAE of Wan 2.2 TI2V-5B"
    notes = [
        "as published it reads umT5's text: ComfyUI draws with it, between DuoGen Loop Open and Close",
        "it draws nothing from an MLLM's states before stage 2 has trained a connector with it",
    ]
    return _found(
        weights, path, formats, kind="DiT", family=match.name, layout=match.layout, notes=notes,
        shape=dit_shape(match.config) | _largest(weights, formats),
        needs=[f"stage 2 with an MLLM (connector to {match.config['text_dim']} numbers a token)", vae],
    )  # fmt: skip


def _largest(weights: WeightFiles, formats: dict[str, str]) -> dict[str, int]:
    """Of layers in GGUF's blocks, the numbers of the largest: it is made whole while it runs."""
    packed = [weights.entries[f"{layer}.weight"] for layer, kind in formats.items() if is_packed(kind)]
    return {"largest": max(math.prod(entry.shape) for entry in packed)} if packed else {}


def dit_shape(config: Mapping[str, Any]) -> dict[str, int]:
    """What memory.py asks of a DiT, from its configuration in diffusers' names."""
    heads, layers = config["num_attention_heads"], config["num_layers"]
    # Wan 2.2's VAE, the one with 48 channels, has cells of 16 pixels; of the others they are 8.
    pixels = 32 if config.get("out_channels") == 48 else 16
    width = heads * config["attention_head_dim"]
    mlp = config.get("ffn_dim") or int(width * config.get("mlp_ratio", 4))  # Wan names the one, Cosmos the other
    return {"width": width, "layers": layers, "heads": heads, "pixels": pixels, "mlp": mlp}


def _own_dit(
    weights: WeightFiles, path: Path, formats: dict[str, str], config: dict[str, Any], layout: str = "diffusers"
) -> Found:
    for name in ("num_attention_heads", "attention_head_dim", "num_layers", *({"ffn_dim"} & config.keys())):
        if not isinstance(config.get(name), int) or not 0 < config[name] < 1_000_000:
            raise WeightError(f"{path}: its config.json has {name} {config.get(name)!r}; expected 1 to 999,999.")
    ratio = config.get("mlp_ratio", 4)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
        raise WeightError(f"{path}: its config.json has mlp_ratio {str(ratio)[:40]!r}; expected a number below 1000.")
    of = {"PackedWan": "DuoGen's Wan", "PackedCosmos": "DuoGen's Cosmos"}.get(config.get("_class_name"), "DuoGen's")
    family = f"{of}, {config.get('attention', 'full')} attention"
    shape = {**dit_shape(config), "causal": int(config.get("attention") == "frame_causal")}
    return _found(
        weights, path, formats, kind="DiT", family=family, layout=layout, shape=shape,
        needs=["its own MLLM, connector and VAE"],
    )  # fmt: skip


def _connector(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    if set(weights.entries) != {"proj.weight", "proj.bias"}:
        return None
    config = _json(path / "config.json" if path.is_dir() else path.with_name("config.json"))
    known = [config["mllm"]] if config.get("mllm") else []
    if "num_layers" in config and "hidden_size" in config:
        known.append(f"{config['num_layers']} layers of width {config['hidden_size']}")
    of = f" ({', '.join(known)})" if known else ""
    needs = [f"the MLLM it was trained with{of}"]
    if config.get("dit"):
        needs.append(f"the DiT it was trained with ({config['dit']})")
    return _found(weights, path, formats, kind="connector", family="DuoGen", layout="duogen", needs=needs)


def _marked(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    for name, kind, family in MARKS:
        prefix = next(
            (p for p in ("", "model.diffusion_model.", "first_stage_model.") if p + name in weights.entries), None
        )
        if prefix is None:
            continue
        notes, shape = [], {}
        if kind == "VAE":
            norm = "decoder.head.0.gamma" if family == "Wan 2.1" else "decoder.norm_out.gamma"
            if family == "diffusers":
                wan = "decoder.mid_block.resnets.0.norm1.gamma" in weights.entries
                family = "Wan 2.1" if wan else "another than Wan 2.1"
            if family == "Wan 2.1":
                last = weights.entries.get(prefix + norm)
                shape = {"base": last.shape[0]} if last is not None and last.shape else {}
                channels = weights.entries.get(f"{prefix}conv2.weight") or weights.entries.get("post_quant_conv.weight")
                if channels is not None and channels.shape[0] != 16:
                    family = f"Wan 2.2, {channels.shape[0]} channels"
                    shape |= {"patch": 2} if shape else {}
        elif kind == "text encoder":
            notes = ["it cannot write; DuoGen needs an MLLM such as Qwen2.5-VL"]
        elif family in PAINTERS:
            notes = ["draws in ComfyUI's own nodes, between DuoGen Loop Open and Close"]
        return _found(weights, path, formats, kind=kind, family=family, layout="", notes=notes, shape=shape)
    return None


def _mllm(weights: WeightFiles, path: Path, formats: dict[str, str]) -> Found | None:
    config = _json(path / "config.json") if path.is_dir() else {}
    if not any(name.endswith("embed_tokens.weight") for name in weights.entries):
        return None
    if not any("visual." in name or "vision" in name for name in weights.entries):
        family = str(config.get("model_type", "a language model"))
        notes = ["no vision tower: it cannot look at images, so it cannot be the MLLM"]
        return _found(weights, path, formats, kind="text encoder", family=family, layout="", notes=notes)
    from duogen_core.mllm.loading import detect_family

    # transformers' name of a whole model in one file: its configuration lies beside it.
    folder = path.parent if path.name == "model.safetensors" and path.with_name("config.json").is_file() else path
    try:
        family, config = detect_family(folder)
    except DuoGenError as error:
        return _found(weights, path, formats, kind="MLLM", family="not one that DuoGen reads", layout="",
                      notes=[str(error)])  # fmt: skip
    text = config.get("text_config") or config
    heads, width = text["num_attention_heads"], text["hidden_size"]
    shape = {
        "layers": text["num_hidden_layers"], "width": width, "kv_heads": text.get("num_key_value_heads", heads),
        "head_dim": text.get("head_dim") or width // heads,
    }  # fmt: skip
    needs = ["a connector for its states", "a DiT and its VAE"]
    if folder != path:
        needs.insert(0, f"to be loaded by its folder, {folder}, which has its configuration and tokenizer")
    elif path.is_file():
        brought = ", or the one that ComfyUI brings" if "qwen" in family.model_type else ""
        needs.insert(0, f"a tokenizer: its Hugging Face folder's{brought}")
    notes = [f"{shape['layers']} layers of width {shape['width']}"]
    return _found(weights, path, formats, kind="MLLM", family=family.model_type, needs=needs, notes=notes, shape=shape,
                  layout="Hugging Face folder" if path.is_dir() else "single file")  # fmt: skip


def _gguf(weights: GgufFiles, path: Path, formats: dict[str, str]) -> Found | None:
    """What llama.cpp writes, by its architecture; None: an image model, known by the names of its tensors."""
    from duogen_core.mllm.gguf import KNOWN, PROJECTORS, open_pair, projector_of

    arch, header = weights.architecture, weights.header
    layout = "GGUF" + (", big-endian" if header.big else "")
    layout += f", {len(weights.files)} files" if len(weights.files) > 1 else ""

    def number(key: str, default: int = 0) -> int:
        value = header.number(key)
        return value if type(value) is int else default

    if arch == "clip":
        said = projector_of(weights)
        family = PROJECTORS.get(said, f"not known to DuoGen ({said[:80]})")
        return _found(weights, path, formats, kind="vision of an MLLM", family=family, layout=layout,
                      needs=["the GGUF of its language model, beside which it lies"])  # fmt: skip
    if arch not in KNOWN and arch not in TEXT_MODELS:
        return None
    heads, width = number("attention.head_count", 1), number("embedding_length")
    shape = {
        "layers": number("block_count"), "width": width, "kv_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", width // max(heads, 1)),
        **_largest(weights, formats),
    }  # fmt: skip
    notes = [f"{shape['layers']} layers of width {shape['width']}"]
    if arch in TEXT_MODELS:
        notes.append("no vision: it cannot look at images; it can plan (--writer)")
        return _found(weights, path, formats, kind="MLLM", family=f"{arch}, a language model alone", layout=layout,
                      notes=notes, shape=shape)  # fmt: skip
    try:
        vision = open_pair(path).weights.vision
    except DuoGenError as error:
        return _found(weights, path, formats, kind="MLLM", family=KNOWN[arch][0], layout=layout,
                      notes=[*notes, str(error)], shape=shape)  # fmt: skip
    found = _found(weights, path, formats, kind="MLLM", family=KNOWN[arch][0], layout=layout, shape=shape,
                   needs=["a connector for its states", "a DiT and its VAE"],
                   notes=[*notes, f"vision: {vision.files[0].name}"])  # fmt: skip
    eyes = _found(vision, path, quantised.layer_formats(vision), kind="", family="", layout="")

    def both(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {kind: a.get(kind, 0) + b.get(kind, 0) for kind in a | b}

    return replace(
        found, parameters=found.parameters + eyes.parameters, bytes=found.bytes + eyes.bytes,
        dtypes=both(found.dtypes, eyes.dtypes), quantised=both(found.quantised, eyes.quantised),
    )  # fmt: skip


def _lora(weights: WeightFiles, path: Path) -> Found:
    lora = read_lora(weights.entries, str(path))
    ranks = ", ".join(map(str, lora.ranks[:4])) or "none"
    family = {"MLLM": "for an MLLM", "DiT": "for a DiT"}.get(lora.target, "of an unknown model")
    kinds = ", ".join(lora.names)
    config = _json((path if path.is_dir() else path.parent) / "adapter_config.json")
    kinds += ", rsLoRA" if config.get("use_rslora") else ""
    notes = [f"{kinds or 'no matrices'}: {len(lora.layers)} layers, rank {ranks}"]
    return _found(
        weights, path, {}, kind="LoRA", family=family, layout=lora.naming, notes=notes,
        needs=["the model it was trained on"],
    )  # fmt: skip


def _found(weights: WeightFiles, path: Path, formats: dict[str, str], **rest: Any) -> Found:
    dtypes: dict[str, int] = {}
    parameters = 0
    for name, entry in weights.entries.items():
        place = weights.places[name]
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + place.stop - place.start
        if not quantised.is_extra(name):
            format_ = formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            parameters += math.prod(quantised.plain_shape(entry.shape, format_))
    kinds: dict[str, int] = {}
    for format_ in formats.values():
        kinds[format_] = kinds.get(format_, 0) + 1
    notes = [*rest.pop("notes", [])]
    notes += [
        f"{count:,} bytes follow the last tensor of {file.name}; it may have been damaged"
        for file, count in weights.rest.items()
    ]
    return Found(
        str(path), parameters=parameters, bytes=weights.bytes, dtypes=dtypes, quantised=kinds, notes=notes, **rest
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = read_json(file, "configuration")
    return value if isinstance(value, dict) else {}
