"""The flow-matching loss of stage 2 as one module: connector and DiT, from the frozen MLLM's states to the error.

x_t = t noise + (1 - t) x0, v = noise - x0, t logit-normal and shifted, but for a share `unshifted`. Under
`frame_causal` every drawn picture of a document is a target in one pass, each with its own noise and t; under `full`
attention one random one, as in the paper, with the earlier pictures clean. With probability `drop_text` a target does
not see what the negative branch of guidance will drop: the last text segment (DuoGen), or all text.
In:  prepared documents and a random generator for each -> `Sample`s (`draw`); the loss of a pack of them (`FlowLoss`).
What chance decides about a document depends on its generator alone, not on how a batch is shared out or packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor, nn

from duogen_core.connector import Connector
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.packing import Sequence as TrainingSequence
from duogen_core.training.fast import quick_bf16
from duogen_core.training.stage2_data import Prepared


@dataclass(frozen=True)
class Chance:
    """How a document becomes a training sample."""

    attention: Literal["frame_causal", "full"] = "frame_causal"
    references: bool = True  # False: earlier pictures are not shown
    drop: Literal["last_segment", "all_text"] = "last_segment"
    drop_text: float = 0.1
    shift: float = 6.0
    unshifted: float = 0.0  # share of targets whose timestep is not shifted


@dataclass(frozen=True)
class Sample:
    """One document in one step: a `TrainingSequence` before the connector, and the noise of its targets."""

    clean: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]  # x0
    noise: tuple[Tensor, ...]
    places: tuple[int, ...]
    timestep: Tensor
    states: Tensor  # [N, layers * width]
    sees: Tensor  # bool [clean + targets, N]

    @property
    def frames(self) -> int:
        return len(self.clean) + len(self.targets)

    def to(self, device: torch.device) -> Sample:
        def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device, torch.float32) for tensor in tensors)

        states, timestep = self.states.to(device).float(), self.timestep.to(device)
        clean, targets, noise = moved(self.clean), moved(self.targets), moved(self.noise)
        return Sample(clean, targets, noise, self.places, timestep, states, self.sees.to(device))


def shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def draw(document: Prepared, rng: Random, chance: Chance) -> Sample:
    generator = torch.Generator().manual_seed(rng.getrandbits(63))  # first: whatever is switched, the noise stays
    targets = (rng.choice(document.drawn),) if chance.attention == "full" else document.drawn
    last = targets[-1]
    clean = range(last if chance.references else 0)
    states, sees = _text(document, rng, chance, clean, targets)
    return Sample(
        clean=tuple(document.latents[k] for k in clean),
        targets=tuple(document.latents[k] for k in targets),
        noise=tuple(torch.randn(document.latents[k].shape, generator=generator) for k in targets),
        places=(*clean, *targets),
        timestep=_timesteps(len(targets), chance, generator),
        states=states,
        sees=sees,
    )


def _timesteps(count: int, chance: Chance, generator: torch.Generator) -> Tensor:
    t = torch.sigmoid(torch.randn(count, generator=generator))
    low = torch.rand(count, generator=generator) < chance.unshifted
    return torch.where(low, t, shifted(t, chance.shift))


def _text(
    document: Prepared, rng: Random, chance: Chance, clean: Sequence[int], targets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The states of a sample, and which of them each frame sees."""
    end = document.ends[targets[-1]]
    states, frames = document.states[:end], [*clean, *targets]
    if chance.drop == "all_text":  # of the whole sequence: so will the negative branch
        states = states[:0] if rng.random() < chance.drop_text else states
        dropped = [False] * len(targets)
    else:
        dropped = [rng.random() < chance.drop_text for _ in targets]
    if chance.attention == "full":  # every frame sees all that the target sees
        if dropped[0]:
            first, last = document.segments[targets[0]]
            states = torch.cat([states[:first], states[last:]])
        return states, torch.ones(len(frames), len(states), dtype=torch.bool)
    ends = torch.tensor([document.ends[k] for k in frames])
    sees = torch.arange(len(states))[None] < ends[:, None]
    for row, (k, drop) in enumerate(zip(targets, dropped, strict=True), start=len(clean)):
        if drop:
            first, last = document.segments[k]
            sees[row, first:last] = False
    return states, sees


class FlowLoss(nn.Module):
    """Mean squared error of the velocity, the mean over all targets, each of them counting the same."""

    def __init__(self, dit: PackedCosmos, connector: Connector, bf16: bool = False) -> None:
        super().__init__()
        self.dit, self.connector, self.bf16 = dit, connector, bf16

    def forward(self, samples: Sequence[Sample], total: int | None = None) -> Tensor:
        """total: targets of the whole step, where this is one pack of several or one process's share."""
        device = self.connector.proj.weight.device
        samples = [sample.to(device) for sample in samples]
        with quick_bf16(device, self.bf16):
            text = self.connector.project(torch.cat([sample.states for sample in samples]))
            texts = text.split([len(sample.states) for sample in samples])
            found = self.dit.forward_train([_noised(*pair) for pair in zip(samples, texts, strict=True)])
        errors = [
            (v.float() - (noise - x0)).square().mean()
            for sample, velocities in zip(samples, found, strict=True)
            for v, noise, x0 in zip(velocities, sample.noise, sample.targets, strict=True)
        ]
        return torch.stack(errors).sum() / (total or len(errors))


def _noised(sample: Sample, text: Tensor) -> TrainingSequence:
    triples = zip(sample.timestep, sample.noise, sample.targets, strict=True)
    noisy = tuple(t * noise + (1 - t) * x0 for t, noise, x0 in triples)
    return TrainingSequence(sample.clean, noisy, sample.places, sample.timestep, text, sample.sees)
