"""The core's ControlNet as a CONTROL_NET, for ComfyUI's own Apply ControlNet in front of our MODEL.

In:  a ControlNet of the core. Out: a `DuoGenControl`; Apply ControlNet copies it and gives the copy an image, a VAE, a
     strength and the part of the steps in which it counts; samplers then ask it at each step what it adds.
What it adds travels as {"duogen": {block: [rows, tokens, C]}} in `control`, which `DuoGenModel` hands to the core's
DiT. Several ControlNets in a row (previous_controlnet) are added up. Memory is ComfyUI's: `get_models` names the
weights. Pattern: comfy/controlnet.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.controlnet
import comfy.latent_formats
import comfy.model_management as mm
import comfy.utils
import torch

from duogen_core.errors import DuoGenError
from duogen_core.picture_sampling import control_pixels

from .compatibility import check_vae
from .conditioning import own_text
from .diffusion_model import DuoGenModel
from .families import class_name, described
from .images import pictures_from_image
from .language import in_users_language
from .model_management import Holder, Precision, convert, make_patcher, working_dtypes
from .packed_forward import CONTROL, may_change

if TYPE_CHECKING:
    import comfy.model_patcher

    from duogen_core.dit.controlnet import PackedControlNet, PreparedControl

PREPARED = 4  # both branches of guidance, also where ComfyUI runs them one by one, and a second size or batch


class DuoGenControl(comfy.controlnet.ControlBase):
    """One use of a ControlNet: with its control image, its strength, and its part of the steps."""

    for_duogen = True  # by which DuoGenModel knows it

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher) -> None:
        super().__init__()
        self.patcher = patcher
        self.latent_format = comfy.latent_formats.Wan21()  # with one, Apply ControlNet hands its VAE on
        self.model: Any = None  # of this run
        self.prepared: list[tuple[Any, ...]] = []

    @property
    def net(self) -> PackedControlNet:
        return self.patcher.model.model

    # -- what Apply ControlNet and the sampler call

    def copy(self) -> DuoGenControl:
        new = DuoGenControl(self.patcher)
        self.copy_to(new)
        return new

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> DuoGenControl:
        new = self.copy()
        new.patcher = make_patcher(copy.deepcopy(self.patcher.model), load_device, mm.unet_offload_device())
        if autoregister:
            self.multigpu_clones[load_device] = new
        return new

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [*super().get_models(), self.patcher]

    @in_users_language
    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        if not isinstance(model, DuoGenModel):
            raise DuoGenError(
                f"This ControlNet is DuoGen's and works with a DuoGen MODEL alone, but the MODEL is a "
                f"{type(model).__name__}; connect a ControlNet that was made for it."
            )
        if class_name(model.diffusion_model) != "PackedCosmos":
            raise DuoGenError(
                f"DuoGen's ControlNets are made of a Cosmos transformer's blocks, but this MODEL is a "
                f"{described(model.diffusion_model)}; take the ControlNet out."
            )
        self.net.check_fits(model.diffusion_model)
        if self.vae is None:
            raise DuoGenError(
                "DuoGen's ControlNet sees its image through the VAE; connect the VAE of the checkpoint to the vae "
                "input of Apply ControlNet."
            )
        check_vae(self.vae, _ModelOf(model))
        super().pre_run(model, percent_to_timestep_function)
        self.model, self.prepared = model, []

    def cleanup(self) -> None:
        super().cleanup()
        self.model, self.prepared = None, []

    @in_users_language
    def get_control(
        self, x_noisy: torch.Tensor, t: torch.Tensor, cond: Mapping[str, Any], batched_number: int, options: Any
    ) -> dict[str, Any] | None:
        """x_noisy [G * B, 16, 1, h, w], the rows of all branches of guidance that run together."""
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, options)
        first, last = self.timestep_range or (None, None)
        if self.strength == 0 or (first is not None and not last <= t[0] <= first):
            return before
        sampling = self.model.model_sampling
        dtype = self.model.get_dtype_inference()
        times = self.model.process_timestep(sampling.timestep(t).float())
        x = self.model.diffusion_model._frame(sampling.calculate_input(t, x_noisy).to(dtype))
        compare = self.model.diffusion_model.compare or may_change(options or {})
        prepared = self._prepared_for(x, cond, dtype, compare)
        found = prepared.residuals(x, times, self.strength)
        if before is not None:
            for block, residual in before[CONTROL].items():
                found[block] = found[block] + residual if block in found else residual
        return {CONTROL: found}

    # -- what no step changes

    def _prepared_for(
        self, x: torch.Tensor, cond: Mapping[str, Any], dtype: torch.dtype, compare: bool
    ) -> PreparedControl:
        branches, given = cond["branches"], cond["c_crossattn"]
        for known, shape, text, prepared in self.prepared:
            same = known == branches and shape == x.shape and text.shape == given.shape
            # As in DuoGenModel: only where a node may change the text from step to step are the numbers compared.
            if same and (not compare or torch.equal(text, given)):
                return prepared
        context = given.to(x.device, dtype)
        parts = zip(context.chunk(len(branches)), branches, strict=True)
        texts = [(own_text(text, each, branches), each.hidden) for text, each in parts]
        rows = len(x) // len(branches)
        hint = self._hint(x)
        hint = comfy.utils.repeat_to_batch_size(hint, rows) if len(hint) > 1 else hint
        layers = self.model.diffusion_model.config.num_layers
        prepared = self.net.prepare(hint.to(x.device, dtype), texts, layers, x.shape)
        self.prepared = [(branches, x.shape, given, prepared), *self.prepared][:PREPARED]
        return prepared

    def _hint(self, x: torch.Tensor) -> torch.Tensor:
        """The control image as a latent [n, 16, h, w], as large as x, by the VAE that Apply ControlNet was given."""
        if self.cond_hint is None or self.cond_hint.shape[-2:] != x.shape[-2:]:
            height, width = (side * 8 for side in x.shape[-2:])
            pictures = pictures_from_image(self.cond_hint_original.movedim(1, -1))
            images = [control_pixels(picture, width, height) for picture in pictures]
            loaded = mm.loaded_models(only_currently_used=True)
            # One by one: a video VAE reads a batch as time.
            latents = [self.vae.encode(torch.from_numpy(image)[None].float() / 255) for image in images]
            mm.load_models_gpu(loaded)
            latent = self.model.process_latent_in(torch.cat(latents))
            self.cond_hint = latent[:, :, 0] if latent.ndim == 5 else latent
        return self.cond_hint


class _ModelOf:
    """What `check_vae` reads of a MODEL."""

    def __init__(self, model: Any) -> None:
        self.model = model


def control_of(net: PackedControlNet, precision: Precision | None = None) -> DuoGenControl:
    """A ControlNet of the core -> CONTROL_NET. precision: where its layers have ComfyUI's classes already."""
    device = mm.get_torch_device()
    if precision is None:
        precision = Precision(device, *working_dtypes(net, device))
        convert(net, precision.kept)
        precision.prepare(net, {})
    return DuoGenControl(make_patcher(Holder("DuoGenControlNet", net), device, mm.unet_offload_device()))
