"""Answers as JSON: the text of an answer -> a value that fits a JSON Schema, or an AnswerError saying what is wrong.

Nothing is repaired. Two habits of models are understood: thoughts before the answer (<think>…</think>) and one code
fence around all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from duogen_core.errors import DuoGenError, MissingPackage

THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL | re.IGNORECASE)


class AnswerError(DuoGenError):
    """The answer is not what was asked for; the sentence is also what the model is told when it is asked again."""


def parse_answer(text: str, schema: Mapping[str, Any]) -> Any:
    text = THINKING.sub("", text).strip()
    fenced = FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise AnswerError("The answer is nested too deeply; answer with JSON that fits the schema.") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise AnswerError(f"The answer is not JSON ({reason}); answer with one JSON value and nothing else.") from None
    check_value(value, schema)
    return value


def check_value(value: Any, schema: Mapping[str, Any]) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    if error is not None:
        place = "".join(f"[{one!r}]" for one in error.absolute_path) or "as a whole"
        expected = json.dumps({error.validator: error.validator_value})[:200]
        raise AnswerError(f"The answer does not fit the schema: {place[:200]} does not satisfy {expected}.")


def check_schema(schema: Mapping[str, Any]) -> None:
    from jsonschema.exceptions import SchemaError

    try:
        _validator(schema).check_schema(schema)
    except SchemaError as error:
        raise DuoGenError(f"The schema is no valid JSON Schema: {error.message[:200]}.") from None


def _validator(schema: Mapping[str, Any]):
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise MissingPackage("Checking answers", "jsonschema", "data") from None
    return Draft202012Validator(schema)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has the same key twice")
    return value
