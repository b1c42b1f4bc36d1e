"""CoMM: step-by-step guides and stories with images; four tasks are made of each of them.

Source: github.com/HKUST-LongGroup/CoMM (0da05d4, no licence file); data huggingface.co/datasets/weisuxi/CoMM (CC BY).

requests     test_data.pth (or its list as JSON): [{"data_id", "title", "step_info": [[{"type": "text", "content"} or
             {"type": "image", "image_path"}]]}]; the images lie in images/ beside it. task1: images -> texts, task2:
             texts -> images, task3: the first half of the steps -> the others, task4: the title -> all
submission   <data_id>_task<N>/results.json for each: {"model_input", "model_output": "(1) … <IMAGE> (2) …",
             "input_image_list", "output_gt_image_list", "prediction_image_list": ["predict_1.jpg"]}; what was predicted
             is beside it, the others are in origin/ there
results      results/MODEL/…/<data_id>_task<N>/evaluation_results.json, of task1 completeness_and_text_fidelity.json:
             {"completeness": {"Score": 0 to 10}, "coherence_score": {"style_consistency": 0 to 10, …}, …}
The scorer cuts texts into steps wherever "(3)" stands, so a number in brackets inside a text is written "( 3 )".
A figure is the mean over the answers to one task; what the judge gave no number for is 0, an answer of which it made no
sense is left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.document.reading import check_relative, folder_reader
from duogen_core.errors import DuoGenError, is_out_of_memory, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import marked, reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    MAX_BYTES,
    is_there,
    list_of,
    number_of,
    picture_beside,
    picture_or_none,
    records,
    text_of,
    write_json,
    write_picture,
    write_picture_or_none,
)
from duogen_core.files import read_json, read_limited, write_atomically

MAIN = "results.json"
TASKS = ("task1", "task2", "task3", "task4")
MOST_IMAGES = 10  # the scorer looks at no more in one request and its answer together
IMAGE = "<IMAGE>"
# A number that begins a step, as (2), or at the start of a line as "2." or "Step 2:".
MARK = re.compile(
    r"(?:^|(?<=\s))\((\d{1,3})\)(?=\s|$)|^[ \t#*]*step[ \t]*(\d{1,3})\b[.:)*]*|^[ \t]*(\d{1,3})[.:)](?=\s)",
    re.MULTILINE | re.IGNORECASE,
)
NUMBER = re.compile(r"\((\d+)\)")
TOKEN = re.compile(r"<IMAGE>|\[/?imgblock\]|/?IMG(?=[01B])")  # what the scorer takes for an image, or leaves out
RESULT_FILES = ("evaluation_results.json", "completeness_and_text_fidelity.json")
CONSISTENCIES = ("style_consistency", "entity_consistency", "trend_consistency", "overall_consistency")
THEIR_NAMES = {
    "completeness": "completeness", "Completeness": "completeness",
    "Image_Quality": "image_quality", "image quality": "image_quality",
    "text fidelity to images": "text_fidelity", "Text Fidelity to Image": "text_fidelity",
}  # fmt: skip

_HEAD = """A model was asked for a part of a guide or story that is told in steps, with images. A mark such as [Image 2] stands in the place of an image, and the images follow in this order.

The request:
${request}

The answer:
${answer}

