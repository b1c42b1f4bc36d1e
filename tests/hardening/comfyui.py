"""In a real ComfyUI: fifty runs in one server, kill -9 of servers that draw, hostile values in the nodes' widgets.

- runs: `comfyui_runs.py`.
- kills: a server is killed at a random moment of an answer of several pictures. Every picture that the next node had
  been given must be readable in a document of output/; the server starts again with what is left; nothing there is half
  written; Load Document can read it.
- values: API-format workflows whose widgets hold what nobody would type. Each is refused by ComfyUI when it is queued,
  fails with a sentence of ours on the node, or runs; nothing is written outside output/ and temp/.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import mutations, whole
from tests.hardening.zygote import ROOT

sys.path.append(str(ROOT / "tests" / "comfyui"))  # server, graphs: plain modules beside their tests

KILLS, VALUES = 15, 150  # for 50 runs
PICTURES = 6


@dataclass
class Score:
    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def campaign(number: int, seed: int = 0, names: Sequence[str] = ()) -> list[Score]:
    """number: of the runs in one server; kills and hostile values in proportion."""
    import server

    if server.find_comfyui() is None:
        print("No ComfyUI here; set COMFYUI_PATH to one.", flush=True)
        return []
    parts = {"runs": runs, "kills": kills, "values": values}
    return [part(number, seed) for name, part in parts.items() if not names or name in names]


def runs(number: int, seed: int = 0) -> Score:
    from tests.hardening import comfyui_runs

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = comfyui_runs.main(["--runs", str(number)])
    found = json.loads(said.getvalue().strip().splitlines()[-1])
    return Score("runs", found, [] if code == 0 else [f"runs in one ComfyUI: {found}"])


# ---------------------------------------------------------------- kills


def kills(number: int, seed: int = 0) -> Score:
    import graphs
    import random_checkpoint
    import server

    rng, score = random.Random(f"{seed} comfyui"), Score("kills")
    wanted = max(1, number * KILLS // 50)
    with tempfile.TemporaryDirectory(prefix="duogen-comfyui-") as folder:
        base = Path(folder)
        (base / "models" / "duogen").mkdir(parents=True)
        random_checkpoint.write(base / "models" / "duogen" / "random")

        def graph(seed: int) -> dict[str, Any]:
            return graphs.answer(
                "random", "Draw a red star.", prefix=f"kills/{seed}", seed=seed, max_images=PICTURES, steps=100
            )

        def started() -> Any:
            return server.Server(server.find_comfyui(), base).wait()

        running = started()
        running.run(graph(1000))  # loads everything
        begun = time.monotonic()
        running.run(graph(1001))
        length = time.monotonic() - begun
        finished_at_kills = late = 0
        for k in range(wanted):
            moment, before = (k + rng.random()) / wanted, {path: path.stat().st_mtime_ns for path in documents(base)}
            finished = []  # pictures that the loop had gone on from

            def watch(kind: str, data: Any, result: Any, finished: list = finished) -> None:
                if kind == "executing" and data.get("node"):
                    finished[:] = [sum(node.endswith("append") for node in result.ran[:-1])]

            thread = threading.Thread(target=quietly, args=(running, graph(k), watch), daemon=True)
            thread.start()
            time.sleep(moment * length)
            late += not thread.is_alive()
            seen = finished[0] if finished else 0
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
            thread.join(30)
            where = f"killed at {moment:.2f} of the run"
            score.faults += [f"{where}: half written: {line}" for line in whole.broken(base / "output")]
            new = [path for path in documents(base) if path.stat().st_mtime_ns != before.get(path)]
            found = max((pictures_of(path) for path in new), default=0)
            finished_at_kills += seen
            if found < seen:
                score.faults.append(f"{where}: {seen} pictures were finished, {found} can be read")
            running = started()
            for path in new:
                if said := not_loaded(running, base, path):
                    score.faults.append(f"{where}: {path.relative_to(base)}: {said}")
        running.stop()
        score.faults += [f"{path} is left over" for path in whole.left_over(base / "output")]
    score.figures = {
        "kills": wanted - late,
        "late": late,
        "seconds": round(length, 1),
        "finished_pictures": finished_at_kills,
    }
    return score


def quietly(server: Any, graph: dict[str, Any], watch: Any) -> None:
    with contextlib.suppress(Exception):  # the connection ends with the server
        server.run(graph, watch=watch, seconds=120)


def documents(base: Path) -> list[Path]:
    return sorted((base / "output").rglob("document.json"))


def pictures_of(path: Path) -> int:
    from duogen_core.errors import DuoGenError
    from duogen_core.store import load_document

    try:
        return len(load_document(path).pictures)
    except DuoGenError:
        return -1


def not_loaded(server: Any, base: Path, path: Path) -> str:
    """Why Load Document cannot read a document of the output folder; empty if it can."""
    choices = server.get("/object_info/DuoGenLoadDocument")["DuoGenLoadDocument"]["input"]["required"]["document"]
    options = choices[0] if isinstance(choices[0], list) else choices[1]["options"]
    name = path.parent.relative_to(base / "output").as_posix()
    listed = [option for option in options if name in option]
    if not listed:
        return f"Load Document does not list it among {len(options)}"
    graph = {
        "1": {"class_type": "DuoGenLoadDocument", "inputs": {"document": listed[0]}},
        "2": {"class_type": "DuoGenFormat", "inputs": {"context": ["1", 0], "part": "conversation"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    result = server.run(graph)
    return result.error["exception_message"] if result.error else ""


# ---------------------------------------------------------------- hostile values


def values(number: int, seed: int = 0) -> Score:
    import graphs
    import random_checkpoint
    import server

    from tests.hardening.sentences import CONTROL

    score, wanted = Score("values"), max(3, number * VALUES // 50)
    ours, ends = error_names(), {"refused": 0, "failed": 0, "ran": 0}
    with tempfile.TemporaryDirectory(prefix="duogen-comfyui-") as folder:
        base = Path(folder)
        (base / "models" / "duogen").mkdir(parents=True)
        random_checkpoint.write(base / "models" / "duogen" / "random")
        running = server.Server(server.find_comfyui(), base).wait()
        before = outside(base)
        for k in range(wanted):
            rng = random.Random(f"{seed} values {k}")
            graph = (
                graphs.answer("random", "Draw.", prefix="values/a", max_images=1, steps=1, max_tokens=20),
                graphs.staged("random", "Draw.", pictures=1, prefix="values/b"),
                graphs.loop("random", "Draw.", prefix="values/c", max_images=1, max_tokens=20),
            )[k % 3]
            changed = hostile(graph, rng, k)
            try:
                result = running.run(graph, seconds=90)
            except RuntimeError as error:  # /prompt answered 400
                ends["refused"] += 1
                if not str(error).startswith("/prompt: 400"):
                    score.faults.append(f"{k}, {changed}: {str(error)[:300]}")
                continue
            except Exception as error:
                score.faults.append(f"{k}, {changed}: {type(error).__name__} {error}")
                running.stop()
                running = server.Server(server.find_comfyui(), base).wait()
                continue
            if result.error is None:
                ends["ran"] += 1
                continue
            ends["failed"] += 1
            kind, message = result.error["exception_type"], result.error["exception_message"]
            if kind.rpartition(".")[2] not in ours:
                score.faults.append(f"{k}, {changed}: {kind}: {message[:300]!r}")
            elif "\n" in message.strip() or CONTROL.search(message) or len(message) > 2200:
                score.faults.append(f"{k}, {changed}: a message that is no sentence, {message[:300]!r}")
        score.faults += [f"changed outside output/ and temp/: {each}" for each in sorted(outside(base) ^ before)]
        score.faults += [f"half written: {line}" for line in whole.broken(base / "output")]
        running.stop()
    score.figures = {"cases": wanted, **ends}
    return score


def hostile(graph: dict[str, Any], rng: random.Random, k: int) -> str:
    """Puts a hostile value into a widget of one of our nodes; which and what."""
    found = [
        (key, name)
        for key, node in sorted(graph.items())
        if node["class_type"].startswith("DuoGen")
        for name, each in node["inputs"].items()
        if not isinstance(each, list)
    ]
    key, name = found[k % len(found)] if k < 2 * len(found) else rng.choice(found)
    before = graph[key]["inputs"][name]
    choices: tuple = (*mutations.TEXTS, *mutations.NAMES) if isinstance(before, str) else mutations.NUMBERS
    value = rng.choice(choices) if rng.random() < 0.8 else mutations.value(rng)
    while mutations.depth(value) > 100:  # ComfyUI's own worker ends with a RecursionError, whatever node has the widget
        value = mutations.value(rng)
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        value = str(value)  # no JSON
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
    graph[key]["inputs"][name] = value
    return f"{graph[key]['class_type']}.{name} = {repr(value)[:80]}"


def error_names() -> set[str]:
    from duogen_core.errors import DuoGenError

    found, rest = set(), [DuoGenError]
    for module in ("checkpoint", "weights", "render.pdf", "mllm.chat", "vae"):
        with contextlib.suppress(ImportError):
            __import__(f"duogen_core.{module}")
    while rest:
        each = rest.pop()
        found.add(each.__name__)
        rest += each.__subclasses__()
    return found


def outside(base: Path) -> set[str]:
    skip = ("output", "temp", "user", "server.log", "__pycache__")
    paths = [base.parent / each for each in ("values", "outside.png")] + list(base.rglob("*"))
    return {
        str(path)
        for path in paths
        if path.exists() and not any(part in skip for part in path.relative_to(base.parent).parts)
    }
