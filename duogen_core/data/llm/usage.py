"""What was asked and what it cost: requests, retries, tokens and money, for all threads together."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, in whatever currency; 0 for a server of one's own."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass
class Usage:
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
        """Only of the answers whose tokens the endpoint counted; `uncounted` says how many it did not."""
        return (self.prompt_tokens * self.price.prompt + self.completion_tokens * self.price.completion) / 1e6

    def to_json(self) -> dict[str, float]:
        names = ("requests", "retries", "refused_answers", "recorded", "prompt_tokens", "completion_tokens")
        return {**{name: getattr(self, name) for name in names}, "uncounted": self.uncounted, "cost": self.cost}
