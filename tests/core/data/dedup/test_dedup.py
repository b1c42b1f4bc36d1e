"""data dedup: planted near-duplicates and what is unlike them, each rule, order, resume, bad input and the report."""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from duogen_core.cli import main
from duogen_core.data.dedup import engine as engine_
from duogen_core.data.dedup.engine import DedupEngine
from duogen_core.data.dedup.features import Ragged, Sketch
from duogen_core.data.dedup.pairs import Decided, Documents, bits_apart, jaccard, near
from duogen_core.data.dedup.text import numbers, shingles, tokens
from duogen_core.data.pictures.duplicates import picture_hash
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, work
from duogen_core.data.sources import open_source
from duogen_core.document import Document, Picture, Text, Turn
from tests.core.dedup_pages import Given, Planted, document, score
from tests.core.web_pages import photo, recipe, site

SPOKEN = [
    "Knead the dough for twelve minutes until it is smooth and no longer clings to the board.",
    "Put it into a bowl, cover it with a wet cloth and leave it near the stove.",
    "After two hours it has doubled; fold it over itself and shape a long loaf.",
    "Heat the oven until the stone inside glows, which takes most of an hour.",
    "Slide the loaf onto the stone and bake it until the crust sounds hollow when it is tapped.",
]


def dedup(*arguments: object) -> int:
    return main(["data", "dedup", *map(str, arguments), "--quiet", "--workers", "1"])


def made(folder: Path, engine: Given | Planted, size: int = 50) -> Path:
    for _ in work(begin(folder, engine, size), engine):
        pass
    return folder


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((out / "logs").glob("*.jsonl")) for line in file.open()]


def results(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for name in ("shards", "logs") for file in sorted((out / name).iterdir())}


def page(
    number: int, lines: list[str], images: tuple[str, ...] = (), domain: str = "example.org", time: str = ""
) -> Document:
    """A page whose images show what their addresses say."""
    pictures = [Picture(photo(64, 48, seed=sum(url.encode()) * 31 + len(url)), {"url": url}) for url in images]
    meta = {"url": f"https://{domain}/{number}", **({"time": time} if time else {})}
    text = "\n".join(lines)
    return Document((Turn("user", (Text(f"Page {number}"),)), Turn("assistant", (Text(text), *pictures))), meta=meta)


def own(number: int, count: int = 6) -> list[str]:
    """Lines that no other page has."""
    rng = np.random.default_rng(number)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(3, 9))) for _ in range(count * 9)]
    return [" ".join(words[at * 9 : at * 9 + 9]) for at in range(count)]


# ------------------------------------------------------------ the bar


@pytest.mark.slow
def test_planted_near_duplicates_are_found_and_unlike_pages_stay(tmp_path):
    """tests/bench/dedup.py does the same with 100,000."""
    planted = missed = unlike = lost = 0
    for seed in (11, 12, 13):
        run = made(tmp_path / f"run{seed}", Planted(seed, 350, with_hash=seed != 13), 100)  # the last from the pixels
        assert dedup(run, "--out", tmp_path / f"out{seed}") == 0
        gone = {entry["document"]: entry["rule"] for entry in entries(tmp_path / f"out{seed}") if not entry["kept"]}
        figures = score(seed, 350, gone)
        planted, missed = planted + figures["planted"], missed + round(figures["planted"] * (1 - figures["found"]))
        unlike, lost = unlike + figures["unlike"], lost + round(figures["unlike"] * figures["lost"])
        assert {"all", "shuffled", "reworded", "rescaled", "spec", "template", "chinese"} <= set(figures["kinds"])
    assert planted > 80 and 1 - missed / planted >= 0.98
    assert unlike > 900 and lost / unlike <= 0.005


def test_neither_the_order_of_runs_nor_the_workers_change_what_stays(tmp_path):
    one = made(tmp_path / "one", Planted(5, 120, 0, 70))
    two = made(tmp_path / "two", Planted(5, 120, 70, 120))
    assert dedup(one, two, "--out", tmp_path / "a") == 0 and dedup(two, one, "--out", tmp_path / "b") == 0
    pairs = [
        sorted((entry["url"], entry.get("rule", ""), entry.get("partner", {}).get("url")) for entry in entries(out))
        for out in (tmp_path / "a", tmp_path / "b")
    ]
    assert pairs[0] == pairs[1] and sum(bool(rule) for _, rule, _ in pairs[0]) >= 5
    assert main(["data", "dedup", str(one), str(two), "--out", str(tmp_path / "c"), "--quiet", "--workers", "2"]) == 0
    assert results(tmp_path / "c") == results(tmp_path / "a")


