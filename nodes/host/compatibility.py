"""Checks that connected parts belong together, before anything runs; errors state both numbers.

In: what comes in on the sockets. Out: nothing, or an error that names what does not fit and what to connect instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError

from .families import FAMILIES, described, family_of
from .model_config import FORMATS, VERSIONS

if TYPE_CHECKING:
    import torch

    from duogen_core.checkpoint import CheckpointConfig

    from .model_management import ModelHandle

STOCK_WAN = ("WAN21", "WAN22")  # of comfy.model_base; their relatives (HuMo, SCAIL, …) look at reference latents


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
    config.check_pair(mllm.core.model_type, config.dit, "This connector")  # two families may have the same shape


def check_model(model: Any, connector: ModelHandle | None = None) -> None:
    """Checks that this MODEL can read the states of a connector, and of this one."""
    from .diffusion_model import DuoGenModel

    if not isinstance(model.model, DuoGenModel):
        raise DuoGenError(
            f"This MODEL is a {type(model.model).__name__}, which cannot read the text states of a DuoGen connector; "
            "connect the MODEL of a DuoGen checkpoint, or let the other one draw between DuoGen Loop Open and "
            "Loop Close, with a CONDITIONING of its own."
        )
    if connector is None:
        return
    dit, made_for = model.model.diffusion_model, FAMILIES.get(connector.made_for)
    width, given = dit.config.text_embed_dim, connector.core.config.cross_width
    if given != width or (made_for is not None and made_for is not family_of(dit)):
        trained = f"was trained with a {made_for.name} and " if made_for is not None else ""
        raise DuoGenError(
            f"The connector {trained}gives {given} numbers a token, but this MODEL is a {described(dit)}, and reads "
            f"{width}; take both from the same checkpoint."
        )


def check_references(model: Any, *conditionings: list) -> None:
    """Whether a MODEL of ComfyUI's that would not look at earlier images is given some: ComfyUI's own Wan."""
    given = any("reference_latents" in entry[1] for entries in conditionings for entry in entries)
    inner = model.model
    words_alone = type(inner).__name__ in STOCK_WAN and getattr(inner.diffusion_model, "ref_conv", None) is None
    if given and words_alone:
        raise DuoGenError(
            f"This MODEL, ComfyUI's own Wan ({type(inner).__name__}), draws from words alone and would not look at the "
            "reference latents in its CONDITIONING; take DuoGen Add Reference Latents out, or let a painter that looks "
            "at images draw (FLUX.2, Qwen-Image-Edit, a DuoGen MODEL)."
        )


def config_of(mllm: ModelHandle, model: Any) -> CheckpointConfig:
    """The language model's configuration, with the sampling of this MODEL: they may be of two checkpoints."""
    own = model.model.model_config.duogen_sampling
    return mllm.config if own is None else replace(mllm.config, sampling=own)


def check_vae(vae: Any, model: Any = None) -> None:
    """Whether this VAE makes the latents that a MODEL of ours draws in. The number of channels alone does not tell:
    FLUX.1, SD3, HunyuanVideo, CogVideoX and Cosmos 1 have 16 as well. model: not known where images are encoded."""
    latents = getattr(model, "model", None) and model.model.latent_format
    channels, version = vae.latent_channels, VERSIONS.get(vae.latent_channels)
    known = [latents.latent_channels] if latents else list(FORMATS)
    if channels not in known:
        wanted = " or ".join(map(str, known))
        raise DuoGenError(
            f"This VAE makes latents of {channels} channels, but the MODEL draws in {wanted}; connect the VAE of the "
            "same checkpoint."
        )
    kind, inner = _kind_of(vae), vae.first_stage_model
    if kind is not None:
        raise DuoGenError(
            f"This VAE is {kind} ({type(inner).__name__}). Its latents have {channels} channels as well, but mean "
            f"something else than those of Wan {version}, in which the MODEL draws; connect the VAE of the "
            "same checkpoint."
        )
    own = getattr(vae, "duogen_latents", None)
    if latents is None:
        return
    width = getattr(latents, "vae_width", None)  # None: Wan 2.1's own latents, for which there are VAEs of many widths
    if (own is not None and not own.same_as(latents)) or (width is not None and getattr(inner, "dim", width) != width):
        raise DuoGenError(
            f"This VAE has the shape of Wan {version}'s, but other weights than the one whose latents the "
            "MODEL was trained on; connect the VAE of the same checkpoint."
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
    """What a VAE of ComfyUI's is, where it is not Wan's. None: it is, or another pack made it and it may be."""
    from comfy.ldm.wan.vae import WanVAE
    from comfy.ldm.wan.vae2_2 import WanVAE as WanVAE22
    from comfy.taesd.taehv import TAEHV

    inner = vae.first_stage_model
    if getattr(vae, "latent_dim", 3) != 3:
        return "for still images, such as those of FLUX.1 and SD3"
    if isinstance(inner, (WanVAE, WanVAE22)) or not type(inner).__module__.startswith("comfy."):
        return None
    if isinstance(inner, TAEHV) and inner.latent_format is None:
        return None  # lighttaew2_1 and 2_2: small, and made for Wan's latents
    return "another video model's"
