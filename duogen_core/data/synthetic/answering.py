"""Answering: a DuoGen model answers the requests itself, text and pictures in one go; no language model plans for it.

In: a Request. Out: an Outcome with the Document that `generate` gave, or the rule that refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duogen_core.data.synthetic.drawing import about, judge, logged_request
from duogen_core.data.synthetic.requests import KEPT, Preset, Request, Verdict
from duogen_core.data.synthetic.runs import Outcome
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.pipeline import Settings


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
