"""Published Wan transformers (2.1 text-to-video, 2.2 TI2V-5B): one safetensors file, or a diffusers folder.

In:  the official names, ComfyUI's or diffusers' (wan_keys.py); bf16, fp16, fp32, fp8 plainly cast or with scales.
Out: a `WanFile`, of which only headers and JSON were read; `load_dit` gives the transformer. It has no connector: the
     published weights read umT5's text, and make nothing of an MLLM's states until stage 2 has trained one in front.
Sampling: the defaults of Wan-AI's generate.py for text to video (50 steps, guidance 5, times shifted by 5, UniPC).
`open_published` in loading.py opens either family by what its tensors are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.sampling import Sampling
from duogen_core.weights import wan_keys as keys
from duogen_core.weights.headers import WeightError, check_tensors, shapes_of

if TYPE_CHECKING:
    import torch

    from duogen_core.dit.wan import PackedWan
    from duogen_core.weights.quantised import Prepare
    from duogen_core.weights.reading import WeightFiles

SAMPLING = Sampling(50, 5.0, 5.0, "shifted", "unipc")
# What a config.json says that no tensor shows.
WRITTEN = ("num_attention_heads", "attention_head_dim", "eps", "qk_norm", "cross_attn_norm", "image_dim")


@dataclass(frozen=True)
class WanFile:
    """A matching set of weights. names: the file's name of each tensor -> diffusers' name. left_out: what is no weight
    (the mark of a scaled fp8 file). formats: the quantised layers, by the file's names."""

    path: Path
    weights: WeightFiles
    layout: str
    names: dict[str, str]
    left_out: tuple[str, ...]
    formats: dict[str, str]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return keys.model_name(self.config)

    @property
    def sampling(self) -> Sampling:
        return SAMPLING

    @property
    def dtype(self) -> torch.dtype:
        """What most of the weights that are not quantised are stored in; bf16 where all are."""
        from duogen_core.weights.module import main_dtype

        return main_dtype(self.weights, self.left_out)

    def load_dit(self, dtype: torch.dtype | None = None, prepare: Prepare | None = None) -> PackedWan:
        """Loads the transformer on the CPU, in eval mode. dtype, prepare: as of CosmosFile.load_dit."""
        from duogen_core.weights.module import check_filled, fill_module, use_quantised_layers

        dit = _empty(self.config, self.path)
        formats = {self.names[f"{layer}.weight"].removesuffix(".weight"): kind for layer, kind in self.formats.items()}
        fill_module(
            dit,
            self.weights,
            formats,
            rename=self.names.__getitem__,
            skip=set(self.left_out),
            dtype=dtype or self.dtype,
            prepare=prepare or use_quantised_layers,
        )
        check_filled(dit, formats, self.path)
        return dit

    def load_connector(self, mllm: tuple[int, int] | None = None, dtype: torch.dtype | None = None) -> NoReturn:
        """As of CosmosFile, to say that there is none."""
        raise DuoGenError(
            f"{self.path} is {self.name} as published, which has no connector: it reads umT5's text, and draws nothing "
            "from a language model's states until DuoGen's stage 2 has trained a connector in front of it; give the "
            "connector of such a model."
        )


def match_wan(weights: Any, path: Path) -> WanFile:
    """weights: WeightFiles, or what else has files and entries, in a layout that wan_keys knows. path: as named by the
    user. Refuses by name what is a relative, half of one, or of two models."""
    from duogen_core.weights.module import plain_entries
    from duogen_core.weights.quantised import is_extra, layer_formats

    found = keys.layout_of(weights.entries)
    if found is None:
        raise WeightError(
            f"{path} holds no Wan transformer: none of its {len(weights.entries)} tensors is named as one of its "
            "blocks; python -m duogen_core inspect says what it is."
        )
    layout, prefix = found
    where = weights.files[0].parent / "config.json"
    written = read_json(where, "configuration of a DiT") if layout == "diffusers" and where.is_file() else {}
    if not isinstance(written, dict):
        raise WeightError(f"{where} holds a {type(written).__name__}; expected a JSON object.")
    if written.get("_class_name") == "PackedWan":
        raise WeightError(
            f"{path} is the DiT of a DuoGen model, whose connector is a folder of its own; give the whole model, the "
            "folder that holds model_index.json."
        )
    left_out = tuple(sorted(name for name in weights.entries if name == f"{prefix}scaled_fp8"))
    rename: Callable[[str], str] = str if layout == "diffusers" else lambda name: keys.to_diffusers(name, prefix)
    names = {name: rename(name) for name in weights.entries if name not in left_out}
    formats = layer_formats(weights)
    entries, _ = plain_entries(weights, path, rename, left_out)
    strays = [name for name in names if is_extra(name) and name.rpartition(".")[0] not in formats]
    if strays:  # the weight has another layout's name, by which its scale would not be found
        raise WeightError(f"{path} mixes two layouts: {strays[0]} stands apart from its weight; give one model.")
    derived = keys.config_from_shapes({ours: entry.shape for ours, entry in entries.items()}, str(path))
    for name, value in derived.items():
        said = written.get(name, value)
        if name not in WRITTEN and (tuple(said) if isinstance(said, list) else said) != value:
            raise WeightError(
                f"{where} says {name} {said!r}, but the weights beside it have {value!r}; they belong to two models."
            )
    config = {**derived, **{name: written[name] for name in WRITTEN if name in written}}
    check_tensors(entries, shapes_of(_empty(config, path)), path, keys.model_name(config))
    return WanFile(path, weights, layout, names, left_out, formats, config)


def _empty(config: dict[str, Any], path: Path) -> PackedWan:
    from duogen_core.dit.wan import PackedWan
    from duogen_core.weights.module import build_empty

    return build_empty(lambda: PackedWan(**config), path, "a Wan transformer")
