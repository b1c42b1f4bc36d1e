"""UEval: 1,000 questions whose answer is text and pictures, each with rubrics that a judge checks one by one.

Source: github.com/zlab-princeton/UEval (3a5b5ea, `ueval_eval.py`, MIT),
data huggingface.co/datasets/zlab-princeton/UEval.

requests     {"id", "prompt", "task", "question_type", "text_rubrics": [text], "image_rubrics": [text]}, as Parquet or
             JSON; a rubric may also be {"criterion": text}
submission   submission.json: [{"id", "text_answer", "image_answer": ["images/1-1.png", …]}]; the scorer looks for the
             pictures from the folder it is started in, and goes on without those it does not find: start it in this one
results      {"items": [{"id", "text_results": [{"criterion", "criteria_met", "explanation"}], "image_results",
             "text_score": {"rate"}, "image_score"}], "summary": {"text_avg_rate", "image_avg_rate"}}
A rate is the share of an answer's rubrics that are met; "not sure" is not met. The overall figure is the mean of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, with_mean
from duogen_core.evaluation.benchmarks.asking import reply_schema
from duogen_core.evaluation.benchmarks.reading import (
    answered_by,
    field_of,
    id_of,
    list_of,
    new_file_name,
    number_of,
    picture_beside,
    records,
    text_of,
    write_json,
    write_pictures,
)
from duogen_core.files import read_json

MAIN = "submission.json"
PROMPT = """Check one criterion of an answer to a question.

The question:
${question}

The text of the answer:
${answer}

The criterion:
${criterion}

${seen}
- met: "yes" if all of the criterion is fulfilled, "no" if anything of it is missing or wrong, "unsure" if what you see does not let you decide.
- reason: one sentence that says what decided it."""  # noqa: E501
ALONE = ("space", "textbook", "diagram", "paper")  # tasks whose images the scorer has judged without the text
OF_TEXT = "Judge the text of the answer alone."
OF_IMAGES = (
    "Judge the images of the answer, which follow. Words that are drawn into an image do not stand for what should be "
    "seen in it. Where the criterion compares an image with a step of the text, the step's main action is enough."
)
NO_IMAGES = "The answer has no images: what the criterion asks of images is not met."
SCHEMA = reply_schema({"met": {"enum": ["yes", "no", "unsure"]}})


class UEval(Benchmark):
    name = "ueval"
    title = "UEval"
    source = "github.com/zlab-princeton/UEval, MIT; data huggingface.co/datasets/zlab-princeton/UEval"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "text": Metric(0, 1, "share of the rubrics for the text that are met"),
        "image": Metric(0, 1, "share of the rubrics for the images that are met"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            if "text_rubrics" not in record and "image_rubrics" not in record:
                raise DuoGenError(f"{where} has no rubrics; expected a file of UEval's requests.")
            rubrics = {kind: _rubrics(record, f"{kind}_rubrics", where) for kind in ("text", "image")}
            prompt = Document().begin_turn("user", [Text(text_of(record, "prompt", where))])
            category = text_of(record, "task", where, default="") or text_of(record, "task_type", where, default="")
            yield Item(id_of(record, "id", where), prompt, {**record, "rubrics": rubrics}, category)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "images").mkdir()
        entries = []
        taken: set[str] = set()
        for item, document in answers:
            names = write_pictures(item.pictures(document), out, f"images/{new_file_name(item.id, taken)}")
            entries.append({"id": item.id, "text_answer": item.text(document), "image_answer": names})
        write_json(out / MAIN, entries)
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        left = by_id(file, items)
        for where, record in records(file, "submission"):
            item = answered_by(record, "id", left, where)
            parts: list[Part] = []
            if text := text_of(record, "text_answer", where, default=""):
                parts.append(Text(text))
            names = record.get("image_answer") or []  # the scorer takes one name for a list of one, and null for none
            listed = {"image_answer": [names] if isinstance(names, str) else names}
            names = list_of(listed, "image_answer", str, where, "names")
            parts += [picture_beside(file.parent, name, where) for name in names]
            yield item, item.prompt.begin_turn("assistant", parts)

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        value = read_json(file, "result of UEval", limit=1 << 30)
        entries = value.get("items") if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise DuoGenError(f"{file} has no items; expected the file that UEval's ueval_eval.py writes.")
        scores = []
        for number, entry in enumerate(entries, 1):
            where = f"{file}, item {number}"
            if not isinstance(entry, dict):
                raise DuoGenError(f"{where} is {shown(repr(entry)[:60])}; expected a JSON object.")
            item = answered_by(entry, "id", left, where)
            values: dict[str, float | None] = {}
            reasons = {}
            for kind in ("text", "image"):
                found = field_of(entry, f"{kind}_score", dict, where, "the score of an item")
                values[kind] = number_of(found, "rate", 0, 1, f"{where}, {kind}_score", missing=True)
                rubrics = list_of(entry, f"{kind}_results", dict, where, "judged criteria")
                unmet = [str(one.get("explanation") or "") for one in rubrics if one.get("criteria_met") is not True]
                reasons[kind] = " ".join(reason for reason in unmet if reason)
            scores.append(Score(item.id, item.category, values, reasons))
        if not scores:
            raise DuoGenError(f"{file} has no scores; expected the file that UEval's ueval_eval.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        pictures = tuple((f"Image {n}:", picture) for n, picture in enumerate(item.pictures(document), 1))
        asked = {"question": item.prompt.text, "answer": item.text(document) or "(no text)"}
        found = []
        for kind, shown_ in (("text", ()), ("image", pictures)):
            seen = OF_TEXT if kind == "text" else OF_IMAGES if pictures else NO_IMAGES
            for number, criterion in enumerate(item.record["rubrics"][kind], 1):
                data = {**asked, "criterion": criterion}
                if kind == "image" and item.category.strip().lower() in ALONE:
                    data["answer"] = "(not shown: the images are to stand for themselves)"
                found.append(Ask(f"{kind} {number}", PROMPT.replace("${seen}", seen), data, SCHEMA, shown_))
        return found

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        values: dict[str, float | None] = {}
        reasons = {}
        for kind in ("text", "image"):
            replies = [said[key] for key in said if key.startswith(f"{kind} ")]
            values[kind] = sum(reply["met"] == "yes" for reply in replies) / len(replies) if replies else None
            reasons[kind] = " ".join(reply["reason"] for reply in replies if reply["met"] != "yes")
        return Score(item.id, item.category, values, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        return with_mean("overall", ("text", "image"), super().summary(scores))


def _rubrics(record: Mapping[str, Any], name: str, where: str) -> list[str]:
    found = []
    for rubric in list_of({name: record.get(name) or []}, name, object, where, "rubrics"):
        text = rubric.get("criterion") if isinstance(rubric, dict) else rubric
        if not isinstance(text, str) or not text.strip():
            raise DuoGenError(f"{where}: {name} has {shown(repr(rubric)[:60])}; expected texts.")
        found.append(text)
    return found


BENCHMARK = UEval
