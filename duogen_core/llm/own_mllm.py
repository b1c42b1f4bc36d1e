"""Answers with the core's own MLLM in place of an endpoint: the same client, schema checks, retries and recordings.

    client = Client(Endpoint(HERE, "Qwen3-VL-8B", attempts=1, here=True), transport=OwnModel(mllm))

A request of the client (messages with pictures inside) becomes a Document, which the model continues. With a schema
nothing but what fits it can be written (mllm/constrained.py). Without one it is asked for text alone: where a model
would draw, or was never taught to, its answer simply ends there.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.errors import Cancelled
from duogen_core.llm.answers import Answer
from duogen_core.llm.local_model import LocalModel, Request, answered
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.constrained import Constraint
from duogen_core.mllm.prompted import Prompted
from duogen_core.net.client import EndpointError

PICTURE_START = "data:image/png;base64,"


class Untaught(Prompted):
    """For models without <BOV>: no instructions about pictures, since only text is wanted."""

    def taught(self, document: Document) -> Document:
        return document


class OwnModel(LocalModel):
    """The MLLM itself is left as it is: who else uses it still has its lesson about pictures."""

    sees = True

    def __init__(self, mllm: Mllm) -> None:
        super().__init__()
        self.mllm = mllm
        if mllm.prompted is not None:
            mllm.clear_cache()  # two of them must not share a cache, which one leaves broken where memory runs out
            self.mllm = copy.copy(mllm)
            self.mllm.prompted = Untaught()

    def prompt(self, body: Mapping[str, Any]) -> tuple[Document, bool]:
        return document_of(body["messages"]), False

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        return self.mllm.constraint(schema)

    def write(
        self,
        requests: Sequence[Request],
        on_text: Callable[[int, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Answer | EndpointError]:
        found = self.mllm.continue_many(
            [request.prompt for request in requests], max_new_tokens=[request.limit for request in requests],
            temperature=requests[0].temperature, reply_penalty=requests[0].reply_penalty,
            constraints=[request.constraint for request in requests], seeds=[request.seed for request in requests],
            on_token=on_text, cancelled=cancelled,
        )  # fmt: skip
        if any(written.stop == "interrupted" for written in found):
            raise Cancelled("Writing was stopped.")
        answers = []
        for row, written in enumerate(found):
            finish = "length" if written.stop == "max_tokens" else "stop"
            answers.append(answered(written.text, finish, self.mllm.cache_tokens(row) - written.tokens, written.tokens))
        return answers


def document_of(messages: list[Mapping[str, Any]]) -> Document:
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append(Turn(message["role"], tuple(map(_part, parts))))
    return Document(tuple(turns))


def _part(part: Mapping[str, Any]) -> Text | Picture:
    if part["type"] == "text":
        return Text(part["text"])
    code = part["image_url"]["url"].removeprefix(PICTURE_START)
    return Picture.from_bytes(base64.b64decode(code), name="an image of the request")
