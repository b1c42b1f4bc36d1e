"""Documents of requests: drawn by a painter out of planned answers, or written and drawn by a DuoGen model in one go.

    DrawEngine      an entry of plans.jsonl -> its Document, with the pictures of a painter
    AnswerEngine    a request -> the Document that `generate` gives; no language model plans for it

A picture that was painted is kept in OUT/drawn until its shard is whole, so a run that was killed paints none of them
twice, whatever the painter.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.folder import make_folders
from duogen_core.data.runs.presets import Preset, digest
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.data.synthetic.planning import Entry, read_plans
from duogen_core.data.synthetic.requests import KEPT, Request, Verdict, request_lines
from duogen_core.data.web.pictures import Seen
from duogen_core.document import Document, Part, Picture, Text, Turn
from duogen_core.document.picture_file import decode_picture, encode_png, read_picture_bytes
from duogen_core.errors import DuoGenError
from duogen_core.files import write_atomically
from duogen_core.picture_sampling import picture_seed

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.settings import Settings


class SyntheticEngine(Engine):
    kind, size_name = "synthetic", "shard"

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return picture.to_png(), "png"


class DrawEngine(SyntheticEngine):
    """Items are numbers of the kept lines of plans.jsonl. paint: makes the painter."""

    def __init__(
        self, plans: Path, preset: Preset, paint: Callable[[], Painter], drawn: Path, uses_gpu: bool = False
    ) -> None:
        self.file, self.preset, self.paint, self.drawn, self.uses_gpu = plans, preset, paint, drawn, uses_gpu
        self.rules = preset.picture

    @cached_property
    def plans(self) -> list[Entry]:
        return list(read_plans(self.file))

    @cached_property
    def painter(self) -> Painter:
        return self.paint()

    @cached_property
    def by(self) -> dict[str, Any]:
        return self.painter.identity()

    def identity(self) -> dict[str, Any]:
        if not self.plans:
            raise DuoGenError("There is nothing to do: no answer was kept.")
        plans = hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]
        return {"plans": plans, "painter": self.by, **self.preset.part("picture")}

    def items(self) -> range:
        return range(len(self.plans))

    def do(self, number: int) -> Outcome:
        make_folders(self.drawn)
        entry, begun = self.plans[number], time.perf_counter()
        pictures: list[Picture] = []
        logged: list[dict[str, Any]] = []
        verdict, failed = KEPT, ""
        for prompt in entry.plan.prompts:
            seed = picture_seed(entry.seed, len(pictures))
            drawn = {"seed": seed, "prompt": prompt}
            try:
                pixels = self._pixels(entry.number, Wanted(entry.request.text, prompt, seed, tuple(pictures)))
            except PainterError as error:
                if error.stop:
                    raise
                failed = str(error)[:400]
                verdict = Verdict("painter_failed", failed)
                break
            picture = Picture(pixels, drawn)
            verdict = judge(picture, pictures, self.rules)
            size = list(picture.size)
            logged.append({**drawn, "class": "drawn", "size": size, "digest": picture.digest[:16],
                           **({} if verdict.kept else verdict.log())})  # fmt: skip
            if not verdict.kept:
                break
            pictures.append(picture)
        document = compose(entry, pictures, self.by) if verdict.kept else None
        return outcome_of(entry.request, verdict, document, logged, failed, paint=time.perf_counter() - begun)

    def shard_done(self, items: Sequence[int]) -> None:
        """Removes the pictures, which stand in the shard now."""
        for number in items:
            number = self.plans[number].number
            for pattern in (f"{number:08d}-*.png", f".{number:08d}-*"):
                for file in self.drawn.glob(pattern):
                    file.unlink(missing_ok=True)

    def _pixels(self, number: int, wanted: Wanted) -> np.ndarray:
        """From what an interrupted run had painted, else from the painter."""
        mark = digest([self.by, dict(self.rules)])
        wish = [mark, wanted.request, wanted.prompt, wanted.seed, *(each.digest for each in wanted.earlier)]
        file = self.drawn / f"{number:08d}-{digest(wish)}.png"
        with contextlib.suppress(DuoGenError):  # not there, or damaged: it is painted anew
            return decode_picture(*read_picture_bytes(file))
        pixels = self.painter.paint(wanted)
        write_atomically(file, encode_png(pixels, {}))
        return pixels


class AnswerEngine(SyntheticEngine):
    """Items are numbers of requests. load: loads the model, which is called `model`."""

    uses_gpu = True

    def __init__(
        self,
        requests: Sequence[Request],
        preset: Preset,
        load: Callable[[], Components],
        settings: Settings,
        model: str,
    ) -> None:
        """settings.seed is the run's; every request has its own seed, made of it and of the request."""
        self.requests, self.preset, self.load, self.asked, self.model = list(requests), preset, load, settings, model

    @cached_property
    def components(self) -> Components:
        return self.load()

    @property
    def settings(self) -> Settings:
        return self.asked.resolved(self.components.config)

    def identity(self) -> dict[str, Any]:
        if not self.requests:
            raise DuoGenError("There is nothing to do: no request is there.")
        names = ("seed", "steps", "guidance", "shift", "size", "max_images", "max_new_tokens", "temperature", "top_p")
        settings = {name: getattr(self.settings, name) for name in names}
        requests = hashlib.sha256(request_lines(self.requests)).hexdigest()[:16]
        return {
            "requests": requests, "model": self.model, "settings": settings, **self.preset.part("answer", "picture")
        }  # fmt: skip

    def items(self) -> range:
        return range(len(self.requests))

    def do(self, number: int) -> Outcome:
        from duogen_core.pipeline import generate

        request, begun = self.requests[number], time.perf_counter()
        settings = replace(self.settings, seed=request.drawn_seed(self.settings.seed))
        asked = Document().begin_turn("user", [Text(request.text)])
        try:
            answer = generate(self.components, asked, settings)
        except DuoGenError as error:
            failed = str(error)[:400]
            return outcome_of(request, Verdict("answer_failed", failed), None, [], failed)
        drawn = [
            {"class": "drawn", "seed": each.meta["seed"], "size": list(each.size), "digest": each.digest[:16]}
            for each in answer.pictures
        ]
        verdict = next((each for each in self._verdicts(answer) if not each.kept), KEPT)
        meta = {**about(request), "seed": settings.seed, "writer": {"model": self.model}}
        document = replace(answer, meta=meta | {"painter": {"painter": "duogen", "model": self.model}})
        seconds = time.perf_counter() - begun
        return outcome_of(request, verdict, document if verdict.kept else None, drawn, answer=seconds)

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


def outcome_of(
    request: Request,
    verdict: Verdict,
    document: Document | None,
    pictures: Sequence[Mapping[str, Any]],
    failed: str = "",
    **seconds: float,
) -> Outcome:
    kept = {"words": len(document.text.split()), "removed": {}} if document else {}
    named = {"request": request.text, "domain": request.domain, "subcategory": request.subcategory}
    entry = {**named, **verdict.log(), **kept, "pictures": list(pictures)}
    return Outcome(entry, [("", document)] if document else [], failed, Counter(seconds))


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
