"""The DiT as a plain MODEL: a `BaseModel` around the core's packed transformer, for every stock sampler and patch node.

In:  the core's DiT with its weights, its flow shift, and what its VAE's latents look like. Out: a `ModelPatcher`.
The LATENT is the target alone, [B, channels, 1, h, w]. Timestep: sigma itself, 0..1 (multiplier 1). What a CONDITIONING
brings: conditioning.py; what BaseModel asks of a model's configuration: model_config.py; a step: packed_forward.py.
Pattern: ComfyUI's own QwenImage (references) and Anima (Cosmos under `ModelType.FLOW`), comfy/model_base.py.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.model_base
import comfy.model_management as mm
import comfy.model_sampling
import torch
from comfy.patcher_extension import CallbacksMP

from duogen_core.errors import DuoGenError

from .conditioning import FRAME_ENDS, HIDDEN_TEXT, MADE_FOR, BranchCond, BranchOfRun, TextCond
from .families import FAMILIES, class_name, described, family_of
from .gguf import GgufLinear, memory_of_blocks
from .language import in_users_language
from .lora import accept_loras, asks_for_names, with_other_names
from .model_config import DuoGenConfig, KarrasFlow
from .model_management import Precision, convert, make_patcher, memory_of_frame_cache, memory_of_text, working_dtypes
from .packed_forward import PackedForward, begin_run, end_run, when_detached

if TYPE_CHECKING:
    from collections.abc import Sequence

    import comfy.model_patcher

    from duogen_core.sampling import Sampling

    from .model_config import PictureLatent


class DuoGenModel(comfy.model_base.QwenImage):
    """The MODEL. Derived from ComfyUI's QwenImage, which already takes references of any size and counts their memory;
    and because its layers have diffusers' names, LoRA loaders find ours under every prefix that trainers write."""

    def __init__(self, config: DuoGenConfig, dit: torch.nn.Module) -> None:
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        wanted = config.duogen_sampling
        if wanted is not None and wanted.schedule == "karras":
            self.model_sampling = KarrasFlow(config)
        self.diffusion_model = PackedForward.adopt(dit)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Torch's own; only for ComfyUI's search for the layers of LoRA files with their other names as well.

        Hence the look at the caller: see lora.py for why there is no other way.
        """
        state = super().state_dict(*args, **kwargs)
        if not asks_for_names(sys._getframe(1)):
            return state
        return with_other_names(state, family_of(self.diffusion_model))

    @in_users_language
    def state_dict_for_saving(self, unet_state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """For ComfyUI's Save Diffusion Model: the weights, and what DuoGen Load Diffusion Model has to know of them."""
        from duogen_core.dit.loading import SAVED, saved_note
        from duogen_core.sampling import Sampling

        if any(isinstance(layer, GgufLinear) for layer in self.diffusion_model.modules()):
            raise DuoGenError(
                "This MODEL was loaded from a GGUF file, whose blocks ComfyUI cannot save; load the safetensors file "
                "of the same model instead."
            )
        config = self.model_config
        sampling = config.duogen_sampling or Sampling(shift=config.sampling_settings["shift"])
        note = saved_note(self.diffusion_model, sampling, self.latent_format.note())
        state = super().state_dict_for_saving(unet_state_dict, *args, **kwargs)
        return {**state, SAVED: torch.frombuffer(bytearray(note), dtype=torch.uint8)}

    @in_users_language
    def apply_model(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().apply_model(*args, **kwargs)

    @in_users_language
    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(self.model_sampling, comfy.model_sampling.CONST):
            raise DuoGenError(
                "A node before the sampler (ModelSamplingDiscrete, ModelSamplingContinuousEDM or the like) treats this "
                "MODEL as one that predicts noise, but it was trained for flow matching; take that node out. The shift "
                "is set by ModelSamplingSD3 or ModelSamplingAuraFlow."
            )
        text = kwargs.get("cross_attn")
        dit = self.diffusion_model
        width, made_for = dit.config.text_embed_dim, kwargs.get(MADE_FOR)
        if text is None or text.shape[-1] != width:
            found = "has no text states" if text is None else f"has text states of width {text.shape[-1]}"
            found += f", made for a {FAMILIES[made_for].name}" if made_for in FAMILIES else ""
            raise DuoGenError(
                f"This MODEL, a {described(dit)}, reads the text states of its own connector, {width} numbers a token, "
                f"but the CONDITIONING {found}; take it from DuoGen Condition Next Image, with the connector of "
                "the same checkpoint."
            )
        if made_for in FAMILIES and made_for != class_name(dit):
            raise DuoGenError(
                f"The CONDITIONING comes from a connector that was trained with a {FAMILIES[made_for].name}, but this "
                f"MODEL is a {described(dit)}; take both from the same checkpoint."
            )
        self._check_references(kwargs.get("reference_latents") or ())
        _refuse_other_controls(kwargs.get("control"))
        out = super().extra_conds(**kwargs)
        ends = kwargs.get(FRAME_ENDS)
        if ends is not None:
            out["frame_ends"] = comfy.conds.CONDConstant(tuple(ends))
        hidden = kwargs.get(HIDDEN_TEXT)
        references = tuple(kwargs.get("reference_latents") or ())
        branch = BranchOfRun(None if hidden is None else tuple(hidden), references, text.shape[1])
        out["branches"], out["c_crossattn"] = BranchCond(branch), TextCond(text)
        return out

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, Any]:
        text, latents = kwargs.get("cross_attn"), kwargs.get("reference_latents")
        own = {} if text is None else {"c_crossattn": list(text.shape)}
        if latents is not None:  # ComfyUI's own count is for 16 channels
            channels = self.latent_format.latent_channels
            own["ref_latents"] = [1, channels, sum(math.prod(each.shape) // each.shape[1] for each in latents)]
        return {**super().extra_conds_shapes(**kwargs), **own}

    def _check_references(self, latents: Sequence[torch.Tensor]) -> None:
        channels = self.latent_format.latent_channels
        other = next((latent.shape[1] for latent in latents if latent.shape[1] != channels), None)
        if other is not None:
            raise DuoGenError(
                f"A reference latent has {other} channels, but this MODEL draws in {channels}; encode the images "
                "with the VAE of the same checkpoint."
            )
        if any(latent.ndim == 4 for latent in latents):
            raise DuoGenError(
                "A reference latent was made by a VAE for still images, such as those of FLUX.1 and SD3, whose latents "
                "this MODEL cannot read; encode the images with the VAE of the same checkpoint."
            )
        if latents and getattr(mm, "in_training", False) and _training_loses_lists():
            raise DuoGenError(
                "ComfyUI's Train LoRA cannot take a conditioning with reference images: its own loop fails on them, "
                "with every model. Train without earlier images, or on the command line with DuoGen's stage 2, whose "
                "LoRA then loads in ComfyUI's Load LoRA (docs/lora.md)."
            )

    def memory_required(self, input_shape: Sequence[int], cond_shapes: dict[str, Any] | None = None) -> float:
        """ComfyUI's estimate, and what is kept for all steps: keys and values of the text, and of the earlier images
        under frame_causal, less what of those the last image has left on the card already."""
        shapes, dit = cond_shapes or {}, self.diffusion_model
        size = mm.dtype_size(self.get_dtype_inference())
        cells = max((shape[-1] for shape in shapes.get("ref_latents", ())), default=0)
        frames = memory_of_frame_cache(dit, cells + math.prod(input_shape[-2:]) if cells else 0, size)
        held = 0 if dit.frame_cache is None else dit.frame_cache.bytes
        tokens = sum(shape[-2] for shape in shapes.get("c_crossattn", ()))
        more = max(0.0, frames - held) + memory_of_text(dit, tokens, size) + memory_of_blocks(dit, size)
        return super().memory_required(input_shape, shapes) + more

    def process_timestep(self, timestep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Undoes the multiplier of 1000 that ModelSamplingSD3, with which people set the shift, sets as well."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)


def _training_loses_lists() -> bool:
    """Whether Train LoRA takes a tensor in a list of the conditioning for a list again, down to its single numbers; so
    in ComfyUI 0.33 (comfy_extras/nodes_train.py, process_cond_list)."""
    try:
        from comfy_extras.nodes_train import process_cond_list

        process_cond_list({"reference_latents": [torch.zeros(1)]})
    except TypeError:
        return True
    except ImportError:  # a ComfyUI that does it in another way
        pass
    return False


def _refuse_other_controls(control: Any) -> None:
    """Refuses a ControlNet of another model in front of this one: it would do nothing. control: the last of a row."""
    while control is not None:
        if not getattr(control, "for_duogen", False):
            raise DuoGenError(
                f"A ControlNet in front of this MODEL ({type(control).__name__}) was made for another model's layers; "
                "take one from DuoGen Load ControlNet, which was made for DuoGen's diffusion transformer."
            )
        control = control.previous_controlnet


def make_model(
    dit: torch.nn.Module,
    *,
    shift: float,
    latent_format: PictureLatent,
    sampling: Sampling | None = None,
    precision: Precision | None = None,
    dynamic: bool = True,
) -> comfy.model_patcher.ModelPatcher:
    """The core's DiT -> MODEL. precision: where its layers have ComfyUI's classes already; None: they get them here.
    dynamic: as in make_patcher."""
    device, offload = mm.get_torch_device(), mm.unet_offload_device()
    if precision is None:
        precision = Precision(device, *working_dtypes(dit, device, family_of(dit).dtypes))
        convert(dit, precision.kept)
        precision.prepare(dit, {})
    width = dit.config.num_attention_heads * dit.config.attention_head_dim
    config = DuoGenConfig(family_of(dit), width, shift, latent_format, sampling)
    config.set_inference_dtype(precision.kept, precision.compute)
    patcher = make_patcher(DuoGenModel(config, dit), device, offload, dynamic=dynamic)
    accept_loras(patcher)
    patcher.add_callback(CallbacksMP.ON_PRE_RUN, begin_run)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, end_run)
    patcher.add_callback(CallbacksMP.ON_DETACH, when_detached)
    return patcher
