"""Lets threads share a model that is run here: requests that come while it writes become its next batch.

    transport = Gathering(OwnModel(mllm), most=4)        as a transport for the client

One pass of a model serves several rows at once: twelve requests on a processor with two cores came to 31 tokens a
second in one batch and 11 one after another (0.5B, bf16). The data engines ask from threads, one for each document.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duogen_core.llm.answers import Answer

GATHER = 0.05  # seconds in which requests that are made at the same time find each other


@dataclass(eq=False)
class _Request:
    body: Mapping[str, Any]
    answer: Answer | BaseException | None = None


class Gathering:
    def __init__(self, model: Any, most: int) -> None:
        self.model, self.most = model, max(1, most)
        self._waiting: deque[_Request] = deque()
        self._turn = threading.Lock()

    @property
    def sees(self) -> bool:
        return self.model.sees

    def many(self, bodies: Sequence[Mapping[str, Any]], **how: Any) -> list[Any]:
        with self._turn:
            return self.model.many(bodies, **how)

    def __call__(
        self,
        body: Mapping[str, Any],
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        if on_text is not None or cancelled is not None:  # somebody waits for this one
            with self._turn:
                return self.model(body, on_text=on_text, cancelled=cancelled)
        own = _Request(body)
        self._waiting.append(own)
        time.sleep(GATHER)
        with self._turn:  # whoever has it answers for all who wait, in the order in which they came
            while own.answer is None:
                batch = [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]
                try:
                    answers: Sequence[Any] = self.model.many([one.body for one in batch])
                except BaseException as error:  # memory ran out, Ctrl-C: it is everybody's
                    answers = [error] * len(batch)
                for one, answer in zip(batch, answers):
                    one.answer = answer
        if isinstance(own.answer, BaseException):
            raise own.answer
        return own.answer