def test_a_pass_that_was_stopped_goes_on(tmp_path, monkeypatch):
    run = made(tmp_path / "run", Planted(6, 90), 20)
    assert dedup(run, "--out", tmp_path / "whole", "--shard-documents", 20) == 0
    preset, out = load_preset("dedup"), tmp_path / "out"
    stop = [("read", 2), ("compared", 3), ("comparing", 0)]

    def stopping(what: str, done: int, total: int) -> None:
        if stop and (what, done) == stop[0]:
            del stop[0]
            raise KeyboardInterrupt

    read = []
    for name in ("First", "Second"):
        kind = getattr(engine_, name)

        class Noted(kind):
            def __call__(self, job):
                read.append((self.name, job[0]))
                return super().__call__(job)

        monkeypatch.setattr(engine_, name, Noted)
    for _ in range(4):
        engine = DedupEngine(preset, [str(run)], out, report=stopping)
        try:
            written = work(begin(out, engine, 20), engine)
            next(written)
            written.close()
        except KeyboardInterrupt:
            assert not (out / "run.json").exists()
    assert len(read) == len(set(read)) == 10  # no shard was read twice
    assert dedup(run, "--out", out, "--shard-documents", 20) == 0
    assert results(out) == results(tmp_path / "whole") and not (out / "index" / "first").exists()


# ------------------------------------------------------------ each rule


def test_addresses_and_lines_that_repeat_are_taken_out(tmp_path, capsys):
    menu, table, short = "Home of good bread since long ago", "| Flour | Water | Salt | Yeast |", "Instructions"
    shown = [
        page(k, [menu, short, table, *own(k)], (f"https://example.org/{k}.png", "https://example.org/logo.png"))
        for k in range(12)
    ]
    other = page(50, [menu, *own(50)], ("https://example.org/50.png",), "other.net")
    run = made(tmp_path / "run", Given([*shown, other]))
    assert dedup(run, "--out", tmp_path / "out") == 0
    assert "13 of 13 documents stay, with 13 images" in (said := capsys.readouterr().out)
    assert "12 images and 12 lines that repeat" in said
    found = entries(tmp_path / "out")
    assert found[0]["removed_lines"] == [[menu, 12]] and found[12]["removed_lines"] == []
    assert found[0]["pictures"][1] == {
        "url": "https://example.org/logo.png", "rule": "repeated_address", "value": 12,
    }  # fmt: skip
    source = open_source(f"webdataset:{tmp_path / 'out' / 'shards'}")
    text = source.load(0).turns[1].text
    assert menu not in text and short in text and table in text and menu in source.load(12).turns[1].text
    before = open_source(f"webdataset:{run / 'shards'}").load(0)
    assert source.load(0).pictures == before.pictures[:1] and source.load(0).meta == before.meta
    assert dedup(run, "--out", tmp_path / "more", "--set", "line.max_pages=12", "--set", "address.max_pages=12") == 0
    assert "0 images and 0 lines" in capsys.readouterr().out


def test_copies_of_a_page_are_no_reason_to_take_its_lines_or_images_out(tmp_path):
    copies = [page(k, [*SPOKEN, f"Seen {k * 7919} times."], ("https://example.org/loaf.png",)) for k in range(15)]
    run = made(tmp_path / "run", Given([*copies, page(99, own(99), ("https://example.org/99.png",))]))
    assert dedup(run, "--out", tmp_path / "out") == 0
    found = entries(tmp_path / "out")
    assert sum(entry["kept"] for entry in found) == 2 and {entry.get("rule") for entry in found} == {
        None,
        "near_duplicate",
    }
    (stays,) = [entry for entry in found if entry["kept"] and entry["url"] != "https://example.org/99"]
    assert stays["removed_lines"] == [] and "rule" not in stays["pictures"][0]


