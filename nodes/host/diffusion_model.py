"""The DiT as a plain MODEL: a `BaseModel` around the core's packed transformer, for every stock sampler and patch node.

In:  the core's DiT with its weights, its flow shift, and what its VAE's latents look like. Out: a `ModelPatcher`.
Conditioning: `cross_attn` [1, N, W] (the connector's states); `reference_latents`, a list of [1, 16, 1, h, w] as the
VAE encodes them, each earlier image at its own size; `duogen_frame_ends`, for each of them the number of text tokens
before it. The LATENT is the target alone, [B, 16, 1, h, w]. Timestep: sigma itself, 0..1 (multiplier 1).
Pattern: ComfyUI's own QwenImage (references) and Anima (Cosmos under `ModelType.FLOW`), comfy/model_base.py.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.latent_formats
import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management as mm
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, get_all_wrappers

from duogen_core import sampling as core_sampling
from duogen_core.errors import DuoGenError

from .lora import PREFIX, accept_loras, asks_for_names, with_other_names
from .model_management import Precision, convert, make_patcher, memory_of_frame_cache, memory_of_text, working_dtypes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import comfy.model_patcher

    from duogen_core.dit.frame_cache import FrameCache
    from duogen_core.dit.prepared import Prepared
    from duogen_core.sampling import Sampling

# In the conditioning, beside ComfyUI's own keys:
FRAME_ENDS = "duogen_frame_ends"  # for each reference latent, the number of text tokens before it
PICTURE_ENDS = "duogen_picture_ends"  # the same for every image of the context, whether referred to or not
PICTURE_LIMIT = "duogen_picture_limit"  # the longest side at which the DiT sees an image
HIDDEN_TEXT = "duogen_hidden_text"  # (start, end) of the text tokens that only the earlier images see
REFRESH = "duogen_refresh"  # in transformer_options: `refresh` of the core's `prepare`
STEP_TEXT = "duogen_text"  # the paragraph that the image illustrates
# What may give the model other texts or images in each step of a run:
CHANGING_WRAPPERS = (
    WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL, WrappersMP.CALC_COND_BATCH, WrappersMP.PREDICT_NOISE,
    WrappersMP.SAMPLER_SAMPLE,
)  # fmt: skip
CHANGING_OPTIONS = (
    "model_function_wrapper", "context_handler", "sampler_calc_cond_batch_function", "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)  # fmt: skip
PREPARED_RUNS = 4  # both branches of guidance, also where ComfyUI runs them one by one, and a second size or batch
KEPT_SHARE = 1 / 8  # of the card's memory: what keys and values of earlier images may take between two images
COSMOS_2B_WIDTH = 2048  # the model whose memory use ComfyUI's factor of 0.95 was measured on


class PictureLatent(comfy.latent_formats.Wan21):
    """Wan 2.1's latents; statistics and preview colours may be a checkpoint's own.

    vae_width: of the checkpoint's own VAE; None: Wan 2.1's, as published."""

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        rgb: tuple[list[list[float]], list[float]] | None = None,
        vae_width: int | None = None,
    ) -> None:
        super().__init__()
        self.vae_width = vae_width
        if mean is not None and std is not None:
            self.latents_mean = torch.tensor(mean).view(1, -1, 1, 1, 1)
            self.latents_std = torch.tensor(std).view(1, -1, 1, 1, 1)
        if rgb is not None:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = rgb
            self.taesd_decoder_name = None  # made for Wan's own latents

    def same_as(self, other: PictureLatent) -> bool:
        """Whether both are of the same VAE, as far as its width and its statistics tell."""
        return (
            self.vae_width == other.vae_width
            and torch.equal(self.latents_mean, other.latents_mean)
            and torch.equal(self.latents_std, other.latents_std)
        )


class KarrasFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow matching whose table of times has Karras' spacing, for weights that were trained so.

    The stock scheduler `simple` takes its times from this table: with the model's own number of steps they are within a
    hundredth of the published ones. DuoGen Sigmas outputs those exactly.
    """

    def __init__(self, config: Any, steps: int) -> None:
        self.steps = steps
        super().__init__(config)

    def set_parameters(self, shift: float = 1.0, timesteps: int = 1000, multiplier: float = 1.0) -> None:
        self.shift, self.multiplier = shift, multiplier
        # `simple` goes down the table in `steps` strides; the published times take steps - 1 from first to last.
        place = torch.arange(timesteps - 1, -1, -1, dtype=torch.float64) / timesteps
        place *= self.steps / max(1, self.steps - 1)
        self.register_buffer("sigmas", core_sampling.karras_time(place).float())

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        return float(self.sigmas[-1 - int(percent * len(self.sigmas))])


