"""Every engine with Ray Data on a cluster of two workers, one of which is killed in the middle: the same bytes as in
this process, also for a run that was begun here, and when a whole machine is lost; and its errors.

One cluster on loopback serves all tests. Language models and painters are scripted servers on loopback.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs import workers as workers_
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, work
from duogen_core.data.web.engine import WebEngine
from duogen_core.errors import DuoGenError
from tests.core.clips import scene, write_video
from tests.core.comfyui_server import comfyui_server
from tests.core.dedup_pages import Planted
from tests.core.dialogue_pages import write_pages
from tests.core.endpoint_server import endpoint_server
from tests.core.scripted_writer import Writer
from tests.core.synthetic_plans import write_plans
from tests.core.synthetic_writer import write_taxonomy, writing_server
from tests.core.web_pages import page, recipe, site

RAY = "--backend", "ray", "--workers", 2


@pytest.fixture(scope="module")
def cluster():
    """A head and two workers of one core, which stay for all tests: starting them takes longer than any of these."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    workers_._ray()
    from ray.cluster_utils import Cluster

    root, small = str(Path(__file__).parents[4]), {"object_store_memory": workers_.STORE_BYTES}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        made.add_node(num_cpus=1, **small)
    env = {"env_vars": {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}}
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR", runtime_env=env)
    yield made
    ray.shutdown()
    made.shutdown()


