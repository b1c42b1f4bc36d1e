"""Uni-MMMU: images that help to reason, and reasoning that helps to draw. Six tasks: geometry, jigsaw, science, code
(SVG), mazes and sliding puzzles; the last two are checked without any judge.

Source: github.com/Vchitect/Uni-MMMU (`eval_ummmu.py`, commit b5200b2, no licence), data
huggingface.co/datasets/Vchitect/Uni-MMMU-Eval, unpacked as `data/`.

requests     the folder data/, or one of the files in it: unimmmu_requests
submission   outputs/MODEL/TASK/CASE/: model_text.txt, model_image_01.png, …; mazes and sliding puzzles cand_01/ with
             an image a move, and result.json that says where the scorer finds the puzzle. outputs/ belongs beside
             data/, and eval_ummmu.py is started there with base_path "."
results      the folder eval/MODEL: unimmmu_results
The judge's questions are in words of ours, as the prompts are: the official ones are in code without a licence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Text
from duogen_core.document.reading import is_folder
from duogen_core.errors import DuoGenError, MissingPackage, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks import unimmmu_puzzles as puzzles
from duogen_core.evaluation.benchmarks.asking import reply_schema
from duogen_core.evaluation.benchmarks.reading import (
    file_name,
    is_there,
    picture_beside,
    write_json,
    write_picture,
)
from duogen_core.evaluation.benchmarks.unimmmu_requests import (
    FILES,
    picture_of,
    requests_of,
    tasks_in,
    text_file,
)
from duogen_core.evaluation.benchmarks.unimmmu_results import RESULTS, best_of, results_of
from duogen_core.evaluation.checks import ssim
from duogen_core.files import write_atomically

PUZZLES = ("maze", "sliding")
SEPARATOR = "\n\n\n-----\n\n\n"  # the scorer takes what follows for another candidate
OVERLAY_JUDGE = """Someone was asked to add lines to a figure of geometry.

The lines that had to be drawn:
${lines}

The first image is the figure, the second shows it with the right lines, the third is the one to judge.
- overlay_ok: 1 if every one of these lines is there between the right points or in the right direction, 0 otherwise. Small shifts and extra marks that change no meaning do no harm.
- reason: one sentence that says what decided it."""  # noqa: E501
SOLUTION_JUDGE = """Check a solution of a geometry problem.

The problem (${kind}):
${problem}

A right solution, for comparison; there may be others:
${solution}

The solution to check:
${answer}

- reasoning_rigorous: 1 if every step follows and nothing false is claimed, 0 otherwise.
- conclusion_correct: for a calculation 1 if the final number is the right one, however it is written; for a proof 1 if the claim is indeed shown; 0 otherwise.
- reason: one sentence that says what decided it."""  # noqa: E501
SCIENCE_TEXT_JUDGE = """Check an explanation of what follows from an event.

The event:
${condition}

How it ends, for comparison:
${solution}

The explanation to check:
${answer}

- reasoning_correct: 1 if it names and applies the causes that lead from the event to the end, with no false law, 0 otherwise.
- result_correct: 1 if the end that it describes is what science and everyday knowledge let us expect, as in the comparison or as sound as that, 0 otherwise.
- reason: one sentence that says what decided it."""  # noqa: E501
SCIENCE_IMAGE_JUDGE = """The first image shows how things were, the second is to be judged: it should show how they are after an event.

The event:
${condition}

How it ends:
${solution}

- image_correct: 1 if the second image shows this end without contradiction, and the scene, the viewpoint and whatever did not change are still the same, 0 otherwise. The style does not matter.
- reason: one sentence that says what decided it."""  # noqa: E501
CODE_IMAGE_JUDGE = """Compare two drawings of circles, polygons, lines and curves. The first image is the right one, the second is to be judged.
- shape_color_accuracy: 5 if all shapes are there with the right number of sides and a colour of the same family; 4 one or two small faults; 3 one shape missing, too many or of the wrong kind; 2 several such faults; 1 little is alike; 0 nothing is. Words or shapes that do not belong there cost points.
- position_accuracy: 5 if order, alignment, spacing, rotation, place on the canvas and what covers what are the same; 4 small shifts; 3 some relations broken; 2 many; 1 few hold; 0 none.
- reason: one sentence that says what decided it."""  # noqa: E501
CODE_TEXT_JUDGE = """The image is the right drawing. Does this description say the same?

