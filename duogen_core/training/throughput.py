"""How fast a run goes and what it takes: work a second, share of the device's peak, waiting for data, memory.

    meter.count(tokens=4096, pictures=12, flops=8e13)    what this process did in the step
    with meter.waiting(): batch = next(batches)          time in which the device has nothing to do
    with meter.aside(): export(...)                      time that is no step: evaluation, samples, exports, checkpoints
    meter.figures(processes)                             of all processes since the call before; all of them must call

`peak_share` is the model FLOPs utilisation of PaLM (Chowdhery et al., 2022, appendix B): operations that the model
needs, without those that gradient checkpointing repeats, over what the devices could have done in the time of the
steps. flops.py counts them. It is left out where the device's peak is not known.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from duogen_core.training.distributed import Processes

GB = 1e9

# Teraflops of dense bfloat16 matrix products, accumulated in float32, from the makers' data sheets. The first part of
# a name that occurs in what torch calls the device counts; a card cut for PCIe has less than the one of the same name.
PEAKS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
    "MI250X": 383.0,
}


def peak_of(name: str) -> float | None:
    """Teraflops of a device, by the name that torch gives it; None where it is not known."""
    known = next((part for part in PEAKS if all(f" {word} " in f" {_words(name)} " for word in part.split())), None)
    return None if known is None else PEAKS[known]


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


class Meter:
    """Counts of one process; `figures` puts those of all together."""

    def __init__(self, device: torch.device, peak_tflops: float | None = None, bf16: bool = True) -> None:
        """peak_tflops: of this device, in the place of the table's; the table is of bfloat16."""
        self.device, self.peak = device, peak_tflops
        if peak_tflops is None and device.type == "cuda" and bf16:
            self.peak = peak_of(torch.cuda.get_device_name(device))
        self.start()

    def start(self) -> None:
        """Counts from here on."""
        self._begun = time.perf_counter()
        self._waited = self._aside = 0.0
        self._steps = 0
        self._work = {"tokens": 0.0, "pictures": 0.0, "flops": 0.0}

    def count(self, tokens: float = 0, pictures: float = 0, flops: float = 0) -> None:
        for name, value in (("tokens", tokens), ("pictures", pictures), ("flops", flops)):
            self._work[name] += value

    def step_done(self) -> None:
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begun

    @contextmanager
    def aside(self) -> Iterator[None]:
        begun, waited = time.perf_counter(), self._waited
        try:
            yield
        finally:
            self._aside += time.perf_counter() - begun
            self._waited = waited  # what evaluation waits for is not the training's data

    def figures(self, processes: Processes) -> dict[str, float]:
        """step_seconds; tokens_per_second and pictures_per_second of all processes together; waiting, share of the
        step's time in the process that waited longest; peak_share; gpu_memory and gpu_reserved, most of any process so
        far, and host_memory, of all processes together, in GB of 10^9 bytes."""
        seconds = max(time.perf_counter() - self._begun - self._aside, 1e-9)
        mine = {**self._work, "waiting": self._waited / seconds, "peak": self.peak or 0.0, **memory(self.device)}
        found = processes.gather(mine)
        steps = max(1, self._steps)
        self.start()

        def total(name: str) -> float:
            return sum(each[name] for each in found)

        def most(name: str) -> float:
            return max(each[name] for each in found)

        figures = {"step_seconds": seconds / steps}
        for name in ("tokens", "pictures"):
            if total(name):
                figures[f"{name}_per_second"] = total(name) / seconds
        figures["waiting"] = min(1.0, most("waiting"))
        if total("flops") and all(each["peak"] for each in found):
            figures["peak_share"] = total("flops") / seconds / (1e12 * total("peak"))
        figures |= {name: most(name) for name in ("gpu_memory", "gpu_reserved") if name in found[0]}
        figures["host_memory"] = total("host_memory")
        return {name: float(f"{value:.4g}") for name, value in figures.items()}


def memory(device: torch.device) -> dict[str, float]:
    import psutil  # comes with accelerate

    found = {"host_memory": psutil.Process().memory_info().rss / GB}
    if device.type == "cuda":
        found["gpu_memory"] = torch.cuda.max_memory_allocated(device) / GB
        found["gpu_reserved"] = torch.cuda.max_memory_reserved(device) / GB
    return found


def in_words(figures: dict[str, float]) -> str:
    """For the progress line: "12,300 tokens/s, 8.1 images/s, 41% of peak, 2% waiting for data"."""
    parts = [
        f"{figures[name]:,.4g} {unit}/s" if figures[name] < 1000 else f"{figures[name]:,.0f} {unit}/s"
        for name, unit in (("tokens_per_second", "tokens"), ("pictures_per_second", "images"))
        if name in figures
    ]
    parts += [f"{figures['peak_share']:.0%} of peak"] if "peak_share" in figures else []
    parts += [f"{figures['waiting']:.0%} waiting for data"] if figures["waiting"] >= 0.005 else []
    parts += [f"{figures['gpu_memory']:.1f} GB"] if "gpu_memory" in figures else []
    return ", ".join(parts)
