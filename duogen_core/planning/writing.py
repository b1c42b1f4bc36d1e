"""request -> Plan: asks a model for the whole answer at once, in the plan's schema, and mends single captions.

    plan = write_plan(client, document)                    client: llm.client.Client, so an endpoint or a model run here
    plans = write_plans(client, documents)                 several at once: one batch, where the model runs here
    prompt = plan_prompt(document)                         for writers known by the text they give back alone

What the request wants is found by code (`requests.wish_of`) and told to the writer in one line, and in the schema:
small models get kind and count wrong by themselves. What a grammar cannot see is looked at by rules (`faults`): a plan
of the wrong kind or count is asked for once more with the fault named, a caption that is no good is asked for alone.
In the end the best plan there was counts. Pictures of the conversation go along to writers that see; others are told
so, and get their captions. Measured with real weights: docs/planning.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from duogen_core import pipeline
from duogen_core.document import Document, Picture, Text, valid_unicode
from duogen_core.document.pending import CAPTION, is_pending
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client, Question
from duogen_core.llm.messages import Message, load_prompt, picture_part, without_marks
from duogen_core.planning.faults import CAPTION_RULES, Fault, cut_off, faults_of
from duogen_core.planning.interleave_thinker import is_planner
from duogen_core.planning.interleave_thinker import write_plan as plan_by_planner
from duogen_core.planning.language import words_of
from duogen_core.planning.plan import MAX_PARTS, SHOWN, Part, Plan, counts, plan_schema, sentence_patterns, token_budget
from duogen_core.planning.reading import PlanReader, whole_sentences
from duogen_core.planning.requests import Wish, wish_of

PROMPTS = Path(__file__).with_name("prompts")
PENALTY = 1.1  # over the reply only: one over the prompt punishes the request's own words
CAPTION_TOKENS, SECOND_TEMPERATURE = 120, 0.7
SEVERE = ("count", "unpictured", "few_pictures", "pictured", "language")  # the whole plan is asked for again
MOST_MENDED = 12  # captions of one plan
NAMES = {
    "en": "English", "de": "German", "es": "Spanish", "zh": "Chinese", "fr": "French", "it": "Italian",
    "pt": "Portuguese", "nl": "Dutch", "pl": "Polish", "ru": "Russian", "ja": "Japanese", "ko": "Korean",
}  # fmt: skip
EARLIER = 6  # turns of the conversation that go along, at most
UNSEEN = "a picture that you cannot see"

NUMBER = re.compile(r"^\s*\d{1,3}[.):]\s+")
A_PART = re.compile(r"(?:step|part|scene|panel|schritt|teil|szene|paso|parte|escena)\s*\d+", re.IGNORECASE)
SAYS_PICTURE = re.compile(
    r"^(?:(?:an?|the|this) )?(?:\w+ )?(?:picture|image|photo|photograph|illustration|drawing)"
    r"(?: of| that shows| shows| showing| depicting|:) "
    r"|^das (?:bild|foto) zeigt |^(?:una?|la|el) (?:imagen|foto|dibujo)(?: de| muestra|:) "
    r"|的(?:图片|照片|图像|插图|画面)(?=[。！]?$)",
    re.IGNORECASE,
)

OnPart = Callable[[int, Part], None]


def write_plan(
    client: Client,
    document: Document,
    *,
    style: str = "",
    wish: Wish | None = None,
    seed: int = 0,
    temperature: float | None = 0.0,
    on_part: OnPart | None = None,
    on_text: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Plan:
    """Plans the answer to a document that ends with a request. Raises a DuoGenError where no plan came, or Cancelled.

    wish: in the place of what code finds. on_part(index, part): each part as soon as it is whole; index 0 again means
    that the plan begins anew. on_text: what the writer writes, as it comes. on_notice: a sentence for the user.
    """
    (plan,) = _write(
        client, [document], style, [wish], [seed], temperature, 1,
        on_part and (lambda _, index, part: on_part(index, part)), on_text and (lambda _, text: on_text(text)),
        on_notice, cancelled,
    )  # fmt: skip
    if isinstance(plan, DuoGenError):
        raise plan
    return plan


def write_plans(
    client: Client,
    documents: Sequence[Document],
    *,
    style: str = "",
    wishes: Sequence[Wish | None] | None = None,
    seeds: Sequence[int] | None = None,
    temperature: float | None = 0.0,
    batch: int = 8,
    on_part: Callable[[int, int, Part], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Plan | DuoGenError]:
    """Plans several answers, `batch` at a time; of each the plan, or why there is none. on_part: with its number."""
    count = len(documents)
    return _write(
        client, documents, style, wishes or [None] * count, seeds or [0] * count, temperature, batch, on_part, None,
        None, cancelled,
    )  # fmt: skip


def plan_prompt(document: Document, wish: Wish | None = None) -> str:
    """Returns one text that asks any model for a plan: the instructions, the conversation, the request."""
    wish = within_limits(wish or wish_of(document))
    messages = plan_messages(document, wish, sees=False, unseen="a picture")  # a node may hand them over beside it
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    return "\n\n".join(names[message["role"]] + message["content"] for message in messages)


# ------------------------------------------------------------ what a writer is told


def plan_messages(document: Document, wish: Wish, sees: bool, unseen: str = UNSEEN) -> list[Message]:
    """The conversation as chat messages, what code found out about the request in one line at its end.

    unseen: what stands for pictures without a caption, for a writer that does not see."""
    pipeline.check_request(document)
    turns = [turn for turn in document.turns if turn.role != "system"]
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns:
        raise DuoGenError("There is no request to plan an answer to; add a user turn.")
    own = [turn.text.strip() for turn in document.turns if turn.role == "system" and turn.text.strip()]
    instructions = load_prompt(PROMPTS / ("plain.txt" if wish.pictured is False else "illustrated.txt"))
    messages: list[Message] = [{"role": "system", "content": "\n\n".join([instructions, *map(without_marks, own)])}]
    told = turns[-EARLIER:]
    while (
        len(told) > 1 and told[0].role != "user"
    ):  # templates of many models refuse a conversation that begins with an answer
        told = told[1:]
    for turn in told:
        parts = [_said(part, sees and turn.role == "user", unseen) for part in turn.parts]
        if turn is told[-1]:
            parts.append({"type": "text", "text": f"\n\n({what_is_wanted(wish)})"})
        messages.append({"role": turn.role, "content": _content(parts)})
    return messages


def within_limits(wish: Wish) -> Wish:
    """With no more parts than a plan may have: a writer is not asked again for what cannot be."""
    count, least = (one and min(one, MAX_PARTS) for one in (wish.count, wish.least))
    return replace(wish, count=count, least=least)


def what_is_wanted(wish: Wish) -> str:
    """What code found out about the request, as one line for the writer."""
    language, texts = _language(wish), _number(*counts(wish, pictures=False), "short text")
    if wish.pictured is False:
        return f"This needs no pictures: answer in {texts}, in {language}."
    parts = _number(*counts(wish, pictures=True), "part")
    what = {
        "howto": f"a guide of {parts}, one step in each",
        "story": f"a story of {parts}, one scene in each",
    }.get(wish.kind, f"an answer of {parts}")
    if wish.pictured is None:
        return (
            f"If this is a plain question, kind is plain: answer in {texts} without pictures. Otherwise kind is "
            f"illustrated: write {what}, each with a text and a picture. Write in {language}."
        )
    return f"Write {what}, each with a text and a picture, in {language}."


def _number(fewest: int, most: int, thing: str) -> str:
    number = f"exactly {most}" if fewest == most else f"{fewest} to {most}"
    return f"{number} {thing}{'' if fewest == most == 1 else 's'}"


def _language(wish: Wish) -> str:
    return NAMES.get(wish.language, "the language of the request")


def _said(part: Text | Picture, sees: bool, unseen: str) -> Message:
    if isinstance(part, Text):
        return {"type": "text", "text": without_marks(part.text)}
    if sees and not is_pending(part):
        return picture_part(part.pixels)
    caption = without_marks(" ".join(str(part.meta.get(CAPTION) or part.meta.get("text") or "").split()))[:600]
    return {"type": "text", "text": f"[a picture: {caption}]" if caption else f"[{unseen}]"}


def _content(parts: Sequence[Message]) -> Any:
    if any(part["type"] != "text" for part in parts):
        return list(parts)
    return "".join(part["text"] for part in parts).strip()


# ------------------------------------------------------------ asking, reading, asking again


@dataclass
class _Asking:
    """One request while its plan is written."""

    document: Document
    wish: Wish
    told: Callable[[int, Part], None] | None
    plan: Plan | None = None  # the best one so far, how much is wrong with it, and whether it ended too early
    wrong: int = 0
    cut: bool = False
    last_cut: bool = False  # of the one that was read last
    reader: PlanReader = field(default_factory=PlanReader)

    @cached_property
    def request(self) -> str:
        return next(turn.text for turn in reversed(self.document.turns) if turn.role == "user")

    def faults(self, plan: Plan) -> list[Fault]:
        return faults_of(plan, self.wish, self.request, [load_prompt(PROMPTS / "illustrated.txt")])

    def caption_faults(self, plan: Plan) -> dict[int, list[Fault]]:
        """What is wrong with captions, by the index of their parts."""
        found: dict[int, list[Fault]] = {}
        for fault in self.faults(plan):
            if fault.part is not None and fault.rule in CAPTION_RULES and plan.parts[fault.part - 1].picture:
                found.setdefault(fault.part - 1, []).append(fault)
        return found

    def put(self, piece: str) -> None:
        if not piece:  # the answer begins anew
            self.reader = PlanReader(self.told)
        self.reader.put(piece)

    def read(self, text: str) -> Plan:
        reader = PlanReader()
        reader.put(text)
        plan = _tidied(reader.plan())
        self.last_cut = reader.cut
        return plan

    def check(self, plan: Plan) -> None:
        """Keeps the plan if it is the best there was; raises an AnswerError to have it asked for again."""
        wrong = [fault for fault in self.faults(plan) if fault.rule in SEVERE]
        if self.plan is None or len(wrong) < self.wrong:
            self.plan, self.wrong, self.cut = plan, len(wrong), self.last_cut
        if wrong:
            raise AnswerError(" ".join(dict.fromkeys(fault.sentence for fault in wrong)))


def _write(
    client: Client,
    documents: Sequence[Document],
    style: str,
    wishes: Sequence[Wish | None],
    seeds: Sequence[int],
    temperature: float | None,
    batch: int,
    on_part: Callable[[int, int, Part], None] | None,
    on_text: Callable[[int, str], None] | None,
    on_notice: Callable[[str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> list[Plan | DuoGenError]:
    if is_planner(client.endpoint.model):
        return [_by_planner(client, document, style, number, on_part, on_text, cancelled)
                for number, document in enumerate(documents)]  # fmt: skip
    askings: list[_Asking] = []
    for number, document in enumerate(documents):
        told = on_part and (lambda index, part, number=number: on_part(number, index, part))
        wish = wishes[number] or wish_of(document)
        if on_notice and within_limits(wish) != wish:
            asked = max(wish.count or 0, wish.least or 0)
            on_notice(f"The request asks for {asked} parts; a plan has at most {MAX_PARTS}, so these are planned.")
        asking = _Asking(document, within_limits(wish), told)
        asking.reader.on_part = told
        askings.append(asking)
    if on_notice and not client.sees and any(document.pictures for document in documents):
        on_notice("The writer does not see images; it is told their captions, where they have any.")
    held = hasattr(client.transport, "many")  # a model run here cannot but write what fits
    questions = [
        Question(
            plan_messages(asking.document, asking.wish, client.sees), plan_schema(asking.wish, held),
            token_budget(asking.wish), temperature, seed, asking.check, asking.read, "", PENALTY,
        )
        for asking, seed in zip(askings, seeds)
    ]  # fmt: skip

    def put(number: int, piece: str) -> None:
        askings[number].put(piece)
        if on_text is not None:
            on_text(number, piece)

    streams = put if on_part or on_text else None
    answers = client.ask_many(questions, parallel=batch, on_text=streams, cancelled=cancelled)
    plans: list[Plan | DuoGenError] = []
    for asking, answer in zip(askings, answers):
        # A plan that is not quite what was asked for, after all attempts, is still better than none.
        found = asking.plan if asking.plan is not None else answer
        if on_notice and asking.plan is not None and asking.cut:
            on_notice(f"The writer's answer ended too early; kept are its whole parts: {len(asking.plan.parts)}.")
        plans.append(found if isinstance(found, (Plan, DuoGenError)) else answer.value)
    mended = _mended(client, askings, plans, seeds, temperature, batch, on_notice, cancelled)
    return [plan.with_style(style) if isinstance(plan, Plan) else plan for plan in mended]


def _by_planner(
    client: Client,
    document: Document,
    style: str,
    number: int,
    on_part: Callable[[int, int, Part], None] | None,
    on_text: Callable[[int, str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Plan | DuoGenError:
    """Asks InterleaveThinker's planner in its own format, in which the parts are there only when it has ended."""
    try:
        plan = plan_by_planner(client, document, on_text and (lambda text: on_text(number, text)), cancelled)
    except Cancelled:
        raise
    except DuoGenError as error:
        return error
    for index, part in enumerate(plan.parts if on_part else ()):
        on_part(number, index, part)
    return plan.with_style(style)


