"""The feature table of docs/features.md, row by row, with the tests that prove our column.

Model decides when to draw: test_features.py::test_the_model_decides_when_to_draw_and_when_to_end
Order kept in outputs: test_workflow.py::test_streams_and_previews, \
test_documents.py::test_format_gives_each_picture_its_paragraph
Sampler, LoRA and own nodes per image: test_features.py::test_one_picture_with_a_lora_and_a_sampler_of_its_own, \
test_loop.py::test_own_nodes_between, test_workflow_painter.py::test_any_painter
Ends early at the end of the turn: test_features.py::test_the_model_decides_when_to_draw_and_when_to_end
Reroll one image: test_reroll.py::test_reroll_draws_from_there_on, test_reroll.py::test_reroll_in_the_loop
Different size per image: test_features.py::test_every_picture_has_its_own_size
Streams text: test_workflow.py::test_streams_and_previews
Saves an ordered document: test_workflow.py::test_saved_folder
Low VRAM: test_memory.py::test_same_numbers_as_plain_modules, test_flags.py::test_free_gives_it_all_back
"""

from __future__ import annotations

import ast
import io
from pathlib import Path

import graphs
import numpy as np
import pytest
from answers import saved_document
from conftest import BUNDLED
from PIL import Image
from server import PACK, Server
from test_stock_nodes import node, write_lora

HERE = Path(__file__).resolve().parent
PROOFS = dict(line.split(": ", 1) for line in (__doc__ or "").splitlines() if "::" in line)


@pytest.mark.judges_others
@pytest.mark.parametrize("row", PROOFS)
def test_row_is_proved_in_this_run(row: str, request: pytest.FixtureRequest, comfyui: Path):
    """Each of its tests was run, in each of its variants, and passed. Where a run leaves tests out (`-k`, one file), a
    row without them is not judged; but that they are there is seen in any run."""
    missing = []
    for proof in PROOFS[row].split(", "):
        file, _, test = proof.partition("::")
        tree = ast.parse((HERE / file).read_text("utf-8"))
        assert test in {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}, proof
        variants = [item for item in request.session.items if item.path == HERE / file and item.originalname == test]
        if not variants:
            missing.append(proof)
        for item in variants:
            assert item.outcomes == ["passed"] * 3, f"{item.nodeid}: {item.outcomes} (setup, call, teardown)"
    if missing:
        pytest.skip(f"This run leaves out {', '.join(missing)}.")


def test_the_table_has_these_rows():
    lines = (PACK / "docs" / "features.md").read_text("utf-8").splitlines()
    table = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert table[2:] == list(PROOFS), "a header, a rule, and the rows in this order"


@pytest.mark.slow
def test_the_model_decides_when_to_draw_and_when_to_end(server: Server):
    """The bundled model: a guide has its steps and ends by itself, with no sampling beyond; a question has a text."""
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip("The bundled model models/duogen-tiny is not here.")
    guide = server.run(graphs.answer(BUNDLED.name, prefix="features/guide", steps=2, max_images=20))
    document = saved_document(server, guide)
    drawn = len(document.pictures)
    assert document.generation["stop_reason"] == "end" and 3 <= drawn < 20
    assert sum(node.endswith(".sample") for node in guide.ran) == drawn
    asked = server.run(graphs.answer(BUNDLED.name, "What is a triangle?", prefix="features/asked"))
    document = saved_document(server, asked)
    assert document.generation["stop_reason"] == "end" and document.text and not document.pictures


@pytest.mark.slow
def test_one_picture_with_a_lora_and_a_sampler_of_its_own(server: Server, random_model: Path):
    plain = saved_document(server, server.run(graphs.staged(random_model.name, prefix="features/plain", pictures=3)))
    graph = graphs.staged(random_model.name, prefix="features/own", pictures=3)
    write_lora(server, random_model, "comfyui")
    graph["lora"] = node("LoraLoaderModelOnly", model=["1", 2], lora_name="comfyui.safetensors", strength_model=1.0)
    graph["p1.sample"]["inputs"].update(model=["lora", 0], sampler_name="heun", steps=3)
    own = saved_document(server, server.run(graph))
    assert own.pictures[0] == plain.pictures[0] and own.pictures[1] != plain.pictures[1]
    assert own.pictures[2] != plain.pictures[2], "the third looks at the second"


@pytest.mark.slow
def test_every_picture_has_its_own_size(server: Server, random_model: Path):
    sizes = [(96, 64), (64, 96), (112, 112)]
    graph = graphs.staged(random_model.name, prefix="features/sizes", pictures=3)
    for k, (width, height) in enumerate(sizes):
        graph[f"p{k}.size"]["inputs"].update(size="fixed", width=width, height=height)
    graph["shown"] = node("PreviewImage", images=["4", 1])
    result = server.run(graph)
    assert [picture.size for picture in saved_document(server, result).pictures] == sizes
    shown = [Image.open(io.BytesIO(server.get_bytes("/view", **file))) for file in result.outputs["shown"]["images"]]
    assert [image.size for image in shown] == sizes
    assert all(np.asarray(image).std() > 0 for image in shown)
