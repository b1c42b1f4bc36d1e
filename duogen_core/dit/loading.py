"""Cosmos-Predict2.5 as published -> PackedCosmos, and its `crossattn_proj` -> Connector.

In:  a single safetensors file (official, ComfyUI's or diffusers' names) or a diffusers folder (sharded or not; of a
     whole pipeline too); bf16, fp16, fp32 or fp8. `open_cosmos` reads headers alone and refuses what does not match.
Out: `CosmosFile.load_dit`, built on the meta device, weights mapped from the file; `CosmosFile.load_connector`.

Two conventions exist, and no tensor tells them apart: in post-training clean frames had the timestep 1e-4 and sampling
goes by Karras' times, in pre-training clean frames shared the target's timestep and times are shifted by 5. Which one
holds is said by the user, else by the file (metadata, config.json, or its published name), else post-trained is taken.
Source: diffusers' Cosmos2_5_PredictBasePipeline and its scheduler (36 steps; its guidance 7 is 8 here); for the
pre-trained one nvidia-cosmos/cosmos-predict2.5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.sampling import Sampling
from duogen_core.weights import cosmos_keys as keys
from duogen_core.weights.headers import WeightError, check_tensors, shapes_of
from duogen_core.weights.reading import WeightFiles, find_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from duogen_core.connector import Connector
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.weights.quantised import Prepare

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
        from duogen_core.weights.quantised import is_extra

        counts = {"BF16": 0}
        for name, entry in self.weights.entries.items():
            if entry.dtype in ("F64", "F32", "F16", "BF16") and name in self.names and not is_extra(name):
                counts[entry.dtype] = counts.get(entry.dtype, 0) + math.prod(entry.shape)
        return _torch_dtype(max(counts, key=counts.__getitem__))

    def load_dit(self, dtype: torch.dtype | None = None, prepare: Prepare | None = None) -> PackedCosmos:
        """The transformer without its projection, which is the connector, on the CPU, in eval mode.

        dtype: None keeps the file's. prepare(module, {quantised layer: format}) gives layers the classes that hold and
        run their weights, before those come; None: fp8 layers stay fp8.
        """
        from duogen_core.dit.cosmos import PackedCosmos
        from duogen_core.weights.quantised import use_scaled_linear

        dit = _on_meta(PackedCosmos, {**self.config, "use_crossattn_projection": False})
        formats = {self._ours(layer): kind for layer, kind in self.formats.items()}
        formats.pop(PROJECTION, None)
        (prepare or use_scaled_linear)(dit, formats)
        mine = [name for name, ours in self.names.items() if not ours.startswith(f"{PROJECTION}.")]
        dit.load_state_dict(dict(self._tensors(mine, dtype or self.dtype)), strict=False, assign=True)
        self.weights.check_unchanged()
        empty = [name for name, weight in dit.named_parameters() if weight.is_meta]
        if empty:
            raise WeightError(f"{self.path}: no weights came for {empty[0]} and {len(empty) - 1} more.")
        return dit.eval()

    def load_connector(self, mllm: tuple[int, int] | None = None, dtype: torch.dtype | None = None) -> Connector:
        """`crossattn_proj`, which reads all layers of one MLLM. mllm: its (layers, hidden size), where not known."""
        import torch

        from duogen_core.connector import Connector, ConnectorConfig
        from duogen_core.weights.quantised import FP8, dequantised

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
        mine = [name for name, ours in self.names.items() if ours.startswith(f"{PROJECTION}.")]
        dtype = dtype or self.dtype
        found = dict(self._tensors(mine, dtype))
        weight, scale = found[f"{PROJECTION}.weight"], found.get(f"{PROJECTION}.weight_scale")
        kind = next((kind for layer, kind in self.formats.items() if self._ours(layer) == PROJECTION), None)
        if kind is not None and kind not in FP8.values():
            raise DuoGenError(f"The connector in {self.path} is quantised as {kind}; expected bf16, fp16 or fp8.")
        with torch.device("meta"):
            connector = Connector(ConnectorConfig(*shape, width))
        state = {"proj.weight": dequantised(weight, scale, dtype) if kind else weight}
        connector.load_state_dict({**state, "proj.bias": found[f"{PROJECTION}.bias"]}, assign=True)
        self.weights.check_unchanged()
        return connector.eval()

    def _ours(self, layer: str) -> str:
        return self.names[f"{layer}.weight"].removesuffix(".weight")

    def _tensors(self, names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """(diffusers' name, tensor), quantised layers with their scales, everything else in `dtype`."""
        from duogen_core.weights.quantised import unified

        wanted = set(names)
        formats = {layer: kind for layer, kind in self.formats.items() if f"{layer}.weight" in wanted}
        for name, tensor in unified(self.weights.tensors(wanted), formats):
            layer, _, last = name.rpartition(".")
            ours = self.names.get(name) or f"{self._ours(layer)}.{last}"
            if last == "bias" or (last == "weight" and layer not in formats):
                tensor = tensor.to(dtype)
            yield ours, tensor


def open_cosmos(path: str | os.PathLike, convention: str | None = None) -> CosmosFile:
    """Looks at headers and JSON alone; refuses by name what is another model, half of one, or ambiguous."""
    path = Path(path)
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    return match_cosmos(find_weights(inner, "weights of the DiT"), path, convention)


def match_cosmos(weights: Any, path: Path, convention: str | None = None) -> CosmosFile:
    """weights: WeightFiles, or what else has files, entries, metadata and notes. path: as the user named them."""
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.weights.quantised import check_names, is_extra, layer_formats, plain_entry

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
    ours_of = {rename(f"{layer}.weight").removesuffix(".weight"): kind for layer, kind in formats.items()}
    check_names(weights, ours_of, path, rename, left_out)
    strays = [n for n in names if is_extra(n) and n.rpartition(".")[0] not in formats]
    if strays:  # the weight has another layout's name, by which its scale would not be found
        raise WeightError(f"{path} mixes two layouts: {strays[0]} stands apart from its weight; give one model.")
    entries = {
        ours: plain_entry(weights.entries[name], formats.get(name.removesuffix(".weight")))
        for name, ours in names.items()
        if not is_extra(name)
    }
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
    check_tensors(entries, shapes_of(_on_meta(PackedCosmos, config)), path, keys.model_name(config))
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


def _on_meta(cls: type, config: dict[str, Any]) -> Any:
    import torch

    try:
        with torch.device("meta"):
            return cls(**config)
    except DuoGenError:
        raise
    except Exception as error:  # a wrong value raises whatever the layer that meets it raises
        if is_out_of_memory(error):
            raise
        raise WeightError(
            f"This configuration is none of a Cosmos-Predict2.5 transformer ({first_line(error)})."
        ) from error


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"F32": torch.float32, "F64": torch.float32, "F16": torch.float16}.get(name, torch.bfloat16)


def _made_for(total: int) -> str:
    shape = keys.STATES.get(total)
    return f", one of {shape[0]} layers of width {shape[1]}, such as Qwen2.5-VL-7B" if shape else ""
