"""ISG-Bench: 1,150 requests whose answer must have texts and images in one given order, scored at four levels.

Source: github.com/Dongping-Chen/ISG (de504cd, no licence file); data huggingface.co/datasets/shuaishuaicdp/ISG-Bench.

requests     ISG-Bench.jsonl: {"id", "Category", "Query": [{"type": "text" or "image", "content": text or name}],
             "Golden": [the same], "predict": {"block_qa": {"questions": [{"subject", "object", "Question"}]},
             "image_qa": {"questions": [{"id", "image", "Question", "Preliminary"}]}}}; names are relative to the file
submission   submission.jsonl: the same lines with "output": [{"type", "content"}]. Their images and those of Query and
             Golden lie beside it, so that its folder is the scorer's --root
results      SUBMISSION_0_N_judge.jsonl: the same lines with "result": {"structure": bool, "image": [{…, "judge":
             {"Judge": "Yes"}}], "block": [{…, "VQA_judge_Score": {"Judge": 1 to 10}}], "holistic": {"overall_score"}}
`ISG-eval.py --end` is the number of lines; without it the last one is left out. An answer whose types are not those of
Golden, one by one, has no image and 1 for its blocks; so has one without a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.document.reading import check_relative, folder_reader
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import YES_OR_NO, marked, reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    answered_by,
    field_of,
    id_of,
    is_there,
    list_of,
    new_file_name,
    number_of,
    picture_beside,
    records,
    text_of,
    write_picture,
)
from duogen_core.files import write_atomically

MAIN = "submission.jsonl"
GROUPS = {
    "Style Transfer": (
        "Art Style Transfer", "Scene Attribute Transfer", "Photo Variation", "Portrait Variation",
    ),
    "Progressive": ("Animation Images", "Animation Text-Image", "Attribute Transfer"),
    "3D Scene": ("3D_object", "multi-Perspective Scene Generation"),
    "Image Decomposition": ("Realistic Object Detection", "Imaginary Object Detection"),
    "Image-Text Complementation": ("HowTo", "Scientific"),
    "Temporal Prediction": ("Prediction", "painting"),
    "Visual Story Telling": ("visual storytelling text-image", "visual storytelling image", "visual storytelling text"),
    "VQA": ("Object_VQA", "Historical"),
}  # fmt: skip
GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
SCORES = ("coherence", "content_accuracy", "relevance_and_responsiveness", "visual_textual_alignment",
          "creativity_and_originality", "overall_score")  # fmt: skip
IMAGE_PROMPT = """Look at the image and answer a question about it.

The question: ${question}

- reason: what you see that decides it, in one sentence.
- answer: "yes" or "no"; "no" also where it cannot be seen."""
BLOCK_PROMPT = """A request is answered with texts and images. Two pieces of request and answer should belong together in a certain way.

The first piece: ${first}

The second piece: ${second}

The question: ${question}

- reason: one sentence that says what decided it.
- score: how far the question can be answered with yes, as a whole number from 1 (not at all) to 10 (entirely)."""  # noqa: E501
WHOLE_PROMPT = """Score a model's answer to a request. Request, answer and a good answer that a person made may hold images: a mark such as [Image 2] stands in the place of one, and the images follow in this order.

The request:
${request}

The model's answer:
${answer}

The good answer, which is one among many:
${golden}

