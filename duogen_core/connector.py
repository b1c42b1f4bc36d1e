"""The connector: hidden states of all MLLM layers -> the DiT's text condition.

In: for each token the outputs of the decoder layers 1..L (the last one after the final norm), each [.., H].
Out: [.., cross_width] = GELU(concat_l normalise(h_l) @ W + b), with normalise = (h - mean) / (unbiased std + 1e-8) over
channels, float32. Because the projection is linear, concat @ W = sum_l normalise(h_l) @ W_l: `project_layer` adds one
layer at a time while the MLLM runs, so a token keeps `cross_width` numbers and never L x H. `forward` is the
concatenated form; `project` is its second half, which training runs on states that are normalised already.
`layers: last` (the paper's ablation) takes the last layer alone, and nothing of the others.
Source: DuoGen (arXiv 2602.00508), connector; Cosmos-Predict2.5 `crossattn_proj` (same convention, same weights).
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.weights.headers import check_sizes
from duogen_core.weights.module import build_empty, check_module, fill_module
from duogen_core.weights.reading import folder_weights

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
BLOCK = 256  # tokens


@dataclass(frozen=True)
class ConnectorConfig:
    """layers: which of the MLLM's num_layers are read. drop: what the negative branch of guidance does not see, as the
    weights were trained: the last text segment, or all text.

    segment: which text is the last segment where the assistant wrote none since its last picture (text to picture, an
    edit, two pictures in a row). "user": the last text of the user. "none": there is no segment, so that guidance does
    nothing; so weights were trained whose config.json says nothing about it.
    mllm, dit: families of the pair that stage 2 trained it for, "" where nobody says. Shapes do not tell: Qwen2.5-VL-7B
    and LLaVA-OneVision-7B both have 28 layers of width 3584.
    """

    num_layers: int
    hidden_size: int
    cross_width: int
    layers: Literal["all", "last"] = "all"
    drop: Literal["last_segment", "all_text"] = "last_segment"
    segment: Literal["user", "none"] = "user"
    mllm: str = ""
    dit: str = ""

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "cross_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DuoGenError(f"The connector's {name} must be a positive whole number, not {value!r}.")
        for name, known in (
            ("layers", ("all", "last")),
            ("drop", ("last_segment", "all_text")),
            ("segment", ("user", "none")),
        ):
            if getattr(self, name) not in known:
                raise DuoGenError(f"The connector's {name} is {getattr(self, name)!r}; expected {' or '.join(known)}.")
        for name in ("mllm", "dit"):
            if not isinstance(getattr(self, name), str):
                raise DuoGenError(f"The connector's {name} must be the name of a family, not {getattr(self, name)!r}.")

    def check_pair(self, mllm: str, dit: str, which: str) -> None:
        """Refuses another pair than the one it was trained for; both are named. which: what the message calls it."""
        own, other = ((self.mllm, mllm), (self.dit, dit))
        if any(trained and given and trained != given for trained, given in (own, other)):
            raise DuoGenError(
                f"{which} was trained for {self.mllm or mllm} and {self.dit or dit}, and these models are {mllm} and "
                f"{dit}: states of one family mean nothing to a connector of another. Take it from the same training "
                "as the models."
            )

    @property
    def first_layer(self) -> int:
        return 0 if self.layers == "all" else self.num_layers - 1


def normalise(h: Tensor) -> Tensor:
    """[.., H] -> float32 [.., H] with zero mean and unit (unbiased) std over channels."""
    h = h.float()
    std, mean = torch.std_mean(h, dim=-1, keepdim=True)  # unbiased, as Cosmos-Predict2.5 does it
    return (h - mean) / (std + 1e-8)


def _required() -> set[str]:
    return {f.name for f in fields(ConnectorConfig) if f.default is MISSING}


class Connector(nn.Module):
    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear((config.num_layers - config.first_layer) * config.hidden_size, config.cross_width)

    def project_layer(self, layer: int, h: Tensor, total: Tensor | None = None) -> Tensor:
        """Layer `layer` (0-based) of h [.., H] -> its part of the sum, float32 [.., cross_width], without bias.

        total: the sum of the layers before, to which the part is added in place. No more than BLOCK tokens are
        normalised at a time, so that a long context takes little more memory than its sums.
        """
        width = self.config.hidden_size
        if h.shape[-1] != width or not 0 <= layer < self.config.num_layers:
            raise DuoGenError(
                f"The connector was made for {self.config.num_layers} layers of width {width}, but got layer "
                f"{layer + 1} of width {h.shape[-1]}; it belongs to another MLLM."
            )
        place = layer - self.config.first_layer
        # The weight may lie elsewhere than the states. In the computer's memory (offloading), it follows them. On a
        # card they follow it: where an MLLM lies on several cards, all sums are on one, and weights stay in place.
        device = self._meets(h)
        if total is None:
            total = torch.zeros(*h.shape[:-1], self.config.cross_width, device=device)
        total = total.to(device)
        if place < 0:
            return total
        weight = self.proj.weight[:, place * width : (place + 1) * width].to(device)
        states, sums = h.reshape(-1, width), total.view(-1, self.config.cross_width)
        for start in range(0, len(states), BLOCK):
            block = normalise(states[start : start + BLOCK].to(device)).to(weight.dtype)
            if weight.dtype == sums.dtype:
                sums[start : start + BLOCK].addmm_(block, weight.mT)
            else:
                sums[start : start + BLOCK].add_(F.linear(block, weight))
        return total

    def project_layers(self, states: Tensor) -> Tensor:
        """All layers that are read [.., n, H] -> the whole sum, float32 [.., cross_width], without bias."""
        states = states.to(self._meets(states))
        weight = self.proj.weight.to(states.device)
        return F.linear(normalise(states).flatten(-2).to(weight.dtype), weight).float()

    def _meets(self, states: Tensor) -> torch.device:
        """Where states and weight come together."""
        own = self.proj.weight.device
        return states.device if own.type == "cpu" else own

    def finish(self, total: Tensor) -> Tensor:
        """The summed parts [.., cross_width] -> GELU(total + bias), float32."""
        return F.gelu(total + self.proj.bias.to(total.device, torch.float32))

    def forward(self, all_states: Tensor) -> Tensor:
        """[.., L, H] -> [.., cross_width]: concatenate, then project."""
        expected = (self.config.num_layers, self.config.hidden_size)
        if tuple(all_states.shape[-2:]) != expected:
            raise DuoGenError(
                f"The connector was made for {expected[0]} layers of width {expected[1]}, but got "
                f"{list(all_states.shape[-2:])}; it belongs to another MLLM."
            )
        return self.project(normalise(all_states).flatten(-2))

    def project(self, normalised: Tensor) -> Tensor:
        """[.., L * H], each layer normalised -> [.., cross_width]."""
        flat = normalised[..., self.config.first_layer * self.config.hidden_size :]
        return F.gelu(self.proj(flat.to(self.proj.weight.dtype)).float())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Connector:
        """Reads config.json and model.safetensors of a folder; every tensor must be there and fit."""
        folder = Path(folder)
        config_file, weights_file = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        if not config_file.is_file():
            raise DuoGenError(f"The connector folder {folder} lacks {CONFIG_NAME}; expected that and {WEIGHTS_NAME}.")
        values, required = read_json(config_file, "configuration of a connector"), _required()
        if not isinstance(values, dict) or not required <= values.keys():
            names = ", ".join(sorted(required))
            raise DuoGenError(f"{config_file} is not a connector configuration; expected JSON with {names}.")
        known = {f.name: values[f.name] for f in fields(ConnectorConfig) if f.name in values}
        try:
            config = ConnectorConfig(**{"segment": "none", **known})
        except DuoGenError as error:
            raise DuoGenError(f"{config_file}: {error}") from None
        weights = folder_weights(folder, what="weights of the connector")
        check_sizes(values, weights.entries, config_file)
        connector = build_empty(lambda: cls(config), config_file, "a connector")
        formats = check_module(connector, weights, weights_file, "connector")
        # A copy, as training writes the file anew; in float32, whatever the file's type is.
        return fill_module(connector, weights, formats, dtype=torch.float32, prepare=None, copy=True)

    def save_pretrained(self, folder: str | Path) -> None:
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {name: value for name, value in asdict(self.config).items() if value != ""}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        save_file({k: v.detach().contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS_NAME)
