"""What cleaning is worth: the same pages raw, and cleaned by the engine, to train on with the same budget.

    python tests/bench/dirtied_pages.py OUT [--pages 400] [--steps 120] [--arms raw,engine,ideal] [--seeds 1]

1. Guides of Sketchbook become web pages, dirtied on purpose (sketchbook_pages.py), and these the documents of each arm
   (dirtied_arms.py). `data check` reads every arm's.
2. One start for all: the bundled model's vision tower and tokenizer with a new language model, which `train stage1`
   teaches Sketchbook's other tasks (--start-steps), no guide and nothing to continue.
3. `train stage1` from that start on each arm's documents, the same steps, batch and seeds.
4. Guides that no page has: the model writes, the case's own pictures are put in where it asks for one.
Out: OUT/results.json and OUT/results.md. What is done is kept; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import dirtied_arms  # noqa: E402
from sketchbook_pages import Dirt, guide_cases, write_site  # noqa: E402

from duogen_core.document import Document, Picture  # noqa: E402
from duogen_core.document.store import save_document  # noqa: E402
from duogen_core.files import write_atomically  # noqa: E402
from duogen_core.mllm.loading import load_mllm  # noqa: E402
from duogen_core.mllm.qwen2_5_vl import new_model  # noqa: E402
from duogen_core.sketchbook.ablation.measuring import with_ideal_pictures  # noqa: E402
from duogen_core.sketchbook.ablation.results import answer_to, over_seeds, table  # noqa: E402
from duogen_core.sketchbook.ablation.trainings import Arm, Question  # noqa: E402
from duogen_core.sketchbook.evaluation import cases  # noqa: E402
from duogen_core.sketchbook.scores import answer_of, numbers, score  # noqa: E402
from duogen_core.sketchbook.tasks.common import Case  # noqa: E402
from duogen_core.sketchbook.things import parse_step, thing_named  # noqa: E402
from duogen_core.training.stage1 import export  # noqa: E402

ARMS = ("raw", "rules", "engine", "written", "ideal")
OTHERS = {"draw": 0.3, "edit": 0.25, "describe": 0.2, "plan": 0.1, "draft": 0.15}
FIGURES = ("guide.structure", "pictures where due", "words right", "nothing else said", "pictures as many as due")
STEP = re.compile(r"(?=\bStep \d+:)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--start-steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "duogen-tiny")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.arms = args.arms.split(",")
    torch.set_num_threads(args.threads)
    pages = guide_cases(args.pages, seed=0)
    made = prepare(args.out, pages, args.arms)
    begin(args.out / "start", args)
    held_out = [case for _, case in cases(args.cases, 0, ("guide",))]
    for number, case in enumerate(held_out):
        save_document(case.document, args.out / "held-out" / f"{number:03d}", overwrite=True)
    for seed in range(args.seeds):
        for arm in args.arms:
            train_and_measure(args, arm, seed, held_out)
            report(args, made)
    print((args.out / "results.md").read_text("utf-8"))


# ---------------------------------------------------------------- pages and documents


def prepare(out: Path, pages: list[Case], arms: Sequence[str]) -> dict:
    """The documents of each arm, and what is in them."""
    site, file = out / "site", out / "made.json"
    made = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if "planted" not in made:
        shutil.rmtree(site, ignore_errors=True)
        made["planted"] = dict(write_site(site, pages, 0, Dirt()))
    ways = {
        "raw": lambda: dirtied_arms.raw(site),
        "rules": lambda: dirtied_arms.rules(site, out / "web"),
        "engine": lambda: dirtied_arms.engine(out / "web", out / "dialogues"),
        "written": lambda: dirtied_arms.written(out / "web", out / "dialogues-written", pages),
        "ideal": lambda: dirtied_arms.ideal(pages),
    }
    for arm in ways:
        folder = out / "arms" / arm
        if arm in made or (arm not in arms and arm != "rules"):
            continue
        started = time.perf_counter()
        dirtied_arms.write(folder, ways[arm]())
        dirtied_arms.done(
            ["data", "check", f"webdataset:{folder}", "--quiet", "--json", str(out / f"check-{arm}.json")]
        )
        check = json.loads((out / f"check-{arm}.json").read_text("utf-8"))["totals"]
        made[arm] = {**dirtied_arms.survey(folder, pages), "good": check["good"], "bad": check["bad"]}
        print(f"{arm}: {made[arm]}, {time.perf_counter() - started:.0f} s", flush=True)
        write_atomically(file, (json.dumps(made, indent=2) + "\n").encode())
    return made


# ---------------------------------------------------------------- training


def begin(folder: Path, args: argparse.Namespace) -> None:
    """A language model that knows the other tasks and has never seen a guide."""
    new = folder / "new"
    if not new.is_dir():
        torch.manual_seed(0)
        known = load_mllm(args.model / "mllm")
        model = new_model(known.tokenizer)
        model.model.visual.load_state_dict(known.model.model.visual.state_dict())
        export(model, known.tokenizer, known.image_processor, new)
    train(folder, args, init=str(new), steps=args.start_steps, warmup=60, weights=OTHERS, eval_cases=8)


def train(folder: Path, args: argparse.Namespace, **settings) -> None:
    """`train stage1`, from a configuration file beside the run."""
    common = {
        "out": str(folder / "run"), "seed": 0, "threads": args.threads, "batch": args.batch, "sample_minutes": 0.0,
        "eval_minutes": 600.0, "tensorboard": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**common, **settings}), "utf-8")
    dirtied_arms.done(["train", "stage1", "--config", str(file)])


def train_and_measure(args: argparse.Namespace, arm: str, seed: int, held_out: list[Case]) -> None:
    folder = args.out / "trained" / f"{arm}-{seed}"
    if (folder / "measured.json").is_file():
        return
    out, started = args.out, time.perf_counter()
    train(
        folder, args, init=str(out / "start" / "run" / "export"), steps=args.steps, warmup=min(40, args.steps // 4),
        seed=seed, data=[f"webdataset:{out / 'arms' / arm}"], eval_data=[f"documents:{out / 'held-out'}"],
        eval_cases=args.cases,
    )  # fmt: skip
    export_ = folder / "run" / "export"
    mllm = load_mllm(export_)
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for number, case in enumerate(held_out):
        answer = with_ideal_pictures(mllm, case)
        save_document(answer, folder / "answers" / f"{number:03d}", overwrite=True)
        for name, value in judged(case, answer).items():
            values[name].append(value)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    foreseen = next(line["eval"] for line in reversed(lines) if "eval" in line)
    tokens = [line["tokens"] for line in lines if "tokens" in line]
    found = {
        "values": values, "eval": next(iter(foreseen.values())), "tokens a step": round(sum(tokens) / len(tokens)),
        "seconds": round(time.perf_counter() - started),
    }  # fmt: skip
    write_atomically(folder / "measured.json", json.dumps(found).encode())


# ---------------------------------------------------------------- figures


def judged(case: Case, document: Document) -> dict[str, float]:
    """The answer's pictures and words, each by itself."""
    answer, thing = answer_of(case, document), thing_named(case.truth["thing"])
    due = len(answer.steps) == thing.steps and "Step" not in answer.closing
    due = due and all(numbers(text) == [k] for k, (text, _) in enumerate(answer.steps, 1))
    told = [parse_step(text, thing) for text in STEP.split(answer.text) if text.startswith("Step ")]
    asked = case.truth["asked"]
    right = [step and (step.number, step.part) for step in told] == list(enumerate(case.truth["parts"], 1))
    right = right and all(asked.get(step.part, step.colour) == step.colour for step in told)
    parts = [part for part in document.last_turn.parts if not isinstance(part, Picture)]
    said = [text for part in parts for text in part.text.split("\n\n") if text.strip()]
    values = (
        score(case, document).checks["guide.structure"], due, right, len(said) == thing.steps + 2,
        len(answer.steps) == thing.steps,
    )  # fmt: skip
    return dict(zip(FIGURES, map(float, values)))


