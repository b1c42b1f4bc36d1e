"""ImgEdit: edits of nine kinds in one step (737), and conversations of two or three edits.

Source: github.com/PKU-YuanGroup/ImgEdit at 547185d (no licence given), Benchmark/Basic and Benchmark/Multiturn; data
Benchmark.tar of huggingface.co/datasets/sysuyy/ImgEdit. The file of requests decides which part it is.

basic        requests     {"1082": {"id": "animal/000342021.jpg", "prompt", "edit_type"}}; id: the image, beside the
                          file of requests
             submission   1082.png
             results      result.json, {"1082": "Brief reasoning: …\nPrompt Compliance: 4\n…"}: three aspects from 1 to
                          5, which step1_get_avgscore.py averages and rounds (average_score.json is read, too)
multi-turn   requests     {"1": {"id", "turn1", "turn2", "turn3"?}}; each turn is asked when the one before is answered
             submission   1_turn1.png, 1_turn2.png, … (ours: people judge this part, and no layout is published)
The official figures are the means of each kind of edit. `overall`, the mean of the kinds, is what papers add.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import check_relative
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, with_mean
from duogen_core.evaluation.benchmarks.asking import reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    is_there,
    no_picture,
    picture_beside,
    picture_or_none,
    text_of,
    write_picture_or_none,
)
from duogen_core.files import read_json

RESULT = "result.json"
TURNS = ("turn1", "turn2", "turn3")
ASPECTS = ("instruction", "naturalness", "detail")
KEPT_SECOND = ("instruction", "detail", "naturalness")
# In which order the official judge is asked for which aspect, by kind of edit.
TYPES = {
    "add": ASPECTS, "adjust": ASPECTS, "replace": ASPECTS, "remove": ASPECTS, "background": ASPECTS, "compose": ASPECTS,
    "style": KEPT_SECOND, "action": KEPT_SECOND, "extract": KEPT_SECOND,
}  # fmt: skip
GOALS = {
    "add": "Something is to be added, and all else stays.",
    "adjust": "A property of something is to change; its shape, and all else, stays.",
    "replace": "Something is to be replaced by something else; all else stays.",
    "remove": "Something is to be removed, and what is behind it to be filled in.",
    "background": "What is behind is to change; what stands before it stays as it is.",
    "compose": "Several edits are to be made at once; all else stays.",
    "style": "All of the image is to be drawn in another style; what it shows stays.",
    "action": "Someone is to do something else, and to stay the same person or animal.",
    "extract": "One object is to be cut out, whole and unchanged, on a plain background.",
}
RATING = """- reason: one sentence about what decided the scores.
- instruction, 1 to 5: is done what the instruction asks? 5: all of it, and nothing else was touched. 3: the main thing, with a fault that one sees. 1: not done, or done to something else.
- naturalness, 1 to 5: does the result look made in one piece? 5: no trace of an edit. 3: traces that one finds when looking. 1: cut edges, noise or smears at first sight.
- detail, 1 to 5: is kept what should stay, and do light, shadow, perspective and fine detail fit? 5: all of it. 3: small losses. 1: much is lost or wrong.
naturalness and detail are never higher than instruction: an edit that was not made cannot be made well."""  # noqa: E501
PROMPT = f"""Rate an edit of an image. The first image is the one before, the second one the one after.

The instruction: ${{instruction}}
${{goal}}

{RATING}"""
PROMPT_OF_TURN = f"""Rate the last edit in a conversation of edits. The first image is the one that it began with; each further image answers one instruction.

The instructions so far, in their order:
${{instructions}}

Rate what the last image makes of the last instruction. Earlier ones may say something that still holds ("from now on …"), and the last one may go back to an earlier image.