class DuoGenConfig(comfy.supported_models_base.BASE):
    """What BaseModel wants to know about a model.

    ComfyUI has no registry that a pack could add a model to, so only our loader uses this, and ComfyUI's detection of
    model files stays as it is.
    """

    unet_extra_config: dict[str, Any] = {}
    latent_format = PictureLatent
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(
        self, width: int, shift: float, latent_format: PictureLatent, duogen_sampling: Sampling | None = None
    ) -> None:
        super().__init__({"image_model": "duogen", "in_channels": 16, "disable_unet_model_creation": True})
        self.sampling_settings = {"multiplier": 1.0, "shift": shift}
        self.latent_format = latent_format
        self.duogen_sampling = duogen_sampling  # steps and guidance the weights were made for
        self.memory_usage_factor = 0.95 * width / COSMOS_2B_WIDTH

    def inpaint_model(self) -> bool:
        return False


class DuoGenModel(comfy.model_base.QwenImage):
    """The MODEL. Derived from ComfyUI's QwenImage, which already takes references of any size and counts their memory;
    and because its layers have diffusers' names, LoRA loaders find ours under every prefix that trainers write."""

    def __init__(self, config: DuoGenConfig, dit: torch.nn.Module) -> None:
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        wanted = config.duogen_sampling
        if wanted is not None and wanted.schedule == "karras":
            self.model_sampling = KarrasFlow(config, wanted.steps)
        self.diffusion_model = PackedForward.adopt(dit)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Torch's own; only for ComfyUI's search for the layers of LoRA files with their other names as well.

        Hence the look at the caller: see lora.py for why there is no other way.
        """
        state = super().state_dict(*args, **kwargs)
        return with_other_names(state) if asks_for_names(sys._getframe(1)) else state

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        text = kwargs.get("cross_attn")
        width = self.diffusion_model.config.text_embed_dim
        if text is None or text.shape[-1] != width:
            found = "has no text states" if text is None else f"has text states of width {text.shape[-1]}"
            raise DuoGenError(
                f"This MODEL reads the text states of its own connector, {width} numbers a token, but the "
                f"CONDITIONING {found}; take it from DuoGen Condition Next Image, with the connector of "
                "the same checkpoint."
            )
        self._check_references(kwargs.get("reference_latents") or ())
        out = super().extra_conds(**kwargs)
        ends = kwargs.get(FRAME_ENDS)
        if ends is not None:
            out["frame_ends"] = comfy.conds.CONDConstant(tuple(ends))
        hidden = kwargs.get(HIDDEN_TEXT)
        references = tuple(kwargs.get("reference_latents") or ())
        out["branches"] = BranchCond(BranchOfRun(None if hidden is None else tuple(hidden), references))
        return out

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, Any]:
        text = kwargs.get("cross_attn")
        own = {} if text is None else {"c_crossattn": list(text.shape)}
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

    def memory_required(self, input_shape: Sequence[int], cond_shapes: dict[str, Any] | None = None) -> float:
        """ComfyUI's estimate, and what is kept for all steps: keys and values of the text, and of the earlier images
        under frame_causal, less what of those the last image has left on the card already."""
        shapes, dit = cond_shapes or {}, self.diffusion_model
        size = mm.dtype_size(self.get_dtype_inference())
        cells = max((shape[-1] for shape in shapes.get("ref_latents", ())), default=0)
        frames = memory_of_frame_cache(dit, cells + math.prod(input_shape[-2:]) if cells else 0, size)
        held = 0 if dit.frame_cache is None else dit.frame_cache.bytes
        tokens = sum(shape[-2] for shape in shapes.get("c_crossattn", ()))
        return (
            super().memory_required(input_shape, shapes) + max(0.0, frames - held) + memory_of_text(dit, tokens, size)
        )

    def process_timestep(self, timestep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Undoes the multiplier of 1000 that ModelSamplingSD3, with which people set the shift, sets as well."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)


@dataclass(frozen=True, eq=False)
class BranchOfRun:
    """One CONDITIONING of one sampling run: itself the name by which its steps find what was prepared for it.

    hidden: (start, end) of the text tokens that the target does not see. references: as the CONDITIONING has them.
    """

    hidden: tuple[int, int] | None
    references: tuple[torch.Tensor, ...] = ()

    def sees_what(self, other: BranchOfRun) -> bool:
        """Whether both look at the same earlier images."""
        pairs = zip(self.references, other.references)
        return len(self.references) == len(other.references) and all(
            a is b or (a.shape == b.shape and a.device == b.device and torch.equal(a, b)) for a, b in pairs
        )


class BranchCond(comfy.conds.CONDConstant):
    """Lets ComfyUI run both branches of guidance as one batch where memory allows; they arrive as a tuple.

    Not where they look at unlike images: one batch has one list of them, and ComfyUI compares only sizes.
    """

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, BranchCond) and self.cond.sees_what(other.cond)

    def concat(self, others: Sequence[BranchCond]) -> tuple[BranchOfRun, ...]:
        return (self.cond, *(other.cond for other in others))


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What was prepared, and for which inputs."""

    branches: tuple[BranchOfRun, ...]
    shape: tuple[int, ...]
    context: torch.Tensor
    references: list[torch.Tensor]
    prepared: Prepared

    def fits(self, branches: Any, x: torch.Tensor, context: torch.Tensor, refs: list, compare: bool) -> bool:
        if self.branches != branches or self.shape != tuple(x.shape) or len(refs) != len(self.references):
            return False
        if context.dtype != self.context.dtype or context.device != self.context.device:
            return False
        pairs = zip((context, *refs), (self.context, *self.references), strict=True)
        return not compare or all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


