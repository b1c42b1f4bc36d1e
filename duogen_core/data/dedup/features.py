"""Both readings of a shard; what they find is a file of arrays for each shard, so a pass that was stopped goes on.

    First   every sample: where it lies, hashes of its address, its lines (with the domain) and its images' addresses,
            perceptual hashes of the images
    Second  what is compared: signatures, shingles and numbers of the text without lines that repeat (`Repeated`)

    found = Index(folder, "first", count)
    found.joined("lines")       one array over all shards, memory-mapped
    found.repeated(…)           values that stand on more than so many documents

An array over all samples has a row a sample ("flat"), or rows of unequal length with their sizes beside it ("ragged").
Signatures are datasketch's (MinHash, affine32): the numbers of one sample take 0.1 ms, hashing its shingles ten times
as much, so a faster library would gain nothing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.dedup.samples import Sample, domain_of, samples
from duogen_core.data.dedup.text import hash64, numbers, shingles, tokens
from duogen_core.data.pictures.duplicates import picture_hash
from duogen_core.data.runs.folder import RunFolder
from duogen_core.document.picture_file import decode_picture
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.files import atomic_path

PART = 2**24  # hash values that are sorted at once
SEED = 1  # of the permutations
THIN = 8  # shingles; a text that has fewer without its repeated lines is compared with them
Place = tuple[int, int]  # number of the run, and of the shard in it
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what np.load says of a file that is
RAGGED = ("lines", "addresses", "pictures", "shingles", "numbers")


def answer_lines(sample: Sample) -> Iterator[str]:
    """Lines of the answers: what may be taken out."""
    for role, part in sample.parts("text"):
        if role == "assistant":
            yield from stripped(part["text"])


def stripped(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if line := " ".join(line.split()):
            yield line


def may_go(line: str, least: int) -> bool:
    """Whether a repeated line may be taken out: rows of a table and the ends of code stand for more than themselves."""
    return len(line) >= least and not line.startswith(("|", "```")) and any(map(str.isalpha, line))


def line_hash(domain: str, line: str) -> int:
    return hash64(f"{domain}\n{line}")


def address_hash(part: Mapping[str, Any]) -> int:
    """Of an image's address; 0 where it has none, or is part of the page."""
    url = part.get("meta", {}).get("url", "")
    return hash64(url) if isinstance(url, str) and url and not url.startswith("data:") else 0


