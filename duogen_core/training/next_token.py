"""Next-token loss on conversations with pictures, in few large operations.

Documents -> micro-batches sorted by length, so that little is padded; logits only of tokens with a loss. Which of a
step's documents make a micro-batch follows from their numbers of tokens, so each process reads only those of its own
micro-batches (`NextTokenSteps`). Pictures
run through the tower once, equal ones once. Gradients reach it through the user's pictures, and through drawn ones
where the example says so (`drawn_teach`). Pictures of one size run as one batch instead of one attention call per
picture, and the two equal temporal halves of a patch are added up before the multiplication.
Equal to transformers' own loss on the same labels (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sources import Bad
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import control_ids, image_token_counts, layout, picture_grid
from duogen_core.mllm.qwen_vl import layer_outputs, mrope_positions
from duogen_core.training.data import Example, Probes, StepExamples
from duogen_core.training.run import mixed_precision

# transformers' OpenAI CLIP constants, which Qwen2-VL's picture preprocessing uses
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PictureKey(NamedTuple):
    """A picture as the tower gets it: equal ones are one."""

    digest: str
    learns: bool  # whether gradients reach the tower through it
    size: tuple[int, int]  # width and height after the image processor's resizing


@dataclass
class MicroBatch:
    """ids [B, N] right-padded, weight float [B, N] of each as a target, positions [3, B, N], pictures in order."""

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


Pixels = Mapping[PictureKey, Tensor]  # uint8 [H, W, 3] each


def with_pictures(batch: MicroBatch, pixels: Pixels) -> tuple[list[MicroBatch], Pixels]:
    """One micro-batch of several, with its own pictures."""
    return [batch], {key: pixels[key] for key in dict.fromkeys(batch.pictures)}


class Batcher:
    """Documents, or examples of them -> micro-batches and the distinct pictures they show, uint8 [H, W, 3]."""

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
        if tuple(processor.image_mean) != CLIP_MEAN or tuple(processor.image_std) != CLIP_STD:
            raise DuoGenError("The image processor has another mean or spread of colours than Qwen2-VL's; use its own.")
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
        groups: list[list[int]] = [[]]
        for k in sorted(range(len(lengths)), key=lengths.__getitem__):
            if groups[-1] and (len(groups[-1]) + 1) * lengths[k] > self.tokens:
                groups.append([])
            groups[-1].append(k)
        return groups

    def read(
        self, groups: Sequence[Sequence[int]], examples: Mapping[int, Example]
    ) -> tuple[list[MicroBatch], dict[PictureKey, Tensor]]:
        """The micro-batches of these groups of examples' numbers, and the distinct pictures they show."""
        pixels: dict[PictureKey, Tensor] = {}
        return [self._stack([self._row(examples[k], pixels) for k in group]) for group in groups], pixels

    def silent(self) -> MicroBatch:
        """A micro-batch without a target, for a process that has none left where others have: FSDP's processes must
        take equally many. Its loss and gradients are 0."""
        end, positions = [self.control.end_of_text] * 2, torch.arange(2).expand(3, 2)
        return self._stack([(end, torch.zeros(2), positions, [])])

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
            size = (grid[2] * self.processor.patch_size, grid[1] * self.processor.patch_size)
            keys.append(PictureKey(picture.digest, not span.drawn or example.drawn_teach, size))
            if keys[-1] not in pixels:
                pixels[keys[-1]] = torch.from_numpy(resized(picture, size, self.processor.resample))
        positions = mrope_positions(spans.ids, grids, self.control.image_pad, self.processor.merge_size)
        return spans.ids, weight, positions, keys

    def _stack(self, rows: Sequence[tuple]) -> MicroBatch:
        length = max(len(ids) for ids, *_ in rows)
        batch = MicroBatch(
            torch.full((len(rows), length), self.control.end_of_text),
            torch.zeros(len(rows), length),
            torch.zeros(3, len(rows), length, dtype=torch.long),
            [key for *_, keys in rows for key in keys],
            [len(ids) for ids, *_ in rows],
        )
        for k, (ids, weight, positions, _) in enumerate(rows):
            batch.ids[k, : len(ids)] = torch.tensor(ids)
            batch.weight[k, : len(ids)] = weight
            batch.positions[:, k, : len(ids)] = positions
        return batch if self.probes is None else labelled(batch, self.probes)


