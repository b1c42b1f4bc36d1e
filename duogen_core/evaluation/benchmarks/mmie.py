"""MMIE: some 20,000 stories, methods and problems with images; one model gives each answer one score from 0 to 6.

Source: github.com/Lillianwei-h/MMIE (eb0fd6e, `main.py`, MIT), data huggingface.co/datasets/MMIE/MMIE (on request).

requests     a list of {"id", "question": [{"text" or null, "image" or null}], "gt_answer": [the same]}; the id holds SA
             (situational analysis: stories), PBL (project-based learning: methods) or MSR (multi-step reasoning:
             problems). Names of images are relative to the file; a file that is to be scored is read, too
submission   data.json, the same with "answer": [{"text", "image"}] and "model", and images/ beside it with all images
             of questions and answers: `main.py --input_dir` is given the folder
results      eval_result.json: [{"id", "gpt_feedback": "… ### Score 4"}, …]
The figure is the mean score, of all and of each kind. A feedback without a number from 0 to 6 after ### Score is left
out. The judge sees the question's images, and of the answer's as many as make three with them and no text after the
third; a question with more than four images is left out by the scorer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import marked, reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    answered_by,
    id_of,
    list_of,
    new_file_name,
    paired,
    picture_beside,
    records,
    text_of,
    write_json,
    write_picture,
)

MAIN = "data.json"
PROMPT = """Score an answer that a model gave to a question. Both may hold images: a mark such as [Image 2] stands in the place of one, and the images follow in this order.

The question:
${question}

The answer:
${answer}
${known}
Look at each of these:
${criteria}
Then give one score for all of it, a whole number: 0 where nothing of the answer is of use, 3 where about half of these are met, 6 where all are. First say in two sentences what decided it."""  # noqa: E501
KNOWN = """
The right answer, as far as it is known:
${reference}
"""
CRITERIA = {
    "SA": """- The text is clear, free of mistakes, and reads as a story.
- The images are clear and detailed.
- Images and text belong together and add to one another.
- Places, people and what happens agree from start to end.
- The story has ideas of its own.
- All images have one style, and it suits the text. Be strict here.
- One point less where the answer does harm or spreads bad feelings.""",
    "PBL": """- The text is clear, free of mistakes and in an order that can be followed.
- The images are clear and help to picture the steps; the text can stand without them.
- Each image belongs to the step that it stands at.
- The method works, and every step says enough to be carried out.
- It is done with ideas of its own and keeps the reader with it.
- All images have one style, and it suits the text. Be strict here.
- One point less where the answer does harm or spreads bad feelings.""",
    "MSR": """- The words of the question were understood.
