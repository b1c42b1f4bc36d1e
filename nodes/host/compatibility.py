"""Checks that connected parts belong together, before anything runs; errors state both numbers.

In: what comes in on the sockets. Out: nothing, or an error that names what does not fit and what to connect instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    import torch

    from duogen_core.checkpoint import CheckpointConfig

    from .model_management import ModelHandle


def check_connector(mllm: ModelHandle, connector: ModelHandle | None) -> None:
    if connector is None:
        return
    text = mllm.core.model.config.get_text_config()
    found, config = (text.num_hidden_layers, text.hidden_size), connector.core.config
    if found != (config.num_layers, config.hidden_size):
        raise DuoGenError(
            f"This connector was made for a language model with {config.num_layers} layers of width "
            f"{config.hidden_size}, but the one connected has {found[0]} layers of width {found[1]}; take both from "
            "the same checkpoint."
        )


def check_model(model: Any, connector: ModelHandle | None = None) -> None:
    """Checks that this MODEL can read the states of a connector, and of this one."""
    from .diffusion_model import DuoGenModel

    if not isinstance(model.model, DuoGenModel):
        raise DuoGenError(
            f"This MODEL is a {type(model.model).__name__}, which cannot read the text states of a DuoGen connector; "
            "connect the MODEL of a DuoGen checkpoint, or let the other one draw between DuoGen Loop Open and "
            "Loop Close, with a CONDITIONING of its own."
        )
    width = model.model.diffusion_model.config.text_embed_dim
    if connector is not None and connector.core.config.cross_width != width:
        raise DuoGenError(
            f"The connector gives {connector.core.config.cross_width} numbers a token, but this MODEL reads {width}; "
            "take both from the same checkpoint."
        )


def config_of(mllm: ModelHandle, model: Any) -> CheckpointConfig:
    """The language model's configuration, with the sampling of this MODEL: they may be of two checkpoints."""
    own = model.model.model_config.duogen_sampling
    return mllm.config if own is None else replace(mllm.config, sampling=own)


WAN_CHANNELS = 16


def check_vae(vae: Any, model: Any = None) -> None:
    """Whether this VAE makes the latents that a MODEL of ours draws in. The number of channels alone does not tell:
    FLUX.1, SD3, HunyuanVideo, CogVideoX and Cosmos 1 have 16 as well. model: not known where images are encoded."""
    latents = getattr(model, "model", None) and model.model.latent_format
    channels = latents.latent_channels if latents else WAN_CHANNELS
    if vae.latent_channels != channels:
        raise DuoGenError(
            f"This VAE makes latents of {vae.latent_channels} channels, but the MODEL draws in {channels}; connect the "
            "VAE of the same checkpoint."
        )
    kind, inner = _kind_of(vae), vae.first_stage_model
    if kind is not None:
        raise DuoGenError(
            f"This VAE is {kind} ({type(inner).__name__}). Its latents have {channels} channels as well, but mean "
            "something else than those of Wan 2.1, in which the MODEL draws; connect the VAE of the same checkpoint."
        )
    own = getattr(vae, "duogen_latents", None)
    if latents is None:
        return
    width = getattr(latents, "vae_width", None)  # None: Wan 2.1's own latents, for which there are VAEs of many widths
    if (own is not None and not own.same_as(latents)) or (width is not None and getattr(inner, "dim", width) != width):
        raise DuoGenError(
            "This VAE has the shape of Wan 2.1's, but other weights than the one whose latents the MODEL was trained "
            "on; connect the VAE of the same checkpoint."
        )


def check_latent(samples: torch.Tensor, model: Any) -> None:
    """Whether a LATENT to start from is our MODEL's. An empty one fits every MODEL: ComfyUI gives it its shape."""
    from .diffusion_model import DuoGenModel

    if isinstance(model.model, DuoGenModel) and samples.ndim == 4 and samples.count_nonzero():
        raise DuoGenError(
            "The latent to start from was made by a VAE for still images, such as those of FLUX.1 and SD3, whose "
            "latents this MODEL cannot read; encode the image with the VAE of the same checkpoint."
        )


def _kind_of(vae: Any) -> str | None:
    """What a VAE of ComfyUI's is, where it is not Wan 2.1's. None: it is, or another pack made it and it may be."""
    from comfy.ldm.wan.vae import WanVAE
    from comfy.taesd.taehv import TAEHV

    inner = vae.first_stage_model
    if getattr(vae, "latent_dim", 3) != 3:
        return "for still images, such as those of FLUX.1 and SD3"
    if isinstance(inner, WanVAE) or not type(inner).__module__.startswith("comfy."):
        return None
    if isinstance(inner, TAEHV) and inner.latent_format is None:
        return None  # lighttaew2_1: small, and made for Wan 2.1's latents
    return "another video model's"
