"""Puts modules that transformers or diffusers built under ComfyUI's memory management.

In: an `nn.Module` with its weights. Out: a `ModelPatcher` around it, whose layers cast and move themselves on use.

ComfyUI moves weights layer by layer when a model does not fit, which needs its own layer classes (`comfy.ops`). They
are subclasses of torch's layers without state of their own, so an existing layer becomes one by class assignment, and
keeps `isinstance`, its weights and its name. A module gets them before its weights are read (`Precision.prepare`), so
that nothing is converted needlessly, and quantised layers come as ComfyUI's own, which run every format it knows.
Nothing here or in the nodes ever says `.to("cuda")`.

Also here: estimates of the memory a run needs beside the weights (a little above what is measured, for an attention
that does not store its matrix), and the second try when memory runs out all the same.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.cli_args import args
from comfy.patcher_extension import CallbacksMP
from torch import nn

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError
from duogen_core.linear import FastLinear
from duogen_core.weights.gguf import is_packed

from .gguf import memory_of_blocks, use_gguf_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from duogen_core.document import Document

LAYERS = ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d", "LayerNorm", "GroupNorm", "RMSNorm")
# A model this small runs in the precision it was trained in: halving it would save next to nothing.
SMALL_MODEL = 300_000_000


class _WithWeights:
    """Stands in for a layer while its own `forward` runs, with the weights that were cast for this call."""

    def __init__(self, layer: nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        self._layer, self.weight, self.bias = layer, weight, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


_custom_classes: dict[tuple[type, bool], type] = {}


def _castable(cls: type[nn.Module], always_cast: bool) -> type:
    """Returns a subclass that casts its weight, for a layer that comfy.ops does not know (a library's own RMSNorm)."""
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


def assign_operations(module: nn.Module, operations: type, device: torch.device) -> None:
    """Gives every layer of `module` the matching class of `operations`, for example comfy.ops.manual_cast."""
    always_cast = bool(operations.Linear.comfy_cast_weights)
    known = {getattr(nn, name): getattr(operations, name) for name in LAYERS if hasattr(operations, name)}
    if not mm.is_device_cpu(device):  # the core's faster Linear is for the CPU alone; there it stays, and casts on use
        known[FastLinear] = operations.Linear
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
    return dtypes_for(
        next(p.dtype for p in module.parameters() if p.is_floating_point()), count_parameters(module), device, supported
    )


def dtypes_for(
    stored: torch.dtype,
    count: int,
    device: torch.device,
    supported: Iterable[torch.dtype] = (torch.bfloat16, torch.float32),
) -> tuple[torch.dtype, torch.dtype | None]:
    """The same for `count` weights in the dtype of their file.

    A device that cannot compute in half precision keeps the weights in it all the same and casts each layer as it runs:
    twice the memory would cost more than the time.
    """
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
    """The dtype that weights are kept in, and the one they are computed in (None: the same), on their device."""

    device: torch.device
    kept: torch.dtype
    compute: torch.dtype | None

    @classmethod
    def of(
        cls,
        stored: torch.dtype,
        count: int,
        device: torch.device,
        supported: Iterable[torch.dtype] = (torch.bfloat16, torch.float32),
    ) -> Precision:
        return cls(device, *dtypes_for(stored, count, device, supported))

    def prepare(self, module: nn.Module, formats: Mapping[str, str]) -> None:
        """Gives the layers of a module without weights ComfyUI's classes; formats: the quantised ones."""
        operations = comfy.ops.pick_operations(self.kept, self.compute, load_device=self.device)
        packed = {name: kind for name, kind in formats.items() if is_packed(kind)}
        if packed:
            use_gguf_layers(module, packed, self.compute or self.kept)
        if formats.keys() - packed.keys():
            mixed = comfy.ops.pick_operations(
                self.kept, self.compute or self.kept, load_device=self.device,
                model_config=SimpleNamespace(quant_config={"mixed_ops": True}),
            )  # fmt: skip
            for name in formats.keys() - packed.keys():
                layer = module.get_submodule(name)
                quantised = mixed.Linear(
                    layer.in_features, layer.out_features, layer.bias is not None, device=torch.device("cpu")
                )
                owner, _, last = name.rpartition(".")
                setattr(module.get_submodule(owner), last, quantised)
        assign_operations(module, operations, self.device)


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Converts the weights, unless they have this dtype already: diffusers warns at every `to`."""
    if any(p.dtype != dtype for p in module.parameters()):
        module.to(dtype)


class Holder(nn.Module):
    """Wraps a model of transformers or diffusers: ModelPatcher writes its records (`device`, …) on the module, which
    those refuse."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.model = module
        self.__class__ = type(name, (Holder,), {})  # the name that ComfyUI's log shows


def make_patcher(
    module: nn.Module, load_device: torch.device, offload_device: torch.device, *, dynamic: bool = True
) -> comfy.model_patcher.ModelPatcher:
    """Returns a patcher of the kind this ComfyUI runs with; dynamic=False: the classic one, which ComfyUI asks for
    where its dynamic one has no way (hooks, torch.compile).

    CoreModelPatcher is looked up at each call: since 0.16 ComfyUI replaces it by its dynamic one when it starts.
    """
    module.requires_grad_(False).eval()
    mm.archive_model_dtypes(module)
    kind = comfy.model_patcher.CoreModelPatcher if dynamic else comfy.model_patcher.ModelPatcher
    patcher = kind(module, load_device=load_device, offload_device=offload_device)
    if not mm.is_device_cpu(offload_device):
        module.to(offload_device)
    return patcher


class ModelHandle:
    """A core object (`.core`) and the ModelPatcher that holds its weights; travels on our own sockets.

    ComfyUI protects the models that `get_models` names from being unloaded while a prompt uses them. Its patcher has no
    `cached_patcher_init`: that would load another module than the one the core object runs, and none of the nodes that
    ask for it (hooks, Train LoRA, Select Model Device) has a socket for it.

    made_for: of a connector, the family of DiT it was trained with (families.FAMILIES); None: not known.
    """

    made_for: str | None = None

    def __init__(self, core: Any, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self.core, self.patcher = core, patcher

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [self.patcher]


def mllm_handle(core: Any, precision: Precision | None = None) -> ModelHandle:
    """Puts a `duogen_core.mllm.Mllm` on the device that ComfyUI runs text models on.

    precision: where its layers have ComfyUI's classes already; None: they get them here.
    """
    device, offload = mm.text_encoder_device(), mm.text_encoder_offload_device()
    if precision is None:
        precision = Precision(device, *working_dtypes(core.model, device))
        convert(core.model, precision.kept)
        precision.prepare(core.model, {})
    compute = precision.compute
    if compute is not None:  # what follows works in the dtype of the embeddings
        core.model.get_input_embeddings().register_forward_hook(lambda layer, args, out: out.to(compute))
    core.device = device  # inputs go here even while weights lie elsewhere
    # The KV cache is not ComfyUI's to free, so it goes with the weights. (Before every use ComfyUI detaches a model
    # without taking its weights away, only to put it on its list again.)
    patcher = make_patcher(Holder("DuoGenMllm", core.model), device, offload)
    patcher.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch_all=True: unpatch_all and core.clear_cache())
    return ModelHandle(core, patcher)


def connector_handle(core: nn.Module, made_for: str | None = None) -> ModelHandle:
    """The same for a `duogen_core.connector.Connector`; made_for: as of ModelHandle.

    It multiplies by slices of its one matrix and moves those itself, so its layers keep their classes; the patcher only
    counts its memory.
    """
    holder = Holder("DuoGenConnector", core)
    handle = ModelHandle(core, make_patcher(holder, mm.text_encoder_device(), mm.text_encoder_offload_device()))
    handle.made_for = made_for
    return handle


def load_models(*handles: ModelHandle | None, memory_required: float = 0) -> None:
    """Brings models to their devices just before they are used. memory_required: bytes beside the weights."""
    patchers = [patcher for handle in handles if handle is not None for patcher in handle.get_models()]
    mm.load_models_gpu(patchers, memory_required=memory_required)


@contextmanager
def interrupted_as_comfyui() -> Iterator[None]:
    """Turns the Cancelled of core functions, which get `mm.processing_interrupted`, into ComfyUI's own exception.

    That one ends the run as cancelled and resets the request to cancel. Since 0.20 it is a BaseException.
    """
    from duogen_core.errors import Cancelled

    try:
        yield
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


# ------------------------------------------------------------ memory estimates


def memory_of_context(mllm: ModelHandle, context: Document, max_new_tokens: int) -> float:
    """Bytes for writing on from a context: a character is at most one token."""
    characters = sum(len(part.text) for turn in context.turns for part in turn.parts if not isinstance(part, Picture))
    return memory_of_tokens(mllm, characters + max_new_tokens, [picture.size for picture in context.pictures])


def memory_of_tokens(mllm: ModelHandle, tokens: int, images: Sequence[tuple[int, int]] = ()) -> float:
    """Bytes for the KV cache of all tokens, the activations of one chunk of a prefill, and those of the images.

    tokens: of text. images: widths and heights; how many tokens one takes, and how many patches of it the vision tower
    sees, is the family's.
    """
    from duogen_core.mllm.base import CHUNK

    processor = mllm.core.image_processor
    grids = [processor.grid(size) for size in images]
    tokens, patches = tokens + sum(map(processor.tokens, grids)), sum(map(processor.seen, grids))

    text = mllm.core.model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = next(p for p in mllm.core.model.parameters() if p.is_floating_point()).element_size()
    kv_cache = tokens * text.num_hidden_layers * text.num_key_value_heads * head * 2 * size
    embedded = tokens * text.hidden_size * size
    chunk = min(tokens, CHUNK) * (8 * text.hidden_size + 2 * text.intermediate_size) * size + text.vocab_size * 4
    whole = memory_of_blocks(mllm.core.model, size)
    return kv_cache + embedded + chunk + whole + patches * mllm.core.numbers_of_a_patch * size


def memory_of_frame_cache(dit: Any, cells: int, size: int) -> float:
    """Bytes for the keys and values of earlier images, which a frame-causal DiT keeps while it samples.

    cells: of the latents of these images together. size: bytes a number.
    """
    config = dit.config
    if getattr(config, "attention", "full") != "frame_causal":
        return 0.0
    width = config.num_attention_heads * config.attention_head_dim
    patch = config.patch_size[-1] * config.patch_size[-2]
    return cells / patch * config.num_layers * 2 * width * size


def memory_of_text(dit: Any, tokens: int, size: int) -> float:
    """Bytes for the text's keys and values in all blocks, which are kept for all steps of an image.

    tokens: of all branches together. size: bytes a number. A text above MAX_TEXT_BYTES keeps none.
    """
    from duogen_core.dit.prepared import MAX_TEXT_BYTES

    config = dit.config
    width = config.num_attention_heads * config.attention_head_dim
    return min(tokens * config.num_layers * 2 * width * size, 2.0 * MAX_TEXT_BYTES)


# ------------------------------------------------------------ when memory runs out

T = TypeVar("T")
RETRY_FACTOR = 4.0  # the second try keeps this many times the estimate free
RETRYING = "Memory ran out; trying once more with less of the model on the card."
# PyTorch has no error class for the computer's own memory; these are the words of its RuntimeErrors.
ALLOCATOR = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or mm.is_oom(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in ALLOCATOR)


def retry_out_of_memory(
    work: Callable[[float], T], *, what: str, advice: str, say: Callable[[str], None] | None = None
) -> T:
    """Runs work(factor); when memory runs out, frees everything and runs it once more with a larger factor.

    ComfyUI loads as much of a model as it thinks fits beside what a run needs, but the estimate may be too small, or
    other programs use the card too. factor: multiplies the estimate. what, advice: for the error message.
    """
    try:
        return work(1.0)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Outside of `except`, because the exception's frames hold the tensors that are to be freed.
    free_memory()
    logging.warning("DuoGen: %s", RETRYING)
    if say is not None:
        say(RETRYING)
    try:
        return work(RETRY_FACTOR)
    except Exception as error:
        if not out_of_memory(error):
            raise
    free_memory()
    raise DuoGenError(f"Memory ran out twice while {what}; {advice}.")


def free_memory() -> None:
    """Unloads every model from the card; ComfyUI loads each again when it is needed."""
    gc.collect()
    mm.unload_all_models()
    mm.soft_empty_cache()


@contextmanager
def scaled_memory_estimate(model: Any, factor: float) -> Iterator[None]:
    """Lets a MODEL ask for `factor` times the memory: less of it is loaded, and branches run one by one."""
    inner = model.model
    before = inner.memory_usage_factor
    inner.memory_usage_factor = before * factor
    try:
        yield
    finally:
        inner.memory_usage_factor = before
