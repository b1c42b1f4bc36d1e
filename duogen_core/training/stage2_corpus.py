"""Which documents a step of stage 2 learns from, and with whom they share it.

    documents_of(run, config, mllm)     number -> the documents of that shard or step: Sketchbook's own, or of `data`
    Corpus                              documents prepared ahead: batches of one shape, or of any (`packing`)
    Stream                              documents read anew, step by step
Both give a batch that is a function of (seed, step) alone, the same on every process. Alignment data is used here;
documents in which the assistant draws nothing are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

from duogen_core.data.sources import Limits
from duogen_core.data.sources.base import Excluded
from duogen_core.document import Document
from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.tasks import training_case
from duogen_core.training.loop import rng_for
from duogen_core.training.mllm_data import Samples, token_counter
from duogen_core.training.stage2_data import Named, Prepared, Reader

if TYPE_CHECKING:
    from duogen_core.mllm.base import Mllm
    from duogen_core.training.loop import Run
    from duogen_core.training.stage2 import Sample, Stage2Config


def drawn_case(rng: Random, weights: Mapping[str, float]) -> Case:
    """A training case with pictures of one size, the assistant's after the user's."""
    while True:
        case = training_case(rng, weights)
        pictures = case.document.pictures
        one_size = len({picture.size for picture in pictures}) == 1
        if one_size and any(part in pictures for part in case.document.last_turn.parts):
            return case


@dataclass(frozen=True)
class DrawnLimits(Limits):
    """A sample must have a picture to learn."""

    def check(self, document: Document) -> None:
        super().check(document)
        if not any(turn.pictures for turn in document.turns if turn.role == "assistant"):
            raise Excluded("it has no picture in an assistant turn, so stage 2 learns nothing from it.")


class Documents:
    """number -> names and documents: `count` at a time, one after the other."""

    def __init__(self, run: Run, config: Stage2Config, mllm: Mllm, count: int) -> None:
        self.run, self.config, self.count = run, config, count
        self.samples: Samples | None = None
        self.shrunk: set[str] = set()  # names of documents with a picture larger than `max_side`
        if config.data:
            counter = token_counter(mllm.tokenizer, mllm.image_processor)
            limits = DrawnLimits(max_tokens=mllm.max_positions, count_tokens=counter)
            run.folder.mkdir(parents=True, exist_ok=True)
            self.samples = Samples(run, config.data, count, limits)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the documents depend on, for shards that outlive a run."""
        if self.samples is None:
            return {"families": self.config.families}
        return {"data": self.samples.mixture.recipe()["sources"]}

    def __call__(self, number: int) -> list[tuple[str, Document]]:
        if self.samples is not None:
            found = [(example.name, example.content) for example in self.samples(number)]
        else:
            found = self._drawn(number)
        for name, document in found:
            self._note_shrunk(name, document)
        return found

    def _drawn(self, number: int) -> list[tuple[str, Document]]:
        numbers = range(number * self.count, (number + 1) * self.count)
        cases = [drawn_case(rng_for(self.run.seed, "stage2", k), self.config.families) for k in numbers]
        return [(f"{case.family} {k}", case.document) for k, case in zip(numbers, cases, strict=True)]

    def _note_shrunk(self, name: str, document: Document) -> None:
        """Counts documents whose pictures are learnt smaller than they are; the first one is told at once."""
        limit = self.config.max_side
        large = [picture.size for picture in document.pictures if max(picture.size) > limit]
        if large and not self.shrunk:
            width, height = large[0]
            self.run.say(
                f"{name}: a picture of {width}x{height} pixels is made smaller, since max_side is {limit}; so are all "
                "that are larger. To learn them as they are, give a larger max_side."
            )
        if large:
            self.shrunk.add(name)

    def some(self) -> dict[str, Document]:
        """A document of each source of `data`, to look at what is answered to it."""
        return {} if self.samples is None else {name: some[0] for name, some in self.samples.some().items()}

    def summary(self) -> str:
        """What was passed over, and how many documents were made smaller; "" for neither."""
        smaller = (
            f"{len(self.shrunk):,} documents have pictures larger than max_side={self.config.max_side}, which are "
        )
        smaller = f"{smaller}made smaller." if self.shrunk else ""
        log = self.samples and self.samples.log
        if not log:
            return smaller
        bad, silent = len(log) - log.excluded, log.excluded
        parts = [f"{bad:,} bad samples"] if bad else []
        parts += [f"{silent:,} in which the assistant draws nothing"] if silent else []
        return f"{' and '.join(parts)} passed over, named in {self.samples.file}. {smaller}".rstrip()


class Corpus:
    """Prepared documents. A batch is about `frames` frames, of one shape or, packed, of any.

    Documents without any earlier picture come up `alone` times as often: there everything has to come from the words,
    and that is learnt last.
    """

    def __init__(
        self,
        documents: Sequence[Prepared],
        frames: int,
        alone: float = 1.0,
        packing: bool = False,
        attention: str = "frame_causal",
    ) -> None:
        """frames: clean and noisy ones together, as `attention` has them in a pass over a document."""
        self.frames, self.packing, self.attention = frames, packing, attention
        shapes: dict[tuple, list[Prepared]] = defaultdict(list)
        for document in documents:
            shapes[document.shape].append(document)
        self.shapes = list(shapes.values())
        self.weights = [len(each) * (alone if each[0].drawn[-1] == 0 else 1.0) for each in self.shapes]
        self.edges = list(accumulate(self.weights))

    def batch(self, step: int, rng: Random) -> list[Prepared]:
        """rng: of this step."""
        like = self._shape(rng)
        if not self.packing:
            return [rng.choice(like) for _ in range(max(1, round(self.frames / like[0].frames(self.attention))))]
        found = [rng.choice(like)]
        frames = found[0].frames(self.attention)
        while True:
            another = rng.choice(self._shape(rng))
            frames += another.frames(self.attention)
            if frames > self.frames:
                return found
            found.append(another)

    def _shape(self, rng: Random) -> list[Prepared]:
        return rng.choices(self.shapes, cum_weights=self.edges)[0]

    def read(self, documents: Sequence[Prepared]) -> list[Prepared]:
        return list(documents)


@dataclass(frozen=True)
class Unread:
    """A document whose latents and states are not known yet."""

    name: str
    document: Document


class Stream:
    """`documents(step)`, and of them only what this process learns from is read."""

    def __init__(self, documents: Named, reader: Reader) -> None:
        self.documents, self.reader = documents, reader

    def batch(self, step: int, rng: Random) -> list[Unread]:
        return [Unread(*each) for each in self.documents(step)]

    def read(self, documents: Sequence[Unread]) -> list[Prepared]:
        return self.reader([each.document for each in documents], [each.name for each in documents])


def packs(samples: Sequence[Sample], frames: int) -> list[list[Sample]]:
    """Parts of a step, in order: as many samples together as have at most `frames` frames (one at least)."""
    found: list[list[Sample]] = [[]]
    for sample in samples:
        if found[-1] and sum(each.frames for each in found[-1]) + sample.frames > frames:
            found.append([])
        found[-1].append(sample)
    return found
