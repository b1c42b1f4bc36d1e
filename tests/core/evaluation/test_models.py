"""What is put to a benchmark: a planned answer and a user's workflow, on scripted servers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.data.synthetic.painter import PainterError
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Item, benchmark
from duogen_core.evaluation.models import OwnModel, PlannedModel, WorkflowModel
from duogen_core.evaluation.running import answered, checked_items
from duogen_core.picture_sampling import picture_seed
from duogen_core.settings import Settings
from tests.core.comfyui_server import comfyui_server
from tests.core.commands.test_plan import SEES, STEPS, WORKFLOW, plan
from tests.core.endpoint_server import completion, endpoint_server
from tests.core.tiny import random_components, scripted


def picture(number: int) -> Picture:
    return Picture(np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8))


def request(*pictures: Picture, later=(), images=None) -> Item:
    prompt = Document().begin_turn("user", [*pictures, Text('Make it "red"; ${seed}.')])
    return Item("x", prompt, images=images, later=later)


def written(folder: Path, nodes: dict) -> Path:
    (folder / "graph.json").write_text(json.dumps(nodes))
    return folder / "graph.json"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


# ------------------------------------------------------------ a workflow


def test_values_stand_in_their_places(tmp_path):
    """The request's words stay the text of one input, whatever they say; images are the conversation's, from the last
    one back."""
    nodes = {
        "1": node("Text", text="${prompt}", more="seed ${seed}, ${images} images"),
        "2": node("KSampler", seed="${seed}"),
        "3": node("LoadImage", image="${image_1}"),
        "4": node("LoadImage", image="${image_2}"),
        "10": node("PreviewImage", images=["2", 0]),
        "9": node("SaveImage", images=["2", 0]),
    }
    first, second = picture(1), picture(2)
    with comfyui_server() as server:
        model = WorkflowModel(written(tmp_path, nodes), server.url)
        item = request(first, second, images=2)
        found = model.answer(item, 2**60 + 5)
        (queued,) = server.queued.values()
    assert queued["1"]["inputs"]["text"] == 'Make it "red"; ${seed}.'
    assert queued["2"]["inputs"]["seed"] == (2**60 + 5) % 2**53  # a number, exact in JSON
    assert queued["1"]["inputs"]["more"] == f"seed {(2**60 + 5) % 2**53}, 2 images"
    assert [queued[key]["inputs"]["image"] for key in "34"] == [
        f"duogen/{one.digest[:24]}.png" for one in (second, first)
    ]
    assert len(item.pictures(found)) == 2 and item.text(found) == ""


def test_a_free_number_of_images_is_what_the_command_says(requests, tmp_path):
    nodes = {"1": node("Text", text="${prompt}"), "2": node("KSampler", steps="${images}"),
             "9": node("PreviewImage", images=["2", 0])}  # fmt: skip
    with comfyui_server() as server:
        options = ["--workflow", str(written(tmp_path, nodes)), "--server", server.url, "--max-images"]
        evaluated(requests, tmp_path / "run", *options, "3")
        (queued,) = server.queued.values()
        assert queued["2"]["inputs"]["steps"] == 3
        with pytest.raises(AssertionError):
            evaluated(requests, tmp_path / "run", *options, "4")


def test_further_turns_see_what_was_drawn(tmp_path):
    nodes = {"1": node("Text", text="${prompt}"), "3": node("LoadImage", image="${image_1}"),
             "9": node("PreviewImage", images=["3", 0])}  # fmt: skip
    item = request(picture(1), later=((Text("Now blue."),),))
    with comfyui_server() as server:
        found = WorkflowModel(written(tmp_path, nodes), server.url).answer(item, 1)
        first, second = server.queued.values()
    assert [turn.role for turn in found.turns] == ["user", "assistant", "user", "assistant"]
    drawn = item.pictures(found)[0]
    assert second["3"]["inputs"]["image"] == f"duogen/{drawn.digest[:24]}.png" != first["3"]["inputs"]["image"]
    assert second["1"]["inputs"]["text"] == "Now blue."


def test_what_a_workflow_cannot_answer(tmp_path):
    nodes = {"1": node("Text", text="${prompt}"), "3": node("LoadImage", image="${image_1}")}
    with comfyui_server() as server:
        model = WorkflowModel(written(tmp_path, nodes), server.url)
        with pytest.raises(DuoGenError, match=r"place for \$\{image_1\}, and the request has 0 images"):
            model.answer(request(), 1)
        with pytest.raises(DuoGenError, match="showed no text and no image"):
            model.answer(request(picture(1)), 1)
    with pytest.raises(PainterError) as gone:
        WorkflowModel(written(tmp_path, WORKFLOW), "http://127.0.0.1:9").answer(request(), 1)
    assert gone.value.stop  # the run stops, and no request is blamed


def test_a_document_that_a_server_names_stays_on_the_server(tmp_path):
    """What it says of folders and files is believed no further than to ask it for them."""
    outputs = {"7": {"document": [{"folder": "../..", "document": "document.json"}]}}
    asked = []

    def history(handler):
        id_ = handler.url.path.rpartition("/")[2]
        return 200, {id_: {"outputs": outputs, "status": {"status_str": "success", "messages": []}}}

    def view(handler):
        asked.append(handler.url.query)
        return 200, b'{"format": "duogen-document", "version": 1, "turns": [{"role": "assistant", "parts": [{"type": '\
            b'"image", "file": "../../secret.png"}]}]}'  # fmt: skip

    with comfyui_server(history=history, view=view) as server:
        model = WorkflowModel(written(tmp_path, WORKFLOW), server.url)
        with pytest.raises(DuoGenError, match="secret"):
            model.answer(request(), 1)
    assert len(asked) == 1 and "document.json" in asked[0]


# ------------------------------------------------------------ a plan that is drawn


@pytest.fixture
def requests(tmp_path) -> Path:
    entries = [{"id": "boat", "prompt": "How do I fold a paper boat?", "text_rubrics": ["x"], "image_rubrics": []}]
    file = tmp_path / "ueval.json"
    file.write_text(json.dumps(entries))
    return file


def evaluated(requests: Path, out: Path, *options: str):
    words = ["evaluate", "run", "ueval", "--requests", str(requests), "--out", str(out), "--quiet", *options]
    assert main(words) == 0
    bench = benchmark("ueval")
    ((item, document),) = answered(out, bench, checked_items(bench, requests))
    return item, document


def test_a_planned_answer_drawn_by_a_workflow(requests, tmp_path):
    painters = []
    for name, nodes in (("text", WORKFLOW), ("edit", SEES)):
        (tmp_path / f"{name}.json").write_text(json.dumps(nodes))
        painters += ["--painter", f"comfyui:{tmp_path / name}.json"]
    with endpoint_server(completion(plan(*STEPS))) as writer, comfyui_server() as comfyui:
        options = ["--writer", writer.url, "--writer-model", "m", *painters, "--server", comfyui.url]
        item, document = evaluated(requests, tmp_path / "run", *options)
        prompts = [nodes["1"]["inputs"]["text"] for nodes in comfyui.queued.values()]
    assert item.text(document) == "\n\n".join(text for text, _ in STEPS)
    assert len(item.pictures(document)) == len(prompts) == 3 and prompts[1].startswith("Continue from image 1:")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["details"]["model"] == "m + text, edit" and run["identity"]["writer"] == "m"


def test_a_planned_answer_drawn_by_our_model(requests, tmp_path):
    model = save_checkpoint(random_components(), tmp_path / "tiny")
    with endpoint_server(completion(plan(*STEPS))) as writer:
        options = ["--writer", writer.url, "--writer-model", "m", "--model", str(model), "--steps", "1"]
        item, document = evaluated(requests, tmp_path / "run", *options)
    assert len(item.pictures(document)) == 3 and document.generation["stop_reason"] == "end"


def test_images_that_must_be_there_are_insisted_on():
    """A model that answers in words alone draws what is missing, after its words and with its own seeds."""
    components = random_components()
    scripted(components, ("No.", "end"))
    settings = Settings(steps=1, max_new_tokens=20)
    item = request(images=2)
    plain = OwnModel("m", lambda: components, settings).answer(item, 5)
    assert item.text(plain) == "No." and not item.pictures(plain)
    scripted(components, ("No.", "end"))
    insisted = OwnModel("m", lambda: components, settings, insist=True)
    found = insisted.answer(item, 5)
    assert item.text(found) == "No." and len(item.pictures(found)) == 2
    assert [one.meta["seed"] for one in found.pictures] == [picture_seed(5, 0), picture_seed(5, 1)]
    assert found.generation["stop_reason"] == "end" and insisted.identity()["insist"]
    scripted(components, ("No.", "end"))
    assert not insisted.answer(request(images=None), 5).pictures  # their number is the model's affair


def test_several_processes_give_the_same_bytes(tmp_path):
    from tests.core.evaluation.benchmarks.layout_ueval import write_requests

    requests = write_requests(tmp_path)
    common = ["evaluate", "run", "ueval", "--requests", str(requests), "--quiet", "--max-tokens", "40"]
    common += ["--max-images", "1", "--steps", "1", "--shard", "2"]
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    assert main([*common, "--out", str(tmp_path / "two"), "--jobs", "2"]) == 0
    for file in sorted((tmp_path / "one").rglob("*")):
        if file.is_file() and file.parent.name != "times":
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file


def test_a_run_does_not_go_on_with_another_precision_or_other_weights(requests, tmp_path, capsys):
    """Another training of the same model has the same name, often the same path, and files of the same sizes."""
    for seed in (0, 1):
        save_checkpoint(random_components(seed=seed), tmp_path / str(seed) / "tiny")
    one, other = (str(tmp_path / name / "tiny") for name in "01")
    common = ["--steps", "1", "--max-tokens", "20", "--max-images", "1"]
    evaluated(requests, tmp_path / "run", *common, "--model", one)
    evaluated(requests, tmp_path / "run", *common, "--model", one)  # the same goes on
    words = ["evaluate", "run", "ueval", "--requests", str(requests), "--out", str(tmp_path / "run"), *common]
    for options, says in ((["--model", other], "weights"), (["--model", one, "--dtype", "bf16"], "dtype")):
        capsys.readouterr()
        assert main([*words, "--quiet", *options]) == 2
        assert f"begun with other values of {says};" in capsys.readouterr().err


def test_plans_of_other_prompts_are_another_run(tmp_path, monkeypatch):
    from duogen_core.planning import writing

    model = PlannedModel("m", lambda: None, Settings())
    before = model.identity()
    shutil.copytree(writing.PROMPTS, tmp_path / "prompts")
    monkeypatch.setattr(writing, "PROMPTS", tmp_path / "prompts")
    assert model.identity() == before
    file = sorted((tmp_path / "prompts").glob("*.txt"))[0]
    file.write_text(file.read_text("utf-8") + "Be kind.", "utf-8")
    assert {name for name, value in model.identity().items() if value != before[name]} == {"prompts"}


def test_a_run_does_not_go_on_with_another_writer(requests, tmp_path, monkeypatch):
    from duogen_core.commands import evaluate_benchmarks as command
    from duogen_core.commands.evaluate_benchmarks import _identity, _writer_name

    file = tmp_path / "w.gguf"
    file.write_bytes(b"one")
    args = SimpleNamespace(workflow=None, painter=["comfyui:x"], writer=str(file), writer_model="", writer_dtype="auto",
                           dtype="fp32")  # fmt: skip
    before = _identity(args)
    file.write_bytes(b"two")
    assert _identity(args) != before == {**_identity(args), "writer_weights": before["writer_weights"]}
    args.writer_dtype = "bf16"
    assert _identity(args)["writer_dtype"] == "bf16" and before["writer_dtype"] == "fp32"
    # a server's only model is asked for its name: "v1" is no model
    client = SimpleNamespace(endpoint=SimpleNamespace(model="qwen3"))
    monkeypatch.setattr(command, "_open_writer", lambda args: client)
    args.writer = "http://127.0.0.1:8080/v1"
    assert _writer_name(args) == "qwen3" and _identity(args) == {}


@pytest.mark.parametrize(
    "options, says",
    [
        (["--workflow", "x.json", "--steps", "3"], "of --steps"),
        (["--workflow", "x.json", "--size", "64x64", "--compile"], "of --size, --compile"),
        (["--writer", "w.gguf", "--painter", "comfyui:x.json", "--guidance", "2"], "of --guidance"),
        (["--writer", "w.gguf", "--max-images", "2"], "of --max-images"),
        (["--writer-model", "m"], "of --writer-model"),
    ],
)
def test_options_that_would_do_nothing_are_told(requests, tmp_path, capsys, options, says):
    words = ["evaluate", "run", "ueval", "--requests", str(requests), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, *options]) == 2
    assert f"so that nothing would become {says}; leave that out" in capsys.readouterr().err