Score the answer with whole numbers from 0 to 10: up to 3 where it fails or is not there, up to 7 with small gaps or faults, more where all fits.
"""  # noqa: E501
_REASON = "- reason: what decided it, in one or two sentences."
TEXTS_PROMPT = f"""{_HEAD}- completeness: the texts tell all of what the images are about, and none is missing.
- text_fidelity: each text says what its images show and goes with them.
{_REASON}"""
IMAGES_PROMPT = f"""{_HEAD}- style_consistency: the images of the answer have one style.
- entity_consistency: whoever and whatever appears in several of them is the same there.
- trend_consistency: their sequence shows how things go on as the texts tell it.
- overall_consistency: the images as a sequence.
- image_quality: they look real, whole, sharp and well composed.
${{completeness}}{_REASON}"""
COMPLETENESS = "- completeness: texts and images say all that belongs to the topic, and neither is missing.\n"
FIDELITY_PROMPT = f"""{_HEAD}- text_fidelity: the images show what the texts around them alone let one imagine.
{_REASON}"""


def _schema(*names: str) -> dict[str, Any]:
    return reply_schema(dict.fromkeys(names, whole(0, 10)))


class CoMM(Benchmark):
    name = "comm"
    title = "CoMM"
    source = "github.com/HKUST-LongGroup/CoMM, no licence given; data huggingface.co/datasets/weisuxi/CoMM, CC BY 4.0"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "completeness": Metric(0, 10, "nothing is missing (not in task2)"),
        "text_fidelity": Metric(0, 10, "texts and images say the same (the papers' illustration relevance)"),
        "style_consistency": Metric(0, 10, "the images have one style (not in task1)"),
        "entity_consistency": Metric(0, 10, "who and what appears stays the same (not in task1)"),
        "trend_consistency": Metric(0, 10, "the images go on as the texts do (not in task1)"),
        "overall_consistency": Metric(0, 10, "the images as a sequence (not in task1)"),
        "image_quality": Metric(0, 10, "the images are well made (not in task1)"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in _records(file):
            if not {"data_id", "step_info"} <= set(record):
                raise DuoGenError(
                    f"{where} has no data_id or no step_info; expected CoMM's test_data.pth or a JSON of it."
                )
            id = text_of(record, "data_id", where)
            check_relative(id, where)
            if "/" in id or any(task in id for task in TASKS):  # the scorer finds a task by this word in a name
                raise DuoGenError(
                    f"{where}: data_id is {shown(repr(id)[:80])}; expected a name of a folder without task1."
                )
            steps = _steps(file.parent / "images", record, f"{where} (item {id})")
            if _images(steps):  # the others are in none of the tasks
                title = text_of(record, "title", where, default="").strip()
                yield from _tasks(id, title, steps, file.parent / "images")

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        for item, document in answers:
            place, given = out / item.id, item.prompt.pictures
            (place / "origin").mkdir(parents=True)
            inputs = [f"input_{number}.jpg" for number, _ in enumerate(given, 1)]
            for name, picture in zip(inputs, given):
                write_picture(picture, place / "origin" / name)
            read, wanted = folder_reader(Path(item.record["folder"])), []
            for number, name in enumerate(item.record["wanted"], 1 + len(given)):
                wanted.append(f"output_gt_{number}{Path(name).suffix}")
                write_atomically(place / "origin" / wanted[-1], read(name, item.id))
            texts, pictures = _told(item, document)
            made = [f"predict_{number}.jpg" for number, _ in enumerate(pictures, 1 + len(given))]
            for name, picture in zip(made, pictures):
                write_picture_or_none(picture, place / name)
            write_json(place / MAIN, {
                "model_input": _with_marks(item.prompt.last_turn.parts),
                "model_output": " ".join(f"({n}) {text}" for n, text in enumerate(texts, item.record["first"])),
                "input_image_list": inputs,
                "output_gt_image_list": wanted,
                "prediction_image_list": made,
            })  # fmt: skip
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        if not place.is_dir():
            raise DuoGenError(
                f"{place} is no folder; a submission to CoMM is a folder with one folder for each answer."
            )
        for item in items:
            folder = place / item.id
            if not is_there(folder / MAIN):
                continue
            where = str(folder / MAIN)
            record = read_json(folder / MAIN, "answer to CoMM")
            if not isinstance(record, dict):
                raise DuoGenError(f"{where} is {shown(repr(record)[:60])}; expected a JSON object.")
            names = list_of(record, "prediction_image_list", str, where, "names of images")
            pictures = [picture_or_none(folder, name, where) for name in names]
            texts = text_of(record, "model_output", where).split(IMAGE)
            parts: list[Part] = []
            for number, text in enumerate(texts):
                parts += [Text(text)] if text.strip() else []
                # An image that no <IMAGE> stands for is the answer's, too: it comes at the end.
                here = pictures[number : number + 1] if number < len(texts) - 1 else pictures[number:]
                parts += [picture for picture in here if picture is not None]
            yield item, item.prompt.begin_turn("assistant", parts)

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        if not file.is_dir():
            raise DuoGenError(f"{file} is no folder; expected results/MODEL, which CoMM's eval_metric.py writes.")
        known, scores = by_id(file, items), []
        for found in sorted(place for name in RESULT_FILES for place in file.rglob(name)):
            item = known.pop(found.parent.name, None)
            if item is None:
                raise DuoGenError(
                    f"{found} scores {shown(found.parent.name[:80])!r}, which no request has or another file there "
                    "scores; give the folder of one submission."
                )
            values = _values(read_json(found, "result of CoMM"), str(found))
            if values is not None:
                scores.append(Score(item.id, item.category, values))
        if not scores:
            raise DuoGenError(f"{file} has no scores; expected results/MODEL, which CoMM's eval_metric.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        request, seen = marked(item.prompt.last_turn.parts)
        answer, seen_then = marked(item.parts(document), 1 + len(seen))
        data, pictures = {"request": request, "answer": answer}, (*seen, *seen_then)
        if item.category == "task1":
            return [Ask("texts", TEXTS_PROMPT, data, _schema("completeness", "text_fidelity"), pictures)]
        names, said = [*CONSISTENCIES, "image_quality"], ""
        if item.category != "task2":
            names, said = ["completeness", *names], COMPLETENESS
        prompt = IMAGES_PROMPT.replace("${completeness}", said)
        return [
            Ask("images", prompt, data, _schema(*names), pictures),
            Ask("fidelity", FIDELITY_PROMPT, data, _schema("text_fidelity"), pictures),
        ]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        values: dict[str, float | None] = dict.fromkeys(self.metrics)
        for reply in said.values():
            values |= {name: number for name, number in reply.items() if name in values}
        reasons = {"text_fidelity" if key == "fidelity" else "completeness": one["reason"] for key, one in said.items()}
        return Score(item.id, item.category, values, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """The figures of each task; CoMM has none of all."""
        return {name: figure for name, figure in super().summary(scores).items() if ": " in name}


# ------------------------------------------------------------ requests: a guide -> four tasks

Step = list[tuple[str, Part]]  # the name of an image, or ""; and the text or image itself


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a JSON file, or of a .pth file as `torch.save` writes it: weights_only builds tensors and plain
    values, and runs nothing."""
    if file.suffix.lower() not in (".pth", ".pt"):
        yield from records(file)
        return
    import torch

    data = read_limited(file, MAX_BYTES, str(file), "file of requests")
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign bytes raises whatever it likes
        if is_out_of_memory(error):
            raise
        raise DuoGenError(
            f"{file} cannot be read as CoMM's test_data.pth, which holds lists, texts and numbers alone "
            f"({type(error).__name__}); give its list as JSON."
        ) from None
    if not isinstance(value, list):
        raise DuoGenError(f"{file} holds {shown(repr(value)[:60])}; expected CoMM's list of guides.")
    for number, record in enumerate(value, 1):
        if not isinstance(record, dict):
            raise DuoGenError(f"{file}, entry {number} is {shown(repr(record)[:60])}; expected an object.")
        yield f"{file}, entry {number}", record


