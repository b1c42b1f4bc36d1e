"""The converters' preset: every threshold under the name of its rule. presets/edits.yaml holds them all.

One edit, or one conversation of edits, through the rules; and the shards of a run.

    engine.sample(item, rows, decoder)            its pictures, or the rule that refused it
    for found in work(run, engine, workers): …    writes the shards that are not done: Documents and logs

One thread reads the rows of all shards in their order, so that each row group of a Parquet file is decoded once.
Threads judge the samples and encode their pictures, and the shards are written one after another.

An item is [start, stop, inverse]: rows of one document, and whether it goes back from the result to the first picture.
In a conversation the user brings a picture only where it is not the last answer; it ends before a turn that a rule
refuses.

Samples of a finished run to look at again, for the report: their pictures, whether a rule refused them or not.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.pairs.editing.layouts import (
    LAYOUTS,
    Layout,
    check_columns,
    split_at_markers,
)
from duogen_core.data.pairs.editing.rows import RowReader, Rows, open_rows
from duogen_core.data.pairs.rules import Step, Verdict, change, document_of, encoding
from duogen_core.data.pairs.sharded import WHOLE, Run, Shard, words_of
from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.presets import Preset, digest, preset_values
from duogen_core.data.runs.shards import document_files, new_shard
from duogen_core.document import Document
from duogen_core.errors import DuoGenError

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "edits"


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as picture.min_side=256 on top."""
    values = preset_values(FOLDER, DEFAULT, name, settings)
    if values["store"]["format"] not in ("jpeg", "png"):
        raise DuoGenError(f"store.format is {values['store']['format']!r}; expected jpeg or png.")
    return values


# ------------------------------------------------------------ engine

Item = Sequence[Any]
LONGEST = 1000  # characters of a value that is kept in meta


class Refused(Exception):
    def __init__(self, rule: str, value: Any) -> None:
        self.verdict: Verdict = (rule, value)


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


class Eyes:
    """Decodes in a child process, and remembers what it has seen of a row."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.seen = decoder, []

    def look(self, data: bytes, name: str) -> np.ndarray:
        facts, pixels = self.decoder.decode(data)
        if pixels is None:
            raise Refused(facts["rule"], name)
        self.seen.append(pixels)
        return pixels


class Engine:
    """Threads may share one: each has its own process that decodes."""

    def __init__(self, name: str, layout: Layout, rows: Rows, preset: Preset, mark: bool = True, licence: str = ""):
        self.name, self.layout, self.rows, self.preset = name, layout, rows, preset
        self.mark, self.licence = mark, licence or layout.licence
        picked = (self._present(names) for names in (layout.source, layout.instruction, layout.target))
        self.source, self.instruction, self.target = picked
        extra = (*layout.more_pictures, layout.inverse, *layout.about)
        more = [name for name in extra if name in rows.columns]
        self.columns = list(dict.fromkeys([self.source, self.instruction, self.target, *more]))

    def _present(self, names: Sequence[str]) -> str:
        return next(name for name in names if name in self.rows.columns)

    def items(self, inverse: bool = False) -> Iterator[list[Any]]:
        """Every document there is to be, in the order of the rows."""
        for start, stop in self._sessions():
            yield [start, stop, False]
            if inverse and self.layout.inverse:
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

    def decoder(self) -> Decoder:
        return Decoder({**self.preset["load"], "stored_side": self.preset["store"]["side"]})

    def spans(self, items: Iterable[Item]) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
        """Each item with its rows. One thread reads them; items in ascending order cost one pass over the set."""
        reader = RowReader(self.rows, self.columns)
        for item in items:
            yield item, reader.read(item[0], item[1])

    def sample(self, item: Item, rows: Sequence[dict[str, Any]], decoder: Decoder) -> Sample:
        eyes, inverse = Eyes(decoder), item[2]
        steps, changes, verdict, about = [], [], None, {}
        for row in rows:
            about = about or {name: _plain(row[name]) for name in self.layout.about if row.get(name) is not None}
            eyes.seen = []
            try:
                step, changed = self._step(row, inverse, eyes, steps[-1].result if steps else None)
            except Refused as refused:
                verdict = refused.verdict
                break
            steps.append(step)
            changes.append(changed)
        return Sample(item, steps, changes, verdict, about, eyes.seen)

    def _step(self, row: dict[str, Any], inverse: bool, eyes: Eyes, before: np.ndarray | None):
        text = self._text(row[self.layout.inverse if inverse else self.instruction])
        names = (self.target, self.source) if inverse else (self.source, self.target)
        brought = self._pictures(row, names[0], eyes)
        if not brought:
            raise Refused("no_picture", names[0])
        (result,) = self._pictures(row, names[1], eyes)[-1:] or [None]
        if result is None:
            raise Refused("no_picture", names[1])
        for name in self.layout.more_pictures:
            brought += self._pictures(row, name, eyes) if name in row else []
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

    def _pictures(self, row: dict[str, Any], name: str, eyes: Eyes) -> list[np.ndarray]:
        value = row[name]
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [self._picture(each, name, eyes) for each in values if not _empty(each)]

    def _picture(self, value: Any, name: str, eyes: Eyes) -> np.ndarray:
        try:
            data = self.rows.picture(value, name)
        except DuoGenError as error:
            raise Refused("missing", str(error)[:200]) from None
        pixels = eyes.look(data, name)
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
        meta = {"source": self.name, "row": sample.item[0], "licence": self.licence, **sample.about}
        return document_of(sample.steps, {**meta, "preset": digest(self.preset)}, self.mark)


def engine_of(details: Mapping[str, Any]) -> Engine:
    """The engine of a run that was begun with these details."""
    name = details["layout"]
    rows = open_rows(details["path"], details["split"], LAYOUTS[name].file)
    layout = check_columns(name, rows.columns, rows.where)
    return Engine(name, layout, rows, details["preset"], not details["both_stages"], details["licence"])


@dataclass
class Made:
    """A sample as it is written: its line of the log, the files of its Document (none if it is refused), seconds."""

    log: dict[str, Any]
    files: list[tuple[str, bytes]]
    seconds: Counter[str]


def work(run: Run, engine: Engine, workers: int = 1) -> Iterator[dict[str, int]]:
    """Writes the shards that are not done yet; yields of each what it found, in figures."""
    run.sweep()
    ahead, todo = itertools.tee(shard for shard in run.plan() if not run.is_done(shard.number))
    encode = encoding(engine.preset["store"])
    with ExitStack() as stack:
        decoders: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(max(workers, 1)):
            decoders.put(stack.enter_context(engine.decoder()))

        def make(job: tuple[int, tuple[Item, list[dict[str, Any]]]]) -> Made:
            number, (item, rows) = job
            decoder, begun = decoders.get(), time.perf_counter()
            try:
                sample = engine.sample(item, rows, decoder)
            finally:
                decoders.put(decoder)
            read = time.perf_counter()
            files = document_files(f"{number:08d}", engine.document(sample), encode) if sample.steps else []
            seconds = Counter(read=read - begun, write=time.perf_counter() - read)
            return Made({"number": number, **sample.log()}, files, seconds)

        numbers, items = itertools.tee(ahead)
        of_item = (shard.first + k for shard in numbers for k in range(len(shard.items)))
        spans = engine.spans(item for shard in items for item in shard.items)
        made = stack.enter_context(closing(in_order(make, zip(of_item, spans), workers)))
        for shard in todo:
            found = Counter(samples=len(shard.items))
            with new_shard(run, shard.number, "items") as new:
                for _, (_, each) in zip(shard.items, made):
                    new.log(each.log)
                    new.seconds.update(each.seconds)
                    if each.files:
                        begun = time.perf_counter()
                        new.add_files(each.files)
                        new.seconds["write"] += time.perf_counter() - begun
                        found.update(kept=1, turns=each.log["turns"])
            yield dict(found)


def _after(one: Any, other: Any) -> bool:
    return isinstance(one, int) and isinstance(other, int) and other == one + 1


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) else str(value)[:LONGEST]


# ------------------------------------------------------------ showing


class Showing:
    """One engine and one reader for all shards of a report, which come in order, so that the set is read once."""

    def __init__(self, run: Run) -> None:
        self.run, self.engine = run, engine_of(run.details)
        self.reader = RowReader(self.engine.rows, self.engine.columns)

    def __call__(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        with self.engine.decoder() as decoder:
            for number in sorted(wanted):
                item = shard.items[number - shard.first]
                sample = self.engine.sample(item, self.reader.read(item[0], item[1]), decoder)
                pictures = [
                    part for step in sample.steps for part in (*step.asked, step.result) if isinstance(part, np.ndarray)
                ]
                words = words_of(self.run, shard.number, f"{number:08d}")
                yield (number, WHOLE), pictures or sample.looked_at, words
