"""What an endpoint sends back: the bytes of a chat completion -> an Answer, and a refused request -> an error.

Nothing in it is believed: every field is looked at before use, and texts of the server appear in messages shortened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from duogen_core.data.llm.endpoint import EndpointError, Reply

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
MOST_TOKENS = 10**8
THOUGHTS = ("reasoning", "reasoning_content")  # where Ollama and vLLM, and where llama.cpp and DeepSeek put them


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
        raise EndpointError(f"The endpoint {where} sent JSON that is no chat completion; check base_url.") from None
    if not isinstance(text, str) or not text.strip():
        thought = next((message[name] for name in THOUGHTS if isinstance(message.get(name), str)), "").strip()
        if thought:
            ended = " until max_tokens was reached" if choice.get("finish_reason") == "length" else ""
            raise EndpointError(
                f"The endpoint {where} sent only the model's thoughts{ended} ({len(thought):,} characters of "
                "reasoning) and no answer; turn thinking off with --think false or --reasoning-effort none, or raise "
                "max_tokens.",
                again=False,
            )
        raise EndpointError(f"The endpoint {where} sent an answer without text; raise max_tokens or ask otherwise.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise EndpointError(f"The endpoint {where} sent an answer that is not valid Unicode.")
    usage = value.get("usage")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    counted = all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts)
    prompt, completion = counts if counted else (0, 0)
    return Answer(text, str(choice.get("finish_reason") or "")[:40], prompt, completion, counted)


def failure(reply: Reply, where: str, key: str) -> EndpointError:
    """The error for a status other than 200."""
    said = _said(reply.body)
    if key:
        said = said.replace(key, "***")
    said = "".join(letter if letter.isprintable() else " " for letter in said)[:200].strip()
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
    return float(text) if text.isascii() and text.isdigit() else None
