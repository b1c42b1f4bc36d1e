"""What comes back from a model: the bytes of a chat completion -> an Answer -> JSON that fits a schema; kept on disk.

    answer = completion_of(reply.body, where)              failure(reply, where, key)     of a status other than 200
    stream = Streamed(where, on_text); stream.feed(bytes); answer = stream.answer()       the same, as it is written
    value = parse_answer(answer.text, schema)              or an AnswerError saying what is wrong
    Recording("answers.jsonl", "record" or "replay")       so that a run repeats exactly and needs no endpoint

Nothing that is sent is believed: every field is looked at before use, and texts of the server appear in messages
shortened. Nothing is repaired; two habits of models are understood: thoughts before the answer (<think>…</think>) and
one code fence around all of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.net.client import EndpointError, Reply

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
MAX_TOKENS = 10**8
THOUGHTS = ("reasoning", "reasoning_content")  # where Ollama and vLLM, and where llama.cpp and DeepSeek put them
THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL | re.IGNORECASE)
MODES = ("record", "replay")


@dataclass(frozen=True)
class Answer:
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    counted: bool
    value: Any = None

    def with_value(self, value: Any) -> Answer:
        return replace(self, value=value)

    def to_json(self) -> dict[str, Any]:
        return {name: item for name, item in asdict(self).items() if name != "value"}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Answer:
        return Answer(
            str(value["text"]),
            str(value.get("finish", "")),
            int(value.get("prompt_tokens", 0)),
            int(value.get("completion_tokens", 0)),
            bool(value.get("counted", False)),
        )


class OnlyThoughts(EndpointError):
    """A reasoning model wrote its thoughts and no answer."""


def completion_of(body: bytes, where: str) -> Answer:
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise EndpointError(f"The endpoint {where} answered with something that is not JSON; check base_url.") from None
    try:
        choice = value["choices"][0]
        message = choice["message"]
        text = message["content"]
    except (KeyError, IndexError, TypeError):
        raise EndpointError(f"The endpoint {where} sent JSON that is not a chat completion; check base_url.") from None
    thought = next((message[name] for name in THOUGHTS if isinstance(message.get(name), str)), "")
    return _answer(text, thought, choice.get("finish_reason"), value.get("usage"), where)


NO_UNICODE = "The endpoint {} sent an answer that is not valid Unicode."


def is_broken(text: str) -> bool:
    """Whether it holds half a pair of code units, which no terminal and no file takes."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _answer(text: Any, thought: str, finish: Any, usage: Any, where: str) -> Answer:
    if not isinstance(text, str) or not text.strip():
        thought = thought.strip()
        if thought:
            ended = " until max_tokens was reached" if finish == "length" else ""
            raise OnlyThoughts(
                f"The endpoint {where} sent only the model's thoughts{ended} ({len(thought):,} characters of "
                "reasoning) and no answer; turn thinking off with --think false or --reasoning-effort none, or raise "
                "max_tokens.",
                again=False,
            )
        # At its limit, or refused by a filter, the same request would be paid for again and end in the same way.
        raise EndpointError(
            f"The endpoint {where} sent an answer without text; raise max_tokens or ask otherwise.",
            again=finish not in ("length", "content_filter"),
        )
    if is_broken(text):
        raise EndpointError(NO_UNICODE.format(where))
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    counted = all(type(count) is int and 0 <= count <= MAX_TOKENS for count in counts)
    prompt, completion = counts if counted else (0, 0)
    return Answer(text, str(finish or "")[:40], prompt, completion, counted)


class Streamed:
    """A chat completion that comes as server-sent events: each `data:` line a piece, the last one [DONE].

    feed(bytes) -> whether that was all; on_text gets the text's pieces meanwhile. answer() raises what was wrong. A
    server that knows no streaming sends one JSON body instead, which is as good.
    """

    def __init__(self, where: str, on_text: Callable[[str], None] = lambda _: None, key: str = "") -> None:
        """key: is not repeated, should the server say it."""
        self.where, self.on_text, self.key = where, on_text, key
        self._line = bytearray()  # the beginning of the line that is not here yet
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._finish: Any = None
        self._usage: Any = None
        self._wrong = ""
        self._events, self._done = 0, False

    def feed(self, piece: bytes) -> bool:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            self._see(bytes(self._line) + line)
            self._line.clear()
            if self._done or self._wrong:
                return True
        self._line += rest
        return False

    def _see(self, line: bytes) -> None:
        line = line.strip()
        if not line.startswith(b"data:"):  # comments that keep the line open, names of events, empty lines
            return
        self._events += 1
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            self._done = True
            return
        try:
            value = json.loads(data.decode("utf-8"))
            if value.get("error"):
                said = _plain(_said(data), self.key) or "no reason given"
                self._wrong = f"The endpoint {self.where} stopped in the middle of its answer ({said})."
                return
            self._usage = value.get("usage") or self._usage
            for choice in (value.get("choices") or ())[:1]:
                delta = choice.get("delta") or choice.get("message") or {}
                if isinstance(text := delta.get("content"), str) and text:
                    if is_broken(text):  # before anybody is told it
                        self._wrong = NO_UNICODE.format(self.where)
                        return
                    self._texts.append(text)
                    self.on_text(text)
                self._thoughts += [delta[name] for name in THOUGHTS if isinstance(delta.get(name), str)][:1]
                self._finish = choice.get("finish_reason") or self._finish
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
            self._wrong = f"The endpoint {self.where} sent a stream that is not a chat completion; check base_url."

    def answer(self, body: bytes) -> Answer:
        """body: all that was fed, for a server that did not stream."""
        if self._line and not self._wrong:
            self._see(bytes(self._line))
        if self._wrong:
            raise EndpointError(self._wrong)
        if not self._events:
            answer = completion_of(body, self.where)
            self.on_text(answer.text)
            return answer
        if not self._done and self._finish is None:
            raise EndpointError(f"The endpoint {self.where} broke off before its answer had ended; look at the server.")
        return _answer("".join(self._texts), "".join(self._thoughts), self._finish, self._usage, self.where)