def labelled(batch: MicroBatch, probes: Probes) -> MicroBatch:
    """The batch with what the probes should say of it; nothing at padding and where nothing is learnt."""
    rows = [probes.labels(ids[:n].tolist()) for ids, n in zip(batch.ids, batch.lengths, strict=True)]
    labels = torch.full((*batch.ids.shape, len(rows[0][0])), -1)
    for k, row in enumerate(rows):
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

    def pin_memory(self) -> NextTokenShare:
        pixels = {key: each.pin_memory() for key, each in self.pixels.items()}
        return replace(self, batches=[batch.pin_memory() for batch in self.batches], pixels=pixels)


@dataclass
class NextTokenSteps:
    """step -> the share of one process: every `processes`-th micro-batch."""

    examples: StepExamples
    batcher: Batcher
    rank: int = 0
    processes: int = 1

    def __call__(self, step: int) -> NextTokenShare:
        headers = self.examples.headers(step)
        lengths = [self.batcher.length(each.document) for each in headers]
        groups = self.batcher.plan(lengths)
        mine = groups[self.rank :: self.processes]
        numbers = [k for group in mine for k in group]
        read = dict(zip(numbers, self.examples.read(step, numbers), strict=True))
        batches, pixels = self.batcher.read(mine, read)
        batches += [self.batcher.silent()] * (-(-len(groups) // self.processes) - len(mine))
        return NextTokenShare(
            batches,
            pixels,
            names=[read.get(k, each).name for k, each in enumerate(headers)],
            tokens=sum(len(group) * max(lengths[k] for k in group) for group in groups),
            count=len(groups),
            bad=[bad for each in read.values() for bad in each.skipped],
        )


def resized(picture: Picture, size: tuple[int, int], resample: Any) -> np.ndarray:
    """uint8 [H, W, 3] as the image processor resizes it, to (width, height); always a copy."""
    if picture.size == size:
        return picture.pixels.copy()
    from PIL import Image

    return np.array(Image.fromarray(picture.pixels).resize(size, resample))


def encode_pictures(tower: nn.Module, pixels: Mapping[PictureKey, Tensor]) -> dict[PictureKey, Tensor]:
    """Features of every distinct picture [tokens, hidden]; pictures of one size run together."""
    features, run = {}, tower_of(tower)
    parameter = next(tower.parameters())
    for learns in (True, False):
        for size in dict.fromkeys(key.size for key in pixels):
            keys = [key for key in pixels if key.learns == learns and key.size == size]
            if keys:
                pictures = torch.stack([pixels[key].to(parameter.device, non_blocking=True) for key in keys])
                with torch.set_grad_enabled(learns and parameter.requires_grad and torch.is_grad_enabled()):
                    features |= zip(keys, run(tower, pictures), strict=True)
    return features


def hidden_states(model: nn.Module, batch: MicroBatch, features: Mapping[PictureKey, Tensor]) -> list[Tensor]:
    """Outputs of the decoder layers, the last one after the final norm, each [B, N, hidden]."""
    embeds = model.get_input_embeddings()(batch.ids)
    if batch.pictures:
        seen = torch.cat([features[key] for key in batch.pictures])
        embeds = embeds.masked_scatter((batch.ids == model.config.image_token_id).unsqueeze(-1), seen.to(embeds))
    states: list[Tensor] = []
    with layer_outputs(model, lambda _layer, h: states.append(h)):
        model.model.language_model(inputs_embeds=embeds, position_ids=batch.positions, use_cache=False)
    return states


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
            features = encode_pictures(self.model.model.visual, pixels)
            for batch in (each.to(device) for each in batches):
                states = hidden_states(self.model, batch, features)
                logits, targets, weight = predict(self.model, batch, states[-1])
                losses = F.cross_entropy(logits.float(), targets, reduction="none")
                loss = loss + (losses * weight).sum() / totals.target_weight
                if self.probes is not None:
                    probed = probed + self.probes(states, batch.labels) / totals.batches
        return loss, probed


# -- the vision tower in fewer and larger operations


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)


def patches_of(pictures: Tensor, patch: int, merge: int = 2) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, tokens*merge², 3*patch*patch], the merge² patches of a token side by side."""
    n, height, width, _ = pictures.shape
    x = pictures.permute(0, 3, 1, 2).float() / 255
    x = (x - x.new_tensor(CLIP_MEAN).view(3, 1, 1)) / x.new_tensor(CLIP_STD).view(3, 1, 1)
    rows, columns = height // patch // merge, width // patch // merge
    # Not row by row: the merge² patches that become one token stand together, as Qwen2-VL's processor orders them.
    x = x.view(n, 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return x.reshape(n, rows * columns * merge * merge, 3 * patch * patch)


@lru_cache(maxsize=32)
def _grid_positions(rows: int, columns: int, merge: int) -> Tensor:
    """[2, patches]: row and column of every patch, in token order."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    return grid.view(2, rows // merge, merge, columns // merge, merge).permute(0, 1, 3, 2, 4).reshape(2, -1)


