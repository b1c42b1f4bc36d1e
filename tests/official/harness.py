"""Official scorers of benchmarks, unchanged, beside the project, with a stand-in for the judge on loopback.

    scorer = official("zlab-princeton+UEval")     the folder of a clone, or the test is skipped with one line
    with judge(lambda request: '{"criteria_met": true}') as server:
        run(scorer, "ueval_eval.py", "--model_output_path", file, env={"OPENAI_BASE_URL": server.url})
    asked = exported("ueval", tmp_path)           small requests in the official layout, answers, the submission of them

`serving` is a server of any other kind. The first argument of `run` is the folder that the scorer is started in.
Where: the folder of DUOGEN_OFFICIAL, else ~/official; each repository as OWNER+NAME (a plain clone), and `venv/`, a
Python environment with what the scorers import (requirements.txt here). Without them these tests are skipped: nothing
of these repositories is part of this project.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from duogen_core.cli import main
from duogen_core.document import Document, Picture
from duogen_core.evaluation.benchmarks import Benchmark, Item, Score, benchmark
from duogen_core.evaluation.running import answered
from tests.core.evaluation.benchmarks import test_contract

FOLDER = Path(os.environ.get("DUOGEN_OFFICIAL") or Path.home() / "official")
PYTHON = FOLDER / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
MODEL = "duogen-tiny"


def official(name: str) -> Path:
    folder = FOLDER / name
    if not folder.is_dir() or not PYTHON.is_file():
        pytest.skip(f"No {name.replace('+', '/')} in {FOLDER.name}/, or no venv there; see tests/official/harness.py.")
    return folder


@dataclass(frozen=True)
class Exported:
    """requests: the file. place: what `Benchmark.export` says the scorer is given; out: the folder it is in."""

    bench: Benchmark
    requests: Path
    items: list[Item]
    answers: list[tuple[Item, Document]]
    out: Path
    place: Path

    def back(self, results: Path) -> tuple[list[Score], dict[str, float]]:
        """The scores that the official scorer wrote, one for each item, and our summary of them."""
        scores = self.bench.results(results, self.items)
        assert sorted(score.id for score in scores) == sorted(item.id for item in self.items)
        return scores, self.bench.summary(scores)


# Who answers: the contract's test; the bundled model; the same, told to draw the images that a benchmark fixes and it
# left out. What the model answers is kept for the whole session.
BUNDLED = [pytest.param(by, marks=pytest.mark.slow) for by in ("bundled", "bundled, insisting")]
ANSWERS = ["contract", *BUNDLED]


def exported(name: str, folder: Path, by: str = "contract", *layout: Any) -> Exported:
    """Writes the requests of layout_NAME.py into `folder` and answers them in the official layout.

    by: "contract": as the contract's test does (many images, one, none, no word at all), into the folder out/; one
    of BUNDLED: `evaluate run` does all of it, with the bundled model in haste. layout: arguments of write_requests."""
    bench = benchmark(name)
    if by != "contract":
        made, requests, place = _ran(name, by, layout)
        shutil.copytree(made, folder, dirs_exist_ok=True)
        items = list(bench.items(folder / requests))
        out = folder / "run" / "submission"
        answers = list(answered(folder / "run", bench, items))
        # What the scorer gets is what the model gave.
        read = [(item.id, len(item.pictures(document))) for item, document in bench.read(out, items)]
        assert read == [(item.id, len(item.pictures(document))) for item, document in answers]
        assert [item.id for item, _ in answers] == [item.id for item in items]
        if by != "bundled":
            for item, document in answers:
                drawn = [sum(isinstance(part, Picture) for part in reply) for reply in item.replies(document)]
                due = [item.due(turn) for turn in range(len(drawn))]
                assert all(number in (None, made) for number, made in zip(due, drawn)), (item.id, due, drawn)
        return Exported(bench, folder / requests, items, answers, out, folder / place)
    requests = test_contract.layout(name).write_requests(folder, *layout)
    items = list(bench.items(requests))
    answers = [(item, test_contract.answered(item, number)) for number, item in enumerate(items)]
    (folder / "out").mkdir()
    return Exported(bench, requests, items, answers, folder / "out", bench.export(answers, folder / "out", MODEL))


KEPT = tempfile.TemporaryDirectory()


@functools.cache
def _ran(name: str, by: str, layout: tuple[Any, ...]) -> tuple[Path, Path, Path]:
    """The folder of requests and of their run; from there, the file of requests and the place of the submission."""
    folder = Path(tempfile.mkdtemp(dir=KEPT.name)).resolve()
    requests = test_contract.layout(name).write_requests(folder, *layout)
    call = ["evaluate", "run", name, "--requests", requests, "--out", folder / "run", "--name", MODEL, "--quiet"]
    quick = ["--steps", "1", "--max-tokens", "40", "--max-images", "2", *(["--insist"] if by != "bundled" else [])]
    with redirect_stdout(io.StringIO()) as said:
        assert main([*map(str, call), *quick]) == 0
    return folder, requests.relative_to(folder), Path(said.getvalue().splitlines()[-1]).relative_to(folder)


Answer = Callable[[str, str, Mapping[str, str], bytes], tuple[Mapping[str, str], Any]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on loopback; yields http://127.0.0.1:PORT.

    answer: (method, path, headers, body) -> (headers, a value for JSON or bytes)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers, value = answer(
                self.command, self.path, self.headers, self.rfile.read(int(self.headers.get("Content-Length") or 0))
            )
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(200)
            for name, said in {"Content-Type": "application/json", **headers, "Content-Length": len(data)}.items():
                self.send_header(name, str(said))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_DELETE = do_PATCH = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Judge:
    """asked: the bodies of all requests, in their order."""

    url: str  # ends in /v1
    asked: list[Any] = field(default_factory=list)


@contextmanager
def judge(reply: Callable[[dict[str, Any]], Any]) -> Iterator[Judge]:
    """An OpenAI-compatible server. reply: gets the request's body, returns the answer's text, or a whole message."""
    found = Judge("")

    def answer(method: str, path: str, headers: Mapping[str, str], data: bytes) -> tuple[Mapping[str, str], Any]:
        body = json.loads(data)
        found.asked.append(body)
        said = reply(body)
        message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
        finish = "tool_calls" if "tool_calls" in message else "stop"
        if body.get("stream"):
            return {"Content-Type": "text/event-stream"}, _streamed(body, message, finish)
        return {}, {
            "id": "judge", "object": "chat.completion", "created": 0, "model": body.get("model", "judge"),
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip

    with serving(answer) as url:
        found.url = f"{url}/v1"
        yield found


def _streamed(body: Mapping[str, Any], message: Mapping[str, Any], finish: str) -> bytes:
    """The whole answer in one event, as a stream that was asked for."""
    event = {"id": "judge", "object": "chat.completion.chunk", "created": 0, "model": body.get("model", "judge")}
    choices = [{"index": 0, "delta": message}, {"index": 0, "delta": {}, "finish_reason": finish}]
    events = [json.dumps({**event, "choices": [choice]}) for choice in choices]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def run(folder: Path, *arguments: object, env: Mapping[str, str] | None = None, seconds: float = 300) -> str:
    """Runs Python in the scorer's folder; returns what it printed. A test fails with that, if the scorer fails."""
    call = [str(PYTHON), *map(str, arguments)]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ended = subprocess.run(
        call, cwd=folder, env={**os.environ, **quiet, **(env or {})}, capture_output=True, text=True, timeout=seconds
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-6000:]
    return said
