"""The command line: what it writes and prints, one sentence for bad input, and Ctrl-C at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duogen_core import checkpoint, interrupt
from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import COMMANDS, main
from duogen_core.commands.progress import Progress, harmless
from duogen_core.document import Document, Text
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.checker import read_scene
from duogen_core.sketchbook.scene import Shape
from tests.core.tiny import random_components, request, scripted

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (("Step 1. A wall.", "picture"), ("Step 2. A roof.", "picture"), ("Done.", "end"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(save_checkpoint(random_components(), tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def scene(tmp_path, monkeypatch, model):
    """In an empty folder, with a model that writes GUIDE whenever it is asked."""
    monkeypatch.chdir(tmp_path)

    def load(_name):
        components = random_components()
        scripted(components, *GUIDE)
        return components

    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    return lambda *args: main(["generate", "Draw a house.", "--out", "answer", "--model", model, *args])


def refused(capsys, args, match=""):
    """Exit 2, one sentence on stderr, nothing on stdout."""
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert match in err
    return err


# ---------------------------------------------------------------- an answer


def test_an_answer_on_disk_and_its_path_on_stdout(scene, capsys):
    assert scene("--seed", "7", "--steps", "3") == 0
    out, err = capsys.readouterr()
    assert out == "answer\n"
    folder = Path("answer")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "document.html", "document.json", "document.md", "images/000.png", "images/001.png",
    ]  # fmt: skip
    document = load_document(folder)
    assert document.turns[0].text == "Draw a house." and document.text == "Step 1. A wall.Step 2. A roof.Done."
    assert document.generation["seed"] == 7 and document.generation["steps"] == 3
    assert "Step 1. A wall.\n" in err and "image 2 of at most 8: 32x32" in err and "the answer is complete" in err
    assert "\r" not in err and "\x1b" not in err  # not a terminal: plain lines


def test_the_conversation_that_the_page_shows_comes_out_right(tmp_path, monkeypatch):
    """The example of --document in docs/command-line.md, as typed, with the bundled model, draws what was asked for."""
    typed = [
        shlex.split(line)
        for line in (ROOT / "docs" / "command-line.md").read_text("utf-8").splitlines()
        if "--out shapes" in line
    ]
    assert [line[:4] for line in typed] == [["python", "-m", "duogen_core", "generate"]] * 2
    monkeypatch.chdir(tmp_path)
    for line in typed:
        assert main([*line[3:], "--quiet"]) == 0
    star = Shape("top", "star", "yellow", "small")
    red, blue = (Shape("centre", "circle", colour) for colour in ("red", "blue"))
    drawn = [read_scene(picture.pixels) for picture in load_document("shapes2").pictures]
    assert [set(scene.shapes) for scene in drawn] == [{red, star}, {blue, star}]


def test_the_same_seed_gives_the_same_bytes(scene):
    files = []
    for _ in range(2):
        assert scene("--seed", "7", "--quiet") == 0
        files.append({p.name: p.read_bytes() for p in Path("answer").rglob("*") if p.is_file()})
    assert files[0] == files[1]


def test_quiet_is_quiet(scene, capsys):
    assert scene("--quiet") == 0
    assert tuple(capsys.readouterr()) == ("answer\n", "")


def test_json_is_for_machines(scene, capsys):
    assert scene("--json", "--max-images", "1") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["document"] == "answer" and Path(summary["html"]).is_file() and Path(summary["markdown"]).is_file()
    assert summary["pictures"] == 1 and summary["stop_reason"] == "max_images" and summary["model"] == "tiny"


def test_pictures_of_the_user_come_before_the_request(scene, tmp_path):
    Image.new("RGB", (64, 32), "red").save("a.png")
    Image.new("CMYK", (32, 32)).save("b.jpg")
    assert scene("--image", "a.png", "--image", "b.jpg", "--quiet") == 0
    user = load_document("answer").turns[0]
    assert [part.size for part in user.parts[:2]] == [(64, 32), (32, 32)] and user.parts[2] == Text("Draw a house.")


def test_a_conversation_goes_on(scene):
    assert scene("--quiet") == 0
    assert scene("--document", "answer", "--quiet", "--out", "more") == 0
    assert [turn.role for turn in load_document("more").turns] == ["user", "assistant"] * 2
    assert len(load_document("more").pictures) == 4
    assert scene("--document", "more", "--quiet", "--out", "more") == 0  # onto itself: nothing is lost
    assert len(load_document("more").turns) == 6


def test_a_document_that_waits_for_an_answer_needs_no_request(scene, model, capsys):
    save_document(request("A boat."), "question")
    assert main(["generate", "--document", "question", "--out", "answer", "--model", model, "--quiet"]) == 0
    assert load_document("answer").turns[0].text == "A boat."


def test_the_saved_model_itself_answers(model, tmp_path, capsys):
    args = ["generate", "Hello", "--out", tmp_path / "out", "--model", model, "--max-tokens", 5, "--max-images", 1]
    assert main([str(arg) for arg in args]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "document.html").is_file()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("prompt", ["", "  \n\t"])
def test_an_empty_prompt(scene, capsys, prompt):
    refused(capsys, ["generate", prompt, "--out", "answer"], "The request is empty")
    refused(capsys, ["generate", "--out", "answer"], "The request is empty")
    assert not Path("answer").exists()


def test_pictures_that_cannot_be_read(scene, capsys):
    Path("text.png").write_text("not a picture")
    Image.effect_noise((64, 64), 50).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:500])
    frames = [Image.fromarray(np.full((8, 8, 3), i * 100, np.uint8)) for i in range(2)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    for name in ("missing.png", "text.png", "cut.png", "moving.gif", "."):
        refused(capsys, ["generate", "x", "--out", "answer", "--image", name], name)
    assert not Path("answer").exists()


def test_an_output_that_cannot_be_written(scene, capsys):
    Path("file").write_text("mine")
    refused(capsys, ["generate", "x", "--out", "file"], "--out file is a file; it must be a folder")
    refused(capsys, ["generate", "x", "--out", "file/answer"], "cannot be written")
    refused(capsys, ["generate", "x", "--out", "/proc/nowhere/answer"], "annot be written")
    refused(capsys, ["generate", "x", "--out", "answer.zip"], "generate writes a folder")
    refused(capsys, ["generate", "x", "--out", ""], "--out has no name")
    assert Path("file").read_text() == "mine"


def test_only_an_earlier_answer_is_overwritten(scene, capsys):
    Path("photos").mkdir()
    Path("photos/me.txt").write_text("mine")
    refused(capsys, ["generate", "x", "--out", "photos"], "not an earlier answer")
    save_document(request(), "handmade")
    refused(capsys, ["generate", "x", "--out", "handmade"], "not an earlier answer")
    Path("other").mkdir()
    Path("other/document.json").write_text('{"format": "something", "generation": {"model": 1}}')
    refused(capsys, ["generate", "x", "--out", "other"], "not an earlier answer")
    assert Path("photos/me.txt").read_text() == "mine"
    Path("empty").mkdir()
    assert scene("--quiet", "--out", "empty") == 0
    Path("empty/note.txt").write_text("mine")
    assert scene("--quiet", "--out", "empty", "--max-images", "1") == 0
    assert not Path("empty/images/001.png").exists() and Path("empty/note.txt").read_text() == "mine"


def test_models_that_cannot_be_used(scene, capsys):
    Path("weights.pt").write_bytes(pickle.dumps(print))
    Path("folder").mkdir()
    for name, match in {
        "nope": "no model 'nope'",
        "weights.pt": "never reads pickles",
        "folder": "not a DuoGen",
    }.items():
        refused(capsys, ["generate", "x", "--out", "answer", "--model", name], match)


@pytest.mark.parametrize(
    "args, match",
    [
        (["--steps", "0"], "number of steps must be between 1"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--seed", "-1"], "The seed must be between 0"),
        (["--guidance", "nan"], "The guidance must be between"),
        (["--size", "big"], "The size 'big' is not WIDTHxHEIGHT"),
        (["--max-images", "-3"], "The limit of images must be between"),
        (["--temperature", "hot"], "expected a number from 0 to 10, or model"),
        (["--temperature", "nan"], "The temperature must be between"),
        (["--top-k", "-1"], "top_k must be between 0"),
        (["--min-p", "2"], "min_p must be between"),
        (["--repetition-penalty", "0"], "The repetition penalty must be between"),
        (["--document", "nowhere"], "nowhere"),
        (["--colour"], "There is no option --colour; see python -m duogen_core generate --help."),
        (["--imge", "a.png"], "no option --imge, but --image; see python -m duogen_core generate --help."),
        (["a door"], "'a door' is one argument too many"),
        (["--out", "a\0b"], "is not a valid name"),
        (["--out", "a" * 250], "File name too long"),
        (["--out", "a" * 5000], "File name too long"),
    ],
)
def test_options_out_of_range(scene, capsys, args, match):
    refused(capsys, ["generate", "x", "--out", "answer", *args], match)


@pytest.mark.parametrize("args", [[], ["paint"], ["evaluate"], ["evaluate", "nothing"], ["generate", "x"]])
def test_commands_that_do_not_exist_or_lack_something(capsys, args):
    assert "--help" in refused(capsys, args)


def test_every_command_can_be_imported_and_explained(capsys):
    def leaves(commands, path=()):
        for name, (_, target, *_) in commands.items():
            yield from leaves(target, (*path, name)) if isinstance(target, dict) else [(*path, name)]

    for command in leaves(COMMANDS):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0 and "usage:" in capsys.readouterr().out


def test_help_and_errors_load_no_model_code():
    code = (
        "import sys; from duogen_core.cli import main\n"
        "assert main(['generate', 'x', '--out', 'y', '--model', 'nope']) == 2\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_a_size_that_is_drawn_otherwise_is_said(scene, capsys):
    assert scene("--size", "100x100", "--max-images", "1") == 0
    assert "drawn in 96x96" in capsys.readouterr().err
    assert load_document("answer").pictures[0].size == (96, 96)
    assert scene("--size", "96x96", "--max-images", "1") == 0
    assert "drawn in" not in capsys.readouterr().err


def test_a_complete_answer_without_a_request_is_told_and_not_copied(scene, capsys, model):
    assert scene("--seed", "7", "--quiet") == 0
    capsys.readouterr()
    args = ["generate", "--document", "answer", "--model", model]
    refused(capsys, [*args, "--out", "other"], "The answer in answer is complete; write a request")
    assert not Path("other").exists()
    refused(capsys, [*args, "--out", "answer"], "is complete")
    assert load_document("answer").generation["seed"] == 7


def test_an_answer_that_was_stopped_goes_on_with_its_own_seed(scene, capsys, model, monkeypatch):
    assert scene("--seed", "7", "--max-images", "1", "--quiet") == 0
    args = ["generate", "--document", "answer", "--out", "more", "--model", model, "--quiet"]
    assert main(args) == 0 and load_document("more").generation["seed"] == 7
    assert main([*args, "--seed", "3"]) == 0 and load_document("more").generation["seed"] == 3


def test_deep_json_in_an_output_folder(scene, capsys):
    Path("deep").mkdir()
    Path("deep/document.json").write_text("[" * 100_000)
    refused(capsys, ["generate", "x", "--out", "deep"], "not an earlier answer")
    refused(capsys, ["generate", "x", "--out", "answer", "--document", "deep"], "nested too deeply")


ENDPOINT = ["--base-url", "http://127.0.0.1:9/v1", "--model", "none"]


def test_the_second_run_on_one_folder_is_told(scene, capsys):
    Path("answer").mkdir()
    commands = [
        ["generate", "x", "--out", "answer"],
        ["data", "web", "nothing.html", "--out", "answer"],
        ["data", "video", "nothing.mp4", "--out", "answer"],
        ["data", "editing", "magicbrush", "nothing", "--out", "answer"],
        ["data", "dialogues", "nothing", "--out", "answer", *ENDPOINT],
        ["data", "export", "documents:nothing", "--out", "answer"],
        ["data", "make", "sketchbook", "--out", "answer"],
        ["data", "synthetic", "draw", "nothing", "--out", "answer"],
        ["data", "synthetic", "answer", "nothing", "--out", "answer"],
        ["train", "vae", "out=answer", "steps=1"],
        ["train", "stage1", "out=answer", "steps=1"],
        ["train", "stage2", "out=answer", "steps=1"],
        ["train", "pretrain", "out=answer", "steps=1"],
        ["train", "finetune", "out=answer", "data=nothing"],
        ["train", "assemble", "--out", "answer"],
        ["ablation", "out=answer", "steps=1"],
        ["evaluate", "sketchbook", "--out", "report.json", "--documents", "answer"],
        ["evaluate", "sketchbook", "--out", "answer"],
        ["convert", "nothing.safetensors", "answer"],
        ["data", "view", "nothing", "--out", "answer"],
    ]
    with lock_elsewhere("answer"):
        for command in commands:
            refused(capsys, command, "answer is in use by another run of DuoGen")
    for step in ("expand", "plan"):
        with lock_elsewhere(Path("work", step)):
            refused(capsys, ["data", "synthetic", step, "work", *ENDPOINT], "is in use by another run")
    assert not list(Path("answer").iterdir())


@contextlib.contextmanager
def lock_elsewhere(folder):
    code = "import sys; from duogen_core.files import lock_folder\n"
    code += "with lock_folder(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    holder = start("-c", code, str(folder), cwd=".", stdin=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate("")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
@pytest.mark.parametrize("args", [["inspect", "models/duogen-tiny"], ["inspect", "models/duogen-tiny", "--json"]])
def test_output_that_cannot_be_printed_is_a_sentence(args):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "duogen_core", *args], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "Error: The output could not be printed: No space left on device.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_progress_that_cannot_be_shown_stops_nothing():
    with open("/dev/full", "w") as full:
        progress = Progress(stream=full)
        progress.line("Loading")
        progress.token("text")
        progress.picture(0, (32, 32))
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what waits in the buffer


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict", "latin-1"])
@pytest.mark.parametrize("name", [b"b\xff", "\u5bb6".encode(), b"a\x1b[2J"])
def test_every_name_can_be_printed(tmp_path, encoding, name):
    """File names are bytes on Linux; stdout may be of any encoding, and strict."""
    folder = os.fsencode(tmp_path) + b"/" + name
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this system takes no such name")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    for code in ("print(sys.argv[1])", "raise DuoGenError(f'The folder {sys.argv[1]} is wrong.')"):
        driver = "import sys\nfrom duogen_core import cli\nfrom duogen_core.errors import DuoGenError\n"
        driver += f"class One:\n    def run(args):\n        {code}\n    def add_arguments(parser):\n        pass\n"
        driver += "sys.modules['one'] = One\ncli.COMMANDS = {'one': ('x', 'one')}\nsys.exit(cli.main(['one']))"
        done = subprocess.run([sys.executable, "-c", driver, folder], env=environment, capture_output=True)
        assert b"Traceback" not in done.stderr and done.returncode == (2 if "raise" in code else 0)
        assert b"\x1b" not in done.stderr


def test_help_counts_and_lists_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "seven" not in capsys.readouterr().out


# ---------------------------------------------------------------- Ctrl-C

DRIVER = """
import sys
from duogen_core import checkpoint, interrupt
interrupt.at_once()
from tests.core.tiny import random_components, scripted
def load(name):
    components = random_components()
    scripted(components, *[("Step %d." % i, "picture") for i in range(50)])
    return components