class PackedForward:
    """Gives a DiT of the core ComfyUI's calling convention, by becoming the first base of its class.

    A module around it would rename its weights (`diffusion_model.transformer_blocks.0…`), which LoRA files go by.

    frame_cache: keys and values of earlier images, for the weights that `cached_weights` tells; it outlives a sampling
    run, so that the next image of a loop finds them. runs: what was prepared for the steps of this run.
    compare: something in front of the model may change what it is given from step to step, so the numbers are compared,
    which waits for the card. reuse: the weights stay as they are during the run.
    """

    frame_cache: FrameCache | None = None
    cached_weights: tuple[Any, ...] = ()
    runs: tuple[PreparedRun, ...] = ()
    compare, reuse = False, False

    @classmethod
    def adopt(cls, dit: torch.nn.Module) -> torch.nn.Module:
        dit.__class__ = type(f"ComfyUI{type(dit).__name__}", (cls, type(dit)), {})
        return dit

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        *,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """x [B, 16, 1, h, w] -> velocity of the same shape, through the wrappers of other nodes (EasyCache)."""
        options = transformer_options or {}
        _refuse_inner_patches(options)
        around = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        changes = any(get_all_wrappers(kind, options) for kind in CHANGING_WRAPPERS)
        executor = WrapperExecutor.new_class_executor(self._velocity, self, around)
        return executor.execute(x, timesteps, context, transformer_options=options, changes=changes, **conditions)

    def _velocity(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        ref_latents: list[torch.Tensor] | None = None,
        frame_ends: tuple[int, ...] | None = None,
        branches: tuple[BranchOfRun, ...] = (BranchOfRun(None),),
        changes: bool = True,
        transformer_options: dict[str, Any] | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        if x.ndim != 5 or x.shape[2] != 1:
            raise DuoGenError(f"DuoGen draws one image: the latent must be [B, 16, 1, h, w], not {list(x.shape)}.")
        references, height, width = list(ref_latents or ()), x.shape[-2], x.shape[-1]
        ends = list(frame_ends or ())
        if len(ends) > len(references):
            raise DuoGenError(
                f"The conditioning names the places of {len(ends)} earlier images but brings {len(references)} "
                "reference latents; take both from the same context."
            )
        # A reference that a stock node added has no place in the text: it stands beside the last one that has.
        ends += (ends[-1:] or [0]) * (len(references) - len(ends))
        target, compare = self._frame(x), self.compare or changes
        if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in self.parameters())):
            frames = [self._frame(latent) for latent in references]
            velocity = self._with_gradients(target, timesteps, context, frames, ends, branches)
            return velocity[..., :height, :width].unsqueeze(2)
        run = next((run for run in self.runs if run.fits(branches, x, context, references, compare)), None)
        if run is None:
            texts = [(text, each.hidden) for text, each in zip(context.chunk(len(branches)), branches, strict=True)]
            rows = len(x) // len(branches)  # references are the same for every branch
            frames = [self._frame(latent)[:rows] for latent in references]
            prepared = self.prepare(
                frames, texts, target.shape, frame_ends=ends, cache=self.frame_cache if self.reuse else None,
                refresh=(transformer_options or {}).get(REFRESH, 1) if self.reuse else 1,
            )  # fmt: skip
            run = PreparedRun(branches, tuple(x.shape), context, references, prepared)
            if self.reuse:
                self.runs = (run, *self.runs)[:PREPARED_RUNS]
        return run.prepared.velocity(target, timesteps)[..., :height, :width].unsqueeze(2)

    def _with_gradients(
        self,
        target: torch.Tensor,
        times: torch.Tensor,
        context: torch.Tensor,
        frames: Sequence[torch.Tensor],
        ends: Sequence[int],
        branches: Sequence[BranchOfRun],
    ) -> torch.Tensor:
        """The same velocity for ComfyUI's Train LoRA, by the core's way for trainings: each row is a sequence."""
        from duogen_core.dit.packing import TrainingSequence

        place = torch.arange(context.shape[1])
        frames = frames if self.config.references else ()
        sequences = []
        for row, (x, time, text) in enumerate(zip(target, times, context, strict=True)):
            start, end = branches[row * len(branches) // len(target)].hidden or (0, 0)
            sees = ((place < start) | (place >= end)).expand(len(frames) + 1, -1).clone()
            if self.config.attention == "frame_causal":
                for index in range(len(frames)):
                    sees[index] = place < ends[index]
            clean = tuple(frame[row] for frame in frames)
            sequences.append(TrainingSequence(clean, (x,), tuple(range(len(frames) + 1)), time[None], text, sees))
        return torch.stack([velocity for (velocity,) in self.forward_train(sequences)])

    def _frame(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, 16, 1, h, w] or [B, 16, h, w] -> [B, 16, h, w], padded to whole patches."""
        frame = latent[:, :, 0] if latent.ndim == 5 else latent
        return comfy.ldm.common_dit.pad_to_patch_size(frame, tuple(self.config.patch_size[-2:]))


def _refuse_inner_patches(options: Mapping[str, Any]) -> None:
    """Refuses patches of blocks and attention: made for the layers of other models, they would do nothing here."""
    patches = [*(options.get("patches") or {}), *(options.get("patches_replace") or {})]
    if patches:
        raise DuoGenError(
            "A node before the sampler (such as Skip Layer Guidance, Perturbed Attention, ToMe or HyperTile) patches "
            f"layers inside the model ({', '.join(sorted(set(patches)))}), which DuoGen's diffusion transformer cannot "
            "apply; take that node out."
        )


def make_model(
    dit: torch.nn.Module,
    *,
    shift: float,
    latent_format: PictureLatent,
    sampling: Sampling | None = None,
    precision: Precision | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """The core's DiT -> MODEL. precision: where its layers have ComfyUI's classes already; None: they get them here."""
    device, offload = mm.get_torch_device(), mm.unet_offload_device()
    if precision is None:
        precision = Precision(device, *working_dtypes(dit, device))
        convert(dit, precision.kept)
        precision.prepare(dit, {})
    width = dit.config.num_attention_heads * dit.config.attention_head_dim
    config = DuoGenConfig(width, shift, latent_format, sampling)
    config.set_inference_dtype(precision.kept, precision.compute)
    patcher = make_patcher(DuoGenModel(config, dit), device, offload)
    accept_loras(patcher)
    patcher.add_callback(CallbacksMP.ON_PRE_RUN, _begin_run)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, _end_run)
    patcher.add_callback(CallbacksMP.ON_DETACH, _when_detached)
    return patcher


def _begin_run(patcher: comfy.model_patcher.ModelPatcher) -> None:
    from duogen_core.dit.frame_cache import FrameCache

    dit, options = patcher.model.diffusion_model, patcher.model_options
    dit.runs = ()
    dit.compare = any(options.get(name) for name in CHANGING_OPTIONS)
    dit.reuse = not patcher.hook_patches  # hook LoRAs change the weights during the run
    now, cached = _weights(patcher), dit.cached_weights
    if not dit.reuse or len(now) != len(cached) or any(a is not b for a, b in zip(now, cached)):
        _drop(patcher)
    if dit.reuse and dit.config.attention == "frame_causal" and dit.frame_cache is None:
        dit.frame_cache, dit.cached_weights = FrameCache(), now


def _weights(patcher: comfy.model_patcher.ModelPatcher) -> tuple[Any, ...]:
    """What tells one clone's weights from another's: the name of its patches, and whatever it puts around layers (a
    LoRA in bypass mode) or in their places. Clones with the same have the same objects."""
    around = [injection for each in patcher.injections.values() for injection in each]
    instead = [new for name, new in patcher.object_patches.items() if name.startswith(PREFIX)]
    return patcher.patches_uuid, *around, *instead


def _end_run(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """The text's keys go; those of the earlier images stay for the next image, unless they take much of the card.

    ComfyUI sees that the memory is taken, and gets it back by unloading the model, when it needs it for another one.
    """
    dit = patcher.model.diffusion_model
    dit.runs, dit.reuse = (), False  # who calls the model without beginning a run may change its weights (Train LoRA)
    if dit.frame_cache is not None and dit.frame_cache.bytes > mm.get_total_memory(patcher.load_device) * KEPT_SHARE:
        _drop(patcher)


def _when_detached(patcher: comfy.model_patcher.ModelPatcher, unpatch_all: bool = True) -> None:
    if unpatch_all:  # else ComfyUI only takes it off its list, to put it or a clone on again
        _drop(patcher)


def _drop(patcher: comfy.model_patcher.ModelPatcher) -> None:
    dit = patcher.model.diffusion_model
    dit.runs, dit.frame_cache, dit.cached_weights = (), None, ()
