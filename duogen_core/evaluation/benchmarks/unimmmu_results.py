"""What Uni-MMMU's scorer writes, eval_ummmu.py -> a `Score` for each case that it has scored.

    for task, name in RESULTS.items(): results_of(task, folder / task / name)

math, science, code   eval_details.json, a list: {"id", "status": "ok", "overlay_ok", "text_ok"}, {"case_id",
                      "text_eval": {"reasoning_correct", "result_correct"}, "image_eval": {"image_correct"}},
                      {"case_dir", "text_eval": {"text_semantic_match"}, "image_evals": [{"shape_color_accuracy",
                      "position_accuracy"}]}; a judge that failed leaves fields out, which count as 0
jigsaw                per_item.csv: id, d_mean (DreamSim's distance), text_correct
maze, sliding         manifest_eval.csv: case_id and COLUMNS, a line for each candidate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Score
from duogen_core.evaluation.benchmarks.reading import csv_rows, field_of, list_of, text_of
from duogen_core.evaluation.benchmarks.unimmmu_requests import LIMIT
from duogen_core.files import read_json

RESULTS = {
    "math": "eval_details.json",
    "jigsaw": "per_item.csv",
    "science": "eval_details.json",
    "code": "eval_details.json",
    "maze": "manifest_eval.csv",
    "sliding": "manifest_eval.csv",
}
COLUMNS = {
    "text": "text_frame_acc",
    "text exact": "text_exact",
    "image": "img_frame_acc",
    "image exact": "img_exact",
    "readable": "parse_frame_success",
}


def results_of(task: str, place: Path) -> Iterator[Score]:
    if place.suffix == ".csv":
        yield from _table_results(task, place)
        return
    entries = read_json(place, "result of Uni-MMMU", limit=LIMIT)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DuoGenError(f"{place} is no list; expected what Uni-MMMU's eval_ummmu.py writes.")
    for number, entry in enumerate(entries, 1):
        where = f"{place}, entry {number}"
        values: dict[str, float | None] = {}
        if task == "math":
            id = text_of(entry, "id", where)
            if entry.get("status") == "ok":
                values["math image"] = _number(entry, "overlay_ok", where, 1, 0)
                values["math text"] = _number(entry, "text_ok", where, 1, 0)
            reasons = {"math image": entry.get("overlay_reason"), "math text": entry.get("text_reason")}
        elif task == "science":
            id = text_of(entry, "case_id", where)
            text, image = (field_of(entry, f"{kind}_eval", dict, where, "an object") for kind in ("text", "image"))
            values["science reasoning"] = _number(text, "reasoning_correct", where, 1, 0)
            values["science result"] = _number(text, "result_correct", where, 1, 0)
            values["science image"] = _number(image, "image_correct", where, 1, 0)
            reasons = {}
        else:
            id = text_of(entry, "case_dir", where).replace("\\", "/").rsplit("/", 1)[-1]
            given = {"text_eval": entry.get("text_eval") or {}, "image_evals": entry.get("image_evals") or []}
            text = field_of(given, "text_eval", dict, where, "an object")
            values["code text"] = float(bool(text.get("text_semantic_match")))
            images = list_of(given, "image_evals", dict, where, "objects")
            for image in images:
                for name in ("shape_color_accuracy", "position_accuracy"):
                    _number(image, name, where, 5, 0)
            values["code shapes"], values["code positions"] = best_of(images)
            reasons = {"code text": text.get("explanation")}
        reasons = {name: said for name, said in reasons.items() if isinstance(said, str)}
        yield Score(f"{task}/{id}", task, values, reasons)


def _table_results(task: str, place: Path) -> Iterator[Score]:
    names = {name: column for name, column in COLUMNS.items() if task == "maze" or name != "readable"}
    columns = ("id", "d_mean", "text_correct") if task == "jigsaw" else ("case_id", *names.values())
    rows: dict[str, list[dict[str, float | None]]] = {}
    for where, row in csv_rows(place, columns, "result of Uni-MMMU"):
        if task == "jigsaw":
            values = {"jigsaw image": 1 - _number(row, "d_mean", where, 2)}
            values["jigsaw text"] = _number(row, "text_correct", where, 1)
        else:
            values = {f"{task} {name}": _number(row, column, where, 1) for name, column in names.items()}
        rows.setdefault(row[columns[0]], []).append(values)
    for id, found in rows.items():
        means = {name: sum(values[name] for values in found) / len(found) for name in found[0]}
        yield Score(f"{task}/{id}", task, means, detail={"candidates": len(found)})


def _number(record: Mapping[str, Any], name: str, where: str, high: float, default: float = float("nan")) -> float:
    """Returns a number from 0 to `high`. default: where it is missing; a judge that failed leaves its field out."""
    try:
        value = float(record.get(name, default))
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not 0 <= value <= high:
        raise DuoGenError(f"{where}: {name} is {shown(repr(record.get(name))[:60])}; expected 0 to {high:g}.")
    return value


def best_of(images: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Shapes and positions of the image with the highest sum, 0 without any."""
    pairs = [(float(i.get("shape_color_accuracy", 0)), float(i.get("position_accuracy", 0))) for i in images]
    return max(pairs, key=sum, default=(0.0, 0.0))
