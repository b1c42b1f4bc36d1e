"""What run.py measured, as the table of docs/reliability.md:

    python tests/hardening/report.py FILE        # FILE: of run.py --json FILE

Every campaign is a row, with its figures summed over its subjects or families, and how to repeat it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Found = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    print(table(json.loads(parser.parse_args(argv).file.read_text())))
    return 0


def table(report: dict[str, Any]) -> str:
    lines = ["| Campaign | Measured | Faults | Minutes |", "|---|---|---|---|"]
    for name, campaign in report.items():
        found = campaign["found"]
        faults = sum(len(each["faults"]) for each in found)
        lines.append(f"| `{name}` | {SENTENCES[name](found)} | {faults} | {campaign['minutes']:.0f} |")
    commits = {campaign["commit"] for campaign in report.values()}
    cores = {campaign["cores"] for campaign in report.values()}
    lines += ["", f"Commit {', '.join(sorted(commits))}, {', '.join(map(str, sorted(cores)))} cores."]
    return "\n".join(lines)


def summed(found: Found, name: str) -> int:
    return sum(each[name] for each in found)


def kills(found: Found) -> str:
    kept = summed(found, "finished_files")
    return f"{summed(found, 'kills')} kills of {len(found)} commands; {kept:,} files were finished when a kill came"


def hostile(found: Found) -> str:
    codes: dict[str, int] = {}
    for each in found:
        for code, count in each["codes"].items():
            codes[code] = codes.get(code, 0) + count
    ends = f"{codes.get('0', 0)} read rightly, {codes.get('2', 0) + codes.get('1', 0)} refused in a sentence"
    slowest, largest = (max(each[name] for each in found) for name in ("slowest", "largest"))
    return (
        f"{summed(found, 'distinct')} different inputs of {len(found)} families: {ends}; slowest {slowest:.0f} s, "
        f"most memory {largest} MiB"
    )


def disk(found: Found) -> str:
    runs: dict[str, int] = {}
    for each in found:
        for kind, count in each["runs"].items():
            runs[kind] = runs.get(kind, 0) + count
    names = {"tmpfs": "on a full disk", "files": "with ENOSPC", "memory": "without memory"}
    said = ", ".join(f"{runs.get(kind, 0)} {words}" for kind, words in names.items())
    return f"{len(found)} commands: {said}; {summed(found, 'enough')} had enough"


def twice(found: Found) -> str:
    return f"{summed(found, 'pairs')} pairs of {len(found)} commands; {summed(found, 'refused')} second ones refused"


def comfyui(found: Found) -> str:
    parts = {each["name"]: each["figures"] for each in found}
    lines = []
    if figures := parts.get("runs"):
        grown = figures["grown at the end, MiB"]
        lines.append(
            f"{figures['runs']} runs in one server, {figures['cancelled']} cancelled: resident memory grew by {grown} "
            f"MiB after the fifth, {len(figures['open files of ours'])} files open"
        )
    if figures := parts.get("kills"):
        lines.append(f"{figures['kills']} kills, {figures['finished_pictures']} pictures finished before them")
    if figures := parts.get("disks"):
        lines.append(f"{figures['disks']} full disks")
    if figures := parts.get("values"):
        ends = ", ".join(f"{figures[end]} {end}" for end in ("refused", "failed", "ran"))
        lines.append(f"{figures['cases']} hostile workflows ({ends})")
    return "; ".join(lines)


def docs(found: Found) -> str:
    ran, parsed, left = (summed(found, name) for name in ("ran", "parsed", "left"))
    return f"{ran} commands and programs ran, {parsed} were checked, {left} left out"


SENTENCES = {"kills": kills, "hostile": hostile, "disk": disk, "twice": twice, "comfyui": comfyui, "docs": docs}


if __name__ == "__main__":
    raise SystemExit(main())
