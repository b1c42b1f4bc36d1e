"""The client: messages in, an answer out; checked, counted, paced, tried again and recorded.

    client = Client(Endpoint("http://127.0.0.1:8000/v1", "Qwen3-VL-8B"), Recording("answers.jsonl"))
    client.ask(messages, schema={"type": "object", ...}).value

Two kinds of second attempt: the same request again when the endpoint failed (with growing pauses), and a longer request
that shows the model its answer and what is wrong with it when that does not fit the schema, or what the caller checks.
Another `transport` answers in the endpoint's place (`own_mllm`: the core's own model). Threads may share a client: the
rate limit (`RateLimit`) and what was spent (`Usage`) are counted for all of them together.
"""

from __future__ import annotations

import copy
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from duogen_core.data.llm.answers import (
    Answer,
    AnswerError,
    Recording,
    check_schema,
    completion_of,
    failure,
    parse_answer,
    request_key,
)
from duogen_core.data.llm.messages import (
    PROMPTS,
    Message,
    load_prompt,
    without_marks,
)
from duogen_core.data.net.client import EndpointError, Limits, ask_server, check_address
from duogen_core.errors import DuoGenError

LONGEST_PAUSE = 60.0
PICTURE_TOKENS = 1000  # a booking for the rate limit; the endpoint's own count replaces it
SHOWN_ANSWER = 4000  # characters of a refused answer that the model is shown again
WINDOW = 60.0


@dataclass
class Booking:
    time: float
    tokens: int


class RateLimit:
    """Limits how many requests and tokens leave within any 60 seconds, for all threads of a process together.

    `wait` books a request with the tokens it is expected to cost and returns when it may go; `settle` corrects the
    booking to what it did cost. A request larger than the whole limit goes when nothing else is booked, since waiting
    would not help it.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.requests, self.tokens = requests, tokens
        self.clock, self.sleep = clock, sleep
        self.booked: deque[Booking] = deque()
        self.lock = threading.Lock()

    def wait(self, tokens: int) -> Booking:
        while True:
            with self.lock:
                now = self.clock()
                while self.booked and self.booked[0].time <= now - WINDOW:
                    self.booked.popleft()
                if self._fits(tokens):
                    booking = Booking(now, tokens)
                    self.booked.append(booking)
                    return booking
                pause = self.booked[0].time + WINDOW - now
            self.sleep(max(pause, 0.001))

    def settle(self, booking: Booking, tokens: int) -> None:
        with self.lock:
            booking.tokens = tokens

    def _fits(self, tokens: int) -> bool:
        if not self.booked:
            return True
        if self.requests is not None and len(self.booked) >= self.requests:
            return False
        return self.tokens is None or sum(one.tokens for one in self.booked) + tokens <= self.tokens


@dataclass(frozen=True)
class Price:
    """Price of a million tokens, in any currency; 0 for your own server."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass
class Usage:
    """Counts requests, retries and tokens, and their price, for all threads together."""

    price: Price = field(default_factory=Price)
    requests: int = 0
    retries: int = 0
    refused_answers: int = 0
    recorded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    @property
    def cost(self) -> float:
        """Sums the answers whose tokens the endpoint counted; `uncounted` says how many it did not."""
        return (self.prompt_tokens * self.price.prompt + self.completion_tokens * self.price.completion) / 1e6

    def to_json(self) -> dict[str, float]:
        names = ("requests", "retries", "refused_answers", "recorded", "prompt_tokens", "completion_tokens")
        return {**{name: getattr(self, name) for name in names}, "uncounted": self.uncounted, "cost": self.cost}


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    structured: whether the server is told the schema (some refuse or ignore that). options: further fields of every
    request, such as {"reasoning_effort": "none"}.
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


