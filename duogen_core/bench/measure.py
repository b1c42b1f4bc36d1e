"""Measures two ways of doing the same work: seconds and peak memory, in one process, on one device.

Seconds: the two sides run by turns, who begins changes every round, and the ratio is taken within a round, so that what
slows the machine down for a while slows both. Memory is measured in a run of its own, since counting takes time: the
bytes of all tensors that are alive at once and that were made by the measured call (CUDA: what its allocator says), and
the resident memory of the process, sampled.
In: two functions without arguments. Out: `Comparison`, and `Report` for a whole benchmark, as JSON or as lines.
"""

from __future__ import annotations

import platform
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from duogen_core.errors import DuoGenError

FORMAT, VERSION = "duogen-bench", 1
SAMPLE = 0.005  # seconds between two looks at the resident memory

Tell = Callable[[str, float], None]  # (what is being measured, share of the whole that is done)
Stopped = Callable[[], bool]

# What is rounding, for a type that is not float32: the two sides add up in another order.
ROUGH = {torch.float16: 0.02, torch.bfloat16: 0.05}


class BenchError(DuoGenError):
    """The two sides computed different things, or a benchmark cannot run with this model."""


@dataclass
class Side:
    """One side's figures. seconds: one number a round. peak_bytes: of tensors; resident_bytes: of the process."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    resident_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        runs = [round(s, 6) for s in self.seconds]
        return {
            "seconds": round(self.median, 6) if runs else None,
            "runs": runs,
            "peak_bytes": self.peak_bytes,
            "resident_bytes": self.resident_bytes,
        }


@dataclass(eq=False)
class Comparison:
    """One case of a benchmark, measured on both sides.

    difference: the largest one between what the sides computed; allowed: the most that is rounding. extra: figures that
    only this benchmark has, such as tokens a second.
    """

    case: str
    ours: Side = field(default_factory=Side)
    reference: Side = field(default_factory=Side)
    difference: float | None = None
    allowed: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """How many times faster than the reference, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours.seconds, self.reference.seconds)]

    @property
    def times_faster(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    def to_json(self) -> dict[str, Any]:
        ratios = [round(ratio, 4) for ratio in self.ratios]
        faster = self.times_faster
        return {
            "case": self.case,
            "ours": self.ours.to_json(),
            "reference": self.reference.to_json(),
            "times_faster": None if faster is None else round(faster, 4),
            "times_faster_range": [min(ratios), max(ratios)] if ratios else None,
            "difference": self.difference,
            "allowed": self.allowed,
            "extra": self.extra,
        }

    def agree(self, difference: float, allowed: float) -> None:
        """Notes how far the sides are apart; raises a BenchError where that is more than rounding."""
        self.difference, self.allowed = max(difference, self.difference or 0.0), allowed
        if not difference <= allowed:  # NaN is no agreement either
            raise BenchError(
                f"The two sides disagree at {self.case}: they differ by {difference:.2g}, and at most {allowed:.0e} is "
                "rounding. Their times would compare unlike work, so none are given; take float32 (--dtype fp32), or "
                "report this with the model."
            )


@dataclass
class Report:
    """What a benchmark found. reference: in a sentence, what the other side is; stopped: by Ctrl-C, before the end."""

    benchmark: str
    reference: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Comparison] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        value = {key: item for key, item in asdict(self).items() if key != "rows"}
        return {"format": FORMAT, "version": VERSION, **value, "rows": [row.to_json() for row in self.rows]}


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what the figures depend on besides the code."""
    import diffusers
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "clock": Clock.kind,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the largest difference, as a share of the largest number where that is above 1."""
    return float((a.float() - b.float()).abs().max() / max(1.0, float(b.float().abs().max())))


def allowed(float32: float, dtype: torch.dtype) -> float:
    """Returns what is rounding in this type, given what it is in float32."""
    return ROUGH.get(dtype, float32)


# ---------------------------------------------------------------- seconds


class Clock:
    """What seconds are read from; the command sets it. processor: the processor time of this process, which does not
    count what others take on a busy machine; with one thread and on the CPU only."""

    kinds = {"wall": time.perf_counter, "processor": time.process_time}
    kind = "wall"


def now() -> float:
    return Clock.kinds[Clock.kind]()


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Returns what call() returned, and the seconds it took, the device's work included."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return result, start.elapsed_time(end) / 1000
    finish(device)
    begun = now()
    result = call()
    finish(device)
    return result, now() - begun


def finish(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def alternate(
    row: Comparison, ours: Callable[[], Any], reference: Callable[[], Any], number: int, device: torch.device
) -> tuple[Any, Any]:
    """Runs both sides once, ours first in every other round, and notes their seconds; returns their results."""
    found = {}
    for is_ours in (True, False) if number % 2 == 0 else (False, True):
        found[is_ours] = timed(ours if is_ours else reference, device)
    row.ours.seconds.append(found[True][1])
    row.reference.seconds.append(found[False][1])
    return found[True][0], found[False][0]


# ---------------------------------------------------------------- memory


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive at once that were made while this mode is on and not paused.

    A tensor that shares the memory of one that was there before, such as a view of a weight, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}  # address of the memory -> how many tensors show it
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        foreign = {address(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)} - self.sizes.keys()
        out = func(*args, **kwargs)
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor) or (place := address(tensor)) in foreign:
                continue
            if place not in self.sizes:
                self.sizes[place] = tensor.untyped_storage().nbytes()
                self.now += self.sizes[place]
                self.peak = max(self.peak, self.now)
            self.users[place] = self.users.get(place, 0) + 1
            weakref.finalize(tensor, self._gone, place)
        return out

    def _gone(self, place: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place]
            self.now -= self.sizes.pop(place)


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class PeakMemory:
    """While open, counts what is allocated on top of what was there; `restart` begins a new peak, keeping the count.

    with PeakMemory(device) as memory:
        work()
        memory.bytes, memory.resident      the peaks since the last restart
    """

    def __init__(self, device: torch.device) -> None:
        import psutil  # accelerate brings it along

        self.device = device
        self.mode = None if device.type == "cuda" else TensorBytes()
        self.process, self.resident, self._done = psutil.Process(), 0, threading.Event()

    def __enter__(self) -> PeakMemory:
        if self.mode is None:
            torch.cuda.synchronize(self.device)
            self.base = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.mode.__enter__()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._sampler.join()
        if self.mode is not None:
            self.mode.__exit__(*error)

    @property
    def bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.base if self.mode is None else self.mode.peak

    def restart(self) -> None:
        self.resident = 0
        if self.mode is None:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.mode.peak = self.mode.now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work in here is not counted: the other side's, in the middle of ours. Restart afterwards."""
        if self.mode is not None:
            self.mode.paused = True
        try:
            yield
        finally:
            if self.mode is not None:
                self.mode.paused = False

    def note(self, side: Side) -> None:
        """Writes the peaks down."""
        self._look()
        side.peak_bytes = max(side.peak_bytes or 0, self.bytes)
        side.resident_bytes = max(side.resident_bytes or 0, self.resident)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE):
            self._look()

    def _look(self) -> None:
        self.resident = max(self.resident, self.process.memory_info().rss)


def measure_memory(side: Side, call: Callable[[], Any], device: torch.device) -> Any:
    """Runs call() once and notes its peak memory; returns what it returned."""
    with PeakMemory(device) as memory:
        result = call()
        memory.note(side)
    return result
