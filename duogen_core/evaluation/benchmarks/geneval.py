"""GenEval: 553 prompts for one image each, whose objects, counts, colours and positions a detector checks.

Source: github.com/djghosh13/geneval at af4902f (MIT): prompts/evaluation_metadata.jsonl,
evaluation/evaluate_images.py, evaluation/summary_scores.py.

requests     a line for each prompt: {"tag", "prompt", "include": [{"class", "count", "color"?,
             "position"?: ["left of", which of include]}], "exclude"?: [{"class", "count"}]}
submission   NNNNN/metadata.jsonl, the line with that number from 0, and NNNNN/samples/000K.png, four samples of each
results      a line for each image: {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
Each sample is an `Item`, 00000-0 to 00000-3. The overall figure is the mean of the six tags' means over images.
Official are Mask2Former for the objects and CLIP for the colours. What a detector or a judge of ours finds is scored
by the same rules (`verdict`), and is another figure: with other boxes come other scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import object_schema
from duogen_core.evaluation.benchmarks.reading import (
    field_of,
    list_of,
    no_picture,
    picture_or_none,
    records,
    text_of,
    write_json,
    write_picture_or_none,
)

SAMPLES = 4
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
# What the official script takes: how sure its detector must be, how many objects of a class count at most, and which
# part of both objects' sizes two centres must be apart by, before one is said to be beside the other.
SURE, SURE_COUNTING, MOST, MARGIN = 0.3, 0.9, 16, 0.1
SAMPLE = re.compile(r"(\d+)\.png")
FILENAME = re.compile(r"(?:^|[/\\])(\d{1,9})[/\\]samples[/\\](\d{1,9})\.png$")
BOX_SIDE = 1000  # boxes are in thousandths of width and height
PROMPT = """List the objects in the image that belong to these classes: ${classes}.