checkpoint.load_checkpoint = load
from duogen_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(*args, cwd, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # A suite started in the background has SIGINT ignored, and children inherit that.
    return subprocess.Popen(
        [sys.executable, *args], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **more,
    )  # fmt: skip


def read_until(process, words):
    text = ""
    while words not in text:
        line = process.stderr.readline()
        assert line, f"the process ended before it said {words!r}: {text}"
        text += line
    return text


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4, 1.5])
def test_ctrl_c_while_loading_leaves_nothing(model, tmp_path, delay):
    process = start("-m", "duogen_core", "generate", "x", "--out", "answer", "--model", model, cwd=tmp_path)
    read_until(process, "Loading")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "Stopped; nothing was written." in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_while_drawing_keeps_what_is_finished(model, tmp_path):
    args = ["generate", "x", "--out", "answer", "--model", model, "--steps", "10", "--max-images", "50"]
    process = start("-c", DRIVER, *args, cwd=tmp_path)
    read_until(process, "image 2 of at most 50")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err
    assert "Stopped. What was finished is in answer." in err and out == "answer\n"
    document = load_document(tmp_path / "answer")
    assert 2 <= len(document.pictures) < 50 and document.generation["stop_reason"] == "interrupted"
    assert (tmp_path / "answer" / "document.html").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]


