"""The flow-matching loss of stage 2: a document becomes a sample, with noise and times, and a pack of samples a loss.

    sample = sample_of(prepared, rng, FlowSettings())           clean frames, noisy targets, states, who sees which
    loss = FlowLoss(dit, connector)([sample, …])                mean squared error of the velocity, noise - x0

What is drawn at random for a document (noise, times, text dropout, the target under `full` attention) depends on its
own generator, never on how a batch is shared out over processes or packed into passes. A ControlNet learns from the
same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from duogen_core.connector import Connector
from duogen_core.dit.base import PackedDit
from duogen_core.dit.packing import TrainingSequence
from duogen_core.training.precision import mixed_precision
from duogen_core.training.prepared import Prepared, targets_of

# Times from which a picture is guessed in one step: so much noise that the guess is as far from the ideal as what
# sampling draws (docs/ablation.md: 36.5 dB from 0.97, 36.7 sampled).
OWN_TIMES = (0.8, 1.0)
STATES = 2**26  # numbers of states that the connector projects at once

# -- a document becomes a sample


@dataclass(frozen=True)
class FlowSettings:
    """How a document becomes a sample; fields as of Stage2Config."""

    attention: Literal["frame_causal", "full"] = "frame_causal"
    references: bool = True
    drop: Literal["last_segment", "all_text"] = "last_segment"
    drop_text: float = 0.1
    shift: float = 6.0
    unshifted_share: float = 0.0
    reference_noise: float = 0.0
    own_references: float = 0.0


@dataclass(frozen=True)
class FlowSample:
    """One document in one step: a `TrainingSequence` before the connector, and the noise of its targets."""

    clean: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]  # x0
    noise: tuple[Tensor, ...]
    frame_indices: tuple[int, ...]
    timestep: Tensor
    states: Tensor  # [N, layers * width], as it is kept: half precision is enough for what the connector reads
    sees: Tensor  # bool [clean + targets, N], on the CPU, where masks are made
    controls: tuple[Tensor, ...] = ()  # of the targets, for a ControlNet
    own: tuple[int, ...] = ()  # clean frames in whose place comes what the model itself guesses of them
    own_time: float = 1.0  # from so much noise

    @property
    def frames(self) -> int:
        return len(self.clean) + len(self.targets)

    def to(self, device: torch.device) -> FlowSample:
        def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device, non_blocking=True).float() for tensor in tensors)

        states, timestep = (each.to(device, non_blocking=True) for each in (self.states, self.timestep))
        clean, targets, noise = moved(self.clean), moved(self.targets), moved(self.noise)
        controls = moved(self.controls)
        return replace(
            self, clean=clean, targets=targets, noise=noise, timestep=timestep, states=states, controls=controls
        )


def shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def sample_of(document: Prepared, rng: Random, settings: FlowSettings) -> FlowSample:
    """The targets of a pass (`targets_of`), each with its own noise and time, and the earlier pictures clean."""
    seed, targets = targets_of(document.drawn, settings.attention, rng)
    generator = torch.Generator().manual_seed(seed)
    clean = range(targets[-1] if settings.references else 0)
    states, sees, dropped = _text(document, rng, settings, clean, targets)
    noise = tuple(torch.randn(document.latents[k].shape, generator=generator) for k in targets)
    # Logit-normal times, where the velocity is hardest to tell. The shift moves them to high noise, where composition
    # is decided; a share stays unshifted, or the last steps of sampling, which make edges, would be seen too rarely.
    t = torch.sigmoid(torch.randn(len(targets), generator=generator))
    unshifted = torch.rand(len(targets), generator=generator) < settings.unshifted_share
    references = [document.latents[k] for k in clean]
    if settings.reference_noise:  # of each picture another amount, none included
        amounts = settings.reference_noise * torch.rand(len(references), generator=generator)
        references = [x + a * torch.randn(x.shape, generator=generator) for x, a in zip(references, amounts)]
    own: tuple[int, ...] = ()
    time = 1.0
    if settings.own_references:
        asked, share = torch.rand(2, generator=generator).tolist()
        time = OWN_TIMES[0] + share * (OWN_TIMES[1] - OWN_TIMES[0])
        if asked < settings.own_references:  # but where the text is hidden: that would be another picture
            own = tuple(k for k, drop in zip(targets, dropped, strict=True) if k in clean and not drop)
    return FlowSample(
        clean=tuple(references),
        targets=tuple(document.latents[k] for k in targets),
        noise=noise,
        frame_indices=(*clean, *targets),
        timestep=torch.where(unshifted, t, shifted(t, settings.shift)),
        states=states,
        sees=sees,
        controls=tuple(document.controls[document.drawn.index(k)] for k in targets) if document.controls else (),
        own=own,
        own_time=time,
    )


def _text(
    document: Prepared, rng: Random, settings: FlowSettings, clean: Sequence[int], targets: Sequence[int]
) -> tuple[Tensor, Tensor, list[bool]]:
    """The states of a sample, which of them each frame sees, and from which targets some are hidden.

    With probability `drop_text` a target does not see what the negative branch of guidance will drop, so that this
    branch is trained too: the last text segment (DuoGen), or all text.
    """
    end = document.ends[targets[-1]]
    states, frames = document.states[:end], [*clean, *targets]
    if settings.drop == "all_text":  # of the whole sequence: so will the negative branch
        states = states[:0] if rng.random() < settings.drop_text else states
        dropped = [False] * len(targets)
    else:
        dropped = [rng.random() < settings.drop_text for _ in targets]
    if settings.attention == "full":  # every frame sees all that the target sees
        if dropped[0]:
            first, last = document.segments[targets[0]]
            states = torch.cat([states[:first], states[last:]])
        return states, torch.ones(len(frames), len(states), dtype=torch.bool), dropped
    # A frame sees the text before its own place alone: then a finished picture never changes, and its keys and values
    # can be cached when sampling.
    ends = torch.tensor([document.ends[k] for k in frames])
    sees = torch.arange(len(states))[None] < ends[:, None]
    for row, (k, drop) in enumerate(zip(targets, dropped, strict=True), start=len(clean)):
        if drop:
            first, last = document.segments[k]
            sees[row, first:last] = False
    return states, sees, dropped


def silent_sample(dit: Any, connector: Connector) -> FlowSample:
    """A sample of nothing, as small as can be."""
    latent, width = (
        torch.zeros(dit.config.out_channels, 2, 2),
        connector.config.num_layers * connector.config.hidden_size,
    )
    return FlowSample(
        (), (latent,), (latent,), (0,), torch.full((1,), 0.5), torch.zeros(1, width), torch.ones(1, 1, dtype=torch.bool)
    )


# -- the loss


@dataclass(frozen=True)
class LossSettings:
    """What is learnt from; fields as of Stage2Config. The validation loss is always that of the velocity alone."""

    loss: Literal["velocity", "x0"] = "velocity"
    edge_weight: float = 0.0
    decoder_weight: float = 0.0
    own_references: float = 0.0


DECODED = 4  # targets of a pass that go through the VAE's decoder, those of the least noise
Decode = Callable[[Tensor], Tensor]  # normalised latents [B, c, h, w] -> pixels [B, 3, H, W], with gradients


class FlowLoss(nn.Module):
    """Mean squared error of the velocity, v = noise - x0 at x_t = t noise + (1 - t) x0.

    Every target counts the same, however large its picture, so that a document of large pictures does not drown others.
    decode: the frozen VAE's decoder, where `decoder_weight` asks for it.
    """

    def __init__(
        self,
        dit: PackedDit,
        connector: Connector,
        bf16: bool = False,
        settings: LossSettings = LossSettings(),
        decode: Decode | None = None,
    ) -> None:
        super().__init__()
        self.dit, self.connector, self.bf16 = dit, connector, bf16
        self.settings, self.decode = settings, decode

    @property
    def layers(self) -> nn.ModuleList:
        """What FSDP gathers one at a time."""
        return self.dit.transformer_blocks

    def forward(self, samples: Sequence[FlowSample], total: Tensor | int | None = None) -> Tensor:
        """total: targets of the whole step, where this is one pass of several or one process's share."""
        device = self.connector.proj.weight.device
        samples = [sample.to(device) for sample in samples]
        if self.training and self.settings.own_references:
            samples = self.with_own_references(samples)
        with mixed_precision(device, self.bf16):
            texts = projected(self.connector, [sample.states for sample in samples])
            found = self.dit.forward_train([noised(*pair) for pair in zip(samples, texts, strict=True)])
        drawn = [
            (t, v.float(), noise, x0)
            for sample, velocities in zip(samples, found, strict=True)
            for t, v, noise, x0 in zip(sample.timestep, velocities, sample.noise, sample.targets, strict=True)
        ]
        learnt = self.settings if self.training else LossSettings()
        errors = [error_of(v - (noise - x0), t, x0, learnt) for t, v, noise, x0 in drawn]
        loss = torch.stack(errors).sum()
        if learnt.decoder_weight and self.decode is not None:
            loss = loss + learnt.decoder_weight * len(errors) * decoded_error(drawn, self.decode)
        return loss / (len(errors) if total is None else total)

    @torch.no_grad()
    def with_own_references(self, samples: Sequence[FlowSample]) -> list[FlowSample]:
        """The samples, with the model's guesses in the place of the clean frames that are to be its own. In an autocast
        of its own, since one keeps the weights that it has cast, and these have no gradients."""
        device = self.connector.proj.weight.device
        asking = [k for k, sample in enumerate(samples) if sample.own]
        starts = [
            replace(each, timestep=torch.full_like(each.timestep, each.own_time))
            for each in map(samples.__getitem__, asking)
        ]
        # FSDP's processes gather weights together, whether one of them has such a sample or not.
        starts = starts or [silent_sample(self.dit, self.connector).to(device)]
        with mixed_precision(device, self.bf16):
            texts = projected(self.connector, [start.states for start in starts])
            velocities = self.dit.forward_train([noised(*pair) for pair in zip(starts, texts, strict=True)])
        found = list(samples)
        for k, start, own in zip(asking, starts, velocities):
            found[k] = replace(samples[k], clean=guessed(start, own))
        return found


