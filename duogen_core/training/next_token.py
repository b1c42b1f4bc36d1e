"""Next-token loss on conversations with pictures, in few large operations.

Documents -> micro-batches sorted by length, so that little is padded; logits only of tokens with a loss. Which of a
step's documents make a micro-batch follows from their numbers of tokens, so each process reads only those of its own
micro-batches (`NextTokenSteps`). Pictures run through the tower once, equal ones once, those of one shape together.
Gradients reach it through the user's pictures, and through drawn ones where the example says so (`drawn_teach`).
How pictures are looked at, placed and read is the family's (mllm/decoder.py): here is nothing of one of them.
Equal to transformers' own loss on the same labels, for every family (tested).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sources import Bad
from duogen_core.document import Document
from duogen_core.mllm import family_of_module
from duogen_core.mllm.chat import control_ids, image_token_counts, layout, picture_grid
from duogen_core.training.data import Example, FromExamples, Probes, StepExamples, checksum
from duogen_core.training.distributed import Processes
from duogen_core.training.feeding import by_length, known_to, own_share
from duogen_core.training.precision import mixed_precision


class PictureKey(NamedTuple):
    """A picture as the tower gets it: equal ones are one."""

    digest: str
    learns: bool  # whether gradients reach the tower through it
    grid: tuple[int, ...]  # its shape, as `ImageProcessor.grid` tells it


@dataclass
class MicroBatch:
    """ids [B, N] right-padded, weight float [B, N] of each as a target, positions [P, B, N], pictures in order."""

    ids: Tensor
    weight: Tensor
    positions: Tensor
    pictures: list[PictureKey]
    lengths: list[int]  # of the rows, without padding
    labels: Tensor | None = None  # int [B, N, probes], what the probes should read out of the states

    @property
    def target_weight(self) -> float:
        """Weight of all targets."""
        return float(self.weight[:, 1:].sum())

    def to(self, device: torch.device) -> MicroBatch:
        tensors = (each.to(device, non_blocking=True) for each in (self.ids, self.weight, self.positions))
        labels = None if self.labels is None else self.labels.to(device)
        return MicroBatch(*tensors, self.pictures, self.lengths, labels)

    def pin_memory(self) -> MicroBatch:
        pinned = (each.pin_memory() for each in (self.ids, self.weight, self.positions))
        return MicroBatch(*pinned, self.pictures, self.lengths, self.labels)


class StepTotals(NamedTuple):
    """What a step's loss is the mean over, where the step is taken in parts (or by several processes)."""

    target_weight: float | Tensor
    batches: int

    @classmethod
    def of(cls, batches: Sequence[MicroBatch]) -> StepTotals:
        return cls(sum(batch.target_weight for batch in batches), len(batches))


Pixels = Mapping[PictureKey, Tensor]  # uint8 […, 3] each, as `ImageProcessor.prepared` makes them


def with_pictures(batch: MicroBatch, pixels: Pixels) -> tuple[list[MicroBatch], Pixels]:
    """One micro-batch of several, with its own pictures."""
    return [batch], {key: pixels[key] for key in dict.fromkeys(batch.pictures)}


