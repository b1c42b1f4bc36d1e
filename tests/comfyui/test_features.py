"""The feature table of docs/features.md: each row has tests that prove our column (features.py), and they are there."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import graphs
import numpy as np
import pytest
from answers import saved_document
from conftest import BUNDLED
from features import PROOFS
from PIL import Image
from server import PACK, Server
from test_stock_nodes import node, write_lora

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("row", PROOFS)
def test_row_has_its_proofs(row: str):
    """Each test named is there. conftest.py sees to it that none of them is skipped."""
    for proof in PROOFS[row]:
        file, _, test = proof.partition("::")
        tree = ast.parse((HERE / file).read_text("utf-8"))
        assert test in {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}, proof


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
