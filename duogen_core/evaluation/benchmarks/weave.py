"""WEAVE (its benchmark part, WeaveBench): 100 conversations of several turns that edit, recall and fuse images.

Source: github.com/weichow23/weave (dfc17dd, Apache-2.0); data huggingface.co/datasets/WeiChow/Weave (`test/`).

requests     test.json: [{"idx", "domain", "images": [name], "chats": [{"role", "type": "text" or "image", "content":
             "… Image #2 …", "key_point": {"GT #1": "… <image> …"}}]}], user and assistant in turn. Image #k is the
             k-th of `images`, beside the file: given by the user, or (its number is an assistant's content) to be made
submission   a folder of files: the image that is Image #k has the last part of that image's name, the text that
             answers turn n the first image's, STEM_n.txt (the first turn is 0)
results      metrics.jsonl: {"idx", "domain", "turn 0": {"key_point": {"score": 0 to 10, "reasoning"},
             "visual_consistency": …, "image_quality": …, "accuracy": … (0, 5 or 10)}, …}
A figure is the mean over turns, divided by ten: of all, of four groups and of each domain; every figure is rounded to
three digits before it goes into the next one. An image that was not made is a grey one in the submission.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.document.reading import check_relative, folder_reader
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id, joined
from duogen_core.evaluation.benchmarks.asking import reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    field_of,
    id_of,
    is_there,
    list_of,
    no_picture,
    number_of,
    picture_beside,
    picture_or_none,
    records,
    text_of,
    write_picture_or_none,
)
from duogen_core.files import read_limited, write_atomically

GROUPS = {
    "Science": ("optics", "geography", "astronomy", "chemistry", "physics", "biology"),
    "Creation": ("edit", "recall", "fusion", "story"),
    "Logic": ("spatial", "mathematics"),
    "Game": ("chess_game", "visual_jigsaw", "minecraft", "maze"),
}
GROUP_OF = {domain: group for group, domains in GROUPS.items() for domain in domains}
OF_IMAGES, OF_TEXTS = ("key_point", "visual_consistency", "image_quality"), ("accuracy",)
WEIGHTS = {"key_point": 0.5, "visual_consistency": 0.2, "image_quality": 0.3}
WEIGHTS_WITH_TEXTS = {"key_point": 0.4, "visual_consistency": 0.1, "image_quality": 0.2, "accuracy": 0.3}
NAMED = re.compile(r"Image #(\d{1,9})")  # no more digits: Python reads no number of thousands of them
GIVEN = re.compile(r"GT #(\d{1,9})")
MAX_TEXT = 16 << 20

GREY = "A plain grey image stands for one that was not made: then the score is 0."
KEY_POINT_PROMPT = """A model made an image as it was told to. Say how far it fulfils every requirement. The requirements speak of other images as [Image 2] and so on; the made one is Image 1, and they follow in this order.

The requirements:
${requirements}

What should have changed counts, and so does what a requirement says should be as it was; faults in the drawing count a little. ${seen}
- reason: what decided it, in one or two sentences.
- score: a whole number from 0 to 10; 9 or 10 where every requirement is met, 7 or 8 with small lapses, 5 or 6 where several are met in part, 3 or 4 where much is missing, less where most is missed."""  # noqa: E501
CONSISTENCY_PROMPT = """A model made an image as it was told to. Say how far it left alone what the requirements leave alone. The requirements speak of other images as [Image 2] and so on; the made one is Image 1, and they follow in this order.

The requirements:
${requirements}

Compare it in this with the other images: background, other things, who somebody is, style, light, framing. What was to be changed does not count. ${seen}
- reason: what decided it, in one or two sentences.
- score: a whole number from 0 to 10; 10 where no difference can be found, 8 where it takes a close look, 5 where several are plain, 2 where hardly anything is the same."""  # noqa: E501
QUALITY_PROMPT = """Judge how well an image is made, whatever it shows: shapes and proportions, sharpness, texture, light and colour, no doubled, melted or cut things, nothing that gives away a machine. An image that is put together of several images gets 4 at most. ${seen}
- reason: what decided it, in one or two sentences.
- score: a whole number from 0 (of no use) to 10 (as a professional makes it)."""  # noqa: E501
ACCURACY_PROMPT = """Compare an answer with the right one.

