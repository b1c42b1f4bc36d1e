"""bench loop: an illustrated answer of many images, image by image, ours and the libraries'.

Our side is `generate`, as every user runs it. Whenever it has finished an image, the other side makes the same image of
the same conversation, and is timed, while our clock stands still: so both are measured in turns, minutes apart nowhere.
Before that both run once with one step an image: to warm up, for the memory, which does not depend on the number of
steps, and for the comparison under frame_causal (reference.py).
In: Components and settings. Out: a Report with a row an image, and totals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from duogen_core.bench.measure import (
    BenchError,
    Comparison,
    PeakMemory,
    Report,
    Stopped,
    Tell,
    allowed,
    finish,
    machine,
    now,
    timed,
)
from duogen_core.bench.models import REQUEST
from duogen_core.bench.reference import CAUSAL, FULL, Reference
from duogen_core.checkpoint import Components
from duogen_core.document import Document, Picture, Text
from duogen_core.picture_sampling import picture_seed, picture_size, working_dtype
from duogen_core.pipeline import Callbacks, generate
from duogen_core.settings import Settings

MOST_TOKENS = 4096  # of text in the whole answer
ALLOWED = 1e-4  # mean difference of two images of 0..1
ONE_LEVEL = 1.5 / 255  # two values on the two sides of a rounding differ by one level; not by two


def run_loop(
    components: Components,
    *,
    images: int,
    steps: int,
    size: tuple[int, int],
    repeat: int,
    device: torch.device,
    tell: Tell,
    stopped: Stopped,
    guidance: float = 2.0,
    request: str = REQUEST,
) -> Report:
    if components.mllm.prompted is not None:
        raise BenchError("This model was not taught <BOV>; bench loop measures DuoGen models, such as duogen-tiny.")
    attention = components.dit.config.attention
    report = Report(
        "loop",
        FULL if attention == "full" else CAUSAL,
        {"images": images, "steps": steps, "size": list(size), "guidance": guidance, "repeat": repeat,
         "attention": attention, "model": components.name},
        machine(device, working_dtype(components.dit)),
        [Comparison(f"image {k + 1}") for k in range(images)],
    )  # fmt: skip
    race = _Race(components, report, size, guidance, device, stopped)
    document = Document().begin_turn("user", [Text(request)])
    try:
        # First, so that it warms both sides up as well, and finds sides that disagree before minutes are spent.
        race.run(document, 1, timed_round=False, tell=lambda k: tell(
            f"memory, image {k + 1} of {images}", (k + 1) / images / (repeat + 1)))  # fmt: skip
        for number in range(repeat):
            if stopped():
                break
            race.run(document, steps, timed_round=True, tell=lambda k, n=number: tell(
                f"round {n + 1} of {repeat}, image {k + 1} of {images}",
                (n + 1 + (k + 1) / images) / (repeat + 1)))  # fmt: skip
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of an image
        pass
    report.stopped = stopped()
    report.rows = [row for row in report.rows if row.ratios]  # the model may have ended earlier
    if not report.rows and not report.stopped:
        raise BenchError("The model drew no image for this request; give another one with --request.")
    report.totals = totals(report)
    return report


class _Race:
    """One loop of both sides at a time."""

    def __init__(
        self, components: Components, report: Report, size: tuple[int, int], guidance: float, device: torch.device,
        stopped: Stopped,
    ) -> None:  # fmt: skip
        self.components, self.report, self.size, self.guidance = components, report, size, guidance
        self.device, self.stopped, self.reference = device, stopped, Reference(components)
        self.causal = components.dit.config.attention == "frame_causal"

    def run(self, request: Document, steps: int, *, timed_round: bool, tell: Callable[[int], None]) -> None:
        """Lets generate make its images; after each of them the other side makes the same one."""
        before = [request]  # the conversation without the text and image that are being made
        clock = [0.0]
        settings = Settings(
            seed=0, steps=steps, guidance=self.guidance, size=self.size, max_images=len(self.report.rows),
            max_new_tokens=MOST_TOKENS,
        )  # fmt: skip

        memory = None if timed_round else PeakMemory(self.device)

        def on_picture(k: int, picture: Picture) -> None:
            finish(self.device)
            row = self.report.rows[k]
            seconds = now() - clock[0]
            if memory:
                memory.note(row.ours)
                with memory.paused():
                    self.answer(row, before[0], latest[0], k, steps, seconds, True)
                memory.restart()
            else:
                self.answer(row, before[0], latest[0], k, steps, seconds, False)
            before[0] = latest[0]
            tell(k)
            finish(self.device)
            clock[0] = now()

        latest = [request]
        watch = Callbacks(on_picture=on_picture, on_document=lambda document: latest.__setitem__(0, document))

        def loop() -> None:
            finish(self.device)
            clock[0] = now()
            generate(self.components, request, settings, watch, self.stopped)

        if memory is None:
            loop()
        else:
            with memory:
                loop()

    def answer(
        self, row: Comparison, before: Document, after: Document, k: int, steps: int, seconds: float, memory: bool
    ) -> None:
        """The other side's text and image after the conversation `before`, compared with ours at the end of `after`."""
        seed = picture_seed(0, k)
        size = picture_size(before, self.components.config, self.size)
        call = lambda: self.reference.picture(before, MOST_TOKENS, seed, steps, self.guidance, size)  # noqa: E731
        if memory:
            with PeakMemory(self.device) as peak:
                text, pixels = call()
                peak.note(row.reference)
        else:
            (text, pixels), theirs = timed(call, self.device)
        mine, picture = _last(before, after)
        if text != mine:
            raise BenchError(
                f"The two sides disagree at {row.case}: ours wrote {mine[:60]!r}, the reference {text[:60]!r}; their "
                "times would compare unlike work."
            )
        if self.causal and memory:
            pixels = self._uncached(before, mine, seed, steps, size)
        if not self.causal or memory:
            dtype = working_dtype(self.components.dit)
            row.agree(picture_difference(picture.pixels, pixels, dtype), allowed(ALLOWED, dtype))
        if not memory:
            row.ours.seconds.append(seconds)
            row.reference.seconds.append(theirs)

    def _uncached(self, before: Document, text: str, seed: int, steps: int, size: tuple[int, int]) -> np.ndarray:
        from duogen_core.bench.reference import project, write

        with torch.inference_mode():
            states = project(self.components.connector, write(self.components.mllm, before, MOST_TOKENS).states)
            return self.reference.draw(before, text, states, seed, steps, self.guidance, size, uncached=True)