def _mended(
    client: Client,
    askings: Sequence[_Asking],
    plans: Sequence[Plan | DuoGenError],
    seeds: Sequence[int],
    temperature: float | None,
    batch: int,
    on_notice: Callable[[str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> list[Plan | DuoGenError]:
    """Asks for each caption that is no good alone, and takes the new one where fewer things are wrong with it.

    Those that are none yet are asked for a second time, of the text alone and by chance: a small model that is shown a
    bad description, or the one before, likes to write it once more.
    """
    plans = list(plans)
    for again in (False, True):
        due: list[tuple[int, int]] = []
        questions: list[Question] = []
        for number, (asking, plan) in enumerate(zip(askings, plans)):
            if not isinstance(plan, Plan):
                continue
            how = (seeds[number] + 1 + again, SECOND_TEMPERATURE if again else temperature)
            for index, faults in list(asking.caption_faults(plan).items())[:MOST_MENDED]:
                due.append((number, index))
                questions.append(_caption_question(plan, index, () if again else faults, asking.wish, *how))
        if on_notice and questions:  # it takes a while, and nothing of it is shown
            number = "one description" if len(questions) == 1 else f"{len(questions)} descriptions"
            on_notice(f"The writer is asked for {number} of images alone{' once more' if again else ''}.")
        answers = client.ask_many(questions, parallel=batch, cancelled=cancelled) if questions else []
        for (number, index), answer in zip(due, answers):
            if isinstance(answer, DuoGenError) or not answer.value:
                continue
            plan, asking = plans[number], askings[number]
            part = plan.parts[index]
            other = plan.with_part(index, replace(part, picture=replace(part.picture, shows=answer.value)))
            # Of the whole plan: a new caption may be like one that comes later.
            if _weight(asking.caption_faults(other)) < _weight(asking.caption_faults(plan)):
                plans[number] = other
    return plans


def _weight(faults: Mapping[int, Sequence[Fault]]) -> int:
    return sum(map(len, faults.values()))


def _caption_question(
    plan: Plan, index: int, faults: Sequence[Fault], wish: Wish, seed: int, temperature: float | None
) -> Question:
    part = plan.parts[index]
    cast = "; ".join(f"{member.name}: {member.looks}" for member in plan.cast)
    before = [one.picture.shows for one in plan.parts[:index] if one.picture is not None]
    lines = [
        f"Title: {plan.title}" if plan.title else "",
        f"Cast: {cast}" if cast else "",
        f"The picture before shows: {before[-1]}" if before and faults else "",
        f"The text: {part.text}",
        f"A description that is no good: {part.picture.shows}" if faults else "",
        "What is wrong with it: " + " ".join(dict.fromkeys(fault.sentence for fault in faults)) if faults else "",
        f"Describe in {_language(wish)} what the picture to this text shows.",
    ]
    messages: list[Message] = [
        {"role": "system", "content": load_prompt(PROMPTS / "caption.txt")},
        {"role": "user", "content": without_marks("\n".join(filter(None, lines)))},
    ]
    schema = {
        "type": "object",
        "properties": {SHOWN: {"type": "string", "pattern": sentence_patterns(wish.language)[1]}},
        "required": [SHOWN],
        "additionalProperties": False,
    }
    return Question(messages, schema, CAPTION_TOKENS, temperature, seed, lambda _: None, _read_caption, "", PENALTY)


def _read_caption(text: str) -> str:
    import json

    start = text.find("{")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, max(start, 0))
    except (ValueError, RecursionError):
        raise AnswerError("The answer is not JSON.") from None
    value = value if isinstance(value, Mapping) else {}
    picture = value.get(SHOWN, value.get("picture"))
    if not isinstance(picture, str) or not picture.strip():
        raise AnswerError("The answer has no picture.")
    return _whole(" ".join(valid_unicode(picture).split()))


def _whole(text: str) -> str:
    """Cuts what stops in the middle of a sentence back to the last whole one. A last sentence whose full stop was left
    out is no such thing, and stays."""
    return whole_sentences(text) if cut_off(text) else text


def _tidied(plan: Plan) -> Plan:
    """Cuts what was cut off in the middle of a sentence back to the last whole one, and takes off what goes without
    saying: the numbers of parts, that a picture is one, and a title out of the instructions."""
    parts = []
    for part in plan.parts:
        picture = part.picture
        if picture is not None:
            shows = SAYS_PICTURE.sub("", _whole(picture.shows)) or picture.shows
            picture = replace(picture, shows=shows[:1].upper() + shows[1:])
        text = _whole(part.text)
        parts.append(Part(NUMBER.sub("", text) or text, picture))
    cast = tuple(member for member in plan.cast if not A_PART.fullmatch(member.name.strip()))
    title = plan.title.strip().strip(".")
    return replace(plan, title="" if _is_instruction(title) else title, cast=cast, parts=tuple(parts))


def _is_instruction(title: str) -> bool:
    """Whether a title is what the instructions say of titles: "a few words"."""
    words = words_of(title)
    told = " ".join(words_of(load_prompt(PROMPTS / "illustrated.txt")))
    return len(words) > 1 and f" {' '.join(words)} " in f" {told} "
