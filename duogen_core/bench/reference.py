"""The other side of every benchmark: what a good user writes today with transformers and diffusers alone.

On the same weights, with scaled dot-product attention, in inference mode, with generate's own KV cache, and no wasted
work that one would not find there:
    writing    `generate` over the whole conversation anew, images included, with output_hidden_states
    condition  the states of all layers normalised, concatenated, projected
    drawing    diffusers' stock CosmosTransformer3DModel over every frame at every step, both branches of guidance;
               frames share one size, finished ones have condition mask 1 and their own timestep
    images     diffusers' AutoencoderKLWan encodes every image of the conversation again
The prompt's tokens and the range that guidance drops come from our layout, so that both sides answer the same input.

Weights whose attention is frame_causal mean something else to the stock transformer, which knows full attention only.
It is timed on them all the same, for the same request, and `Uncached` says what the pictures have to be: our own
`forward_packed`, with nothing kept between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from duogen_core.checkpoint import Components
from duogen_core.connector import Connector
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import build_inputs, control_set, model_inputs
from duogen_core.picture_sampling import reference_pixels
from duogen_core.sampling import initial_noise, sigmas
from duogen_core.vae import pixels_to_tensor, tensor_to_pixels

FULL = (
    "transformers' generate with hidden states over the whole conversation for every image, concatenate-and-project, "
    "diffusers' stock transformer and VAE over every earlier image"
)
CAUSAL = FULL + (
    "; the weights are frame_causal, which the stock transformer does not know: it is timed for the same request with "
    "full attention, and our images are compared with our own forward_packed without any cache"
)


@dataclass(frozen=True)
class Written:
    """ids: the new tokens, without the one that ended it. states: float [tokens before <BOV>, L, H]."""

    text: str
    ids: list[int]
    states: tuple[Tensor, ...]  # of each layer, [N, H]


# ---------------------------------------------------------------- writing


def write(mllm: Mllm, document: Document, max_new_tokens: int, **how: Any) -> Written:
    """Writes with `generate` until <BOV> or the end of the turn, and hands out the states of all layers.

    how: generate's own arguments, such as do_sample, temperature, streamer.
    """
    import transformers

    model, control, device = mllm.model, mllm.control, mllm.device
    batch = model_inputs(build_inputs([document], mllm.tokenizer, mllm.image_processor, open_turn=True), labels=False)
    if int(transformers.__version__.split(".")[0]) < 5:  # it finds images by their token
        del batch["mm_token_type_ids"]
    ends = [control.bov, control.im_end, control.end_of_text]
    model.model.rope_deltas = None  # left behind by an earlier call
    with torch.inference_mode():
        out = model.generate(
            **{name: value.to(device) for name, value in batch.items()},
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=control.end_of_text,
            # What never follows in a conversation; ours cannot write it either.
            suppress_tokens=sorted(control_set(mllm.tokenizer) - set(ends)),
            use_cache=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
            **{"do_sample": False, **how},
        )
    ids = out.sequences[0, batch["input_ids"].shape[1] :].tolist()
    if ids and ids[-1] in ends:
        ids.pop()
    # One tuple a token: the embedding and every layer, [1, tokens run, H]; the first holds the whole prompt.
    layers = zip(*(step[1:] for step in out.hidden_states))
    states = tuple(torch.cat([part[0] for part in parts]) for parts in layers)
    return Written(mllm.tokenizer.decode(ids), ids, states)


def project(connector: Connector, states: Sequence[Tensor]) -> Tensor:
    """Concatenate-and-project: states of each layer [N, H] -> the text condition [N, cross_width]."""
    normalised = []
    for h in states[connector.config.first_layer :]:
        h = h.float()
        std, mean = torch.std_mean(h, dim=-1, keepdim=True)
        normalised.append((h - mean) / (std + 1e-8))
    joined = torch.cat(normalised, dim=-1)
    del normalised
    return F.gelu(F.linear(joined.to(connector.proj.weight.dtype), connector.proj.weight, connector.proj.bias).float())


# ---------------------------------------------------------------- drawing


def stock_transformer(dit: PackedCosmos) -> CosmosTransformer3DModel:
    """diffusers' own class on our DiT's weights, which are shared, not copied.

    Its forward resizes the padding mask, all zeros, with torchvision, which need not be installed. So that mask is
    given along with the condition mask instead: the same input channels, without the resizing.
    """
    if dit.family != "cosmos":
        raise DuoGenError(
            f"The model's diffusion transformer is a {type(dit).__name__}, and the other side of this benchmark is "
            "diffusers' Cosmos transformer; measure a model of that family, or bench mllm and connector of this one."
        )
    config = {name: dit.config[name] for name in CosmosTransformer3DModel._get_init_keys(CosmosTransformer3DModel)
              if name in dit.config}  # fmt: skip
    with torch.device("meta"):
        stock = CosmosTransformer3DModel(**config)
    stock.rope = dit.rope
    stock.load_state_dict(dit.state_dict(), assign=True)
    stock.register_to_config(concat_padding_mask=False, use_crossattn_projection=False)
    return stock.eval()


@dataclass
class Stock:
    """Velocities of the stock transformer: finished frames [1, 16, h, w], all of the target's size."""

    model: CosmosTransformer3DModel
    clean_timestep: float
    padding_mask: bool

    def condition(self, frames: Sequence[Tensor], noisy: Tensor) -> None:
        """Prepares what all steps share."""
        batch, _, height, width = noisy.shape
        count = len(frames) + 1
        self.frames = torch.stack(list(frames), dim=2) if frames else noisy[:, :, None][:, :, :0]
        mask = noisy.new_ones(batch, 1, count, height, width)
        mask[:, :, -1] = 0
        self.mask = torch.cat([mask, torch.zeros_like(mask)], dim=1) if self.padding_mask else mask

    def velocity(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        video = torch.cat([self.frames, x[:, :, None]], dim=2)
        times = t.to(x).expand(x.shape[0], 1, video.shape[2], 1, 1).clone()
        if self.clean_timestep >= 0:
            times[:, :, :-1] = self.clean_timestep
        out = self.model(video, times, text, condition_mask=self.mask, return_dict=False)[0]
        return out[:, :, -1]


@dataclass
class Uncached:
    """Velocities of our own transformer with nothing kept: every call runs every frame again."""

    model: PackedCosmos
    frame_ends: Sequence[int]

    def condition(self, frames: Sequence[Tensor], noisy: Tensor) -> None:
        self.frames = list(frames)

    def velocity(self, x: Tensor, t: Tensor, text: Tensor, hidden: tuple[int, int] | None = None) -> Tensor:
        return self.model.forward_packed(
            [*self.frames, x], t.to(x).expand(x.shape[0]), text, frame_ends=self.frame_ends, hidden=hidden
        )


def sample(
    positive: Callable[[Tensor, Tensor], Tensor],
    negative: Callable[[Tensor, Tensor], Tensor] | None,
    noise: Tensor,
    times: Tensor,
    guidance: float,
) -> Tensor:
    """Euler's method over a flow, with guidance: noise -> latent."""
    x = noise
    for now, then in pairwise(times):
        v = positive(x, now).float()
        if negative is not None and guidance != 1.0:
            other = negative(x, now).float()
            v = other + guidance * (v - other)
        x = x + v.to(x) * (then - now).to(x)
    return x


def encode(vae: Any, pixels: np.ndarray) -> Tensor:
    """An image through diffusers' whole VAE, a video of one frame -> normalised latent [1, 16, h, w]."""
    image = pixels_to_tensor(pixels).to(vae.device, vae.dtype)
    latent = vae.encode(image[:, :, None]).latent_dist.mode()[:, :, 0].float()
    mean, std = (torch.tensor(value, device=latent.device).view(1, -1, 1, 1) for value in statistics(vae))
    return (latent - mean) / std


def decode(vae: Any, latent: Tensor) -> np.ndarray:
    mean, std = (torch.tensor(value, device=latent.device).view(1, -1, 1, 1) for value in statistics(vae))
    raw = latent.float() * std + mean
    return tensor_to_pixels(vae.decode(raw[:, :, None].to(vae.dtype)).sample[:, :, 0])


def statistics(vae: Any) -> tuple[Sequence[float], Sequence[float]]:
    return vae.config.latents_mean, vae.config.latents_std


# ---------------------------------------------------------------- one image of the loop


class Reference:
    """The loop's other side; every image starts from the conversation alone."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.stock = stock_transformer(components.dit)

    def picture(
        self, document: Document, max_new_tokens: int, seed: int, steps: int, guidance: float, size: tuple[int, int]
    ) -> tuple[str, np.ndarray]:
        """Writes the next text of the conversation and draws the image after it: its text and pixels."""
        components = self.components
        with torch.inference_mode():
            written = write(components.mllm, document, max_new_tokens)
            text = project(components.connector, written.states)
            return written.text, self.draw(document, written.text, text, seed, steps, guidance, size)

    def draw(
        self, document: Document, new: str, text: Tensor, seed: int, steps: int, guidance: float, size: tuple[int, int],
        uncached: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Draws the image that follows the text `new`; text: its condition [N, W]; uncached: by forward_packed."""
        components = self.components
        dit, vae = components.dit, components.vae.model
        context = context_of(components, document, new)
        dtype = next(weight.dtype for weight in dit.parameters() if weight.ndim == 1)
        frames = [encode(vae, pixels_of(picture, components)).to(text.device, dtype) for picture in document.pictures]
        width, height = size
        noise = initial_noise(seed, (1, 16, height // 8, width // 8)).to(text.device, dtype)
        text = text[None].to(dtype)
        start, end = context.last_segment if components.connector.config.drop == "last_segment" else (0, text.shape[1])
        sampling = components.config.sampling
        times = sigmas(steps, sampling.shift, sampling.schedule).to(text.device)
        if uncached:
            how: Any = Uncached(dit, context.frame_ends)
            how.condition(frames, noise)
            x = sample(
                lambda x, t: how.velocity(x, t, text),
                (lambda x, t: how.velocity(x, t, text, (start, end))) if end > start else None,
                noise, times, guidance,
            )  # fmt: skip
        else:
            how = Stock(self.stock, dit.config.clean_timestep, dit.config.concat_padding_mask)
            how.condition(frames, noise)
            dropped = torch.cat([text[:, :start], text[:, end:]], dim=1)
            x = sample(
                lambda x, t: how.velocity(x, t, text),
                (lambda x, t: how.velocity(x, t, dropped)) if end > start else None,
                noise, times, guidance,
            )  # fmt: skip
        return decode(vae, x)


def context_of(components: Components, document: Document, new: str) -> Any:
    """The place of the text that guidance drops, and of the images, once `new` has been written."""
    from duogen_core.mllm.chat import image_token_counts, layout
    from duogen_core.pipeline import with_text

    mllm, document = components.mllm, with_text(document, new)
    counts = image_token_counts(document, mllm.image_processor)
    found = layout(document, mllm.tokenizer, counts, open_turn=True)
    return found.context_of(segment=components.connector.config.segment)


def pixels_of(picture: Picture, components: Components) -> np.ndarray:
    return reference_pixels(picture, components.config)
