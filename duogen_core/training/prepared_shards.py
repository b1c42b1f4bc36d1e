"""Prepared documents on disk: shards of safetensors, read once by VAE and MLLM and kept.

    documents = prepare(run, config, documents, reader)    makes the shards that are missing; -> StoredDocument each

A shard tells what it was made from; one made of other documents or by other models is refused. What places and sizes a
document has is read from all shards at once, its tensors when a step wants them: so a process holds no documents that
it does not learn from now, and the system's cache of files serves all processes of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from duogen_core.data.sources.mixture import differences
from duogen_core.document import Document
from duogen_core.files import atomic_path
from duogen_core.training.configuration import TrainingError
from duogen_core.training.data import StepExamples
from duogen_core.training.feeding import read_ahead, workers_for
from duogen_core.training.metrics import changes, sentence
from duogen_core.training.prepared import (
    SEGMENT,
    Counted,
    DocumentInputs,
    Prepared,
    PreparedHeader,
    Reader,
    ReadInputs,
    placed,
)
from duogen_core.training.run import Run

PART = 16  # documents that a worker reads at a time

Named = Callable[[int], Sequence[tuple[str, Document]]]  # number of a shard -> names and documents


def fingerprint(module: nn.Module) -> str:
    """Changes with the weights: a few numbers of every tensor."""
    digest = blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.flatten()[:8].float().tolist()}".encode())
    return digest.hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def prepare_shard(folder: Path, number: int, named: Named, reader: Reader, recipe: Mapping[str, Any]) -> Path:
    """Writes shard `number` unless it is there; returns its file.

    named(number): names and documents of the shard. recipe: what they, and the states, depend on.
    """
    path, recipe = shard_path(folder, number), whole_recipe(reader, recipe)
    if path.exists():
        check_recipe(path, recipe)
    else:
        names, documents = zip(*named(number), strict=True)
        write_shard(path, reader(documents, names), recipe)
    return path


def whole_recipe(reader: Reader, recipe: Mapping[str, Any]) -> dict[str, Any]:
    models = {"vae": fingerprint(reader.vae.model), "mllm": fingerprint(reader.mllm.model)}
    return {**recipe, "segment": SEGMENT, **models}


def write_shard(path: Path, prepared: Sequence[Prepared], recipe: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{k}.latents.{i}": latent for k, each in enumerate(prepared) for i, latent in enumerate(each.latents)}
    tensors |= {
        f"{k}.controls.{i}": latent for k, each in enumerate(prepared) for i, latent in enumerate(each.controls)
    }
    tensors |= {f"{k}.states": each.states.contiguous() for k, each in enumerate(prepared)}
    spots = [{"ends": p.ends, "segments": p.segments, "drawn": p.drawn, "name": p.name} for p in prepared]
    # One entry: safetensors writes several in an order of chance, and the same documents must give the same file.
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"prepared": json.dumps({"places": spots, "recipe": recipe})})


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


@dataclass(frozen=True)
class StoredDocument(Counted):
    """Document `number` of a shard, whose tensors are still on disk."""

    path: Path
    number: int
    header: PreparedHeader

    sizes = property(lambda self: self.header.sizes)
    ends = property(lambda self: self.header.ends)
    drawn = property(lambda self: self.header.drawn)
    name = property(lambda self: self.header.name)

    def load(self) -> Prepared:
        return _prepared(*_opened(self.path, self.path.stat().st_mtime_ns), self.number, self.header)


@lru_cache(maxsize=64)
def _opened(path: Path, _written: int) -> tuple[Any, frozenset[str]]:
    """A shard, and the names in it: reading its header takes longer than reading a document."""
    file = safe_open(path, "pt")
    return file, frozenset(file.keys())


def stored_documents(path: Path) -> list[StoredDocument]:
    with safe_open(path, "pt") as file:
        spots = notes(file)["places"]
        return [StoredDocument(path, k, _header(file, k, each, f"{path.name}[{k}]")) for k, each in enumerate(spots)]


def load_shard(path: Path) -> list[Prepared]:
    return [document.load() for document in stored_documents(path)]


def _header(file: Any, k: int, spots: dict[str, Any], place: str) -> PreparedHeader:
    pictures, name = len(spots["ends"]), spots.get("name") or place
    if "drawn" in spots:
        shapes = [file.get_slice(f"{k}.latents.{i}").get_shape() for i in range(pictures)]
    else:  # shards of pictures of one size, the drawn ones last, as they were once written
        shapes = [file.get_slice(f"{k}.latents").get_shape()] * pictures
        spots = {**spots, "drawn": range(pictures - spots["targets"], pictures)}
    return PreparedHeader(tuple(tuple(shape[-2:]) for shape in shapes), **placed(spots), name=name)


def _prepared(file: Any, names: frozenset[str], k: int, header: PreparedHeader) -> Prepared:
    count = len(header.sizes)
    if f"{k}.latents" in names:
        latents = tuple(file.get_tensor(f"{k}.latents"))
    else:
        latents = tuple(file.get_tensor(f"{k}.latents.{i}") for i in range(count))
    states = file.get_tensor(f"{k}.states")
    found = Prepared(latents, states, header.ends, header.segments, header.drawn, header.name)
    if f"{k}.controls.0" not in names:
        return found
    return replace(found, controls=tuple(file.get_tensor(f"{k}.controls.{i}") for i in range(len(header.drawn))))


# -- all that a run learns from


class Documents(Protocol):
    """stage2_data.Documents"""

    steps: StepExamples
    count: int  # of a shard
    recipe: Mapping[str, Any]

    def begin(self) -> None: ...

    def note(self, inputs: DocumentInputs) -> None: ...


@dataclass
class ShardInputs:
    """(shard, part of it) -> its documents as VAE and MLLM take them."""

    examples: StepExamples
    inputs: ReadInputs
    count: int  # documents of a shard

    def parts(self) -> list[range]:
        return [range(at, min(at + PART, self.count)) for at in range(0, self.count, PART)]

    def __call__(self, item: tuple[int, range]) -> DocumentInputs:
        examples = self.examples.read(item[0], item[1])
        found = self.inputs([each.document for each in examples], [each.name for each in examples])
        return replace(found, bad=[bad for each in examples for bad in each.skipped])


def prepare(run: Run, config: Any, documents: Documents, reader: Reader) -> list[StoredDocument]:
    """All documents as what training reads of them; shards that are not there yet are made, with a bar of their own.
    config: as of `Documents`."""
    folder, processes = config.documents or run.folder / "documents", run.processes
    recipe = whole_recipe(reader, {**documents.recipe, "max_side": config.max_side})
    count = documents.shards
    numbers = range(processes.rank, count, processes.count)
    missing = [number for number in numbers if not shard_path(folder, number).exists()]
    for number in numbers:
        if number not in missing:
            check_recipe(shard_path(folder, number), recipe)
    if missing:
        shards = f"{len(missing)} {'shard' if len(missing) == 1 else 'shards'} of {documents.count}"
        run.say(
            f"Before the first step VAE and MLLM read the documents, once: {shards}, kept in {folder}. `minutes` "
            "counts from the first step on."
        )
        run.line.begin(0.0)
        _make(run, config, documents, reader, folder, missing, recipe)
    processes.wait()
    paths = [shard_path(folder, number) for number in range(count)]
    return [document for path in paths for document in stored_documents(path)]


def _make(
    run: Run,
    config: Any,
    documents: Documents,
    reader: Reader,
    folder: Path,
    missing: Sequence[int],
    recipe: Mapping[str, Any],
) -> None:
    documents.begin()  # before workers get their copies of the sources
    make = ShardInputs(documents.steps, reader.inputs, documents.count)
    parts = make.parts()
    workers = workers_for(config.workers, run.processes.device)
    read = read_ahead(make, [(number, part) for number in missing for part in parts], workers, run.processes.device)
    for done, number in enumerate(missing):

        def tell(share: float, done: int = done) -> None:
            total = (done + share) / len(missing)
            run.line.task(f"documents prepared, shard {done + 1} of {len(missing)}", total)

        write_shard(
            shard_path(folder, number), list(_prepared_parts(read, len(parts), documents, reader, tell)), recipe
        )


def _prepared_parts(
    read: Iterator[DocumentInputs], count: int, documents: Documents, reader: Reader, tell: Callable[[float], None]
) -> Iterator[Prepared]:
    for part in range(count):
        reader.on_progress = lambda share, part=part: tell((part + share) / count)
        inputs = next(read)
        documents.note(inputs)
        yield from reader.encode(inputs)
