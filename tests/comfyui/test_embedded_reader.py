"""The front end's reader of dropped files (web/duogen/embedded.js), in Node: what it finds, and that no file makes it
hold more than it may. Real documents in a real browser: browser/test_drop.py."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import PACK

LIMIT = 16 * 2**20  # of the reader
MEMORY = 400 * 2**20  # of the whole process; Node alone takes about 50 MiB
DOCUMENT = {"format": "duogen-document", "version": 1, "turns": [], "meta": {"comfyui": {"workflow": {"nodes": []}}}}
SCRIPT = """
import { existsSync, openAsBlob, readFileSync } from "node:fs";
import { embeddedWorkflow } from "./embedded.mjs";
const blob = await openAsBlob(process.argv[2]);
const file = Object.defineProperty(blob, "name", { value: process.argv[2] });
const found = await embeddedWorkflow(file);
// Not resourceUsage(): on Linux its peak counts the process that started this one, until exec.
const peak = /VmHWM:\\s+(\\d+) kB/.exec(existsSync("/proc/self/status") ? readFileSync("/proc/self/status") : "");
console.log(JSON.stringify({ found, memory: peak ? peak[1] * 1024 : process.resourceUsage().maxRSS * 1024 }));
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """Reads a file in a Node of its own: {"found": …, "memory": peak in bytes}."""
    node = shutil.which("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout if node else "v0"
    if int(version[1:].split(".")[0]) < 20:
        pytest.skip("Node 20 or newer is not here; the reader is JavaScript.")
    folder = tmp_path_factory.mktemp("reader")
    shutil.copy(PACK / "web" / "duogen" / "embedded.js", folder / "embedded.mjs")
    (folder / "read.mjs").write_text(SCRIPT)

    def read(file: Path) -> dict[str, Any]:
        command = [node, "--no-warnings", "read.mjs", str(file)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def zip_file(path: Path, text: bytes, *, method: int = zipfile.ZIP_DEFLATED, before: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for index in range(before):
            archive.writestr(f"images/{index:03d}.png", b"a picture")
        archive.writestr("document.json", text)
    return path


def with_declared_size(path: Path, size: int) -> Path:
    """The archive, whose directory says another unpacked size."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_the_workflow_of_a_zip(read: Callable, tmp_path: Path, method: int):
    path = zip_file(tmp_path / "a.zip", json.dumps(DOCUMENT).encode(), method=method, before=300)
    assert read(path)["found"] == DOCUMENT["meta"]["comfyui"]


@pytest.mark.slow
@pytest.mark.parametrize("declared", [None, 100])
def test_a_zip_that_grows(read: Callable, tmp_path: Path, declared: int | None):
    """1.3 GB of document.json in 1.3 MB, as it is, and with a small size in the directory."""
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("document.json", "w") as member:
        for _ in range(1300):
            member.write(b" " * 10**6)
    if declared:
        with_declared_size(packed, declared)
    got = read(packed)
    assert got["found"] is None and got["memory"] < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "html", "pdf", "zip"])
def test_a_large_file(read: Callable, tmp_path: Path, ending: str):
    """2 GB with nothing in them: no more than a piece is ever held. The file has holes, so it takes no space."""
    path = tmp_path / f"document.{ending}"
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
    got = read(path)
    assert got["found"] is None and got["memory"] < MEMORY


@pytest.mark.slow
def test_a_pdf_whose_workflow_lies_across_two_pieces(read: Callable, tmp_path: Path):
    data = base64.b64encode(json.dumps({"workflow": {"nodes": ["x" * 2**20]}}).encode())
    for shift in (1, 6, 12):
        path = tmp_path / f"{shift}.pdf"
        path.write_bytes(b" " * (3 * 2**20 - shift) + b"<duogen:data>" + data + b"</duogen:data>")
        assert read(path)["found"] == {"workflow": {"nodes": ["x" * 2**20]}}
    (tmp_path / "plain.pdf").write_bytes(b" " * (2**20 - 5) + b"/Creator (DuoGen)")
    assert read(tmp_path / "plain.pdf")["found"] == {}


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut off", b"PK\x05\x06" + b"\xff" * 18, b"PK\x05\x06" + b"\0" * 18])
def test_damaged_zips(read: Callable, tmp_path: Path, data: bytes):
    (tmp_path / "x.zip").write_bytes(data)
    assert read(tmp_path / "x.zip")["found"] is None
