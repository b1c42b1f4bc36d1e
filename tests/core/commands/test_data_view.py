"""data view on a run of any engine: documents, entries by rule, and nothing in it that a browser would run or load."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from duogen_core.cli import main
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, work
from duogen_core.data.synthetic.drawing import DrawEngine
from duogen_core.data.synthetic.painter import Painter, PainterError
from duogen_core.data.synthetic.planning import Plan
from tests.core.synthetic_plans import entries, write_plans

EVIL = "<script>alert(1)</script><img src=http://evil.example/x>"


class Noise(Painter):
    """Refuses the second document, with a sentence of a server's."""

    def identity(self):
        return {"painter": EVIL}

    def paint(self, wanted):
        if wanted.seed == 100:
            raise PainterError(f"{EVIL} broke.")
        return np.random.default_rng(wanted.seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path) -> Path:
    """Two steps: one without documents, one with four of them and a refused entry."""
    folder = tmp_path / "run"
    (folder / "expand" / "logs").mkdir(parents=True)
    (folder / "expand" / "run.json").write_text(json.dumps({"format": "duogen-synthetic-expand-run"}))
    lines = [{"stage": "requests", "text": f"{EVIL} {k}", "kept": k % 2 == 0} for k in range(6)]
    lines = [{**line, **({} if line["kept"] else {"rule": "link", "value": EVIL})} for line in lines]
    (folder / "expand" / "logs" / "00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plans = entries()
    steps = (replace(plans[0].plan.steps[0], text=f"First {EVIL}", picture=f"Prompt {EVIL}"), *plans[0].plan.steps[1:])
    plans[0] = replace(plans[0], plan=Plan(steps))
    file = write_plans(tmp_path / "plans", plans) / "plans.jsonl"
    engine = DrawEngine(file, load_preset("synthetic"), Noise, folder / "draw" / "drawn")
    assert len(list(work(begin(folder / "draw", engine, 2), engine))) == 5
    return folder


def view(run: Path, file: Path, *arguments: str) -> str:
    assert main(["data", "view", str(run), "--out", str(file), *arguments]) == 0
    return file.read_text("utf-8")


def test_every_step_is_shown(run, tmp_path, capsys):
    html = view(run, tmp_path / "r.html")
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert re.findall(r"<h2>(\w+)</h2>", html) == ["expand", "draw"]
    assert re.findall(r"<summary>(\w+): (\d+) shown", html) == [("kept", "3"), ("link", "3"), ("painter_failed", "1")]
    assert "Documents: 4 of 4" in html and html.count("<img ") == 12
    assert entries()[2].plan.steps[1].picture in html and entries()[3].request.text in html


def test_nothing_in_it_runs_or_loads(run, tmp_path):
    html = view(run, tmp_path / "r.html")
    assert "First &lt;script&gt;alert(1)&lt;/script&gt;" in html and "Prompt &lt;script&gt;" in html
    assert not re.search(r"<script|<img src=|<iframe|<link", html)
    assert set(re.findall(r'src="([^",]*)', html)) == {"data:image/jpeg;base64"}
    assert "default-src 'none'" in html


def test_no_more_are_shown_than_asked_for(run, tmp_path):
    html = view(run, tmp_path / "r.html", "--samples", "1")
    assert {count for _, count in re.findall(r"<summary>(\w+): (\d+) shown", html)} == {"1"}
    assert "Documents: 1 of 4" in html and html == view(run, tmp_path / "r.html", "--samples", "1")