def sees_whole_pictures(tower: nn.Module) -> bool:
    """Whether no block looks through windows (published Qwen2.5-VL towers have only a few blocks that see all)."""
    return len(tower.config.fullatt_block_indexes) == tower.config.depth


def tower_of(tower: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """How pictures uint8 [n, H, W, 3] run through this tower: the quick way where it can go it."""
    single = tower.patch_embed.proj.weight.dtype == torch.float32
    return tower_features if single and sees_whole_pictures(tower) else own_features


def own_features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, tokens, out_hidden] by the model's own forward, whatever its blocks see."""
    config = tower.config
    n, height, width, _ = pictures.shape
    patch, frames = config.patch_size, config.temporal_patch_size
    patches = patches_of(pictures, patch, config.spatial_merge_size).reshape(-1, 3, 1, patch * patch)
    grid = torch.tensor([[1, height // patch, width // patch]] * n, device=pictures.device)
    out = tower(patches.expand(-1, -1, frames, -1).flatten(1).to(tower.dtype), grid_thw=grid)
    return getattr(out, "pooler_output", out).reshape(n, -1, config.out_hidden_size)


def tower_features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, tokens, out_hidden]; all blocks must use full attention."""
    config = tower.config
    patch, merge = config.patch_size, config.spatial_merge_size
    if not sees_whole_pictures(tower):
        raise DuoGenError("tower_features needs a vision tower whose blocks all use full attention.")
    n, height, width, _ = pictures.shape
    # [hidden, 3, 2, patch, patch]: for two frames of a video. A still picture is both of them, so their weights add up.
    weight = tower.patch_embed.proj.weight
    x = patches_of(pictures, patch, merge) @ weight.sum(2).flatten(1).T
    positions = _grid_positions(height // patch, width // patch, merge).to(x.device)
    freqs = positions[..., None].float() * tower.rotary_pos_emb.inv_freq
    freqs = torch.cat([freqs[0], freqs[1]], dim=-1)
    cos, sin = freqs.cos().repeat(1, 2), freqs.sin().repeat(1, 2)  # [patches, head_dim]
    for block in tower.blocks:
        heads = block.attn.num_heads
        qkv = block.attn.qkv(rms_norm(x, block.norm1)).view(n, -1, 3, heads, config.hidden_size // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + block.attn.proj(out.transpose(1, 2).reshape(n, -1, config.hidden_size))
        x = x + block.mlp(rms_norm(x, block.norm2))
    x = rms_norm(x, tower.merger.ln_q).reshape(n, -1, tower.merger.hidden_size)
    return tower.merger.mlp(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
