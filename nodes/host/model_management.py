"""Puts modules that transformers or diffusers built under ComfyUI's memory management.

In: an `nn.Module` with its weights. Out: a `ModelPatcher` around it, whose layers cast and move themselves on use.

ComfyUI moves weights layer by layer when a model does not fit, which needs its own layer classes (`comfy.ops`). They
are subclasses of torch's layers without state of their own, so an existing layer becomes one by class assignment, and
keeps `isinstance`, its weights and its name. A file of weights gets them before it is read (`Precision.prepare`), so
that nothing is converted that need not be, and quantised layers come as ComfyUI's own, which keep and run every format
it knows. Nothing here or in the nodes ever says `.to("cuda")`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.cli_args import args
from comfy.patcher_extension import CallbacksMP
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LAYERS = ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d", "LayerNorm", "GroupNorm", "RMSNorm")
# A model this small is run in the precision it was trained in: nothing is won by halving it.
SMALL_MODEL = 300_000_000


class _WithWeights:
    """Stands in for a layer while its own `forward` runs, with the weights that were cast for this call."""

    def __init__(self, layer: nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        self._layer, self.weight, self.bias = layer, weight, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


_custom_classes: dict[tuple[type, bool], type] = {}


def _castable(cls: type[nn.Module], always_cast: bool) -> type:
    """For a layer with a `weight` that comfy.ops does not know (a library's own RMSNorm): a subclass that casts it."""
    if (cls, always_cast) not in _custom_classes:

        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not (self.comfy_cast_weights or self.weight_function or self.bias_function):
                return cls.forward(self, x, *args, **kwargs)
            weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
            out = cls.forward(_WithWeights(self, weight, bias), x, *args, **kwargs)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out

        attributes = {"forward": forward, "comfy_cast_weights": always_cast}
        _custom_classes[cls, always_cast] = type(cls.__name__, (cls, comfy.ops.CastWeightBiasOp), attributes)
    return _custom_classes[cls, always_cast]


def assign_operations(module: nn.Module, operations: type) -> None:
    """Give every layer of `module` the matching class of `operations`, e.g. comfy.ops.manual_cast."""
    always_cast = bool(operations.Linear.comfy_cast_weights)
    known = {getattr(nn, name): getattr(operations, name) for name in LAYERS if hasattr(operations, name)}
    for layer in module.modules():
        if type(layer) in known:
            layer.__class__ = known[type(layer)]
        elif not hasattr(layer, "comfy_cast_weights") and _only_weight_and_bias(layer):
            layer.__class__ = _castable(type(layer), always_cast)
        else:
            continue
        if not hasattr(layer, "bias"):
            layer.bias = None  # ComfyUI's casting reads both


def _only_weight_and_bias(layer: nn.Module) -> bool:
    own = {name for name, value in layer.named_parameters(recurse=False) if value is not None}
    return "weight" in own and own <= {"weight", "bias"} and next(layer.children(), None) is None


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def working_dtypes(
    module: nn.Module, device: torch.device, supported: Iterable[torch.dtype] = (torch.bfloat16, torch.float32)
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype to keep the weights in, dtype to compute in or None for the same) on `device`, by ComfyUI's own rules."""
    return dtypes_for(next(module.parameters()).dtype, count_parameters(module), device, supported)


def dtypes_for(
    stored: torch.dtype,
    count: int,
    device: torch.device,
    supported: Iterable[torch.dtype] = (torch.bfloat16, torch.float32),
) -> tuple[torch.dtype, torch.dtype | None]:
    """The same for `count` weights in the dtype of their file. A device that cannot compute in half precision keeps
    them in it all the same, and casts each layer as it runs: twice the memory would be worse than the time."""
    supported = list(supported)
    if count < SMALL_MODEL and stored == torch.float32:
        return torch.float32, None
    kept = mm.unet_dtype(device, model_params=count, supported_dtypes=supported, weight_dtype=stored)
    half = stored in (torch.bfloat16, torch.float16)
    if kept == torch.float32 and half and not (args.fp32_unet or args.force_fp32):
        return stored, torch.float32
    return kept, mm.unet_manual_cast(kept, device, supported)


@dataclass(frozen=True)
class Precision:
    """What a file's weights are kept and computed in (None: the same) on the device they will run on."""

    device: torch.device
    kept: torch.dtype
    compute: torch.dtype | None

    @classmethod
    def of(cls, stored: torch.dtype, count: int, device: torch.device) -> Precision:
        return cls(device, *dtypes_for(stored, count, device))

    def prepare(self, module: nn.Module, formats: Mapping[str, str]) -> None:
        """Gives the layers of a module without weights ComfyUI's classes; formats: the quantised ones."""
        operations = comfy.ops.pick_operations(self.kept, self.compute, load_device=self.device)
        if formats:
            mixed = comfy.ops.pick_operations(
                self.kept, self.compute or self.kept, load_device=self.device,
                model_config=SimpleNamespace(quant_config={"mixed_ops": True}),
            )  # fmt: skip
            for name in formats:
                layer = module.get_submodule(name)
                quantised = mixed.Linear(
                    layer.in_features, layer.out_features, layer.bias is not None, device=torch.device("cpu")
                )
                owner, _, last = name.rpartition(".")
                setattr(module.get_submodule(owner), last, quantised)
        assign_operations(module, operations)


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Weights to `dtype`; nothing at all where they have it, because diffusers warns at every `to`."""
    if any(p.dtype != dtype for p in module.parameters()):
        module.to(dtype)


class _Holder(nn.Module):
    """ModelPatcher writes its book-keeping (`device`, …) on the module, which transformers models do not let it do."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.model = module
        self.__class__ = type(name, (_Holder,), {})  # the name that ComfyUI's log shows


def make_patcher(
    module: nn.Module, load_device: torch.device, offload_device: torch.device
) -> comfy.model_patcher.ModelPatcher:
    """A patcher of the kind this ComfyUI runs with, looked up now because start-up may have replaced the class."""
    module.requires_grad_(False).eval()
    mm.archive_model_dtypes(module)
    patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=load_device, offload_device=offload_device)
    if not mm.is_device_cpu(offload_device):
        module.to(offload_device)
    return patcher


