"""The Ray back end: the same bytes as the local one, also for a run that was begun by the other, and its errors."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.data.web import ray_backend
from duogen_core.data.web.plan import begin
from duogen_core.data.web.preset import load_preset
from duogen_core.data.web.run import work
from duogen_core.errors import DuoGenError
from tests.core.web_pages import page, recipe, site


def web(*arguments: object) -> int:
    return main(["data", "web", *map(str, arguments), "--quiet"])


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in ("shards", "logs") for path in sorted((out / name).iterdir())}


@pytest.fixture
def pages(tmp_path) -> Path:
    bodies = {f"p{k}.html": recipe("a.png", "b.png").replace("Bread", f"Bread {k}") for k in range(5)}
    return site(tmp_path / "site", {**bodies, "text.html": page("<p>only text")})


@pytest.mark.slow
def test_ray_writes_the_same_bytes_and_goes_on_with_a_local_run(pages, tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    web(pages, "--out", tmp_path / "local", "--workers", 1, "--shard-pages", 2)
    with_ray = tmp_path / "ray"
    begun = work(begin(with_ray, [str(pages)], load_preset(), 2))
    next(begun)  # the first shard here, the others with Ray
    begun.close()
    done = (with_ray / "logs" / "00000.jsonl").stat().st_mtime_ns
    assert web(pages, "--out", with_ray, "--workers", 2, "--shard-pages", 2, "--backend", "ray") == 0
    assert not ray.is_initialized()
    assert (with_ray / "logs" / "00000.jsonl").stat().st_mtime_ns == done
    assert results(with_ray) == results(tmp_path / "local") and len(results(with_ray)) == 6
    assert "5 documents with 10 pictures from 6 pages (2 done before)" in capsys.readouterr().out


def test_what_goes_wrong_in_a_worker_comes_back_as_a_sentence(pages, tmp_path, monkeypatch):
    run = begin(tmp_path / "out", [str(pages)], load_preset(), 2)
    places = [place for place, _ in run.places()]
    assert [run.shard_at(place) for place in places] == list(run.plan())
    stage = ray_backend.ShardStage(str(run.folder))
    try:
        assert json.loads(stage({"place": places[2]})["found"])["kept"] == 1 and run.is_done(2)

        def fails(*_):
            raise DuoGenError("The disk is full.")

        monkeypatch.setattr(ray_backend, "do_shard", fails)
        assert stage({"place": places[0]}) == {"found": "", "error": "The disk is full."}
    finally:
        stage.engine.decoder.close()


def test_without_ray_there_is_a_sentence(pages, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "ray" or name.startswith("ray."):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert web(pages, "--out", tmp_path / "out", "--backend", "ray") == 2
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
