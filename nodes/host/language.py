"""The language of whoever runs a workflow: error messages and progress in it, from locales/<language>/messages.json.

The page tells the server which language its client has (POST /duogen/language); each prompt of that client carries it
in its extra_data, where a program may put it as well: {"extra_data": {"duogen_language": "zh"}}. Without one, and where
a translation lacks a sentence, English stays. The log is English.

The code raises and says English sentences. `messages.json` has them as templates, with the names of what is put in:

    {"There is no model {name} in {places}.": "在 {places} 中没有模型 {name}。"}

A sentence is taken apart by the fixed texts of its template (of several that fit, the one that explains most of it).
What stood in the places is put into the translation as it is; only a text that is a whole sentence of ours in its turn,
such as the reason of an error, is translated as well. So what a user, a file or a model wrote is never a template, and
never markup: it is plain text before and after. tests/comfyui/messages.py collects the templates from the source.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from inspect import signature
from pathlib import Path
from string import Formatter
from typing import Any

from duogen_core.errors import DuoGenError, shown

LOCALES = Path(__file__).resolve().parents[2] / "locales"
KEY = "duogen_language"
MOST_CLIENTS, MOST_LETTERS = 1000, 35
SENTENCE_END = re.compile(r"(?<=[.!?…”)]) ")
DEEPEST = 4  # a sentence in a sentence in …
MOST_PARTS = 4000  # of a text that are looked at
_clients: OrderedDict[str, str] = OrderedDict()  # client id -> locale, the latest last
_asking: ContextVar[str] = ContextVar("duogen_language", default="")  # while a prompt is checked, before it is queued


# ------------------------------------------------------------ which language


def register() -> None:
    """Lets pages tell their language, and prompts carry it."""
    from aiohttp import web
    from server import PromptServer

    if getattr(PromptServer, "instance", None) is None:
        return

    @PromptServer.instance.routes.post("/duogen/language")
    async def tell(request: web.Request) -> web.Response:
        try:
            said = await request.json()
            client, locale = said["client_id"], said["locale"]
        except (ValueError, TypeError, KeyError):
            client = locale = None
        if not _is_name(client, 200) or not _is_name(locale, MOST_LETTERS):
            return web.json_response({"error": "Expected client_id and locale, two short texts."}, status=400)
        _clients[client] = locale
        _clients.move_to_end(client)
        while len(_clients) > MOST_CLIENTS:
            _clients.popitem(last=False)
        return web.json_response({})

    PromptServer.instance.add_on_prompt_handler(_carry)


def _is_name(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


def _carry(prompt: dict[str, Any]) -> dict[str, Any]:
    """Writes the language of its client into a prompt that is to be queued."""
    extra = prompt.setdefault("extra_data", {})
    if not isinstance(extra, dict):
        return prompt
    locale = extra.get(KEY) or _clients.get(str(prompt.get("client_id") or extra.get("client_id")), "")
    _asking.set(locale if isinstance(locale, str) else "")
    if _asking.get():
        extra[KEY] = _asking.get()
    return prompt


def running_extra_data() -> dict[str, Any]:
    """The extra_data of the prompt that runs in this thread. ComfyUI has no public way to ask for it."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    if context is None or getattr(PromptServer, "instance", None) is None:
        return {}
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return next((extra for _, prompt, _, extra, *_ in running if prompt == context.prompt_id), {})


def language() -> str:
    """ "zh", "pt-BR"; "" for English, and where nobody said."""
    locale = running_extra_data().get(KEY) or _asking.get()
    return locale if isinstance(locale, str) and not locale.lower().startswith("en") else ""


# ------------------------------------------------------------ the sentences


@dataclass(frozen=True)
class Template:
    """An English sentence: the fixed texts, the names of the places between them, and the same in the translation."""

    fixed: list[str]
    places: list[str]
    fixed_there: list[str]
    places_there: list[str]

    @cached_property
    def weight(self) -> int:
        """How much of a text it explains."""
        return sum(map(len, self.fixed))

    def values(self, text: str, things: frozenset[str] = frozenset()) -> dict[str, str] | None:
        """What stands in the places of this text; None where it is another sentence.

        A place ends where the text after it stands first; {what}, if that makes it one of `things`, further on."""
        first, last = self.fixed[0], self.fixed[-1]
        if not self.places:
            return {} if text == first else None
        if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
            return None
        found, at, end = {}, len(first), len(text) - len(last)
        for place, after in zip(self.places, [*self.fixed[1:-1], None], strict=True):
            stop = end if after is None else text.find(after, at, end)
            if stop < 0:
                return None
            while place == "what" and after and text[at:stop] not in things:
                further = text.find(after, stop + 1, end)
                if further < 0:
                    stop = text.find(after, at, end)
                    break
                stop = further
            found[place] = text[at:stop]
            at = stop + len(after or "")
        return found


