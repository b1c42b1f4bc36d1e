"""The campaigns against the pack, by one command:

    python tests/hardening/run.py [kills|hostile|disk|twice|comfyui|docs ...] [--json FILE] [--seed N]

    kills     kill -9 at random moments: nothing finished is lost, the same command comes to the same end
    hostile   files, values and answers made by generators: a sentence or the right result, within bounds
    disk      a full disk and no memory in the middle of every writer
    twice     two runs at once on one output folder
    comfyui   fifty runs in one ComfyUI, kills of a ComfyUI, hostile values in its nodes
    docs      every command of README.md and docs/ as written

Without a name all of them run, which takes about two hours on two cores. The same seed gives the same inputs and
moments. Exit code 0: no fault was found; 1: the faults are printed, and in the JSON file. Linux only. What it measured
is in docs/reliability.md; tests/hardening/test_*.py run a small share of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

CAMPAIGNS = ("kills", "hostile", "disk", "twice", "comfyui", "docs")
NUMBERS = {"kills": 200, "hostile": 800, "disk": 3, "twice": 3, "comfyui": 50, "docs": 1}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="*", choices=[*CAMPAIGNS, []], metavar="CAMPAIGN", help=", ".join(CAMPAIGNS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found; an earlier file is added to")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--number", type=int, metavar="N", help=f"kills, cases, runs of a kind, pairs; default: {NUMBERS}"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="subjects or families with this name"
    )
    parser.add_argument("--case", type=int, metavar="K", help="of hostile: only case K of a family, to repeat it")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of hostile: the inputs of cases that went wrong")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if sys.platform != "linux":
        print("Error: the campaigns need Linux (/proc, fork).", file=sys.stderr)
        return 2
    report: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    faults = 0
    for name in args.campaigns or CAMPAIGNS:
        started = time.monotonic()
        found = run(name, args)
        faults += sum(len(each["faults"]) for each in found)
        about = {"commit": commit(), "seed": args.seed, "cores": os.cpu_count(), "python": platform.python_version()}
        report[name] = {**about, "minutes": round((time.monotonic() - started) / 60, 1), "found": found}
        if args.json:
            args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"{faults} faults.")
    return 1 if faults else 0


def run(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    from importlib import import_module

    number = args.number or NUMBERS[name]
    campaign: Callable[..., list[Any]] = import_module(f"tests.hardening.{name}").campaign
    if name == "docs":
        return [score.to_json() for score in campaign(args.only, show=show)]
    more = {"only": args.case, "keep": args.keep} if name == "hostile" else {}
    return [score.to_json() for score in campaign(number, args.seed, args.only, show=show, **more)]


def show(score: Any) -> dict[str, Any]:
    found = score.to_json()
    print("  ".join(f"{key}: {value}" for key, value in found.items() if key not in ("faults", "moments")), flush=True)
    for fault in found["faults"]:
        print(f"    FAULT {fault!r}"[:600], flush=True)
    return found


def commit() -> str:
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