def test_what_is_left_of_a_page_must_be_enough(tmp_path):
    line = "This very same line stands on each page of the site"
    pages = [page(k, [line, *own(k, 4)], (f"https://example.org/{k}.png",)) for k in range(11)]
    bare = page(20, [line], ("https://example.org/20.png",))
    logos = [page(30 + k, own(30 + k), ("https://cdn.example.org/logo.png",), f"d{k}.org") for k in range(11)]
    run = made(tmp_path / "run", Given([*pages, bare, *logos]))
    assert dedup(run, "--out", tmp_path / "out") == 0
    rules = [entry.get("rule", "") for entry in entries(tmp_path / "out")]
    assert rules == [""] * 11 + ["too_short"] + ["no_picture_left"] * 11


def test_of_one_address_the_newest_stays_and_of_near_duplicates_the_longest_or_the_newest(tmp_path):
    old, new = page(1, own(1), time="2023-01-01T00:00:00Z"), page(1, own(2), time="2024-01-01T00:00:00Z")
    long = page(3, [*SPOKEN, "Let it cool."], domain="a.org", time="2020-01-01T00:00:00Z")
    later = page(4, SPOKEN[::-1], domain="b.org", time="2021-01-01T00:00:00Z")
    run = made(tmp_path / "run", Given([new, old, later, long]))
    for options, gone in (((), 2), (("--set", "near.keep=newest"), 3)):
        out = tmp_path / f"out{gone}"
        assert dedup(run, "--out", out, *options) == 0
        found = entries(out)
        assert [entry["document"] for entry in found if not entry["kept"]] == [1, gone]
        assert found[1]["rule"] == "same_address" and found[1]["partner"]["document"] == 0
        assert found[gone]["rule"] == "near_duplicate" and found[gone]["partner"]["document"] == 5 - gone
        assert 0.8 < found[gone]["value"] < 1


def test_other_numbers_make_another_page(tmp_path):
    def model(seed: int) -> list[str]:
        some = iter(np.random.default_rng(seed).integers(100, 9999, 7))
        said = (
            "The printer {} weighs {} grams and needs {} watts for {} hours of work.",
            "Put {} sheets into its tray and set it to {}, then wait {} seconds until it is warm.",
        )
        return [re.sub("{}", lambda _: str(next(some)), line) for line in said]

    run = made(tmp_path / "run", Given([page(1, model(1)), page(2, model(2), domain="b.org")]))
    assert dedup(run, "--out", tmp_path / "out") == 0 and dedup(
        run, "--out", tmp_path / "words", "--set", "near.min_shared_numbers=0.0", "--set", "near.min_text=0.3"
    ) == 0  # fmt: skip
    assert [entry["kept"] for entry in entries(tmp_path / "out")] == [True, True]
    assert [entry["kept"] for entry in entries(tmp_path / "words")].count(False) == 1


def test_documents_with_the_same_images(tmp_path):
    images = "https://a.org/1.png", "https://a.org/2.png"
    first, second = page(1, own(1), images, "a.org"), page(2, own(2, 5), images, "b.org")
    scaled = [Picture(photo(96, 72, seed=sum(url.encode()) * 31 + len(url)), {"url": f"{url}?w"}) for url in images]
    small = [Picture(np.asarray(each.pixels[::1]), each.meta) for each in scaled]
    second = replace(second, turns=(second.turns[0], Turn("assistant", (second.turns[1].parts[0], *small))))
    one_alike = page(3, own(3), (images[0], "https://a.org/3.png"), "c.org")
    run = made(tmp_path / "run", Given([first, second, one_alike]))
    assert dedup(run, "--out", tmp_path / "out") == 0
    found = entries(tmp_path / "out")
    assert [entry.get("rule") for entry in found] == [None, "same_images", None]
    assert found[1]["partner"]["url"] == "https://a.org/1"


def test_the_preset_of_obelics_takes_out_a_paragraph_that_a_domain_has_twice(tmp_path):
    line = "Subscribe to our letter and never miss a loaf"
    run = made(tmp_path / "run", Given([page(k, [line, *own(k)], (f"https://example.org/{k}.png",)) for k in range(2)]))
    assert dedup(run, "--out", tmp_path / "howto") == 0
    assert dedup(run, "--out", tmp_path / "out", "--preset", "obelics") == 0
    assert [entry["removed_lines"] for entry in entries(tmp_path / "howto")] == [[], []]
    assert [entry["removed_lines"] for entry in entries(tmp_path / "out")] == [[[line, 2]]] * 2