class Batcher:
    """Documents, or examples of them -> micro-batches and the distinct pictures they show."""

    def __init__(
        self,
        tokenizer: Any,
        processor: Any,
        *,
        tokens: int = 1536,
        user_weight: float = 0.0,
        probes: Probes | None = None,
    ) -> None:
        """tokens: padded ones of a micro-batch, at most (one conversation at least). user_weight: of what the user says
        in the loss. probes: give labels."""
        self.tokenizer, self.processor = tokenizer, processor
        self.tokens, self.user_weight, self.probes = tokens, user_weight, probes
        self.control = control_ids(tokenizer)

    def __call__(self, examples: Sequence[Document | Example]) -> tuple[list[MicroBatch], dict[PictureKey, Tensor]]:
        examples = [Example("", each) if isinstance(each, Document) else each for each in examples]
        groups = self.plan([self.length(example.document) for example in examples])
        return self.read(groups, dict(enumerate(examples)))

    def length(self, document: Document) -> int:
        """Tokens of a document, of whose pictures only the sizes need be known."""
        return len(layout(document, self.tokenizer, image_token_counts(document, self.processor)).ids)

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Conversations of these numbers of tokens -> which of them make a micro-batch, short ones first."""
        return by_length(lengths, self.tokens)

    def read(
        self, groups: Sequence[Sequence[int]], examples: Mapping[int, Example]
    ) -> tuple[list[MicroBatch], dict[PictureKey, Tensor]]:
        """The micro-batches of these groups of examples' numbers, and the distinct pictures they show."""
        pixels: dict[PictureKey, Tensor] = {}
        return [self._stack([self._row(examples[k], pixels) for k in group]) for group in groups], pixels

    def silent(self) -> MicroBatch:
        """A micro-batch without a target, for a process that has none left where others have: FSDP's processes must
        take equally many. Its loss and gradients are 0."""
        end = [self.control.end_of_text] * 2
        return self._stack([(end, torch.zeros(2), self.processor.positions(end, [], self.control.image_pad), [])])

    def _row(self, example: Example, pixels: dict[PictureKey, Tensor]) -> tuple:
        document = example.document
        spans = layout(document, self.tokenizer, image_token_counts(document, self.processor))
        weight = torch.tensor(spans.learn, dtype=torch.float32)
        for span in spans.parts:
            if span.kind == "text" and span.role == "user":
                weight[span.start : span.end] = self.user_weight
        grids = [picture_grid(picture, self.processor) for picture in document.pictures]
        keys = []
        for span, picture, grid in zip(spans.pictures, document.pictures, grids, strict=True):
            keys.append(PictureKey(picture.digest, not span.drawn or example.drawn_teach, grid))
            if keys[-1] not in pixels:
                pixels[keys[-1]] = torch.from_numpy(self.processor.prepared(picture))
        positions = self.processor.positions(spans.ids, grids, self.control.image_pad)
        return spans.ids, weight, positions, keys

    def _stack(self, rows: Sequence[tuple]) -> MicroBatch:
        length, kinds = max(len(ids) for ids, *_ in rows), len(rows[0][2])
        batch = MicroBatch(
            torch.full((len(rows), length), self.control.end_of_text),
            torch.zeros(len(rows), length),
            # Counting on: transformers would take positions that begin anew for another sequence, and make a mask.
            torch.arange(length).expand(kinds, len(rows), length).clone(),
            [key for *_, keys in rows for key in keys],
            [len(ids) for ids, *_ in rows],
        )
        for k, (ids, weight, positions, _) in enumerate(rows):
            batch.ids[k, : len(ids)] = torch.tensor(ids)
            batch.weight[k, : len(ids)] = weight
            batch.positions[:, k, : len(ids)] = positions
        return batch if self.probes is None else labelled(batch, self.probes)


def labelled(batch: MicroBatch, probes: Probes) -> MicroBatch:
    """The batch with what the probes should say of it; nothing at padding and in rows where nothing is learnt."""
    rows = [probes.labels(ids[:n].tolist()) for ids, n in zip(batch.ids, batch.lengths, strict=True)]
    labels = torch.full((*batch.ids.shape, len(rows[0][0])), -1)
    for k, row in enumerate(rows):
        if bool((batch.weight[k] > 0).any()):  # not in a silent batch, which would count in the mean
            labels[k, : len(row)] = torch.tensor(row)
    return replace(batch, labels=labels)


@dataclass
class NextTokenShare:
    """What a process learns from in a step. All processes have equally many micro-batches."""

    batches: list[MicroBatch]
    pixels: dict[PictureKey, Tensor]
    names: list[str]  # of all samples of the step
    tokens: int  # padded ones, of all processes' micro-batches
    count: int  # of all processes' micro-batches
    bad: list[Bad]  # samples that this process could not use
    checksum: int  # of what all processes see of the step
    apart: bool = False  # shared out by streams: `tokens` and `count` are of this process, and others may have more

    def pin_memory(self) -> NextTokenShare:
        pixels = {key: each.pin_memory() for key, each in self.pixels.items()}
        return replace(self, batches=[batch.pin_memory() for batch in self.batches], pixels=pixels)


