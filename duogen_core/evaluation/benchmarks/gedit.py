"""GEdit-Bench: 606 edits that people asked for, each instruction in English and in Chinese, of eleven kinds.

Source: github.com/stepfun-ai/Step1X-Edit at 570eba6 (Apache-2.0), folder GEdit-Bench: test_gedit_score.py,
calculate_statistics.py, viescore/; data huggingface.co/datasets/stepfun-ai/GEdit-Bench.

requests     rows of Parquet (a file, or the folder of its shards): {"key", "instruction", "instruction_language":
             "en" | "cn", "task_type", "input_image", "input_image_raw", "Intersection_exist"}; or the same as JSON,
             with names of images beside the file. The model gets input_image, which the scorer compares with.
submission   MODEL/fullset/TASK_TYPE/LANGUAGE/KEY.png, and KEY_SRCIMG.png, the image that was edited
results      MODEL/JUDGE/eval_results_new/MODEL_TASK_TYPE_gpt_score.csv: source_image, edited_image, instruction,
             sementics_score (so spelt), quality_score, intersection_exist, instruction_language
VIEScore: semantics is the lower one of two scores from 0 to 10 (the edit's success, what else was changed), quality the
lower one of two (naturalness, artifacts), overall the root of their product. A figure is the mean over the eleven
kinds, for each language, of all requests and of those that every compared model answered ("intersection").
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import check_relative
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    csv_rows,
    field_of,
    file_name,
    is_there,
    no_picture,
    picture_beside,
    picture_or_none,
    records,
    text_of,
    write_picture,
    write_picture_or_none,
)
from duogen_core.files import write_atomically

GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
LANGUAGES = ("en", "cn")
METRICS = ("semantics", "quality", "overall")
EDITED = re.compile(r"fullset[/\\]([^/\\]+)[/\\]([^/\\]+)[/\\]([^/\\]+)\.png$")
COLUMNS = ("edited_image", "sementics_score", "quality_score", "intersection_exist", "instruction_language")
SEMANTICS = """Rate an edit of an image: the first image is the one before, the second one the one after. Where the edit failed, both may look the same.

The instruction: ${instruction}

- reason: one sentence that says what decided the scores.
- success, 0 to 10: how far the second image does what the instruction says. 0: not at all. 10: perfectly.
- restraint, 0 to 10: how far all else is kept. 0: it is another scene. 10: no more is changed than the edit needs."""  # noqa: E501
QUALITY = """Rate how well an image is made, whatever it shows.

