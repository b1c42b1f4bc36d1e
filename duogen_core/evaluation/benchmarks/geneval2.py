"""GenEval 2: 800 prompts for one image each, with three to ten facts that a model is asked about one by one.

Source: github.com/facebookresearch/GenEval2 at a6e82d2 (CC BY-NC 4.0): geneval2_data.jsonl, evaluation.py,
soft_tifa_analysis.py.

requests     a line for each prompt: {"prompt", "atom_count", "vqa_list": [[question, answer]], "skills": [one of five
             for each question]}; an answer is "Yes" or a number in words
submission   images.json: {prompt: "images/0000.png"}; the scorer resolves names from the folder it is started in, so
             it is started beside the file
results      [[probability of the right answer, for each question]], a list for each prompt, in the order of the
             requests (of --method vqascore, one probability for each prompt)
Soft-TIFA AM is the mean of an image's probabilities, Soft-TIFA GM their geometric mean; the scorer gives both times
100. It asks Qwen3-VL-8B and takes its probability of the answer. A judge of ours gives an answer and no probability:
then AM is the share of right answers (the method `tifa`), and GM is 1 where all are right, else 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Text, is_text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score
from duogen_core.evaluation.benchmarks.asking import YES_OR_NO, reply_schema, whole
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
from duogen_core.files import read_json

MAIN = "images.json"
SKILLS = ("object", "attribute", "count", "position", "verb")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PROMPT = """Look at the image and answer a question about it. Whether the image is beautiful or likely does not matter.

The question: ${question}

