"""What stage 2 learns from, as connector and DiT need it: latents and the frozen MLLM's states, ahead or on the fly.

Both are fixed (VAE and MLLM do not train here). Ahead: each document is read once and kept, in shards of safetensors in
<out>/documents, made again only where missing, a pure function of (documents, VAE, MLLM); a shard made of others is
refused. On the fly: read anew whenever a step wants it, for data that would fill the disk.
Of a document: a latent [16, h, w] of every picture, states [tokens, layers * width] already normalised as the connector
does it, and the places that guidance and frame-causal attention need (chat.PictureContext).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from duogen_core.checkpoint import CheckpointConfig, PictureSize
from duogen_core.connector import normalise
from duogen_core.data.sources.mixture import differences
from duogen_core.document import Document, Picture
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import Layout, build_inputs
from duogen_core.mllm.qwen2_5_vl import hidden_states_for
from duogen_core.pipeline import reference_pixels
from duogen_core.training.errors import TrainingError
from duogen_core.training.metrics import changes, sentence
from duogen_core.vae import PictureVae, pixels_to_tensor

SHARD = 256  # documents
SEGMENT = "user"  # the rule that is trained (ConnectorConfig.segment); shards of before it was recorded have "none"
CHUNK = 16  # pictures, or documents, that run together

Named = Callable[[int], Sequence[tuple[str, Document]]]  # number -> names and documents


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

    def frames(self, attention: str = "frame_causal") -> float:
        """Clean and noisy frames of one pass over this document; under `full`, the mean over its possible targets.

        Earlier pictures count where `references` is off too, so that such a run has as many targets.
        """
        if attention == "full":  # one random target, and every picture before it
            return 1 + sum(self.drawn) / len(self.drawn)
        return self.drawn[-1] + len(self.drawn)  # a noisy frame for every picture drawn


def prepared_of(latents: Iterable[Tensor], states: Tensor, spots: Mapping[str, Any], name: str) -> Prepared:
    segments = tuple((a, b) for a, b in spots["segments"])
    return Prepared(tuple(latents), states, tuple(spots["ends"]), segments, tuple(spots["drawn"]), name)


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


class Reader:
    """Documents -> what is learnt from them. dtype: in which latents and states are kept."""

    def __init__(self, vae: PictureVae, mllm: Mllm, max_side: int = 160, dtype: torch.dtype = torch.float16) -> None:
        """max_side: of a picture as the DiT sees and draws it; larger ones are made smaller."""
        self.vae, self.mllm, self.dtype = vae, mllm, dtype
        self.config = CheckpointConfig(picture=PictureSize(max_side=max_side))
        self.on_progress: Callable[[float], object] = lambda share: None  # told how much of a call is done, 0 to 1

    def __call__(self, documents: Sequence[Document], names: Sequence[str] = ()) -> list[Prepared]:
        states, spots = self.states(documents)
        # pictures after the last drawn one are not learnt from
        pictures = [document.pictures[: len(each["ends"])] for document, each in zip(documents, spots, strict=True)]
        latents = self.latents(pictures)
        names = names or [""] * len(documents)
        return [prepared_of(*each) for each in zip(latents, states, spots, names, strict=True)]

    @torch.inference_mode()
    def latents(self, pictures: Sequence[Sequence[Picture]]) -> list[tuple[Tensor, ...]]:
        """Per document a latent [16, h, w] of every picture; those of one size are encoded together."""
        by_size = defaultdict(list)
        for row, own in enumerate(pictures):
            for k, picture in enumerate(own):
                pixels = reference_pixels(picture, self.config)
                by_size[pixels.shape].append((row, k, pixels))
        found: dict[tuple[int, int], Tensor] = {}
        for entries in by_size.values():
            for at in range(0, len(entries), CHUNK):
                chunk = entries[at : at + CHUNK]
                batch = torch.cat([pixels_to_tensor(pixels.copy()) for _, _, pixels in chunk])
                latents = self.vae.encode(batch.to(self.vae.device)).to("cpu", self.dtype)
                found |= {(row, k): latent for (row, k, _), latent in zip(chunk, latents, strict=True)}
                self.on_progress(0.5 + 0.5 * len(found) / sum(map(len, pictures)))  # the other half: the MLLM, before
        return [tuple(found[row, k] for k in range(len(own))) for row, own in enumerate(pictures)]

    @torch.inference_mode()
    def states(self, documents: Sequence[Document]) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Per document the normalised states of all layers [tokens, L * H], and the pictures' places."""
        mllm = self.mllm
        states, found = [], []
        by_length = sorted(range(len(documents)), key=lambda k: len(documents[k].pictures))
        order: list[int] = []
        for at in range(0, len(by_length), CHUNK):
            rows = by_length[at : at + CHUNK]
            batch = build_inputs([documents[k] for k in rows], mllm.tokenizer, mllm.image_processor)
            moved = {k: v.to(mllm.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            layers = hidden_states_for(mllm.model, moved)  # [B, L, N, H]
            for each, layout in zip(layers, batch["layouts"], strict=True):
                spots = places(layout)
                flat = normalise(each[:, : spots["ends"][-1]]).transpose(0, 1).flatten(1)
                states.append(flat.to("cpu", self.dtype))
                found.append(spots)
            order += rows
            self.on_progress(0.5 * len(order) / len(documents))
        back = sorted(range(len(order)), key=order.__getitem__)
        return [states[k] for k in back], [found[k] for k in back]


def fingerprint(module: nn.Module) -> str:
    """Changes with the weights: a few numbers of every tensor."""
    digest = blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.flatten()[:8].float().tolist()}".encode())
    return digest.hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def prepare_shard(folder: Path, number: int, named: Named, reader: Reader, recipe: Mapping[str, Any]) -> Path:
    """Write shard `number` unless it is there; returns its file.

    named(number): names and documents of the shard. recipe: what they, and the states, depend on.
    """
    path = shard_path(folder, number)
    recipe = {
        **recipe,
        "segment": SEGMENT,
        "vae": fingerprint(reader.vae.model),
        "mllm": fingerprint(reader.mllm.model),
    }
    if path.exists():
        check_recipe(path, recipe)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    names, documents = zip(*named(number), strict=True)
    prepared = reader(documents, names)
    tensors = {f"{k}.latents.{i}": latent for k, each in enumerate(prepared) for i, latent in enumerate(each.latents)}
    tensors |= {f"{k}.states": each.states.contiguous() for k, each in enumerate(prepared)}
    spots = [{"ends": p.ends, "segments": p.segments, "drawn": p.drawn, "name": p.name} for p in prepared]
    temporary = path.with_suffix(".new")
    # One entry: safetensors writes several in an order of chance, and the same documents must give the same file.
    save_file(tensors, temporary, metadata={"prepared": json.dumps({"places": spots, "recipe": recipe})})
    os.replace(temporary, path)
    return path


def notes(file: Any) -> dict[str, Any]:
    """What an open shard says of itself: {"places": …, "recipe": …}."""
    metadata = file.metadata()
    if "prepared" in metadata:
        return json.loads(metadata["prepared"])
    return {name: json.loads(metadata.get(name, "{}")) for name in ("places", "recipe")}  # as it was once written


def check_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    with safe_open(path, "pt") as file:
        before = {"segment": "none", **notes(file)["recipe"]}
    now = json.loads(json.dumps(recipe))
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        what = " and another ".join(f"{name}{difference(name, before[name], now[name])}" for name in changed)
        raise TrainingError(
            f"The documents in {path.parent} were prepared with another {what}; delete that folder, or give "
            "documents=FOLDER for a new one."
        )


def difference(name: str, was: Any, now: Any) -> str:
    """ " (families.guide: 1.0 -> 2.0)"; nothing for VAE and MLLM, of which only fingerprints are known."""
    if name in ("vae", "mllm"):
        return ""
    if name == "data":
        told = differences({"seed": None, "sources": was}, {"seed": None, "sources": now})
    else:
        told = [sentence(changes({name: was}, {name: now}))]
    return f" ({'; '.join(told)})"


def load_shard(path: Path) -> list[Prepared]:
    with safe_open(path, "pt") as file:
        return [_prepared(file, k, each, f"{path.name}[{k}]") for k, each in enumerate(notes(file)["places"])]


def _prepared(file: Any, k: int, spots: dict[str, Any], place: str) -> Prepared:
    pictures = len(spots["ends"])
    if "drawn" in spots:
        latents, drawn = [file.get_tensor(f"{k}.latents.{i}") for i in range(pictures)], spots["drawn"]
    else:  # shards of pictures of one size, the drawn ones last, as they were once written
        latents, drawn = file.get_tensor(f"{k}.latents"), range(pictures - spots["targets"], pictures)
    return prepared_of(latents, file.get_tensor(f"{k}.states"), {**spots, "drawn": drawn}, spots.get("name") or place)
