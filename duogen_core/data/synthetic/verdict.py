"""What became of a request, an answer or a picture: the first rule that refused it, and the value it decided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """rule: "" for what is kept."""

    rule: str = ""
    value: Any = None

    @property
    def kept(self) -> bool:
        return not self.rule

    def log(self) -> dict[str, Any]:
        return {"kept": True} if self.kept else {"kept": False, "rule": self.rule, "value": self.value}


KEPT = Verdict()