{RATING}"""  # noqa: E501
SCHEMA = reply_schema(dict.fromkeys(ASPECTS, whole(1, 5)))


class ImgEdit(Benchmark):
    name = "imgedit"
    title = "ImgEdit"
    source = "github.com/PKU-YuanGroup/ImgEdit, no licence given; data huggingface.co/datasets/sysuyy/ImgEdit"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "score": Metric(1, 5, "mean of the three aspects"),
        "instruction": Metric(1, 5, "what was asked for is done, and nothing else"),
        "naturalness": Metric(1, 5, "no trace of an edit is seen"),
        "detail": Metric(1, 5, "what should stay is kept; light and detail fit"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        requests = read_json(file, "file of requests")
        if not isinstance(requests, dict):
            raise DuoGenError(f"{file} is a list; expected ImgEdit's object of requests by their numbers.")
        pictures: WeakValueDictionary[str, Picture] = WeakValueDictionary()  # many requests are about the same one
        for key, record in requests.items():
            where = f"{file}, {shown(key[:80])}"
            if not isinstance(record, dict):
                raise DuoGenError(f"{where} is {shown(repr(record)[:60])}; expected a request of ImgEdit.")
            check_relative(key, where)
            if "/" in key:
                raise DuoGenError(f"{where}: the number becomes the name of an image, and has a / in it.")
            name = text_of(record, "id", where)
            picture = pictures.get(name)
            if picture is None:
                picture = pictures[name] = picture_beside(file.parent, name, where)
            yield _request(key, record, picture, file.stem, where)

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        for item, document in answers:
            for name, picture in zip(_names(item), _edits(item, document)):
                write_picture_or_none(picture, out / name, item.prompt.pictures[0].size)
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        if not place.is_dir():
            raise DuoGenError(f"{place} is not a folder; expected that of ImgEdit's edited images.")
        for item in items:
            names = _names(item)
            there = [is_there(place / name) for name in names]
            if not any(there):
                continue
            where = f"request {item.id}"
            found = [picture_or_none(place, name, where) if given else None for name, given in zip(names, there)]
            yield item, item.conversation([[picture] if picture else [] for picture in found])

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        file = file / RESULT if file.is_dir() else file
        found = read_json(file, "result of ImgEdit", limit=1 << 28)
        if not isinstance(found, dict) or not found:
            raise DuoGenError(f"{file} is not ImgEdit's {RESULT}; expected {{number: what the judge said}}.")
        known = by_id(file, items)
        scores = []
        for key, said in found.items():
            where = f"{file}, {shown(key[:80])}"
            item = known.get(key)
            if item is None:
                raise DuoGenError(f"{where} is the number of no request.")
            if item.later:
                raise DuoGenError(f"{where}: people judge ImgEdit's conversations; expected results of its basic part.")
            scores.append(_official(item, said, where))
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        before = item.prompt.pictures[0]
        edits = [picture or no_picture(before.size) for picture in _edits(item, document)]
        if not item.later:
            prompt = PROMPT.replace("${goal}", GOALS[item.category])
            data = {"instruction": item.record["prompt"]}
            return [Ask("edit", prompt, data, SCHEMA, (("Before:", before), ("After:", edits[0])))]
        asks = []
        for number in range(1, len(edits) + 1):
            said = "\n".join(f"{k}. {item.record[TURNS[k - 1]]}" for k in range(1, number + 1))
            seen = [("The image it began with:", before)]
            seen += [(f"After instruction {k}:", edits[k - 1]) for k in range(1, number + 1)]
            asks.append(Ask(TURNS[number - 1], PROMPT_OF_TURN, {"instructions": said}, SCHEMA, tuple(seen)))
        return asks

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        if not said:
            return Score(item.id, item.category, dict.fromkeys(self.metrics))
        turns = []
        for picture, reply in zip(_edits(item, document), said.values()):
            best = reply["instruction"] if picture else 1
            turns.append([best, *(min(reply[aspect], best) for aspect in ASPECTS[1:])])
        values: dict[str, float | None] = {
            aspect: sum(turn[k] for turn in turns) / len(turns) for k, aspect in enumerate(ASPECTS)
        }
        score = sum(sum(turn) / len(turn) for turn in turns) / len(turns)
        reasons = " ".join(reply["reason"] for reply in said.values())
        return Score(item.id, item.category, {"score": score, **values}, {"score": reasons})

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        figures = super().summary(scores)
        return with_mean("overall", [name for name in figures if name.endswith(": score")], figures)


def _request(key: str, record: Mapping[str, Any], picture: Picture, part: str, where: str) -> Item:
    """part: the name of the file, which says which kind of conversations it has."""
    if "turn1" in record:
        wanted = TURNS if record.get(TURNS[-1]) is not None else TURNS[:-1]  # two or three
        first, *later = (text_of(record, turn, where) for turn in wanted)
        turns = tuple((Text(text),) for text in later)
        return Item(key, Document().begin_turn("user", [picture, Text(first)]), record, part, images=1, later=turns)
    prompt = Document().begin_turn("user", [picture, Text(text_of(record, "prompt", where))])
    if "edit_type" not in record:
        raise DuoGenError(
            f"{where} has no edit_type; expected a request of ImgEdit's basic_edit.json, or one with turn1, turn2 (its "
            "UGE part is not known here)."
        )
    kind = text_of(record, "edit_type", where)
    if kind not in TYPES:
        raise DuoGenError(f"{where}: edit_type is {shown(repr(kind)[:40])}; expected one of {', '.join(TYPES)}.")
    return Item(key, prompt, record, kind, images=1)


def _names(item: Item) -> list[str]:
    if not item.later:
        return [f"{item.id}.png"]
    return [f"{item.id}_{turn}.png" for turn in TURNS[: 1 + len(item.later)]]


def _edits(item: Item, document: Document) -> list[Picture | None]:
    """The last picture of the answer to each instruction; None where there is none."""
    found: list[Picture | None] = []
    for reply in item.replies(document)[: 1 + len(item.later)]:
        pictures = [part for part in reply if isinstance(part, Picture)]
        found.append(pictures[-1] if pictures else None)
    return found + [None] * (1 + len(item.later) - len(found))


def _official(item: Item, said: Any, where: str) -> Score:
    """As step1_get_avgscore.py reads what the judge said: every line of the form "name: number"."""
    nothing = Score(item.id, item.category, dict.fromkeys((*ImgEdit.metrics,)))
    if isinstance(said, dict):  # the judge was not reached; step1_get_avgscore.py breaks on it
        return nothing
    if isinstance(said, (int, float)) and not isinstance(said, bool):
        numbers = [said]
    elif isinstance(said, str):
        pairs = [line.strip().split(": ") for line in said.splitlines()]
        digits = [pair[1] for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()]
        numbers = [int(text.lstrip("0")[:9] or 0) for text in digits]  # more digits are as much too large
    else:
        raise DuoGenError(f"{where} is {shown(repr(said)[:60])}; expected what the judge said, or its average.")
    if not numbers:
        return nothing
    if not all(1 <= number <= 5 for number in numbers):
        raise DuoGenError(
            f"{where} has the score {max(numbers, key=lambda n: abs(n - 3))}; expected numbers from 1 to 5."
        )
    values: dict[str, float | None] = {"score": round(sum(numbers) / len(numbers), 2)}
    if len(numbers) == len(ASPECTS):
        values |= dict(zip(TYPES[item.category], map(float, numbers)))
    return Score(item.id, item.category, values, {"score": said} if isinstance(said, str) else {})


BENCHMARK = ImgEdit
