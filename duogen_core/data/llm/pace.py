"""Rate limit: how many requests and tokens leave within any 60 seconds, for all threads of a process together.

`wait` books a request with the tokens it is expected to cost and returns when it may go; `settle` puts in what it did
cost. A request larger than the whole limit goes when nothing else is booked, since waiting would not help it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60.0


@dataclass
class Booking:
    time: float
    tokens: int


class Pace:
    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.requests, self.tokens = requests, tokens
        self.clock, self.sleep = clock, sleep
        self.booked: deque[Booking] = deque()
        self.lock = threading.Lock()

    def wait(self, tokens: int) -> Booking:
        while True:
            with self.lock:
                now = self.clock()
                while self.booked and self.booked[0].time <= now - WINDOW:
                    self.booked.popleft()
                if self._fits(tokens):
                    booking = Booking(now, tokens)
                    self.booked.append(booking)
                    return booking
                pause = self.booked[0].time + WINDOW - now
            self.sleep(max(pause, 0.001))

    def settle(self, booking: Booking, tokens: int) -> None:
        with self.lock:
            booking.tokens = tokens

    def _fits(self, tokens: int) -> bool:
        if not self.booked:
            return True
        if self.requests is not None and len(self.booked) >= self.requests:
            return False
        return self.tokens is None or sum(one.tokens for one in self.booked) + tokens <= self.tokens
