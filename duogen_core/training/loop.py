"""What all training scripts share: a run folder, checkpoints, exact resume, progress, learning-rate schedule.

    run = Run("runs/mllm", config, seed=0, steps=4000, minutes=40)
    run.attach(modules={"model": model}, optimizers={"model": optimizer}, ema_decay=0.999)   # loads the last checkpoint
    for step in run:                                # ends at the steps, at the minutes, on Ctrl-C or SIGTERM
        batch = make_batch(run.rng(step))           # data: a function of (seed, step) alone, so a resume sees the same
        loss = ...; loss.backward(); optimizer.step(); optimizer.zero_grad()
        run.report(loss=loss, tokens=n)             # "loss" goes to the progress line and the curve
    if run.finished: export(...)

Run folder: config.json (resolved config, seed, versions), metrics.jsonl (means, one line every `log_every` steps),
loss.png, checkpoint/ (<name>.safetensors, <name>.ema.safetensors, <name>.optimizer.safetensors, state.json with step,
seconds and RNG states). No pickle. A checkpoint is written beside the old one and swapped in by a rename.

The learning rate follows the larger of step/steps and time/minutes, so a run always anneals to its end. With `steps`
only, a killed and resumed run has exactly the losses of an unbroken one; with `minutes` the clock has a say.
"""

from __future__ import annotations

import base64
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from duogen_core.errors import DuoGenError
from duogen_core.training.curve import MissingExtra, plot_losses


class TrainingError(DuoGenError):
    """A run folder or a training setting that cannot be used."""


def rng_for(seed: int, *key: object) -> random.Random:
    """A random generator that depends on seed and key alone (not on the process, not on what ran before)."""
    return random.Random(f"{seed}/" + "/".join(map(str, key)))