def _steps(folder: Path, record: Mapping[str, Any], where: str) -> list[Step]:
    steps = []
    for blocks in list_of(record, "step_info", list, where, "lists, one for each step"):
        step: Step = []
        for block in list_of({"step_info": blocks}, "step_info", dict, where, "objects with a type"):
            kind = text_of(block, "type", where)
            if kind == "text":
                step.append(("", Text(_safe(text_of(block, "content", where)))))
            elif kind == "image":
                name = text_of(block, "image_path", where)
                step.append((name, picture_beside(folder, name, where)))
            else:
                raise DuoGenError(f"{where}: a type is {shown(repr(kind)[:60])}; expected text or image.")
        steps.append(step)
    return steps


def _images(steps: Iterable[Step]) -> list[str]:
    return [name for step in steps for name, _ in step if name]


def _tasks(id: str, title: str, steps: Sequence[Step], folder: Path) -> Iterator[Item]:
    about = f" about {_safe(title)}" if title else ""

    def item(
        task: str, parts: Iterable[Part | str], wanted: Sequence[Step], images: int | None, first: int = 1
    ) -> Item:
        record = {
            "data_id": id, "first": first, "folder": str(folder), "wanted": _images(wanted),
            "counts": [len(_images([step])) for step in wanted],
        }  # fmt: skip
        prompt = Document().begin_turn("user", [Text(part) if isinstance(part, str) else part for part in parts])
        return Item(f"{id}_{task}", prompt, record, task, images)

    def numbered(steps: Iterable[Step], kind: type[Part] | tuple[type[Part], ...]) -> Iterator[Part | str]:
        for number, step in enumerate(steps, 1):
            yield f"({number}) "
            for _, part in step:
                if isinstance(part, kind):
                    yield part if isinstance(part, Picture) else f"{part.text} "

    asked = f"These images are those of a guide{about}, under the numbers of its steps: "
    end = " Write what each step says, under the same number."
    yield item("task1", [asked, *numbered(steps, Picture), end], [], 0)
    asked = f"A guide{about} has these texts and lacks its images: "
    end = " Draw them for every step, in their order."
    yield item("task2", [asked, *numbered(steps, Text), end], steps, len(_images(steps)))
    half = len(steps) // 2
    if half and _images(steps[half:]) and len(_images(steps[:half])) < MOST_IMAGES:  # the scorer leaves others out
        asked = f"So begins a guide{about}: "
        end = " Go on to its end in the same way, with texts, images and numbers."
        yield item("task3", [asked, *numbered(steps[:half], (Text, Picture)), end], steps[half:], None, half + 1)
    asked = f"Make a guide{about} that tells and shows every step. Number the steps (1), (2) and so on."
    yield item("task4", [asked], steps, None)


