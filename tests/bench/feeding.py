"""What a step of training waits for: data, forward, backward, the rest; in one process and in two.

    python tests/bench/feeding.py [--documents 200] [--steps 10] [--workers 1] [--json FILE] [--only stage1,stage2]

It makes documents of one 1024x1024 PNG each, trains both stages on them, stage 2 with states=online, on the CPU with
one thread a process, and prints seconds a step of process 0. `data` is the time in which the step has nothing to
compute with; `frozen` is VAE and MLLM of stage 2, which read and do not learn; `decoding CPU` is what decoding, scaling
and tokenising took of a process, or of its workers, in CPU seconds a step.

The models are random and small, so the proportion of decoding to passes is that of this program and of no training on
GPUs: for yours, look at `waiting` in its metrics.jsonl. On a machine of as many cores as processes the workers take
their CPU time from the training: what waiting disappears comes back as longer passes, so look at `decoding CPU` and at
the whole step, too. It also runs on trees of before there was feeding.py, where everything is done in the step. What it
said on one machine stands in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import checkout  # noqa: F401

ROOT = Path(__file__).parents[2]
SKIPPED = 3  # steps: workers begin and caches fill


def make_documents(folder: Path, count: int) -> None:
    """One request and one drawn picture each, of smooth colours with some noise, as photographs are."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    across, down = np.meshgrid(np.linspace(0, 6, 1024), np.linspace(0, 6, 1024))
    lines = []
    for k in range(count):
        name = f"{k:04d}.png"
        if not (folder / name).exists():
            rng = np.random.default_rng(k)
            waves = [
                np.sin(across * rng.uniform(0.5, 3) + down * rng.uniform(0.5, 3) + rng.uniform(0, 6)) for _ in "rgb"
            ]
            pixels = np.stack(waves, -1) * 100 + 128 + rng.normal(0, 4, (1024, 1024, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, compress_level=4)
        turns = [
            {
                "role": "user",
                "parts": [{"type": "text", "text": f"Paint number {k} in " + "bright colours " * (k % 9)}],
            },
            {"role": "assistant", "parts": [{"type": "text", "text": "Here it is."}, {"type": "image", "file": name}]},
        ]
        lines.append(json.dumps({"format": "duogen-document", "version": 1, "turns": turns}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def make_models(folder: Path) -> None:
    import torch

    from duogen_core.mllm.image_processor import small_image_processor
    from duogen_core.mllm.qwen2_5_vl import Qwen25VL, new_model
    from duogen_core.sketchbook.pretrain import sketchbook_tokenizer
    from duogen_core.vae import PictureVae, new_vae

    torch.manual_seed(0)
    tokenizer = sketchbook_tokenizer(0, 60, 500)
    sizes = {"hidden_size": 256, "layers": 4, "heads": 8, "vision_hidden_size": 128, "vision_layers": 2,
             "vision_heads": 4}  # fmt: skip
    processor = small_image_processor(max_pixels=512 * 512)  # 256 tokens a picture
    model = new_model(tokenizer, **sizes)
    Qwen25VL(model, tokenizer, processor).save_pretrained(folder / "mllm")
    PictureVae(new_vae(base_dim=8)).save_pretrained(folder / "vae")


def known(function, values: dict) -> dict:
    import inspect

    return {name: value for name, value in values.items() if name in inspect.signature(function).parameters}


# -- one process of a run, measured


def measured(stage: str, folder: Path, out: Path, steps: int, workers: int) -> None:
    import psutil

    from duogen_core.training import next_token, stage1, stage2, stage2_data
    from duogen_core.training.distributed import Processes, started
    from duogen_core.training.run import Run

    seconds, inside = defaultdict(float), threading.local()
    preparing = [0.0]  # CPU seconds in this process

    def timed(owner, name: str, kind: str, cpu: bool = False) -> None:
        function = getattr(owner, name)

        def call(*args, **kwargs):
            outer, inside.kind = getattr(inside, "kind", None), kind
            begun, used = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.perf_counter() - begun
                seconds[kind] += passed
                if outer is not None:
                    seconds[outer] -= passed
                if cpu:
                    preparing[0] += time.thread_time() - used
                inside.kind = outer

        setattr(owner, name, call)

    timed(next_token.NextTokenLoss, "forward", "forward")
    timed(stage2.FlowLoss, "forward", "forward")
    timed(Processes, "backward", "backward")
    try:
        from duogen_core.training import feeding, prepared

        timed(feeding.Feed, "_next", "data", cpu=not workers)
        timed(prepared.Reader, "encode", "frozen")
    except ImportError:  # before: all in the step
        timed(stage1.Batcher, "__call__", "data", cpu=True)
        from duogen_core.training import data

        timed(data.Samples, "__call__", "data", cpu=True)
        timed(stage2_data.Reader, "__call__", "frozen")
        timed(stage2_data, "build_inputs", "data", cpu=True)
        timed(stage2_data, "reference_pixels", "data", cpu=True)

    rows, report = [], Run.report

    def workers_cpu() -> float:
        children = psutil.Process().children(recursive=True)
        return sum(sum(child.cpu_times()[:2]) for child in children)

    def after(self, **values):
        report(self, **values)
        rows.append({**seconds, "step": time.perf_counter(), "cpu": preparing[0], "workers_cpu": workers_cpu()})

    Run.report = after
    common = {
        "out": out, "steps": steps + SKIPPED, "warmup": 1, "bf16": False, "threads": 1, "tensorboard": False,
        "data": [f"jsonl:{folder / 'train.jsonl'}"], "batch": 8, "checkpoint_minutes": 60.0, "workers": workers,
    }  # fmt: skip
    if stage == "stage1":
        config = stage1.Stage1Config
        values = {**common, "init": folder / "mllm", "eval_cases": 0, "sample_minutes": 0.0, "max_side": 2048}
        values |= {"micro_tokens": 1400, "tokens": 1400, "probe_weight": 0.0, "accumulate": True}
    else:
        config = stage2.Stage2Config
        values = {**common, "vae": folder / "vae", "mllm": folder / "mllm", "states": "online", "max_side": 256}
        values |= {"layers": 4, "heads": 4, "cross_width": 128, "frames": 4, "tokens": 2600, "eval_cases": 0}
        values |= {"sample_minutes": 0.0, "export_steps": 0}
    (stage1 if stage == "stage1" else stage2).train(config(**known(config, values)))
    first, last, count = rows[SKIPPED - 1], rows[-1], len(rows) - SKIPPED
    found = {name: (last.get(name, 0.0) - first.get(name, 0.0)) / count for name in
             ("step", "data", "frozen", "forward", "backward")}  # fmt: skip
    found["rest"] = found["step"] - sum(found[name] for name in ("data", "frozen", "forward", "backward"))
    used = last["workers_cpu"] - first["workers_cpu"] if workers else last["cpu"] - first["cpu"]
    found["decoding_cpu"] = used / count
    found["peak_gb"] = peak_memory() / 1e9
    rank = int(os.environ.get("RANK", "0"))
    (out.parent / f"{out.name}.{rank}.json").write_text(json.dumps(found))
    if started() > 1:
        from duogen_core.training.distributed import leave

        leave(0)


def peak_memory() -> int:
    """Bytes that this process held at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- all runs


def run(stage: str, folder: Path, processes: int, steps: int, workers: int) -> list[dict]:
    out = Path(tempfile.mkdtemp(dir=folder)) / f"{stage}-{processes}"
    mine = [str(Path(__file__)), "--one", stage, "--folder", str(folder), "--out", str(out), "--steps", str(steps)]
    mine += ["--workers", str(workers)]
    launcher = [sys.executable]
    if processes > 1:
        config = ROOT / "duogen_core/training/launch/ddp.yaml"
        launcher += [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(config),
            "--num_processes",
            str(processes),
        ]
        launcher += ["--mixed_precision", "no", "--main_process_port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, *mine], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return [json.loads((out.parent / f"{out.name}.{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="stage1,stage2")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "duogen-feeding")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measured(args.one, args.folder, args.out, args.steps, args.workers)
        return
    make_documents(args.folder, args.documents)
    make_models(args.folder)
    names = ("step", "data", "frozen", "forward", "backward", "rest", "decoding_cpu", "peak_gb")
    print("| stage | processes | " + " | ".join(names) + " | outside of passes |")
    print("|---|---|" + "---|" * (len(names) + 1))
    table = []
    for stage in args.only.split(","):
        for processes in args.processes:
            found = run(stage, args.folder, processes, args.steps, args.workers)
            first = found[0]
            outside = (first["data"] + first["rest"]) / first["step"]
            cells = " | ".join(f"{first[name]:.2f}" for name in names)
            print(f"| {stage} | {processes} | {cells} | {outside:.0%} |", flush=True)
            table.append({"stage": stage, "processes": processes, "load": os.getloadavg()[0], "ranks": found})
    if args.json:
        args.json.write_text(json.dumps({"workers": args.workers, "runs": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