Give whole numbers from 1 (bad) to 10 (as good as can be):
- coherence: texts and images say one thing together.
- content_accuracy: what the texts say and the images show is right.
- relevance_and_responsiveness: it answers what the request asks for, in the form that it asks for.
- visual_textual_alignment: every image shows what the text beside it speaks of.
- creativity_and_originality: texts and images have ideas of their own.
- overall_score: the answer as a whole.
- reason: what decided the overall score, in one or two sentences."""  # noqa: E501


class ISG(Benchmark):
    name = "isg"
    title = "ISG-Bench"
    source = "github.com/Dongping-Chen/ISG, no licence given; data huggingface.co/datasets/shuaishuaicdp/ISG-Bench"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "structure": Metric(0, 1, "whether texts and images come in exactly the order that was asked for", by="check"),
        "block": Metric(1, 10, "how well pairs of texts and images belong together; 1 where the structure is wrong"),
        "image": Metric(0, 1, "share of questions about the images that are answered yes; 0 where it is wrong"),
        "holistic": Metric(1, 10, "the answer as a whole, beside a good one"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            if not {"Query", "Golden", "predict"} <= set(record):
                raise DuoGenError(f"{where} has no Query, Golden or predict; expected ISG-Bench.jsonl.")
            id = id_of(record, "id", where)
            where = f"{where} (item {id})"
            prompt = Document().begin_turn("user", _parts(file.parent, record, "Query", where))
            golden = [text_of(block, "type", where) for block in list_of(record, "Golden", dict, where, "objects")]
            for name in _names(record, where):  # the scorer takes an answer for the worst where one is missing
                if not is_there(file.parent / name):
                    raise DuoGenError(f"{where}: the image {shown(name[:200])} does not exist beside the requests.")
            kind = text_of(record, "Category", where)
            field_of(record, "predict", dict, where, "an object with the questions")
            known = {**record, "golden": golden, "folder": str(file.parent)}
            item = Item(id, prompt, known, GROUP_OF.get(kind, kind), golden.count("image"))
            _image_questions(item), _block_questions(item)  # faults are named before anything is answered
            yield item

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "answers").mkdir()
        lines, taken = [], set[str]()
        for item, document in answers:
            name = new_file_name(item.id, taken)
            output = []
            for part in _blocks(item, document):
                if isinstance(part, Picture):
                    output.append({"type": "image", "content": f"answers/{name}-{len(output)}.png"})
                    write_picture(part, out / output[-1]["content"])
                else:
                    output.append({"type": "text", "content": part.text})
            record = {key: value for key, value in item.record.items() if key not in ("golden", "folder")}
            read = folder_reader(Path(item.record["folder"]))
            for used in _names(record, item.id):
                if not (out / used).is_file():
                    (out / used).parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(out / used, read(used, item.id))
            # Plain ASCII: the scorer opens the file in whatever encoding its system has.
            lines.append(json.dumps({**record, "output": output}) + "\n")
        write_atomically(out / MAIN, "".join(lines).encode())
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        known = by_id(file, items)
        for where, record in records(file, "submission"):
            item = answered_by(record, "id", known, where)
            if record.get("output") is not None:
                yield item, item.prompt.begin_turn("assistant", _parts(file.parent, record, "output", where))

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        known = by_id(file, items)
        scores = []
        for where, record in records(file, "result of ISG-Bench"):
            id = id_of(record, "id", where)
            if id not in known:
                raise DuoGenError(
                    f"{where} scores {shown(id[:80])!r}, which no request has or an earlier line scores, too "
                    "(ISG-eval.py adds to its file when it runs again)."
                )
            if "result" not in record and record.get("output") is not None:
                raise DuoGenError(f"{where} has no result; expected the file ..._judge.jsonl that ISG-eval.py writes.")
            item = known.pop(id)
            scores.append(Score(id, item.category, _values(item, record, where)))
        if not scores:
            raise DuoGenError(f"{file} is empty; expected the file ..._judge.jsonl that ISG-eval.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        found = []
        if _structure(item, document):
            named = _named(item, document)
            for number, question in _image_questions(item):
                seen = named.get(question["image"])
                if isinstance(seen, Picture) and not question.get("Preliminary"):
                    schema = reply_schema({"answer": YES_OR_NO})
                    data = {"question": question["Question"]}
                    found.append(Ask(f"image {number}", IMAGE_PROMPT, data, schema, (("The image:", seen),)))
            for number, question in _block_questions(item):
                if all(question[end] in named for end in ("subject", "object")):
                    found.append(_about_two(number, question, named))
        request, seen_first = marked(item.prompt.last_turn.parts)
        answer, seen_then = marked(item.parts(document), 1 + len(seen_first))
        place = Path(item.record["folder"])
        good = _parts(place, item.record, "Golden", f"item {item.id}")
        golden, seen_last = marked(good, 1 + len(seen_first) + len(seen_then))
        data = {"request": request, "answer": answer, "golden": golden}
        seen = (*seen_first, *seen_then, *seen_last)
        return [*found, Ask("holistic", WHOLE_PROMPT, data, reply_schema(dict.fromkeys(SCORES, whole(1, 10))), seen)]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        """A question that waits for another one (`Preliminary`) is never asked and counts as no, as by the scorer."""
        right = _structure(item, document)
        values: dict[str, float | None] = {"structure": float(right), "block": None, "image": None, "holistic": None}
        reasons: dict[str, str] = {}
        if "holistic" in said:
            values["holistic"] = said["holistic"]["overall_score"]
            reasons["holistic"] = said["holistic"]["reason"]
            blocks = [said[key] for key in said if key.startswith("block ")]
            if not right or blocks or _block_questions(item):
                values["block"] = sum(reply["score"] for reply in blocks) / len(blocks) if blocks else 1.0
            reasons["block"] = " ".join(reply["reason"] for reply in blocks if reply["score"] < 6)
            if questions := _image_questions(item):
                images = [said[key] for key in said if key.startswith("image ")]
                values["image"] = sum(reply["answer"] == "yes" for reply in images) / len(questions)
                reasons["image"] = " ".join(reply["reason"] for reply in images if reply["answer"] == "no")
        return Score(item.id, item.category, values, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """The scorer's figures for each category, and the means of its eight, as in its published table (the scorer
        counts an item without questions about images as 0; a category that has none at all has no such figure). An
        item of a kind that it does not know is left out of the means, as it leaves it out."""
        groups: dict[str, list[Score]] = {}
        for score in scores:
            groups.setdefault(score.category, []).append(score)
        figures: dict[str, dict[str, float]] = {}
        for group, found in sorted(groups.items()):
            for metric in self.metrics:
                values = [score.values.get(metric) for score in found]
                numbers = [value for value in values if value is not None]
                if numbers:
                    count = len(values) if metric == "image" else len(numbers)
                    figures.setdefault(metric, {})[group] = sum(numbers) / count
        of_eight = {
            metric: [value for group, value in by_group.items() if group in GROUPS]
            for metric, by_group in figures.items()
        }
        means = {metric: sum(values) / len(values) for metric, values in of_eight.items() if values}
        each = {
            f"{group}: {metric}": value for metric, by_group in figures.items() for group, value in by_group.items()
        }
        return {**means, **dict(sorted(each.items()))}


# ------------------------------------------------------------ blocks: what the scorer counts in order


def _parts(folder: Path, record: Mapping[str, Any], name: str, where: str) -> list[Part]:
    parts: list[Part] = []
    for block in list_of(record, name, dict, where, "objects with type and content"):
        kind, content = text_of(block, "type", f"{where}, {name}"), text_of(block, "content", f"{where}, {name}")
        if kind not in ("text", "image"):
            raise DuoGenError(f"{where}, {name}: the type is {shown(repr(kind)[:60])}; expected text or image.")
        parts.append(Text(content) if kind == "text" else picture_beside(folder, content, where))
    return parts


def _names(record: Mapping[str, Any], where: str) -> list[str]:
    """The images of the request and of the golden answer."""
    blocks = [block for name in ("Query", "Golden") for block in list_of(record, name, dict, where, "objects")]
    names = [text_of(block, "content", where) for block in blocks if block.get("type") == "image"]
    for name in names:
        check_relative(name.removeprefix("./"), where)
    return [name.removeprefix("./") for name in names]


def _blocks(item: Item, document: Document) -> list[Part]:
    """The answer as blocks: texts that follow one another are one, and a text of blanks alone is none."""
    blocks: list[Part] = []
    for part in item.parts(document):
        if isinstance(part, Text) and blocks and isinstance(blocks[-1], Text):
            blocks[-1] = Text(blocks[-1].text + part.text)
        else:
            blocks.append(part)
    blocks = [part if isinstance(part, Picture) else Text(part.text.strip()) for part in blocks]
    return [part for part in blocks if isinstance(part, Picture) or part.text]


def _structure(item: Item, document: Document) -> bool:
    kinds = ["image" if isinstance(part, Picture) else "text" for part in _blocks(item, document)]
    return kinds == list(item.record["golden"])


def _named(item: Item, document: Document) -> dict[str, Part]:
    """Every block by the name that questions know it by: <query_img1>, <gen_text2>."""
    named: dict[str, Part] = {}
    for side, parts in (("query", item.prompt.last_turn.parts), ("gen", _blocks(item, document))):
        for kind, of in (("img", Picture), ("text", Text)):
            for number, part in enumerate((part for part in parts if isinstance(part, of)), 1):
                named[f"<{side}_{kind}{number}>"] = part
    return named


# ------------------------------------------------------------ questions of the requests, and the scorer's results


def _image_questions(item: Item) -> list[tuple[int, Mapping[str, Any]]]:
    found = item.record["predict"].get("image_qa") or []
    if isinstance(found, Mapping):  # the scorer takes what its first field holds
        found = next(iter(found.values()), None) or []
    return _questions(found, ("image", "Question"), item)


def _block_questions(item: Item) -> list[tuple[int, Mapping[str, Any]]]:
    found = item.record["predict"].get("block_qa") or {}
    found = found.get("questions") or [] if isinstance(found, Mapping) else found
    return _questions(found, ("subject", "object", "Question"), item)


def _questions(found: Any, fields: Iterable[str], item: Item) -> list[tuple[int, Mapping[str, Any]]]:
    """Those that can be asked, with their places in the list."""
    if not isinstance(found, list) or not all(isinstance(question, Mapping) for question in found):
        raise DuoGenError(f"Item {shown(item.id[:80])!r} of ISG-Bench has questions that are no list of objects.")
    return [
        (number, question)
        for number, question in enumerate(found, 1)
        if all(isinstance(question.get(name), str) for name in fields)
    ]


def _about_two(number: int, question: Mapping[str, Any], named: Mapping[str, Part]) -> Ask:
    asked, data, seen = question["Question"], {}, []
    for end, place in (("subject", "first"), ("object", "second")):
        part = named[question[end]]
        asked = asked.replace(question[end], f"the {place} piece")
        if isinstance(part, Picture):
            seen.append((f"The {place} piece:", part))
        data[place] = "(an image; it follows)" if isinstance(part, Picture) else part.text
    return Ask(
        f"block {number}", BLOCK_PROMPT, {**data, "question": asked}, reply_schema({"score": whole(1, 10)}), tuple(seen)
    )


def _values(item: Item, record: Mapping[str, Any], where: str) -> dict[str, float | None]:
    """The scorer's own numbers, with what it counts where the judge did not answer."""
    given = {"result": {}, "output": [], **{key: value for key, value in record.items() if value is not None}}
    result = field_of(given, "result", dict, where, "an object")
    output = list_of(given, "output", dict, where, "objects") or [{"content": ""}]
    judged = {
        name: list_of({name: result.get(name) or []}, name, dict, f"{where}, result", "objects")
        for name in ("block", "image")
    }
    right, holistic = bool(result.get("structure")), result.get("holistic")
    whole: float | None = 1.0
    if isinstance(holistic, Mapping) and "overall_score" in holistic and output[0].get("content") != "":
        whole = number_of(holistic, "overall_score", 1, 10, f"{where}, holistic")
    block: float | None = 1.0
    if right and judged["block"]:
        said = [one["VQA_judge_Score"] for one in judged["block"] if "VQA_judge_Score" in one]
        said = [one for one in said if not isinstance(one, Mapping) or "Judge" in one]
        if said and all(isinstance(one, Mapping) and isinstance(one["Judge"], (int, float)) for one in said):
            block = sum(number_of(one, "Judge", 1, 10, f"{where}, block") or 0 for one in said) / len(said)
    elif right:
        block = None
    image: float | None = None
    if _image_questions(item):
        judges = [one["judge"] for one in judged["image"] if isinstance(one.get("judge"), Mapping)]
        yes = sum(str(one.get("Judge")).lower() == "yes" for one in judges)
        image = yes / len(judged["image"]) if judged["image"] else 0.0
    return {"structure": float(right), "block": block, "image": image, "holistic": whole}


BENCHMARK = ISG
