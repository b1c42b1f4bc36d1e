"""The rules a pair of pictures must pass, each by its name: the first that refuses it is logged with its value.

values, verdict = judge(first, last, preset["pair"])     verdict: None, or (rule, value)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from duogen_core.data.pairs.values import (
    change,
    contrast,
    relation,
    sharpness,
)

ORDER = ("blank", "blurred", "still", "cut")
Verdict = tuple[str, Any]


def judge(first: np.ndarray, last: np.ndarray, rules: Mapping[str, Any]) -> tuple[dict[str, Any], Verdict | None]:
    """All values of the pair, and the first rule that refuses it."""
    part, mean = change(first, last)
    values = {
        "contrast": min(contrast(first), contrast(last)),
        "sharpness": min(sharpness(first), sharpness(last)),
        "change": part,
        "mean_change": mean,
        "relation": relation(first, last),
    }
    checks = (
        ("blank", "contrast", values["contrast"] < rules["min_contrast"]),
        ("blurred", "sharpness", values["sharpness"] < rules["min_sharpness"]),
        ("still", "change", part < rules["min_change"]),
        ("cut", "relation", values["relation"] < rules["min_relation"]),
    )
    return values, next(((rule, values[name]) for rule, name, refused in checks if refused), None)