class Worker:
    """What a process of either reading holds. folder: of the run. runs: whose shards are read."""

    name = ""

    def __init__(self, folder: Path, runs: Sequence[Path], rules: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.runs, self.rules = folder, runs, rules

    def __call__(self, job: Sequence[int]) -> int:
        number, run, shard = job
        arrays = self.read(samples(RunFolder(self.runs[run]).tar(shard)), number)
        file = self.folder / "index" / self.name / f"{number:06d}.npz"
        with atomic_path(file, shared=True) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        return number

    def read(self, found: Iterator[Sample], shard: int) -> dict[str, np.ndarray]:
        raise NotImplementedError


class First(Worker):
    name = "first"

    def read(self, found: Iterator[Sample], shard: int) -> dict[str, np.ndarray]:
        least, rows = self.rules["line"]["min_characters"], []
        for sample in found:
            domain = domain_of(sample.url)
            lines = {line for line in answer_lines(sample) if may_go(line, least)} if domain else ()
            every = sorted({line for _, part in sample.parts("text") for line in stripped(part["text"])})
            images = [part for _, part in sample.parts("image")]
            rows.append(
                {
                    "offsets": sample.offset,
                    "pages": hash64(sample.url) if sample.url else 0,
                    "times": sample.time,
                    "texts": hash64("\n".join(every)) if every else 0,
                    "lines": np.unique(np.array([line_hash(domain, line) for line in lines], np.uint64)),
                    "addresses": np.array([address_hash(part) for part in images], np.uint64),
                    "pictures": np.array([_hash_of(sample, part) for part in images], np.uint64),
                }
            )
        return _arrays(rows, {"offsets": np.int64, "times": np.int64})


def _hash_of(sample: Sample, part: Mapping[str, Any]) -> int:
    """The perceptual hash that `data web` wrote, or that of the file."""
    known = part.get("meta", {}).get("phash")
    if isinstance(known, str) and re.fullmatch(r"[0-9a-fA-F]{16}", known):
        return int(known, 16)
    return picture_hash(decode_picture(sample.read(part["file"]), f"{part['file']} of {sample.where}"))


class Second(Worker):
    name = "second"

    @cached_property
    def repeated(self) -> Repeated:
        return Repeated.load(self.folder / "index" / "repeated.npz")

    def read(self, found: Iterator[Sample], shard: int) -> dict[str, np.ndarray]:
        near, rows = self.rules["near"], []
        sketch = Sketch(near["hashes"])
        for sample in found:
            domain = domain_of(sample.url)
            every = [line for _, part in sample.parts("text") for line in stripped(part["text"])]
            own = [line for line in every if not self.repeated.has("line", line_hash(domain, line))]
            values = shingles([tokens(line) for line in own], near["shingle"])
            thin = len(values) < THIN and len(own) < len(every)
            if thin:
                own, values = every, shingles([tokens(line) for line in every], near["shingle"])
            rows.append(
                {
                    "signatures": sketch.of(values),
                    "lengths": len(values),
                    "thin": thin,
                    "shingles": values,
                    "numbers": numbers(own),
                }
            )
        types = {"signatures": np.uint32, "lengths": np.int64, "thin": bool}
        return _arrays(rows, {**types, "shingles": np.uint32, "numbers": np.uint32})


class Sketch:
    """MinHash signatures of sets of uint32."""

    def __init__(self, hashes: int) -> None:
        try:
            from datasketch import MinHash
        except ImportError:
            raise MissingPackage("Finding near-duplicates", "datasketch", "data") from None
        self.new = MinHash
        self.permutations = MinHash(hashes, seed=SEED, hashfunc=int, scheme="affine32").permutations

    def of(self, values: np.ndarray) -> np.ndarray:
        sketch = self.new(seed=SEED, permutations=self.permutations, num_perm=self.permutations.shape[1],
                          hashfunc=int, scheme="affine32")  # fmt: skip
        if len(values):
            sketch.update_batch(values)
        return sketch.hashvalues


def _arrays(rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rows as arrays; of what is a list in each row one long array, and how many belong to each row."""
    ragged = [name for name in RAGGED if rows and name in rows[0]]
    found = {name: np.array([row[name] for row in rows], types.get(name, np.uint64)) for name in rows[0]
             if name not in ragged} if rows else {}  # fmt: skip
    for name in ragged:
        found[name] = np.concatenate([row[name] for row in rows]).astype(types.get(name, np.uint64))
        found[f"{name}_sizes"] = np.array([len(row[name]) for row in rows], np.int64)
    found["count"] = np.array(len(rows))
    return found


# ------------------------------------------------------------ all shards together


@dataclass
class Ragged:
    """Rows of unequal length in one long array."""

    values: np.ndarray
    starts: np.ndarray  # one more than rows

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.starts[row] : self.starts[row + 1]]

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)


class Index:
    """The files of arrays that one reading has left."""

    def __init__(self, folder: Path, name: str, shards: int) -> None:
        self.folder = folder
        self.files = [folder / name / f"{number:06d}.npz" for number in range(shards)]

    @cached_property
    def counts(self) -> np.ndarray:
        return np.array([int(self.load(file, "count")) for file in self.files], np.int64)

    @property
    def firsts(self) -> np.ndarray:
        """The number of the first sample of every shard."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def load(self, file: Path, *names: str) -> Any:
        try:
            with np.load(file) as arrays:
                found = [arrays[name] if name in arrays.files else np.empty(0, np.uint64) for name in names]
        except DAMAGED as error:
            raise DuoGenError(f"{file} cannot be read ({error}); remove the folder and start again.") from None
        return found[0] if len(found) == 1 else found

    def flat(self, name: str) -> np.ndarray:
        kept = [self.load(file, name) for file, count in zip(self.files, self.counts) if count]
        return np.concatenate(kept) if kept else np.empty(0, np.uint64)

    def joined(self, name: str) -> np.ndarray:
        """The same as a file that is mapped to memory: for what may be larger than that."""
        shapes = [self.load(file, name).shape for file, count in zip(self.files, self.counts) if count]
        rows = sum(shape[0] for shape in shapes)
        if not rows:
            return self.flat(name)
        made = None
        place = 0
        for file, count in zip(self.files, self.counts):
            if not count:
                continue
            values = self.load(file, name)
            if made is None:
                target = self.folder / f"{name}.npy.duogen-tmp"
                made = np.lib.format.open_memmap(target, "w+", values.dtype, (rows, *values.shape[1:]))
            made[place : place + len(values)] = values
            place += len(values)
        return made

    def ragged(self, name: str) -> Ragged:
        starts = np.concatenate([[0], np.cumsum(self.flat(f"{name}_sizes"))]).astype(np.int64)
        return Ragged(self.joined(name), starts)

    def repeated(self, name: str, limit: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values that stand on more than `limit` samples, sorted, and on how many. counts: which samples count."""
        total = sum(int(self.load(file, f"{name}_sizes").sum()) for file in self.files)
        parts = max(-(-total // PART), 1)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for part in range(parts):
            pieces = []
            for file, first, count in zip(self.files, self.firsts, self.counts):
                if not count:
                    continue
                values, sizes = self.load(file, name, f"{name}_sizes")
                row = np.repeat(np.arange(count), sizes)
                mine = counts[first + row] & (values != 0) & (values % np.uint64(parts) == part)
                # of an image that a page shows twice, one
                pieces.append(_once(values[mine], row[mine]))
            values, times = np.unique(np.concatenate(pieces), return_counts=True) if pieces else ([], [])
            found.append(
                (np.asarray(values, np.uint64)[np.asarray(times) > limit], np.asarray(times)[np.asarray(times) > limit])
            )
        values = np.concatenate([each for each, _ in found])
        order = np.argsort(values)
        return values[order], np.concatenate([each for _, each in found])[order]


def _once(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    order = np.lexsort((values, rows))
    values, rows = values[order], rows[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
    return values[new]


@dataclass
class Repeated:
    """Lines and addresses that stand on too many samples, and on how many."""

    found: Mapping[str, tuple[np.ndarray, np.ndarray]]  # "line", "address"

    @classmethod
    def count(cls, first: Index, rules: Mapping[str, Mapping[str, Any]], counts: np.ndarray) -> Repeated:
        return cls(
            {
                "line": first.repeated("lines", rules["line"]["max_pages"], counts),
                "address": first.repeated("addresses", rules["address"]["max_pages"], counts),
            }
        )

    def has(self, kind: str, value: int) -> int:
        """On how many samples it stands, if those are too many; 0 otherwise."""
        values, times = self.found[kind]
        place = int(np.searchsorted(values, np.uint64(value)))
        return int(times[place]) if place < len(values) and int(values[place]) == value else 0

    def of(self, kind: str, values: np.ndarray) -> np.ndarray:
        """Which of them do."""
        return np.isin(values, self.found[kind][0])

    def save(self, file: Path, **more: np.ndarray) -> None:
        arrays = {f"{kind}_{name}": each for kind, pair in self.found.items() for name, each in zip(("of", "on"), pair)}
        with atomic_path(file, shared=True) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays, **more)

    @classmethod
    def load(cls, file: Path) -> Repeated:
        try:
            with np.load(file) as arrays:
                return cls({kind: (arrays[f"{kind}_of"], arrays[f"{kind}_on"]) for kind in ("line", "address")})
        except DAMAGED as error:
            raise DuoGenError(f"{file} cannot be read ({error}); remove the folder and start again.") from None
