"""Answers with the core's own MLLM in place of an endpoint: the same client, schema checks, retries and recordings.

    client = own_client(model, recording_file)      whatever duogen_core.checkpoint.resolve_mllm knows

A request of the client (messages with pictures inside) becomes a Document, which the model continues; one at a time.
It is asked for text alone: where a model would draw, or was never taught to, its answer simply ends there.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from duogen_core.data.llm.answers import Answer, Recording
from duogen_core.data.llm.client import Client, Endpoint
from duogen_core.data.net.client import EndpointError
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.loading import load_mllm
from duogen_core.mllm.prompted import Prompted

HERE = "http://localhost/own-model"  # a name in place of an endpoint's address; nothing is sent there
PICTURE_START = "data:image/png;base64,"


class Untaught(Prompted):
    """For models without <BOV>: no instructions about pictures, since only text is wanted."""

    def taught(self, document: Document) -> Document:
        return document


def own_client(
    model: str | os.PathLike[str],
    recording: Path,
    replay: bool = False,
    answers: int = 3,
    tokenizer: str | os.PathLike[str] | None = None,
    place: Callable[[Mllm], Mllm] = lambda mllm: mllm,
) -> Client:
    """tokenizer: the folder with it, for a model that is a single file of weights. place: brings it to its device."""
    endpoint = Endpoint(HERE, Path(model).resolve().name, structured="none", attempts=1, answers=answers)
    transport = None
    if not replay:
        from duogen_core.checkpoint import resolve_mllm

        transport = OwnModel(place(load_mllm(resolve_mllm(model), tokenizer=tokenizer)))
    return Client(endpoint, Recording(recording, "replay" if replay else "record"), transport=transport)


class OwnModel:
    """A transport for the client: the body of a chat request -> Answer."""

    def __init__(self, mllm: Mllm) -> None:
        self.mllm, self.lock = mllm, threading.Lock()
        if mllm.prompted is not None:
            mllm.prompted = Untaught()

    def __call__(self, body: Mapping[str, Any]) -> Answer:
        document = document_of(body["messages"])
        with self.lock:
            try:
                written = self.mllm.continue_(
                    document,
                    max_new_tokens=int(body["max_tokens"]),
                    temperature=float(body["temperature"]),
                    seed=int(body["seed"]),
                )
            except DuoGenError as error:  # too long for the model: this request's fault, not the run's
                raise EndpointError(f"The model cannot answer: {error}", again=False) from None
            prompt = max(self.mllm.cache_tokens() - written.tokens, 0)
        if not written.text.strip():
            raise EndpointError("The model wrote nothing; take another model, or raise max_tokens.", again=False)
        finish = "length" if written.stop == "max_tokens" else "stop"
        return Answer(written.text, finish, prompt, written.tokens, counted=True)


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