- reason: one sentence that says what decided the scores.
- naturalness, 0 to 10: 0: distances, shadows or light are plainly wrong. 10: it looks natural.
- artifacts, 0 to 10: 0: large parts are distorted, scratched, blurred or badly joined, or bodies have odd parts. 10: there is nothing of that."""  # noqa: E501
ASPECTS = {"semantics": ("success", "restraint"), "quality": ("naturalness", "artifacts")}


class GEdit(Benchmark):
    name = "gedit"
    title = "GEdit-Bench"
    source = "github.com/stepfun-ai/Step1X-Edit, Apache-2.0; data huggingface.co/datasets/stepfun-ai/GEdit-Bench"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "semantics": Metric(0, 10, "the instruction is followed, and nothing else is changed"),
        "quality": Metric(0, 10, "the image looks natural and has no artifacts"),
        "overall": Metric(0, 10, "root of semantics times quality"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        pictures: WeakValueDictionary[str, Picture] = WeakValueDictionary()  # both languages are about the same one
        for where, record in records(file):
            key, kind = text_of(record, "key", where), text_of(record, "task_type", where)
            language = text_of(record, "instruction_language", where)
            check_relative(key, where)
            if "/" in key or key.endswith("_SRCIMG"):
                raise DuoGenError(
                    f"{where}: key is {shown(key[:80])!r}; expected the name of an image, without a folder."
                )
            if kind not in GROUPS:
                raise DuoGenError(
                    f"{where}: task_type is {shown(repr(kind)[:40])}; expected one of {', '.join(GROUPS)}."
                )
            if language not in LANGUAGES:
                raise DuoGenError(f"{where}: instruction_language is {shown(repr(language)[:40])}; expected en or cn.")
            kept = {
                "key": key, "task_type": kind, "instruction_language": language,
                "instruction": text_of(record, "instruction", where),
                "Intersection_exist": field_of(record, "Intersection_exist", bool, where, "true or false"),
            }  # fmt: skip
            picture = _picture(record, file if file.is_dir() else file.parent, where, pictures)
            prompt = Document().begin_turn("user", [picture, Text(kept["instruction"])])
            yield Item(f"{language}-{key}", prompt, kept, kind, images=1)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        root = out / file_name(model)
        root.mkdir()
        sources: dict[str, Path] = {}  # both languages are about the same image: it is encoded once
        for item, document in answers:
            edited = root / _place(item)
            edited.parent.mkdir(parents=True, exist_ok=True)
            before = item.prompt.pictures[0]
            source = edited.with_name(f"{item.record['key']}_SRCIMG.png")
            if before.digest in sources:
                write_atomically(source, sources[before.digest].read_bytes())
            else:
                write_picture(before, source)
                sources[before.digest] = source
            write_picture_or_none((item.pictures(document) or [None])[-1], edited, before.size)
        return root

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        """place: the model's folder, or the one that has it alone."""
        if not (place / "fullset").is_dir():
            there = sorted(place.glob("*/fullset"))
            if len(there) != 1:
                raise DuoGenError(
                    f"{place} has {len(there)} folders of models with a fullset in them; name the folder of one model."
                )
            place = there[0].parent
        for item in items:
            if is_there(place / _place(item)):
                found = picture_or_none(place, _place(item), f"request {item.id}")
                yield item, item.prompt.begin_turn("assistant", [found] if found else [])

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        known = by_id(file, items)
        scores: dict[str, Score] = {}
        for where, row in _rows(file):
            named = EDITED.search(row["edited_image"])
            item = known.get(f"{named[2]}-{named[3]}") if named else None
            if item is None or named is None or named[1] != item.category:
                raise DuoGenError(f"{where} scores {shown(repr(row['edited_image'][-100:]))}, which is no request's.")
            if item.id in scores:
                # Started again before it had finished, the scorer judges what it had and keeps both.
                raise DuoGenError(
                    f"{where} scores {item.id} a second time; delete the CSV files of the run that was stopped, and "
                    "let the scorer begin again."
                )
            values = [_number(row, name, where) for name in ("sementics_score", "quality_score")]
            scores[item.id] = _score(item, *values)
        if not scores:
            raise DuoGenError(f"{file} has no scores; expected what GEdit-Bench's test_gedit_score.py writes.")
        return list(scores.values())

    def asks(self, item: Item, document: Document) -> list[Ask]:
        before = item.prompt.pictures[0]
        after = (item.pictures(document) or [no_picture(before.size)])[-1]
        data = {"instruction": item.record["instruction"]}
        both = (("Before:", before), ("After:", after))
        return [
            Ask("semantics", SEMANTICS, data, _schema("semantics"), both),
            Ask("quality", QUALITY, {}, _schema("quality"), (("Image:", after),)),
        ]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if not said:
            return Score(item.id, item.category, dict.fromkeys(METRICS))
        values = [float(min(said[key][aspect] for aspect in ASPECTS[key])) for key in ASPECTS]
        if not item.pictures(document):
            values = [0.0, 0.0]
        return _score(item, *values, {key: said[key]["reason"] for key in ASPECTS})

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """As calculate_statistics.py: the mean over the kinds of each kind's mean, so a kind with few requests counts
        as much as one with many."""
        scores = [score for score in scores if score.values["overall"] is not None]
        figures: dict[str, float] = {}
        kinds: dict[str, float] = {}
        for language in LANGUAGES:
            for part in ("", ", intersection"):
                chosen = [one for one in scores if one.detail["language"] == language]
                chosen = [one for one in chosen if not part or one.detail["intersection"]]
                for metric in METRICS:
                    name = f"{metric} ({language}{part})"
                    means = {
                        kind: _mean(one.values[metric] for one in chosen if one.category == kind) for kind in GROUPS
                    }
                    found = {kind: mean for kind, mean in means.items() if mean is not None}
                    if found:
                        figures[name] = sum(found.values()) / len(found)
                    kinds |= {f"{kind}: {name}": mean for kind, mean in found.items()}
        return figures | kinds


def _picture(record: Mapping[str, Any], folder: Path, where: str, known: WeakValueDictionary[str, Picture]) -> Picture:
    """The image to edit: bytes, as Parquet has them, or the name of a file."""
    image = record.get("input_image")
    if isinstance(image, str):
        return picture_beside(folder, image, where)
    data = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(data, bytes):
        raise DuoGenError(
            f"{where}: input_image has no bytes; expected an image, as GEdit-Bench's Parquet files have it."
        )
    digest = hashlib.sha256(data).hexdigest()
    picture = known.get(digest)
    if picture is None:
        picture = known[digest] = Picture.from_bytes(data, f"input_image of {where}")
    return picture


def _place(item: Item) -> str:
    record = item.record
    return f"fullset/{record['task_type']}/{record['instruction_language']}/{record['key']}.png"


def _schema(key: str) -> dict[str, Any]:
    return reply_schema(dict.fromkeys(ASPECTS[key], whole(0, 10)))


def _score(item: Item, semantics: float, quality: float, reasons: Mapping[str, str] | None = None) -> Score:
    values = {"semantics": semantics, "quality": quality, "overall": math.sqrt(semantics * quality)}
    detail = {
        "language": item.record["instruction_language"],
        "intersection": item.record["Intersection_exist"],
    }
    return Score(item.id, item.category, values, reasons or {}, detail)


def _rows(place: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of one CSV file, or of those in a folder: of the one that has all kinds, where it is there."""
    files = [place]
    if place.is_dir():
        files = sorted(place.glob("*_gpt_score.csv"))
        files = [file for file in files if file.name.endswith("_combined_gpt_score.csv")] or files
        if not files:
            raise DuoGenError(f"{place} has no *_gpt_score.csv; expected the folder eval_results_new of GEdit-Bench.")
    for file in files:
        yield from csv_rows(file, COLUMNS, "result of GEdit-Bench")


def _number(row: Mapping[str, str], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise DuoGenError(f"{where}: {name} is {shown(repr(row[name])[:40])}; expected a number from 0 to 10.")
    return value


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


BENCHMARK = GEdit
