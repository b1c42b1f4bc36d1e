"""RealUnify: does understanding help to draw (UEG), and drawing to understand (GEU)? Each directly and in two steps.

Source: github.com/FrankYang-17/RealUnify (`eval/`, commit 0b76a10, Apache-2.0), data
huggingface.co/datasets/DogNeverSleep/RealUnify, for academic use only.

requests     a list, of one of four kinds:
  UEG_direct.json  {"index", "task_type", "prompt", "question_list": [{"question", "answer": "yes"|"no"}]}
  UEG_step.json    the same with "new_prompt": asks for a better prompt, which is then drawn
  GEU_direct.json  {"index", "task_type", "input_image": name, "question", "option": [text], "answer": "A"…"D",
                   "evaluation_prompt"}
  GEU_step.json    the same with "edit_prompt": asks for an edit, which then helps with the question
submission   submission.json: the same list, UEG with "generated_image": the last image of the answer, GEU with
             "response": what was written after the last image, the steps with "response" and "edit_image", the first
             reply's; "generated_images" has all of them. The scorers resolve names from where they are started.
results      UEG: {model}.json that eval_generation.py writes: the submission with "score" 0 or 1, null where the judge
             failed. GEU: the submission itself; eval_understanding.py prints its figures and writes none.
An image is right if the judge answers each question about it as it should be; a response is the first of A, B, C, D in
it. Figures are shares of right answers, in all and by task.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, joined
from duogen_core.evaluation.benchmarks.asking import YES_OR_NO, object_schema
from duogen_core.evaluation.benchmarks.reading import (
    answered_by,
    list_of,
    new_file_name,
    no_picture,
    number_of,
    picture_beside,
    records,
    text_of,
    write_json,
    write_pictures,
)

MAIN = "submission.json"
DRAW = "Now draw one image of it."
LETTERS = "ABCDEFGH"
PROMPT = """Look at the image and answer a question about it.

The question:
${question}

- answer: "yes" or "no". What you cannot see is not there."""
SCHEMA = object_schema({"answer": YES_OR_NO})


class RealUnify(Benchmark):
    name = "realunify"
    title = "RealUnify"
    source = (
        "github.com/FrankYang-17/RealUnify, Apache-2.0; data huggingface.co/datasets/DogNeverSleep/RealUnify, academic"
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "image": Metric(0, 1, "every question about the image is answered as it should be (UEG)"),
        "answer": Metric(0, 1, "the right option was chosen (GEU)", "check"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        for where, record in records(file):
            task = text_of(record, "task_type", where)
            is_step = _is_step(file, record)
            if "question_list" in record:
                _questions(record, where)
                first: list[Part] = [Text(text_of(record, "new_prompt" if is_step else "prompt", where))]
                later = ((Text(DRAW),),) if is_step else ()
                images, images_later = (0, (1,)) if is_step else (1, ())
            elif "answer" in record and ("evaluation_prompt" in record or "question" in record):
                if record["answer"] not in (*LETTERS[:4],):
                    raise DuoGenError(
                        f"{where}: answer is {shown(repr(record['answer'])[:60])}; expected A, B, C or D."
                    )
                picture = picture_beside(file.parent, text_of(record, "input_image", where), where)
                question = Text(_question(record, where))
                first = [picture, Text(text_of(record, "edit_prompt", where)) if is_step else question]
                later = ((question,),) if is_step else ()
                images, images_later = (1, (None,)) if is_step else (None, ())
            else:
                raise DuoGenError(
                    f"{where} has neither question_list nor answer and evaluation_prompt; expected UEG_direct.json, "
                    "UEG_step.json, GEU_direct.json or GEU_step.json of RealUnify."
                )
            prompt = Document().begin_turn("user", first)
            yield Item(_id(record), prompt, {**record, "is_step": is_step}, task, images, later, images_later)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "images").mkdir()
        entries = []
        taken: set[str] = set()
        for item, document in answers:
            names = write_pictures(item.pictures(document), out, f"images/{new_file_name(item.id, taken)}")
            entry = {name: value for name, value in item.record.items() if name != "is_step"}
            entry["generated_images"] = names
            replies = item.replies(document)
            if _draws(item):
                entry["generated_image"] = names[-1] if names else ""
                if item.record["is_step"]:
                    entry["response"] = joined(replies[0]) if replies else ""
            else:
                entry["response"] = response(item, document)
                if item.record["is_step"]:
                    drawn = any(isinstance(part, Picture) for part in (replies[0] if replies else ()))
                    entry["edit_image"] = names[0] if drawn else ""
            entries.append(entry)
        write_json(out / MAIN, entries)
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        left = by_id(file, items)
        for where, record in records(file, "submission"):
            item = answered_by({"id": _id(record)}, "id", left, where)
            main = text_of(record, "generated_image" if _draws(item) else "edit_image", where, default="")
            names = [main] if main else []
            if record.get("generated_images"):
                names = list_of(record, "generated_images", str, where, "names of images")
                if main and main not in names:
                    raise DuoGenError(f"{where}: {main!r} is none of generated_images; expected one of them.")
            pictures: list[Part] = [picture_beside(file.parent, name, where) for name in names]
            said: list[Part] = [Text(text)] if (text := text_of(record, "response", where, default="")) else []
            replies = [said, pictures] if _draws(item) else [pictures, said]
            yield item, item.conversation(replies if item.later else [pictures + said])

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        scores = []
        for where, record in _scored(file):
            item = answered_by({"id": _id(record)}, "id", left, where)
            if not _draws(item):
                said = record.get("response")
                said = said[0] if isinstance(said, list) and said else said
                if not isinstance(said, str):
                    raise DuoGenError(f"{where}: response is missing; expected the submission, for GEU.")
                values = {"answer": float(option_in(said) == item.record["answer"])}
            else:
                values = {"image": number_of(record, "score", 0, 1, where)}
            scores.append(Score(item.id, item.category, values))
        if not scores:
            raise DuoGenError(f"{file} has no scores; expected what RealUnify's eval_generation.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        if not _draws(item):
            return []
        pictures = item.pictures(document)
        # Without an image it is wrong whatever is said: one question is enough to know that somebody judged.
        questions = item.record["question_list"] if pictures else item.record["question_list"][:1]
        picture = pictures[-1] if pictures else no_picture((64, 64))
        return [
            Ask(f"question {number}", PROMPT, {"question": entry["question"]}, SCHEMA, (("The image:", picture),), 100)
            for number, entry in enumerate(questions, 1)
        ]

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if not _draws(item):
            right = option_in(response(item, document)) == item.record["answer"]
            return Score(item.id, item.category, {"answer": float(right)})
        if not said:
            return Score(item.id, item.category, {"image": None})
        wrong = [
            f"{entry['question']} {entry['answer']}"
            for number, entry in enumerate(item.record["question_list"], 1)
            if said.get(f"question {number}", {}).get("answer") != entry["answer"].strip().lower()
        ]
        right = not wrong and bool(item.pictures(document))
        return Score(item.id, item.category, {"image": float(right)}, {"image": "; not so: ".join(["", *wrong])[2:]})


def option_in(text: str) -> str:
    """The first of A, B, C, D, as the scorer takes it: "Answer:" and the like left out first. It does not ask for a
    letter by itself, so "Because" is B: what is written before an answer counts against it."""
    found = re.search("[ABCD]", re.sub("Best answer:|Best option:|Answer", "", text))
    return found[0] if found else ""


def response(item: Item, document: Document) -> str:
    """What was written after the last image of the last reply: words around drafts are no answer. Where that is
    nothing, all of the reply's words."""
    replies = item.replies(document)
    parts = replies[-1] if len(replies) > len(item.later) else ()
    last = max((k for k, part in enumerate(parts) if isinstance(part, Picture)), default=-1)
    return joined(parts[last + 1 :]) or joined(parts)