Of each class, the clearest one first. An object that is half hidden counts; a reflection, a drawing of one inside the image and a part of one do not.
- class: one of the classes.
- box: [left, top, right, bottom] around all of it that is seen, in thousandths of the image's width and height.
- colour: the one that most of it has, whatever its surroundings are.
If there are none, the list is empty."""  # noqa: E501


class GenEval(Benchmark):
    name = "geneval"
    title = "GenEval"
    source = "github.com/djghosh13/geneval, MIT"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "correct": Metric(0, 1, "the image shows the objects asked for, as many, so coloured and so placed"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        for number, (where, record) in enumerate(records(file)):
            if "vqa_list" in record:
                raise DuoGenError(f"{where} is a request of GenEval 2; name the benchmark geneval2.")
            prompt = Document().begin_turn("user", [Text(text_of(record, "prompt", where))])
            tag = text_of(record, "tag", where)
            if not tag:
                raise DuoGenError(f"{where}: tag is empty; expected the kind of prompt, such as counting.")
            _check(record, where)
            for sample in range(SAMPLES):
                yield Item(f"{number:05d}-{sample}", prompt, record, tag, images=1)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        for item, document in answers:
            folder, sample = out / item.id[:-2], item.id[-1]
            if not folder.exists():
                (folder / "samples").mkdir(parents=True)
                write_json(folder / "metadata.jsonl", dict(item.record), indent=None)
            picture = (item.pictures(document) or [None])[-1]
            write_picture_or_none(picture, folder / "samples" / f"000{sample}.png")
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        """Names with more zeros, as the official generator writes them, are read too."""
        checked = None
        for item in items:
            number, sample = item.id[:-2], int(item.id[-1])
            folder = place / number
            asked = folder / "metadata.jsonl"
            if number != checked and asked.exists():
                checked = number
                where, record = next(records(asked, "line of the requests"), (str(asked), {}))
                if record.get("prompt") != item.record["prompt"]:
                    raise DuoGenError(
                        f"{where} asks for {shown(repr(record.get('prompt'))[:80])}, and request {number} for "
                        f"{item.record['prompt'][:80]!r}; the submission is of another file of requests."
                    )
            there = sorted((folder / "samples").glob("*.png")) if folder.is_dir() else []
            there = [file for file in there if SAMPLE.fullmatch(file.name) and int(file.stem) == sample]
            if len(there) > 1:
                raise DuoGenError(f"{there[0]} and {there[1].name} are both sample {sample}; leave one of them out.")
            if there:
                found = picture_or_none(place, f"{number}/samples/{there[0].name}", f"sample {item.id}")
                yield item, item.prompt.begin_turn("assistant", [found] if found else [])

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        scores = []
        for where, entry in records(file, "result of GenEval"):
            named = FILENAME.search(text_of(entry, "filename", where))
            if not named:
                raise DuoGenError(
                    f"{where}: filename is {shown(entry['filename'][-80:])!r}; expected …/00000/samples/0000.png, as "
                    "GenEval's evaluate_images.py writes it."
                )
            item = left.pop(f"{int(named[1]):05d}-{int(named[2])}", None)
            if item is None or text_of(entry, "prompt", where) != item.record["prompt"]:
                raise DuoGenError(
                    f"{where} scores an image of a prompt that these requests do not have there, or one that an "
                    "earlier line scores, too."
                )
            correct = field_of(entry, "correct", (bool, int), where, "true or false")
            if correct not in (0, 1):
                raise DuoGenError(f"{where}: correct is {correct}; expected true or false.")
            scores.append(self._score(item, bool(correct), text_of(entry, "reason", where, default="")))
        if not scores:
            raise DuoGenError(f"{file} has no results; expected the file that GenEval's evaluate_images.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        """Which objects are seen, and where: for a detector (`evaluation.detector`), or a judge that gives boxes."""
        classes = sorted({clause["class"] for clause in _clauses(item.record)})
        coloured = any("color" in clause for clause in item.record["include"])
        prompt = PROMPT if coloured else re.sub(r"- colour:.*\n", "", PROMPT)
        shown_ = (item.pictures(document) or [no_picture()])[-1]
        return [
            Ask("objects", prompt, {"classes": ", ".join(classes)}, schema(classes, coloured), (("Image:", shown_),))
        ]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if "objects" not in said:
            return Score(item.id, item.category, {"correct": None})
        pictures = item.pictures(document)
        found = said["objects"]["objects"] if pictures else []
        sure = said["objects"].get("sure", (SURE, SURE_COUNTING))
        correct, reason = verdict(item.record, found, pictures[-1].size if pictures else (1, 1), sure)
        return self._score(item, correct, reason, {"objects": found})

    def _score(self, item: Item, correct: bool, reason: str, more: Mapping[str, Any] | None = None) -> Score:
        detail = {"prompt": item.record["prompt"], **(more or {})}
        return Score(item.id, item.category, {"correct": float(correct)}, {"correct": reason}, detail)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """As summary_scores.py: overall is the mean of the tags; images and prompts are the shares that are correct,
        a prompt where at least one of its images is."""
        scores = [score for score in scores if score.values["correct"] is not None]
        figures = super().summary(scores)
        if not figures:
            return {}
        prompts: dict[str, float] = {}
        for score in scores:
            prompt = score.detail["prompt"]
            prompts[prompt] = max(prompts.get(prompt, 0.0), score.values["correct"] or 0.0)
        tags = {name: value for name, value in figures.items() if ": " in name}
        return {
            "overall": sum(tags.values()) / len(tags),
            "images": figures["correct"],
            "prompts": sum(prompts.values()) / len(prompts),
            **tags,
        }


def _clauses(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*record["include"], *(record.get("exclude") or [])]


def _check(record: Mapping[str, Any], where: str) -> None:
    include = list_of(record, "include", dict, where, "objects that GenEval asks for")
    if not include:
        raise DuoGenError(f"{where}: include is empty; expected the objects of GenEval's evaluation_metadata.jsonl.")
    for clause in include + (list_of(record, "exclude", dict, where, "objects") if record.get("exclude") else []):
        text_of(clause, "class", where)
        if field_of(clause, "count", int, where, "a number") < 1:
            raise DuoGenError(f"{where}: count is {clause['count']}; expected a number from 1.")
        if "color" in clause and clause["color"] not in COLOURS:
            raise DuoGenError(
                f"{where}: color is {shown(repr(clause['color'])[:40])}; expected one of {', '.join(COLOURS)}."
            )
    for number, clause in enumerate(include):
        if "position" in clause:
            position = clause["position"]
            pair = isinstance(position, list) and len(position) == 2 and position[0] in POSITIONS
            if not (pair and type(position[1]) is int and 0 <= position[1] < number):
                raise DuoGenError(
                    f"{where}: position is {shown(repr(position)[:60])}; expected one of {', '.join(POSITIONS)}, and "
                    "the number of an object that include names before."
                )


# ------------------------------------------------------------ the rules


def schema(classes: Sequence[str], coloured: bool) -> dict[str, Any]:
    """Of the objects that are seen. A detector's reply has also a "score" of each, and what `verdict` calls sure."""
    number = {"type": "number", "minimum": 0, "maximum": BOX_SIDE}
    properties = {
        "class": {"enum": list(classes)},
        "box": {"type": "array", "items": number, "minItems": 4, "maxItems": 4},
        **({"colour": {"enum": list(COLOURS)}} if coloured else {}),
    }
    return object_schema({"objects": {"type": "array", "items": object_schema(properties), "maxItems": 100}})


