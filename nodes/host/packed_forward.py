"""The core's packed transformer under ComfyUI's calling convention, and what it keeps between steps and images.

In:  x [B, channels, 1, h, w], timesteps [B] (sigma itself, 0..1), and what the CONDITIONING brought (conditioning.py).
Out: the velocity, of x's shape. What no step changes is prepared once a run (`runs`); keys and values of earlier images
     outlive it (`frame_cache`), for the weights they were computed with. `begin_run` and the three after it are what a
     ModelPatcher calls around a sampling run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import comfy.ldm.common_dit
import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from duogen_core.dit.patched import patched_velocity
from duogen_core.errors import DuoGenError

from .compiling import begin_compiled, end_compiled
from .conditioning import BranchOfRun, own_text
from .language import in_users_language
from .lora import PREFIX
from .transformer_options import ChosenAttention, attention_of, patches_of, positions_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import comfy.model_patcher

    from duogen_core.compiling import Compiled
    from duogen_core.dit.frame_cache import FrameCache
    from duogen_core.dit.prepared import Prepared

REFRESH = "duogen_refresh"  # in transformer_options: `refresh` of the core's `prepare`
CONTROL = "duogen"  # in `control`, which ComfyUI's samplers get from ControlNets: {block: what ours add behind it}
# What may give the model other texts or images in each step of a run:
CHANGING_WRAPPERS = (
    WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL, WrappersMP.CALC_COND_BATCH, WrappersMP.PREDICT_NOISE,
    WrappersMP.SAMPLER_SAMPLE,
)  # fmt: skip
CHANGING_OPTIONS = (
    "model_function_wrapper", "context_handler", "sampler_calc_cond_batch_function", "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)  # fmt: skip
# Both branches of guidance, also where ComfyUI runs them one by one, a second size or batch, and the same with patches.
PREPARED_RUNS = 6
KEPT_SHARE = 1 / 8  # of the card's memory: what keys and values of earlier images may take between two images


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What was prepared, and for which inputs."""

    branches: tuple[BranchOfRun, ...]
    shape: tuple[int, ...]
    context: torch.Tensor
    references: list[torch.Tensor]
    how: tuple[Any, ...]  # attention function, positions, whether blocks are patched
    prepared: Prepared

    def fits(self, branches: Any, x: torch.Tensor, context: torch.Tensor, refs: list, how: Any, compare: bool) -> bool:
        if self.branches != branches or self.shape != tuple(x.shape) or len(refs) != len(self.references):
            return False
        if self.how != how:
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
    compiled: Compiled | None = None  # its pieces, during a run whose patcher wants that
    default_ref_method: str | None = None  # FluxKVCache sets it on any MODEL

    @classmethod
    def adopt(cls, dit: torch.nn.Module) -> torch.nn.Module:
        dit.__class__ = type(f"ComfyUI{type(dit).__name__}", (cls, type(dit)), {})
        return dit

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters() if p.is_floating_point())  # not the bytes of a layer in blocks

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        *,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """x [B, channels, 1, h, w] -> velocity of the same shape, through the wrappers of other nodes (EasyCache)."""
        options = transformer_options or {}
        around = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        if around:  # EasyCache adds to x in place, and the caller goes on with the same tensor
            x = x.clone()
        changes = may_change(options)
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
        control: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        if x.ndim != 5 or x.shape[2] != 1:
            channels = self.config.out_channels
            raise DuoGenError(
                f"DuoGen draws one image: the latent must be [B, {channels}, 1, h, w], not {list(x.shape)}."
            )
        if self.default_ref_method is not None:
            raise DuoGenError(
                "Flux KV Cache, before the sampler, keeps what Flux has computed of reference images; this MODEL does "
                "that by itself; take that node out."
            )
        options = transformer_options or {}
        patches = patches_of(options, len(self.transformer_blocks))
        attention = attention_of(options, x.device)
        how = (attention, positions_of(options), patches is not None)
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
            if control:
                raise DuoGenError("A LoRA cannot be trained with a ControlNet in front of the MODEL; take it out.")
            if patches is not None:
                raise DuoGenError(
                    f"{patches.names} patches blocks of the model, which cannot be trained so; take that node out."
                )
            if isinstance(attention, ChosenAttention):
                _tell_training_attention()
            frames = [self._frame(latent) for latent in references]
            velocity = self._with_gradients(target, timesteps, context, frames, ends, branches)
            return velocity[..., :height, :width].unsqueeze(2)
        run = next((run for run in self.runs if run.fits(branches, x, context, references, how, compare)), None)
        if run is None:
            parts = zip(context.chunk(len(branches)), branches, strict=True)
            texts = [(own_text(text, each, branches), each.hidden) for text, each in parts]
            rows = len(x) // len(branches)  # references are the same for every branch
            frames = [self._frame(latent)[:rows] for latent in references]
            prepared = self.prepare(
                frames, texts, target.shape, frame_ends=ends, cache=self.frame_cache if self.reuse else None,
                refresh=options.get(REFRESH, 1) if self.reuse else 1, attention=attention, positions=how[1],
                together=patches is not None,
            )  # fmt: skip
            run = PreparedRun(branches, tuple(x.shape), context, references, how, prepared)
            if self.reuse:
                self.runs = (run, *self.runs)[:PREPARED_RUNS]
        prepared, residuals = run.prepared, (control or {}).get(CONTROL)
        prepared.attention = attention  # the same function, with the options of this step
        if patches is None:
            velocity = prepared.velocity(target, timesteps, residuals)
        else:
            patches.of_step(x, context, prepared.sizes)
            velocity = patched_velocity(prepared, target, timesteps, patches, residuals)
        return velocity[..., :height, :width].unsqueeze(2)

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

        frames = frames if self.config.references else ()
        sequences = []
        for row, (x, time, text) in enumerate(zip(target, times, context, strict=True)):
            branch = branches[row * len(branches) // len(target)]
            text, (start, end) = own_text(text[None], branch, branches)[0], branch.hidden or (0, 0)
            place = torch.arange(len(text))
            sees = ((place < start) | (place >= end)).expand(len(frames) + 1, -1).clone()
            if self.config.attention == "frame_causal":
                for index in range(len(frames)):
                    sees[index] = place < ends[index]
            clean = tuple(frame[row] for frame in frames)
            sequences.append(TrainingSequence(clean, (x,), tuple(range(len(frames) + 1)), time[None], text, sees))
        return torch.stack([velocity for (velocity,) in self.forward_train(sequences)])

    def _frame(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, channels, 1, h, w] or [B, channels, h, w] -> [B, channels, h, w], padded to whole patches."""
        frame = latent[:, :, 0] if latent.ndim == 5 else latent
        return comfy.ldm.common_dit.pad_to_patch_size(frame, tuple(self.config.patch_size[-2:]))


def may_change(options: Mapping[str, Any]) -> bool:
    """Whether a wrapper may give the model other texts or images in each step. options: transformer_options."""
    return any(get_all_wrappers(kind, options) for kind in CHANGING_WRAPPERS)


@lru_cache(maxsize=1)
def _tell_training_attention() -> None:
    logging.info(
        "DuoGen: training takes PyTorch's attention, whose gradients are known; the chosen one is for sampling."
    )


@in_users_language
def begin_run(patcher: comfy.model_patcher.ModelPatcher) -> None:
    from duogen_core.dit.frame_cache import FrameCache

    dit, options = patcher.model.diffusion_model, patcher.model_options
    begin_compiled(patcher)
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


def end_run(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """The text's keys go; those of the earlier images stay for the next image, unless they take much of the card.

    ComfyUI sees that the memory is taken, and gets it back by unloading the model, when it needs it for another one.
    """
    end_compiled(patcher)
    dit = patcher.model.diffusion_model
    dit.runs, dit.reuse = (), False  # who calls the model without beginning a run may change its weights (Train LoRA)
    if dit.frame_cache is not None and dit.frame_cache.bytes > mm.get_total_memory(patcher.load_device) * KEPT_SHARE:
        _drop(patcher)


def when_detached(patcher: comfy.model_patcher.ModelPatcher, unpatch_all: bool = True) -> None:
    if unpatch_all:  # else ComfyUI only takes it off its list, to put it or a clone on again
        _drop(patcher)


def _drop(patcher: comfy.model_patcher.ModelPatcher) -> None:
    dit = patcher.model.diffusion_model
    dit.runs, dit.frame_cache, dit.cached_weights = (), None, ()