The description:
${answer}

- text_semantic_match: 1 if kinds and numbers of shapes, their families of colours and how they lie to one another are all right, 0 otherwise.
- reason: one sentence that says what decided it."""  # noqa: E501


MET, GRADE = {"enum": [0, 1]}, {"enum": [0, 1, 2, 3, 4, 5]}


class UniMMMU(Benchmark):
    name = "unimmmu"
    title = "Uni-MMMU"
    source = "github.com/Vchitect/Uni-MMMU, no licence; data huggingface.co/datasets/Vchitect/Uni-MMMU-Eval"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "math image": Metric(0, 1, "the lines that had to be drawn are there"),
        "math text": Metric(0, 1, "the solution is rigorous and its conclusion right"),
        "jigsaw image": Metric(-1, 1, "1 less DreamSim's distance to both whole pictures (the official scorer alone)"),
        "jigsaw likeness": Metric(0, 1, "SSIM with both whole pictures, 0 unless two were drawn (ours)", "check"),
        "jigsaw text": Metric(0, 1, "the right candidate was chosen", "check"),
        "science reasoning": Metric(0, 1, "the explanation names the right causes"),
        "science result": Metric(0, 1, "the end it describes is right"),
        "science image": Metric(0, 1, "the image shows the right end of the same scene"),
        "code text": Metric(0, 1, "the description fits the drawing"),
        "code shapes": Metric(0, 5, "shapes and colours of the best image"),
        "code positions": Metric(0, 5, "positions in the best image"),
        **{
            f"{task} {name}": Metric(0, 1, says, "check")
            for task in PUZZLES
            for name, says in (
                ("text", "share of moves that are the solution's at their place"),
                ("text exact", "all moves are the solution's"),
                ("image", "share of steps whose image shows exactly the right state"),
                ("image exact", "an image for every step, all right"),
                ("solved", "the moves are possible and lead to the goal, whichever way (ours)"),
            )
        },
        "maze readable": Metric(0, 1, "share of images that show this very maze with one dot and one goal", "check"),
    }

    # ---- requests

    def items(self, file: Path) -> Iterator[Item]:
        data, tasks = tasks_in(file)
        for task in tasks:
            yield from requests_of(task, data)

    # ---- submission

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        base = out / "outputs" / file_name(model)
        base.mkdir(parents=True)
        listed = []
        for item, document in answers:
            task = item.category
            folder = base / item.id
            folder.mkdir(parents=True)
            text = item.text(document)
            while SEPARATOR in text:
                text = text.replace(SEPARATOR, "\n\n-----\n\n")
            write_atomically(folder / "model_text.txt", text.encode("utf-8"))
            for number, picture in enumerate(item.pictures(document), 1):
                if task in PUZZLES:
                    stem = Path(item.record["first"]).stem
                    name = f"cand_01/{stem}_step_{number:04d}.png"
                else:
                    name = f"model_image_{number:02d}.png"
                (folder / name).parent.mkdir(exist_ok=True)
                write_picture(picture, folder / name)
            case = item.id.split("/")[1]
            if task == "jigsaw":
                listed.append({"id": case, "status": "ok"})
            elif task == "code":
                entry = {"id": case, "svg": item.record["svg"], "png": item.record.get("png") or ""}
                write_json(folder / "result.json", entry)
            elif task in PUZZLES:
                (folder / "cand_01").mkdir(exist_ok=True)  # without it, nothing drawn would be nothing scored
                key = {"maze": "step0", "sliding": "init_png"}[task]
                write_json(folder / "result.json", {"id": case, key: f"data/{item.record['first']}"})
        if listed:  # the scorer takes the jigsaws from here
            write_json(base / "jigsaw" / "summary.json", {"per_item": listed})
        return base

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        base = _submission(place)
        found = by_id(base, items)
        for task in {item.category for item in items}:
            for folder in sorted(base.glob(f"{task}/*/")):
                if f"{task}/{folder.name}" not in found:
                    raise DuoGenError(
                        f"{folder} answers a request that is not there; check the requests, or remove it."
                    )
        for item in items:
            folder = base / item.id
            if not folder.is_dir():
                continue
            where = f"{base}, {item.id}"
            pattern = "cand_01/*.*" if item.category in PUZZLES else "model_image_*.*"
            names = sorted(file.relative_to(base).as_posix() for file in folder.glob(pattern))
            pictures: list[Part] = [picture_beside(base, name, where) for name in names]
            text = ""
            if (folder / "model_text.txt").exists():
                text = text_file(base, f"{item.id}/model_text.txt", where).split(SEPARATOR)[0]
            texts: list[Part] = [Text(text)] if text else []
            parts = texts + pictures if item.category in ("science", "code") else pictures + texts
            yield item, item.prompt.begin_turn("assistant", parts)

    # ---- scores

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        if not is_folder(file):
            raise DuoGenError(f"{file} is no folder; expected eval/MODEL, which Uni-MMMU's eval_ummmu.py writes.")
        left, tasks = by_id(file, items), {item.category for item in items}
        scores = []
        for task, name in RESULTS.items():
            place = file / task / name
            for score in results_of(task, place) if task in tasks and is_there(place) else ():
                if left.pop(score.id, None) is not None:
                    scores.append(score)
                elif task != "science":  # whose scorer counts samples, too, that nothing can be asked of
                    raise DuoGenError(
                        f"{place} scores {shown(score.id[:80])!r}, which no request has, or an earlier entry "
                        "scores, too."
                    )
        if not scores:
            raise DuoGenError(f"{file} has no results of these requests; expected the folder eval/MODEL.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        record = item.record
        answer = item.text(document) or "(no text)"
        pictures = item.pictures(document)
        if item.category == "math":
            data = {
                "kind": "a calculation" if record["is_calculation"] else "a proof",
                "problem": record["problem"],
                "solution": record["solution"],
                "answer": answer,
            }
            schema = reply_schema({"reasoning_rigorous": MET, "conclusion_correct": MET})
            found = [Ask("text", SOLUTION_JUDGE, data, schema)]
            if pictures:  # the scorer, too, looks at the first one alone
                shown_ = (
                    ("The figure:", picture_of(record, record["figure"])),
                    ("With the right lines:", picture_of(record, record["overlay"])),
                    ("To judge:", pictures[0]),
                )
                lines = {"lines": record["lines"]}
                found.append(Ask("image", OVERLAY_JUDGE, lines, reply_schema({"overlay_ok": MET}), shown_))
            return found
        if item.category == "science":
            data = {"condition": record["input_prompt"], "solution": record.get("output_prompt") or "(not given)"}
            schema = reply_schema({"reasoning_correct": MET, "result_correct": MET})
            found = [Ask("text", SCIENCE_TEXT_JUDGE, {**data, "answer": answer}, schema)]
            if pictures:
                shown_ = (("Before:", picture_of(record, record["image"])), ("To judge:", pictures[0]))
                found.append(Ask("image", SCIENCE_IMAGE_JUDGE, data, reply_schema({"image_correct": MET}), shown_))
            return found
        if item.category == "code" and record.get("png"):
            right = picture_of(record, record["png"])
            summary = {"answer": _summary(answer) or "(no description)"}
            schema = reply_schema({"text_semantic_match": MET})
            found = [Ask("text", CODE_TEXT_JUDGE, summary, schema, (("The right drawing:", right),))]
            schema = reply_schema({"shape_color_accuracy": GRADE, "position_accuracy": GRADE})
            for number, picture in enumerate(pictures, 1):
                shown_ = (("The right drawing:", right), ("To judge:", picture))
                found.append(Ask(f"image {number}", CODE_IMAGE_JUDGE, {}, schema, shown_))
            return found
        return []

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        task = item.category
        values: dict[str, float | None] = {}
        if task in PUZZLES:
            values = _puzzle_values(item, document)
        elif task == "jigsaw":
            values = _jigsaw_values(item, document)
        elif said and task == "math":
            text = said["text"]
            values["math text"] = float(text["reasoning_rigorous"] == 1 == text["conclusion_correct"])
            values["math image"] = float(said["image"]["overlay_ok"]) if "image" in said else 0.0
        elif said and task == "science":
            values["science reasoning"] = float(said["text"]["reasoning_correct"])
            values["science result"] = float(said["text"]["result_correct"])
            values["science image"] = float(said["image"]["image_correct"]) if "image" in said else 0.0
        elif said and task == "code":
            # An answer without a description is wrong, whatever a judge says of nothing.
            described = bool(_summary(item.text(document)))
            values["code text"] = float(said["text"]["text_semantic_match"]) if described else 0.0
            images = [reply for key, reply in said.items() if key.startswith("image ")]
            values["code shapes"], values["code positions"] = best_of(images)
        reasons = {f"{task} {key}": reply["reason"] for key, reply in said.items()}
        return Score(item.id, task, values, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """The means of every metric; each belongs to one task. Several candidates of a puzzle count as so many."""
        sums: dict[str, list[float]] = {}
        for score in scores:
            for name, value in score.values.items():
                if value is not None:
                    sums.setdefault(name, []).extend([value] * score.detail.get("candidates", 1))
        return {name: sum(sums[name]) / len(sums[name]) for name in self.metrics if name in sums}


def _submission(place: Path) -> Path:
    """outputs/MODEL, given itself, the folder of it, or one above."""
    for base in (place, *sorted(place.glob("outputs/*/")), *sorted(place.glob("*/"))):
        if any((base / task).is_dir() for task in FILES):
            return base
    raise DuoGenError(f"{place} has none of the folders {', '.join(FILES)}; expected outputs/MODEL of Uni-MMMU.")


def _summary(text: str) -> str:
    found = re.search(r"<RENDER_SUMMARY>\s*(.*?)\s*</RENDER_SUMMARY>", text, re.IGNORECASE | re.DOTALL)
    return found[1].strip() if found else ""


def _puzzle_values(item: Item, document: Document) -> dict[str, float | None]:
    record, data = item.record, Path(item.record["data"])
    moves = puzzles.moves_in(item.text(document))
    images = [picture.pixels for picture in item.pictures(document)]
    first = picture_beside(data, record["first"], item.id).pixels
    if item.category == "maze":
        found = puzzles.maze_scores(first, images, moves, record["moves"])
    else:
        after = [picture_beside(data, name, item.id).pixels for name in record["after"]]
        found = puzzles.sliding_scores(first, after, images, moves, record["moves"])
    return {f"{item.category} {name}": value for name, value in found.items()}


def _jigsaw_values(item: Item, document: Document) -> dict[str, float | None]:
    found = re.search(
        r"<FINAL_ANSWER_JSON>\s*(\{.*?\})\s*</FINAL_ANSWER_JSON>", item.text(document), re.IGNORECASE | re.DOTALL
    )
    try:
        choice = json.loads(found[1]).get("choice") if found else None
    except (ValueError, RecursionError):
        choice = None
    likeness: float | None = 0.0
    pictures = item.pictures(document)
    if len(pictures) == 2:
        wholes = [picture_of(item.record, name) for name in item.record["wholes"]]
        try:
            likeness = max(0.0, sum(ssim(whole, one) for whole, one in zip(wholes, pictures)) / 2)
        except MissingPackage:  # nothing else needs it here
            likeness = None
    right = choice in (0, 1) and choice == item.record["label"]
    return {"jigsaw text": float(right), "jigsaw likeness": likeness}


BENCHMARK = UniMMMU
