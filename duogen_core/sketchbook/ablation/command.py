"""ablation: trains every arm with the same budget, measures it, writes the table.

    python -m duogen_core ablation out=runs/ablation minutes=6
    python -m duogen_core ablation out=runs/ablation steps=600 only=[references,connector] seeds=3

Out: <out>/ablation.json, ablation.md and ablation.png, written anew after every arm; a run folder a training. The same
command goes on where it was stopped: what is finished is only read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from duogen_core.checkpoint import Components, load_checkpoint
from duogen_core.errors import MissingPackage
from duogen_core.settings import Settings
from duogen_core.sketchbook.ablation import measuring
from duogen_core.sketchbook.ablation.results import answer_to, markdown, over_seeds, plot
from duogen_core.sketchbook.ablation.trainings import (
    TRAININGS,
    AblationConfig,
    Arm,
    Question,
    changes_of,
    components,
    is_start,
    needed,
    train,
    trained,
)
from duogen_core.training.checkpoints import write_text
from duogen_core.training.command import add_arguments_for, output_folder
from duogen_core.training.configuration import ConfigError, load_config, plain, to_yaml
from duogen_core.training.metrics import clock, versions
from duogen_core.training.precision import bf16_products

FORMAT = "duogen-ablation"
VERSION = 1
FREE = ("out", "only", "threads", "checkpoint_minutes", "log_every", "tensorboard")  # may change from call to call
OWN_GROUPS = ("guide",)  # answered with words and pictures of the arm's own
LIMITS = Settings(max_images=8, max_new_tokens=400)  # a language model may not know where to end
SEED = 7  # of the cases to measure with
TICK = 20.0  # seconds between two lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, AblationConfig)


def run(args: argparse.Namespace) -> int:
    config = load_config(AblationConfig, args.config, args.settings)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    if not config.steps and not config.minutes:
        raise ConfigError("The ablation needs the budget of an arm: give minutes=M, steps=N or both.")
    if config.threads:
        torch.set_num_threads(config.threads)
    with output_folder(config.out), bf16_products(config.bf16):
        return Ablation(config).run()


class Ablation:
    def __init__(self, config: AblationConfig) -> None:
        self.config = config
        self.base: Components = load_checkpoint(config.base)
        self.settings = replace(LIMITS, steps=config.draw_steps).resolved(self.base.config)
        self.took: dict[str, list[float]] = {"train": [], "measure": []}  # seconds, in this call

    def run(self) -> int:
        self.keep_settings()
        for seed in self.seeds:
            for name in needed(self.config):
                if trained(self.config, name, seed) is None:
                    arms = self.config.start if is_start(name) else 1.0
                    with self.timed("train", f"training {name}, seed {seed}", arms):
                        if train(self.config, name, seed).interrupted:
                            print("Stopped. The same command continues from there.")
                            return 130
                for question, arm in self.arms_of(name):
                    if not self.file_of(question, arm, seed).is_file():
                        with self.timed("measure", f"measuring {arm.name}: {question.title}"):
                            self.measure(question, arm, seed)
                self.write()
        print(self.config.out / "ablation.md")
        return 0

    @property
    def seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.seeds)

    def arms_of(self, training: str) -> list[tuple[Question, Arm]]:
        return [(q, arm) for q in self.config.asked.values() for arm in q.arms if arm.training == training]

    def keep_settings(self) -> None:
        """Arms made with unlike settings cannot be compared; more seeds may be added."""
        path = self.config.out / "settings.json"
        now = {key: value for key, value in plain(self.config).items() if key not in FREE}
        if path.is_file():
            before = json.loads(path.read_text("utf-8"))
            changed = [key for key in now if before.get(key) != now[key]]
            if changed:
                key = changed[0]
                raise ConfigError(
                    f"The arms in {self.config.out} were made with {key} {before.get(key)!r}, not {now[key]!r}; give "
                    "the same settings, or another out."
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now, indent=2) + "\n")

    # -- measuring --------------------------------------------------------------------------------------------------

    def file_of(self, question: Question, arm: Arm, seed: int) -> Path:
        """Where the values lie; arms of several questions that are the same share one."""
        way = arm.training + (f"-guidance-{arm.guidance:g}" if arm.guidance is not None else "")
        way += f"-steps-{arm.steps}" if arm.steps is not None else ""
        way += "-with-chains" if "edit_chain" in question.groups else ""
        way += "-own-pictures" if question.kind == "words" and arm.pictures == "own" else ""
        return self.config.out / f"seed-{seed}" / "measured" / f"{way}.json"

    def measure(self, question: Question, arm: Arm, seed: int) -> None:
        model = components(self.config, arm.training, seed, self.base)
        count, settings = self.config.cases, self.settings
        if arm.guidance is not None:
            settings = replace(settings, guidance=arm.guidance)
        if arm.steps is not None:
            settings = replace(settings, steps=arm.steps)
        if question.kind == "pictures":
            spots = measuring.spots(question.groups, count, SEED)
            values = measuring.drawn_in_context(model, settings, spots, self.ticker("pictures"))
            values |= measuring.velocity_errors(model, spots)
            if self.config.own:
                values |= measuring.answered(model, settings, OWN_GROUPS, self.config.own, SEED, self.ticker("answers"))
        elif arm.pictures == "own":
            values = measuring.written(
                measuring.with_own_pictures(model, settings), count, SEED, ("draft",), self.ticker("answers")
            )
        else:
            values = measuring.written(
                lambda case, _: measuring.with_ideal_pictures(model.mllm, case), count, SEED, say=self.ticker("answers")
            )
        path = self.file_of(question, arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({name: [round(v, 5) for v in each] for name, each in values.items()}) + "\n")

    # -- progress -----------------------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, kind: str, text: str, arms: float = 1.0) -> Iterator[None]:
        left = self.left()
        print(f"— {text}" + (f" ({clock(left)} left in all)" if left else ""), flush=True)
        begun = time.monotonic()
        yield
        self.took[kind].append((time.monotonic() - begun) / arms)

    def left(self) -> float | None:
        """Seconds, after what trainings and measurements have taken; None while nothing is known."""
        due = {"train": 0.0, "measure": 0.0}
        for seed in self.seeds:
            for name in needed(self.config):
                due["train"] += (trained(self.config, name, seed) is None) * (
                    self.config.start if is_start(name) else 1
                )
            files = {self.file_of(q, a, seed) for name in TRAININGS for q, a in self.arms_of(name)}
            due["measure"] += sum(not path.is_file() for path in files)
        guess = {kind: sum(each) / len(each) for kind, each in self.took.items() if each}
        if self.config.minutes:
            guess["train"] = 60 * self.config.minutes
        known = [count * guess[kind] for kind, count in due.items() if kind in guess]
        return sum(known) if known else None

    def ticker(self, what: str) -> measuring.Say:
        last = time.monotonic()

        def say(done: int, of: int) -> None:
            nonlocal last
            if time.monotonic() - last >= TICK:
                last = time.monotonic()
                print(f"  {what}: {done} of {of}", flush=True)

        return say

    # -- writing ------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        questions = []
        for key, question in self.config.asked.items():
            measured = {}
            for arm in question.arms:
                files = [self.file_of(question, arm, seed) for seed in self.seeds]
                found = [json.loads(path.read_text("utf-8")) for path in files if path.is_file()]
                if len(found) == len(files):
                    measured[arm.name] = over_seeds(found)
            questions.append(answer_to(key, question, measured))
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.base.name,
            "sampling": {name: getattr(self.settings, name) for name in ("steps", "guidance", "shift")},
            "settings": {key: value for key, value in plain(self.config).items() if key not in FREE},
            "versions": versions(),
            "trainings": self.trainings(),
            "questions": questions,
        }

    def trainings(self) -> list[dict[str, Any]]:
        done = []
        for seed in self.seeds:
            for name in needed(self.config):
                record = trained(self.config, name, seed)
                if record:
                    done.append({"name": name, "seed": seed, "differs": changes_of(name), **record})
        return done

    def write(self) -> None:
        report, out = self.report(), self.config.out
        write_text(out / "ablation.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        write_text(out / "ablation.md", markdown(report))
        try:
            plot(report, out / "ablation.png")
        except MissingPackage as error:
            print(error)
