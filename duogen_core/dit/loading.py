"""Files of DiT weights -> a DiT: the folder of a DuoGen checkpoint, or Cosmos-Predict2.5 as published.

`load_dit` reads a diffusers-style folder of one of the families in this package.
`open_published` takes a single safetensors or GGUF file (official, ComfyUI's or diffusers' names) or a diffusers folder
(sharded or not; of a whole pipeline too); bf16, fp16, fp32, fp8 or GGUF's types (architecture `cosmos`, as
city96's ComfyUI-GGUF writes it: the original names). It reads headers alone and refuses what does not match. Then
`CosmosFile.load_dit` gives the transformer, and `CosmosFile.load_connector` its `crossattn_proj` as a Connector.
What a file of Wan gives is in wan_files.py; which it is, its tensors' names say.
`open_saved` takes what ComfyUI's Save Diffusion Model wrote of any of these, merged or with LoRAs.

Two conventions exist, and no tensor tells them apart: in post-training clean frames had the timestep 1e-4 and sampling
goes by Karras' times, in pre-training clean frames shared the target's timestep and times are shifted by 5. Which one
holds is said by the user, else by the file (metadata, config.json, or its published name), else post-trained is taken.
Source: diffusers' Cosmos2_5_PredictBasePipeline and its scheduler (36 steps; its guidance 7 is 8 here); for the
pre-trained one nvidia-cosmos/cosmos-predict2.5.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.dit import FAMILIES, DitError
from duogen_core.errors import DuoGenError
from duogen_core.files import parse_json, read_json
from duogen_core.sampling import Sampling, checked_numbers
from duogen_core.weights import cosmos_keys as keys
from duogen_core.weights.headers import WeightError, check_tensors, shapes_of
from duogen_core.weights.reading import DIFFUSERS_STEM, WeightFiles, find_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from duogen_core.connector import Connector
    from duogen_core.dit.base import PackedDit
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.dit.wan_files import WanFile
    from duogen_core.weights.quantised import Prepare


def load_dit(folder: str | Path, dtype: torch.dtype | None = None, prepare: Prepare | None = None) -> nn.Module:
    """Loads the DiT of a diffusers-style folder, of whichever family its config.json names, in eval mode.

    prepare: gives layers other classes before their weights come. With it, with a dtype, and where layers are
    quantised, weights are mapped from the file, in its own type or in dtype. Else all are read into float32.
    """
    from duogen_core.weights.quantised import layer_formats

    family = family_in(folder)
    if prepare is not None or dtype is not None or layer_formats(find_weights(folder, WHAT, DIFFUSERS_STEM)):
        return family.from_pretrained(folder, dtype=dtype, prepare=prepare, copy=False)
    return family.from_pretrained(folder)


def family_in(folder: str | Path) -> type[PackedDit]:
    """The class of the DiT in a diffusers-style folder, by its config.json."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise DitError(f"No DiT in {folder}: config.json is missing.")
    return _family(read_json(path, "configuration of a DiT"), path)


def new_dit(family: str, **config: Any) -> PackedDit:
    """A DiT to train from scratch. family: as settings name it (PackedDit.family). config: of its class."""
    for module, cls in dict.fromkeys(FAMILIES.values()):
        module = importlib.import_module(module)
        if getattr(module, cls).family == family:
            return module.init_weights(getattr(module, cls)(**config))
    raise DitError(f"There is no family of DiTs named {family!r}; expected cosmos or wan.")


def _family(config: Any, where: object) -> Any:
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise DitError(f"{where} is not a diffusers config: expected JSON with the field _class_name.")
    if name not in FAMILIES:
        raise DitError(f"{where} names the model {name}; the families known here are {', '.join(FAMILIES)}.")
    module, cls = FAMILIES[name]
    return getattr(importlib.import_module(module), cls)


# ---------------------------------------------------------------- what ComfyUI's Save Diffusion Model writes

SAVED = "duogen_config"  # the tensor beside the weights, UTF-8 JSON: what no weight shows
SAVED_PREFIX = "model.diffusion_model."  # before diffusers' names; Save Checkpoint adds a CLIP and a VAE under others
SAVED_VERSION = 1