def guessed(sample: FlowSample, velocities: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The clean frames, those in `own` as the velocities of these targets tell x0."""
    count = len(sample.clean)
    clean = dict(zip(sample.frame_indices[:count], sample.clean, strict=True))
    drawn = zip(sample.frame_indices[count:], velocities, sample.timestep, sample.noise, sample.targets, strict=True)
    for k, v, t, noise, x0 in drawn:
        if k in sample.own:
            clean[k] = t * noise + (1 - t) * x0 - t * v.float()
    return tuple(clean.values())


def error_of(error: Tensor, t: Tensor, x0: Tensor, settings: LossSettings) -> Tensor:
    """error: of the velocity, [c, h, w]. That of x0, guessed from x_t, is t times as large."""
    squared = error.square()
    if settings.loss == "x0":
        squared = squared * t**2
    if settings.edge_weight:
        squared = squared * (1 + settings.edge_weight * edges(x0)) / (1 + settings.edge_weight)
    return squared.mean()


def edges(latent: Tensor) -> Tensor:
    """How unlike its neighbours each place of a latent [c, h, w] is: [h, w], 1 on average (0 where nothing is)."""
    across, down = (latent.diff(dim=dim).square().mean(0).sqrt() for dim in (2, 1))
    found = F.pad(across, (1, 0)) + F.pad(across, (0, 1)) + F.pad(down, (0, 0, 1, 0)) + F.pad(down, (0, 0, 0, 1))
    return found / found.mean().clamp_min(1e-6)


def decoded_error(drawn: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], decode: Decode) -> Tensor:
    """Mean absolute difference of the pixels of x0 as guessed and as it is, of the targets with the least noise.
    drawn: (t, v, noise, x0) of each target."""
    some = sorted(drawn, key=lambda target: float(target[0]))[:DECODED]
    differences = []
    for t, v, noise, x0 in some:
        with torch.no_grad():
            wanted = decode(x0[None])
        guess = t * noise + (1 - t) * x0 - t * v
        differences.append((decode(guess[None]) - wanted).abs().mean())
    return torch.stack(differences).mean()


def projected(connector: Connector, states: Sequence[Tensor]) -> list[Tensor]:
    """The text condition of each sample. Of many states a block at a time, which is made wider again on the way back:
    else as many numbers in the weights' precision would lie beside the states themselves."""
    if sum(each.numel() for each in states) <= STATES:
        dtype = connector.proj.weight.dtype  # autocast to bfloat16 cannot concatenate float16
        whole = torch.cat([each.to(dtype) for each in states])
        return list(connector.project(whole).split([len(each) for each in states]))
    rows = max(1, STATES // states[0].shape[-1])
    return [
        torch.cat([checkpoint(connector.project, block, use_reentrant=False) for block in each.split(rows)])
        for each in states
    ]


def noised(sample: FlowSample, text: Tensor) -> TrainingSequence:
    triples = zip(sample.timestep, sample.noise, sample.targets, strict=True)
    noisy = tuple(t * noise + (1 - t) * x0 for t, noise, x0 in triples)
    return TrainingSequence(sample.clean, noisy, sample.frame_indices, sample.timestep, text, sample.sees)
