"""A document as training of the DiT reads it: latents, states and places. VAE and MLLM make them and do not train.

    inputs = ReadInputs(...)(documents, names)     decoding, scaling, tokens: by any process (feeding.py)
    prepared = Reader(vae, mllm).encode(inputs)    the models' part, where they lie

Of a document: a latent [C, h, w] of every picture, states [tokens, layers * width] already normalised as the connector
does it, and the places that guidance and frame-causal attention need (chat.PictureContext). How many tokens the DiT has
in a pass over it follows from the places and the sizes of its pictures alone, so it is known before any of that
(`ReadInputs.header`). Reading is done in parts of a bounded number of tokens and pixels; what is read stays on `keep`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from duogen_core.checkpoint import CheckpointConfig, PictureSize
from duogen_core.connector import normalise
from duogen_core.data.sources import Bad
from duogen_core.document import Document, Picture
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import Layout, build_inputs, image_token_counts, layout, model_inputs
from duogen_core.mllm.decoder import layer_outputs
from duogen_core.picture_sampling import fit_area, reference_pixels
from duogen_core.training.feeding import by_length
from duogen_core.vae import PictureVae

SEGMENT = "user"  # the rule that is trained (ConnectorConfig.segment); shards of before it was recorded have "none"
READ_TOKENS = 8192  # that the MLLM reads together, padding included (one document at least)
READ_PIXELS = 2**22  # that the VAE encodes together, in pictures of one size (one at least)
CHUNK = 16  # pictures of one size, at most
PATCH = 2  # latent pixels a side of what is one token to the DiT


class Counted:
    """What is computed from the places of a document and the sizes of its latents."""

    sizes: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    drawn: tuple[int, ...]

    @property
    def shape(self) -> tuple:
        """Documents of one shape make a batch in which every operation is one."""
        return self.sizes, self.drawn

    def tokens(self, attention: str = "frame_causal") -> float:
        """Tokens of the clean and noisy frames of one pass over this document, and of the text before its last target;
        under `full`, the mean over its possible targets.

        Earlier pictures count where `references` is off too, so that such a run has as many targets.
        """
        if attention == "full":
            return sum(self.pass_tokens((k,)) for k in self.drawn) / len(self.drawn)
        return self.pass_tokens(self.drawn)

    def pass_tokens(self, targets: Sequence[int]) -> int:
        """Tokens of a pass that learns these pictures, the earlier ones clean."""
        frames = [-(-height // PATCH) * -(-width // PATCH) for height, width in self.sizes]
        return sum(frames[: targets[-1]]) + sum(frames[k] for k in targets) + self.ends[targets[-1]]


@dataclass(frozen=True)
class PreparedHeader(Counted):
    """What is known of a document before it is read. sizes: height and width of the latents."""

    sizes: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    drawn: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Prepared(Counted):
    """One document. ends, segments: of each picture, in order (segments: what guidance drops; empty for the user's)."""

    latents: tuple[Tensor, ...]  # [C, h, w] each
    states: Tensor  # [tokens before the last <BOV>, layers * width], normalised
    ends: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    drawn: tuple[int, ...]  # the assistant's pictures: what can be learnt
    name: str = ""  # for errors
    controls: tuple[Tensor, ...] = ()  # for a ControlNet, [C, h, w] of each drawn picture's outlines

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:  # type: ignore[override]
        return tuple(tuple(latent.shape[-2:]) for latent in self.latents)


def targets_of(drawn: Sequence[int], attention: str, rng: Random) -> tuple[int, tuple[int, ...]]:
    """Which pictures of a document a pass learns, and the seed of their noise; rng: of the document in its step.

    Under `frame_causal` every drawn picture is a target, since none sees another; under `full` attention one random
    one, as in the paper. The seed is drawn first of all, so that another choice leaves the noise as it is, and
    ablations compare like with like.
    """
    seed = rng.getrandbits(63)
    return seed, (rng.choice(drawn),) if attention == "full" else tuple(drawn)


def places(layout: Layout, segment: Literal["user", "none"] = SEGMENT) -> dict[str, Any]:
    """Token places of the pictures up to the last drawn one: {"ends": [n], "segments": [[a, b]], "drawn": [k]}.

    segments: what guidance drops, by the rule of the connector's config (`Layout.context_of`); empty for pictures that
    are not drawn.
    """
    drawn = [k for k, span in enumerate(layout.pictures) if span.drawn]
    contexts = [layout.context_of(k, segment=segment) for k in range(drawn[-1] + 1)]
    segments = [
        context.last_segment if k in drawn else (context.end, context.end) for k, context in enumerate(contexts)
    ]
    return {"ends": [context.end for context in contexts], "segments": segments, "drawn": drawn}


def placed(spots: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the dataclasses have it."""
    segments = tuple((a, b) for a, b in spots["segments"])
    return {"ends": tuple(spots["ends"]), "segments": segments, "drawn": tuple(spots["drawn"])}


# -- what any process can do


@dataclass
class Pixels:
    """Pictures of one size, uint8 [n, H, W, 3]; owners: (document, which of its pictures)."""

    owners: list[tuple[int, int]]
    pixels: Tensor


@dataclass
class DocumentInputs:
    """Some documents, as VAE and MLLM take them."""

    names: list[str]
    places: list[dict[str, Any]]
    chunks: list[tuple[list[int], dict[str, Tensor]]]  # which documents, and what the MLLM is given of them
    pictures: list[Pixels]
    controls: list[Pixels] = field(default_factory=list)  # for a ControlNet
    large: list[tuple[str, tuple[int, int]]] = field(default_factory=list)  # documents with a picture made smaller
    bad: list[Bad] = field(default_factory=list)  # samples in whose place these stand

    def pin_memory(self) -> DocumentInputs:
        def pinned(some: list[Pixels]) -> list[Pixels]:
            return [replace(each, pixels=each.pixels.pin_memory()) for each in some]

        chunks = [
            (rows, {name: each.pin_memory() if isinstance(each, Tensor) else each for name, each in batch.items()})
            for rows, batch in self.chunks
        ]
        return replace(self, chunks=chunks, pictures=pinned(self.pictures), controls=pinned(self.controls))


@dataclass
class ReadInputs:
    """Documents -> DocumentInputs. max_side: of a picture as the DiT sees and draws it; larger ones are made smaller.
    step: sides are multiples of it, the VAE's `size_step`."""

    tokenizer: Any
    image_processor: Any
    max_side: int = 160
    step: int = 16

    @property
    def config(self) -> CheckpointConfig:
        return CheckpointConfig(picture=PictureSize(max_side=self.max_side, step=self.step))

    def header(self, document: Document, name: str = "") -> PreparedHeader:
        """What is known of a document of whose pictures only the sizes are."""
        spots = placed(places(self._layout(document)))
        pixels = [fit_area(*picture.size, self.config) for picture in document.pictures[: len(spots["ends"])]]
        cell = self.step // PATCH  # pixels a side of a latent's pixel
        sizes = tuple((height // cell, width // cell) for width, height in pixels)
        return PreparedHeader(sizes, **spots, name=name)

    def _layout(self, document: Document) -> Layout:
        return layout(document, self.tokenizer, image_token_counts(document, self.image_processor))

    def __call__(self, documents: Sequence[Document], names: Sequence[str] = ()) -> DocumentInputs:
        layouts = [self._layout(document) for document in documents]
        chunks = []
        for rows in by_length([len(each.ids) for each in layouts], READ_TOKENS):
            batch = build_inputs([documents[k] for k in rows], self.tokenizer, self.image_processor)
            chunks.append((rows, model_inputs(batch, labels=False)))
        spots = [places(each) for each in layouts]
        names = list(names) or [""] * len(documents)
        # Pictures after the last drawn one are not learnt from.
        learnt = [document.pictures[: len(each["ends"])] for document, each in zip(documents, spots, strict=True)]
        return DocumentInputs(
            names,
            spots,
            chunks,
            self.pixels(learnt),
            large=[
                (name, large[0])
                for name, document in zip(names, documents, strict=True)
                if (large := [picture.size for picture in document.pictures if max(picture.size) > self.max_side])
            ],
        )

    def pixels(self, pictures: Sequence[Sequence[Picture]]) -> list[Pixels]:
        """Pictures of each document as the DiT sees them, those of one size together, in parts that the VAE takes."""
        by_size = defaultdict(list)
        for row, own in enumerate(pictures):
            for k, picture in enumerate(own):
                pixels = reference_pixels(picture, self.config)
                by_size[pixels.shape].append(((row, k), torch.from_numpy(pixels.copy())))
        found = []
        for (height, width, _), entries in by_size.items():
            together = max(1, min(CHUNK, READ_PIXELS // (height * width)))
            for at in range(0, len(entries), together):
                owners, pixels = zip(*entries[at : at + together], strict=True)
                found.append(Pixels(list(owners), torch.stack(pixels)))
        return found


# -- the models' part


class Reader:
    """Documents -> what training reads of them. dtype: in which latents and states are kept; keep: where."""

    def __init__(
        self,
        vae: PictureVae,
        mllm: Mllm,
        max_side: int = 160,
        dtype: torch.dtype = torch.float16,
        keep: torch.device | str = "cpu",
    ) -> None:
        """max_side: of a picture as the DiT sees and draws it; larger ones are made smaller."""
        self.vae, self.mllm, self.dtype, self.keep = vae, mllm, dtype, torch.device(keep)
        self.inputs = ReadInputs(mllm.tokenizer, mllm.image_processor, max_side, vae.size_step)
        self.on_progress: Callable[[float], object] = lambda share: None  # told how much of a call is done, 0 to 1

    def __call__(self, documents: Sequence[Document], names: Sequence[str] = ()) -> list[Prepared]:
        return self.encode(self.inputs(documents, names))

    # Not inference_mode, whose tensors no later step could learn from.
    @torch.no_grad()
    def encode(self, inputs: DocumentInputs) -> list[Prepared]:
        states = self._states(inputs)
        latents = self._latents(inputs.pictures, [len(each["ends"]) for each in inputs.places])
        controls = self._latents(inputs.controls, [len(each["drawn"]) for each in inputs.places], told=False)
        rows = zip(latents, states, inputs.places, inputs.names, controls, strict=True)
        return [
            Prepared(own, seen, **placed(spots), name=name, controls=hints) for own, seen, spots, name, hints in rows
        ]

    def _latents(
        self, pictures: Sequence[Pixels], counts: Sequence[int], told: bool = True
    ) -> list[tuple[Tensor, ...]]:
        """Per document a latent [C, h, w] of every picture."""
        if not pictures:
            return [()] * len(counts)
        found: dict[tuple[int, int], Tensor] = {}
        for some in pictures:
            pixels = some.pixels.to(self.vae.device, non_blocking=True).permute(0, 3, 1, 2)
            latents = self.vae.encode(pixels.float() / 255.0 * 2.0 - 1.0).to(self.keep, self.dtype)
            found |= zip(some.owners, latents, strict=True)
            if told:
                self.on_progress(0.5 + 0.5 * len(found) / sum(counts))  # the other half: the MLLM, before
        return [tuple(found[row, k] for k in range(count)) for row, count in enumerate(counts)]

    def _states(self, inputs: DocumentInputs) -> list[Tensor]:
        """Per document the normalised states of all layers [tokens, L * H], as the layers come, one at a time."""
        layers, width, model = self.mllm.num_layers, self.mllm.hidden_size, self.mllm.model
        states = [
            torch.empty(spots["ends"][-1], layers * width, dtype=self.dtype, device=self.keep)
            for spots in inputs.places
        ]
        done = 0
        for rows, batch in inputs.chunks:

            def keep(layer: int, h: Tensor, rows: Sequence[int] = rows) -> None:
                for row, k in enumerate(rows):
                    states[k][:, layer * width : (layer + 1) * width] = normalise(h[row, : len(states[k])])

            moved = {
                name: each.to(self.mllm.device, non_blocking=True) if isinstance(each, Tensor) else each
                for name, each in batch.items()
            }
            with layer_outputs(model, keep):
                model.model(**moved, use_cache=False)
            done += len(rows)
            self.on_progress(0.5 * done / len(states))
        return states