def verdict(
    record: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    sure: Sequence[float] = (SURE, SURE_COUNTING),
) -> tuple[bool, str]:
    """Says whether an image of this size shows what a request asks, by GenEval's rules, and why it does not.

    objects: as `schema` has them. sure: the score that one must have, and that where a number is asked for. Of each
    class the surest come first; of one that must be there N times, the first N alone are looked at for colour and
    place. A further object spoils the image only where `exclude` says so, as it does in every request for a number.
    (The rules are facts; these lines are ours.)
    """
    least = sure[1] if record["tag"] == "counting" else sure[0]
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(objects, key=lambda one: -one.get("score", 1.0)):
        there = seen.setdefault(one["class"], [])
        if one.get("score", 1.0) > least and len(there) < MOST:
            there.append(one)
    reasons: list[str] = []
    groups: list[list[Mapping[str, Any]] | None] = []  # the objects that fulfil each clause; None: not fulfilled
    for clause in record["include"]:
        fault, found = "", seen.get(clause["class"], [])[: clause["count"]]
        if len(found) < clause["count"]:
            fault = f"{len(found)} of {clause['count']} × {clause['class']}"
        elif "color" in clause and any(one["colour"] != clause["color"] for one in found):
            fault = f"{clause['class']} is {', '.join(one['colour'] for one in found)}, not {clause['color']}"
        elif "position" in clause:
            relation, target = clause["position"]
            others = groups[target]
            if others is None:
                fault = f"nothing for {clause['class']} to be {relation}"
            elif not all(relation in relations(one["box"], other["box"], size) for one in found for other in others):
                fault = f"{clause['class']} is not {relation} {record['include'][target]['class']}"
        reasons += [fault] if fault else []
        groups.append(None if fault else found)
    for clause in record.get("exclude") or []:
        if len(seen.get(clause["class"], [])) >= clause["count"]:
            reasons.append(f"{len(seen[clause['class']])} × {clause['class']}, too many")
    return not reasons, "; ".join(reasons)


def relations(box: Sequence[float], other: Sequence[float], size: tuple[int, int]) -> set[str]:
    """Returns where an object stands to another one, by the centres of their boxes: none, one, or two at a slant.

    The offset is shortened along each axis by a tenth of both objects' sizes; the rest of it must be more than half
    of the whole offset's length."""
    scale = [size[0] / BOX_SIDE, size[1] / BOX_SIDE]
    offset, rest = [], []
    for axis in (0, 1):
        (low, high), (other_low, other_high) = box[axis::2], other[axis::2]
        apart = scale[axis] * (low + high - other_low - other_high) / 2
        sides = scale[axis] * (abs(high - low) + abs(other_high - other_low))
        left = max(abs(apart) - MARGIN * sides, 0.0)
        offset.append(apart)
        rest.append(left if apart > 0 else -left)
    length = hypot(*offset)
    if max(abs(rest[0]), abs(rest[1])) < 1e-3:
        return set()
    found = set()
    for along, before, after in ((rest[0], "left of", "right of"), (rest[1], "above", "below")):
        if along / length < -0.5:
            found.add(before)
        elif along / length > 0.5:
            found.add(after)
    return found


BENCHMARK = GenEval
