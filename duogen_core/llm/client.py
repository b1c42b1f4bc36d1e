"""The client: messages in, an answer out; checked, counted, paced, tried again and recorded.

    client = Client(Endpoint("http://127.0.0.1:8000/v1", "Qwen3-VL-8B"), Recording("answers.jsonl"))
    client.ask(messages, schema={"type": "object", ...}).value

Two kinds of second attempt: the same request again when the endpoint failed (with growing pauses), and a longer request
that shows the model its answer and what is wrong with it when that does not fit the schema, or what the caller checks.
Another `transport` answers in the endpoint's place (`local_model`: a model run here). Threads may share a client: the
rate limit (`RateLimit`) and what was spent (`Usage`) are counted for all of them together.

    client.ask(messages, schema, read=patient, on_text=show, cancelled=stopped)      while somebody looks on
    client.ask_many([Question(messages, schema), …])                                 one batch, or requests side by side
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.llm.answers import (
    Answer,
    AnswerError,
    Recording,
    check_schema,
    parse_answer,
    request_key,
)
from duogen_core.llm.endpoint import Endpoint, Price, Server, read_key, schema_rule, with_rule
from duogen_core.llm.messages import (
    PROMPTS,
    Message,
    load_prompt,
    without_marks,
)
from duogen_core.net.client import EndpointError, check_address

LONGEST_PAUSE = 60.0
PICTURE_TOKENS = 1000  # a booking for the rate limit; the endpoint's own count replaces it
SHOWN_ANSWER = 4000  # characters of a refused answer that the model is shown again
WINDOW = 60.0
LOOK = 0.2  # seconds of a pause between two looks at whether the answer is still wanted


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
class Question:
    """What `Client.ask` takes, as a value for `Client.ask_many`.

    schema: what the answer must be. read: reads the answer's text, in place of a strict reader of JSON that checks it
    against the schema; it may take what is whole of an answer that was cut off, or raise an AnswerError. check: looks
    at the value, and raises an AnswerError to have it asked for again.
    rule: what the model is told of the form; by default the schema itself (nothing, where the model is run here), ""
    where the messages say it already (a server that refuses schemas is told it anyway).
    narrower: a schema of which every value fits `schema` as well, for models that are run here and held to it while
    they write: what a check would refuse is better never written (servers differ in what they know of JSON Schema).
    temperature: None for the model's own way of choosing tokens. reply_penalty: above 1 keeps a model that is run here
    from repeating itself; servers get theirs by options.
    """

    messages: Sequence[Message]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float | None = 0.0
    seed: int = 0
    check: Callable[[Any], None] = lambda _: None
    read: Callable[[str], Any] | None = None
    rule: str | None = None
    reply_penalty: float = 1.0
    narrower: Mapping[str, Any] | None = None


class Client:
    """transport: answers in the endpoint's place, body -> Answer. A model run here (`local_model`) takes on_text and
    cancelled as well, has `many` for several bodies at once, and says whether it `sees`."""

    def __init__(
        self,
        endpoint: Endpoint,
        recording: Recording | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: Callable[..., Answer] | None = None,
    ):
        check_address(endpoint.base_url)
        if min(endpoint.attempts, endpoint.answers) < 1:
            raise DuoGenError("An endpoint needs at least one attempt and one answer; set both to 1 or more.")
        self.endpoint, self.recording, self.sleep = endpoint, recording, sleep
        self.on_answer: Callable[[Answer], None] = lambda _: None
        self.usage = Usage(endpoint.price)
        self.rate_limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute, sleep=sleep)
        self.key = read_key(endpoint.api_key_variable) if recording is None or recording.mode != "replay" else ""
        self.transport = transport or Server(endpoint, self.key, self.usage.add)

    @property
    def sees(self) -> bool:
        """Whether pictures may go along."""
        return bool(getattr(self.transport, "sees", self.endpoint.sees))

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
        temperature: float | None = 0.0,
        seed: int = 0,
        check: Callable[[Any], None] = lambda _: None,
        *,
        read: Callable[[str], Any] | None = None,
        rule: str | None = None,
        reply_penalty: float = 1.0,
        narrower: Mapping[str, Any] | None = None,
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Asks as `Question` says.

        on_text: gets the text while it is written, in pieces; the piece "" says that it begins anew (the answer broke
        off or was refused, and is asked for again). cancelled: is looked at all the while; Cancelled is raised within
        a second of its saying True.
        """
        question = Question(messages, schema, max_tokens, temperature, seed, check, read, rule, reply_penalty, narrower)
        text, steps = _Text(on_text), self._steps(question)
        body = next(steps)
        while True:
            answer = self._complete(body, text, cancelled)
            try:
                body = steps.send(answer)
            except StopIteration as over:
                return over.value
            text.anew()

    def ask_many(
        self,
        questions: Sequence[Question],
        *,
        parallel: int = 4,
        on_text: Callable[[int, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Answer | DuoGenError]:
        """Asks several questions at once: of each the answer, or the error that it ended with.

        A model run here writes `parallel` answers as one batch; a server gets `parallel` requests at the same time.
        on_text: with the index of the question; one call at a time.
        """
        results: list[Answer | DuoGenError | None] = [None] * len(questions)
        texts = [_Text(on_text and partial(on_text, index)) for index in range(len(questions))]
        if hasattr(self.transport, "many"):
            steps = [self._steps(question) for question in questions]
            due: list[tuple[int, Any]] = [(index, None) for index in range(len(questions))]  # and what came for each
            while due:
                bodies: dict[int, dict[str, Any]] = {}
                for index, answer in due:
                    try:
                        bodies[index] = steps[index].send(answer)
                        texts[index].anew()
                    except StopIteration as over:
                        results[index] = over.value
                    except DuoGenError as error:
                        results[index] = error
                due = []
                order = list(bodies)
                for start in range(0, len(order), parallel):
                    some = order[start : start + parallel]
                    for index, answer in self._complete_many({i: bodies[i] for i in some}, texts, cancelled).items():
                        if isinstance(answer, Answer):
                            due.append((index, answer))
                        else:
                            results[index] = answer
            return results
        lock = threading.Lock()

        def one(index: int) -> None:
            def told(piece: str) -> None:
                with lock:
                    on_text(index, piece)

            try:
                how = {name: getattr(questions[index], name) for name in Question.__dataclass_fields__}
                results[index] = self.ask(**how, on_text=on_text and told, cancelled=cancelled)
            except DuoGenError as error:
                results[index] = error

        with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
            list(pool.map(one, range(len(questions))))
        return results

    def _steps(self, question: Question) -> Generator[dict[str, Any], Answer, Answer]:
        """Yields the requests that one question takes, is sent their answers, and returns the usable one."""
        schema, seed = question.schema, question.seed
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(question.messages),
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "seed": seed,
            **self.endpoint.options,
        }
        if question.temperature is None:
            del body["temperature"]
        if question.reply_penalty != 1:
            body["reply_penalty"] = question.reply_penalty
        if schema is None and question.read is None:
            return (yield body)
        sends, here = self.endpoint.structured == "schema", self.endpoint.here
        if schema is not None:
            if question.read is None:
                check_schema(schema)
            rule = question.rule
            if rule is None:
                rule = "" if here and sends else schema_rule(schema)
            elif not (rule or sends):
                rule = schema_rule(schema)
            if rule:
                body["messages"] = with_rule(body["messages"], rule)
            if sends:
                told = question.narrower if here and question.narrower is not None else schema
                named = {"name": "answer", "strict": True, "schema": dict(told)}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
        asked = body["messages"]
        for attempt in range(self.endpoint.answers):
            answer = yield body
            try:
                value = question.read(answer.text) if question.read else parse_answer(answer.text, schema)
                question.check(value)
                return answer.with_value(value)
            except AnswerError as error:
                self.usage.add(refused_answers=1)
                last, reason = error, str(error)
                if answer.finish == "length":
                    reason = f"The answer was cut off after {question.max_tokens} tokens; answer more briefly."
            if schema is not None and sends and not here and not rule:
                rule = schema_rule(schema)  # some servers take a schema and ignore it (transformers serve)
                asked = with_rule(asked, rule)
            # both may quote a page, which the model was shown without template marks
            again = f"{without_marks(reason)} {load_prompt(PROMPTS / 'again.txt')}"
            shown = {"role": "assistant", "content": without_marks(answer.text[:SHOWN_ANSWER])}
            body = {**body, "messages": [*asked, shown, {"role": "user", "content": again}], "seed": seed + attempt + 1}
        model = self.endpoint.model
        raise AnswerError(f"The model {model} gave no usable answer in {attempt + 1} attempts: {reason}") from last

    def _complete(self, body: dict[str, Any], text: _Text, cancelled: Callable[[], bool] | None) -> Answer:
        if (kept := self._recorded(body, text)) is not None:
            return kept
        return self._keep(body, self._with_retries(body, text, cancelled))

    def _complete_many(
        self, bodies: Mapping[int, dict[str, Any]], texts: Sequence[_Text], cancelled: Callable[[], bool] | None
    ) -> dict[int, Answer | DuoGenError]:
        """One batch of a model run here: the answers of those bodies that are not recorded."""
        done: dict[int, Answer | DuoGenError] = {}
        for index, body in bodies.items():
            if (kept := self._recorded(body, texts[index])) is not None:
                done[index] = kept
        left = [index for index in bodies if index not in done]
        if left:
            told = any(texts[index].on_text for index in left)
            on_text = (lambda row, piece: texts[left[row]](piece)) if told else None
            answers = self.transport.many([bodies[index] for index in left], on_text=on_text, cancelled=cancelled)
            for index, answer in zip(left, answers):
                self.usage.add(requests=1)
                if isinstance(answer, Answer):
                    self._count(answer)
                    answer = self._keep(bodies[index], answer)
                done[index] = answer
        return done

    def _recorded(self, body: dict[str, Any], text: _Text) -> Answer | None:
        kept = self.recording.find(request_key(body)) if self.recording is not None else None
        if kept is None:
            return None
        self.usage.add(recorded=1)
        answer = Answer.from_json(kept)
        text(answer.text)
        self.on_answer(answer)
        return answer

    def _keep(self, body: dict[str, Any], answer: Answer) -> Answer:
        if self.recording is not None:
            answer = Answer.from_json(self.recording.keep(request_key(body), answer.to_json()))
        self.on_answer(answer)
        return answer

    def _with_retries(self, body: dict[str, Any], text: _Text, cancelled: Callable[[], bool] | None) -> Answer:
        for attempt in range(self.endpoint.attempts):
            if cancelled is not None and cancelled():
                raise Cancelled("The request was stopped.")
            booking = self.rate_limit.wait(_expected_tokens(body))
            self.usage.add(requests=1, retries=int(attempt > 0))
            try:
                if isinstance(self.transport, Server) or hasattr(self.transport, "many"):
                    answer = self.transport(body, on_text=text if text.on_text else None, cancelled=cancelled)
                else:
                    answer = self.transport(body)
                    text(answer.text)
            except EndpointError as error:
                last = attempt + 1 == self.endpoint.attempts
                if not error.again or last or (error.lasting and not self.endpoint.waits):
                    raise
                text.anew()
                self._pause(_pause(attempt, error.wait), cancelled)
                continue
            if answer.counted:
                self.rate_limit.settle(booking, answer.prompt_tokens + answer.completion_tokens)
            self._count(answer)
            return answer
        raise AssertionError("attempts is at least 1")

    def _count(self, answer: Answer) -> None:
        self.usage.add(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            uncounted=int(not answer.counted),
        )

    def _pause(self, seconds: float, cancelled: Callable[[], bool] | None) -> None:
        if cancelled is None:
            self.sleep(seconds)
            return
        while seconds > 0:
            if cancelled():
                raise Cancelled("The request was stopped.")
            self.sleep(min(seconds, LOOK))
            seconds -= LOOK


class _Text:
    """Hands pieces of an answer on, and says when it begins anew."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self.on_text, self.begun = on_text, False

    def __call__(self, piece: str) -> None:
        if self.on_text is not None and piece:
            self.begun = True
            self.on_text(piece)

    def anew(self) -> None:
        if self.begun:
            self.begun = False
            self.on_text("")


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
