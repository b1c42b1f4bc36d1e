"""What stage 2 learns from: Sketchbook documents with their latents and the frozen MLLM's states computed ahead.

Both are fixed (VAE and MLLM do not train here), so each document is read once and kept: shards of safetensors under
runs/stage2/documents, made again only where missing. A shard is a pure function of (seed, number, VAE, MLLM).

Of a document: a latent [16, h, w] of every picture, states [tokens, layers * width] already normalised as the connector
does it, and the places that guidance and frame-causal attention need (chat.PictureContext).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

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


@dataclass(frozen=True)
class Prepared:
    """One document. ends, segments: of each picture, in order (segments: what guidance drops; empty for the user's)."""

    latents: tuple[Tensor, ...]  # [16, h, w] each
    states: Tensor  # [tokens before the last <BOV>, layers * width], normalised
    ends: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    drawn: tuple[int, ...]  # the assistant's pictures: what can be learnt
    name: str = ""  # for errors

    @property
    def shape(self) -> tuple:
        """Documents of one shape make a batch in which every operation is one."""
        return tuple(tuple(latent.shape[-2:]) for latent in self.latents), self.drawn

    @property
    def frames(self) -> int:
        """Of a frame-causal sequence: the pictures before the last one, and a noisy frame for every one drawn."""
        return self.drawn[-1] + len(self.drawn)


def places(layout: Layout) -> dict[str, Any]:
    """Token places of the pictures up to the last drawn one: {"ends": [n], "segments": [[a, b]], "drawn": [k]}.

    A segment is empty where no text was written since the picture before: there is nothing for guidance to drop.
    """
    drawn = [k for k, span in enumerate(layout.pictures) if span.drawn]
    contexts = [layout.context_of(k) for k in range(drawn[-1] + 1)]
    segments = []
    for k, context in enumerate(contexts):
        old = context.frame_ends and context.last_segment[0] < context.frame_ends[-1]
        segments.append((context.end, context.end) if k not in drawn or old else context.last_segment)
    return {"ends": [context.end for context in contexts], "segments": segments, "drawn": drawn}


def drawn_case(rng: Random, weights: Mapping[str, float]) -> Case:
    """A training case with pictures of one size, the assistant's after the user's."""
    while True:
        case = training_case(rng, weights)
        pictures = case.document.pictures
        one_size = len({picture.size for picture in pictures}) == 1
        if one_size and any(part in pictures for part in case.document.last_turn.parts):
            return case


@torch.inference_mode()
def latents_of(vae: PictureVae, documents: Sequence[Document]) -> list[tuple[Tensor, ...]]:
    """Per document a latent [16, h, w] of every picture, half precision; pictures of one size are encoded together."""
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
    return [tuple(found[row, k] for k in range(len(d.pictures))) for row, d in enumerate(documents)]


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


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def prepare_shard(
    folder: Path, number: int, seed: int, weights: Mapping[str, float], vae: PictureVae, mllm: Any
) -> Path:
    """Write shard `number` unless it is there; returns its file."""
    path = shard_path(folder, number)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rngs = (rng_for(seed, "stage2", number * SHARD + k) for k in range(SHARD))
    documents = [drawn_case(rng, weights).document for rng in rngs]
    latents = latents_of(vae, documents)
    states, spots = states_of(mllm, documents)
    tensors = {f"{k}.latents.{i}": latent for k, each in enumerate(latents) for i, latent in enumerate(each)}
    tensors |= {f"{k}.states": state.contiguous() for k, state in enumerate(states)}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata={"places": json.dumps(spots)})
    os.replace(temporary, path)
    return path


def load_shard(path: Path) -> list[Prepared]:
    with safe_open(path, "pt") as file:
        spots = json.loads(file.metadata()["places"])
        return [_prepared(file, k, each, f"{path.name}[{k}]") for k, each in enumerate(spots)]


def _prepared(file: Any, k: int, spots: dict[str, Any], name: str) -> Prepared:
    pictures = len(spots["ends"])
    if "drawn" in spots:
        latents, drawn = [file.get_tensor(f"{k}.latents.{i}") for i in range(pictures)], spots["drawn"]
    else:  # shards of pictures of one size, the drawn ones last, as they were once written
        latents, drawn = file.get_tensor(f"{k}.latents"), range(pictures - spots["targets"], pictures)
    segments = tuple((a, b) for a, b in spots["segments"])
    states, ends = file.get_tensor(f"{k}.states"), tuple(spots["ends"])
    return Prepared(tuple(latents), states, ends, segments, tuple(drawn), name)


class Corpus:
    """Prepared documents by shape. A batch is of one shape and costs the same whichever it is.

    Shapes come up as often as they have documents; those without any earlier picture `alone` times as often, since
    there everything has to come from the words, and that is learnt last.
    """

    def __init__(self, documents: Sequence[Prepared], frames: int, alone: float = 1.0) -> None:
        self.frames = frames  # of a batch, clean and noisy together
        self.shapes: dict[tuple, list[Prepared]] = defaultdict(list)
        for document in documents:
            self.shapes[document.shape].append(document)
        self.weights = [len(each) * (alone if each[0].drawn[-1] == 0 else 1.0) for each in self.shapes.values()]

    def batch(self, rng: Random) -> list[Prepared]:
        """About `frames` frames' worth of documents of one shape."""
        documents = self.shapes[rng.choices(list(self.shapes), self.weights)[0]]
        size = max(1, round(self.frames / documents[0].frames))
        return [rng.choice(documents) for _ in range(size)]