The right answer:
${right}

The answer:
${answer}

- reason: what decided it, in one or two sentences.
- score: 10 where it says all that the right answer says, in whatever words, and nothing wrong; 5 where something of it is missing or wrong; 0 where it says something else or nothing."""  # noqa: E501
TO_TEN = reply_schema({"score": whole(0, 10)})
RIGHT_OR_WRONG = reply_schema({"score": {"enum": [0, 5, 10]}})


@dataclass(frozen=True)
class _Turn:
    """made: the number of the image that answers it, None where a text does. file: where the answer is put. points:
    the requirements; right: the text that is right."""

    made: int | None
    file: str
    points: Mapping[str, str]
    right: str


class Weave(Benchmark):
    name = "weave"
    title = "WEAVE"
    source = "github.com/weichow23/weave, Apache-2.0; data huggingface.co/datasets/WeiChow/Weave"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "key_point": Metric(0, 10, "the image fulfils what was asked for"),
        "visual_consistency": Metric(0, 10, "what should stay as it was has stayed"),
        "image_quality": Metric(0, 10, "the image is well made"),
        "accuracy": Metric(0, 10, "the text says what the right answer says"),
    }

    def items(self, file: Path) -> Iterator[Item]:
        owners: dict[str, str] = {}
        for where, record in records(file):
            if not {"idx", "domain", "images", "chats"} <= set(record):
                raise DuoGenError(f"{where} has no idx, domain, images or chats; expected WEAVE's test.json.")
            id = id_of(record, "idx", where)
            where = f"{where} (item {id})"
            turns = _turns(record, where)
            files = [(turn.file, f"turn {number} of item {id}") for number, turn in enumerate(turns)]
            files += [(_base(name, where), f"the image {name}") for name in _looked_for(turns, record)]
            for base, what in files:
                if owners.setdefault(base, what) != what:
                    raise DuoGenError(
                        f"{where}: {shown(base[:80])} is the file of {shown(what[:200])} and of "
                        f"{shown(owners[base][:200])}; the official submission is one folder, so each needs its own."
                    )
            for k in {k for turn in turns for k in _numbers(GIVEN, turn.points)}:
                if not is_there(file.parent / record["images"][k - 1]):
                    missing = shown(record["images"][k - 1][:200])
                    raise DuoGenError(f"{where}: the image {missing} does not exist beside the requests.")
            asked = list(_asked(record, turns, file.parent, where))
            due = [0 if turn.made is None else 1 for turn in turns]
            yield Item(
                id, Document().begin_turn("user", asked[0]), {**record, "folder": str(file.parent)},
                text_of(record, "domain", where), due[0], tuple(asked[1:]), tuple(due[1:]),
            )  # fmt: skip

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        for item, document in answers:
            answered = list(_answered(item, document))
            for turn, reply in answered:
                if turn.made is None:
                    write_atomically(out / turn.file, joined(reply).encode("utf-8", "replace"))
                else:
                    write_picture_or_none(_picture(reply), out / turn.file)
            read = folder_reader(Path(item.record["folder"]))
            for name in _looked_for([turn for turn, _ in answered], item.record):
                write_atomically(out / _base(name, item.id), read(name.removeprefix("./"), item.id))
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        if not place.is_dir():
            raise DuoGenError(f"{place} is no folder; a submission to WEAVE is a folder of images and texts.")
        for item in items:
            where = f"the answer to item {item.id}"
            turns = _turns(item.record, where)
            there = [is_there(place / turn.file) for turn in turns]
            replies = []
            for turn, given in zip(turns, there):
                parts: list[Part] = []
                if given and turn.made is None:
                    text = read_limited(place / turn.file, MAX_TEXT, turn.file, "text").decode("utf-8", "replace")
                    parts = [Text(text)] if text.strip() else []
                elif given and (picture := picture_or_none(place, turn.file, where)) is not None:
                    parts = [picture]
                replies.append(parts)
            if any(there):
                yield item, item.conversation(replies)

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        known = by_id(file, items)
        scores = []
        for where, record in records(file, "result of WEAVE"):
            id = id_of(record, "idx", where)
            if id not in known:
                raise DuoGenError(f"{where} scores {shown(id[:80])!r}, which no request has or an earlier line scores.")
            numbers: dict[str, list[float]] = {}
            reasons: dict[str, list[str]] = {}
            for turn in [value for key, value in record.items() if key.startswith("turn ") and isinstance(value, dict)]:
                for metric, said in turn.items():
                    if metric in self.metrics and isinstance(said, dict) and "score" in said:
                        number = number_of(said, "score", 0, 10, f"{where}, {metric}")
                        numbers.setdefault(metric, []).append(number or 0.0)
                        reasons.setdefault(metric, []).append(str(said.get("reasoning") or ""))
            scores.append(_score(known.pop(id), numbers, reasons))
        if not scores:
            raise DuoGenError(f"{file} is empty; expected the metrics.jsonl that WEAVE's eval/main.py writes.")
        return scores

    def asks(self, item: Item, document: Document) -> list[Ask]:
        answered = list(_answered(item, document))
        made = {turn.made: _picture(reply) or no_picture() for turn, reply in answered if turn.made is not None}
        found = []
        for number, (turn, reply) in enumerate(answered):
            if turn.made is None:
                data = {"right": turn.right, "answer": joined(reply) or "(nothing)"}
                found.append(Ask(f"turn {number} accuracy", ACCURACY_PROMPT, data, RIGHT_OR_WRONG))
                continue
            requirements, others = _seen(turn, made, item)
            pictures = tuple((f"Image {n}:", picture) for n, picture in enumerate([made[turn.made], *others], 1))
            for metric, prompt, data, seen in (
                ("key_point", KEY_POINT_PROMPT, {"requirements": requirements}, pictures),
                ("visual_consistency", CONSISTENCY_PROMPT, {"requirements": requirements}, pictures),
                ("image_quality", QUALITY_PROMPT, {}, pictures[:1]),
            ):
                prompt = prompt.replace("${seen}", GREY)
                found.append(Ask(f"turn {number} {metric}", prompt, data, TO_TEN, seen))
        return found

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        numbers: dict[str, list[float]] = {}
        reasons: dict[str, list[str]] = {}
        for key, reply in said.items():
            metric = key.rpartition(" ")[2]
            numbers.setdefault(metric, []).append(reply["score"])
            reasons.setdefault(metric, []).append(reply["reason"])
        return _score(item, numbers, reasons)

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """ "overall" is what the scorer calls AVG."""
        turns: dict[str, dict[str, list[float]]] = {}
        for score in scores:
            group = GROUP_OF.get(score.category)
            for metric, numbers in score.detail["turns"].items():
                for name in ("", group and f"{group}: ", f"{score.category}: "):
                    if name is not None:
                        turns.setdefault(name, {}).setdefault(metric, []).extend(numbers)
        figures: dict[str, float] = {}
        for name in sorted(turns):
            means = {metric: round(sum(found) / len(found) / 10, 3) for metric, found in turns[name].items()}
            figures[f"{name}overall"] = _weighted(means)
            figures.update({f"{name}{metric}": means[metric] for metric in self.metrics if metric in means})
        return figures


def _weighted(means: Mapping[str, float]) -> float:
    if not all(metric in means for metric in OF_IMAGES):
        return round(sum(means.values()) / len(means), 3)
    weights = WEIGHTS_WITH_TEXTS if "accuracy" in means else WEIGHTS
    return round(sum(means[metric] * weight for metric, weight in weights.items()), 3)


def _score(item: Item, numbers: Mapping[str, list[float]], reasons: Mapping[str, list[str]]) -> Score:
    values = {name: sum(numbers[name]) / len(numbers[name]) if name in numbers else None for name in Weave.metrics}
    said = {name: " ".join(filter(None, texts)) for name, texts in reasons.items()}
    return Score(
        item.id, item.category, values, said, {"turns": {name: list(found) for name, found in numbers.items()}}
    )


# ------------------------------------------------------------ what a conversation asks for


def _turns(record: Mapping[str, Any], where: str) -> list[_Turn]:
    images = list_of(record, "images", str, where, "names")
    chats = list_of(record, "chats", dict, where, "objects with role, type and content")
    if not chats or [chat.get("role") for chat in chats] != ["user", "assistant"] * (len(chats) // 2):
        raise DuoGenError(f"{where}: chats are not from user and assistant in turn.")
    turns = []
    for number, chat in enumerate(chats[1::2]):
        kind, content = text_of(chat, "type", where), text_of(chat, "content", where)
        if kind == "text":
            file = re.sub(r"\.(jpg|png|jpeg)$", f"_{number}.txt", images[0] if images else "", flags=re.IGNORECASE)
            if not file.endswith(".txt"):
                raise DuoGenError(f"{where}: the first of images has no name like x.jpg, after which a text is named.")
            turns.append(_Turn(None, _base(file, where), {}, content))
            continue
        points = field_of(chat, "key_point", dict, where, "an object of requirements")
        named = [*_numbers(NAMED, [content])[:1], *_numbers(NAMED, points), *_numbers(GIVEN, points)]
        if kind != "image" or not NAMED.search(content) or not all(1 <= k <= len(images) for k in named):
            raise DuoGenError(
                f"{where}: the answer to turn {number} is {shown(repr(content)[:60])} of the type "
                f"{shown(repr(kind)[:60])}; expected a text, or an image with the number of one of {len(images)}."
            )
        said = {key: point if isinstance(point, str) else str(point) for key, point in points.items()}  # as the scorer
        turns.append(_Turn(named[0], _base(images[named[0] - 1], where), said, ""))
    return turns


def _answered(item: Item, document: Document) -> Iterator[tuple[_Turn, tuple[Part, ...]]]:
    """Each turn with its reply, an empty one where the model gave none."""
    turns, replies = _turns(item.record, f"item {item.id}"), item.replies(document)
    for number, turn in enumerate(turns):
        yield turn, replies[number] if number < len(replies) else ()


def _looked_for(turns: Sequence[_Turn], record: Mapping[str, Any]) -> list[str]:
    """The user's images that the scorer looks for among the answers: requirements name them Image #k, not GT #k."""
    numbers = {k for turn in turns for k in _numbers(NAMED, turn.points)} - {turn.made for turn in turns}
    return [record["images"][k - 1] for k in sorted(numbers)]


