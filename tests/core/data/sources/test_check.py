"""`data check`: the table, the report, the exit code, and a sentence for every bad sample."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.commands.data import CheckProgress
from duogen_core.data.sources import Source, open_source
from duogen_core.data.sources.survey import Totals, survey
from duogen_core.document import Document, Text, Turn
from tests.core.documents import picture
from tests.core.sample_sets import FORMATS, USER, guide, members, write_jsonl, write_kind, write_tar
from tests.core.tiny import random_components

ROOT = Path(__file__).resolve().parents[4]


def check(*args) -> int:
    return main(["data", "check", *map(str, args)])


@pytest.fixture
def mixed(tmp_path):
    """Two good samples, a broken line and a line without its pictures."""
    turns = [{"role": "user", "parts": [{"type": "image", "file": "no.png"}]}]
    lost = json.dumps({"format": "duogen-document", "version": 1, "turns": turns})
    tail = b"{broken\n" + lost.encode() + b"\n"
    return f"jsonl:{write_jsonl(tmp_path / 'set' / 'a.jsonl', [guide(0), guide(1, size=(20, 8))], tail=tail)}"


@pytest.mark.parametrize("kind", FORMATS)
def test_good_data_is_counted_and_exits_0(kind, tmp_path, capsys):
    assert check(write_kind(kind, tmp_path, [guide(i) for i in range(4)])) == 0
    out, err = capsys.readouterr()
    head, row = out.splitlines()
    assert head.split() == ["source", "samples", "bad", "turns", "images", "image", "sizes"]
    assert row.split()[1:] == ["4", "0", "8", "8", "5x7,", "12x8"] and row.startswith(kind)
    assert "4/4, 0 bad" in err and "\r" not in err


def test_bad_samples_are_named_and_exit_1(mixed, tmp_path, capsys):
    assert check(mixed, "--json", tmp_path / "report.json") == 1
    out, err = capsys.readouterr()
    named = [line for line in err.splitlines() if line.startswith("bad: ")]
    assert len(named) == 2 and "line 3 is not valid JSON" in named[0]
    assert "line 4" in named[1] and "no.png" in named[1]
    assert out.splitlines()[1].split()[1:5] == ["4", "2", "4", "4"]
    assert out.endswith("2 of 4 samples cannot be used.\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["totals"] == {"samples": 4, "good": 2, "bad": 2, "turns": 4, "pictures": 4}
    (source,) = report["sources"]
    assert [bad["index"] for bad in source["bad_samples"]] == [2, 3] and source["bad_not_named"] == 0
    assert source["bad_samples"][0]["sample"].endswith("a.jsonl, line 3")
    assert source["picture_sizes"][0] == {"width": 5, "height": 7, "pictures": 2} and source["largest_side"] == 20
    assert source["identity"]["samples"] == 4


def test_several_sources_and_an_endless_one(mixed, tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", [members("a", guide(0))])
    assert check(mixed, f"3*webdataset:{tar}", "sketchbook", "--samples", "3", "--quiet") == 1
    out, err = capsys.readouterr()
    assert err == "" and [line.split()[1:3] for line in out.splitlines()[1:4]] == [["3", "1"], ["1", "0"], ["3", "0"]]


def test_limits_can_be_set(tmp_path, capsys):
    spec = write_kind("jsonl", tmp_path, [guide(0)])
    assert check(spec, "--max-side", "11") == 1
    assert "turns[1].parts[1], an image, is 12x8 pixels; at most 11 a side" in capsys.readouterr().err
    assert check(spec, "--max-pictures", "1") == 1


def test_alignment_data_is_counted(tmp_path, capsys):
    documents = [replace(guide(k), meta={"number": k, "alignment": k == 1}) for k in range(3)]
    spec = write_kind("jsonl", tmp_path, documents)
    assert check(spec, "--json", tmp_path / "report.json") == 0
    assert "1 samples are alignment data, which stage 1 leaves out." in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["sources"][0]["alignment"] == 1
    assert check(json.dumps({"source": spec, "alignment": True})) == 0
    assert "3 samples are alignment data" in capsys.readouterr().out


def test_whatever_a_line_lacks_is_named_with_its_place(tmp_path, capsys):
    kind = {"format": "duogen-document", "version": 1}
    user = {"role": "user", "parts": [{"type": "text", "text": "Draw."}]}
    image = {"type": "image", "file": "pictures/0-0.png"}
    answer = {"role": "assistant", "parts": [image]}
    lines = [
        ({**kind, "turns": [image, user, answer]}, "a.jsonl, line 2, turns[0]: 'role' is missing"),
        ({**kind, "parts": [image], "turns": [user, answer]}, "a.jsonl, line 3: 'parts' is not known here"),
        ({**kind, "turns": [{"role": "user", "parts": []}, answer]}, "line 4: turns[0] (user) is empty"),
        ({**kind, "turns": [user]}, "line 5: it has no assistant turn"),
        ({**kind, "turns": [user, {**answer, "role": "robot"}]}, "line 6, turns[1]: the role is 'robot'"),
        ({**kind, "turns": [user, {"role": "assistant", "parts": [{"type": "image"}]}]}, "parts[0]: 'file' is missing"),
        ({**kind, "turns": [user, {"role": "assistant", "parts": [{"type": "video"}]}]}, "part is 'video'"),
    ]
    wide = Document((USER, Turn("assistant", (Text("Wide."), picture(0, (10_000, 60))))))
    tail = b"".join(json.dumps(line).encode() + b"\n" for line, _ in lines) + lines_with(wide, tmp_path)
    assert check(f"jsonl:{write_jsonl(tmp_path / 'set' / 'a.jsonl', [guide(0)], tail=tail)}") == 1
    named = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad: ")]
    places = [match for _, match in lines]
    places.append("line 9: turns[1].parts[1], an image, is 10000x60 pixels; at most 8,192 a side are allowed")
    assert len(named) == len(places) and all(match in line for line, match in zip(named, places))


def lines_with(document, tmp_path) -> bytes:
    """The document's line for a file in tmp_path / "set", its pictures beside it."""
    write_jsonl(tmp_path / "set" / "wide" / "b.jsonl", [document])
    return (tmp_path / "set" / "wide" / "b.jsonl").read_bytes().replace(b"pictures/", b"wide/pictures/")


