"""plan, and generate with a plan: a scripted server writes, our tiny model or a scripted ComfyUI draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from duogen_core import interrupt
from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.commands.progress import Progress
from duogen_core.document.pending import is_pending, pending_index
from duogen_core.document.reading import load_document
from duogen_core.planning.as_document import plan_of
from tests.core.comfyui_server import comfyui_server
from tests.core.endpoint_server import chunk, completion, endpoint_server, streaming
from tests.core.planning.test_writing import STEPS, plan
from tests.core.tiny import random_components

ABSENT = "http://127.0.0.1:9/v1"
BOAT = "How do I fold a paper boat?"
WORKFLOW = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "${prompt}"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": "${seed}", "positive": ["1", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}
SEES = {**WORKFLOW, "4": {"class_type": "LoadImage", "inputs": {"image": "${seen_1}"}}}


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out.strip(), shown.err


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(save_checkpoint(random_components(), tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def server():
    with endpoint_server(completion(plan(*STEPS))) as found:
        yield found


def writer(server) -> list[str]:
    return ["--writer", server.url, "--writer-model", "m"]


def test_a_plan_is_written_and_its_parts_are_shown(server, tmp_path, capsys):
    code, out, err = run(
        capsys, "plan", BOAT, *writer(server), "--style", "ink", "--out", tmp_path / "new" / "plan.json"
    )
    assert code == 0 and out == str(tmp_path / "new" / "plan.json")
    value = json.loads(Path(out).read_text("utf-8"))
    assert value["request"] == BOAT and value["style"] == "ink"
    assert [(part["text"], part["picture"]) for part in value["parts"]] == STEPS
    assert f"2. {STEPS[1][0]}" in err and f"[image: {STEPS[1][1]}]" in err


def test_markdown_and_a_summary(server, tmp_path, capsys):
    file = tmp_path / "plan.md"
    code, out, err = run(capsys, "plan", BOAT, *writer(server), "--out", file, "--json", "--quiet")
    assert code == 0 and not err and json.loads(out)["parts"] == 3 and json.loads(out)["plan"] == str(file)
    assert file.read_text("utf-8").startswith("# A paper boat\n\nCast:\n- paper: white\n\n---\n\nFold the sheet")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", BOAT, "--out", "plan.txt"], "must be a file that ends in .md"),
        (["plan", BOAT, "--out", "plan.md"], "--writer is missing"),
        (["plan", " ", "--writer", "x", "--out", "plan.md"], "The request is empty"),
        (
            ["plan", BOAT, "--writer", "http://127.0.0.1:9/v1", "--writer-model", "m", "--out", "p.md"],
            "cannot be reached",
        ),
        (["plan", BOAT, "--writer", "no-such-model", "--out", "plan.md"], "There is no model 'no-such-model'"),
        (["generate", "--plan", "none.md", "--out", "a"], "none.md"),
        (["generate", "--plan", "bad.md", "--out", "a"], "bad.md: Part 1 of the plan has two images"),
        (["generate", "--plan", "bad.json", "--out", "a"], "bad.json: The plan has 200 parts"),
        (["generate", "--plan", "bad.md", "--writer", "x", "--out", "a"], "leave one of them out"),
        (["generate", "x", "--painter", "other:w.json", "--out", "a"], "write comfyui: and an API-format workflow"),
        (["generate", "x", "--style", "ink", "--out", "a"], "--style is for answers that are planned first"),
        (["generate", "x", "--server", "http://a", "--out", "a"], "--server is for --painter"),
        (["generate", "--requests", "r", "--writer", "x", "--out", "a"], "--requests answers with a DuoGen model"),
    ],
)
def test_bad_input_is_a_sentence_and_nothing_is_written(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.md").write_text("a\nImage: b\nImage: c")
    Path("bad.json").write_text(json.dumps({"parts": [{"text": "a"}] * 200}))
    code, out, err = run(capsys, *words)
    assert code == 2 and sentence in err and "Traceback" not in err and not out
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.md", "bad.json", "a"} and not (tmp_path / "a").is_dir()


def draw(capsys, model, *words):
    return run(capsys, "generate", *words, "--model", model, "--steps", 1, "--seed", 3, "--quiet")


def test_a_plan_is_drawn_edited_and_drawn_again(server, model, tmp_path, capsys):
    file, answer = tmp_path / "plan.json", tmp_path / "answer"
    assert run(capsys, "plan", BOAT, *writer(server), "--out", file)[0] == 0
    code, out, _ = draw(capsys, model, "--plan", file, "--out", answer)
    document = load_document(answer)
    assert code == 0 and out == str(answer) and document.turns[0].text == BOAT
    assert len(document.pictures) == 3 and document.generation["stop_reason"] == "end"
    assert document.text == "".join(text for text, _ in STEPS)

    # The plan of the answer, edited by hand: what did not change keeps its image.
    edit = tmp_path / "plan.md"
    assert run(capsys, "plan", "--document", answer, "--out", edit)[0] == 0
    edit.write_text(edit.read_text("utf-8").replace(STEPS[2][0], "Pull it open and smile."), "utf-8")
    second = tmp_path / "second"
    assert draw(capsys, model, "--document", answer, "--plan", edit, "--out", second)[0] == 0
    changed = load_document(second)
    assert changed.text.endswith("smile.") and len(changed.pictures) == 3
    assert [a.digest for a in changed.pictures[:2]] == [b.digest for b in document.pictures[:2]]
    assert plan_of(changed).parts[2].text == "Pull it open and smile."


def test_in_one_go(server, model, tmp_path, capsys):
    code, out, _ = draw(capsys, model, BOAT, *writer(server), "--out", tmp_path / "a")
    assert code == 0 and len(load_document(out).pictures) == 3 and (tmp_path / "a" / "document.html").is_file()


def test_a_comfyui_workflow_draws_and_no_model_is_loaded(server, tmp_path, capsys):
    for name, nodes in (("text.json", WORKFLOW), ("edit.json", SEES)):
        (tmp_path / name).write_text(json.dumps(nodes))
    with comfyui_server() as comfyui:
        code, out, err = run(
            capsys, "generate", BOAT, *writer(server), "--painter", f"comfyui:{tmp_path}/text.json", "--painter",
            f"comfyui:{tmp_path}/edit.json", "--server", comfyui.url, "--out", tmp_path / "a", "--style", "ink",
        )  # fmt: skip
        prompts = [nodes["1"]["inputs"]["text"] for nodes in comfyui.queued.values()]
    assert code == 0 and "Loading" not in err
    document = load_document(out)
    assert len(document.pictures) == 3 and document.generation["model"] == "edit.json, text.json"
    assert prompts[0] == f"{STEPS[0][1]} paper: white. ink."
    assert prompts[1].startswith(f"Continue from image 1: {STEPS[1][1]} Keep paper as in image 1.")
    assert prompts[2].startswith("Continue from image 1:")  # the workflow sees one, so no prompt speaks of a second


@pytest.mark.parametrize("command", ["plan", "generate"])
def test_ctrl_c_keeps_the_parts_that_are_whole(command, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(interrupt, "requested", lambda: "2. Fold the corners" in "".join(shown))
    shown = []
    monkeypatch.setattr(Progress, "line", lambda self, text: shown.append(text))
    text = plan(*STEPS)
    cut = text.index(STEPS[2][1])
    pieces = [chunk(text[start : start + 9]) for start in range(0, cut, 9)]
    out = tmp_path / ("plan.json" if command == "plan" else "answer")
    with endpoint_server(streaming(*pieces, hold=True)) as server:
        words = [command, BOAT, *writer(server), "--out", out, *(["--model", model] if command == "generate" else [])]
        code, printed, err = run(capsys, *words)
    assert code == 130 and printed == str(out) and f"What was planned is in {out}" in err
    if command == "plan":
        assert [part["text"] for part in json.loads(out.read_text("utf-8"))["parts"]] == [text for text, _ in STEPS[:2]]
        return
    stopped = load_document(out)
    assert [is_pending(picture) for picture in stopped.pictures] == [True, True]
    shown.clear()
    assert draw(capsys, model, "--document", out, "--out", tmp_path / "drawn")[0] == 0  # and is drawn later
    drawn = load_document(tmp_path / "drawn")
    assert len(drawn.pictures) == 2 and not any(map(is_pending, drawn.pictures))


def test_a_stopped_answer_is_drawn_on(server, model, tmp_path, capsys):
    answer = tmp_path / "answer"
    assert draw(capsys, model, BOAT, *writer(server), "--max-images", 1, "--out", answer)[0] == 0
    assert load_document(answer).generation["stop_reason"] == "max_images"
    assert pending_index(load_document(answer)) is None and not any(map(is_pending, load_document(answer).pictures))


def test_going_on_counts_from_where_it_stopped_and_says_how(model, tmp_path, capsys, monkeypatch):
    file, answer = tmp_path / "plan.md", tmp_path / "an answer"
    file.write_text("\n\n---\n\n".join(f"Step {n}.\n\nImage: A red star {n}." for n in (1, 2, 3)))
    shown: list[str] = []
    monkeypatch.setattr(Progress, "_put", lambda self, text: shown.append(text))
    monkeypatch.setattr(interrupt, "requested", lambda: any("image 2 of 3: " in text for text in shown))
    words = ["--model", model, "--steps", 1]
    code, _, err = run(capsys, "generate", "--plan", file, "--out", answer, *words)
    assert code == 130 and f"generate --document '{answer}' --out '{answer}-2'" in err
    assert any("draws what the texts say" in text for text in shown)
    shown.clear()
    assert run(capsys, "generate", "--document", answer, "--out", tmp_path / "b", *words)[0] == 0
    told = [text.split(":")[0].strip() for text in shown if " of 3: " in text]
    assert told == ["image 3 of 3"]


def test_a_plan_without_images_is_told(model, tmp_path, capsys):
    file = tmp_path / "plan.md"
    file.write_text("# Ein Boot\n\n---\n\nFalte das Blatt.\n\nBild: Ein weißes Blatt.\n")
    code, _, err = run(capsys, "generate", "--plan", file, "--out", tmp_path / "a", "--model", model)
    assert code == 0 and f"The plan {file} has no image to draw: no part of it has a line that begins with" in err


def test_ctrl_c_before_the_first_part_says_that_nothing_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    with endpoint_server(streaming(chunk('{"title": "A'), hold=True)) as server:
        code, printed, err = run(capsys, "plan", BOAT, *writer(server), "--out", tmp_path / "plan.md")
    assert code == 130 and not printed and "Stopped; nothing was planned yet." in err


def test_images_of_a_request_go_along_with_a_plan_of_it(server, model, tmp_path, capsys):
    image, file, answer = tmp_path / "cat.png", tmp_path / "plan.json", tmp_path / "answer"
    Image.new("RGB", (16, 16), "red").save(image)
    assert run(capsys, "plan", BOAT, "--image", image, *writer(server), "--out", file)[0] == 0
    assert draw(capsys, model, "--plan", file, "--image", image, "--out", answer)[0] == 0
    document = load_document(answer)
    assert len(document.turns[0].pictures) == 1 and len(document.pictures) == 4
    code, _, err = draw(capsys, model, "--document", answer, "--plan", file, "--image", image, "--out", tmp_path / "b")
    assert code == 2 and "--image belongs to a request" in err


def test_ctrl_c_while_descriptions_are_asked_for_again_keeps_title_and_cast(tmp_path, capsys, monkeypatch):
    bad = plan(*STEPS[:2], (STEPS[2][0], "It is open."))
    out = tmp_path / "plan.json"
    with endpoint_server(completion(bad), completion(bad)) as server:
        monkeypatch.setattr(interrupt, "requested", lambda: len(server.asked) > 1)
        code, _, err = run(capsys, "plan", BOAT, *writer(server), "--out", out)
    value = json.loads(out.read_text("utf-8"))
    assert code == 130 and "Stopped" in err
    assert value["title"] == "A paper boat" and value["cast"] == [{"name": "paper", "looks": "white"}]
    assert [part["text"] for part in value["parts"]] == [text for text, _ in STEPS]


def test_what_workflows_cannot_see_is_said(tmp_path, capsys):
    for name, nodes in (("text.json", WORKFLOW), ("edit.json", SEES)):
        (tmp_path / name).write_text(json.dumps(nodes))
    file = tmp_path / "plan.md"
    file.write_text("One.\n\nImage: a\n\n---\n\nImage: b\n\n---\n\nImage: c\nLooks at: 1 (cast), 2 (before)\n")
    with comfyui_server() as comfyui:
        code, out, err = run(
            capsys, "generate", "--plan", file, "--painter", f"comfyui:{tmp_path}/text.json", "--painter",
            f"comfyui:{tmp_path}/edit.json", "--server", comfyui.url, "--out", tmp_path / "a",
        )  # fmt: skip
    assert code == 0 and "wants up to 2 earlier images seen; the workflows see 1." in err
    assert [picture.meta["looks_at"] for picture in load_document(out).pictures] == [[], [1], [2]]
