"""InterleavedBench: 815 requests of ten kinds, half with images before them; a judge gives each answer five scores.

Source: huggingface.co/mqliu/InterleavedBench (Apache-2.0; interleaved_bench.json and zipped_images/), paper
arxiv.org/abs/2406.14643. The requests are as its card and programs that load it have them. Its scorer,
src/interleavedeval_gpt4o.py, could not be had where this was written: what it takes and what it writes was **not
seen**. The submission is the requests' own layout with our answers; adapt it where that script wants something else.

requests     [{"id", "task_name", "image": [name], "conversations": [{"from": "human", "value": "… <image> …"},
             {"from": "gpt", "value": the known answer}], …}]: the names are those of all <image> in their order, in the
             folder of the file or in zipped_images/ there (unzipped)
submission   predictions.json, the same with the answer in the place of the known one, "model", and images/ beside it
results      ours: [{"id", "text quality": 0 to 5, "perceptual quality", "image coherence", "text-image coherence",
             "helpfulness"}]; each may also be {"score", "reason"}
Each figure is the mean over all answers; overall is the mean of the five, as in the published table. Where the task is
to edit an image or to draw a given subject, there are no scores for text (the scorer writes 0, which is to be skipped).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, with_mean
from duogen_core.evaluation.benchmarks.asking import marked, object_schema, reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    answered_by,
    id_of,
    is_there,
    list_of,
    new_file_name,
    number_of,
    picture_beside,
    records,
    text_of,
    write_json,
    write_picture,
)

MAIN = "predictions.json"
UNZIPPED = "zipped_images"
IMAGES_ONLY = re.compile(r"edit|subject|dreambench|magicbrush", re.IGNORECASE)
ASPECTS = {
    "text quality": "The text is clear, right, without mistakes and to the point; it repeats nothing of the request.",
    "perceptual quality": "Each image looks natural and clean: no distortions, no seams, nothing broken.",
    "image coherence": "The images agree with one another and with those of the request: style, things, places.",
    "text-image coherence": "Each image shows what the text beside it says.",
    "helpfulness": "The answer does what the request asks, all of it, and is of use to the one who asked.",
}
OF_TEXT = ("text quality", "text-image coherence")
PROMPT = """Score the answer that a model gave to a request. Both may hold images: a mark such as [Image 2] stands in the place of one, and the images follow in this order.

The request:
${request}

The answer:
${answer}