def saved_note(dit: nn.Module, sampling: Sampling, latents: dict[str, Any]) -> bytes:
    """What stands in the tensor SAVED. latents: what the DiT's VAE makes, for a host that asks for it again."""
    config = {name: value for name, value in dit.config.items() if not name.startswith("_")}
    config |= {"_class_name": next(base.__name__ for base in type(dit).__mro__ if base.__name__ in FAMILIES)}
    note = {"version": SAVED_VERSION, "dit": config, "sampling": asdict(sampling), "latents": latents}
    return json.dumps(note).encode()


@dataclass(frozen=True)
class SavedDit:
    """A DiT that ComfyUI saved, of which only the header and the note were read. latents: as `saved_note` got them."""

    path: Path
    weights: WeightFiles
    config: dict[str, Any]
    sampling: Sampling
    latents: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        from duogen_core.weights.module import main_dtype

        return main_dtype(self.weights, self._others)

    @property
    def _others(self) -> set[str]:
        return {name for name in self.weights.entries if not name.startswith(SAVED_PREFIX)}

    def load_dit(self, dtype: torch.dtype | None = None, prepare: Prepare | None = None) -> nn.Module:
        """As CosmosFile.load_dit."""
        from duogen_core.weights.headers import check_sizes
        from duogen_core.weights.module import build_empty, check_module, fill_module, use_quantised_layers

        family = _family(self.config, self.path)
        ours = {name.removeprefix(SAVED_PREFIX): entry for name, entry in self.weights.entries.items()}
        check_sizes(self.config, ours, self.path)
        dit = build_empty(lambda: family.from_config(self.config), self.path, f"a {family.__name__}")
        names: dict[str, Any] = {"rename": lambda name: name.removeprefix(SAVED_PREFIX), "skip": self._others}
        formats = check_module(dit, self.weights, self.path, "DiT", **names)
        return fill_module(
            dit, self.weights, formats, dtype=dtype or self.dtype, prepare=prepare or use_quantised_layers, **names
        )


