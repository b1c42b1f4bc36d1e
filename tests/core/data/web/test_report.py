"""data stats and data view: the figures are those of the logs, and the report is whole and harmless."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from duogen_core.cli import main
from tests.core.web_pages import file, page, photo, recipe, screenshot, site


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    evil = recipe("a.png").replace("Put", "<b>Mail jo@example.com &lt;script>alert(1)&lt;/script></b> Put")
    bodies = {
        "evil.html": evil.replace("<title>How", "<title>&lt;img src=x onerror=alert(2)&gt; How"),
        "good.html": recipe("a.png", "a.png", "b.png", "tiny.png", "gone.png"),
        "text.html": page("<p>only text, no picture"),
        "none.html": recipe("gone.png", "b.png").replace("b.png", "tiny.png"),
    }
    pictures = {"a.png": file(photo()), "b.png": file(screenshot()), "tiny.png": file(photo(20, 20))}
    site(place / "site", bodies, pictures)
    assert main(["data", "web", str(place / "site"), "--out", str(place / "out"), "--workers", "1", "--quiet"]) == 0
    return place / "out"


def test_the_figures(run, tmp_path, capsys):
    assert main(["data", "stats", str(run), "--json", str(tmp_path / "s.json")]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["pages"] == {"in": 4, "kept": 2, "refused": {"text_only": 1, "no_picture_left": 1}}
    refused = {"missing": 2, "icon": 2, "duplicate": 1}
    classes = {"photo": 2, "screenshot": 1}
    assert found["pictures"] == {"in": 8, "kept": 3, "refused": refused, "classes": classes}
    assert found["personal_data_removed"] == {"email": 2}
    table = capsys.readouterr().out
    assert re.search(r"^pages +4 +100\.0%$", table, re.MULTILINE)
    assert re.search(r"^  text_only +-1 +25\.0%$", table, re.MULTILINE)


def test_the_plot(run, tmp_path):
    assert main(["data", "stats", str(run), "--plot", str(tmp_path / "s.png")]) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_every_rule_and_is_harmless(run, tmp_path, capsys):
    assert main(["data", "view", str(run), "--out", str(tmp_path / "r.html"), "--quiet"]) == 0
    html = (tmp_path / "r.html").read_text("utf-8")
    for summary in (
        "kept: 2 shown",
        "text_only: 1 shown",
        "no_picture_left: 1 shown",
        "icon: 2 shown",
        "kept: 3 shown",
    ):
        assert f"<summary>{summary}</summary>" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "[email]" in html
    assert not re.search(r"<script|<img src=x|<iframe|<link|https?://(?!a\.)", html)
    assert set(re.findall(r'src="([^,]*),', html)) == {"data:image/jpeg;base64"}
    assert "default-src 'none'" in html


def test_no_more_samples_than_asked_for(run, tmp_path):
    main(["data", "view", str(run), "--out", str(tmp_path / "r.html"), "--samples", "1", "--pages", "0", "--quiet"])
    html = (tmp_path / "r.html").read_text("utf-8")
    assert set(re.findall(r"<summary>\w+: (\d+) shown", html)) == {"1"}


@pytest.mark.parametrize("what", ["stats", "view"])
def test_a_run_without_a_finished_shard_gets_a_sentence(run, tmp_path, capsys, what):
    shutil.copytree(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "logs")
    assert main(["data", what, str(tmp_path / "out")]) == 2
    assert "has no finished shard yet" in capsys.readouterr().err
    assert main(["data", what, str(tmp_path)]) == 2
    assert "holds no run.json" in capsys.readouterr().err