# ------------------------------------------------------------ what documents are compared by


def test_shingles_of_scripts_with_and_without_spaces():
    assert tokens("Don’t bake at 220°") == ["don't", "bake", "at", "220"]
    assert tokens("烤２２０度 hours") == ["烤", "220", "度", "hours"]
    assert len(shingles([tokens("one two three four")], 2)) == 3 and len(shingles([["one"]], 2)) == 1
    assert len(shingles([tokens("把面团放进碗里盖上湿布")], 2)) == 9  # of three characters each
    assert len(shingles([], 2)) == len(numbers([])) == 0
    lines = [tokens(line) for line in SPOKEN]
    assert np.array_equal(shingles(lines, 2), shingles(lines[::-1], 2))
    assert len(numbers(["3. Wait 45 minutes", "- 2) at 180 C", "4. Done"])) == 2
    chinese = "把面团放进碗里盖上湿布等两个小时然后放进烤箱里烤到表面变成金黄色为止再拿出来放凉"
    changed = chinese.replace("小时", "钟头").replace("金黄色", "焦黄色")
    alike = jaccard(shingles([tokens(chinese)], 2), shingles([tokens(changed)], 2))
    unlike = jaccard(
        shingles([tokens(chinese)], 2), shingles([tokens("打开电脑的设置菜单选择网络然后点击高级选项")], 2)
    )
    assert alike > 0.6 and unlike < 0.05


def test_in_a_chain_only_what_is_like_a_staying_one_goes():
    """A is like B, B like C, A unlike C: A and C stay. Band buckets of hundreds are cut, and still all copies go."""
    rules = load_preset("dedup")
    base = np.arange(100, dtype=np.uint32)
    sets = [base, base + 30, base + 60, *[np.sort(np.append(base[:-1] + 1000, 5000 + k)) for k in range(150)]]
    sets = [each.astype(np.uint32) for each in sets]
    sketch = Sketch(rules.near["hashes"])
    documents = Documents(
        np.arange(len(sets)), np.stack([sketch.of(each) for each in sets]), np.full(len(sets), 100),
        np.zeros(len(sets), bool), _ragged(sets), _ragged([[]] * len(sets)), _ragged([[]] * len(sets)),
    )  # fmt: skip
    found = Decided.start(len(sets))
    near(found, documents, rules)
    assert found.left[:3].tolist() == [True, False, True] and found.partner[1] == 0
    assert found.left[3:].sum() == 1 and found.left[3]


