"""The page for people who rate: what is in it, and, in a real Chromium, keys, buttons, going on and the saved file."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections import Counter

import pytest

from duogen_core.cli import main
from duogen_core.document.store import save_document
from duogen_core.evaluation.answer_sets import open_answers
from duogen_core.evaluation.rating_page import make_page, pairs_by_chance
from duogen_core.evaluation.ratings import read_ratings
from tests.core.evaluation.pairs import HOSTILE, answer, write_answers

IDS = [f"r{number}" for number in range(12)]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    found = []
    for number, model in enumerate(("alpha", "beta", HOSTILE)):
        file = write_answers(
            folder / str(number), model, IDS, lambda k: {"image quality": 3, "ended": 1}, seed=50 * number
        )
        found.append(open_answers(file))
    return found


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_pairs_are_by_chance_and_every_two_models_have_as_many(sets):
    chosen = pairs_by_chance(sets, 12, 0)
    met = Counter(frozenset((left.name, right.name)) for _, left, right in chosen)
    assert sorted(met.values()) == [4, 4, 4]
    order = [{left.name, right.name} for _, left, right in chosen]
    assert any(one != later for one, later in zip(order, order[3:]))  # the models do not take turns
    assert chosen == pairs_by_chance(sets, 12, 0) != pairs_by_chance(sets, 12, 1)
    sides = Counter(left.name for _, left, _ in pairs_by_chance(sets[:2], None, 0))
    assert sum(sides.values()) == 12 and 2 < sides["alpha"] < 10
    assert len({id for id, _, _ in pairs_by_chance(sets[:2], None, 0)}) == 12


def test_the_page_does_not_say_whose_answers_they_are(sets, tmp_path):
    page, key, count = make_page(sets[:2], tmp_path, count=5, metrics=("image quality",))
    text, value = page.read_text("utf-8"), json.loads(key.read_text("utf-8"))
    data = data_of(text)
    assert count == len(value["pairs"]) == len(data["pairs"]) == 5 and data["page"] == value["page"]
    assert set(data) == {"page", "benchmark", "metrics", "pairs"} and set(data["pairs"][0]) == {
        "request",
        "left",
        "right",
    }
    assert "item" not in json.dumps(data["pairs"])
    for shown, pair in zip(data["pairs"], value["pairs"]):
        for side in ("left", "right"):  # the answers of these tests begin with their model's name
            assert shown[side][0]["text"].startswith(f"{pair[side]} step 1 of {pair['item']}")
            assert shown[side][1]["image"].startswith("data:image/jpeg;base64,")


def test_nothing_of_a_model_ends_the_data_and_only_our_script_may_run(sets, tmp_path):
    page, _, _ = make_page(sets, tmp_path)
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script") == 2
    assert HOSTILE in json.dumps(data_of(text), ensure_ascii=False).replace('\\"', '"').replace("\\u2028", "\u2028")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script


def test_the_same_page_again_and_never_over_another_key(sets, tmp_path, capsys):
    first = [one.read_bytes() for one in make_page(sets, tmp_path, count=4)[:2]]
    assert [one.read_bytes() for one in make_page(sets, tmp_path, count=4)[:2]] == first
    places = []
    for number in (0, 1):
        for k in range(3):
            save_document(answer(f"d{k}", f"m{number}", seed=50 * number), tmp_path / f"m{number}" / f"d{k}")
        places.append(str(tmp_path / f"m{number}"))
    assert main(["evaluate", "rate", *places, "--out", str(tmp_path)]) == 2
    assert "key of another page" in capsys.readouterr().err
    assert (tmp_path / "key.json").read_bytes() == first[1]
    out = str(tmp_path / "new")
    assert main(["evaluate", "rate", *places, "--names", "x", "y", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    assert {pair["left"] for pair in json.loads((tmp_path / "new" / "key.json").read_text())["pairs"]} <= {"x", "y"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["a"], "two models or more"),
        (["a", "a"], "the same name"),
        (["a", "b", "--names", "x"], "1 names for 2"),
        (["a", "b", "--metric", "beauty"], "beauty"),
        (["a", "b", "--count", "0"], "at least 1"),
        (["a", "same"], "the same answer twice"),
    ],
)
def test_what_rate_refuses(tmp_path, monkeypatch, capsys, more, sentence):
    for folder in ("a", "b", "same"):
        save_document(answer("d", "a" if folder == "same" else folder), tmp_path / folder / "d")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "rate", *more, "--out", "out"]) == 2
    assert sentence in capsys.readouterr().err


# ------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def chromium():
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed: pip install playwright (its own browsers are not needed).")
    executable = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("No Chromium here: install the system's package chromium, or set CHROMIUM_PATH to one.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, sets, tmp_path):
    """The page of four pairs and two metrics. Whatever it complains about or asks of the network fails the test."""
    page, key, _ = make_page(sets, tmp_path, count=4, metrics=("overall", "image quality"))
    context = chromium.new_context()
    found = context.new_page()
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda one: one.url.startswith(("file:", "data:", "blob:")) or said.append(one.url))
    found.goto(page.as_uri())
    yield found, key
    assert said == []
    context.close()


def saved(tab, press, tmp_path):
    with tab.expect_download() as download:
        press()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_keys_and_buttons_and_the_saved_file(tab, tmp_path):
    tab, key = tab
    pairs = json.loads(key.read_text())["pairs"]
    tab.fill("#rater", "Ann Ü/..")
    tab.locator("h2").first.click()  # out of the field: letters are keys again
    for press in ("ArrowLeft", "ArrowRight", "t", "1", "2", "3"):
        tab.keyboard.press(press)
    assert "Pair 4 of 4, 6 of 8" in tab.inner_text("#place")
    tab.click("text=Right is better")
    tab.click("text=No difference")
    assert "All answered" in tab.inner_text("#said")
    file = saved(tab, lambda: tab.keyboard.press("s"), tmp_path)
    assert file.name == "ratings-Ann-Ü-.json"
    found = read_ratings([file, key])
    said = ["left", "right", "tie", "left", "tie", "right", "right", "tie"]
    assert [one.verdict for one in found] == said and {one.rater for one in found} == {"Ann Ü/.."}
    assert [one.metric for one in found] == ["overall", "image quality"] * 4
    assert [(one.item, one.left, one.right) for one in found[::2]] == [
        (pair["item"], pair["left"], pair["right"]) for pair in pairs
    ]


def test_it_shows_what_the_models_wrote_as_text(tab):
    tab, key = tab
    pair = json.loads(key.read_text())["pairs"][0]
    for side in ("left", "right"):
        assert tab.inner_text(f"#{side}").startswith(f"{pair[side]} step 1".replace("\u2028", "\u2028"))
        assert tab.locator(f"#{side} img").count() == 2
        assert tab.evaluate(f"[...document.querySelectorAll('#{side} img')].every((one) => one.naturalWidth > 0)")
    assert "<script>bad()</script>" in tab.inner_text("#request") and tab.locator("script").count() == 2
    assert tab.evaluate("typeof bad") == "undefined"


def test_going_back_skipping_and_going_on_another_day(tab):
    tab, _ = tab
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("n")  # leaves the second question open
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Backspace")
    assert tab.get_attribute("[data-verdict=right]", "aria-pressed") == "true"
    tab.keyboard.press("t")  # another verdict for the same question
    tab.locator("#rater").press_sequentially("Ben t")  # letters in the field rate nothing
    assert "2 of 8" in tab.inner_text("#place")
    tab.reload()
    assert "Pair 1 of 4, 2 of 8" in tab.inner_text("#place") and tab.input_value("#rater") == "Ben t"
    assert "Image quality" in tab.inner_text("#question")  # the one that was skipped
    tab.click("#next")
    assert tab.get_attribute("[data-verdict=tie]", "aria-pressed") == "true"
    tab.keyboard.press("Control+s")
    tab.keyboard.press("ArrowDown")  # scrolls, and rates nothing
    assert "2 of 8" in tab.inner_text("#place")


def test_ratings_of_the_page_become_elo(tab, tmp_path, capsys):
    tab, key = tab
    pairs = json.loads(key.read_text())["pairs"]
    for pair in pairs:  # this rater likes alpha most, then beta
        names = sorted((pair["left"], pair["right"]), key=["alpha", "beta", HOSTILE].index)
        for _ in range(2):
            tab.keyboard.press("ArrowLeft" if pair["left"] == names[0] else "ArrowRight")
    file = saved(tab, lambda: tab.click("#save"), tmp_path)
    assert file.name == "ratings-of-mine.json"
    assert main(["evaluate", "ratings", str(file), str(key), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["metrics"]["overall"]
    assert list(figures["elo"]) == ["alpha", "beta", HOSTILE]
    assert all(one["share"] in (0, 1) for one in figures["wins"])