@dataclass
class NextTokenSteps(FromExamples):
    """step -> the share of one process: every `processes`-th micro-batch."""

    examples: StepExamples
    batcher: Batcher
    rank: int = 0
    processes: int = 1

    def __call__(self, step: int) -> NextTokenShare:
        readers = self.examples.readers(step, self.processes)
        known = known_to(self.rank, readers)
        headers = dict(zip(known, self.examples.headers(step, known), strict=True))
        lengths = {k: self.batcher.length(each.document) for k, each in headers.items()}
        apart = any(reader is not None for reader in readers)
        if apart:
            own = own_share(lengths, self.rank, self.processes, readers)
            groups = mine = [[own[k] for k in group] for group in self.batcher.plan([lengths[k] for k in own]) if group]
        else:
            groups = self.batcher.plan(list(lengths.values()))
            mine = groups[self.rank :: self.processes]
        numbers = [k for group in mine for k in group]
        read = dict(zip(numbers, self.examples.read(step, numbers), strict=True))
        batches, pixels = self.batcher.read(mine, read)
        if not apart:
            batches += [self.batcher.silent()] * (-(-len(groups) // self.processes) - len(mine))
        return NextTokenShare(
            batches,
            pixels,
            names=[read.get(k, each).name for k, each in headers.items()],
            tokens=sum(len(group) * max(lengths[k] for k in group) for group in groups),
            count=len(groups),
            bad=[bad for each in read.values() for bad in each.skipped],
            checksum=checksum(headers[k] for k, reader in enumerate(readers) if reader is None),
            apart=apart,
        )

    def even(self, share: NextTokenShare, processes: Processes) -> None:
        """Makes the share of a step that was shared out by streams as long as the longest, and counts all of them."""
        if not share.apart or processes.count == 1:
            return
        found = processes.gather((len(share.batches), share.tokens, share.count))
        share.batches += [self.batcher.silent()] * (max(batches for batches, *_ in found) - len(share.batches))
        share.tokens, share.count = (sum(each[place] for each in found) for place in (1, 2))


def encode_pictures(model: nn.Module, pixels: Pixels) -> dict[PictureKey, Tensor]:
    """Features of every distinct picture [tokens, width]; pictures of one shape run together."""
    features, family = {}, family_of_module(model)
    tower = [parameter for name, parameter in model.named_parameters() if family.sees(name)]
    trained = any(parameter.requires_grad for parameter in tower)
    for learns in (True, False):
        for grid in dict.fromkeys(key.grid for key in pixels):
            keys = [key for key in pixels if key.learns == learns and key.grid == grid]
            if keys:
                pictures = torch.stack([pixels[key].to(tower[0].device, non_blocking=True) for key in keys])
                with torch.set_grad_enabled(learns and trained and torch.is_grad_enabled()):
                    features |= zip(keys, family.look_at(model, pictures, grid), strict=True)
    return features


def hidden_states(
    model: nn.Module, batch: MicroBatch, features: Mapping[PictureKey, Tensor], *, every: bool = False
) -> list[Tensor]:
    """Outputs of the decoder layers, each [B, N, hidden]; without `every` only the last, after the final norm."""
    family = family_of_module(model)
    seen = torch.cat([features[key] for key in batch.pictures]) if batch.pictures else None
    embeds, states = family.embedded(model, batch.ids, seen), []
    # A copy: transformers 4 adds Qwen3-VL's deepstack features to a layer's output in place, after it was handed out.
    keep = (lambda _layer, h: states.append(h.clone())) if every else None
    last = family.decode(model, embeds, batch.positions, None, keep)
    return [*states[:-1], last]


def predict(model: nn.Module, batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last states [B, N, hidden] -> logits [K, vocabulary], targets [K] and weights [K] of the tokens that count."""
    weight = batch.weight[:, 1:]
    counts = weight > 0
    return model.lm_head(hidden[:, :-1][counts]), batch.ids[:, 1:][counts], weight[counts]


class NextTokenLoss(nn.Module):
    """(weighted next-token loss, loss of the probes, 0 without any): a module, so that DDP and FSDP can wrap it."""

    def __init__(self, model: nn.Module, probes: Probes | None = None, *, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.probes, self.bf16 = model, probes, bf16

    @property
    def layers(self) -> nn.ModuleList:
        """What FSDP gathers one at a time; not the tower's blocks, which `tower_features` does not call as modules."""
        return self.model.model.language_model.layers

    def forward(
        self, batches: Sequence[MicroBatch], pixels: Mapping[PictureKey, Tensor], totals: StepTotals | None = None
    ) -> tuple[Tensor, Tensor]:
        """totals: of the step, if these batches are a part of it; the parts' losses then add up to the step's."""
        totals = totals or StepTotals.of(batches)
        device = self.model.get_input_embeddings().weight.device
        loss, probed = torch.zeros((), device=device), torch.zeros((), device=device)
        with mixed_precision(device, self.bf16):
            features = encode_pictures(self.model, pixels)
            for batch in (each.to(device) for each in batches):
                states = hidden_states(self.model, batch, features, every=self.probes is not None)
                logits, targets, weight = predict(self.model, batch, states[-1])
                losses = F.cross_entropy(logits.float(), targets, reduction="none")
                loss = loss + (losses * weight).sum() / totals.target_weight
                if self.probes is not None:
                    probed = probed + self.probes(states, batch.labels) / totals.batches
        return loss, probed
