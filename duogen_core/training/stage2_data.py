"""What stage 2 learns from: Sketchbook documents with their latents and the frozen MLLM's states computed ahead.

Both are fixed (VAE and MLLM do not train here), so each document is read once and kept: shards of safetensors under
runs/stage2/documents, made again only where missing. A shard is a pure function of (seed, number, VAE, MLLM).

Of a document: latents [pictures, 16, h, w], states [tokens, layers * width] already normalised as the connector does
it, and the places that guidance and frame-causal attention need (chat.PictureContext). Documents of one `Bucket`
(picture size, clean frames, targets) can be stacked into a batch for `forward_teacher`.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from duogen_core.connector import normalise
from duogen_core.data.sketchbook.cases import Case
from duogen_core.data.sketchbook.tasks import training_case
from duogen_core.document import Document
from duogen_core.mllm.chat import Layout, build_inputs
from duogen_core.mllm.qwen2_5_vl import hidden_states_for
from duogen_core.training.loop import rng_for
from duogen_core.vae import PictureVae, pixels_to_tensor

SHARD = 256  # documents


class Bucket(NamedTuple):
    height: int  # of the latents
    width: int
    clean: int  # pictures that a target can look at: all but the last
    targets: int  # the assistant's pictures, the last ones of the document


@dataclass(frozen=True)
class Prepared:
    """One document. ends, segments: of each picture, in order (segments: what guidance drops; empty for the user's)."""

    latents: Tensor  # [pictures, 16, h, w]
    states: Tensor  # [tokens before the last <BOV>, layers * width], normalised
    ends: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    targets: int

    @property
    def bucket(self) -> Bucket:
        pictures, _, height, width = self.latents.shape
        return Bucket(height, width, pictures - 1, self.targets)


def places(layout: Layout) -> dict[str, Any]:
    """Token places of every picture: {"ends": [...], "segments": [[a, b], ...], "targets": n}."""
    contexts = [layout.context_of(k) for k in range(len(layout.pictures))]
    drawn = [span.drawn for span in layout.pictures]
    return {
        "ends": [context.end for context in contexts],
        "segments": [c.last_segment if d else (c.end, c.end) for c, d in zip(contexts, drawn, strict=True)],
        "targets": sum(drawn),
    }


def drawn_case(rng: Random, weights: Mapping[str, float]) -> Case:
    """A training case with pictures of one size, the assistant's after the user's."""
    while True:
        case = training_case(rng, weights)
        pictures = case.document.pictures
        one_size = len({picture.size for picture in pictures}) == 1
        if one_size and any(part in pictures for part in case.document.last_turn.parts):
            return case


@torch.inference_mode()
def latents_of(vae: PictureVae, documents: Sequence[Document]) -> list[Tensor]:
    """Per document [pictures, 16, h, w], half precision; pictures of one size are encoded together."""
    by_size = defaultdict(list)
    for row, document in enumerate(documents):
        for k, picture in enumerate(document.pictures):
            by_size[picture.size].append((row, k, picture.pixels))
    found: dict[tuple[int, int], Tensor] = {}
    for entries in by_size.values():
        for at in range(0, len(entries), 16):
            chunk = entries[at : at + 16]
            latents = vae.encode(torch.cat([pixels_to_tensor(pixels) for _, _, pixels in chunk]))
            found |= {(row, k): latent.half() for (row, k, _), latent in zip(chunk, latents, strict=True)}
    return [torch.stack([found[row, k] for k in range(len(d.pictures))]) for row, d in enumerate(documents)]


@torch.inference_mode()
def states_of(mllm: Any, documents: Sequence[Document]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Per document the normalised states of all layers [tokens, L * H], half precision, and the pictures' places."""
    states, found = [], []
    by_length = sorted(range(len(documents)), key=lambda k: len(documents[k].pictures))
    order: list[int] = []
    for at in range(0, len(by_length), 16):
        rows = by_length[at : at + 16]
        batch = build_inputs([documents[k] for k in rows], mllm.tokenizer, mllm.image_processor)
        layers = hidden_states_for(mllm.model, batch)  # [B, L, N, H]
        for each, layout in zip(layers, batch["layouts"], strict=True):
            spots = places(layout)
            states.append(normalise(each[:, : spots["ends"][-1]]).transpose(0, 1).flatten(1).half())
            found.append(spots)
        order += rows
    back = sorted(range(len(order)), key=order.__getitem__)
    return [states[k] for k in back], [found[k] for k in back]


def prepare_shard(
    folder: Path, number: int, seed: int, weights: Mapping[str, float], vae: PictureVae, mllm: Any
) -> Path:
    """Write shard `number` unless it is there; returns its file."""
    path = folder / f"{number:04d}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rngs = (rng_for(seed, "stage2", number * SHARD + k) for k in range(SHARD))
    documents = [drawn_case(rng, weights).document for rng in rngs]
    latents = latents_of(vae, documents)
    states, spots = states_of(mllm, documents)
    tensors = {f"{k}.latents": latent for k, latent in enumerate(latents)}
    tensors |= {f"{k}.states": state.contiguous() for k, state in enumerate(states)}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata={"places": json.dumps(spots)})
    os.replace(temporary, path)
    return path


def load_shard(path: Path) -> list[Prepared]:
    with safe_open(path, "pt") as file:
        spots = json.loads(file.metadata()["places"])
        return [
            Prepared(
                file.get_tensor(f"{k}.latents"),
                file.get_tensor(f"{k}.states"),
                tuple(each["ends"]),
                tuple((a, b) for a, b in each["segments"]),
                each["targets"],
            )
            for k, each in enumerate(spots)
        ]


class Corpus:
    """Prepared documents by bucket. A batch is of one bucket and costs the same whichever it is.

    Buckets come up as often as they have documents; those without any earlier picture `alone` times as often, since
    there everything has to come from the words, and that is learnt last.
    """

    def __init__(self, documents: Sequence[Prepared], frames: int, alone: float = 1.0) -> None:
        self.frames = frames  # of a batch, clean and noisy together
        self.buckets: dict[Bucket, list[Prepared]] = defaultdict(list)
        for document in documents:
            self.buckets[document.bucket].append(document)
        self.weights = [len(each) * (alone if key.clean == 0 else 1.0) for key, each in self.buckets.items()]

    def batch(self, rng: Random) -> list[Prepared]:
        """About `frames` frames' worth of documents of one bucket."""
        key = rng.choices(list(self.buckets), self.weights)[0]
        size = max(1, round(self.frames / (key.clean + key.targets)))
        return [rng.choice(self.buckets[key]) for _ in range(size)]


def collate(documents: Sequence[Prepared], drop_text: Callable[[], bool]) -> tuple[Tensor, Tensor, Tensor]:
    """-> latents [B, pictures, 16, h, w], states [B, N, L*H] padded, text mask [B, clean + targets, N].

    drop_text() is asked once per target whether its last text segment is hidden, as guidance's negative will hide it.
    """
    clean, targets = documents[0].bucket.clean, documents[0].targets
    longest = max(len(document.states) for document in documents)
    latents = torch.stack([document.latents for document in documents]).float()
    states = torch.zeros(len(documents), longest, documents[0].states.shape[1])
    mask = torch.zeros(len(documents), clean + targets, longest, dtype=torch.bool)
    for row, document in enumerate(documents):
        states[row, : len(document.states)] = document.states
        for frame in range(clean):
            mask[row, frame, : document.ends[frame]] = True
        for k in range(targets):
            picture = clean + 1 - targets + k
            mask[row, clean + k, : document.ends[picture]] = True
            if drop_text():
                first, last = document.segments[picture]
                mask[row, clean + k, first:last] = False
    return latents, states, mask
