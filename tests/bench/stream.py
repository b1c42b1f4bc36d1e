"""Documents a second and peak memory of `stream:`: local, over HTTP on this machine, and in fsspec's memory.

    python tests/bench/stream.py [--documents 10000] [--shards 50] [--side 64]

Each line is a process of its own, so that its peak memory is its own; `headers` reads no pixel, as a step's sharing out
does it; `enter` is the time to the first document in the middle of the epoch, with and without notes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.data.export import write_rows  # noqa: E402
from duogen_core.data.sources import open_mixture  # noqa: E402
from duogen_core.data.sources.rows import rows_of  # noqa: E402
from duogen_core.document import Document, Picture, Text, Turn  # noqa: E402
from duogen_core.document.store import document_json  # noqa: E402


def write(folder: Path, documents: int, shards: int, side: int) -> None:
    """Documents of two pictures of smooth noise, in tars and in Parquet files."""
    rng = np.random.default_rng(0)
    pictures = [
        Picture(np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((side // 8, side // 8, 1), np.uint8)))
        for _ in range(64)
    ]
    for shard in range(shards):
        some = []
        for k in range(shard * documents // shards, (shard + 1) * documents // shards):
            user = Turn("user", (Text(f"Request {k}: draw it step by step."), pictures[k % 64]))
            answer = Turn("assistant", (Text("Step 1. " + "words " * 50), pictures[(k * 7 + 1) % 64], Text("Done.")))
            some.append((f"{k:06d}", Document((user, answer))))
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as archive:
            for key, document in some:
                names = [f"{i:03d}.png" for i in range(len(document.pictures))]
                files = [(f"{key}.json", json.dumps(document_json(document, names)).encode())]
                files += [(f"{key}.{name}", each.to_png()) for name, each in zip(names, document.pictures)]
                for name, data in files:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        with (folder / f"{shard:04d}.parquet").open("wb") as stream:
            write_rows(stream, (rows_of(document, key) for key, document in some))


class Ranges(SimpleHTTPRequestHandler):
    """Python's server, with ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        size = file.stat().st_size
        first, last = 0, size - 1
        if wanted:
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
        last = min(last, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with file.open("rb") as stream:
            stream.seek(first)
            self.wfile.write(stream.read(last - first + 1))

    def log_message(self, *_: object) -> None:
        pass


def peak_megabytes() -> float:
    """Of this process alone; resource.getrusage would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(kind: str, place: str, documents: int, folder: str) -> dict[str, float]:
    if place.startswith("memory://"):
        import fsspec

        memory = fsspec.filesystem("memory")
        for file in Path(folder).glob(f"*.{kind}"):
            memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    begin_memory = peak_megabytes()
    spec = {"source": f"{kind}:{folder}/*.tar"} if kind == "webdataset" else {"source": f"stream:{place}"}
    started = time.monotonic()
    mixture = open_mixture(spec, seed=0)
    mixture.draw(0)
    first = time.monotonic() - started
    started = time.monotonic()
    for k in range(1, documents):
        mixture.draw(k)
    seconds = time.monotonic() - started
    peak = peak_megabytes()
    found = {
        "first s": first,
        "documents/s": (documents - 1) / seconds,
        "peak MB": peak,
        "of it before MB": begin_memory,
    }
    if kind != "webdataset":
        with tempfile.TemporaryDirectory() as notes:
            mixture.keep(Path(notes))
            mixture.sources[0].notes._write()
            for name, keep in (("enter s", False), ("with notes s", True)):
                resumed = open_mixture(spec, seed=0)
                if keep:
                    resumed.keep(Path(notes))
                started = time.monotonic()
                resumed.draw(documents // 2)
                found[name] = time.monotonic() - started
        headers = open_mixture(spec, seed=0)
        started = time.monotonic()
        for k in range(documents):
            headers.header(k)
        found["headers/s"] = documents / (time.monotonic() - started)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, place, folder = args.one
        print(json.dumps(measure(kind, place, args.documents, folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.documents, args.shards, args.side)
        size = sum(file.stat().st_size for file in folder.glob("*.tar")) / 2**20
        print(f"{args.documents:,} documents of two {args.side}x{args.side} PNGs, {args.shards} shards, {size:.0f} MB")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=name))
        Thread(target=server.serve_forever, daemon=True).start()
        span = f"{{0000..{args.shards - 1:04d}}}"
        runs = [("webdataset", "")]
        for kind in ("tar", "parquet"):
            runs += [(kind, f"{folder}/*.{kind}"), (kind, f"http://127.0.0.1:{server.server_port}/{span}.{kind}")]
            runs += [(kind, f"memory://bucket/*.{kind}")]
        for kind, place in runs:
            command = [sys.executable, __file__, "--documents", str(args.documents), "--one", kind, place, name]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
            if done.returncode:
                raise SystemExit(done.stderr)
            print(
                f"{kind:10} {place.partition(':')[0] if '://' in place else 'local':7} {done.stdout.strip()}",
                flush=True,
            )
        server.shutdown()


if __name__ == "__main__":
    main()