def test_tokens_are_counted_as_the_model_counts_them(tmp_path, capsys):
    from duogen_core.checkpoint import save_checkpoint
    from duogen_core.mllm.chat import build_inputs

    components = random_components()
    model = save_checkpoint(components, tmp_path / "model")
    spec = write_kind("jsonl", tmp_path, [guide(0, size=(320, 96)), guide(1)])
    counts = [
        build_inputs([guide(*each)], components.mllm.tokenizer, components.mllm.image_processor)["input_ids"].shape[1]
        for each in ((0, (320, 96)), (1,))
    ]
    assert counts[0] != counts[1]
    for name in (model, model / "mllm"):
        assert check(spec, "--tokenizer", name) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row.split()[-2:] == [f"{sum(counts):,}", f"{max(counts):,}"]
    assert check(spec, "--tokenizer", model, "--max-tokens", max(counts) - 1) == 1
    assert f"it has {max(counts)} tokens; at most {max(counts) - 1} are allowed" in capsys.readouterr().err


def test_worker_processes_find_the_same(mixed):
    source = open_source(mixed)
    assert list(survey(source, len(source), workers=2)) == list(survey(source, len(source)))


class Repeated(Source):
    """A small source over and over, as large as one likes."""

    def __init__(self, source):
        super().__init__(source.name)
        self.source = source

    def __len__(self):
        return 1000

    def load(self, index):
        return self.source.load(index % len(self.source))

    def label(self, index):
        return f"sample {index}"

    def identity(self):
        return {}


def test_memory_does_not_grow_with_the_source(tmp_path):
    documents = [guide(i, size=(256, 256)) for i in range(4)]  # 200 kB of pixels each
    source = Repeated(open_source(write_kind("webdataset", tmp_path, documents)))
    peaks = []
    for samples in (8, 80):
        tracemalloc.start()
        totals = Totals()
        for facts in survey(source, samples):
            totals.add(facts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert totals.good == samples
    assert peaks[1] < peaks[0] + 200_000


@pytest.mark.parametrize(
    "args, match",
    [
        (["jsonnl:a"], "did you mean 'jsonl'"),
        (["jsonl:/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["sketchbook", "--samples", "0"], "--samples is 0"),
        (["sketchbook", "--max-side", "0"], "max_side is 0"),
        (["sketchbook", "--json", "/nowhere/report.json"], "cannot be written"),
        (["sketchbook", "--tokenizer", "nope"], "no model 'nope'"),
        (["sketchbook", "--max-tokens", "100"], "--max-tokens needs --tokenizer"),
        ([], "--help"),
    ],
)
def test_bad_questions_exit_2(args, match, capsys):
    assert check(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and match in err and err.count("\n") == 1


def test_names_and_data_cannot_steer_the_terminal(tmp_path, capsys):
    line = '{"format": "\\u001b[2J", "version": 1, "turns": []}'
    file = tmp_path / "a\x1b]0;owned.jsonl"
    file.write_text(line)
    assert check(f"jsonl:{file}") == 1
    assert "\x1b" not in "".join(capsys.readouterr())


def test_a_bad_sample_is_told_in_printable_words_wherever_it_is_told(tmp_path):
    """Training and its logs say the same sentence that `data check` does: a member's name may steer no terminal."""
    name = "a\x1b[2J\u202egnp"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "document.json").write_text("{broken")
    bad = open_source(f"documents:{tmp_path}").read(0)
    assert bad.sentence.isprintable() and bad.sentence.count("a\\x1b[2J\\u202egnp") == 1
    terminal = Terminal()
    CheckProgress(f"documents:{folder}", 1, quiet=False, stream=terminal).finish(1)
    assert "\x1b[2J" not in terminal.text and "\u202e" not in terminal.text


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_the_bar_on_a_terminal_is_one_line_and_bad_samples_stand_above_it():
    terminal = Terminal()
    bar = CheckProgress("jsonl:a", 4, quiet=False, stream=terminal)
    bar.shown -= 1
    bar.step(0)
    bar.line("bad: one")
    bar.finish(1)
    assert terminal.text.count("\n") == 2 and "\r\x1b[Kbad: one\n" in terminal.text
    assert "█████░░░░░░░░░░░░░░░ jsonl:a 1/4, 0 bad" in terminal.text


def test_checking_loads_no_model_code(tmp_path):
    spec = write_kind("jsonl", tmp_path, [guide(0)])
    code = (
        f"import sys; from duogen_core.cli import main\nassert main(['data', 'check', {spec!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'diffusers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
