"""InterleaveThinker's planner and critic, each asked and read in the format that its weights were trained on.

Source: github.com/zhengdian1/InterleaveThinker (arXiv 2606.13679), UEval/system.py (prompts), demo_klein.py (what goes
in, in which order) and the reward of its training, train/EasyR1/verl/reward_function/interleave_thinker_reward.py (what
an answer must be). That repository states no licence for its prompts, so the files in prompts/ say the same things in
our words, with the same fields and the same shape of answer. The weights are InterleaveThinker-Planner-8B and
InterleaveThinker-Critic-8B (Qwen3-VL-8B, Apache-2.0); they were not at hand to be measured with these words.

Both answer `<think>…</think><answer>{…}</answer>`; what stands in the braces is a Python literal more often than JSON.
The critic sees two images, before and after; before the first step, a white one. It says yes or no, so its score is 1
or 0. Its better prompt stays with the step's own wording (`Asked.prompt`) as the original instruction.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.document import Picture, valid_unicode
from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.messages import fitted, load_prompt, picture_part, without_marks
from duogen_core.planning.plan import MAX_PARTS, MAX_TEXT, Part, Plan, PlannedPicture, Reference
from duogen_core.review import Asked, Review

if TYPE_CHECKING:
    from duogen_core.document import Document
    from duogen_core.llm.client import Client

PROMPTS = Path(__file__).with_name("prompts")
MAX_TOKENS = 4096  # as their own programs ask for: thoughts come first
MOST = 100_000  # characters of an answer that are read
SIDE = 1024  # pixels of an image's longer side
MANY_IMAGES, SMALL_SIDE = 5, 384  # from so many on, the planner was shown images of at most this side squared
WRONG = 500  # characters of its thoughts that a review keeps


def is_planner(name: str) -> bool:
    """Whether a model, by its name, is InterleaveThinker-Planner."""
    return bool(re.search(r"interleave[-_ ]?thinker[-_ ]?planner", name, re.IGNORECASE))


def is_critic(name: str) -> bool:
    """Whether a model, by its name, is InterleaveThinker-Critic, or the Critic-SFT that it was trained from."""
    return bool(re.search(r"interleave[-_ ]?thinker.*critic|critic[-_ ]sft[-_ ]8b", name, re.IGNORECASE))


# ---------------------------------------------------------------- the critic


class InterleaveThinkerCritic:
    """A `duogen_core.review.Critic`."""

    def __init__(self, client: Client, cancelled: Callable[[], bool] | None = None) -> None:
        self.client, self.cancelled = client, cancelled

    def review(self, asked: Asked) -> Review:
        question = critic_messages(asked)
        answer = self.client.ask(question, max_tokens=MAX_TOKENS, read=read_verdict, cancelled=self.cancelled)
        success, prompt, thoughts = answer.value
        if success:
            return Review(True)
        last = asked.tried or asked.prompt
        return Review(False, wrong=thoughts, prompt="" if prompt == last else prompt, score=0.0)


def critic_messages(asked: Asked) -> list[dict[str, Any]]:
    """Returns one user message: the image before, the new image, then the words. There is no system message."""
    after = fitted(asked.picture.pixels, SIDE)
    before = fitted(asked.earlier[-1].pixels, SIDE) if asked.earlier else np.full_like(after, 255)
    tried = asked.tried or asked.prompt  # before anything was rewritten, its own programs give the instruction twice
    text = _filled("interleave_thinker_critic", original_instruction=asked.prompt, rewritten_prompt=tried)
    return [{"role": "user", "content": [picture_part(before), picture_part(after), {"type": "text", "text": text}]}]


def read_verdict(text: str) -> tuple[bool, str, str]:
    """Returns whether the step is good, the prompt to go on with, and a short form of the thoughts."""
    value = _answer(text)
    success, prompt = value.get("previous_step_success"), value.get("refine_prompt")
    if isinstance(success, str) and success.strip().lower() in ("true", "false"):
        success = success.strip().lower() == "true"
    if not isinstance(success, bool):
        raise AnswerError("previous_step_success must be True or False.")
    if not isinstance(prompt, str):
        raise AnswerError("refine_prompt must be a text.")
    thoughts = re.search(r"<think>(.*?)(?:</think>|<answer>)", text[:MOST], re.DOTALL)
    said = re.sub(r"\s+", " ", thoughts[1]).strip() if thoughts else ""
    return success, prompt.strip()[:MAX_TEXT], said[-WRONG:] or "The critic gives no reason."


# ---------------------------------------------------------------- the planner


def write_plan(
    client: Client,
    document: Document,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Plan:
    """Asks the planner for a plan of the document's last request, with the images that the user brought to it."""
    asked = next((turn for turn in reversed(document.turns) if turn.role == "user"), None)
    if asked is None:
        raise DuoGenError("There is no request to plan an answer to; add a user turn.")
    question = planner_messages(asked.text.strip(), asked.pictures)
    read = _plan_after(len(asked.pictures))
    return client.ask(question, max_tokens=MAX_TOKENS, read=read, on_text=on_text, cancelled=cancelled).value