def ray_workers() -> dict[int, str]:
    """The actors of Ray Data that descend from this process: process id -> what Ray says that it does."""
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_text(errors="replace")
            if command.startswith("ray::MapWorker"):
                found[int(place.name)] = command

    def is_mine(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return {process: command for process, command in found.items() if is_mine(process)}


@contextmanager
def one_worker_killed(begun: Callable[[], int]) -> Iterator[list[int]]:
    """Kills a worker when something is done, a busy one rather than one that waits. Yields what was done then."""
    done: list[int] = []
    left = threading.Event()

    def watch() -> None:
        while not left.is_set():
            known = ray_workers()
            now = time.monotonic()
            while known and not left.is_set() and time.monotonic() - now < 0.3:
                if count := begun():
                    busy = [process for process in known if ".submit" in ray_command(process)]
                    with suppress(OSError):
                        os.kill((busy or list(known))[0], signal.SIGKILL)
                        done.append(count)
                        return
                time.sleep(0.002)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield done
    finally:
        left.set()
        watcher.join()


def ray_command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def logs_in(out: Path) -> Callable[[], int]:
    return lambda: len(list(out.glob("logs/*.jsonl")))


def data(*arguments: object) -> int:
    return main(["data", *map(str, arguments), "--quiet"])


def results(out: Path) -> dict[str, bytes]:
    """All that may not differ between two runs."""
    files = [file for name in ("shards", "logs") for file in sorted(out.rglob(f"{name}/*"))]
    files += [out / name for name in ("requests.jsonl", "plans.jsonl") if (out / name).exists()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def same(tmp_path: Path, count: int, *command: object) -> None:
    """The command here and with Ray. count: files that both write."""
    assert data(*command, "--out", tmp_path / "local") == 0
    with one_worker_killed(logs_in(tmp_path / "ray")) as done:
        assert data(*command, "--out", tmp_path / "ray", *RAY) == 0
    assert done and done[0] < logs_in(tmp_path / "local")()
    found = results(tmp_path / "ray")
    assert found == results(tmp_path / "local") and len(found) == count
    assert not list((tmp_path / "ray").glob(f"*{workers_.PART}")) and not list((tmp_path / "ray").glob(".*"))


@pytest.fixture
def pages(tmp_path) -> Path:
    bodies = {f"p{k}.html": recipe("a.png", "b.png").replace("Bread", f"Bread {k}") for k in range(11)}
    return site(tmp_path / "site", {**bodies, "text.html": page("<p>only text")})


@pytest.mark.slow
def test_web_goes_on_with_a_local_run(cluster, pages, tmp_path, capsys):
    data("web", pages, "--out", tmp_path / "local", "--workers", 1, "--shard-pages", 2)
    with_ray = tmp_path / "ray"
    engine = WebEngine(load_preset("web"), [str(pages)], with_ray)
    begun = work(begin(with_ray, engine, 2), engine)
    for _ in range(3):  # the first shard here, the others with Ray
        next(begun)
    begun.close()
    before = (with_ray / "logs" / "00000.jsonl").stat().st_mtime_ns
    logs = logs_in(with_ray)
    with one_worker_killed(lambda: logs() if logs() > 1 else 0) as done:
        assert data("web", pages, "--out", with_ray, "--shard-pages", 2, *RAY) == 0
    assert done and done[0] < 6
    assert (with_ray / "logs" / "00000.jsonl").stat().st_mtime_ns == before
    assert results(with_ray) == results(tmp_path / "local") and len(results(with_ray)) == 12
    assert "11 documents with 22 images from 12 pages (2 done before)" in capsys.readouterr().out


@pytest.mark.slow
def test_web_when_a_whole_machine_is_lost(cluster, pages, tmp_path):
    third = cluster.add_node(num_cpus=1, object_store_memory=workers_.STORE_BYTES)
    data("web", pages, "--out", tmp_path / "local", "--workers", 1, "--shard-pages", 1)
    engine = WebEngine(load_preset("web"), [str(pages)], tmp_path / "ray")
    entries = work(begin(tmp_path / "ray", engine, 1), engine, workers=3, backend="ray")
    next(entries)
    cluster.remove_node(third, allow_graceful=False)
    assert 1 + len(list(entries)) == 12
    assert results(tmp_path / "ray") == results(tmp_path / "local")


@pytest.mark.slow
def test_dedup(cluster, tmp_path):
    run = Planted(3, 80)
    list(work(begin(tmp_path / "run", run, 20), run))
    same(tmp_path, 16, "dedup", tmp_path / "run", "--shard-documents", 10)


@pytest.mark.slow
def test_dialogues(cluster, tmp_path, capsys):
    pages = write_pages(tmp_path / "web", 4)
    with endpoint_server(Writer()) as server:
        command = ["dialogues", pages, "--base-url", server.url, "--model", "tiny", "--shard-documents", 1]
        same(tmp_path, 8, *command)
        asked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Asked: ")]
        assert len(asked) == 2 and "24 answers" not in asked[1] and "0 requests" not in asked[1]
        (tmp_path / "ray" / "logs" / "00002.jsonl").unlink()
        assert data(*command, "--out", tmp_path / "ray") == 0  # every answer of the workers is in the recording
        assert "Asked: 0 requests" in capsys.readouterr().out
    assert results(tmp_path / "ray") == results(tmp_path / "local")


@pytest.mark.slow
def test_video(cluster, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    for seed, step in ((1, 2), (2, 0), (3, 2), (4, 2)):
        write_video(tmp_path / "clips" / f"{seed}.mp4", scene(seed, 30, step))
    same(tmp_path, 8, "video", tmp_path / "clips", "--undescribed", "--shard-videos", 1)


@pytest.mark.slow
def test_editing(cluster, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[hf]'")
    from tests.core.data.pairs.test_editing import ROWS, write

    rows = [{**ROWS["ultraedit"], "edit_prompt": f"edit {k}"} for k in range(12)]
    same(tmp_path, 24, "editing", "ultraedit", write(tmp_path / "set.parquet", rows), "--shard-samples", 1)


@pytest.mark.slow
def test_synthetic_steps_that_ask(cluster, tmp_path):
    taxonomy = write_taxonomy(tmp_path / "taxonomy")
    with writing_server() as server:
        common = ["--taxonomy", taxonomy, "--endpoint", server.url, "--llm", "tiny"]
        for step in (["expand", "--count", 4], ["plan"]):
            before = len(server.asked)
            assert data("synthetic", step[0], tmp_path / "local", *step[1:], *common) == 0
            needed, before = len(server.asked) - before, len(server.asked)
            with one_worker_killed(lambda before=before: len(server.asked) - before) as done:
                assert data("synthetic", step[0], tmp_path / "ray", *step[1:], *common, *RAY) == 0
            assert done and done[0] < needed
    found = results(tmp_path / "ray")
    assert found == results(tmp_path / "local") and len(found) == 4
    answers = [set((tmp_path / out / "plan" / "answers.jsonl").read_bytes().splitlines()) for out in ("local", "ray")]
    assert answers[0] == answers[1] and len(answers[0]) == 12


@pytest.mark.slow
def test_synthetic_draw(cluster, tmp_path):
    from tests.core.data.synthetic.test_draw import comfyui_arguments

    planned = write_plans(tmp_path / "run")
    with comfyui_server() as server:
        same(tmp_path, 6, *comfyui_arguments(planned, server.url)[1:])
    assert not list((tmp_path / "ray" / "drawn").iterdir())


@pytest.mark.slow
def test_synthetic_answer(cluster, tmp_path):
    from duogen_core.checkpoint import save_checkpoint
    from tests.core.tiny import random_components

    model, planned = save_checkpoint(random_components(), tmp_path / "model"), write_plans(tmp_path / "run")
    few = "--max-tokens", 2, "--limit", 3, "--shard", 1
    same(tmp_path, 6, "synthetic", "answer", planned, "--model", model, *few)


# ---------------------------------------------------------------- what goes wrong


class Failing(Engine):
    kind = "failing"

    def identity(self):
        return {}

    def items(self):
        return range(3)

    def do(self, item):
        if item == 1:
            raise DuoGenError("The disk is full.")
        return Outcome({"kept": True})


def test_what_goes_wrong_in_a_worker_comes_back_as_a_sentence(tmp_path):
    from functools import partial

    from duogen_core.data.runs.run import ShardWorker

    engine = Failing()
    run = begin(tmp_path / "out", engine, 1)
    stage = workers_.RayWorker(partial(ShardWorker, run, engine, 1))
    assert json.loads(stage({"value": "2"})["result"])["shard"] == 2 and run.is_done(2)
    assert stage({"value": "1"}) == {"result": "", "error": "The disk is full."} and not run.is_done(1)


@pytest.mark.parametrize("command", [("web", "site"), ("editing", "ultraedit", "set.parquet")])
def test_without_ray_there_is_a_sentence(pages, tmp_path, monkeypatch, capsys, command):
    from tests.core.data.pairs.test_editing import ROWS, write

    write(tmp_path / "set.parquet", [ROWS["ultraedit"]])
    monkeypatch.chdir(tmp_path)
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "ray" or name.startswith("ray."):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert data(*command, "--out", tmp_path / "out", "--backend", "ray") == 2
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