# ------------------------------------------------------------ answers: any document -> numbered steps


def _safe(text: str) -> str:
    """A text in which the scorer finds no step and no image."""
    return NUMBER.sub(r"( \1 )", TOKEN.sub(lambda found: found[0].strip("<>[]/").capitalize(), text)).strip()


def _with_marks(parts: Iterable[Part]) -> str:
    return "".join(f"{IMAGE} " if isinstance(part, Picture) else part.text for part in parts).strip()


def _told(item: Item, document: Document) -> tuple[list[str], list[Picture | None]]:
    """The text of each step with <IMAGE> in the places of images, and these images.

    Without any image the scorer fails at task2 and leaves an answer to task3 or task4 out: a grey one stands there."""
    parts = item.parts(document)
    pictures: list[Picture | None] = [part for part in parts if isinstance(part, Picture)]
    if item.category == "task2":  # images alone, to each step as many as its own
        counts, left, texts = item.record["counts"], len(pictures) or 1, []
        for number, count in enumerate(counts, 1):
            count = left if number == len(counts) else min(count, left)
            texts.append(" ".join([IMAGE] * count))
            left -= count
        return texts, pictures or [None]
    texts = []
    for step in _cut(parts, item.record["first"]):
        pieces = [IMAGE if isinstance(part, Picture) else _safe(part.text) for part in step]
        texts.append(" ".join(piece for piece in pieces if piece and (piece != IMAGE or item.category != "task1")))
    if item.category == "task1":
        return texts or [""], []
    if not pictures:
        texts = [*texts[:-1], f"{texts[-1]} {IMAGE}".strip()] if texts else [IMAGE]
    return texts, pictures or [None]


def _cut(parts: Iterable[Part], first: int) -> list[list[Part]]:
    """Cuts an answer into steps: where the numbers 1, 2, … (or those from `first` on) stand in their order, written as
    the first one; without any, where a text follows an image; without images, at empty lines, or else at every line."""
    pieces: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and pieces and isinstance(pieces[-1], Text):
            part = Text(pieces.pop().text + part.text)
        pieces.append(part)
    steps: list[list[Part]] = [[]]
    due, form = 0, 0
    for part in pieces:
        if isinstance(part, Picture):
            steps[-1].append(part)
            continue
        end = 0
        for mark in MARK.finditer(part.text):
            number = int(mark[mark.lastindex or 1])
            if (mark.lastindex == form and number == due) or (not due and number in (1, first)):
                steps[-1].append(Text(part.text[end : mark.start()]))
                if due:  # what comes before the first number belongs to the first step
                    steps.append([])
                due, form, end = number + 1, mark.lastindex or 1, mark.end()
        steps[-1].append(Text(part.text[end:]))
    if due:
        return steps
    if not any(isinstance(part, Picture) for part in pieces):
        text = "".join(part.text for part in pieces if isinstance(part, Text))
        found = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text.strip()) else text.splitlines()
        return [[Text(one)] for one in found if one.strip()]
    steps = []
    for part in pieces:
        after_image = bool(steps) and isinstance(steps[-1][-1], Picture)
        if isinstance(part, Text) and not part.text.strip():
            continue
        if not steps or (isinstance(part, Text) and after_image):
            steps.append([])
        steps[-1].append(part)
    return steps


def _values(value: Any, where: str) -> dict[str, float | None] | None:
    """The scorer's numbers; None where it leaves the answer out because the judge's reply has not what it wants."""
    found: dict[str, Any] = {}
    try:
        for key, said in value.items():
            if key == "coherence_score":
                found |= {name: said[name] for name in CONSISTENCIES}
            else:
                found[THEIR_NAMES[key]] = said["Score"] if "Score" in said else said["overall_score"]
    except (AttributeError, KeyError, TypeError):
        return None
    return {name: 0.0 if one in (None, "NA") else number_of(found, name, 0, 10, where) for name, one in found.items()}


BENCHMARK = CoMM