def warmup_cosine(step: int, warmup: int, progress: float, floor: float = 0.0) -> float:
    """Factor of the peak learning rate: linear warm-up over `warmup` steps, then cosine to `floor` at progress 1."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return min(1.0, (step + 1) / max(1, warmup)) * cosine


class Ema:
    """Exponential moving average of a module's floating-point state; short averages at the start of a run."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value.detach(), 1 - decay)
            else:
                self.shadow[key].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averaged weights inside the block."""
        kept = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.shadow)
        try:
            yield
        finally:
            self.module.load_state_dict(kept)


class Run:
    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        seed: int = 0,
        steps: int | None = None,
        minutes: float | None = None,
        warmup: int = 100,
        floor: float = 0.02,
        log_every: int = 20,
        print_seconds: float = 20.0,
        checkpoint_minutes: float = 4.0,
        tensorboard: bool = False,
    ) -> None:
        if not steps and not minutes:
            raise TrainingError("A training run needs an end: give steps (--steps), minutes (--minutes) or both.")
        self.folder = Path(folder)
        self.config, self.seed, self.steps, self.minutes = dict(config), seed, steps, minutes
        self.warmup, self.floor, self.log_every = warmup, floor, log_every
        self.print_seconds, self.checkpoint_minutes = print_seconds, checkpoint_minutes
        self.tensorboard, self.board = tensorboard, None
        self.step, self.elapsed = 0, 0.0  # steps done; seconds of training, earlier sessions included
        self.interrupted = False
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.emas: dict[str, Ema] = {}
        self._sums: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    # -- setting up -----------------------------------------------------------------------------------------------

    def attach(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        ema_decay: float | None = None,
    ) -> None:
        """What to train and to keep; continues from the folder's checkpoint when there is one."""
        self.modules, self.optimizers = dict(modules), dict(optimizers)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        if ema_decay is not None:
            self.emas = {name: Ema(module, ema_decay) for name, module in self.modules.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"The run folder {self.folder} cannot be made: {error.strerror}.") from error
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        if (self.checkpoint_folder / "state.json").exists():
            self._load()
        if self.tensorboard:
            from duogen_core.training.board import Board

            self.board = Board(self.folder, self.step)
        record = {"config": self.config, "seed": self.seed, "steps": self.steps, "minutes": self.minutes}
        record |= {"warmup": self.warmup, "floor": self.floor, "versions": versions()}
        record = json.loads(json.dumps(record, default=str))
        changed = self._changes(record)
        if self.step and changed:  # metrics.jsonl tells from which step on the settings were others
            self.record(changed=changed)
        write_text(self.folder / "config.json", json.dumps(record, indent=2) + "\n")

    def _changes(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that differ from those of the session before: {name: [old, new]}."""
        try:
            before = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        pairs = {k: (before.get(k), record[k]) for k in ("seed", "steps", "minutes", "warmup", "floor")}
        pairs |= {k: (before.get("config", {}).get(k), v) for k, v in record["config"].items()}
        return {k: [old, new] for k, (old, new) in pairs.items() if old != new}

    @property
    def checkpoint_folder(self) -> Path:
        folder = self.folder / "checkpoint"
        old = self.folder / "checkpoint.old"  # a kill between the two renames of a save leaves only this one
        return old if not folder.exists() and old.exists() else folder

    def rng(self, step: int, name: str = "data") -> random.Random:
        return rng_for(self.seed, name, step)

    # -- the loop -------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        parts = [self.step / self.steps] if self.steps else []
        parts += [self.elapsed / (60 * self.minutes)] if self.minutes else []
        return max(parts)

    @property
    def finished(self) -> bool:
        return self.progress >= 1

    @property
    def lr_factor(self) -> float:
        return warmup_cosine(self.step, self.warmup, self.progress, self.floor)

    def __iter__(self) -> Iterator[int]:
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._start = self._clock = self._printed = self._saved = time.monotonic()
        self._start_progress = self.progress
        try:
            while not self.finished and not self.interrupted:
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * self.lr_factor
                yield self.step
                for ema in self.emas.values():
                    ema.update()
                self._after_step()
            self.save()
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def report(self, **values: float | torch.Tensor) -> None:
        """Figures of this step; `loss` that is not finite ends the run with an error (the last checkpoint stays)."""
        self._reported = {k: float(v.detach() if isinstance(v, torch.Tensor) else v) for k, v in values.items()}
        if not math.isfinite(self._reported.get("loss", 0.0)):
            raise TrainingError(
                f"The loss is {self._reported['loss']} at step {self.step}. Lower the learning rate and start again "
                f"from the last checkpoint in {self.checkpoint_folder}."
            )

    def record(self, **values: Any) -> None:
        """One line of its own in metrics.jsonl, for example an evaluation: record(eval={...})."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(self.elapsed, 1), **values}) + "\n")
        if self.board is not None:
            self.board.add(self.step, values)

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + text, flush=True)

    def _after_step(self) -> None:
        now = time.monotonic()
        self.elapsed += now - self._clock
        self._clock = now
        factor = self.lr_factor
        self.step += 1
        for key, value in self._reported.items():
            self._sums.setdefault(key, []).append(value)
            self._last[key] = value if key not in self._last else 0.95 * self._last[key] + 0.05 * value
        if self.step % self.log_every == 0 or self.finished:
            self.record(**{k: sum(v) / len(v) for k, v in self._sums.items()}, lr_factor=round(factor, 5))
            self._sums = {}
        pause = 0.3 if sys.stdout.isatty() else self.print_seconds
        if now - self._printed >= pause or self.finished:
            self._print(now)
        if now - self._saved >= 60 * self.checkpoint_minutes and not self.finished:
            self.save()
            self._saved = time.monotonic()

    def _print(self, now: float) -> None:
        self._printed = now
        done = max(self.progress - self._start_progress, 1e-9)
        left = max(0.0, (1 - self.progress) * (now - self._start) / done)
        figures = " ".join(f"{k} {v:.4g}" for k, v in self._last.items())
        bar = "#" * int(20 * min(1, self.progress))
        line = f"[{bar:<20}] {100 * min(1, self.progress):3.0f}% step {self.step}"
        line += f"/{self.steps}" if self.steps else ""
        line += f" | {figures} | {clock(self.elapsed)} gone, {clock(left)} left"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line}", end="\n" if self.finished else "", flush=True)
        else:
            print(line, flush=True)
        write_text(self.folder / "STATUS", line + "\n")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.interrupted:  # a second time: at once
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("Stopping after this step; the checkpoint will be written. Press Ctrl-C again to stop at once.")

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        new, current, old = (self.folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        state: dict[str, Any] = {"format": "duogen-checkpoint", "version": 1}
        state |= {
            "step": self.step,
            "seconds": self.elapsed,
            "sums": self._sums,
            "rng": rng_state(),
            "optimizers": {},
            "ema": {},
        }
        for name, module in self.modules.items():
            save_tensors(module.state_dict(), new / f"{name}.safetensors")
        for name, ema in self.emas.items():
            save_tensors(ema.shadow, new / f"{name}.ema.safetensors")
            state["ema"][name] = ema.updates
        for name, optimizer in self.optimizers.items():
            whole = optimizer.state_dict()
            flat = {f"{i}.{k}": v for i, entry in whole["state"].items() for k, v in entry.items()}
            tensors = {k: v for k, v in flat.items() if isinstance(v, torch.Tensor)}
            save_tensors(tensors, new / f"{name}.optimizer.safetensors")
            numbers = {k: v for k, v in flat.items() if k not in tensors}
            state["optimizers"][name] = {"numbers": numbers}
        write_text(new / "state.json", json.dumps(state))
        shutil.rmtree(old, ignore_errors=True)
        if current.exists():
            os.replace(current, old)
        os.replace(new, current)
        shutil.rmtree(old, ignore_errors=True)
        try:
            plot_losses(self.folder)
        except MissingExtra as error:
            self.say(str(error))

    def _load(self) -> None:
        folder = self.checkpoint_folder
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for name, module in self.modules.items():
                module.load_state_dict(load_file(folder / f"{name}.safetensors"))
            for name, ema in self.emas.items():
                saved = load_file(folder / f"{name}.ema.safetensors")
                ema.shadow = {k: saved[k].to(v) for k, v in ema.shadow.items()}
                ema.updates = state["ema"][name]
            for name, optimizer in self.optimizers.items():
                flat: dict[str, Any] = load_file(folder / f"{name}.optimizer.safetensors")
                flat |= state["optimizers"][name]["numbers"]
                entries: dict[int, dict[str, Any]] = {}
                for key, value in flat.items():
                    index, field = key.split(".", 1)
                    entries.setdefault(int(index), {})[field] = value
                groups = optimizer.state_dict()["param_groups"]  # settings come from the config, moments from the file
                optimizer.load_state_dict({"state": entries, "param_groups": groups})
            self.step, self.elapsed, self._sums = state["step"], state["seconds"], state["sums"]
            set_rng_state(state["rng"])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"The checkpoint in {folder} does not fit this run: {str(error).splitlines()[0]} Resume needs the same "
                "model settings; give another --out folder to start anew."
            ) from error
        path = self.folder / "metrics.jsonl"
        if path.exists():  # lines after the checkpoint will be written again
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            write_text(path, "".join(line + "\n" for line in kept))
        self.say(f"Continuing from step {self.step} ({clock(self.elapsed)} of training).")


# -- helpers ----------------------------------------------------------------------------------------------------------


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # clone: safetensors refuses tensors that share memory (tied embeddings)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def rng_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state = {"python": [version, list(numbers), gauss], "torch": _encode(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = [_encode(s) for s in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(_decode(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decode(s) for s in state["cuda"]])


def _encode(tensor: torch.Tensor) -> str:
    return base64.b64encode(bytes(tensor.tolist())).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("torch", "transformers", "diffusers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
