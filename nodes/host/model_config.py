"""What our MODEL tells ComfyUI of itself: its latents, its noise levels, and the configuration that BaseModel reads.

In:  what a checkpoint says of its VAE and of how its weights were trained to be sampled, and the DiT's family.
Out: ComfyUI's LatentFormat, ModelSampling and supported_models_base.BASE for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_sampling
import comfy.supported_models_base
import torch

from duogen_core import sampling as core_sampling
from duogen_core.errors import DuoGenError

from .language import in_users_language

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duogen_core.sampling import Sampling

    from .families import Family

# Channels of a latent -> ComfyUI's own format of it: the VAEs of Wan 2.1 (which Cosmos has too) and of Wan 2.2 TI2V-5B.
FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}
VERSIONS = {16: "2.1", 48: "2.2"}


class PictureLatent(comfy.latent_formats.Wan21):
    """Wan 2.1's or 2.2's latents, by their channels; statistics and preview colours may be a checkpoint's own.

    vae_width: of the checkpoint's own VAE; None: Wan's, as published. channels: None: those of the mean, or 16."""

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        rgb: tuple[list[list[float]], list[float]] | None = None,
        vae_width: int | None = None,
        channels: int | None = None,
    ) -> None:
        channels = channels or (16 if mean is None else len(mean))
        if channels not in FORMATS:
            raise DuoGenError(
                f"This diffusion transformer draws in {channels} channels; expected 16, as the VAE of Wan 2.1 has, or "
                "48, as that of Wan 2.2 TI2V-5B."
            )
        published = FORMATS[channels]()
        self.__dict__.update(vars(published))
        for name in ("latent_channels", "spacial_downscale_ratio", "latent_rgb_factors", "latent_rgb_factors_bias"):
            setattr(self, name, getattr(published, name))
        self.vae_width = vae_width
        if mean is not None and std is not None:
            self.latents_mean = torch.tensor(mean).view(1, -1, 1, 1, 1)
            self.latents_std = torch.tensor(std).view(1, -1, 1, 1, 1)
        if rgb is not None:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = rgb
            self.taesd_decoder_name = None  # made for Wan's own latents

    def note(self) -> dict[str, Any]:
        """What `from_note` makes the same of again, as JSON."""
        own = self.taesd_decoder_name is None  # colours of a checkpoint's own
        return {
            "mean": self.latents_mean.flatten().tolist(),
            "std": self.latents_std.flatten().tolist(),
            "rgb": [self.latent_rgb_factors, self.latent_rgb_factors_bias] if own else None,
            "vae_width": self.vae_width,
        }

    @classmethod
    def from_note(cls, note: Mapping[str, Any], where: object) -> PictureLatent:
        """note: of a file, so whatever somebody wrote there."""
        try:
            mean, std, rgb, width = (note[name] for name in ("mean", "std", "rgb", "vae_width"))
            channels = len(mean)
            colours = None if rgb is None else (torch.tensor(rgb[0]).float(), torch.tensor(rgb[1]).float())
            numbers = torch.tensor([mean, std], dtype=torch.float32)
            right = channels in FORMATS and numbers.shape == (2, channels)
            right = right and bool(numbers.isfinite().all()) and bool((numbers[1] > 0).all())
            right &= width is None or (type(width) is int and width > 0)
            right &= colours is None or ([list(c.shape) for c in colours] == [[channels, 3], [3]])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, RuntimeError):
            right = False
        if not right:
            raise DuoGenError(
                f"{where}: what it says of the latents is damaged; save the model again, or copy it again."
            )
        return cls(mean, std, None if colours is None else (colours[0].tolist(), colours[1].tolist()), width)

    def same_as(self, other: PictureLatent) -> bool:
        """Whether both are of the same VAE, as far as its width and its statistics tell."""
        return (
            self.vae_width == other.vae_width
            and self.latent_channels == other.latent_channels
            and torch.equal(self.latents_mean, other.latents_mean)
            and torch.equal(self.latents_std, other.latents_std)
        )


class KarrasFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow matching whose table of times has Karras' spacing, for weights that were trained so.

    The stock scheduler `simple` takes its times from this table: with the model's own number of steps they are within a
    hundredth of the published ones. DuoGen Sigmas outputs those exactly.
    """

    def __init__(self, config: Any) -> None:
        self.steps = config.duogen_sampling.steps
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


class NoUNet(dict[str, Any]):
    """What nodes made for U-Nets look into (FreeU: model_channels) before they patch one."""

    @in_users_language
    def __missing__(self, name: str) -> Any:
        raise DuoGenError(
            f"This node asks for the {name} of a U-Net, but DuoGen's MODEL is a diffusion transformer, which has none; "
            "take it out."
        )


class DuoGenConfig(comfy.supported_models_base.BASE):
    """What BaseModel wants to know about a model.

    ComfyUI has no registry that a pack could add a model to, so only our loader uses this, and ComfyUI's detection of
    model files stays as it is.
    """

    unet_extra_config: dict[str, Any] = {}
    latent_format = PictureLatent

    def __init__(
        self,
        family: Family,
        width: int,
        shift: float,
        latent_format: PictureLatent,
        duogen_sampling: Sampling | None = None,
    ) -> None:
        channels = latent_format.latent_channels
        super().__init__({"image_model": "duogen", "in_channels": channels, "disable_unet_model_creation": True})
        self.supported_inference_dtypes = list(family.dtypes)
        self.unet_config = NoUNet(self.unet_config)
        self.sampling_settings = {"multiplier": 1.0, "shift": shift}
        self.latent_format = latent_format
        self.duogen_sampling = duogen_sampling  # steps and guidance the weights were made for
        self.memory_usage_factor = family.memory * width

    def inpaint_model(self) -> bool:
        return False
