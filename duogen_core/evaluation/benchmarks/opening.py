"""OpenING: 2,160 open requests of 56 kinds, answered with text and images; a judge gives each answer seven scores.

Source: github.com/LanceZPF/OpenING (56b663b, no licence file; data: `OpenING-benchmark/`, its images on request).

requests     test_data.jsonl: {"total_uid", "meta_task_name", "subtask_name", …, "conversations": [{"input": [{"text":
             "<BEGIN> … <image> …", "image": "./images/<subtask>/46-i-1.jpg" or null}]}, {"output": [the same]}]}; the
             image is where its text says <image>, else after it
submission   MODEL_output/<total_uid>.json, one for each request: the same object with the model's output, every image
             ("<total_uid>-o-<k>.jpg") beside it. `GPT_score_A.py --output_dir` is given the folder that holds
             MODEL_output, and so are its pairwise mode, GPT_judge_AB.py and IntJudge_judge_AB.py, started in it
results      gpt-score_results_new.json: [{"instance_id" or "data_id", "model": {"id"?, "name"}, "score":
             {"Correctness": {"Score": 0 to 10, "Justification"}, …}}]; a score is null or false
             where the judge could not be asked
Each figure is the mean over the answers that have all scores; Overall is the mean of the seven figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, with_mean
from duogen_core.evaluation.benchmarks.asking import marked, object_schema, whole, words
from duogen_core.evaluation.benchmarks.reading import (
    field_of,
    file_name,
    list_of,
    number_of,
    paired,
    picture_beside,
    records,
    text_of,
    write_json,
    write_picture,
)
from duogen_core.files import read_json

ENDING = "_output"  # by which the scorer knows a model's folder
PROMPT = """Score the answer that a model gave to a request. Both may hold images: a mark such as [Image 2] stands in the place of one, and the images follow in this order.

The request:
${request}

The answer:
${answer}

