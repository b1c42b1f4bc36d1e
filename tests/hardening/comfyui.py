"""In a real ComfyUI: fifty runs in one server, kill -9 of servers that draw, full disks, hostile values in our nodes.

- runs: `comfyui_runs.py`.
- kills: a server is killed at a random moment of an answer of several pictures. Every picture that the next node had
  been given must be readable in a document of output/; the server starts again with what is left; nothing there is half
  written; Load Document can read it.
- disks: output/ is a tmpfs that has room for a part of the answer. The node fails with a sentence; nothing is half
  written; with room again, the same server answers.
- values: API-format workflows whose widgets hold what nobody would type, whose sockets are wired wrongly or not at all,
  and whose documents were made by generators. Each is refused by ComfyUI when it is queued, fails with a sentence of
  ours on the node, or runs; nothing is written outside output/ and temp/. Files in input/, output/ and models/ have
  names with control and right-to-left characters meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.hardening import mutations, whole
from tests.hardening.sentences import CONTROL
from tests.hardening.zygote import ROOT

sys.path.append(str(ROOT / "tests" / "comfyui"))  # server, graphs: plain modules beside their tests

KILLS, DISKS, VALUES = 15, 8, 180  # for 50 runs
PICTURES = 6


@dataclass
class Score:
    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def campaign(number: int, seed: int = 0, names: Sequence[str] = (), show: Any = lambda _: None) -> list[Score]:
    """number: of the runs in one server; kills and hostile values in proportion."""
    import server

    if server.find_comfyui() is None:
        print("No ComfyUI here; set COMFYUI_PATH to one.", flush=True)
        return []
    parts = {"runs": runs, "kills": kills, "disks": disks, "values": values}
    scores = []
    for name, part in parts.items():
        if not names or name in names:
            scores.append(part(number, seed))
            show(scores[-1])
    return scores


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
            """DuoGen Interleave, and the loop with the stock KSampler, in turn."""
            request, prefix = "Draw a red star.", f"kills/{seed}"
            if seed % 2 == 0:
                return graphs.answer("random", request, prefix=prefix, seed=seed, max_images=PICTURES, steps=100)
            looped = graphs.loop("random", request, prefix=prefix, max_images=PICTURES)
            looped["3"]["inputs"]["seed"] = seed
            looped["p.sample"]["inputs"]["steps"] = 100
            return looped

        def started() -> Any:
            return server.Server(server.find_comfyui(), base).wait()

        running, lengths = started(), []
        running.run(graph(1000))  # loads everything
        for seed in (1002, 1001):
            begun = time.monotonic()
            running.run(graph(seed))
            lengths.append(time.monotonic() - begun)
        finished_at_kills = late = 0
        for k in range(wanted):
            moment, before = (k + rng.random()) / wanted, {path: path.stat().st_mtime_ns for path in documents(base)}
            finished = []  # pictures that the loop had gone on from

            def watch(kind: str, data: Any, result: Any, finished: list = finished) -> None:
                if kind == "executing" and data.get("node"):
                    finished[:] = [sum(node.endswith("append") for node in result.ran[:-1])]

            thread = threading.Thread(target=quietly, args=(running, graph(k), watch), daemon=True)
            thread.start()
            time.sleep(moment * lengths[k % 2])
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
        "seconds": [round(length, 1) for length in lengths],
        "finished_pictures": finished_at_kills,
    }
    return score


def quietly(server: Any, graph: dict[str, Any], watch: Any) -> None:
    with contextlib.suppress(Exception):  # the connection ends with the server
        server.run(graph, watch=watch, seconds=120)


def documents(base: Path) -> list[Path]:
    return sorted((base / "output").rglob("document.json"))


def pictures_of(path: Path) -> int:
    from duogen_core.document.reading import load_document
    from duogen_core.errors import DuoGenError

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


# ---------------------------------------------------------------- full disks


def disks(number: int, seed: int = 0) -> Score:
    import graphs
    import random_checkpoint
    import server

    from tests.hardening.disk import can_mount

    rng, score, wanted = random.Random(f"{seed} disks"), Score("disks"), max(1, number * DISKS // 50)
    score.figures = {"disks": 0, "failed": 0, "ran": 0}
    if not can_mount():
        return score
    with tempfile.TemporaryDirectory(prefix="duogen-comfyui-") as folder:
        base = Path(folder)
        (base / "models" / "duogen").mkdir(parents=True)
        random_checkpoint.write(base / "models" / "duogen" / "random")
        running = server.Server(server.find_comfyui(), base).wait()

        def graph(seed: int) -> dict[str, Any]:
            size = {"width": 256, "height": 256}
            return graphs.answer("random", "Draw.", prefix=f"disks/{seed}", seed=seed, max_images=3, steps=1, **size)

        def mount(*options: str) -> None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", base / "output"], check=True)

        running.run(graph(1000))
        size = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.files(base / "output"))
        for k in range(wanted):
            part = (k + rng.random()) / wanted
            mount(f"size={max(4096, int(part * size) // 4096 * 4096)}")
            try:
                where, result = f"room for {part:.2f} of an answer", running.run(graph(k), seconds=120)
                score.figures["disks"] += 1
                score.figures["failed" if result.error else "ran"] += 1
                if result.error and (said := no_sentence(result.error)):
                    score.faults.append(f"{where}: {said}")
                score.faults += [f"{where}: half written: {line}" for line in whole.broken(base / "output")]
                mount("remount", "size=1g")
                again = running.run(graph(2000 + k), seconds=120)
                if again.error:
                    score.faults.append(f"{where}, then with room: {again.error['exception_message'][:300]!r}")
                score.faults += [f"{where}: {path} is left over" for path in whole.left_over(base / "output")]
            finally:
                subprocess.run(["umount", "-l", base / "output"], check=True)
        running.stop()
    return score


# ---------------------------------------------------------------- hostile values


def no_sentence(error: dict[str, Any]) -> str:
    """Why a node's error is not a sentence of ours; empty if it is one."""
    kind, message = error["exception_type"], error["exception_message"]
    if kind.rpartition(".")[2] not in error_names():
        return f"{kind}: {message[:300]!r}"
    if "\n" in message.strip() or CONTROL.search(message) or len(message) > 2200:
        return f"a message that is no sentence, {message[:300]!r}"
    return ""