@pytest.mark.slow
def test_a_killed_run_leaves_finished_pictures_readable(model, tmp_path):
    process = start(
        "-c", DRIVER, "generate", "x", "--out", "answer", "--model", model, "--max-images", "50", cwd=tmp_path
    )
    read_until(process, "image 2 of at most 50")
    process.kill()
    process.communicate(timeout=300)
    document = load_document(tmp_path / "answer")
    assert len(document.pictures) >= 2 and document.generation["stop_reason"] == "interrupted"


def test_the_second_ctrl_c_does_not_wait():
    before = interrupt.current()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background ignores SIGINT
    try:
        interrupt.finish()
        assert not interrupt.requested()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_given_back(scene):
    before = signal.getsignal(signal.SIGINT)
    assert scene("--quiet") == 0
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- progress


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_progress_on_a_terminal_redraws_one_line():
    terminal, ticks = Terminal(), iter(range(100))
    progress = Progress(stream=terminal, clock=lambda: next(ticks))
    progress.max_images = 4
    progress.token("A wall.")
    for step in (1, 2):
        progress.picture_step(0, step, 2)
    progress.picture(0, (32, 32))
    lines = terminal.text.split("\n")
    assert lines[0] == "A wall." and lines[1].count("\r\x1b[K") == 3
    assert "image 1 of at most 4 ██████████░░░░░░░░░░ step 1/2" in lines[1] and lines[1].endswith("32x32, 3.0 s")


