"""What goes wrong, and how it is said: one sentence on the node, and the next run works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import graphs
import pytest
from server import Result, Server


def sentence(result: Result) -> str:
    """The message of the error, which must be one or two sentences for the user and no more."""
    assert result.error is not None, "this should have failed"
    message = result.error["exception_message"].strip()
    assert "\n" not in message and message.endswith(".") and len(message) > 20, message
    return message


@pytest.fixture
def broken(server: Server, random_model: Path):
    """A copy of the random checkpoint in ComfyUI's models/duogen, to be damaged."""
    folder = server.base / "models" / "duogen" / "broken"
    shutil.copytree(random_model, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_cut_off_weights(server: Server, broken: Path):
    file = broken / "dit" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    assert file.name in sentence(server.run(graphs.answer("broken")))


@pytest.mark.slow
def test_missing_part(server: Server, broken: Path):
    shutil.rmtree(broken / "connector")
    assert "connector" in sentence(server.run(graphs.answer("broken")))


@pytest.mark.slow
def test_not_a_checkpoint(server: Server, broken: Path):
    (broken / "model_index.json").unlink()
    assert "model_index.json" in sentence(server.run(graphs.answer("broken")))


@pytest.mark.slow
def test_repaired_checkpoint_is_loaded_again(server: Server, broken: Path):
    """The failed load is not remembered: the same graph works once the file is there."""
    file = broken / "connector" / "config.json"
    good = file.read_text("utf-8")
    file.write_text("{", "utf-8")
    graph = graphs.answer("broken", max_images=1)
    sentence(server.run(graph))
    file.write_text(good, "utf-8")
    assert server.run(graph).error is None


@pytest.mark.slow
def test_empty_request(server: Server, random_model: Path):
    assert "empty" in sentence(server.run(graphs.answer(random_model.name, "  ")))


@pytest.mark.slow
def test_half_a_size(server: Server, random_model: Path):
    assert "both" in sentence(server.run(graphs.answer(random_model.name, width=128)))


@pytest.mark.slow
def test_context_without_answer(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name)
    graph["4"]["inputs"]["context"] = ["2", 0]
    graph.pop("5")
    assert "no answer" in sentence(server.run(graph))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["text", "preview"])
def test_interrupt_then_run_again(server: Server, random_model: Path, moment: str):
    """Cancel while writing, or while sampling; it takes effect at once, and leaves nothing behind."""
    pressed: list[object] = []

    def interrupt(kind: str, data: object, result: Result) -> None:
        if kind == moment and not pressed:
            pressed.append(server.post("/interrupt", {}))

    result = server.run(graphs.answer(random_model.name, steps=900, seed=21, max_images=2), watch=interrupt)
    assert result.interrupted and result.error is None
    assert result.steps < 450  # of 1,800: those that were sampled before the server heard of it
    again = server.run(graphs.answer(random_model.name, steps=2, seed=21, max_images=1, prefix="after"))
    assert again.error is None and len(again.outputs["5"]["images"]) == 1


def test_link_left_open(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name)
    del graph["3"]["inputs"]["vae"]
    with pytest.raises(RuntimeError, match="Required input is missing"):
        server.run(graph)
