"""DuoGen Load MLLM LoRA: an adapter of the language model. (The MODEL takes ComfyUI's own LoRA loaders.)

In: the MLLM of any loader, a LoRA of ComfyUI's `loras` folder (one file, or a folder in PEFT's layout), a strength.
Out: another MLLM on the same weights, which ComfyUI changes when this one runs and changes back for the others.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from comfy_api.latest import io

from . import sockets
from .load_checkpoint import fingerprint_of

if TYPE_CHECKING:
    from duogen_core.mllm.adapter import Adapter, Change

    from ..host.model_management import Managed

FOLDER = "loras"


class DuoGenLoadMLLMLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadMLLMLoRA",
            display_name="DuoGen Load MLLM LoRA",
            category="DuoGen/loaders",
            description="Applies a LoRA to the language model, such as one that DuoGen's stage 1 was trained as. For a "
            "LoRA of the MODEL, take ComfyUI's own loader.",
            search_aliases=["lora", "adapter", "peft", "language model lora"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that the LoRA was trained on."),
                io.Combo.Input(
                    "lora_name",
                    options=[name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".safetensors")],
                    tooltip="A LoRA in ComfyUI's models/loras. Of an adapter in PEFT's layout, put the whole folder "
                    "there and choose its adapter_model.safetensors.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly it changes the model. 0 is no LoRA, 1 as it was trained.",
                ),
            ],
            outputs=[sockets.Mllm.Output("mllm", tooltip="The language model with the LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, mllm: Any, lora_name: str, strength: float) -> str:
        """Changes when the file or its configuration does, so that it is read again."""
        from duogen_core.mllm.adapter import CONFIG

        path = folder_paths.get_full_path(FOLDER, lora_name)
        return fingerprint_of(Path(path), Path(path).with_name(CONFIG)) if path else ""

    @classmethod
    def execute(cls, mllm: Any, lora_name: str, strength: float) -> io.NodeOutput:
        from duogen_core.mllm.adapter import read_adapter

        if strength == 0:
            return io.NodeOutput(mllm)
        adapter = read_adapter(folder_paths.get_full_path_or_raise(FOLDER, lora_name), mllm.core)
        return io.NodeOutput(with_lora(mllm, adapter, strength))


class CoreAdapter(WeightAdapterBase):
    """A change that the core's own arithmetic makes, which is PEFT's: ComfyUI's own DoRA divides by other lengths.

    weights: the fields of a Change; ComfyUI makes copies of the adapter with its tensors on other devices.
    """

    name = "duogen"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self, weight: Any, key: str, strength: float, strength_model: float, offset: Any, function: Any, *_: Any
    ) -> Any:
        from duogen_core.mllm.adapter import Change

        merged = Change(*self.weights).to(weight.device).merged(weight, strength)
        weight += function((merged - weight.float()).to(weight.dtype))
        return weight


def patch_of(change: Change) -> WeightAdapterBase:
    if change.kind == "LoRA" and change.lengths is None:
        up, down = change.parts
        return LoRAAdapter(set(), (up, down, change.scale * len(down), None, None, None))
    return CoreAdapter(set(), (change.kind, change.parts, change.scale, change.lengths))


def with_lora(mllm: Managed, adapter: Adapter, strength: float) -> Managed:
    """Rows of tokens replace the model's whole, whatever the strength: half a <BOV> means nothing."""
    from comfy.patcher_extension import CallbacksMP

    from duogen_core.mllm.adapter import with_marker

    core = with_marker(mllm.core, adapter)
    patcher = mllm.patcher.clone()
    patches: dict[Any, Any] = {f"model.{name}.weight": patch_of(change) for name, change in adapter.layers.items()}
    for name, rows in adapter.rows.items():
        for token, row in rows.items():
            patches[f"model.{name}.weight", (0, token, 1)] = ("set", (row[None],))
    taken = patcher.add_patches(patches, strength)
    assert len(taken) == len(patches), "read_adapter names the modules of this very model"
    patcher.add_callback(CallbacksMP.ON_DETACH, lambda *_: core.clear_cache())
    changed = copy.copy(mllm)
    changed.core, changed.patcher = core, patcher
    return changed
