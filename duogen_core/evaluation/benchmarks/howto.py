"""Our how-to set: 500 requests for guides over the 151 subcategories of the taxonomy, and 100 dishes to cook from.

Ours, not the How-to-500 and Cooking-200 of the DuoGen paper (arXiv 2602.00508), which are not public: its figures and
these are of other requests, other prompts and another judge, and stand side by side only as such. Every request was
written by hand for this set, and none is near to a seed of `data synthetic` or to a request of `evaluate plan`.

requests     howto_requests.yaml beside this file, or another one in its layout:
             guides: {domain: {subcategory: [text, {text, steps, most, images}]}}, dishes: [caption, {caption, image}]
             steps, images: how many a request asks for; most: steps at most; image: a photo beside the file. What a
             model is given is guide_prompt with the text in the place of {request}, dish_prompt with it in {dish}'s
submission   a folder: index.json {"format", "version", "model", "answers": [{"id", "document"}]}, and each answer as
             the whole conversation, a document of this project (docs/documents.md)
results      what `evaluate judge` writes (duogen_core.evaluation.results): {"benchmark": "howto", "cases": [{"id",
             "values": {metric: number, or null where it does not apply}, "reasons": {metric: text}}]}

The judge is asked for each metric by itself, and sees what that metric is about and nothing else: a score of the images
alone cannot be swayed by a fine text, nor one metric by the score just given for another; and a small local judge has
one scale of six points to keep in mind in place of five. The images are sent up to four times for that.
An answer without images has 0 in the four metrics of images, and nothing is asked about them. With one image alone
there is nothing for it to be consistent with: that metric does not apply.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.config_text import ConfigTextError, read_yaml
from duogen_core.document import Document, Part, Picture, Text
from duogen_core.document.reading import inside, load_document
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Metric, Score, by_id
from duogen_core.evaluation.benchmarks.asking import reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import (
    MAX_BYTES,
    answered_by,
    begins_with,
    field_of,
    file_name,
    list_of,
    number_of,
    picture_beside,
    text_of,
    write_json,
)
from duogen_core.files import read_json, read_limited
from duogen_core.planning.faults import cut_off

OURS = Path(__file__).with_name("howto_requests.yaml")
DIGEST = "455d926ef9f4adefd8e1361e523ff19481ed5cec0763dbe8947ce8b8a20dba0c"
DISHES = "Dish to recipe"  # the category of the dishes
GUIDES = "Guides"  # what sums over the guides of all domains begin with
INDEX, FORMAT, VERSION = "index.json", "duogen-howto-answers", 1
NAMES = {"version", "guide_prompt", "dish_prompt", "guides", "dishes"}
COUNTS = ("steps", "most", "images")
MOST_COUNTED = 100
JUDGED = ("text completeness", "image completeness", "image consistency", "image quality", "image-text consistency")


class HowTo(Benchmark):
    name = "howto"
    title = "DuoGen's own how-to set"
    source = "ours: 500 guides and 100 dishes, written by hand, shipped with this project under its licence"
    OURS = OURS
    metrics: ClassVar[Mapping[str, Metric]] = {
        "text completeness": Metric(0, 5, "whether the text alone leads the reader all the way"),
        "image completeness": Metric(0, 5, "whether every step that changes what is seen has its image"),
        "image consistency": Metric(0, 5, "whether the same things look the same from image to image"),
        "image quality": Metric(0, 5, "how well made each image is"),
        "image-text consistency": Metric(0, 5, "whether each image shows what its step says"),
        "count as asked": Metric(0, 1, "steps or images as many as the request asks for, where it does", "check"),
        "steps illustrated": Metric(0, 1, "share of the steps that have an image of their own", "check"),
        "ended": Metric(0, 1, "the answer ends by itself, and not in the middle of a sentence", "check"),
    }

    # ------------------------------------------------------------ requests, submission, results

    def items(self, file: Path) -> Iterator[Item]:
        data = read_limited(file, MAX_BYTES, str(file), "file of requests")
        if file.resolve() == OURS.resolve() and digest_of(data) != DIGEST:
            raise DuoGenError(
                f"{file} is not as it was published, so its figures would be of another set; install DuoGen again, or "
                "keep the changed file elsewhere and name it with --requests."
            )
        try:
            value = read_yaml(data.decode("utf-8-sig"))
        except (UnicodeDecodeError, ConfigTextError) as error:
            raise DuoGenError(f"{file} cannot be read as YAML: {error}.") from None
        if not isinstance(value, dict) or not {"guides", "dishes"} & set(value) or set(value) - NAMES:
            raise DuoGenError(
                f"{file} is no file of how-to requests; expected guides, dishes or both, as ours has them."
            )
        if value.get("version", VERSION) != VERSION:
            found = shown(repr(value["version"])[:40])
            raise DuoGenError(f"{file} is of version {found}; this DuoGen reads version {VERSION}.")
        for name, place in (("guide_prompt", "{request}"), ("dish_prompt", "{dish}")):
            if name in value and place not in text_of(value, name, str(file), default=place):
                raise DuoGenError(f"{file}: {name} has no {place}, so that no request would be asked; put it there.")
        prompt = text_of(value, "guide_prompt", str(file), default="{request}")
        for domain, groups in _section(value.get("guides", {}), dict, f"{file}, guides").items():
            for subcategory, entries in _section(groups, dict, f"{file}, {domain}").items():
                where = f"{file}, {domain}, {subcategory}"
                for number, entry in enumerate(_section(entries, list, where), 1):
                    yield _guide(entry, prompt, str(domain), str(subcategory), number, f"{where}, request {number}")
        prompt = text_of(value, "dish_prompt", str(file), default="{dish}\n\nHow do I make this dish?")
        for number, entry in enumerate(_section(value.get("dishes", []), list, f"{file}, dishes"), 1):
            yield _dish(entry, prompt, number, file.parent, f"{file}, dish {number}")

    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        entries = []
        for number, (item, document) in enumerate(answers, 1):
            place = f"answers/{number:04d}-{file_name(item.id)}"
            save_document(document, out / place)
            entries.append({"id": item.id, "document": place})
        write_json(out / INDEX, {"format": FORMAT, "version": VERSION, "model": model, "answers": entries})
        return out

    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        file = place / INDEX if place.is_dir() else place
        left = by_id(file, items)
        value = read_json(file, "index of answers")
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise DuoGenError(f"{file} is no index of how-to answers; expected an object with format {FORMAT!r}.")
        if value.get("version") != VERSION:
            raise DuoGenError(f"{file} is of version {shown(repr(value.get('version'))[:40])}; expected {VERSION}.")
        for number, entry in enumerate(list_of(value, "answers", dict, str(file), "objects with id and document"), 1):
            where = f"{file}, answer {number}"
            item = answered_by(entry, "id", left, where)
            name = text_of(entry, "document", where)
            document = load_document(inside(file.parent, name, where, "the folder"))
            if not begins_with(document, item.prompt):
                raise DuoGenError(
                    f"{where}: the document {name} does not begin with the request {shown(item.id[:80])!r}; it is of "
                    "another set, or was changed."
                )
            yield item, document

    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        left = by_id(file, items)
        value = read_json(file, "file of results", limit=MAX_BYTES)
        if (
            not isinstance(value, dict)
            or value.get("benchmark") != self.name
            or not isinstance(value.get("cases"), list)
        ):
            raise DuoGenError(f"{file} is no file of how-to results; expected what `evaluate judge howto` writes.")
        scores = []
        for number, entry in enumerate(list_of(value, "cases", dict, str(file), "scored answers"), 1):
            where = f"{file}, case {number}"
            item = answered_by(entry, "id", left, where)
            values = field_of(entry, "values", dict, where, "a number, or null, for each metric")
            if unknown := set(values) - set(self.metrics):
                raise DuoGenError(f"{where} has {shown(min(unknown)[:60])!r}; expected {', '.join(self.metrics)}.")
            scales = {name: self.metrics[name] for name in values}
            found = {
                name: number_of(values, name, one.low, one.high, where, missing=True) for name, one in scales.items()
            }
            reasons = field_of({"reasons": {}, **entry}, "reasons", dict, where, "a text for some of the metrics")
            scores.append(Score(item.id, item.category, found, {name: str(said) for name, said in reasons.items()}))
        if not scores:
            raise DuoGenError(f"{file} has no scores.")
        return scores

    # ------------------------------------------------------------ the judge and the checks

    def asks(self, item: Item, document: Document) -> list[Ask]:
        pictures = tuple((f"Image {n}:", picture) for n, picture in enumerate(item.pictures(document), 1))
        users = tuple((f"The user's image {n}:", one) for n, one in enumerate(item.prompt.pictures, 1))
        asked, told = {"request": item.prompt.text}, {"answer": _words(item.parts(document), True)}
        words = {"answer": _words(item.parts(document), False)}
        found = [Ask("text completeness", OF_TEXT, {**asked, **words}, SCHEMA, users)]
        if pictures:
            found.append(Ask("image completeness", OF_COVERAGE, {**asked, **told}, SCHEMA, (*users, *pictures)))
            found.append(Ask("image quality", OF_QUALITY, {}, SCHEMA, pictures))
            found.append(Ask("image-text consistency", OF_BOTH, told, SCHEMA, pictures))
        if len(pictures) > 1:
            found.append(Ask("image consistency", OF_SAMENESS, {}, SCHEMA, pictures))
        return found

    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        values: dict[str, float | None] = {name: said[name]["score"] if name in said else None for name in JUDGED}
        if said and not item.pictures(document):
            values |= {name: 0 for name in JUDGED if name.startswith("image")}
        reasons = {name: said[name]["reason"] for name in JUDGED if name in said}
        steps = steps_of(item.parts(document))
        values["count as asked"] = _as_asked(item, len(steps), len(item.pictures(document)))
        values["steps illustrated"] = sum(steps) / len(steps) if steps else 0.0
        values["ended"] = float(_ended(item, document))
        return Score(item.id, item.category, values, reasons, {"steps": len(steps)})

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """Beside the means over all and within each category, those over the guides of all domains."""
        scores = list(scores)
        figures = super().summary(scores)
        guides = [replace(score, category=GUIDES) for score in scores if score.category != DISHES]
        of_guides = {name: value for name, value in super().summary(guides).items() if name.startswith(f"{GUIDES}: ")}
        overall = {name: value for name, value in figures.items() if ": " not in name}
        return overall | of_guides | figures


def digest_of(data: bytes) -> str:
    """Returns the digest of a file of requests, the same on systems that end lines in another way."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()