- reason: one sentence that says what in the image decides it.
- answer: ${answer}"""
A_FACT = '"yes", or "no" also where it is true of a part of them only, or of something that is not there.'
A_NUMBER = "how many there are, as a number; 0 where there are none."


class GenEval2(Benchmark):
    name = "geneval2"
    title = "GenEval 2"
    source = "github.com/facebookresearch/GenEval2, CC BY-NC 4.0"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "am": Metric(0, 1, "Soft-TIFA AM: mean probability of the right answers about the image"),
        "gm": Metric(0, 1, "Soft-TIFA GM: their geometric mean, so one missing fact costs much"),
        "vqascore": Metric(0, 1, "VQAScore: probability that the image shows the whole prompt"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        prompts: dict[str, str] = {}
        for number, (where, record) in enumerate(records(file)):
            if "include" in record:
                raise DuoGenError(f"{where} is a request of the first GenEval; name the benchmark geneval.")
            prompt = text_of(record, "prompt", where)
            # The submission has one image for each prompt.
            if prompt in prompts:
                raise DuoGenError(f"{where} has the prompt of {prompts[prompt]}; every prompt must be there once.")
            prompts[prompt] = where
            questions, skills = list_of(record, "vqa_list", list, where, "pairs"), record.get("skills")
            for pair in questions:
                if len(pair) != 2 or not all(isinstance(one, str) and is_text(one) for one in pair):
                    raise DuoGenError(f"{where}: vqa_list has {shown(repr(pair)[:60])}; expected [question, answer].")
                if pair[1] not in ("Yes", *NUMBERS):
                    raise DuoGenError(
                        f"{where}: the answer {shown(repr(pair[1])[:40])} is none; expected Yes or a number in words."
                    )
            if not questions or not isinstance(skills, list) or len(skills) != len(questions):
                raise DuoGenError(f"{where}: skills does not have one for each question of vqa_list.")
            if unknown := [one for one in skills if one not in SKILLS]:
                raise DuoGenError(
                    f"{where}: skills has {shown(repr(unknown[0])[:40])}; expected some of {', '.join(SKILLS)}."
                )
            atoms = field_of(record, "atom_count", int, where, "a number")
            yield Item(
                f"{number:04d}", Document().begin_turn("user", [Text(prompt)]), record, f"{atoms} atoms", images=1
            )

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        (out / "images").mkdir()
        names = {}
        for item, document in answers:
            name = names[item.record["prompt"]] = f"images/{item.id}.png"
            write_picture_or_none((item.pictures(document) or [None])[-1], out / name)
        write_json(out / MAIN, names)
        return out / MAIN

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / MAIN if place.is_dir() else place
        names = read_json(file, "submission")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise DuoGenError(f"{file} is not a submission of GenEval 2; expected {{prompt: name of an image}}.")
        known = {item.record["prompt"] for item in items}
        if unknown := [prompt for prompt in names if prompt not in known]:
            raise DuoGenError(f"{file} answers {shown(repr(unknown[0])[:80])}, which no request has.")
        for item in items:
            name = names.get(item.record["prompt"])
            if name is not None:
                found = picture_or_none(file.parent, name, f"{file}, request {item.id}")
                yield item, item.prompt.begin_turn("assistant", [found] if found else [])

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        lists = read_json(file, "result of GenEval 2")
        if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
            raise DuoGenError(
                f"{file} is not a list of lists; expected the --output_file of GenEval 2's evaluation.py."
            )
        if len(lists) != len(items):
            # It says nothing of prompts: with other requests, every score would go to a wrong one.
            raise DuoGenError(
                f"{file} has scores for {len(lists)} prompts, and there are {len(items)} requests; read it with the "
                "requests that were scored (--benchmark_data)."
            )
        scores = []
        for item, values in zip(items, lists):
            where = f"{file}, list {item.id}"
            questions = len(item.record["vqa_list"])
            if len(values) not in (1, questions):
                raise DuoGenError(f"{where} has {len(values)} scores; expected one for each of {questions} questions.")
            for value in values:
                # Sums of a few probabilities in half precision may pass 1 by a little.
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e-6 <= value <= 1.01:
                    raise DuoGenError(f"{where} has {shown(repr(value)[:40])}; expected probabilities from 0 to 1.")
            values = [min(max(float(value), 0.0), 1.0) for value in values]
            whole = len(values) < questions
            scores.append(
                Score(item.id, item.category, {"vqascore": values[0]}) if whole else self._score(item, values)
            )
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        picture = (item.pictures(document) or [no_picture()])[-1]
        asks = []
        for number, (question, answer) in enumerate(item.record["vqa_list"], 1):
            counts = answer in NUMBERS
            prompt = PROMPT.replace("${answer}", A_NUMBER if counts else A_FACT)
            schema = reply_schema({"answer": whole(0, 1000) if counts else YES_OR_NO})
            asks.append(Ask(str(number), prompt, {"question": question}, schema, (("Image:", picture),)))
        return asks

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if not said:
            return Score(item.id, item.category, {"am": None, "gm": None})
        values, wrong = [], []
        for number, (question, answer) in enumerate(item.record["vqa_list"], 1):
            reply = said[str(number)]
            right = reply["answer"] == (NUMBERS.index(answer) if answer in NUMBERS else "yes")
            # Nothing is seen in an image that is not there, whatever the judge says of the grey one in its place.
            values.append(float(right and bool(item.pictures(document))))
            wrong += [] if values[-1] else [f"{question} {reply['answer']}: {reply['reason']}"]
        return self._score(item, values, " ".join(wrong))

    def _score(self, item: Item, values: Sequence[float], reason: str = "") -> Score:
        found = {"am": sum(values) / len(values), "gm": geometric_mean(values)}
        atoms = {"skills": list(item.record["skills"]), "values": list(values)}
        return Score(item.id, item.category, found, {"am": reason} if reason else {}, atoms)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """As the scorer and its analysis print them, times 100: AM for each skill over its questions, GM for each
        number of atoms over its prompts."""
        scores = list(scores)
        figures = super().summary(scores)
        named = {"am": "Soft-TIFA AM", "gm": "Soft-TIFA GM", "vqascore": "VQAScore"}
        found = {label: 100 * figures[name] for name, label in named.items() if name in figures}
        skills: dict[str, list[float]] = {}
        for score in scores:
            for skill, value in zip(score.detail.get("skills", ()), score.detail.get("values", ())):
                skills.setdefault(skill, []).append(value)
        found |= {
            f"{skill}: Soft-TIFA AM": 100 * sum(skills[skill]) / len(skills[skill])
            for skill in SKILLS
            if skill in skills
        }
        atoms = sorted({score.category for score in scores}, key=lambda name: int(name.split()[0]))
        return found | {
            f"{name}: Soft-TIFA GM": 100 * figures[f"{name}: gm"] for name in atoms if f"{name}: gm" in figures
        }


def geometric_mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(math.log(value) for value in values) / len(values))


BENCHMARK = GenEval2
