"""Next-token loss on conversations with pictures, in few large operations.

Cases -> micro-batches sorted by length, so that little is padded; logits only where something is learnt. Pictures run
through the tower once, equal ones once. Gradients reach the tower through the user's pictures and those of
`vision_families`; the other drawn pictures repeat what their text says, and seeing them is learnt from the rest.
Equal to transformers' own loss on the same labels (tested).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sketchbook.cases import Case
from duogen_core.mllm.chat import control_ids, image_token_counts, layout, picture_grid
from duogen_core.mllm.qwen2_5_vl import layer_outputs, mrope_positions
from duogen_core.training.fast import quick_bf16, tower_features
from duogen_core.training.recall import ATTRIBUTES, Recall, Vocabulary


@dataclass
class MicroBatch:
    """ids [B, N] right-padded, weight float [B, N] of every token as a target, positions [3, B, N], pictures by key."""

    ids: Tensor
    weight: Tensor
    positions: Tensor
    pictures: list[tuple[bytes, bool]]
    named: Tensor  # int [B, N, 4], what recall.py reads out


class Batcher:
    """Cases -> micro-batches and the distinct pictures they show."""

    def __init__(
        self, tokenizer: Any, processor: Any, *, micro_tokens: int = 1536, vision_families: Sequence[str] = ()
    ) -> None:
        """micro_tokens: padded tokens of a micro-batch, at most (one conversation at least)."""
        self.tokenizer, self.processor = tokenizer, processor
        self.micro_tokens, self.vision_families = micro_tokens, vision_families
        self.control = control_ids(tokenizer)
        self.vocabulary = Vocabulary(tokenizer)

    def __call__(self, cases: Sequence[Case], user_weight: float) -> tuple[list[MicroBatch], dict[Any, Tensor]]:
        pixels: dict[Any, Tensor] = {}
        rows = []
        for case in cases:
            document = case.document
            spans = layout(document, self.tokenizer, image_token_counts(document, self.processor))
            weight = torch.tensor(spans.learn, dtype=torch.float32)
            for span in spans.parts:
                if span.kind == "text" and span.role == "user":
                    weight[span.start : span.end] = user_weight
            keys = []
            for span, picture in zip(spans.pictures, document.pictures, strict=True):
                key = (picture.pixels.tobytes(), not span.drawn or case.family in self.vision_families)
                pixels.setdefault((*key, picture.size), torch.from_numpy(picture.pixels.copy()))
                keys.append((*key, picture.size))
            grids = [picture_grid(picture, self.processor) for picture in document.pictures]
            positions = mrope_positions(spans.ids, grids, self.control.image_pad, self.processor.merge_size)
            rows.append((spans.ids, weight, positions, keys))
        rows.sort(key=lambda row: len(row[0]))
        batches, group = [], []
        for row in rows:
            if group and (len(group) + 1) * len(row[0]) > self.micro_tokens:
                batches.append(self._stack(group))
                group = []
            group.append(row)
        return [*batches, self._stack(group)], pixels

    def _stack(self, rows: Sequence[tuple]) -> MicroBatch:
        length = max(len(ids) for ids, *_ in rows)
        batch = MicroBatch(
            torch.full((len(rows), length), self.control.end_of_text),
            torch.zeros(len(rows), length),
            torch.zeros(3, len(rows), length, dtype=torch.long),
            [key for *_, keys in rows for key in keys],
            torch.full((len(rows), length, len(ATTRIBUTES)), -1),
        )
        for k, (ids, weight, positions, _) in enumerate(rows):
            batch.ids[k, : len(ids)] = torch.tensor(ids)
            batch.weight[k, : len(ids)] = weight
            batch.positions[:, k, : len(ids)] = positions
            batch.named[k, : len(ids)] = torch.tensor(self.vocabulary.last_named(ids))
        return batch


def see(tower: nn.Module, pixels: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Features of every distinct picture [tokens, hidden]; pictures of one size run together."""
    features, trains = {}, next(tower.parameters()).requires_grad
    for learnt in (True, False):
        for size in {key[-1] for key in pixels}:
            keys = [key for key in pixels if key[1] == learnt and key[-1] == size]
            if keys:
                with torch.set_grad_enabled(learnt and trains and torch.is_grad_enabled()):
                    features |= zip(
                        keys, tower_features(tower, torch.stack([pixels[key] for key in keys])), strict=True
                    )
    return features


def hidden_states(model: nn.Module, batch: MicroBatch, features: Mapping[Any, Tensor]) -> list[Tensor]:
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


def loss_of(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    pixels: Mapping[Any, Tensor],
    *,
    bf16: bool = False,
    recall: Recall | None = None,
) -> tuple[Tensor, Tensor]:
    """(weighted next-token loss, loss of the read-outs, 0 without any)."""
    total = sum(float(batch.weight[:, 1:].sum()) for batch in batches)
    loss, recalled = torch.zeros(()), torch.zeros(())
    with quick_bf16(model.device, bf16):
        features = see(model.model.visual, pixels)
        for batch in batches:
            states = hidden_states(model, batch, features)
            logits, targets, weight = predict(model, batch, states[-1])
            loss = loss + (F.cross_entropy(logits.float(), targets, reduction="none") * weight).sum() / total
            if recall is not None:
                recalled = recalled + recall(states, batch.named) / len(batches)
    return loss, recalled
