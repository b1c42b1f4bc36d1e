"""A list on a socket, as ComfyUI means it: every node that expands answers each entry, and each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import assert_same_turns
from server import Result, Server
from test_stock_nodes import node
from test_trouble import sentence

from duogen_core.document import Document
from duogen_core.document.reading import load_document

pytestmark = pytest.mark.slow
REQUESTS = ("Answer the first.", "Answer the second.")
DRAWS, ENDS = "A wall. <BOV: bricks>", "There is nothing to draw."


@pytest.fixture(params=["server", "classic_cache", "no_cache"])
def cache(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


def saved_documents(server: Server, result: Result, save: str = "5") -> list[Document]:
    assert result.error is None, result.error
    return [load_document(server.base / "output" / saved["folder"]) for saved in result.outputs[save]["document"]]


def create_list(graph: dict[str, Any], name: str, *entries: dict[str, Any]) -> list:
    """Put nodes in, and a list of what they give out; returns its link."""
    links = {}
    for index, entry in enumerate(entries):
        graph[f"{name}{index}"] = entry
        links[f"inputs.input{index}"] = [f"{name}{index}", 0]
    graph[name] = node("CreateList", **links)
    return [name, 0]


def requests(graph: dict[str, Any]) -> list:
    return create_list(graph, "request", *(node("DuoGenPrompt", text=text) for text in REQUESTS))


def writer_loop(**close: Any) -> dict[str, Any]:
    """Ask (3), a "writer" that always says the same (said), Read (7), a painter of even colour (paint), Close (9)."""
    return {
        "2": node("DuoGenPrompt", text="Draw."),
        "3": node("DuoGenAskWriter", context=["2", 0], format="plain text", which="all", captions=True),
        "said": node("PrimitiveString", value=DRAWS),
        "7": node("DuoGenReadWriter", context=["3", 0], text=["said", 0], seed=5),
        "paint": node("EmptyImage", width=32, height=32, batch_size=1, color=["7", 3]),
        "shown": node("PreviewImage", images=["paint", 0]),
        "9": node(
            "DuoGenLoopClose", **{"loop": ["7", 0], "image": ["paint", 0], "max_images": 2, "seeds": "", **close}
        ),
        "5": node("DuoGenSaveDocument", context=["9", 0], filename_prefix="lists/writer"),
    }


def test_interleave(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, prefix="lists/both", max_images=1)
    graph["3"]["inputs"]["context"] = requests(graph)
    result = server.run(graph)
    both = saved_documents(server, result)
    assert sum(name.endswith(".sample") for name in result.ran) == 2 and len(both) == 2
    for document, request in zip(both, REQUESTS, strict=True):
        alone = server.run(graphs.answer(random_model.name, request, prefix="lists/alone", max_images=1))
        assert_same_turns(document, *saved_documents(server, alone))


def test_the_loop(cache: Server, random_model: Path):
    graph = graphs.loop(random_model.name, prefix="lists/loop", max_images=2)
    graph["3"]["inputs"]["context"] = requests(graph)
    both = saved_documents(cache, cache.run(graph))
    assert len(both) == 2
    for document, request in zip(both, REQUESTS, strict=True):
        alone = cache.run(graphs.loop(random_model.name, request, prefix="lists/alone", max_images=2))
        assert len(document.pictures) == 2
        assert_same_turns(document, *saved_documents(cache, alone))


def test_the_loop_of_any_writer(cache: Server):
    graph = writer_loop()
    graph["3"]["inputs"]["context"] = requests(graph)
    both = saved_documents(cache, cache.run(graph))
    assert [document.turns[0].text for document in both] == list(REQUESTS)
    for document in both:
        alone = writer_loop()
        alone["2"]["inputs"]["text"] = document.turns[0].text
        assert_same_turns(document, *saved_documents(cache, cache.run(alone)))


@pytest.mark.parametrize("draws", [[True, False], [False, True, True]])
def test_answers_with_pictures_beside_answers_without(cache: Server, draws: list[bool]):
    """Nothing goes on to the painter for an answer without a picture, and ComfyUI blocks whatever hangs on nothing."""
    graph = writer_loop()
    texts = create_list(graph, "text", *(node("PrimitiveString", value=DRAWS if one else ENDS) for one in draws))
    graph["7"]["inputs"]["text"] = texts
    result = cache.run(graph)
    documents = saved_documents(cache, result)
    assert [len(document.pictures) for document in documents] == [2 * one for one in draws]
    (drawn,) = {document.turns for document, one in zip(documents, draws, strict=True) if one}
    assert_same_turns(Document(drawn), *saved_documents(cache, cache.run(writer_loop())))
    previews = [shown["images"] for name, shown in result.outputs.items() if name.endswith("shown")]
    assert sum(map(len, previews)) == 3 * sum(draws), "each picture is shown, the first one twice"


def test_answers_with_pictures_beside_answers_without_in_the_loop(server: Server, random_model: Path):
    """Of the limit each request has its own; a limit of 0 ends an answer that would have had a picture."""
    graph = graphs.loop(random_model.name, prefix="lists/limits", max_images=2)
    graph["3"]["inputs"]["context"] = requests(graph)
    graph["9"]["inputs"]["max_images"] = create_list(
        graph, "limit", *(node("PrimitiveInt", value=limit) for limit in (0, 2))
    )
    assert [len(document.pictures) for document in saved_documents(server, server.run(graph))] == [0, 2]


def test_a_list_of_something_else(cache: Server):
    """One request, two widths for its painter: two answers, and not two to the power of their pictures."""
    graph = writer_loop(max_images=3)
    widths = create_list(graph, "width", *(node("PrimitiveInt", value=width) for width in (32, 64)))
    graph["paint"]["inputs"]["width"] = widths
    documents = saved_documents(cache, cache.run(graph))
    assert [[picture.size[0] for picture in document.pictures] for document in documents] == [[32] * 3, [64] * 3]


def test_a_list_of_something_else_beside_the_requests(server: Server):
    graph = writer_loop()
    graph["3"]["inputs"]["context"] = requests(graph)
    widths = create_list(graph, "width", *(node("PrimitiveInt", value=width) for width in (32, 64)))
    graph["paint"]["inputs"]["width"] = widths
    documents = saved_documents(server, server.run(graph))
    assert [document.turns[0].text for document in documents] == list(REQUESTS)
    assert [[picture.size[0] for picture in document.pictures] for document in documents] == [[32] * 2, [64] * 2]


def test_several_pictures_in_one_round(server: Server):
    graph = writer_loop()
    graph["two"] = node("CreateList", **{"inputs.input0": ["paint", 0], "inputs.input1": ["paint", 0]})
    graph["9"]["inputs"]["image"] = ["two", 0]
    assert "a list of several; choose one" in sentence(server.run(graph))


def test_two_closes_on_one_open(cache: Server):
    """Two painters, two answers to one request; each has its own pictures and none of the other's."""
    graph = writer_loop()
    graph["other paint"] = node("EmptyImage", width=64, height=32, batch_size=1, color=["7", 3])
    graph["other shown"] = node("PreviewImage", images=["other paint", 0])
    graph["other close"] = node("DuoGenLoopClose", loop=["7", 0], image=["other paint", 0], max_images=3, seeds="")
    graph["other save"] = node("DuoGenSaveDocument", context=["other close", 0], filename_prefix="lists/other")
    result = cache.run(graph)
    (ours,), (theirs,) = saved_documents(cache, result), saved_documents(cache, result, "other save")
    assert [picture.size for picture in ours.pictures] == [(32, 32)] * 2
    assert [picture.size for picture in theirs.pictures] == [(64, 32)] * 3
    for name, count in (("shown", 2), ("other shown", 3)):
        assert sum(output.split(".")[-1] == name for output in result.outputs) == count


def test_two_closes_on_one_open_in_a_row(server: Server):
    graph = writer_loop()
    graph["last"] = node("DuoGenFormat", context=["9", 0], part="answer")
    graph["other close"] = node("DuoGenLoopClose", loop=["7", 0], image=["last", 1], max_images=2, seeds="")
    graph["other save"] = node("DuoGenSaveDocument", context=["other close", 0], filename_prefix="lists/other")
    assert "a Loop Open of its own" in sentence(server.run(graph))


def test_a_node_in_the_loop_that_is_not_connected(server: Server):
    """ComfyUI leaves it out of the run and says so; in the rounds after the first it is left out as well."""
    graph = writer_loop()
    graph["2"]["inputs"]["text"] = "Draw what no other test has drawn."
    graph["unwired"] = node("PreviewImage")
    graph["half wired"] = node("DuoGenSaveDocument", context=["7", 1])
    (document,) = saved_documents(server, server.run(graph))
    assert len(document.pictures) == 2