def _last(before: Document, after: Document) -> tuple[str, Picture]:
    """The text and the picture that `after` has and `before` had not."""
    known = len(before.last_turn.parts) if before.last_turn.role == "assistant" else 0
    new = after.last_turn.parts[known:]
    return "".join(part.text for part in new if isinstance(part, Text)), after.pictures[-1]


def picture_difference(a: np.ndarray, b: np.ndarray, dtype: torch.dtype = torch.float32) -> float:
    """Returns the mean difference, of values of 0..1. Two roundings of one value may lie a level apart; where float32
    has any that lie further apart, it is the largest difference instead."""
    if a.shape != b.shape:
        return float("inf")
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64)) / 255
    return float(apart.max() if dtype == torch.float32 and apart.max() > ONE_LEVEL else apart.mean())


def totals(report: Report) -> dict[str, Any]:
    """The whole answer: seconds of both sides (medians added up), how many times faster, and the peaks."""
    rows = report.rows
    if not rows:
        return {}
    ours, theirs = (sum(getattr(row, side).median for row in rows) for side in ("ours", "reference"))
    peaks = {
        f"{side}_peak_bytes": max((getattr(row, side).peak_bytes or 0 for row in rows), default=0) or None
        for side in ("ours", "reference")
    }
    return {
        "ours_seconds": round(ours, 4),
        "reference_seconds": round(theirs, 4),
        "times_faster": round(theirs / ours, 4),
        "last_over_first": round(rows[-1].ours.median / rows[0].ours.median, 4),
        **peaks,
    }