def _section(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        expected = "a list of requests" if kind is list else "names with what belongs to each"
        raise DuoGenError(f"{where} is {shown(repr(value)[:60])}; expected {expected}.")
    return value


def _guide(entry: Any, prompt: str, domain: str, subcategory: str, number: int, where: str) -> Item:
    entry = {"text": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or set(entry) - {"text", *COUNTS} or not text_of(entry, "text", where).strip():
        raise DuoGenError(f"{where} is {shown(repr(entry)[:60])}; expected a text, or text and {', '.join(COUNTS)}.")
    wanted = {name: field_of(entry, name, int, where, "a whole number") for name in COUNTS if name in entry}
    for name, count in wanted.items():
        if not 1 <= count <= MOST_COUNTED:
            raise DuoGenError(f"{where}: {name} is {count}; expected 1 to {MOST_COUNTED}.")
    asked = Document().begin_turn("user", [Text(prompt.replace("{request}", entry["text"].strip()))])
    record = {"domain": domain, "subcategory": subcategory, "request": entry["text"].strip(), **wanted}
    # Item.images stays None: a run would ask the model for that many, and whether it reads the request is measured.
    return Item(f"{_slug(subcategory)}-{number}", asked, record, domain)


def _dish(entry: Any, prompt: str, number: int, folder: Path, where: str) -> Item:
    entry = {"caption": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not entry or set(entry) - {"caption", "image"}:
        raise DuoGenError(f"{where} is {shown(repr(entry)[:60])}; expected a caption, an image or both.")
    photo = [picture_beside(folder, text_of(entry, "image", where), where)] if "image" in entry else []
    caption = text_of(entry, "caption", where, default="The dish in the image.").strip()
    asked = Document().begin_turn("user", [*photo, Text(prompt.replace("{dish}", caption))])
    return Item(f"dish-{number:03d}", asked, {"request": caption}, DISHES)


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower().replace("'", "")).strip("-")


# ------------------------------------------------------------ checks without a judge

IMAGE = "\ufffc"  # an image among the words; Unicode's own sign for such a thing
STEP = re.compile(r"^[ \t>#*_-]*step[ \t]*(\d{1,3})\b", re.IGNORECASE | re.MULTILINE)
NUMBER = re.compile(r"^[ \t>#*_]*(\d{1,3})[.):](?=[ \t*_]|$)", re.MULTILINE)


def steps_of(parts: Sequence[Part]) -> list[bool]:
    """Returns for each step of an answer whether it has an image of its own.

    The steps are those that the answer numbers ("Step 2: …", "2. …" at the start of a line). Where it numbers none, a
    step is a text with the images that follow it, and a text after the last image closes the answer and is none.
    """
    words = "".join(f"\n{IMAGE}\n" if isinstance(part, Picture) else part.text.replace(IMAGE, "") for part in parts)
    for pattern in (STEP, NUMBER):
        starts = _counted_up([(match.start(), int(match[1])) for match in pattern.finditer(words)])
        if len(starts) > 1:
            below = [IMAGE in words[one:end] for one, end in zip(starts, [*starts[1:], len(words)])]
            above = [IMAGE in words[one:end] for one, end in zip([0, *starts], starts)]
            # Most answers show a step below its text, some above it: what leaves fewer steps without an image is meant.
            return below if sum(below) >= sum(above) else above
    texts = [text.strip() for text in words.split(IMAGE)]
    if len(texts) == 1:
        return [False] if texts[0] else []
    # Two images after one text show one step; an answer that begins with an image has a step without words.
    return [True for number, text in enumerate(texts[:-1]) if text or number == 0]


def _counted_up(marks: Sequence[tuple[int, int]]) -> list[int]:
    """Returns where the steps start. A list of ingredients may be numbered, too: of all that count up from 1, the
    longest counts, and of equals the last."""
    longest: list[int] = []
    chain: list[int] = []
    for start, number in marks:
        if number == 1:
            chain = []
        if number == len(chain) + 1:
            chain = [*chain, start]
        longest = chain if len(chain) >= len(longest) else longest
    return longest


def _as_asked(item: Item, steps: int, images: int) -> float | None:
    """Whether there are as many steps and images as the request asks for; None where it does not."""
    wanted = item.record
    checks = []
    if "steps" in wanted:
        checks.append(steps == wanted["steps"])
    if "most" in wanted:
        checks.append(1 <= steps <= wanted["most"])
    if "images" in wanted:
        checks.append(images == wanted["images"])
    return float(all(checks)) if checks else None


def _ended(item: Item, document: Document) -> bool:
    """Whether the answer is there and came to its end. A text that another image should follow has none."""
    parts = item.parts(document)
    if not parts or document.generation.get("stop_reason", "end") != "end":
        return False
    return isinstance(parts[-1], Picture) or not cut_off(parts[-1].text)


# ------------------------------------------------------------ what the judge is asked


def _words(parts: Sequence[Part], marks: bool) -> str:
    """Returns the words of an answer, with "[Image 1]" where its images stand, if they are to be seen."""
    found, number = "", 0
    for part in parts:
        if isinstance(part, Picture):
            number += 1
            found += f"\n[Image {number}]\n" if marks else "\n"
        else:
            found += part.text
    return found.strip() or "(no text)"


SCHEMA = reply_schema({"score": whole(0, 5)}, 1200)
REPLY = """
Use the whole scale, and go by what is there and not by what was probably meant. Where two scores seem to fit, take the lower one.
- reason: first, in two to four sentences, what you found; name steps or images by their numbers.
- score: then the number from 0 to 5 that your reason fits."""  # noqa: E501

OF_TEXT = f"""A user asked for a guide with images. Judge how complete its text is. Its images are not shown to you, and you judge nothing of them.

The request:
${{request}}

The text of the answer:
${{answer}}

Could somebody who has never done this reach the goal with the text alone? All that is needed (things, amounts, times), every step in its order, the result, and what the request itself demands (a number of steps, tools, time, for whom) should be in it, and be right. Length alone is worth nothing. For a story or an explanation, its course from beginning to end takes the place of the steps.
5: Nothing is missing. A beginner gets there without asking back, and all demands of the request are met.
4: One small thing is missing or vague, such as an amount or a time; it does not stop anybody.
3: The way can be seen, but one step, one thing that is needed or one demand of the request is missing or wrong, so that a reader has to guess.
2: Several steps are missing, wrong or out of order; only somebody who can do it already would get there.
1: It speaks of the subject, but is no way to the goal, or breaks off near its beginning.
0: There is no text, it cannot be read, or it is about something else.
{REPLY}"""  # noqa: E501

OF_COVERAGE = f"""A user asked for a guide with images. Judge how completely its images show the way. "[Image 1]" in the answer is where that image stands.

The request:
${{request}}

The answer:
${{answer}}

The images of the answer follow. Each step after which something looks different should have an image that shows it, and the result should be seen at the end. Judge only whether they are there and can be told apart, not how beautiful they are. An image that shows nothing of its step counts as missing, and the same image twice counts once. Words that are drawn into an image do not stand for what should be seen in it.
5: Every step that can be seen has its image, the result as well, and there are as many as the request asks for, if it does.
4: One image that would help is missing, of a step that a reader can imagine.
3: About two thirds of the steps are shown, or the result is not.
2: About half of them or less are shown; the images alone would leave a reader lost.
1: There are images, but hardly one shows a step.
0: No image has to do with the request.
{REPLY}"""  # noqa: E501

OF_SAMENESS = f"""The images that follow are those of one guide, in their order. You do not see its text. Judge how consistent they are with one another.

The same things, people, animals and places should be the same in every image: their shape, colours, number, clothes, surroundings. What was done in one image should still be done in the next. The manner of drawing and the light should be of one series. Changes that the work itself brings about (dough rises, paper is folded) are right, and so is another view. Judge nothing else: neither beauty nor faults that all images share.
5: One series without a break: all that comes back can be recognised at once.
4: One small detail changes without a reason, such as a colour or a thing in the background.
3: The main thing can be recognised throughout, but one image falls out of the series, or several details change.
2: The main thing, a person or the manner changes between many of the images; one has to guess that they belong together.
1: The images share little but their subject.
0: The images have nothing to do with one another, or none of them shows anything.
{REPLY}"""  # noqa: E501

OF_QUALITY = f"""The images that follow are those of one guide, in their order. You do not see its text. Judge how well made they are, each by itself, whatever they show and however they go together.

Look for: blur, noise, smears and seams; things that are broken, melted, doubled or hang in the air; hands, faces and animals that cannot be so; letters that cannot be read; things that are cut off; bad light. A simple drawing can be as well made as a photo. The score is that of a typical image of the set; one image that is spoilt takes one point off.
5: Clean and sharp, without a fault that one would notice.
4: Small faults that one finds only by looking for them.
3: Faults that one sees at once, but not in what matters.
2: Faults in what matters: the main thing is misshapen or blurred, though it can still be told what it is.
1: It can hardly be told what is to be seen.
0: Empty, noise, or nothing that can be recognised.
{REPLY}"""  # noqa: E501

OF_BOTH = f"""Judge how well the images of a guide fit its text. "[Image 1]" in the answer is where that image stands: it belongs to the text around it, most often to the step just before it.

The answer:
${{answer}}

The images of the answer follow. Each should show what its step says: the same things, the same action or state, colours, numbers, sizes and places, and nothing that the step speaks against. An image at the wrong place does not fit. Do not judge what the text lacks, how well made an image is, or whether all steps have one.
5: Every image shows exactly what its text says.
4: All images fit; one detail of one of them differs, such as a colour or a number.
3: Most images fit; one shows another step or state than its text says, or several details differ.
2: About half of the images do not fit their text.
1: The images are of the subject, but hardly one shows what its text says.
0: The images have nothing to do with the text, or there is no text.
{REPLY}"""  # noqa: E501

BENCHMARK = HowTo