def _ragged(rows):
    values = np.concatenate([np.asarray(row, np.uint64) for row in rows])
    return Ragged(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


def test_the_web_engine_writes_the_hash_that_would_be_taken_of_its_file(tmp_path):
    pages = site(
        tmp_path / "site", {f"p{k}.html": recipe("a.png", "b.png").replace("Bread", f"Bread {k}") for k in "ab"}
    )
    assert main(["data", "web", str(pages), "--out", str(tmp_path / "run"), "--workers", "1", "--quiet"]) == 0
    for picture in open_source(f"webdataset:{tmp_path / 'run' / 'shards'}").load(0).pictures:
        mine = np.array([int(picture.meta["phash"], 16)], np.uint64)
        assert int(bits_apart(mine, np.array([picture_hash(picture.pixels)], np.uint64))[0]) <= 2
    assert dedup(tmp_path / "run", "--out", tmp_path / "out") == 0
    assert [entry["kept"] for entry in entries(tmp_path / "out")].count(False) == 1


# ------------------------------------------------------------ bad input and the report


def test_what_cannot_be_done_is_a_sentence(tmp_path, capsys):
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert dedup(*arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and said.count("\n") == 1
        return said

    run = made(tmp_path / "run", Given([page(k, own(k)) for k in range(4)]), 2)
    (tmp_path / "empty").mkdir()
    assert "is no folder of a run" in refused(tmp_path / "empty", "--out", tmp_path / "out")
    assert "is given twice" in refused(run, run, "--out", tmp_path / "out")
    assert "lie in each other" in refused(run, "--out", run / "out")
    assert "near.bands 40" in refused(run, "--out", tmp_path / "out", "--set", "near.bands=40")
    assert "near.keep is 'first'" in refused(run, "--out", tmp_path / "out", "--set", "near.keep=first")
    assert "near.min_text is 1.5" in refused(run, "--out", tmp_path / "out", "--set", "near.min_text=1.5")
    assert not (tmp_path / "out").exists()
    tar = run / "shards" / "00001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-12000])
    assert "00001.tar is damaged" in (said := refused(run, "--out", tmp_path / "out")) and "00001.jsonl" in said
    assert not (tmp_path / "out" / "run.json").exists()
    tar.write_bytes(whole)
    assert dedup(run, "--out", tmp_path / "out") == 0
    assert "other values of preset" in refused(run, "--out", tmp_path / "out", "--set", "near.min_text=0.5")
    (run / "logs" / "00001.jsonl").unlink()
    capsys.readouterr()
    assert dedup(run, "--out", tmp_path / "half") == 0
    assert "is not finished: 1 of its 2 shards are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("an apple", "an \\ud800pple"), "half of a surrogate pair"),
        (lambda text: re.sub(r'"phash": *"\w{16}"', '"phash": "-00000000000000f"', text), ""),
    ],
    ids=["half a character", "a hash below 0"],
)
def test_what_no_engine_writes_is_a_sentence_or_read_anew(tmp_path, capsys, change, said):
    document = Document((Turn("assistant", (Text("It is an apple."), Picture(photo(64, 48), {"phash": "0" * 16}))),))
    run = made(tmp_path / "run", Given([document]))
    (tar,) = (run / "shards").glob("*.tar")
    with tarfile.open(tar) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    with tarfile.open(tar, "w") as archive:
        for name, data in members.items():
            if name.endswith(".json"):
                changed = change(data.decode())
                assert changed != data.decode()
                data = changed.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert dedup(run, "--out", tmp_path / "out") == (2 if said else 0)
    error = capsys.readouterr().err
    assert "Traceback" not in error and said in error


def test_arrays_that_were_cut_are_a_sentence(tmp_path, capsys):
    run = made(tmp_path / "run", Given([page(k, own(k)) for k in range(4)]), 2)
    assert dedup(run, "--out", tmp_path / "out") == 0
    file = tmp_path / "out" / "index" / "decided.npz"
    file.write_bytes(file.read_bytes()[:200])
    next((tmp_path / "out" / "logs").glob("*.jsonl")).unlink()
    capsys.readouterr()
    assert dedup(run, "--out", tmp_path / "out") == 2
    assert "decided.npz cannot be read" in capsys.readouterr().err


def test_the_report_shows_pairs_and_is_harmless(tmp_path, capsys):
    evil = "<script>alert(1)</script> knead the dough for twelve minutes until <img src=x onerror=alert(2)>"
    first = page(1, [evil, *SPOKEN], ("https://a.org/1.png",), "a.org")
    second = page(2, [*SPOKEN, evil], ("https://a.org/1.png",), "b.org")
    logos = [page(10 + k, [evil, *own(k)], (f"https://c.org/{k}.png",), "c.org") for k in range(11)]
    run = made(tmp_path / "run", Given([first, second, *logos]))
    assert dedup(run, "--out", tmp_path / "out") == 0
    assert main(["data", "view", str(tmp_path / "out"), "--quiet"]) == 0
    shown = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in shown and "<img src=x" not in shown and "&lt;script&gt;alert(1)" in shown
    assert not re.search(r"(?:src|href)=[\"']?(?!data:)http", shown)
    assert "Its partner" in shown and "near_duplicate: 1 shown" in shown and "kept: 12 shown" in shown
    assert "Lines that repeat: 1 shown" in shown and shown.count("data:image/jpeg") >= 14
    assert main(["data", "stats", str(tmp_path / "out")]) == 0
    assert re.search(r"^  near_duplicate +-1 ", capsys.readouterr().out, re.MULTILINE)


def test_documents_are_made_alike_every_time():
    assert document(3, 17, 100) == document(3, 17, 100) and document(3, 17, 100) != document(4, 17, 100)
