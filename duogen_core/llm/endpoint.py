"""Asks an OpenAI-compatible server for one chat completion, streamed or not, and makes do with what the server knows.

    server = Server(Endpoint("http://127.0.0.1:8000/v1", "Qwen3-VL-8B"))
    answer = server(body, on_text=print, cancelled=stopped)         body: the JSON of POST /chat/completions
    server.models()                                                 the names it has, from GET /models

Servers differ in what they take, and say so only when they are asked. What one refuses is left out, the same request is
sent once more, and that is remembered: a JSON schema becomes "any JSON object", then a rule in the text; a model that
only thinks is asked not to; fields that OpenAI renamed get their new name. A model's name that is not there becomes a
sentence with those that are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import Answer, OnlyThoughts, Streamed, completion_of, failure, models_of
from duogen_core.llm.messages import PROMPTS, Message, load_prompt
from duogen_core.net.client import EndpointError, Limits, Reply, ask_server, check_address

TO_LIST = Limits(connect=5, read=10, total=10)  # models of a server
SHOWN_MODELS = 12
# How a model is asked not to think: OpenAI reads the first, Ollama the second, vLLM, SGLang and llama.cpp the third.
NO_THINKING = {"reasoning_effort": "none", "think": False, "chat_template_kwargs": {"enable_thinking": False}}
SCHEMA_WORDS = ("response_format", "json_schema", "json_object", "schema", "grammar", "structured")
RENAMED = {"max_tokens": "max_completion_tokens"}
SPARED = ("stream_options", "temperature", "seed")  # an answer without them is still one
OURS = ("reply_penalty",)  # fields of a body that only models run here know


@dataclass(frozen=True)
class Price:
    """Price of a million tokens, in any currency; 0 for your own server."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    structured: whether the server is told the schema (some refuse or ignore that). options: further fields of every
    request, such as {"reasoning_effort": "none"}. waits: whether a server that is not there, or used up its time, is
    asked again after a pause, as a long run wants it; where somebody waits for the answer it is an error at once.
    sees: whether the model can look at pictures. here: the model is run here and held to schemas while it writes, so
    nobody tells it of them.
    """

    base_url: str
    model: str
    api_key_variable: str = ""
    structured: Literal["schema", "none"] = "schema"
    limits: Limits = field(default_factory=Limits)
    attempts: int = 5
    answers: int = 3
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    price: Price = field(default_factory=Price)
    options: Mapping[str, Any] = field(default_factory=dict)
    waits: bool = True
    sees: bool = True
    here: bool = False


class Server:
    """Threads may share one."""

    def __init__(self, endpoint: Endpoint, key: str = "", count: Callable[..., None] = lambda **_: None) -> None:
        check_address(endpoint.base_url)
        self.endpoint, self.key, self.count = endpoint, key, count
        self.base = endpoint.base_url.rstrip("/")
        self.sees = endpoint.sees
        # What this server was found to want: fields left out, renamed or added, and for a schema how far down it goes.
        self._left_out: set[str] = set()
        self._renamed: set[str] = set()
        self._added: dict[str, Any] = {}
        self._forms: dict[str, int] = {}

    def __call__(
        self,
        body: Mapping[str, Any],
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        thoughts: OnlyThoughts | None = None
        while True:
            sent = self._fitted(body, stream=on_text is not None)
            try:
                reply, answer = self._send(sent, on_text, cancelled)
            except OnlyThoughts as error:
                if thoughts is not None or set(NO_THINKING) & set(sent):
                    raise
                thoughts = error
                self._added = dict(NO_THINKING)
            else:
                if answer is not None:
                    return answer
                if not self._gives_way(reply, sent, body):
                    if thoughts is not None:  # of a server that does not know how to turn them off
                        self._added = {}
                        raise thoughts
                    raise self._unknown_model(reply) or failure(reply, self.endpoint.base_url, self.key)
            self.count(requests=1, retries=1)

    def models(self) -> list[str]:
        reply = ask_server("GET", f"{self.base}/models", None, self._headers(), TO_LIST)
        return models_of(reply.body) if reply.status == 200 else []

    def _headers(self) -> dict[str, str]:
        # Redirects are not followed, so the key goes to this host and to no other.
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def _send(
        self,
        body: Mapping[str, Any],
        on_text: Callable[[str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> tuple[Reply, Answer | None]:
        """Returns the reply, and the answer in it where its status says that there is one."""
        where, url = self.endpoint.base_url, f"{self.base}/chat/completions"
        text = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        headers = {"Content-Type": "application/json", **self._headers()}
        if on_text is None:
            reply = ask_server("POST", url, text, headers, self.endpoint.limits, watch=cancelled)
            return reply, completion_of(reply.body, where) if reply.status == 200 else None
        waiting: list[str] = []  # what came in the thread of the request, to be told in this one

        def watch() -> bool:
            while waiting:
                on_text(waiting.pop(0))
            return cancelled is not None and cancelled()

        stream = Streamed(where, waiting.append, self.key)
        reply = ask_server("POST", url, text, headers, self.endpoint.limits, on_bytes=stream.feed, watch=watch)
        watch()  # the last pieces, also of an answer that broke off
        answer = stream.answer(reply.body) if reply.status == 200 else None
        watch()
        return reply, answer

    # -- what servers know --------------------------------------------------------------------------------------------

    def _fitted(self, body: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        """The request as this server takes it, as far as that is known."""
        sent = {name: value for name, value in body.items() if name not in OURS} | self._added
        if stream:
            sent |= {"stream": True, "stream_options": {"include_usage": True}}
        if "response_format" in sent and (level := self._forms.get(_key(body), 0)):
            schema = sent.pop("response_format")["json_schema"]["schema"]
            if level == 1:
                sent["response_format"] = {"type": "json_object"}
            rule = schema_rule(schema)
            if rule not in str(sent["messages"][0]["content"]):
                sent["messages"] = with_rule(sent["messages"], rule)
        for name in self._renamed & set(sent):
            sent[RENAMED[name]] = sent.pop(name)
        return {name: value for name, value in sent.items() if name not in self._left_out}

    def _gives_way(self, reply: Reply, sent: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
        """Whether something that the server names can be left out or said otherwise."""
        if reply.status not in (400, 422, 501):
            return False
        said = reply.body[:20_000].decode("utf-8", "replace").lower()
        if "response_format" in sent and any(word in said for word in SCHEMA_WORDS):
            schema = body["response_format"]["json_schema"]["schema"]
            # Any JSON object is the next best thing, where the schema is of an object. By what was sent: another thread
            # may have learnt the same meanwhile.
            is_first = sent["response_format"]["type"] == "json_schema" and schema.get("type") == "object"
            self._forms[_key(body)] = max(1 if is_first else 2, self._forms.get(_key(body), 0))
            return True
        for name in (*RENAMED, *SPARED, *NO_THINKING):
            if name not in sent or name not in said or name in self.endpoint.options:
                continue
            if name in RENAMED:
                if RENAMED[name] not in said:
                    continue
                self._renamed.add(name)
            elif name in NO_THINKING:
                self._added = {key: value for key, value in self._added.items() if key != name}
            else:
                self._left_out.add(name)
            return True
        return False

    def _unknown_model(self, reply: Reply) -> EndpointError | None:
        """A sentence with the models that there are, where this is about a model that is not."""
        if not (reply.status == 404 or (reply.status in (400, 422) and b"model" in reply.body[:20_000].lower())):
            return None
        try:
            names = self.models()
        except EndpointError:
            return None
        if not names or self.endpoint.model in names:
            return None
        return EndpointError(
            f"The endpoint {self.endpoint.base_url} has no model {self.endpoint.model!r}; it has {listed(names)}.",
            again=False,
        )


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else ""
    return ", ".join(name[:100] for name in names[:SHOWN_MODELS]) + more


def schema_rule(schema: Mapping[str, Any]) -> str:
    return f"{load_prompt(PROMPTS / 'json.txt')}\n{json.dumps(schema, ensure_ascii=False)}"


def with_rule(messages: list[Message], rule: str) -> list[Message]:
    """Puts the rule into the one system message: many chat templates take only one, and only at the start."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{rule}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": rule}, *messages]


def read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise DuoGenError(f"The environment variable {variable} must hold the endpoint's API key; set it.")
    return key


def _key(body: Mapping[str, Any]) -> str:
    return json.dumps(body["response_format"], sort_keys=True)
