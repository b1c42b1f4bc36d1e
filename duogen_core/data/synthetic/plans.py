"""Plans: the interleaved answer to a request before its pictures are drawn. On disk a line of plans.jsonl each.

    {"number": 0, "request": {...}, "kept": true, "plan": {"steps": [{"text": "…", "picture": "…"}], "closing": ""}}

Refused ones stand there too, with the rule and its value. `steps` hold a text and the prompt of the picture after it
("" where none is wanted).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.synthetic.requests import Request, request_from
from duogen_core.errors import DuoGenError


@dataclass(frozen=True)
class Step:
    text: str
    picture: str = ""


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]
    closing: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(step.picture for step in self.steps if step.picture)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for text in (*(step.text for step in self.steps), self.closing) if text)

    def to_json(self) -> dict[str, Any]:
        return {"steps": [{"text": one.text, "picture": one.picture} for one in self.steps], "closing": self.closing}


@dataclass(frozen=True)
class Entry:
    """A line of plans.jsonl that was kept: what is to be drawn. seed: the random seed of its first picture."""

    number: int
    request: Request
    plan: Plan
    seed: int
    model: str
    prompt: str  # the digest of the prompt that had it written


def plan_from(value: Any) -> Plan:
    """A Plan from JSON that fits SCHEMA; white space at the ends goes."""
    steps = tuple(Step(each["text"].strip(), " ".join(each["picture"].split())) for each in value["steps"])
    return Plan(steps, value["closing"].strip())


def schema(most_steps: int) -> dict[str, Any]:
    step = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "picture": {"type": "string"}},
        "required": ["text", "picture"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": step, "minItems": 1, "maxItems": 2 * most_steps},
            "closing": {"type": "string"},
        },
        "required": ["steps", "closing"],
        "additionalProperties": False,
    }


def read_plans(file: Path) -> Iterator[Entry]:
    """The plans that were kept, in order."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                entry = _entry(line, f"Line {number} of {file}")
                if entry is not None:
                    yield entry
    except FileNotFoundError:
        raise DuoGenError(f"{file} does not exist; run `data synthetic plan` with the same folder first.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DuoGenError(f"The plans {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _entry(line: str, where: str) -> Entry | None:
    try:
        value = json.loads(line)
        if not value["kept"]:
            return None
        plan = plan_from(value["plan"])
        numbers = int(value["number"]), int(value["seed"])
        texts = str(value["model"]), str(value["prompt"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DuoGenError(f"{where} is no plan; run `data synthetic plan` again.") from None
    request = request_from(json.dumps(value["request"]), where)
    return Entry(numbers[0], request, plan, numbers[1], *texts)