def pieces(template: str) -> tuple[list[str], list[str]]:
    """ "a {b} c" -> (["a ", " c"], ["b"]): the fixed texts, and the names of the places between them."""
    fixed, places = [""], []
    for text, place, _, _ in Formatter().parse(template):
        fixed[-1] += text
        if place is not None:
            places.append(place)
            fixed.append("")
    return fixed, places


@lru_cache(maxsize=16)  # a page may name any language
def templates(locale: str) -> tuple[Template, ...]:
    """The sentences of a language, short ones first. "zh-TW" without a folder of its own reads zh."""
    known: dict[str, str] = {}
    try:
        for name in dict.fromkeys((locale.partition("-")[0], locale)):
            if all(letter.isalnum() or letter in "-_" for letter in name):  # it becomes a path
                with contextlib.suppress(FileNotFoundError):
                    known |= json.loads((LOCALES / name / "messages.json").read_text("utf-8"))
        made = [Template(*pieces(english), *pieces(there)) for english, there in known.items()]
        return tuple(sorted(made, key=lambda each: each.weight))
    except (OSError, ValueError, TypeError) as error:  # a fault of a translation hides no error
        logging.getLogger(__name__).warning("DuoGen: messages.json of the language %s: %s", locale, error)
        return ()


@lru_cache(maxsize=16)
def things(locale: str) -> frozenset[str]:
    """The sentences, and words for things, in which nothing is put in."""
    return frozenset(each.fixed[0] for each in templates(locale) if not each.places)


def translated(text: str, locale: str | None = None) -> str:
    """An English sentence of ours in this language, by default the one of the running prompt; another text as it is."""
    locale = language() if locale is None else locale
    return _whole(text, locale) if locale and text and len(locale) <= MOST_LETTERS else text


@lru_cache(maxsize=1024)
def _whole(text: str, locale: str) -> str:
    return _Search(text, locale).best(text, DEEPEST)[1]


class _Search:
    """Of the ways to take a text apart, the one in which most of it is explained by sentences of ours.

    What a message quotes may be long, and made to look like many sentences: so each part is looked at once, and after
    MOST_PARTS of them the rest stays as it is.
    """

    def __init__(self, text: str, locale: str) -> None:
        self.things = things(locale)
        self.templates = [each for each in templates(locale) if all(fixed in text for fixed in each.fixed)]
        self.known: dict[tuple[str, int, bool], tuple[int, str]] = {}

    def best(self, text: str, depth: int, row: bool = True) -> tuple[int, str]:
        """(how many characters are explained, the translation). row: several sentences may follow one another."""
        core = text.strip()
        if core != text:
            weight, there = self.best(core, depth, row) if core else (0, "")
            return weight, text.replace(core, there) if core else text
        key = text, depth, row
        if not depth or (key not in self.known and len(self.known) >= MOST_PARTS):
            return 0, text
        if key not in self.known:
            self.known[key] = 0, text
            self.known[key] = self._row(text, depth) if row else self._sentence(text, depth)
        return self.known[key]

    def _sentence(self, text: str, depth: int) -> tuple[int, str]:
        best = (0, text)
        for template in self.templates:
            if template.weight > len(text):
                break  # as are all after it
            values = template.values(text, self.things)
            if values is None:
                continue
            inner = {place: self.best(value, depth - 1) for place, value in values.items()}
            weight = template.weight + sum(weight for weight, _ in inner.values())
            if weight > best[0]:
                there = [inner[place][1] if place in inner else "" for place in template.places_there]
                best = (weight, "".join(a + b for a, b in zip(template.fixed_there, [*there, ""], strict=True)))
        return best

    def _row(self, text: str, depth: int) -> tuple[int, str]:
        best = self.best(text, depth, row=False)
        for found in SENTENCE_END.finditer(text):
            first = self.best(text[: found.start()], depth, row=False)
            if not first[0]:
                continue
            rest = self.best(text[found.end() :], depth)
            if first[0] + rest[0] > best[0]:
                best = (first[0] + rest[0], f"{first[1]} {rest[1]}")
        return best


# ------------------------------------------------------------ where sentences leave the pack


def in_users_language(function: Callable) -> Callable:
    """What this function raises is said in the language of the running prompt: for what ComfyUI calls."""

    @wraps(function)
    def said(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DuoGenError as error:
            english = str(error)
            words = shown(translated(english))
            if words != english:
                error.args = (words,)
                error.add_note(english)  # for the log
            raise

    return said


def speaks(node: type) -> None:
    """Makes a node say its errors, also those of its validation, in the language of the running prompt."""
    node.execute = classmethod(in_users_language(node.__dict__["execute"].__func__))
    if "validate_inputs" in node.__dict__:
        check = node.__dict__["validate_inputs"].__func__

        @wraps(check)
        def validate_inputs(*args: Any, **kwargs: Any) -> bool | str:
            found = check(*args, **kwargs)
            return translated(found) if isinstance(found, str) else found

        validate_inputs.__signature__ = signature(check)  # ComfyUI gives it the inputs that it names
        node.validate_inputs = classmethod(validate_inputs)