class Client:
    def __init__(
        self,
        endpoint: Endpoint,
        recording: Recording | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: Callable[[Mapping[str, Any]], Answer] | None = None,
    ):
        check_address(endpoint.base_url)
        if min(endpoint.attempts, endpoint.answers) < 1:
            raise DuoGenError("An endpoint needs at least one attempt and one answer; set both to 1 or more.")
        self.endpoint, self.recording, self.sleep = endpoint, recording, sleep
        self.transport = transport or self._post
        self.on_answer: Callable[[Answer], None] = lambda _: None
        self.usage = Usage(endpoint.price)
        self.rate_limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute, sleep=sleep)
        self.key = _key(endpoint.api_key_variable) if recording is None or recording.mode != "replay" else ""

    def with_callback(self, on_answer: Callable[[Answer], None]) -> Client:
        """Returns this client, calling `on_answer` with every answer that comes in, recorded and refused ones too."""
        other = copy.copy(self)
        other.on_answer = on_answer
        return other

    def ask(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        check: Callable[[Any], None] = lambda _: None,
    ) -> Answer:
        """check: looks at a value that fits the schema, and raises an AnswerError to have it asked for again."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            **self.endpoint.options,
        }
        if schema is None:
            return self._complete(body)
        check_schema(schema)
        rule = f"{load_prompt(PROMPTS / 'json.txt')}\n{json.dumps(schema, ensure_ascii=False)}"
        body["messages"] = _with_rule(body["messages"], rule)
        if self.endpoint.structured == "schema":
            named = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        asked = body["messages"]
        for attempt in range(self.endpoint.answers):
            answer = self._complete(body)
            try:
                value = parse_answer(answer.text, schema)
                check(value)
                return answer.with_value(value)
            except AnswerError as error:
                self.usage.add(refused_answers=1)
                last, reason = error, str(error)
                if answer.finish == "length":
                    reason = f"The answer was cut off after {max_tokens} tokens; answer more briefly."
            # both may quote a page, which the model was shown without template marks
            again = f"{without_marks(reason)} {load_prompt(PROMPTS / 'again.txt')}"
            shown = {"role": "assistant", "content": without_marks(answer.text[:SHOWN_ANSWER])}
            body = {**body, "messages": [*asked, shown, {"role": "user", "content": again}], "seed": seed + attempt + 1}
        model = self.endpoint.model
        raise AnswerError(f"The model {model} gave no usable answer in {attempt + 1} attempts: {reason}") from last

    def _complete(self, body: dict[str, Any]) -> Answer:
        key = request_key(body)
        if self.recording is not None:
            kept = self.recording.find(key)
            if kept is not None:
                self.usage.add(recorded=1)
                return self._delivered(Answer.from_json(kept))
        answer = self._with_retries(body)
        if self.recording is not None:
            answer = Answer.from_json(self.recording.keep(key, answer.to_json()))
        return self._delivered(answer)

    def _delivered(self, answer: Answer) -> Answer:
        self.on_answer(answer)
        return answer

    def _with_retries(self, body: dict[str, Any]) -> Answer:
        for attempt in range(self.endpoint.attempts):
            booking = self.rate_limit.wait(_expected_tokens(body))
            self.usage.add(requests=1, retries=int(attempt > 0))
            try:
                answer = self.transport(body)
            except EndpointError as error:
                if not error.again or attempt + 1 == self.endpoint.attempts:
                    raise
                self.sleep(_pause(attempt, error.wait))
                continue
            if answer.counted:
                self.rate_limit.settle(booking, answer.prompt_tokens + answer.completion_tokens)
            self.usage.add(
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                uncounted=int(not answer.counted),
            )
            return answer
        raise AssertionError("attempts is at least 1")

    def _post(self, body: Mapping[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self.key:  # redirects are not followed, so it goes to this host and to no other
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        text = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        reply = ask_server("POST", url, text, headers, self.endpoint.limits)
        if reply.status != 200:
            raise failure(reply, self.endpoint.base_url, self.key)
        return completion_of(reply.body, self.endpoint.base_url)


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise DuoGenError(f"The environment variable {variable} must hold the endpoint's API key; set it.")
    return key


def _with_rule(messages: list[Message], rule: str) -> list[Message]:
    """Puts the rule into the one system message: many chat templates take only one, and only at the start."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{rule}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": rule}, *messages]


def _expected_tokens(body: Mapping[str, Any]) -> int:
    characters = pictures = 0
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                characters += len(part["text"])
            else:
                pictures += 1
    # About three characters a token in most languages; too many only costs a wait, too few the limit.
    return characters // 3 + pictures * PICTURE_TOKENS + body["max_tokens"]


def _pause(attempt: int, asked: float | None) -> float:
    if asked is not None:
        return min(asked, LONGEST_PAUSE)
    # By chance within the half, so that threads that failed together do not come back together.
    return min(2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
