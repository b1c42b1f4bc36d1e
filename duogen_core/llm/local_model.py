"""A model that is run here, as a transport for the client: what `OwnModel` and `TransformersModel` share.

    answer = model(body, on_text, cancelled)         the body of a chat request -> Answer; an EndpointError is raised
    answers = model.many(bodies, on_text, cancelled)  the same for several, each an Answer or an EndpointError

Requests that choose tokens alike are written as one batch. What cannot be answered (a text too long for the model, a
schema that nothing can be held to, turns that its template does not take) fails in its own place and leaves the others
alone. Cancelled, and what is nobody's fault, such as memory that runs out, ends all of them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import Answer
from duogen_core.mllm.constrained import Constraint
from duogen_core.net.client import EndpointError

HERE = "http://localhost/own-model"  # a name in place of an endpoint's address; nothing is sent there


@dataclass(frozen=True)
class Request:
    """A body that was read. prompt: as the model takes it. alone: cannot be a row of a batch."""

    body: Mapping[str, Any]
    prompt: Any
    constraint: Constraint | None
    alone: bool = False

    @property
    def temperature(self) -> float | None:
        """None: as the model's own file says."""
        value = self.body.get("temperature")
        return None if value is None else float(value)

    @property
    def reply_penalty(self) -> float:
        return float(self.body.get("reply_penalty", 1.0))

    @property
    def seed(self) -> int:
        return int(self.body["seed"])

    @property
    def limit(self) -> int:
        return int(self.body["max_tokens"])


class LocalModel(ABC):
    sees: bool

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @abstractmethod
    def prompt(self, body: Mapping[str, Any]) -> tuple[Any, bool]:
        """Reads the messages: the prompt, and whether it must be written alone."""

    @abstractmethod
    def constraint(self, schema: Mapping[str, Any]) -> Constraint: ...

    @abstractmethod
    def write(
        self,
        requests: Sequence[Request],
        on_text: Callable[[int, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Answer | EndpointError]:
        """Answers requests of one temperature and penalty as one batch."""

    def __call__(
        self,
        body: Mapping[str, Any],
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        (answer,) = self.many([body], on_text and (lambda _, piece: on_text(piece)), cancelled)
        if isinstance(answer, EndpointError):
            raise answer
        return answer

    def many(
        self,
        bodies: Sequence[Mapping[str, Any]],
        on_text: Callable[[int, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Answer | EndpointError]:
        answers: dict[int, Answer | EndpointError] = {}
        groups: dict[Any, dict[int, Request]] = {}
        with self.lock:
            for index, body in enumerate(bodies):
                try:
                    request = self._read(body)
                except DuoGenError as error:
                    answers[index] = _cannot(error)
                    continue
                alike = (request.temperature, request.reply_penalty, index if request.alone else None)
                groups.setdefault(alike, {})[index] = request
            for group in groups.values():
                answers |= self._written(group, on_text, cancelled)
        return [answers[index] for index in range(len(bodies))]

    def _read(self, body: Mapping[str, Any]) -> Request:
        schema = body["response_format"]["json_schema"]["schema"] if "response_format" in body else None
        prompt, alone = self.prompt(body)
        return Request(body, prompt, None if schema is None else self.constraint(schema), alone)

    def _written(
        self,
        group: Mapping[int, Request],
        on_text: Callable[[int, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> dict[int, Answer | EndpointError]:
        indices, begun = list(group), set()

        def tell(row: int, piece: str) -> None:
            begun.add(indices[row])
            on_text(indices[row], piece)

        try:
            return dict(zip(indices, self.write(list(group.values()), on_text and tell, cancelled)))
        except DuoGenError as error:
            if len(group) == 1:
                return {indices[0]: _cannot(error)}
        # One of them cannot be answered, and nobody knows which: each by itself, read anew since a constraint is of one
        # text. Of a text that was heard in part nothing is told again.
        answers: dict[int, Answer | EndpointError] = {}
        for index, request in group.items():
            told = None if index in begun else on_text
            answers |= self._written({index: self._read(request.body)}, told, cancelled)
        return answers


def answered(text: str, finish: str, prompt_tokens: int, tokens: int) -> Answer | EndpointError:
    """The answer with this text, or the error that there is none."""
    if not text.strip():
        return EndpointError("The model wrote nothing; take another model, or raise max_tokens.", again=False)
    return Answer(text, finish, max(prompt_tokens, 0), tokens, counted=True)


def _cannot(error: DuoGenError) -> EndpointError:
    """This request's fault, not the run's."""
    return (
        error if isinstance(error, EndpointError) else EndpointError(f"The model cannot answer: {error}", again=False)
    )
