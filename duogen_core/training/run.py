"""What all trainings share: the run folder, its loop, exact resume, figures and what is said on the way.

    run = Run("runs/mllm", config, seed=0, steps=4000, minutes=40)
    loss_of = run.processes.prepare(NextTokenLoss(model), optimizers)     # DDP, FSDP or itself
    run.attach(modules={"model": model}, optimizers=optimizers, ema_decay=0.999)   # loads the last checkpoint
    for step in run:                                # ends at the steps, at the minutes, on Ctrl-C or SIGTERM
        batch = make_batch(run.rng(step))           # data: a function of (seed, step) alone, so a resume sees the same
        loss = loss_of(...)
        norm = run.update(loss, clip=1.0, samples=names)    # backward, clip, a step of every optimizer
        run.report(loss=loss, norm=norm)            # "loss" goes to the progress line and the plot
    if run.finished and not run.complete(folder / "export"):    # a kill may have come between the two
        with replaced(folder / "export") as new: ...
        run.mark_complete()

Run folder: config.json, metrics.jsonl, tensorboard/, loss.png and scores.png (metrics.py), STATUS, checkpoint/
(checkpoints.py). The learning rate follows the larger of step/steps and time/minutes, so a run always anneals to its
end. With `steps` only, a killed and resumed run has exactly the losses of an unbroken one; with `minutes` the clock has
a say.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from duogen_core.document import Document
from duogen_core.errors import DuoGenError, MissingPackage, is_out_of_memory
from duogen_core.training.average import Ema
from duogen_core.training.checkpoints import (
    CheckpointWriter,
    amend_state,
    checkpoint_folder,
    finish_swap,
    has_checkpoint,
    read_checkpoint,
    reason,
    rng_state,
    set_rng_state,
    write_text,
)
from duogen_core.training.configuration import RunConfig, TrainingError, plain
from duogen_core.training.distributed import HostFull, Processes
from duogen_core.training.metrics import Metrics, Progress, clock, plot_metrics, sentence
from duogen_core.training.throughput import Meter, in_words

NAMED = 4  # samples of a failed step that the error names; metrics.jsonl has all


def rng_for(seed: int, *key: object) -> random.Random:
    """A random generator that depends on seed and key alone (not on the process, not on what ran before)."""
    return random.Random(f"{seed}/" + "/".join(map(str, key)))


def warmup_cosine(step: int, warmup: int, progress: float, floor: float = 0.0) -> float:
    """Factor of the peak learning rate: linear warm-up over `warmup` steps, then cosine to `floor` at progress 1."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return min(1.0, (step + 1) / max(1, warmup)) * cosine


class Every:
    """Says when something is due again: after so many steps or else minutes of training; never for 0 steps or minutes.

    To be asked at the beginning of each step, when weights and averages are those of `run.step` steps.
    """

    def __init__(self, run: Run, minutes: float | None, steps: int | None = None) -> None:
        self.run, self.seconds, self.steps = run, 60 * (minutes or 0.0), steps
        self.never = minutes is None and not steps
        self.next = run.elapsed + self.seconds

    def __call__(self) -> bool:
        if self.never:
            return False
        if self.steps is not None:
            return self.run.step > 0 and self.run.step % self.steps == 0
        if self.run.elapsed < self.next:
            return False
        self.next = self.run.elapsed + self.seconds
        return True