def _draws(item: Item) -> bool:
    return "question_list" in item.record


def _is_step(file: Path, record: Mapping[str, Any]) -> bool:
    for end in ("_direct", "_step"):
        if file.stem.endswith(end):
            return end == "_step"
    return bool(record.get("new_prompt") or record.get("edit_prompt"))


def _id(record: Mapping[str, Any]) -> str:
    """TASK-INDEX; the scorer mixes up the order, so a place in the file would be no id."""
    index = record.get("index")
    if isinstance(index, bool) or not isinstance(index, (str, int)) or index == "":
        names = ("prompt", "new_prompt", "evaluation_prompt", "question", "edit_prompt", "input_image")
        asked = json.dumps([record.get(name) for name in names], ensure_ascii=False)
        index = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()[:12]
    return f"{record.get('task_type')}-{index}"


def _questions(record: Mapping[str, Any], where: str) -> None:
    for entry in list_of(record, "question_list", dict, where, "objects with question and answer"):
        text_of(entry, "question", where)
        if text_of(entry, "answer", where).strip().lower() not in ("yes", "no"):
            raise DuoGenError(f"{where}: an answer is {shown(entry['answer'][:40])!r}; expected yes or no.")
    if not record["question_list"]:
        raise DuoGenError(f"{where}: question_list is empty; expected questions about the image.")


def _question(record: Mapping[str, Any], where: str) -> str:
    if text := text_of(record, "evaluation_prompt", where, default="").strip():
        return text
    options = list_of(record, "option", str, where, "the texts of the options")
    if not 2 <= len(options) <= len(LETTERS):
        raise DuoGenError(f"{where}: option has {len(options)} entries; expected 2 to {len(LETTERS)}.")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([text_of(record, "question", where), *lines, "Answer with the letter of the right option."])


def _scored(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of a list in which null stands for what the judge failed on."""
    from duogen_core.files import read_json

    if file.suffix.lower() == ".jsonl":
        yield from records(file, "result of RealUnify")
        return
    entries = read_json(file, "result of RealUnify", limit=1 << 30)
    if not isinstance(entries, list) or not entries:
        raise DuoGenError(f"{file} is no list of answers; expected what RealUnify's eval_generation.py writes.")
    for number, entry in enumerate(entries, 1):
        if entry is not None:
            if not isinstance(entry, dict):
                raise DuoGenError(f"{file}, entry {number} is {shown(repr(entry)[:60])}; expected a JSON object.")
            yield f"{file}, entry {number}", entry


BENCHMARK = RealUnify
