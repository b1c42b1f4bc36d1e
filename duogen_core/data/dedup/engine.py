"""The pass over whole runs as an engine: what stays is written in shards of its own, what goes is logged.

Before there is a plan (`prepare`), in this order:
    1. every shard is read once (`features.First`), in processes or with Ray
    2. pages of one address, and documents with the same text, are reduced to the best; on what is left, lines and
       addresses of images are counted
    3. every shard is read again (`features.Second`): signatures of the text without lines that repeat
    4. near-duplicates and documents with the same images are found (`pairs.near`)
    5. lines and addresses are counted anew on what stays: the copies of a page are no reason to take out its lines
Then each document is an item: `do` copies it without images and lines that repeat; files of images as they are.

OUT/index/inputs.json     what the arrays beside it were made of
OUT/index/first/, second/ arrays of each shard, while they are needed
OUT/index/decided.npz     what was decided of every document
OUT/index/repeated.npz    lines and addresses that stand on too many of them
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.dedup.features import (
    DAMAGED,
    First,
    Index,
    Ragged,
    Repeated,
    Second,
    Sketch,
    address_hash,
    line_hash,
    may_go,
)
from duogen_core.data.dedup.pairs import RULES, Decided, Documents, near, ranked, same
from duogen_core.data.dedup.samples import Sample, domain_of, finished, sample_at
from duogen_core.data.dedup.text import tokens
from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.folder import FileDigests, RunFolder, make_folders
from duogen_core.data.runs.presets import Preset, digest, preset_of_run
from duogen_core.data.runs.run import Run
from duogen_core.data.runs.workers import in_workers
from duogen_core.errors import DuoGenError
from duogen_core.files import read_json, write_atomically

Report = Callable[[str, int, int], None]  # what is done, how much of how much


def _silent(*_: Any) -> None:
    """What workers say."""


class DedupEngine(Engine):
    """Items are numbers of documents: through all runs, their shards and what stands in them."""

    kind, things, size_name = "dedup", "documents", "shard_documents"
    keeps_lock = True

    def __init__(
        self,
        preset: Preset,
        runs: Sequence[str],
        folder: Path,
        workers: int = 1,
        backend: str = "local",
        report: Report = _silent,
    ) -> None:
        """runs: folders that `data web` or another engine made. folder: of this run."""
        self.preset, self.runs, self.folder = preset, [Path(run) for run in runs], folder
        self.workers, self.backend, self.report = workers, backend, report
        _check(preset)
        for run in self.runs:
            if not (run / "run.json").is_file() or not (run / "shards").is_dir():
                raise DuoGenError(f"{run} is no folder of a run with shards, such as `data web` makes with --out.")
            if folder.resolve() in (run.resolve(), *run.resolve().parents) or run.resolve() in folder.resolve().parents:
                raise DuoGenError(f"--out {folder} and the run {run} lie in each other; choose another --out.")
        if len({run.resolve() for run in self.runs}) < len(self.runs):
            raise DuoGenError("A run is given twice; all its documents would be duplicates.")

    @classmethod
    def of_run(cls, run: Run) -> DedupEngine:
        return cls(preset_of_run("dedup", run.details["preset"]), run.details["runs"], run.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "report": _silent}

    # ------------------------------------------------------------ what it depends on

    @cached_property
    def shards(self) -> list[tuple[int, int]]:
        """(run, shard) of every whole shard, in order."""
        return [(number, shard) for number, run in enumerate(self.runs) for shard in finished(run)]

    def identity(self) -> dict[str, Any]:
        digests = FileDigests(self.folder / "index" / "digests.json")
        inputs = []
        for number, run in enumerate(self.runs):
            value = read_json(run / "run.json")
            planned = value.get("shards") if isinstance(value, dict) else None
            mine = [shard for where, shard in self.shards if where == number]
            if isinstance(planned, int) and len(mine) < planned:
                self.notes = [
                    *self.notes, f"{run} is not finished: {len(mine):,} of its {planned:,} shards are there.",
                ]  # fmt: skip
            folder = RunFolder(run)
            named = [(shard, digests.of(folder.log(shard)), folder.tar(shard).stat().st_size) for shard in mine]
            inputs.append({"run": digest(value), "shards": len(mine), "digest": digest(named)})
        if not self.shards:
            raise DuoGenError(f"{self.runs[0]} has no finished shard yet; run the command that made it again.")
        self.digests = digests
        return {"inputs": inputs, "preset": self.preset.to_json()}

    def details(self) -> dict[str, Any]:
        return {"runs": [str(run) for run in self.runs], "preset": self.preset.to_json()}

    def items(self) -> range:
        return range(len(self.decided.rule))

    # ------------------------------------------------------------ before there is a plan

    def prepare(self, folder: Path, identity: Mapping[str, Any]) -> None:
        index = folder / "index"
        make_folders(folder, ("index",))
        Sketch(self.preset.near["hashes"])  # or the sentence that names the extra, before anything is read
        mark = json.dumps(digest(identity)).encode()
        if not (index / "inputs.json").exists() or (index / "inputs.json").read_bytes() != mark:
            shutil.rmtree(index)
            make_folders(folder, ("index", "index/first", "index/second"))
            write_atomically(index / "inputs.json", mark)
        self.digests.save()
        if (index / "decided.npz").exists():
            return
        make_folders(folder, ("index/first", "index/second"))

        first = self._read(First, "read")
        count = int(first.counts.sum())
        if not count:
            raise DuoGenError("The runs hold no document; `data stats` says why they kept none.")
        pages, times, texts = first.flat("pages"), first.flat("times"), first.flat("texts")
        sizes = first.flat("lines_sizes"), first.flat("pictures_sizes")
        keep = self.preset.near["keep"]
        found = Decided.start(count)
        if self.preset.page["same_address"]:
            same(found, pages, ranked("newest", *_of(sizes, times, texts, pages)), "same_address")
        same(found, texts, ranked(keep, *_of(sizes, times, texts, pages)), "near_duplicate")
        repeated = Repeated.count(first, self.preset, found.left)
        if not (index / "repeated.npz").exists():
            repeated.save(index / "repeated.npz")

        second = self._read(Second, "compared")
        self.report("comparing", 0, 1)
        lengths, pictures = second.flat("lengths"), _own_pictures(first, repeated)
        documents = Documents(
            ranked(keep, lengths, times, pictures.sizes, pages, texts), second.joined("signatures"), lengths,
            second.flat("thin"), second.ragged("shingles"), second.ragged("numbers"), pictures,
        )  # fmt: skip
        near(found, documents, self.preset)
        Repeated.count(first, self.preset, found.left).save(
            index / "decided.npz", rule=found.rule, partner=found.partner, value=found.value,
            offsets=first.flat("offsets"), firsts=first.firsts,
        )  # fmt: skip
        self.report("comparing", 1, 1)
        del documents  # its files are mapped to memory
        for name in ("first", "second"):
            shutil.rmtree(index / name)
        for file in [*index.glob("*.duogen-tmp"), index / "repeated.npz"]:
            file.unlink()

    def _read(self, kind: type, what: str) -> Index:
        """Every shard by this reading, but those whose arrays are there."""
        index = Index(self.folder / "index", kind.name, len(self.shards))
        jobs = [(number, *place) for number, place in enumerate(self.shards) if not index.files[number].exists()]
        done = len(self.shards) - len(jobs)
        self.report(what, done, len(self.shards))
        rules = {name: dict(values) for name, values in self.preset.items()}
        make = partial(kind, self.folder.absolute(), [run.absolute() for run in self.runs], rules)
        here = self.workers == 1 and self.backend == "local"
        for _ in map(make(), jobs) if here else in_workers(make, jobs, self.workers, self.backend):
            done += 1
            self.report(what, done, len(self.shards))
        return index

    # ------------------------------------------------------------ one document

    @cached_property
    def decided(self) -> Decided:
        return Decided(*self._arrays("rule", "partner", "value"))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each document begins in its tar, and the number of the first one of each shard."""
        return tuple(self._arrays("offsets", "firsts"))

    @cached_property
    def repeated(self) -> Repeated:
        return Repeated.load(self.folder / "index" / "decided.npz")

    def _arrays(self, *names: str) -> list[np.ndarray]:
        file = self.folder / "index" / "decided.npz"
        try:
            with np.load(file) as arrays:
                return [arrays[name] for name in names]
        except DAMAGED as error:
            raise DuoGenError(f"{file} cannot be read ({error}); remove {self.folder} and start again.") from None

    def sample(self, number: int) -> Sample:
        offsets, firsts = self.places
        place = int(np.searchsorted(firsts, number, side="right")) - 1
        run, shard = self.shards[place]
        return sample_at(RunFolder(self.runs[run]).tar(shard), int(offsets[number]))

    def name(self, number: int, sample: Sample) -> dict[str, Any]:
        """What the log calls a document."""
        return {"document": number, "tar": f"{sample.file.parents[1].name}/{sample.file.name}", "key": sample.key,
                "url": sample.url, "title": sample.title}  # fmt: skip

    def do(self, item: int) -> Outcome:
        sample, decided = self.sample(item), self.decided
        entry = {**self.name(item, sample), "kept": True}
        if rule := RULES[decided.rule[item]]:
            partner = int(decided.partner[item])
            entry |= {"kept": False, "rule": rule, "value": round(float(decided.value[item]), 4)}
            return Outcome({**entry, "partner": self.name(partner, self.sample(partner))})
        value, pictures, lines = self.clean(sample)
        entry |= {"removed_lines": lines, "pictures": pictures}
        words = sum(len(tokens(part["text"])) for turn in value["turns"] for part in turn["parts"]
                    if part["type"] == "text")  # fmt: skip
        images = [part for turn in value["turns"] for part in turn["parts"] if part["type"] == "image"]
        entry["words"] = words
        if lines and words < self.preset.left["min_words"]:
            return Outcome({**entry, "kept": False, "rule": "too_short", "value": words})
        if len(images) < len(pictures) and len(images) < self.preset.left["min_images"]:
            return Outcome({**entry, "kept": False, "rule": "no_picture_left", "value": len(images)})
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        names = dict.fromkeys(part["file"] for part in images)  # a file that two parts show is there once
        return Outcome(entry, files=[("", [("json", data), *((name, sample.read(name)) for name in names)])])

    def clean(self, sample: Sample) -> tuple[dict[str, Any], list[dict[str, Any]], list[list[Any]]]:
        """The JSON without what repeats; every image, with its rule if any; lines that went, and on how many pages."""
        domain, least = domain_of(sample.url), self.preset.line["min_characters"]
        pictures: list[dict[str, Any]] = []
        lines: list[list[Any]] = []
        turns = []
        for turn in sample.value["turns"]:
            parts = []
            for part in turn["parts"]:
                if part["type"] == "image":
                    pages = self.repeated.has("address", address_hash(part))
                    about = {"url": str(part.get("meta", {}).get("url", ""))[:200]}
                    pictures.append({**about, "rule": "repeated_address", "value": pages} if pages else about)
                    parts += [] if pages else [part]
                elif turn["role"] == "assistant" and domain:
                    text, went = self._without_repeated(part["text"], domain, least)
                    lines += went
                    parts += [{**part, "text": text}] if text or not went else []
                else:
                    parts.append(part)
            turns.append({**turn, "parts": parts})
        return {**sample.value, "turns": turns}, pictures, lines

    def _without_repeated(self, text: str, domain: str, least: int) -> tuple[str, list[list[Any]]]:
        kept, went = [], []
        for line in text.split("\n"):
            bare = " ".join(line.split())
            pages = self.repeated.has("line", line_hash(domain, bare)) if may_go(bare, least) else 0
            if pages:
                went.append([bare[:200], pages])
            else:
                kept.append(line)
        return (re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n"), went) if went else (text, went)


def _of(sizes: tuple[np.ndarray, np.ndarray], times: np.ndarray, texts: np.ndarray, pages: np.ndarray) -> tuple:
    """What `ranked` takes, before texts were compared."""
    lines, images = sizes
    return lines, times, images, pages, texts


def _own_pictures(first: Index, repeated: Repeated) -> Ragged:
    """Perceptual hashes of every document's images but those whose address repeats."""
    pictures, addresses = first.ragged("pictures"), first.joined("addresses")
    own = ~repeated.of("address", addresses)
    owners = np.repeat(np.arange(len(pictures.starts) - 1), pictures.sizes)[own]
    sizes = np.bincount(owners, minlength=len(pictures.starts) - 1)
    return Ragged(pictures.values[own], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _check(preset: Preset) -> None:
    rules = preset.near
    if rules["keep"] not in ("longest", "newest"):
        raise DuoGenError(f"near.keep is {rules['keep']!r}; expected longest or newest.")
    if not 1 <= rules["bands"] <= rules["hashes"] <= 4096 or rules["hashes"] % rules["bands"]:
        raise DuoGenError(
            f"near.hashes is {rules['hashes']} and near.bands {rules['bands']}; expected bands that divide the hashes, "
            "such as 126 and 42."
        )
    if not 1 <= rules["shingle"] <= 20:
        raise DuoGenError(f"near.shingle is {rules['shingle']}; expected 1 to 20 words.")
    shares = {
        f"near.{name}": value for name, value in rules.items() if name.startswith(("min_text", "min_shared", "sure"))
    }
    shares |= {f"images.{name}": preset.images[name] for name in ("min_shared", "min_text")}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise DuoGenError(f"{name} is {value}; expected a share from 0 to 1.")
    if not 0 <= preset.images["max_bits"] <= 32 or preset.images["min_images"] < 1:
        raise DuoGenError(
            f"images.max_bits is {preset.images['max_bits']} and images.min_images {preset.images['min_images']}; "
            "expected 0 to 32 and at least 1."
        )
    for section, name in (("address", "max_pages"), ("line", "max_pages")):
        if preset[section][name] < 1:
            raise DuoGenError(f"{section}.{name} is {preset[section][name]}; expected at least 1.")