def _numbers(pattern: re.Pattern[str], texts: Iterable[str]) -> list[int]:
    return [int(number) for text in texts for number in pattern.findall(text)]


def _base(name: str, where: str) -> str:
    base = name.rpartition("/")[2]
    check_relative(base, where)
    return base


def _asked(record: Mapping[str, Any], turns: Sequence[_Turn], folder: Path, where: str) -> Iterator[tuple[Part, ...]]:
    """The parts of each turn of the user: an image that is the user's follows its first mention."""
    images, shown_before = record["images"], {turn.made for turn in turns}
    for chat in record["chats"][::2]:
        parts: list[Part] = []
        text, end = text_of(chat, "content", where), 0
        for mention in NAMED.finditer(text):
            k = int(mention[1])
            if k in shown_before:
                continue
            if not 1 <= k <= len(images):
                raise DuoGenError(f"{where} speaks of {mention[0]}, and there are {len(images)} images.")
            shown_before.add(k)
            parts += [Text(text[end : mention.end()]), picture_beside(folder, images[k - 1], where)]
            end = mention.end()
        if text[end:].strip() or not parts:
            parts.append(Text(text[end:]))
        yield tuple(parts)


def _picture(reply: Iterable[Part]) -> Picture | None:
    """The last image of a reply: what came before it were drafts."""
    return next((part for part in reversed([*reply]) if isinstance(part, Picture)), None)


def _seen(turn: _Turn, made: Mapping[int, Picture], item: Item) -> tuple[str, list[Picture]]:
    """The requirements as a judge reads them, and their images: one for each that names a number, in this order."""
    pictures = []
    for key in turn.points:
        given, named = _numbers(GIVEN, [key]), _numbers(NAMED, [key])
        if not given and named and named[0] in made:
            pictures.append(made[named[0]])
        elif given or named:
            name = item.record["images"][(given or named)[0] - 1]
            pictures.append(picture_beside(Path(item.record["folder"]), name, f"item {item.id}"))
    counted = itertools.count(2)
    points = [re.sub("<image>", lambda _: f"[Image {next(counted)}]", point) for point in turn.points.values()]
    return "\n".join(f"{number}. {point}" for number, point in enumerate(points, 1)), pictures


BENCHMARK = Weave
