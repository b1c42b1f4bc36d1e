"""A writer that follows a script, behind the loopback endpoint: it answers every prompt of the dialogue steps as a
careful model would, from the data in the prompt. `Writer(rewrite=...)` puts another answer in a step's place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.core.endpoint_server import Handler, completion, send

STEPS = {
    "Look at the attached picture": "describe",
    "have come away from its text": "place",
    "part of a guide from the web": "rewrite",
    "an assistant gave": "dialogue",
}
MARK = re.compile(r"\[image (\d+): .*\]")


def step_of(body: dict[str, Any]) -> str:
    return next(step for words, step in STEPS.items() if words in text_of(body))


def text_of(body: dict[str, Any]) -> str:
    """The prompt, without what was added after a refused answer."""
    content = next(message["content"] for message in body["messages"] if message["role"] == "user")
    return content if isinstance(content, str) else content[0]["text"]


def data_of(body: dict[str, Any], name: str) -> str:
    return re.search(rf'<data name="{name}" id="(\w+)">\n(.*?)\n</data id="\1">', text_of(body), re.DOTALL)[2]


def describe(body: dict[str, Any]) -> Any:
    alt = re.search(r"^alt: (.*)$", data_of(body, "page"), re.MULTILINE)
    return {"caption": f"It shows {alt[1] if alt else 'something'}.", "visible_text": "OK Cancel", "kind": "screenshot"}


def rewrite(body: dict[str, Any]) -> Any:
    passages: list[dict[str, Any]] = []
    for piece in data_of(body, "guide").split("\n\n"):
        if mark := MARK.fullmatch(piece):
            passages = passages or [{"text": "See the picture.", "images": []}]
            passages[-1]["images"].append(int(mark[1]))
        else:
            passages.append({"text": re.sub(r"^#+ [\d.]* ?", "", piece), "images": []})
    return {"passages": passages}


def dialogue(body: dict[str, Any]) -> Any:
    answer, title = data_of(body, "answer"), data_of(body, "title")
    last = max(map(int, re.findall(r"^\[(\d+)\] ", answer, re.MULTILINE)))
    brought = [int(MARK.search(answer)[1])] if "exactly one exchange" in text_of(body) else []
    return {"exchanges": [{"request": f"How do I do this: {title}?", "last_passage": last, "request_images": brought}]}


def place(body: dict[str, Any]) -> Any:
    """The passage that shares most words with the picture's line."""
    passages = re.split(r"^\[\d+\] ", data_of(body, "passages"), flags=re.MULTILINE)[1:]
    places = []
    for number, line in re.findall(r"^\[image (\d+)\] (.*)$", data_of(body, "images"), re.MULTILINE):
        words = set(re.findall(r"\w+", line.lower()))
        fits = [len(words & set(re.findall(r"\w+", passage.lower()))) for passage in passages]
        places.append({"image": int(number), "passage": fits.index(max(fits)) + 1})
    return {"places": places}


class Writer:
    """Give an instance to `endpoint_server`; `steps` says what it was asked, in order."""

    def __init__(self, **instead: Callable[[dict[str, Any]], Any]) -> None:
        self.answers = {"describe": describe, "rewrite": rewrite, "dialogue": dialogue, "place": place, **instead}
        self.steps: list[str] = []

    def __call__(self, handler: Handler) -> None:
        step = step_of(handler.body)
        self.steps.append(step)
        answer = self.answers[step](handler.body)
        if callable(answer):
            answer(handler)
        else:
            send(handler, completion(answer if isinstance(answer, str) else json.dumps(answer)))