def report(args: argparse.Namespace, made: dict) -> None:
    """results.json and results.md of what there is so far."""
    measured, trainings = {}, []
    for arm in args.arms:
        found = list(of_seeds(args, arm))
        if found:
            measured[arm] = over_seeds([one["values"] for one in found])
            trainings += [{"arm": arm, "seed": k, **one["eval"], **{n: one[n] for n in ("tokens a step", "seconds")}}
                          for k, one in enumerate(found)]  # fmt: skip
    question = Question("", "", "words", FIGURES, tuple(Arm(arm, arm) for arm in args.arms))
    answer = answer_to("cleaning", question, measured)
    settings = {name: getattr(args, name) for name in ("pages", "steps", "batch", "seeds", "cases")}
    result = {"settings": settings, "made": made, "arms": answer["arms"], "trainings": trainings}
    write_atomically(args.out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
    data = rows([{"arm": arm, **made[arm]} for arm in ARMS if arm in made])
    text = f"{settings}\n\nplanted: {made['planted']}\n\n{data}\n\n{table(answer)}\n\n{rows(trainings)}\n"
    write_atomically(args.out / "results.md", text.encode())


def of_seeds(args: argparse.Namespace, arm: str) -> Iterator[dict]:
    for seed in range(args.seeds):
        file = args.out / "trained" / f"{arm}-{seed}" / "measured.json"
        if file.is_file():
            yield json.loads(file.read_text("utf-8"))


def rows(of: list[dict]) -> str:
    head = list(dict.fromkeys(name for one in of for name in one))
    lines = [head, ["---"] * len(head), *([str(one.get(name, "")) for name in head] for one in of)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
