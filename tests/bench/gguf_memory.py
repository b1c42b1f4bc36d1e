"""What a language model in GGUF costs here, and whether it is the model: memory, time, logits. Behind docs/models.md.

    python tests/bench/gguf_memory.py memory FILE.gguf [--compute float32] [--tokens 64]
    python tests/bench/gguf_memory.py logits FILE.gguf
    python tests/bench/gguf_memory.py speed FILE.gguf [--threads 2]

memory: the largest resident size of a process of its own that loads the file and runs one forward of 64 tokens.
logits: of the same tokens by transformers' own reading of the file (AutoModelForCausalLM.from_pretrained(gguf_file=…)),
in float32, as a relative error; needs memory for the model in float32. speed: processor time of a prefill and of a
token, in blocks (float32 and bf16) and made whole in bf16, all in one process, the median of several.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MIB = 2**20


def memory(file: Path, compute: str, tokens: int) -> dict[str, float]:
    code = (
        "import resource, sys, torch\n"
        "from duogen_core.llm.gguf_model import load_causal\n"
        f"model, _ = load_causal({str(file)!r}, compute=getattr(torch, {compute!r}) if {compute!r} else None)\n"
        "ids = torch.randint(0, model.config.vocab_size - 1000, (1, "
        f"{tokens}), generator=torch.Generator().manual_seed(0))\n"
        "with torch.inference_mode():\n"
        "    model(ids, logits_to_keep=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    peak, size = int(done.stdout.split()[-1]) * 1024, file.stat().st_size
    return {"file MiB": size / MIB, "peak MiB": peak / MIB, "peak of the file": peak / size}


def logits(file: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from duogen_core.llm.gguf_model import load_causal

    def of(model: torch.nn.Module) -> torch.Tensor:
        ids = torch.randint(0, model.config.vocab_size - 1000, (1, 24), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return model(ids).logits[0, -8:].double()

    ours = of(load_causal(file, compute=torch.float32)[0])
    halves = of(load_causal(file, compute=torch.bfloat16)[0])
    theirs = of(AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32))
    return {
        "float32, largest": float((ours - theirs).abs().max() / theirs.abs().max()),
        "float32, norm": float((ours - theirs).norm() / theirs.norm()),
        "bf16, norm": float((halves - theirs).norm() / theirs.norm()),
    }


def speed(file: Path, threads: int) -> dict[str, float]:
    import torch

    from duogen_core.llm.gguf_model import load_causal

    torch.set_num_threads(threads)
    found = {}
    for name, arguments in {
        "blocks, float32": {"compute": torch.float32},
        "blocks, bf16": {"compute": torch.bfloat16},
        "whole, bf16": {"dtype": torch.bfloat16},
    }.items():
        model, _ = load_causal(file, **arguments)
        found |= {f"{name}: {what}": seconds for what, seconds in _timed(model).items()}
        del model
    return found


def _timed(model: Any) -> dict[str, float]:
    import torch

    ids = torch.randint(0, model.config.vocab_size - 1000, (1, 64))
    with torch.inference_mode():
        cache = model(ids, logits_to_keep=1).past_key_values
        return {
            "64 tokens at once, s": _median(lambda: model(ids, logits_to_keep=1), 3),
            "a token, s": _median(lambda: model(ids[:, :1], past_key_values=cache), 7),
        }


def _median(run: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "logits", "speed"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--compute", default="", choices=("", "float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.what == "memory":
        found = memory(args.file.resolve(), args.compute, args.tokens)
    else:
        found = logits(args.file.resolve()) if args.what == "logits" else speed(args.file, args.threads)
    print(json.dumps({key: float(f"{value:.4g}") for key, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
