"""Answers for tests of evaluation in several processes, which import them by name."""

from __future__ import annotations

import os
import time

from duogen_core.devices import choose_device
from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.answering import ModelAnswer
from tests.core import other_device as other_device  # its import makes the cards


def echo(prompt: Document, seed: int) -> Document:
    """Early questions take the longest, so that the answers come out of order."""
    time.sleep(0.3 if seed < 2 else 0.0)
    return prompt.begin_turn("assistant", [Text(f"{prompt.last_turn.text} {seed}")])


def refuse(prompt: Document, seed: int) -> Document:
    raise DuoGenError("There is nothing to say.")


def fail(prompt: Document, seed: int) -> Document:
    raise ZeroDivisionError("by hand")


def die(prompt: Document, seed: int) -> Document:
    os._exit(9)


class OnCard(ModelAnswer):
    """Answers with the name of its device, and knows the stand-in for a card in every process."""

    def __call__(self, prompt: Document, seed: int) -> Document:
        time.sleep(0.2)  # the other process has its turn
        return prompt.begin_turn("assistant", [Text(str(choose_device(self.placement.device)))])