def failure(reply: Reply, where: str, key: str) -> EndpointError:
    """Returns the error for a status other than 200."""
    said = _plain(_said(reply.body), key)
    about = f" ({said})" if said else ""
    advice = {
        400: "; a server that knows no JSON schema needs structured: none",
        401: "; check the API key's variable",
        403: "; check the API key's variable",
        404: "; check base_url (it usually ends in /v1) and the model's name",
        422: "; a server that knows no JSON schema needs structured: none",
    }.get(reply.status, "")
    message = f"The endpoint {where} refused with status {reply.status}{about}{advice}."
    return EndpointError(message, reply.status in AGAIN, _seconds(reply.headers.get("retry-after", "")))


def _plain(said: str, key: str = "") -> str:
    if key:
        said = said.replace(key, "***")
    return "".join(letter if letter.isprintable() else " " for letter in said)[:200].strip()


def _said(body: bytes) -> str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else ""


def _seconds(text: str) -> float | None:
    """Of the header Retry-After, which is a number of seconds or a date."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def models_of(body: bytes) -> list[str]:
    """Returns the names in a reply to GET /models; [] where there are none to be read."""
    try:
        names = [entry["id"] for entry in json.loads(body)["data"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    return [_plain(name) for name in names if isinstance(name, str) and name.strip()]


class AnswerError(DuoGenError):
    """The answer is not what was asked for. The model is shown the sentence when it is asked again."""


def parse_answer(text: str, schema: Mapping[str, Any]) -> Any:
    text = THINKING.sub("", text).strip()
    fenced = FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise AnswerError("The answer is nested too deeply; answer with JSON that fits the schema.") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise AnswerError(f"The answer is not JSON ({reason}); answer with one JSON value and nothing else.") from None
    check_value(value, schema)
    return value


def check_value(value: Any, schema: Mapping[str, Any]) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    if error is not None:
        place = "".join(f"[{one!r}]" for one in error.absolute_path) or "as a whole"
        expected = json.dumps({error.validator: error.validator_value})[:200]
        raise AnswerError(f"The answer does not fit the schema: {place[:200]} does not satisfy {expected}.")


def check_schema(schema: Mapping[str, Any]) -> None:
    from jsonschema.exceptions import SchemaError

    try:
        _validator(schema).check_schema(schema)
    except SchemaError as error:
        raise DuoGenError(f"The schema is not a valid JSON Schema: {error.message[:200]}.") from None


def _validator(schema: Mapping[str, Any]):
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise MissingPackage("Checking answers", "jsonschema", "data") from None
    return Draft202012Validator(schema)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)  # JSON does not say which of two equal keys counts
    if len(value) < len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def request_key(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True, allow_nan=False).encode()).hexdigest()


class Recording:
    """A file of answers, each under the hash of its request (`request_key`).

    record: answers from the file what it holds; the rest is asked and written down. replay: from the file only.

    One JSON object a line, written whole and flushed, so that a killed run loses at most the answer it was waiting for.
    The hash covers model, messages (pictures too) and options, not the endpoint's address. The file holds no request,
    and no key. One process writes a file at a time.
    """

    def __init__(self, file: str | os.PathLike[str], mode: str = "record"):
        if mode not in MODES:
            raise DuoGenError(f"A recording's mode is {' or '.join(MODES)}, not {mode!r}.")
        self.file, self.mode = Path(file), mode
        self.answers: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        try:
            if mode == "record":
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch()
            self._load()
        except OSError as error:
            raise DuoGenError(f"The recording {self.file} cannot be opened: {error.strerror or error}.") from None

    def _load(self) -> None:
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1  # what follows was cut off by a kill
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
                if not isinstance(key, str) or not isinstance(answer["text"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DuoGenError(
                    f"Line {number} of the recording {self.file} is not a recorded answer; remove that line."
                ) from None
            self.answers.setdefault(key, answer)  # the first one counts, as when it was recorded
        if self.mode == "record" and whole < len(data):
            with self.file.open("r+b") as file:
                file.truncate(whole)

    def find(self, key: str) -> dict[str, Any] | None:
        with self.lock:
            answer = self.answers.get(key)
        if answer is None and self.mode == "replay":
            raise DuoGenError(
                f"The recording {self.file} has no answer to the request {key[:12]}: a prompt, an input or the model "
                "differs from the recorded run; record it first."
            )
        return answer

    def keep(self, key: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Writes an answer down; when two threads asked the same, the first one counts for both."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=True).encode() + b"\n"
        with self.lock:
            if key not in self.answers:
                try:
                    with self.file.open("ab", buffering=0) as file:
                        start = file.tell()
                        try:
                            if file.write(line) < len(line):
                                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                        except OSError:
                            file.truncate(start)  # half a line, with another one behind it, is no recording
                            raise
                except OSError as error:
                    raise DuoGenError(f"The recording {self.file} cannot be written: {error.strerror}.") from None
                self.answers[key] = answer
            return self.answers[key]
