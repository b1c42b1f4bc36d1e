"""One edit, or one conversation of edits, of an open set through the rules.

    engine.sample(item, rows, decoder)            its pictures, or the rule that refused it

One thread reads the rows of all items in their order, so that each row group of a Parquet file is decoded once; threads
judge the samples and encode their pictures.

An item is [start, stop, inverse]: rows of one document, and whether it goes back from the result to the first picture.
In a conversation the user brings a picture only where it is not the last answer; it ends before a turn that a rule
refuses.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from duogen_core.data.pairs.editing.layouts import (
    LAYOUTS,
    Layout,
    check_columns,
    split_at_markers,
)
from duogen_core.data.pairs.editing.rows import RowReader, Rows, open_rows
from duogen_core.data.pairs.rules import WHOLE, Step, Verdict, change, document_of, encoding
from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.runs import Engine, Outcome, Refused
from duogen_core.data.runs.presets import Preset, digest, preset_of_run
from duogen_core.data.runs.run import Run, Shard
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError

Item = Sequence[Any]
LONGEST = 1000  # characters of a value that is kept in meta


@dataclass
class Sample:
    """What became of an item. verdict: what refused it, or what ended its conversation early."""

    item: Item
    steps: list[Step]
    changes: list[float]
    verdict: Verdict | None
    about: dict[str, Any]
    looked_at: list[np.ndarray] = field(default_factory=list, repr=False)  # of the last row

    def log(self) -> dict[str, Any]:
        start, stop, inverse = self.item
        place = {"row": start, "rows": stop - start, **({"inverse": True} if inverse else {})}
        refused = {"rule": self.verdict[0], "value": self.verdict[1]} if self.verdict else {}
        if self.steps:
            refused = {"ended_by": refused} if refused else {}
        return {**place, "turns": len(self.steps), "change": self.changes, "kept": bool(self.steps), **refused}


class RowPictures:
    """Decodes the pictures of a row in a child process, and lists those that could be read."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.decoded = decoder, []

    def decode(self, data: bytes, name: str) -> np.ndarray:
        facts, pixels = self.decoder.decode(data)
        if pixels is None:
            raise Refused(facts["rule"], name)
        self.decoded.append(pixels)
        return pixels


class Decoders:
    """A process that decodes for each thread that asks, started when it is needed."""

    def __init__(self, start: Callable[[], Decoder]) -> None:
        self.start, self.idle = start, queue.SimpleQueue()
        self.all: list[Decoder] = []

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        try:
            decoder = self.idle.get_nowait()
        except queue.Empty:
            decoder = self.start()
            self.all.append(decoder)
        try:
            yield decoder
        finally:
            self.idle.put(decoder)

    def close(self) -> None:
        for decoder in self.all:
            decoder.close()