class Run:
    @classmethod
    def of(cls, config: RunConfig, folder: Path | None = None) -> Run:
        """The run that these settings ask for; `folder` in the place of <out>."""
        return cls(
            folder or config.out,
            plain(config),
            seed=config.seed,
            steps=config.steps,
            minutes=config.minutes,
            warmup=config.warmup,
            checkpoint_minutes=config.checkpoint_minutes,
            log_every=config.log_every,
            floor=config.lr_floor,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            device=config.device,
            peak_tflops=config.peak_tflops,
            bf16=config.bf16,
        )

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
        wandb: str | None = None,
        device: str = "cpu",
        peak_tflops: float | None = None,
        bf16: bool = True,
    ) -> None:
        """peak_tflops, bf16: as of `Meter`."""
        if not steps and not minutes:
            raise TrainingError("A training run needs an end: give steps (--steps), minutes (--minutes) or both.")
        self.folder = Path(folder)
        self.config, self.seed, self.steps, self.minutes = dict(config), seed, steps, minutes
        self.warmup, self.floor, self.log_every = warmup, floor, log_every
        self.checkpoint_minutes = checkpoint_minutes
        self.processes = Processes(device)
        self.families: dict[str, str] = {}  # of the models, by `made_of`
        self.metrics = Metrics(self.folder, tensorboard, wandb, writes=self.processes.main)
        self.line = Progress(print_seconds, quiet=not self.processes.main)
        self.step, self.elapsed = 0, 0.0  # steps done; seconds of training, earlier sessions included
        self.interrupted = False
        self._complete = False  # whether all that follows the last step is done
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.emas: dict[str, Ema] = {}
        self.meter = Meter(self.processes.device, peak_tflops, bf16)
        self._sums: dict[str, list[float]] = {}
        self._reported: dict[str, torch.Tensor | float] = {}
        self._unread: list[dict[str, torch.Tensor | float]] = []  # reported figures that are still on the device
        self._writer = CheckpointWriter(self.folder, self.processes)
        self._model: str | None = None  # what is trained, as of `attach`
        self._checked = False  # whether `update` found this step's loss finite

    # -- setting up -----------------------------------------------------------------------------------------------

    def made_of(self, **families: str) -> None:
        """Notes what is trained here, such as mllm="qwen3_vl"; a TrainingError where the folder's run has others."""
        self.families |= families
        before = self.metrics.before().get("families") or {} if has_checkpoint(self.folder) else {}
        if any(before.get(part, family) != family for part, family in self.families.items()):
            raise TrainingError(
                f"The run in {self.folder} was begun with {' and '.join(before.values())}, and these are "
                f"{' and '.join((before | self.families).values())}. A run goes on with models of the same families: "
                "give those, or another out."
            )

    def attach(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        ema_decay: float | None = None,
        model: str | None = None,
    ) -> None:
        """What to train and to keep; continues from the folder's checkpoint when there is one.

        model: what is trained, in words, such as "an MLLM of the family qwen3_vl, 28 layers of 2048"; a checkpoint of
        another one is refused with both.
        """
        self._model = model
        self.modules, self.optimizers = dict(modules), dict(optimizers)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        if ema_decay is not None:
            self.emas = {name: Ema(module, ema_decay, self.processes.reshard) for name, module in self.modules.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"The run folder {self.folder} cannot be made: {error.strerror}.") from error
        if self.main:
            for name in ("checkpoint", "export", "adapter"):
                finish_swap(self.folder / name)
        self.processes.wait()
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        changed = self.metrics.changes(self._record())
        resumes = has_checkpoint(self.folder)
        if resumes:
            self._load(changed)
        for missing in self.metrics.begin(self.step, self._record()):
            self.say(missing)
        if resumes and changed:  # metrics.jsonl tells from which step on the settings were others
            self.say(f"Settings changed since the session before: {sentence(changed)}.")
            self.record(changed=changed)
        self.metrics.settings(self._record())

    def _record(self) -> dict[str, Any]:
        record = {"config": self.config, "seed": self.seed, "steps": self.steps, "minutes": self.minutes}
        return (
            record
            | {"warmup": self.warmup, "floor": self.floor, "processes": self.processes.count}
            | ({"families": self.families} if self.families else {})
        )

    def _load(self, changed: Mapping[str, list[Any]]) -> None:
        try:
            state = read_checkpoint(self.folder, self.modules, self.emas, self.optimizers, self.processes, self._model)
        except TrainingError as error:
            since = f" Changed since: {sentence(changed)}." if changed else ""
            raise TrainingError(f"{error}{since}") from error
        self.step, self.elapsed, self._sums = state["step"], state["seconds"], state["sums"]
        self._complete = state.get("complete", False)
        states = [state["rng"], *state.get("rng_others", [])]  # of processes 1, 2, …
        set_rng_state(states[min(self.processes.rank, len(states) - 1)])
        self.say(f"Continuing from step {self.step} ({clock(self.elapsed)} of training).")

    @property
    def checkpoint_folder(self) -> Path:
        return checkpoint_folder(self.folder)

    def rng(self, step: int, name: str = "data") -> random.Random:
        return rng_for(self.seed, name, step)

    # -- the loop -------------------------------------------------------------------------------------------------

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes, prints and evaluates."""
        return self.processes.main

    @property
    def progress(self) -> float:
        parts = [self.step / self.steps] if self.steps else []
        parts += [self.elapsed / (60 * self.minutes)] if self.minutes else []
        return max(parts)

    @property
    def finished(self) -> bool:
        return self.progress >= 1

    def complete(self, *outputs: Path) -> bool:
        """Whether a session before did all that follows the last step, and what it wrote is still there. All processes
        must ask."""
        done = self.finished and self._complete and all(path.exists() for path in outputs)
        return self.processes.most(not done) == 0

    def mark_complete(self) -> None:
        """What follows the last step is done: exports, scores, samples. A kill before leaves it to the next session."""
        self._complete = True
        if self.main:
            self._plot()  # the last scores came after the last checkpoint, and a kill may have, too
            amend_state(self.folder, complete=True)

    @property
    def lr_factor(self) -> float:
        return warmup_cosine(self.step, self.warmup, self.progress, self.floor)

    def __iter__(self) -> Iterator[int]:
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._clock, self._saved = time.monotonic(), self.elapsed
        self.line.begin(self.progress)
        self.meter.start()
        begun = self.step
        try:
            while not self.finished and not self.interrupted:
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * self.lr_factor
                yield self.step
                for ema in self.emas.values():
                    ema.update()
                self._after_step()
            if self.step > begun:  # else the checkpoint that it began from is the last one
                self._complete = False
                self.save()
            self._writer.wait()
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def update(
        self,
        loss: torch.Tensor | Iterable[torch.Tensor],
        clip: float,
        clipped: Iterable[nn.Parameter] | None = None,
        samples: Sequence[str] = (),
        parts: int = 1,
    ) -> torch.Tensor:
        """One step of all optimizers from this process's part of the loss; returns the gradients' norm before the clip.

        loss: or an iterator of its `parts`, each computed when the gradients of the one before are there and its graph
        is gone. All processes must have as many; gradients are exchanged with the last one.
        clipped: the parameters whose gradients are scaled down together to a norm of `clip`; None: all of them.
        samples: names of what the step (or this process's part of it) learns from, for the error if loss or gradients
        are not finite. That is asked once a step, when all work of it is under way, and before any weight is touched.
        """
        parameters = [p for o in self.optimizers.values() for group in o.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        losses = iter([loss] if isinstance(loss, torch.Tensor) else loss)
        whole: torch.Tensor | float = 0.0
        for number in range(parts):
            with self.processes.one_pass(last=number == parts - 1):
                part = next(losses)
                self.processes.backward(part)
                whole = whole + part.detach()
                del part
        norm = self.processes.clip(parameters if clipped is None else clipped, clip)
        found = torch.stack([self.processes.total(whole).to(norm.device, torch.float64), norm.double()]).tolist()
        for what, value in zip(("loss", "norm of the gradients"), found, strict=True):
            self._check(what, value, samples)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self._checked = True
        return norm

    def _check(self, what: str, value: torch.Tensor | float, samples: Sequence[str] = ()) -> None:
        value = float(value)
        if math.isfinite(value):
            return
        samples = list(dict.fromkeys(name for names in self.processes.gather(list(samples)) for name in names))
        self._writer.wait()  # all processes come here, and the sentence names the checkpoint
        self.record(failed={"what": what, "value": str(value), "samples": samples})
        named = ", ".join(samples[:NAMED]) + (f" and {len(samples) - NAMED} more" if len(samples) > NAMED else "")
        kept = f"the last checkpoint in {self.checkpoint_folder}" if has_checkpoint(self.folder) else "the beginning"
        raise TrainingError(
            f"The {what} is {value} at step {self.step}{f', which learns from {named}' if named else ''}. Lower the "
            f"learning rate or look at the data, and give the same command again to go on from {kept}."
        )

    def report(self, **values: float | torch.Tensor) -> None:
        """Figures of this step; `loss` that is not finite ends the run with an error (the last checkpoint stays).

        Tensors are read from the device only when a line is written or printed, all of them at once: a device that is
        asked in every step cannot work ahead.
        """
        self._reported = {k: v.detach() if isinstance(v, torch.Tensor) else float(v) for k, v in values.items()}
        if not self._checked:
            self._check("loss", self._reported.get("loss", 0.0))

    def _read_reported(self) -> None:
        """What was reported since the last time, as numbers, into the means."""
        tensors = [v for figures in self._unread for v in figures.values() if isinstance(v, torch.Tensor)]
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_device.setdefault(tensor.device, []).append(tensor.reshape(()).double())
        read = {device: iter(torch.stack(own).tolist()) for device, own in by_device.items()}
        for figures in self._unread:
            numbers = {k: next(read[v.device]) if isinstance(v, torch.Tensor) else v for k, v in figures.items()}
            for key, value in numbers.items():
                self._sums.setdefault(key, []).append(value)
            self.line.add(numbers)
        self._unread = []

    def record(self, **values: Any) -> None:
        """One line of its own in metrics.jsonl, for example an evaluation: record(eval={...})."""
        self.metrics.add(self.step, self.elapsed, values)

    def show_pictures(self, name: str, document: Document) -> None:
        """An answer's pictures, with the trackers: samples/<name>/0, 1, …"""
        pixels = {f"samples/{name}/{k}": picture.pixels for k, picture in enumerate(document.pictures)}
        self.metrics.trackers.images(self.step, pixels)

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self.line.say(text)

    @contextmanager
    def looking(self, what: str, together: bool = False) -> Iterator[None]:
        """Around what only looks at the training, such as "The samples": if it fails, a sentence says so and the
        training goes on, since a full disk, a picture too large for what memory is left or a damaged document are no
        reason to end it. (The next checkpoint on a full disk is.)

        together: all processes compute or gather inside. Under FSDP a failure then ends the run as any other: the
        others are in the middle of what waits for this one. (HostFull is told when they are through.)
        """
        try:
            yield
            return
        except (RuntimeError, OSError, MemoryError, DuoGenError) as error:
            if together and self.processes.sharded and not isinstance(error, HostFull):
                raise
            why = reason(error) if str(error).strip() or not is_out_of_memory(error) else "no memory is left"
        self.say(f"{what} of step {self.step} are left out: {why}. The training goes on.")
        if self.processes.device.type == "cuda":  # what failed for want of memory may hold much of it
            torch.cuda.empty_cache()

    def _after_step(self) -> None:
        now = time.monotonic()
        elapsed = self.elapsed + now - self._clock
        self.elapsed, self.interrupted = self.processes.agree(elapsed, self.interrupted)
        self._clock = now
        factor = self.lr_factor
        self.step += 1
        self.meter.step_done()
        self._writer.poll()
        self._unread.append(self._reported)
        self._checked = False
        if self.step % self.log_every == 0 or self.finished:
            self._read_reported()
            speed = self.meter.figures(self.processes)
            self.line.speed = in_words(speed)
            means = {k: sum(v) / len(v) for k, v in self._sums.items()}
            self.record(**means, lr_factor=round(factor, 5), speed={**speed, "left": self.line.left(self.progress)})
            self._sums = {}
        if self.main and (self.line.due() or self.finished):
            self._read_reported()
            steps = f"{self.step}/{self.steps}" if self.steps else str(self.step)
            line = self.line.show(self.progress, steps, self.elapsed)
            with suppress(OSError):  # a disk that is full: the line was printed, and the next checkpoint will say it
                write_text(self.folder / "STATUS", line + "\n")
        if self.elapsed - self._saved >= 60 * self.checkpoint_minutes and not self.finished:
            self.save()
            self._saved = self.elapsed

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.interrupted:  # a second time: at once
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("Stopping after this step; the checkpoint will be written. Press Ctrl-C again to stop at once.")

    def save(self) -> None:
        with self.meter.aside():
            self._save()

    def _save(self) -> None:
        self._read_reported()
        rng, *others = self.processes.gather(rng_state())
        state = {"step": self.step, "seconds": self.elapsed, "sums": self._sums, "rng": rng}
        state |= {"rng_others": others} if others else {}
        state |= {"model": self._model} if self._model else {}
        self._writer.save(state, self.modules, self.emas, self.optimizers)
        if self.main:
            self._plot()

    def _plot(self) -> None:
        try:
            plot_metrics(self.folder)
        except (MissingPackage, OSError, MemoryError) as error:
            self.say(str(error) or "There is no memory for the plots.")
