"""How fast `data web` is, what memory it takes, and whether kills change what it writes.

    python tests/bench/web_speed.py [--pages 10000] [--workers 2] [--kills 20 | --ray]
                                                                                needs the material of web_material.py

Writes a WARC file of GIMP help's and the GnuCash guide's pages and pictures, the pages again under other addresses
until there are enough, and runs the command on it. The memory is the proportional set size of all its processes,
sampled twice a second. --kills: runs it on one copy of the pages again, with kill -9 of the process at random moments,
and compares all shards and logs with those of an undisturbed run. --ray: runs it with Ray, stopped once by Ctrl-C and
finished by the local back end, and once undisturbed, and compares both with a local run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import checkout  # noqa: F401
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter
from web_material import GIMP, GNUCASH, folder

KINDS = {".html": "text/html; charset=utf-8", ".png": "image/png", ".jpg": "image/jpeg"}


def write_warc(file: Path, pages: int) -> int:
    """Pictures once, pages as often as needed; returns how many pages there are."""
    written = copy = 0
    with file.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        while written < pages:
            for manual in (GIMP, GNUCASH):
                root = folder() / manual
                for path in sorted(root.rglob("*")):
                    if path.suffix not in KINDS or (copy and path.suffix != ".html") or not path.is_file():
                        continue
                    name = path.relative_to(root).as_posix()
                    is_page = path.suffix == ".html"
                    if is_page and written >= pages:
                        continue
                    query = f"?copy={copy}" if is_page else ""
                    http = StatusAndHeaders("200 OK", [("Content-Type", KINDS[path.suffix])], protocol="HTTP/1.1")
                    url = f"http://manual.example.com/{root.name}/{name}{query}"
                    payload = io.BytesIO(path.read_bytes())
                    writer.write_record(writer.create_warc_record(url, "response", payload=payload, http_headers=http))
                    written += is_page
            copy += 1
    return written


def command(file: Path, out: Path, workers: int, *more: str) -> list[str]:
    options = ["--out", str(out), "--workers", str(workers), *more]
    return [sys.executable, "-m", "duogen_core", "data", "web", str(file), *options]


def descendants(process: int) -> set[int]:
    found = {process}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) in found:
                found.add(int(entry.name))
    return found


def look(process: int, spent: dict[int, float]) -> int:
    """Bytes that the process and its descendants take together; their processor seconds so far go into `spent`."""
    total, ticks = 0, os.sysconf("SC_CLK_TCK")
    for each in descendants(process):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            spent[each] = (int(fields[11]) + int(fields[12])) / ticks
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def speed(file: Path, out: Path, workers: int) -> None:
    figures = out.with_suffix(".json")
    child = subprocess.Popen(command(file, out, workers, "--json", str(figures)))
    peak, spent = 0, {}
    while child.poll() is None:
        peak = max(peak, look(child.pid, spent))
        time.sleep(0.5)
    found, seconds = json.loads(figures.read_text()), sum(spent.values())
    print(f"{found['pages']} pages, {found['kept']} documents, {found['pictures']} pictures in {found['seconds']} s")
    print(f"{found['pages'] / found['seconds']:.1f} pages a second with {workers} workers")
    print(f"{found['pages'] / seconds:.1f} pages for each of {seconds:.0f} seconds of processor time")
    print(f"at most {peak / 2**20:.0f} MiB")


def digest(out: Path) -> str:
    total = hashlib.sha256()
    for name in ("shards", "logs"):
        for path in sorted((out / name).iterdir()):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def kills(file: Path, place: Path, count: int, workers: int) -> None:
    started = time.monotonic()
    subprocess.run(command(file, place / "whole", workers, "--quiet", "--shard-pages", "16"), check=True)
    whole, rng, done = time.monotonic() - started, random.Random(0), 0
    out = place / "killed"
    while done < count:
        child = subprocess.Popen(command(file, out, workers, "--quiet", "--shard-pages", "16"))
        try:
            child.wait(rng.uniform(0.2, 0.15 * whole))
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            done += 1
    subprocess.run(command(file, out, workers, "--quiet", "--shard-pages", "16"), check=True)
    left = [path for path in out.rglob("*.duogen-tmp") if "index" not in path.parts]
    same = "the same bytes as" if digest(out) == digest(place / "whole") else "OTHER BYTES THAN"
    print(f"killed {done} times, then finished: {same} the undisturbed run; {len(left)} half-written files left")


def with_ray(file: Path, place: Path, workers: int) -> None:
    quiet = ("--quiet", "--shard-pages", "16")
    subprocess.run(command(file, place / "local", workers, *quiet), check=True)
    started = time.monotonic()
    subprocess.run(command(file, place / "ray", workers, "--backend", "ray", *quiet), check=True)
    print(f"with Ray: {time.monotonic() - started:.0f} s with its start; {said(place, 'ray')}")
    child = subprocess.Popen(
        command(file, place / "mixed", workers, "--backend", "ray", *quiet),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while child.poll() is None and len(list((place / "mixed").glob("logs/*.jsonl"))) < 2:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    code, done = child.wait(), len(list((place / "mixed").glob("logs/*.jsonl")))
    subprocess.run(command(file, place / "mixed", workers, *quiet), check=True)
    print(f"stopped by Ctrl-C (exit code {code}) at {done} shards, finished without Ray; {said(place, 'mixed')}")


def said(place: Path, name: str) -> str:
    return "the same bytes" if digest(place / name) == digest(place / "local") else "OTHER BYTES"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        count = write_warc(place / "pages.warc.gz", args.pages)
        print(f"{count} pages, {(place / 'pages.warc.gz').stat().st_size / 2**20:.0f} MiB")
        if args.kills:
            kills(place / "pages.warc.gz", place, args.kills, args.workers)
        elif args.ray:
            with_ray(place / "pages.warc.gz", place, args.workers)
        else:
            speed(place / "pages.warc.gz", place / "out", args.workers)


if __name__ == "__main__":
    main()
