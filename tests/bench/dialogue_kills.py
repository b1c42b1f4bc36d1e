"""data dialogues killed at 20 random moments and gone on with: is the end the same as that of an undisturbed run?

    python tests/bench/dialogue_kills.py [--kills N] [--pages N]

The writer is the scripted one of the tests, on loopback, with a little delay; the pages are those of the tests.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.core.dialogue_pages import write_pages  # noqa: E402
from tests.core.endpoint_server import Handler, endpoint_server  # noqa: E402
from tests.core.scripted_writer import Writer  # noqa: E402

DELAY = 0.03  # seconds for an answer


def run(pages: Path, out: Path, url: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "duogen_core", "data", "dialogues", pages, "--out", out, "--endpoint", url]
    more = ["--llm", "scripted", "--shard-documents", "4", "--parallel", "3", "--quiet"]
    return subprocess.Popen(list(map(str, [*command, *more])), cwd=ROOT, stdout=subprocess.DEVNULL)


def files(out: Path) -> dict[str, bytes]:
    return {f"{name}/{file.name}": file.read_bytes() for name in ("shards", "logs") for file in (out / name).iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pages", type=int, default=120)
    args = parser.parse_args()
    writer = Writer()

    def slow(handler: Handler) -> None:
        time.sleep(DELAY)
        writer(handler)

    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, endpoint_server(slow) as server:
        here = Path(folder)
        pages = write_pages(here / "web", args.pages)
        assert run(pages, here / "whole", server.url).wait() == 0
        needed = len(writer.steps)
        moments = sorted(rng.sample(range(needed), args.kills))  # answers that have been kept when it is killed
        recording = here / "killed" / "answers.jsonl"
        killed = half = 0
        for moment in moments:
            child = run(pages, here / "killed", server.url)
            while child.poll() is None and (not recording.exists() or recording.read_bytes().count(b"\n") < moment):
                time.sleep(0.002)
            child.kill()
            killed += child.wait() == -signal.SIGKILL
            half += len(list((here / "killed").rglob("*.duogen-tmp")))
        assert run(pages, here / "killed", server.url).wait() == 0
        asked = len(writer.steps) - needed
        same = files(here / "killed") == files(here / "whole")
        left = len(list((here / "killed").rglob("*.duogen-tmp")))
        print(f"{killed} kills ({half} files half written then), {args.pages} pages, {needed} answers needed")
        print(f"answers asked for in all: {asked}; the same bytes: {same}; half-written files left: {left}")


if __name__ == "__main__":
    main()