Give a whole number from 0 to 10 for each of the seven, and say in one sentence what decided it: up to 2 where it fails badly, up to 5 where faults are plain, up to 8 where it is good and could be better, 9 or 10 where nothing is left to wish for.
- Correctness: what the text says and the images show is true, makes sense and is what was asked for. What is not there at all counts as wrong.
- Image-Text Coherency: each image shows what the text around it speaks of.
- Multi-step Consistency: from step to step the style and whoever or whatever appears stay the same, and the steps follow from one another.
- Content Quality: the images are clear and look real, the language is right.
- Human Preference Alignment: nothing in it offends or harms, and the images please.
- Completeness: nothing that the request asks for is left out.
- Content Richness: the images differ from one another as far as they should, and the text goes into detail that is worth reading."""  # noqa: E501
METRICS = {
    "Correctness": "text and images are right and are what was asked for",
    "Image-Text Coherency": "images show what the text around them says",
    "Multi-step Consistency": "style and things stay the same from step to step",
    "Content Quality": "clear images, good language",
    "Human Preference Alignment": "nothing unwanted, pleasing images",
    "Completeness": "nothing left out",
    "Content Richness": "various images, detailed text",
}
SCHEMA = object_schema(dict.fromkeys(METRICS, object_schema({"Justification": words(400), "Score": whole(0, 10)})))


class OpenING(Benchmark):
    name = "opening"
    title = "OpenING"
    source = "github.com/LanceZPF/OpenING, no licence given"
    metrics: ClassVar[Mapping[str, Metric]] = {name: Metric(0, 10, says) for name, says in METRICS.items()}

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            if "conversations" not in record or "total_uid" not in record:
                raise DuoGenError(f"{where} has no total_uid or no conversations; expected OpenING's test_data.jsonl.")
            id = text_of(record, "total_uid", where)
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", id):  # the scorer takes what is before the first dot
                raise DuoGenError(f"{where}: total_uid is {shown(repr(id)[:60])}; expected letters and digits.")
            where = f"{where} (item {id})"
            parts: list[Part] = []
            for element in _elements(record, 0, "input", where):
                text = text_of(element, "text", where).replace("<BEGIN>", "")
                before, _, after = text.partition("<image>")
                parts += _text(before)
                if element.get("image") is not None:
                    parts.append(picture_beside(file.parent, text_of(element, "image", where), where))
                parts += _text(after.replace("<image>", ""))
            if not parts:
                raise DuoGenError(f"{where} has an empty input; expected text or an image.")
            category = text_of(record, "meta_task_name", where, default="")
            yield Item(id, Document().begin_turn("user", parts), record, category)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        # The scorer cuts every "_output" out of the folder's name and calls the rest the model.
        folder = out / (file_name(model).replace(ENDING, "") + ENDING)
        folder.mkdir()
        for item, document in answers:
            output = []
            for number, (text, picture) in enumerate(paired(item.parts(document))):
                name = f"{item.id}-o-{number}.jpg"
                if picture:
                    write_picture(picture, folder / name)
                output.append({"text": text, "image": name if picture else None})
            asked = {"input": item.record["conversations"][0]["input"]}
            write_json(folder / f"{item.id}.json", {**item.record, "conversations": [asked, {"output": output}]})
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        folder = _model_folder(place)
        known = by_id(folder, items)
        files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.json"))}
        if foreign := sorted(set(files) - set(known)):
            raise DuoGenError(f"{folder} answers {shown(foreign[0][:80])!r}, which no request has.")
        for item in items:
            if item.id not in files:
                continue
            where = str(files[item.id])
            record = read_json(files[item.id], "answer of OpenING")
            if not isinstance(record, dict):
                raise DuoGenError(f"{where} is no JSON object; expected a request of OpenING with the model's output.")
            parts: list[Part] = []
            for element in _elements(record, 1, "output", where):
                text = text_of(element, "text", where)
                parts += [Text(text)] if text else []
                if element.get("image") is not None:  # the scorer looks in this folder, whatever folder is named
                    parts.append(picture_beside(folder, text_of(element, "image", where).split("/")[-1], where))
            yield item, item.prompt.begin_turn("assistant", parts)

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        known = by_id(file, items)
        found: dict[str, list[dict[str, Any]]] = {}
        models = set()
        for where, entry in records(file, "result of OpenING"):
            models.add(text_of(field_of(entry, "model", dict, where, "the model that was scored"), "name", where))
            if len(models) > 1:
                names = " and ".join(shown(name[:40]) for name in sorted(models))
                raise DuoGenError(f"{where}: the file has scores of {names}; keep the entries of one model.")
            id = text_of(entry, "instance_id" if "instance_id" in entry else "data_id", where)
            if id not in known:
                raise DuoGenError(f"{where} scores {shown(id[:80])!r}, which no request has.")
            if not entry.get("score"):
                continue
            said = field_of(entry, "score", dict, where, "seven scores")
            said = said["scores"] if isinstance(said.get("scores"), dict) else said  # a judge's own wrapping
            each = {name: field_of(said, name, dict, where, "a score and its justification") for name in METRICS}
            # The scorer's summary leaves an answer out as a whole, if one of its scores is null.
            if any(one.get("Score") is None for one in each.values()):
                continue
            for name, one in each.items():
                number_of(one, "Score", 0, 10, f"{where}, {name}")
                text_of(one, "Justification", where, default="")
            found.setdefault(id, []).append(each)
        if not models:
            raise DuoGenError(f"{file} has no scores; expected the file that OpenING's GPT_score_A.py writes.")
        scores = []
        for id, times in found.items():  # the pairwise mode scores an answer again for every pair that it is in
            values = {name: sum(each[name]["Score"] for each in times) / len(times) for name in METRICS}
            reasons = {name: times[-1][name].get("Justification") or "" for name in METRICS}
            scores.append(Score(id, known[id].category, values, reasons, {"times": len(times)}))
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        request, asked = marked(item.prompt.last_turn.parts)
        answer, given = marked(item.parts(document), 1 + len(asked))
        data = {"request": request, "answer": answer}
        return [Ask("answer", PROMPT, data, SCHEMA, (*asked, *given), max_tokens=2000)]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        scores = said.get("answer", {})
        values = {name: float(scores[name]["Score"]) if name in scores else None for name in METRICS}
        reasons = {name: scores[name]["Justification"] for name in METRICS if name in scores}
        return Score(item.id, item.category, values, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        # The scorer's figures count an answer as often as it was scored.
        figures = super().summary(score for score in scores for _ in range(score.detail.get("times", 1)))
        return with_mean("Overall", METRICS, figures)


def _elements(record: Mapping[str, Any], turn: int, name: str, where: str) -> list[Any]:
    turns = list_of(record, "conversations", dict, where, "the input and the output")
    if len(turns) <= turn:
        raise DuoGenError(f"{where}: conversations has {len(turns)} entries; expected the input and the output.")
    return list_of(turns[turn], name, dict, where, "texts and images")


def _text(text: str) -> list[Part]:
    return [Text(text.strip())] if text.strip() else []


def _model_folder(place: Path) -> Path:
    """The folder MODEL_output: itself, or the only one in `place`."""
    place = place.parent if place.is_file() else place
    if not place.is_dir():
        raise DuoGenError(f"The submission {place} does not exist; check the path.")
    folders = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name.endswith(ENDING)]
    if place.name.endswith(ENDING) and not folders:
        return place
    if len(folders) != 1:
        raise DuoGenError(f"{place} has {len(folders)} folders MODEL{ENDING}; expected one: give the folder itself.")
    return folders[0]


BENCHMARK = OpenING