Give a whole number for each: 5 where it is fulfilled without a fault, 3 where faults are plain, 1 where hardly anything is as it should be, and 0 where what it is about is not there at all (no text, no image). Say in one sentence what decided it.
${aspects}"""  # noqa: E501
ONE = reply_schema({"score": whole(0, 5)}, 400)


class InterleavedBench(Benchmark):
    name = "interleavedbench"
    title = "InterleavedBench"
    source = "huggingface.co/mqliu/InterleavedBench, Apache-2.0"
    metrics: ClassVar[Mapping[str, Metric]] = {name: Metric(0, 5, says) for name, says in ASPECTS.items()}

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            id = id_of(record, "id", where)
            if "conversations" not in record or "task_name" not in record:
                raise DuoGenError(f"{where} has no conversations or no task_name; expected interleaved_bench.json.")
            where = f"{where} (item {id[:60]})"
            value, names = _turn(record, 0, where)
            parts = _parts(value, names, file.parent, where)
            if not parts:
                raise DuoGenError(f"{where} has an empty request; expected text or an image.")
            prompt = Document().begin_turn("user", parts)
            yield Item(id, prompt, record, text_of(record, "task_name", where))

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "images").mkdir()
        entries = []
        taken: set[str] = set()
        for item, document in answers:
            stem = new_file_name(item.id, taken)
            asked, names = _value(item.prompt.last_turn.parts, out, f"images/{stem}-q")
            given, more = _value(item.parts(document), out, f"images/{stem}-")
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": given}]
            entries.append({**item.record, "image": names + more, "conversations": turns, "model": model})
        write_json(out / MAIN, entries)
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        left = by_id(file, items)
        for where, record in records(file, "submission"):
            item = answered_by(record, "id", left, where)
            value, names = _turn(record, 1, where)
            value += "<image>" * (len(names) - value.count("<image>"))  # those that it does not place come at its end
            yield item, item.prompt.begin_turn("assistant", _parts(value, names, file.parent, where))

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        scores = []
        for where, entry in records(file, "result of InterleavedBench"):
            item = answered_by(entry, "id", left, where)
            values: dict[str, float | None] = {}
            reasons = {}
            for name in ASPECTS:
                if not _applies(name, item):
                    values[name] = None
                elif isinstance(found := entry.get(name), dict):
                    values[name] = number_of(found, "score", 0, 5, f"{where}, {name}")
                    reasons[name] = text_of(found, "reason", f"{where}, {name}", default="")
                else:
                    values[name] = number_of(entry, name, 0, 5, where)
            scores.append(Score(item.id, item.category, values, reasons))
        if not scores:
            raise DuoGenError(f"{file} has no scores; expected a list of ids with five scores each.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        request, asked = marked(item.prompt.last_turn.parts)
        answer, given = marked(item.parts(document), 1 + len(asked))
        aspects = [name for name in ASPECTS if _applies(name, item)]
        prompt = PROMPT.replace("${aspects}", "\n".join(f"- {name}: {ASPECTS[name]}" for name in aspects))
        schema = object_schema(dict.fromkeys(aspects, ONE))
        return [Ask("answer", prompt, {"request": request, "answer": answer}, schema, (*asked, *given), 1500)]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        scores = said.get("answer", {})
        values = {name: float(scores[name]["score"]) if name in scores else None for name in ASPECTS}
        return Score(item.id, item.category, values, {name: one["reason"] for name, one in scores.items()})

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        return with_mean("overall", ASPECTS, super().summary(scores))


def _applies(aspect: str, item: Item) -> bool:
    return aspect not in OF_TEXT or not IMAGES_ONLY.search(item.category)


def _turn(record: Mapping[str, Any], number: int, where: str) -> tuple[str, list[str]]:
    """The text of the request (0) or of the answer (1), and the names of its images and of all after them."""
    turns = list_of(record, "conversations", dict, where, "the request and the answer")
    if len(turns) <= number:
        raise DuoGenError(f"{where}: conversations has {len(turns)} entries; expected the request and the answer.")
    values = [text_of(turn, "value", where) for turn in turns[: number + 1]]
    names = list_of({"image": record.get("image") or []}, "image", str, where, "names of files")
    before = sum(value.count("<image>") for value in values[:number])
    if before + values[number].count("<image>") > len(names):
        raise DuoGenError(f"{where}: there are more <image> than the {len(names)} names in image.")
    return values[number], names[before:]


def _parts(value: str, names: Sequence[str], folder: Path, where: str) -> list[Part]:
    parts: list[Part] = []
    for number, text in enumerate(value.replace("<BEGIN>", "").split("<image>")):
        if number:
            name = names[number - 1]
            unzipped = folder / UNZIPPED
            parts.append(picture_beside(unzipped if is_there(unzipped / name) else folder, name, where))
        if text.strip():
            parts.append(Text(text.strip() if number == 0 else text.rstrip()))
    return parts


def _value(parts: Iterable[Part], out: Path, stem: str) -> tuple[str, list[str]]:
    """Texts with <image> in the places of the pictures, which are written; an <image> of a text's own is broken up."""
    texts: list[str] = []
    names: list[str] = []
    for part in parts:
        if isinstance(part, Picture):
            names.append(f"{stem}{len(names) + 1}.png")
            write_picture(part, out / names[-1])
            texts.append("<image>")
        else:
            texts.append(part.text.replace("<image>", "< image >"))
    return "".join(texts), names


BENCHMARK = InterleavedBench