def test_what_goes_on_is_shown_on_a_terminal_alone_and_gives_way_to_lines():
    terminal = Terminal()
    progress = Progress(stream=terminal)
    progress.state("reads", 0)
    progress.state("writes", 0)
    progress.state("too soon", 60)
    progress.line("1. A wall.")
    progress.end_line()
    assert terminal.text == "\r\x1b[Kreads\r\x1b[Kwrites\r\x1b[K1. A wall.\n"
    terminal.isatty, terminal.text = lambda: False, ""
    Progress(stream=terminal).state("reads", 0)
    assert terminal.text == ""


def test_text_of_the_model_cannot_steer_the_terminal():
    assert harmless("a\x1b]0;owned\x07\nb\tc\u202e") == "a�]0;owned�\nb\tc�"
    terminal = Terminal()
    Progress(stream=terminal).token("\x1b[2J")
    assert "\x1b" not in terminal.text


def test_a_document_of_a_user_is_never_changed(scene, capsys):
    save_document(Document().begin_turn("user", [Text("x")]), "mine")
    before = Path("mine/document.json").read_bytes()
    refused(capsys, ["generate", "y", "--document", "mine", "--out", "mine"], "not an earlier answer")
    assert Path("mine/document.json").read_bytes() == before


def test_an_error_in_the_middle_of_the_text_has_a_line_of_its_own(scene, capsys, monkeypatch):
    """The text that is being written has no line end yet; scripts look for lines that begin with "Error: "."""

    def full(*_):
        raise DuoGenError("The disk is full.")

    monkeypatch.setattr("duogen_core.document.store.DocumentWriter.update", full)
    assert main(["generate", "A house?", "--out", "got"]) == 2
    assert "\nError: The disk is full.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_no_memory_is_one_sentence(tmp_path, monkeypatch, capsys, error):
    def run(_):
        raise error

    monkeypatch.setattr("duogen_core.commands.inspect.run", run)
    assert main(["inspect", str(tmp_path)]) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and found[0].startswith("Error: There is not enough memory")


def test_a_mistake_of_ours_is_no_lack_of_memory(tmp_path, monkeypatch):
    def run(_):
        raise RuntimeError("something else")

    monkeypatch.setattr("duogen_core.commands.inspect.run", run)
    with pytest.raises(RuntimeError, match="something else"):
        main(["inspect", str(tmp_path)])