class EditingEngine(Engine):
    kind, things = "editing", "samples"

    def __init__(
        self, layout: str, path: str, preset: Preset, split: str = "", inverse: bool = False, both_stages: bool = False,
        licence: str = "",
    ) -> None:  # fmt: skip
        """path: of the set. inverse: the way back too. both_stages: stage 1 learns from the documents as well."""
        self.name, self.path, self.preset, self.split = layout, path, preset, split
        self.options = {"inverse": inverse, "both_stages": both_stages, "licence": licence}

    @classmethod
    def of_run(cls, run: Run) -> EditingEngine:
        """The engine of a finished run."""
        about = run.details
        more = {name: about[name] for name in ("inverse", "both_stages", "licence")}
        return cls(about["layout"], about["path"], preset_of_run("editing", about["preset"]), about["split"], **more)

    @cached_property
    def rows(self) -> Rows:
        return open_rows(self.path, self.split, LAYOUTS[self.name].file)

    @cached_property
    def layout(self) -> Layout:
        return check_columns(self.name, self.rows.columns, self.rows.where)

    @cached_property
    def reader(self) -> RowReader:
        extra = (*self.layout.more_pictures, self.layout.inverse, *self.layout.about)
        more = [name for name in extra if name in self.rows.columns]
        return RowReader(self.rows, list(dict.fromkeys([self.source, self.instruction, self.target, *more])))

    @cached_property
    def decoders(self) -> Decoders:
        side = self.preset["store"]["side"]
        return Decoders(lambda: Decoder({**self.preset.load, "stored_side": side}))

    @property
    def source(self) -> str:
        return self._present(self.layout.source)

    @property
    def instruction(self) -> str:
        return self._present(self.layout.instruction)

    @property
    def target(self) -> str:
        return self._present(self.layout.target)

    def identity(self) -> dict[str, Any]:
        assert self.layout  # of a set in another one a sentence says so now
        return {"kind": self.kind, "layout": self.name, **self.rows.identity(), "preset": self.preset, **self.options}

    def details(self) -> dict[str, Any]:
        return {"layout": self.name, "path": self.path, "split": self.split, "preset": self.preset, **self.options}

    def _present(self, names: Sequence[str]) -> str:
        return next(name for name in names if name in self.rows.columns)

    def items(self) -> Iterator[list[Any]]:
        """Every document there is to be, in the order of the rows."""
        for start, stop in self._sessions():
            yield [start, stop, False]
            if self.options["inverse"] and self.layout.inverse:
                yield [start, stop, True]

    def _sessions(self) -> Iterator[tuple[int, int]]:
        layout, most = self.layout, self.preset["session"]["max_turns"]
        if not layout.session:
            yield from ((row, row + 1) for row in range(len(self.rows)))
            return
        start, last = 0, None
        for row, values in enumerate(self.rows.read(0, len(self.rows), [layout.session, layout.turn])):
            here = (values[layout.session], values[layout.turn])
            follows = last is not None and here[0] == last[0] and _after(last[1], here[1]) and row - start < most
            if row and not follows:
                yield start, row
                start = row
            last = here
        yield start, len(self.rows)

    def read(self, items: Iterable[Item]) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
        """Each item with its rows; items in ascending order cost one pass over the set."""
        for item in items:
            yield item, self.reader.read(item[0], item[1])

    def do(self, item: tuple[Item, list[dict[str, Any]]]) -> Outcome:
        begun = time.perf_counter()
        with self.decoders.one() as decoder:
            sample = self.sample(*item, decoder)
        documents = [("", self.document(sample))] if sample.steps else []
        return Outcome(sample.log(), documents, seconds=Counter(read=time.perf_counter() - begun))

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return encoding(self.preset["store"])(picture)

    def look_again(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        """Samples of a finished run once more, for the report: their pictures, whether a rule refused them or not."""
        for number in sorted(wanted):
            item = shard.items[number - shard.first]
            with self.decoders.one() as decoder:
                sample = self.sample(item, self.reader.read(item[0], item[1]), decoder)
            pictures = [
                part for step in sample.steps for part in (*step.asked, step.result) if isinstance(part, np.ndarray)
            ]
            yield (number, WHOLE), pictures or sample.looked_at, f"{number:08d}"

    def sample(self, item: Item, rows: Sequence[dict[str, Any]], decoder: Decoder) -> Sample:
        pictures, inverse = RowPictures(decoder), item[2]
        steps, changes, verdict, about = [], [], None, {}
        for row in rows:
            about = about or {name: _plain(row[name]) for name in self.layout.about if row.get(name) is not None}
            pictures.decoded = []
            try:
                step, changed = self._step(row, inverse, pictures, steps[-1].result if steps else None)
            except Refused as refused:
                verdict = (refused.rule, refused.value)
                break
            steps.append(step)
            changes.append(changed)
        return Sample(item, steps, changes, verdict, about, pictures.decoded)

    def _step(self, row: dict[str, Any], inverse: bool, pictures: RowPictures, before: np.ndarray | None):
        text = self._text(row[self.layout.inverse if inverse else self.instruction])
        names = (self.target, self.source) if inverse else (self.source, self.target)
        brought = self._pictures(row, names[0], pictures)
        if not brought:
            raise Refused("no_picture", names[0])
        (result,) = self._pictures(row, names[1], pictures)[-1:] or [None]
        if result is None:
            raise Refused("no_picture", names[1])
        for name in self.layout.more_pictures:
            brought += self._pictures(row, name, pictures) if name in row else []
        changed = self._judge(brought[0], result)
        if before is not None and len(brought) == 1 and np.array_equal(before, brought[0]):
            return Step([text], result), changed
        return Step(self._placed(brought, text), result), changed

    def _text(self, value: Any) -> str:
        rules, text = self.preset["text"], value.strip() if isinstance(value, str) else ""
        if len(text.split()) < rules["min_words"] or not text:
            raise Refused("no_instruction", len(text.split()))
        if len(text) > rules["max_characters"]:
            raise Refused("long_instruction", len(text))
        return text

    def _placed(self, pictures: list[np.ndarray], text: str) -> list[np.ndarray | str]:
        """Pictures before the text, or where its markers are."""
        if not self.layout.marker:
            return [*pictures, text]
        parts = split_at_markers(text, self.layout.marker)
        numbers = list(dict.fromkeys(part for part in parts if isinstance(part, int)))
        if not numbers:
            return [*pictures, text]
        if sorted(numbers) != list(range(1, len(pictures) + 1)):
            raise Refused("markers", f"{len(numbers)} of {len(pictures)}")
        placed: list[np.ndarray | str] = []
        for part in parts:
            if isinstance(part, str) or part in numbers:
                placed.append(part if isinstance(part, str) else pictures[part - 1])
            else:  # it was shown already
                placed.append(f"picture {part}")
            numbers = [number for number in numbers if number != part]
        return placed

    def _pictures(self, row: dict[str, Any], name: str, pictures: RowPictures) -> list[np.ndarray]:
        value = row[name]
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [self._picture(each, name, pictures) for each in values if not _empty(each)]

    def _picture(self, value: Any, name: str, pictures: RowPictures) -> np.ndarray:
        try:
            data = self.rows.picture(value, name)
        except DuoGenError as error:
            raise Refused("missing", str(error)[:200]) from None
        pixels = pictures.decode(data, name)
        if min(pixels.shape[:2]) < self.preset["picture"]["min_side"]:
            raise Refused("small", min(pixels.shape[:2]))
        return pixels

    def _judge(self, first: np.ndarray, result: np.ndarray) -> float:
        """How much changed; the rules of the pair."""
        shapes = [pixels.shape[1] / pixels.shape[0] for pixels in (first, result)]
        apart = round(max(shapes) / min(shapes) - 1, 3)
        if apart > self.preset["picture"]["max_shape_change"]:
            raise Refused("shape", apart)
        changed, _ = change(first, result)
        if changed < self.preset["pair"]["min_change"]:
            raise Refused("still", changed)
        return changed

    def document(self, sample: Sample) -> Document:
        meta = {
            "source": self.name,
            "row": sample.item[0],
            "licence": self.options["licence"] or self.layout.licence,
            **sample.about,
        }
        return document_of(sample.steps, {**meta, "preset": digest(self.preset)}, not self.options["both_stages"])


def _after(one: Any, other: Any) -> bool:
    return isinstance(one, int) and isinstance(other, int) and other == one + 1


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) else str(value)[:LONGEST]
