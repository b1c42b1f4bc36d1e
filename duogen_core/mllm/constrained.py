"""Constrained decoding: what a model writes always fits a JSON schema, since no other token can be chosen.

    constraint = Constraint(schema, tokenizer, ends)        one answer that is being written
    constraint.mask(logits)                                 before a token is chosen: -inf where the schema ends
    constraint.take(token)                                  after it; then `constraint.done` says if the value is whole

In: a JSON schema (maxLength and pattern of strings are obeyed, too), a fast tokenizer of transformers, and the ids that
end a turn. Logits are [vocabulary] and of any device. A grammar decides form, never content, and only within the token
budget: an answer cut off there is the beginning of a value that fits.

llguidance (MIT) makes the masks: of the libraries tried it alone took pattern and maxLength together, needs no other
package, and costs 0.1 to 1 ms a token. The form is fixed where JSON leaves a choice (", " and ": ", no line breaks):
models write that way by themselves, and white space without end would be valid JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory

FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_prepared: WeakKeyDictionary[Any, dict[tuple[int, int], Any]] = WeakKeyDictionary()


class Constraint:
    def __init__(self, schema: Mapping[str, Any], tokenizer: Any, ends: Sequence[int]) -> None:
        library = _llguidance()
        self.ends = list(ends)
        grammar = json_grammar(schema)
        self._matcher = library.LLMatcher(_prepare(tokenizer, self.ends[0]), grammar, log_level=0)
        self._check()
        self.done = False

    def mask(self, logits: Tensor) -> None:
        """Sets the logits [vocabulary] of all tokens to -inf that cannot come next. The ends stay where it may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        refused = np.unpackbits(bits, bitorder="little")[: len(logits)] ^ 1
        if len(refused) < len(logits):  # rows of an embedding that no token has
            refused = np.concatenate([refused, np.ones(len(logits) - len(refused), np.uint8)])
        refused[self.ends] = refused[self.ends[0]]  # the library knows one of them
        logits.masked_fill_(torch.from_numpy(refused).view(torch.bool).to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        if token in self.ends:
            self.done = True
            return
        self._matcher.consume_token(token)
        self._check()
        self.done = self._matcher.is_stopped()  # nothing but the end can follow: no pass is needed to write that

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DuoGenError(f"The answer cannot be held to the JSON schema: {_reason(self._matcher.get_error())}.")


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Returns the grammar of a schema; a DuoGenError says what in it cannot be decoded by."""
    matcher = _llguidance().LLMatcher
    grammar = matcher.grammar_from_json_schema(json.dumps(schema), overrides=FORM)
    if wrong := matcher.validate_grammar(grammar):
        raise DuoGenError(
            f"No model can be held to this JSON schema: {_reason(wrong)}; leave that out of the schema, or check it "
            "after the answer."
        )
    return grammar


def _reason(text: str) -> str:
    """What the library says, on one line: the last one before it shows its state, as those before quote a pattern."""
    lines = [line.strip() for line in text.partition("<state>")[0].splitlines() if line.strip(" ^")]
    return (lines[-1].removeprefix("error: ").rstrip(".") if lines else "no reason was given")[:300]


def _prepare(tokenizer: Any, end: int) -> Any:
    """Returns the tokenizer as the library needs it. That takes a second for 150,000 tokens, so it is kept."""
    key = end, len(tokenizer)  # a tokenizer may still be added to
    kept = _prepared.setdefault(tokenizer, {})
    if key not in kept:
        rust = getattr(tokenizer, "backend_tokenizer", None)
        if rust is None:
            raise DuoGenError(
                f"The model's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, so its answers cannot be "
                "held to a JSON schema; take a model with one."
            )
        try:
            # to_str leaves out nothing but these two, which belong to a call and not to the tokenizer.
            text = json.loads(rust.to_str()) | {"truncation": None, "padding": None}
            kept[key] = _llguidance().LLTokenizer(json.dumps(text), eos_token=end)
        except Exception as error:  # the library raises what its parts do
            if is_out_of_memory(error):
                raise
            raise DuoGenError(
                f"The model's tokenizer cannot be used for constrained answers: {first_line(error)}."
            ) from None
    return kept[key]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise DuoGenError(
            "Holding a model's answers to a JSON schema needs the package llguidance; run pip install llguidance in "
            "the Python that runs this."
        ) from None
    return llguidance