class Managed:
    """A core object (`.core`) and the patchers that hold its weights. ComfyUI protects what `get_models` names."""

    def __init__(self, core: Any, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self.core, self.patcher = core, patcher

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [self.patcher]


def manage_mllm(core: Any, precision: Precision | None = None) -> Managed:
    """A `duogen_core.mllm.Mllm` under management; the device is the one ComfyUI runs text models on.

    precision: given where its layers have ComfyUI's classes already."""
    device, offload = mm.text_encoder_device(), mm.text_encoder_offload_device()
    if precision is None:
        precision = Precision(device, *working_dtypes(core.model, device))
        convert(core.model, precision.kept)
        precision.prepare(core.model, {})
    compute = precision.compute
    if compute is not None:  # whatever follows works in the type of what the embedding gives out
        core.model.get_input_embeddings().register_forward_hook(lambda layer, args, out: out.to(compute))
    core.device = device  # inputs go here even while weights lie elsewhere
    patcher = make_patcher(_Holder("DuoGenMllm", core.model), device, offload)
    patcher.add_callback(CallbacksMP.ON_DETACH, lambda *_: core.clear_cache())  # unloaded: its KV cache goes too
    return Managed(core, patcher)


def manage_connector(core: nn.Module) -> Managed:
    """A `duogen_core.connector.Connector`. It multiplies by slices of its one matrix and moves those itself, so its
    layers keep their classes; the patcher only accounts for it."""
    holder = _Holder("DuoGenConnector", core)
    return Managed(core, make_patcher(holder, mm.text_encoder_device(), mm.text_encoder_offload_device()))


def load_models(*managed: Managed | None, memory_required: float = 0) -> None:
    """Bring models to their devices just before they are used, with room for what the run needs besides weights."""
    patchers = [patcher for one in managed if one is not None for patcher in one.get_models()]
    mm.load_models_gpu(patchers, memory_required=memory_required)


@contextmanager
def interrupted_as_comfyui() -> Iterator[None]:
    """Around core functions that were given `mm.processing_interrupted`: what they raise then becomes ComfyUI's own
    exception, which ends the run as cancelled and takes back the request to do so."""
    from duogen_core.errors import Cancelled

    try:
        yield
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise
