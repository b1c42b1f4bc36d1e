"""A run that makes documents in shards: its folder, its plan, and the loop that goes on where the last one stopped.

DIR/drawn/     pictures of shards that are not done yet

The rest of the folder is as `run_folder` says.

Drawing: a planned answer and a painter -> a Document with its pictures, or the rule that refuses it.

In: an Entry of plans.jsonl. Out: an Outcome. A picture that was painted is kept in DIR/drawn until its shard is whole,
so a run that was killed paints none of them twice, whatever the painter.

Answering: a DuoGen model answers the requests itself, text and pictures in one go; no language model plans for it.

In: a Request. Out: an Outcome with the Document that `generate` gave, or the rule that refuses it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    begin_run,
    make_folders,
)
from duogen_core.data.runs.presets import digest
from duogen_core.data.runs.shards import new_shard
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.data.synthetic.planning import Entry
from duogen_core.data.synthetic.requests import KEPT, Preset, Request, Verdict
from duogen_core.data.web.pictures import Seen
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)
from duogen_core.document.picture_file import decode_picture, encode_png, read_picture_bytes
from duogen_core.document.store import write_atomically
from duogen_core.errors import DuoGenError
from duogen_core.pipeline import picture_seed

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.pipeline import Settings

Item = TypeVar("Item")
SHARD = 16  # documents
GIVE_UP = 3  # documents in a row that fail before the run stops


@dataclass
class Outcome:
    """What became of an entry: a document, or the rule that refused it. failed: by a machine, not by its content."""

    verdict: Verdict
    document: Document | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # further fields of the log
    pictures: Sequence[Mapping[str, Any]] = ()
    failed: bool = False
    seconds: Counter[str] = field(default_factory=Counter)

    def log(self, number: int) -> dict[str, Any]:
        words = len(self.document.text.split()) if self.document else 0
        kept = {"words": words, "removed": {}} if self.document else {}
        return {"number": number, **self.about, **self.verdict.log(), **kept, "pictures": list(self.pictures)}


@dataclass(frozen=True)
class Run(RunFolder):
    count: int  # documents that are to be made
    shards: int
    size: int

    def entries(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def chosen(self, part: tuple[int, int]) -> list[int]:
        """The shards of part k of n that are not done."""
        return [shard for shard in range(part[0] - 1, self.shards, part[1]) if not self.is_done(shard)]


def begin(folder: Path, count: int, size: int, identity: Mapping[str, Any]) -> Run:
    if size < 1:
        raise DuoGenError(f"A shard has {size} documents; expected at least 1.")
    if not count:
        raise DuoGenError("There is nothing to do: no request is there, or no answer was kept.")
    shards = -(-count // size)
    begin_run(folder, "synthetic", {**identity, "shard": size}, {"entries": count, "shards": shards})
    make_folders(folder, (*FOLDERS, "drawn"))
    return Run(folder, count, shards, size)


def work(
    run: Run,
    items: Sequence[Item],
    make: Callable[[Item], Outcome],
    whole: Callable[[Sequence[Item]], None] = lambda _: None,
    part: tuple[int, int] = (1, 1),
    give_up: int = GIVE_UP,
) -> Iterator[Outcome]:
    """Makes the documents of the shards that are not done; `whole` is told the items of each that is.

    Leaving the loop leaves whole shards, and the drawn pictures of the one that was begun.
    """
    failed = 0
    for shard in run.chosen(part):
        run.sweep(shard)  # other ones may be another process's
        with new_shard(run, shard, "pages") as new:
            for number in run.entries(shard):
                outcome = make(items[number])
                failed = failed + 1 if outcome.failed else 0
                if failed == give_up:
                    raise DuoGenError(f"{give_up} documents in a row failed: {outcome.verdict.value}")
                new.log(outcome.log(number))
                new.seconds.update(outcome.seconds)
                if outcome.document is not None:
                    begun = time.perf_counter()
                    new.add(f"{number:08d}", outcome.document, _png)
                    new.seconds["write"] += time.perf_counter() - begun
                yield outcome
        whole([items[number] for number in run.entries(shard)])


def _png(picture: Picture) -> tuple[bytes, str]:
    return picture.to_png(), "png"


# ------------------------------------------------------------ drawing


class Drawing:
    def __init__(self, painter: Painter, preset: Preset, drawn: Path) -> None:
        self.painter, self.rules, self.drawn = painter, preset.picture, drawn
        self.by = painter.identity()
        self.mark = digest([self.by, dict(self.rules)])

    def document(self, entry: Entry) -> Outcome:
        outcome = Outcome(KEPT, about=logged_request(entry.request))
        pictures: list[Picture] = []
        logged: list[dict[str, Any]] = []
        begun = time.perf_counter()
        for prompt in entry.plan.prompts:
            seed = picture_seed(entry.seed, len(pictures))
            drawn = {"seed": seed, "prompt": prompt}
            try:
                pixels = self._pixels(entry.number, Wanted(entry.request.text, prompt, seed, tuple(pictures)))
            except PainterError as error:
                if error.stop:
                    raise
                outcome.verdict, outcome.failed = Verdict("painter_failed", str(error)[:400]), True
                break
            picture = Picture(pixels, drawn)
            outcome.verdict = judge(picture, pictures, self.rules)
            size = list(picture.size)
            logged.append({**drawn, "class": "drawn", "size": size, "digest": picture.digest[:16],
                           **({} if outcome.verdict.kept else outcome.verdict.log())})  # fmt: skip
            if not outcome.verdict.kept:
                break
            pictures.append(picture)
        outcome.seconds["paint"] = time.perf_counter() - begun
        outcome.pictures = logged
        if outcome.verdict.kept:
            outcome.document = compose(entry, pictures, self.by)
        return outcome

    def forget(self, entries: Sequence[Entry]) -> None:
        """Removes the pictures of entries whose shard is whole."""
        for entry in entries:
            for pattern in (f"{entry.number:08d}-*.png", f".{entry.number:08d}-*"):
                for file in self.drawn.glob(pattern):
                    file.unlink(missing_ok=True)

    def _pixels(self, number: int, wanted: Wanted) -> np.ndarray:
        """From what an interrupted run had painted, else from the painter."""
        wish = [self.mark, wanted.request, wanted.prompt, wanted.seed, *(each.digest for each in wanted.earlier)]
        file = self.drawn / f"{number:08d}-{digest(wish)}.png"
        with contextlib.suppress(DuoGenError):  # not there, or damaged: it is painted anew
            return decode_picture(*read_picture_bytes(file))
        pixels = self.painter.paint(wanted)
        write_atomically(file, encode_png(pixels, {}))
        return pixels


def judge(picture: Picture, earlier: Sequence[Picture], rules: Mapping[str, Any]) -> Verdict:
    """By size, by the share of one colour, and by what was drawn before in the same answer."""
    size = f"{picture.size[0]}x{picture.size[1]}"
    if min(picture.size) < rules["min_side"]:
        return Verdict("small", size)
    if max(picture.size) > rules["max_side"]:
        return Verdict("large", size)
    blank = round(Seen({}, picture.pixels).one_colour, 4)
    if blank >= rules["blank_share"]:
        return Verdict("blank", blank)
    same = [index for index, each in enumerate(earlier) if each.digest == picture.digest]
    return Verdict("same_picture", same[0]) if same else KEPT


def compose(entry: Entry, pictures: Sequence[Picture], painter: Mapping[str, Any]) -> Document:
    """The request as the user's turn; texts and pictures in turn as the answer."""
    parts: list[Part] = []
    due = iter(pictures)
    for step in entry.plan.steps:
        parts.append(Text(step.text))
        if step.picture:
            parts.append(next(due))
    if entry.plan.closing:
        parts.append(Text(entry.plan.closing))
    meta = {
        **about(entry.request),
        "seed": entry.seed,
        "writer": {"model": entry.model, "prompt": entry.prompt},
        "painter": dict(painter),
    }
    return Document((Turn("user", (Text(entry.request.text),)), Turn("assistant", tuple(parts))), meta=meta)


def about(request: Request) -> dict[str, Any]:
    """What a document of this request says of it."""
    return {
        "source": "synthetic",
        "domain": request.domain,
        "subcategory": request.subcategory,
        "request": {"by": request.origin, "digest": request.digest},
    }


def logged_request(request: Request) -> dict[str, Any]:
    return {"request": request.text, "domain": request.domain, "subcategory": request.subcategory}


# ------------------------------------------------------------ answering


class Answering:
    def __init__(self, components: Components, settings: Settings, model: str, preset: Preset) -> None:
        """settings.seed is the run's; every request has its own seed, made of it and of the request."""
        self.components, self.model, self.preset = components, model, preset
        self.settings = settings.resolved(components.config)

    def identity(self) -> dict[str, Any]:
        names = ("seed", "steps", "guidance", "shift", "size", "max_images", "max_new_tokens", "temperature", "top_p")
        settings = {name: getattr(self.settings, name) for name in names}
        return {"model": self.model, "settings": settings, **self.preset.part("answer", "picture")}

    def document(self, request: Request) -> Outcome:
        from duogen_core.pipeline import generate

        begun = time.perf_counter()
        settings = replace(self.settings, seed=request.drawn_seed(self.settings.seed))
        outcome = Outcome(KEPT, about=logged_request(request))
        asked = Document().begin_turn("user", [Text(request.text)])
        try:
            answer = generate(self.components, asked, settings)
        except DuoGenError as error:
            outcome.verdict, outcome.failed = Verdict("answer_failed", str(error)[:400]), True
            return outcome
        finally:
            outcome.seconds["answer"] = time.perf_counter() - begun
        pictures = answer.pictures
        outcome.pictures = [
            {"class": "drawn", "seed": each.meta["seed"], "size": list(each.size), "digest": each.digest[:16]}
            for each in pictures
        ]
        outcome.verdict = next((each for each in self._verdicts(answer) if not each.kept), KEPT)
        if outcome.verdict.kept:
            meta = {**about(request), "seed": settings.seed, "writer": {"model": self.model}}
            outcome.document = replace(answer, meta=meta | {"painter": {"painter": "duogen", "model": self.model}})
        return outcome

    def _verdicts(self, answer: Document):
        rules: Mapping[str, Any] = self.preset.answer
        stop, words = answer.generation["stop_reason"], len(answer.text)
        yield KEPT if stop == "end" else Verdict("unfinished", stop)
        count = len(answer.pictures)
        yield KEPT if count >= rules["min_pictures"] else Verdict("few_pictures", count)
        yield KEPT if count <= rules["max_pictures"] else Verdict("many_pictures", count)
        yield KEPT if words >= rules["min_characters"] else Verdict("short_text", words)
        seen: list[Picture] = []
        for picture in answer.pictures:
            yield judge(picture, seen, self.preset.picture)
            seen.append(picture)