def open_saved(path: str | os.PathLike) -> SavedDit | None:
    """Returns a DiT that ComfyUI saved, or None where the file is no such one."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        return None
    weights = WeightFiles([path], WHAT)
    if SAVED not in weights.entries:
        return None
    note, where = parse_json(weights.note(SAVED), f"{path}: {SAVED}"), f"{path}: {SAVED}"
    if not isinstance(note, dict) or note.get("version") != SAVED_VERSION:
        found = note.get("version") if isinstance(note, dict) else note
        raise DitError(f"{where} has the version {found!r}; this DuoGen reads version {SAVED_VERSION}.")
    for name in ("dit", "sampling", "latents"):
        if not isinstance(note.get(name), dict):
            raise DitError(f"{where} has {name} {note.get(name)!r}; expected an object.")
    sampling = checked_numbers(Sampling, note["sampling"], f"{where}: sampling", DitError)
    return SavedDit(path, weights, note["dit"], sampling, note["latents"])


# ---------------------------------------------------------------- Cosmos-Predict2.5 as published

WHAT = "weights of the DiT"
PROJECTION = "crossattn_proj.0"
NOTE = "duogen_convention"  # in a safetensors file's metadata
# The first characters of the published files' names, 2B and 14B.
PUBLISHED = {
    "d20b7120": "pre-trained",
    "54937b8c": "pre-trained",
    "81edfebe": "post-trained",
    "e21d2a49": "post-trained",
}


@dataclass(frozen=True)
class Convention:
    clean_timestep: float
    sampling: Sampling


CONVENTIONS = {
    "post-trained": Convention(1e-4, Sampling(36, 8.0, 1.0, "karras", "unipc")),
    "pre-trained": Convention(-1.0, Sampling(36, 8.0, 5.0, "shifted", "unipc")),
}


@dataclass(frozen=True)
class CosmosFile:
    """A matching set of weights, of which only headers were read.

    names: the file's name of each tensor -> diffusers' name. left_out: what is no weight (training counters).
    formats: the quantised layers, by the file's names. convention_from: who says so.
    """

    path: Path
    weights: WeightFiles
    layout: str
    names: dict[str, str]
    left_out: tuple[str, ...]
    formats: dict[str, str]
    config: dict[str, Any]
    convention: str
    convention_from: str

    @property
    def name(self) -> str:
        return keys.model_name(self.config)

    @property
    def sampling(self) -> Sampling:
        return CONVENTIONS[self.convention].sampling

    @property
    def dtype(self) -> torch.dtype:
        """What most of the weights that are not quantised are stored in; bf16 where all are."""
        from duogen_core.weights.module import main_dtype

        return main_dtype(self.weights, self.left_out)

    def load_dit(self, dtype: torch.dtype | None = None, prepare: Prepare | None = None) -> PackedCosmos:
        """Loads the transformer without its projection, which is the connector, on the CPU, in eval mode.

        dtype: None keeps the file's. prepare(module, {quantised layer: format}) gives layers the classes that hold and
        run their weights, before those come; None: fp8 layers stay fp8, and GGUF's stay in their blocks unless a dtype
        is given, in which they are made whole.
        """
        import torch

        from duogen_core.devices import move, packed_dtype
        from duogen_core.weights.gguf import is_packed
        from duogen_core.weights.module import check_filled, fill_module, use_quantised_layers

        dit = _empty({**self.config, "use_crossattn_projection": False}, self.path)
        formats = {self._ours(layer): kind for layer, kind in self.formats.items()}
        formats.pop(PROJECTION, None)
        packed = any(map(is_packed, formats.values()))
        kept = dtype or (packed_dtype(torch.device("cpu")) if packed else self.dtype)
        if prepare is None and not (packed and dtype is not None):
            prepare = use_quantised_layers
        skip = {name for name in self.weights.entries if name not in self.names or self._is_projection(name)}
        fill_module(
            dit,
            self.weights,
            formats,
            rename=self.names.__getitem__,
            skip=skip,
            dtype=kept,
            prepare=prepare,
        )
        check_filled(dit, formats, self.path)
        return move(dit, dtype=kept) if packed else dit

    def load_connector(self, mllm: tuple[int, int] | None = None, dtype: torch.dtype | None = None) -> Connector:
        """Loads `crossattn_proj`, which reads all layers of an MLLM. mllm: its (layers, hidden size), if not known."""
        import torch

        from duogen_core.connector import Connector, ConnectorConfig
        from duogen_core.weights.gguf import is_packed
        from duogen_core.weights.module import build_empty, fill_module
        from duogen_core.weights.quantised import FP8

        total, width = self.config["crossattn_proj_in_channels"], self.config["encoder_hidden_states_channels"]
        shape = mllm or keys.STATES.get(total)
        if shape is None:
            raise DuoGenError(
                f"The connector in {self.path} reads {total} numbers a token; of which MLLM is not known."
            )
        if shape[0] * shape[1] != total:
            raise DuoGenError(
                f"The connector in {self.path} reads {total} numbers a token, but this MLLM has {shape[0]} layers of "
                f"width {shape[1]}, {shape[0] * shape[1]} numbers; it was made for another MLLM"
                f"{_made_for(total)}."
            )
        kind = next((kind for layer, kind in self.formats.items() if self._ours(layer) == PROJECTION), None)
        if kind is not None and kind not in FP8.values() and not is_packed(kind):
            raise DuoGenError(f"The connector in {self.path} is quantised as {kind}; expected bf16, fp16, fp8 or GGUF.")
        connector = build_empty(lambda: Connector(ConnectorConfig(*shape, width)), self.path, "a connector")
        # Made whole of blocks, 100 million numbers of the published one in float32 would be a third of the file.
        kept = torch.bfloat16 if kind is not None and is_packed(kind) else self.dtype
        # prepare=None: the projection is added up layer by layer, slices of a matrix that must be whole.
        return fill_module(
            connector,
            self.weights,
            {"proj": kind} if kind else {},
            rename=lambda name: f"proj.{name.rpartition('.')[2]}",
            skip={name for name in self.weights.entries if not self._is_projection(name)},
            dtype=dtype or kept,
            prepare=None,
        )

    def _is_projection(self, name: str) -> bool:
        return self.names.get(name, "").startswith(f"{PROJECTION}.")

    def _ours(self, layer: str) -> str:
        return self.names[f"{layer}.weight"].removesuffix(".weight")


def open_published(path: str | os.PathLike, convention: str | None = None) -> CosmosFile | WanFile:
    """Looks at headers and JSON alone; refuses by name what is another model, half of one, or ambiguous.

    convention: "post-trained" or "pre-trained", of Cosmos.
    """
    from duogen_core.dit.wan_files import match_wan
    from duogen_core.weights import wan_keys

    path = Path(path)
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    weights = find_weights(inner, WHAT)
    if wan_keys.layout_of(weights.entries) is not None:
        return match_wan(weights, path)
    return match_cosmos(weights, path, convention)


def match_cosmos(weights: Any, path: Path, convention: str | None = None) -> CosmosFile:
    """weights: WeightFiles, or what else has files, entries, metadata and notes. path: as the user named them."""
    from duogen_core.weights.module import plain_entries
    from duogen_core.weights.quantised import is_extra, layer_formats

    layout = keys.layout_of(weights.entries)
    if layout is None:
        raise WeightError(
            f"{path} holds no Cosmos-Predict2.5 transformer: none of its {len(weights.entries)} tensors is named as "
            f"one of its blocks; python -m duogen_core inspect says what it is."
        )
    kind, prefix = layout
    folder = weights.files[0].parent
    written = _written_config(folder) if kind == "diffusers" else {}
    if written.get("_class_name") == "PackedCosmos" and f"{PROJECTION}.weight" not in weights.entries:
        raise WeightError(
            f"{path} is the DiT of a DuoGen model, whose connector is a folder of its own; give the whole model, the "
            f"folder that holds model_index.json."
        )
    left_out = tuple(sorted(n for n in weights.entries if keys.BOOKKEEPING.search(n) or n == f"{prefix}scaled_fp8"))
    rename: Callable[[str], str] = (lambda n: n) if kind == "diffusers" else (lambda n: keys.to_diffusers(n, prefix))
    names = {name: rename(name) for name in weights.entries if name not in left_out}
    formats = layer_formats(weights)
    entries, _ = plain_entries(weights, path, rename, left_out)
    strays = [n for n in names if is_extra(n) and n.rpartition(".")[0] not in formats]
    if strays:  # the weight has another layout's name, by which its scale would not be found
        raise WeightError(f"{path} mixes two layouts: {strays[0]} stands apart from its weight; give one model.")
    shapes = {ours: entry.shape for ours, entry in entries.items()}
    derived = keys.config_from_shapes(shapes, str(path))
    for name, value in derived.items():
        if name in written and written[name] != value and name != "rope_scale":
            raise WeightError(
                f"{folder / 'config.json'} says {name} {written[name]!r}, but the weights beside it have {value!r}; "
                f"they belong to two models."
            )
    config = {**derived, **{name: written[name] for name in _CONFIG if name in written}}
    said, by = _convention(convention, written, weights, path)
    config["clean_timestep"] = CONVENTIONS[said].clean_timestep
    check_tensors(entries, shapes_of(_empty(config, path)), path, keys.model_name(config))
    return CosmosFile(path, weights, kind, names, left_out, formats, config, said, by)


# What a config.json says that no tensor shows.
_CONFIG = (
    "rope_scale",
    "max_size",
    "patch_size",
    "concat_padding_mask",
    "extra_pos_embed_type",
    "attention",
    "references",
)


def _written_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    value = read_json(file, "configuration of a DiT")
    if not isinstance(value, dict):
        raise WeightError(f"{file} holds a {type(value).__name__}; expected a JSON object.")
    return value


def _convention(asked: str | None, written: dict[str, Any], weights: WeightFiles, path: Path) -> tuple[str, str]:
    """(convention, who says so)."""
    known = " or ".join(CONVENTIONS)
    if asked is not None:
        if asked not in CONVENTIONS:
            raise DuoGenError(f"The convention is {asked!r}; expected {known}.")
        return asked, "asked for"
    noted = weights.metadata.get(NOTE)
    if noted is not None:
        if noted not in CONVENTIONS:
            raise WeightError(f"{path} says in its metadata that it is {noted!r}; expected {known}.")
        return noted, "the file's metadata"
    clean = written.get("clean_timestep")
    if isinstance(clean, (int, float)):
        return ("pre-trained" if clean < 0 else "post-trained"), "config.json"
    for part in reversed(path.absolute().parts[-4:]):
        if part[:8] in PUBLISHED:
            return PUBLISHED[part[:8]], f"the name {part}"
        for name in CONVENTIONS:
            if name in part:
                return name, f"the name {part}"
    return "post-trained", "assumed"


def _empty(config: dict[str, Any], path: Path) -> PackedCosmos:
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.weights.module import build_empty

    return build_empty(lambda: PackedCosmos(**config), path, "a Cosmos-Predict2.5 transformer")


def _made_for(total: int) -> str:
    shape = keys.STATES.get(total)
    return f", one of {shape[0]} layers of width {shape[1]}, such as Qwen2.5-VL-7B" if shape else ""