- The images of the question were understood.
- The steps to the answer can be followed.
- The steps are right, even if the result is not.
- The result is right.
- Nothing in it is wrong, and somebody who is new to it can follow.""",
}
SCHEMA = reply_schema({"score": whole(0, 6)}, 1000)


class MMIE(Benchmark):
    name = "mmie"
    title = "MMIE"
    source = "github.com/Lillianwei-h/MMIE, MIT; data huggingface.co/datasets/MMIE/MMIE, on request"
    metrics: ClassVar[Mapping[str, Metric]] = {"score": Metric(0, 6, "one score for text, images and how they fit")}

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            id = id_of(record, "id", where)
            if "question" not in record:
                raise DuoGenError(f"{where} has no question; expected a file of MMIE's requests.")
            kind = next((kind for kind in CRITERIA if kind in id), None)  # in the scorer's order
            if kind is None:
                raise DuoGenError(f"{where}: the id is {shown(repr(id)[:60])}; expected one with SA, PBL or MSR in it.")
            where = f"{where} (item {shown(id[:60])})"
            parts = _parts(list_of(record, "question", dict, where, "texts and images"), file.parent, where)
            if not parts:
                raise DuoGenError(f"{where} has an empty question; expected text or an image.")
            yield Item(id, Document().begin_turn("user", parts), {**record, "known": _known(record, where)}, kind)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "images").mkdir()
        entries = []
        taken: set[str] = set()
        for item, document in answers:
            stem = new_file_name(item.id, taken)
            question = _elements(item.prompt.last_turn.parts, out, f"images/{stem}-q")
            # The judge's model takes every <image> for the place of one, so none may stand in a text.
            given = [
                part if isinstance(part, Picture) else Text(part.text.replace("<image>", "< image >"))
                for part in item.parts(document)
            ]
            answer = _elements(given, out, f"images/{stem}-") or [{"text": None, "image": None}]
            entries.append({
                "id": item.id, "question": question, "answer": answer, "model": model,
                "gt_answer": item.record["known"],
            })  # fmt: skip
        write_json(out / MAIN, entries)
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        left = by_id(file, items)
        for where, record in records(file, "submission"):
            item = answered_by(record, "id", left, where)
            answer = record.get("answer")
            if isinstance(answer, str):
                record = {"answer": [{"text": answer, "image": None}]}
            parts = _parts(list_of(record, "answer", dict, where, "texts and images"), file.parent, where)
            yield item, item.prompt.begin_turn("assistant", parts)

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        scores = []
        count = 0
        for where, entry in records(file, "result of MMIE"):
            count += 1
            item = answered_by(entry, "id", left, where)
            said = text_of(entry, "gpt_feedback", where)
            number = re.search(r"### Score.*?(-?\d+(?:\.\d+)?)", said, re.DOTALL)
            # Rounded only when it is on the scale: a number of hundreds of digits is none that can be rounded.
            score = float(number.group(1)) if number else -1.0
            if -0.5 <= score <= 6.5:
                score = round(score)
                reason = said.partition("### Score")[0].replace("### Feedback", "").strip()
                scores.append(Score(item.id, item.category, {"score": float(score)}, {"score": reason}))
        if not count:
            raise DuoGenError(f"{file} has no answers; expected the file that MMIE's main.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        question, asked = marked(item.prompt.last_turn.parts)
        answer, given = marked(item.parts(document), 1 + len(asked))
        data = {"question": question, "answer": answer}
        known = item.record["known"][0]["text"] if item.category == "MSR" else None
        if known:
            data["reference"] = known
        prompt = PROMPT.replace("${known}", KNOWN if known else "").replace("${criteria}", CRITERIA[item.category])
        return [Ask("answer", prompt, data, SCHEMA, (*asked, *given))]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if "answer" not in said:
            return Score(item.id, item.category, {"score": None})
        reply = said["answer"]
        return Score(item.id, item.category, {"score": float(reply["score"])}, {"score": reply["reason"]})


def _parts(elements: Sequence[Mapping[str, Any]], folder: Path, where: str) -> list[Part]:
    parts: list[Part] = []
    for element in elements:
        if text := text_of(element, "text", where, default=""):
            parts.append(Text(text))
        if element.get("image") is not None:
            parts.append(picture_beside(folder, text_of(element, "image", where), where))
    return parts


def _elements(parts: Iterable[Part], out: Path, stem: str) -> list[dict[str, str | None]]:
    """Texts and pictures in their order, each picture with the text before it."""
    elements: list[dict[str, str | None]] = []
    for number, (text, picture) in enumerate(paired(parts), 1):
        name = f"{stem}{number}.png" if picture else None
        if picture:
            write_picture(picture, out / f"{stem}{number}.png")
        elements.append({"text": text or (None if picture else ""), "image": name})
    return elements


def _known(record: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The known answer, for the scorer: it needs a list with a text, which may be null."""
    # Of a file that is to be scored, `answer` is a model's.
    known = record.get("gt_answer" if "gt_answer" in record else "answer") or [{"text": None}]
    if isinstance(known, str):
        known = [{"text": known}]
    elements = list_of({"gt_answer": known}, "gt_answer", dict, where, "texts and images")
    return [{"text": text_of(one, "text", where, default="") or None, "image": one.get("image")} for one in elements]


BENCHMARK = MMIE
