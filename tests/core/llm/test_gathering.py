"""Threads that share a model: their requests are answered as batches, each with its own answer or error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from duogen_core.llm.answers import Answer
from duogen_core.llm.gathering import Gathering
from duogen_core.net.client import EndpointError


class Model:
    sees = True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def many(self, bodies):
        self.go.wait(20)
        self.batches.append([body["n"] for body in bodies])
        if any(body["n"] == 99 for body in bodies):
            raise MemoryError("full")
        return [EndpointError("too long") if n == 3 else Answer(str(n), "stop", 1, 1, True) for n in self.batches[-1]]

    def __call__(self, body, on_text=None, cancelled=None):
        return Answer("alone", "stop", 1, 1, True)


def test_requests_of_threads_are_batches():
    model = Model()
    gathering = Gathering(model, most=4)
    assert gathering.sees
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(gathering, {"n": n}) for n in range(9)]
        while len(gathering._waiting) < 5:  # the first batch is being written; the others wait
            pass
        model.go.set()
        answers = [future.exception() or future.result().text for future in futures]
    assert answers[:3] + answers[4:] == [str(n) for n in range(9) if n != 3] and isinstance(answers[3], EndpointError)
    assert sorted(n for batch in model.batches for n in batch) == list(range(9))
    assert max(map(len, model.batches)) == 4 and len(model.batches) <= 4
    assert gathering({"n": 1}, on_text=print).text == "alone"


def test_what_fails_fails_for_its_batch_alone():
    model = Model()
    model.go.set()
    gathering = Gathering(model, most=1)
    with pytest.raises(MemoryError):
        gathering({"n": 99})
    assert gathering({"n": 1}).text == "1"