def planner_messages(request: str, pictures: tuple[Picture, ...] = ()) -> list[dict[str, Any]]:
    """Returns one user message; with images of the user, the request as a sequence that is to be continued."""
    if not pictures:
        return [{"role": "user", "content": _filled("interleave_thinker_planner", text_input=request)}]
    side = SMALL_SIDE if len(pictures) >= MANY_IMAGES else SIDE
    text = _filled("interleave_thinker_continue", text_input=request)
    parts = [picture_part(fitted(picture.pixels, side)) for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _plan_after(given: int) -> Callable[[str], Plan]:
    return lambda text: read_plan(text, given)


def read_plan(text: str, given: int = 0) -> Plan:
    """Returns the Plan. given: images of the user; with none, the first step is drawn from nothing.

    A step's text is its auxiliary_text, else its instruction; its image, drawn from the prompt, sees the one before.
    """
    steps = _answer(text).get("execution_plan")
    if not isinstance(steps, list) or not steps:
        raise AnswerError("execution_plan must be a list of steps.")
    if len(steps) > MAX_PARTS:
        raise AnswerError(f"execution_plan has {len(steps)} steps; expected at most {MAX_PARTS}.")
    parts: list[Part] = []
    drawn, name = 0, ""
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Mapping):
            raise AnswerError(f"Step {number} of execution_plan must be an object with instruction and prompt.")
        shows = _said(step.get("prompt"))
        words = _said(step.get("auxiliary_text")) or _said(step.get("instruction"))
        if "'step_number'" in words or "'step_number'" in shows:  # its own programs refuse that too
            raise AnswerError(
                f"In step {number} a quotation mark is missing, so that the next step is part of its text."
            )
        if not shows and not words:
            raise AnswerError(f"Step {number} has neither a text nor a prompt.")
        name = name or _said(step.get("step_name"))
        picture = None
        if shows:
            looks_at = (Reference(drawn, "before"),) if drawn else () if not given else None
            picture, drawn = PlannedPicture(shows, looks_at), drawn + 1
        parts.append(Part(words, picture))
    return Plan(name[:80], tuple(parts))


def _said(value: Any) -> str:
    """The text of a field; it writes null, None and 'None' for none."""
    text = valid_unicode(value).strip() if isinstance(value, str) else ""
    return "" if text.lower() in ("none", "null") else text[:MAX_TEXT]


# ---------------------------------------------------------------- what both share


def _filled(name: str, **texts: str) -> str:
    """The prompt with these texts in its places, between its own quotation marks, where the weights expect them."""
    return Template(load_prompt(PROMPTS / f"{name}.txt")).substitute(
        {place: without_marks(text) for place, text in texts.items()}
    )


def _answer(text: str) -> Mapping[str, Any]:
    """The object between <answer> and </answer>, as JSON or as a Python literal, whichever it is."""
    found = re.search(r"<answer>(.*?)(?:</answer>|\Z)", text[:MOST], re.DOTALL)
    inside = found[1] if found else re.sub(r"<think>.*?(?:</think>|\Z)", "", text[:MOST], flags=re.DOTALL)
    start, end = inside.find("{"), inside.rfind("}")
    if start < 0 or end < start:
        raise AnswerError("The answer must hold one object in braces between <answer> and </answer>.")
    inside = inside[start : end + 1]
    python = re.sub(r"(?<=[:,\[])(\s*)(true|false|null)(?=\s*[,}\]])", _as_python, inside)
    for read in (lambda: json.loads(inside, strict=False), lambda: ast.literal_eval(python)):
        try:
            value = read()
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, Mapping):
            return value
    raise AnswerError("What stands between <answer> and </answer> is neither JSON nor a Python dictionary.")


def _as_python(found: re.Match) -> str:
    return found[1] + {"true": "True", "false": "False", "null": "None"}[found[2]]
