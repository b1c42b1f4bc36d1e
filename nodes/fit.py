"""Whether the parts that are connected belong together, said before anything runs and with both numbers.

In: what comes in on the sockets. Out: nothing, or an error that names what does not fit and what to connect instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import CheckpointConfig

    from .managed import Managed


def check_connector(mllm: Managed, connector: Managed | None) -> None:
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


def check_model(model: Any, connector: Managed | None = None) -> None:
    """Whether this MODEL can read what a connector gives, and this one at that."""
    from .dit_model import DuoGenModel

    if not isinstance(model.model, DuoGenModel):
        raise DuoGenError(
            f"This MODEL is a {type(model.model).__name__}, which cannot read the text states of a DuoGen connector; "
            "connect the MODEL of a DuoGen checkpoint, or let the other one draw inside the open loop, with a "
            "CONDITIONING of its own."
        )
    width = model.model.diffusion_model.config.text_embed_dim
    if connector is not None and connector.core.config.cross_width != width:
        raise DuoGenError(
            f"The connector gives {connector.core.config.cross_width} numbers a token, but this MODEL reads {width}; "
            "take both from the same checkpoint."
        )


def config_of(mllm: Managed, model: Any) -> CheckpointConfig:
    """The language model's configuration, with the sampling that this MODEL was made for: they may come apart."""
    own = model.model.model_config.duogen_sampling
    return mllm.config if own is None else replace(mllm.config, sampling=own)


def check_vae(vae: Any, model: Any) -> None:
    channels = model.model.latent_format.latent_channels
    if vae.latent_channels != channels:
        raise DuoGenError(
            f"This VAE makes latents of {vae.latent_channels} channels, but the MODEL draws in {channels}; connect the "
            "VAE of the same checkpoint."
        )