def values(number: int, seed: int = 0) -> Score:
    import graphs
    import random_checkpoint
    import server

    score, wanted = Score("values"), max(4, number * VALUES // 50)
    ends = {"refused": 0, "failed": 0, "ran": 0}
    with tempfile.TemporaryDirectory(prefix="duogen-comfyui-") as folder:
        base = Path(folder)
        (base / "models" / "duogen").mkdir(parents=True)
        random_checkpoint.write(base / "models" / "duogen" / "random")
        named = write_names(base)
        running = server.Server(server.find_comfyui(), base).wait()
        for path in named:
            if said := not_loaded(running, base, path / "document.json"):
                score.faults.append(f"a document called {path.name!r}: {said}")
        before = outside(base)
        for k in range(wanted):
            rng = random.Random(f"{seed} values {k}")
            graph = (
                graphs.answer("random", "Draw.", prefix="values/a", max_images=1, steps=1, max_tokens=20),
                graphs.staged("random", "Draw.", pictures=1, prefix="values/b"),
                graphs.loop("random", "Draw.", prefix="values/c", max_images=1, max_tokens=20),
            )[k % 3]
            if k % 4 < 2:
                changed = hostile(graph, rng, k)
            elif k % 4 == 2:
                changed = rewired(graph, rng)
            else:
                graph, changed = loading(base, rng, k)
                before |= {str(path) for path in (base / "input").glob("hostile-*.zip")}
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
            ends["failed" if result.error else "ran"] += 1
            if result.error and (said := no_sentence(result.error)):
                score.faults.append(f"{k}, {changed}: {result.error['node_type']}: {said}")
        score.faults += [f"changed outside output/ and temp/: {each}" for each in sorted(outside(base) ^ before)]
        made = {base / "output" / "values", base / "output" / "duogen"}
        score.faults += [f"half written: {line}" for path in made for line in whole.broken(path)]
        running.stop()
    score.figures = {"cases": wanted, **ends}
    return score


def write_names(base: Path) -> list[Path]:
    """Documents in output/ whose names a file system takes; the same names for files of other kinds elsewhere."""
    from duogen_core.document.store import save_document
    from tests.core.sample_sets import guide
    from tests.hardening.hostile_inputs import encoded

    found = []
    for name in (
        "\x1b[31mred\x1b[0m",
        "\u202egnp.exe",
        "a\nb",
        "-rf",
        "'\".png",
        "<img src=x onerror=alert(1)>",
        "%s%n",
    ):
        for place in ("input", "models/duogen", "models/vae"):
            (base / place).mkdir(parents=True, exist_ok=True)
            (base / place / f"{name}.png").write_bytes(encoded("PNG"))
            (base / place / f"{name}.safetensors").write_bytes(b"no weights")
        found.append(save_document(guide(1), base / "output" / "names" / name))
    return found


def rewired(graph: dict[str, Any], rng: random.Random) -> str:
    """A socket of one of our nodes gets a value in place of a link, another link, or nothing."""
    found = [
        (key, name)
        for key, node in sorted(graph.items())
        if node["class_type"].startswith("DuoGen")
        for name, each in node["inputs"].items()
        if isinstance(each, list)
    ]
    key, name = rng.choice(found)
    what = f"{graph[key]['class_type']}.{name}"
    how = rng.randrange(3)
    if how == 0:
        del graph[key]["inputs"][name]
        return f"{what} is not wired"
    if how == 1:
        graph[key]["inputs"][name] = [rng.choice(sorted(graph)), rng.choice((0, 1, 2, 3, 40, -1))]
        return f"{what} is wired to {graph[key]['inputs'][name]}"
    graph[key]["inputs"][name] = rng.choice(
        (None, True, 7, -1.5, "a", "", {}, {"a": 1}, [], [1], ["a"], [[1, 2], [3, 4]])
    )
    return f"{what} = {graph[key]['inputs'][name]!r}"


def loading(base: Path, rng: random.Random, k: int) -> tuple[dict[str, Any], str]:
    """Load Document gets a folder or a zip that a generator made, and the rest of the graph goes on with it."""
    import shutil

    from tests.hardening.hostile_inputs import DOCUMENT, document_folder

    place = base / "output" / "hostile" / str(k)
    with mutations.deep_values():
        document_folder(place, mutations.mutated(DOCUMENT, rng, rng.choice((1, 1, 2))), rng)
    name = f"hostile/{k} [output]"
    if rng.random() < 0.4:
        data = Path(shutil.make_archive(str(base / "temp" / f"hostile-{k}"), "zip", place)).read_bytes()
        path = base / "input" / f"hostile-{k}.zip"
        path.write_bytes(data if rng.random() < 0.5 else mutations.flipped(data, rng))
        name = f"{path.name} [input]"
    graph = {
        "1": {"class_type": "DuoGenLoadDocument", "inputs": {"document": name}},
        "2": {"class_type": "DuoGenFormat", "inputs": {"context": ["1", 0], "part": "conversation"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "DuoGenPreview", "inputs": {"context": ["1", 0], "part": "conversation"}},
        "5": {"class_type": "DuoGenSaveDocument", "inputs": {"context": ["1", 0], "filename_prefix": "values/d"}},
    }
    return graph, f"the document {name}"


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


@lru_cache
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
