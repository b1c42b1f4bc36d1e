"""Nothing finished is lost: every finished picture reaches the page and the disk while the answer grows, and what an
interrupted, failed or killed run has left is opened and continued by a server that was started after it."""

from __future__ import annotations

import contextlib
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from answers import assert_same_turns, saved_document
from conftest import running
from PIL import Image
from server import Result, Server
from test_stock_nodes import node

from duogen_core import picture_sampling
from duogen_core.document import Document
from duogen_core.document.reading import load_document

PICTURES = 4  # of a whole answer; it is stopped in the third
MANY_STEPS = 200  # there is time to press Cancel
FIRST, NEXT = "First a wall.", "Now the roof"
pytestmark = pytest.mark.slow


@dataclass
class Page:
    """What a page sees of a run: the answers so far, each with the pictures as /view gives them at that moment."""

    server: Server
    answers: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[list[np.ndarray]] = field(default_factory=list)

    def __call__(self, kind: str, data: Any, result: Result) -> None:
        output = data.get("output") if kind == "executed" else None
        for answer in (output or {}).get("duogen_document", ()):
            files = [part for turn in answer["turns"] for part in turn["parts"] if part["type"] == "image"]
            self.answers.append(answer)
            self.pictures.append([self._view(file) for file in files if not file.get("pending")])

    def _view(self, file: dict[str, Any]) -> np.ndarray:
        place = {"filename": file["filename"], "subfolder": file["subfolder"], "type": file["folder"]}
        return np.asarray(Image.open(BytesIO(self.server.get_bytes("/view", **place))))


def unfinished(server: Server) -> dict[str, Document]:
    """Name as DuoGen Load Document lists it -> what lies there."""
    folders = sorted((server.base / "output").glob("duogen/unfinished/*"))
    listed = server.get("/object_info")["DuoGenLoadDocument"]["input"]["required"]["document"]
    names = [f"duogen/unfinished/{folder.name} [output]" for folder in folders]
    assert set(names) <= set(listed[1]["options"] if listed[0] == "COMBO" else listed[0])
    return {name: load_document(folder) for name, folder in zip(names, folders, strict=True)}


def new_one(server: Server, before: dict[str, Document]) -> tuple[str, Document]:
    ((name, document),) = [(name, found) for name, found in unfinished(server).items() if name not in before]
    return name, document


def interrupt_in_picture(number: int, server: Server):
    """A watcher that presses Cancel while this picture is sampled."""
    pressed = []

    def watch(kind: str, data: Any, result: Result) -> None:
        if kind == "text" and data.startswith(f"Image {number}") and ", step " in data and not pressed:
            pressed.append(server.post("/interrupt", {}))

    return watch


def request(how: str) -> str:
    return f"How do I draw a house? {how}."


@dataclass
class Left:
    """What the first server left behind, by how its runs ended."""

    base: Path
    names: dict[str, str] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)


@pytest.fixture(scope="module")
def left(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """One guide interrupted, one failed, one whose server was killed: each in its third picture."""
    found = Left(tmp_path_factory.mktemp("stopped"))
    with contextlib.contextmanager(running)(comfyui, random_model, found.base) as server:

        def guide(how: str) -> dict[str, Any]:
            return graphs.answer(random_model.name, request(how), prefix="stopped/x", max_images=PICTURES)

        graph = guide("interrupt")
        graph["3"]["inputs"]["steps"] = MANY_STEPS
        result = server.run(graph, watch=interrupt_in_picture(3, server))
        assert result.interrupted and result.outputs, "the history has what was finished, for a page that is reloaded"
        found.names["interrupt"], _ = new_one(server, {})

        server.post("/duogen_test/fail", {"drawing": 3})
        before = unfinished(server)
        result = server.run(guide("error"))
        assert "as the test wanted" in result.error["exception_message"] and result.outputs
        found.names["error"], _ = new_one(server, before)
        assert all(name in server.log for name in found.names.values()), "the log says where they are"

        def kill(kind: str, data: Any, result: Result) -> None:
            if kind == "text" and data.startswith("Image 3"):
                server.process.kill()
                server.process.wait()

        with contextlib.suppress(ConnectionError, urllib.error.URLError):
            server.run(guide("kill"), watch=kill)
        assert server.process.poll() is not None
        names = {
            f"duogen/unfinished/{folder.name} [output]" for folder in found.base.glob("output/duogen/unfinished/*")
        }
        (found.names["kill"],) = names - set(found.names.values())
    assert not list(found.base.glob("output/stopped/*")), "Save Document was never reached"
    for how, name in found.names.items():
        found.documents[how] = load_document(found.base / "output" / name.removesuffix(" [output]"))
    return found


@pytest.fixture(scope="module")
def next_server(comfyui: Path, left: Left) -> Iterator[Server]:
    """ComfyUI started again on the same folders, whose temp folder it empties."""
    started = Server(comfyui, left.base)
    try:
        yield started.wait()
    finally:
        started.stop()


@pytest.mark.parametrize("how", ["interrupt", "error", "kill"])
def test_finished_pictures_are_continued_in_a_new_server(next_server: Server, left: Left, random_model: Path, how: str):
    stopped = left.documents[how]
    assert [turn.role for turn in stopped.turns] == ["user", "assistant"] and stopped.turns[0].text == request(how)
    assert len(stopped.pictures) == 2 and stopped.generation["stop_reason"] == "interrupted"
    graph = graphs.answer(random_model.name, prefix=f"continued/{how}", max_images=PICTURES - 2)
    graph["2"] = node("DuoGenLoadDocument", document=left.names[how])
    # Picture 3 of the whole answer is the first of this run: it gets the seed it would have had.
    graph["3"]["inputs"] |= {"seeds": ", ".join(f"{k - 1}: {picture_sampling.picture_seed(7, k)}" for k in (2, 3))}
    graph["3"]["inputs"]["steps"] = MANY_STEPS if how == "interrupt" else 0
    continued = saved_document(next_server, next_server.run(graph))
    assert continued.pictures[:2] == stopped.pictures, "not a pixel of what was finished is another"
    assert len(continued.pictures) == PICTURES
    assert (next_server.base / "output" / left.names[how].removesuffix(" [output]") / "document.json").is_file(), (
        "what was opened is the user's"
    )
    if how != "interrupt":  # so many steps once more would take long
        whole = next_server.run(graphs.answer(random_model.name, request(how), prefix="whole/x", max_images=PICTURES))
        assert_same_turns(continued, saved_document(next_server, whole))
    assert len(unfinished(next_server)) == 3, "runs that ended well left nothing"


def test_a_finished_picture_reaches_the_page_at_full_quality_before_the_end(server: Server, random_model: Path):
    page = Page(server)
    before = unfinished(server)
    graph = graphs.answer(random_model.name, request("at once"), prefix="live/x", max_images=3)
    result = server.run(graph, watch=page)
    document = saved_document(server, result)
    so_far = [answer for answer in page.answers if answer.get("running")]
    assert [len(pictures) for pictures in page.pictures[:3]] == [1, 2, 3] and len(so_far) == 3
    for pictures in page.pictures:
        for shown, kept in zip(pictures, document.pictures, strict=False):
            assert np.array_equal(shown, kept.pixels), "the very pixels that are saved"
    assert "running" not in page.answers[-1] and page.answers[-1]["generation"]["stop_reason"] == "max_images"
    assert unfinished(server) == before, "a run that ended well leaves no copy"


def test_what_was_finished_stays_through_a_second_try(server: Server, random_model: Path):
    """The same graph again, its pictures from the cache: one copy, which the finished run removes. Another seed for an
    early picture, stopped sooner: the longer answer of the run before is not touched."""
    before = unfinished(server)
    graph = graphs.answer(random_model.name, request("second try"), prefix="again/x", max_images=PICTURES, seed=40)
    server.post("/duogen_test/fail", {"drawing": 4})
    assert server.run(graph).error
    name, longest = new_one(server, before)
    assert len(longest.pictures) == 3
    server.post("/duogen_test/fail", {"drawing": 1})
    again = server.run(graph)
    assert again.error and not [ran for ran in again.ran if ran.endswith(".append")], "three pictures of the cache"
    assert unfinished(server) == before | {name: longest}
    graph["3"]["inputs"]["seeds"] = "2: 1234"
    server.post("/duogen_test/fail", {"drawing": 2})
    assert server.run(graph).error
    now = unfinished(server)
    ((_, shorter),) = [item for item in now.items() if item[0] not in before and item[0] != name]
    assert now[name] == longest
    assert len(shorter.pictures) == 2 and shorter.pictures[0] == longest.pictures[0]
    assert shorter.pictures[1].meta["seed"] == 1234
    document = saved_document(server, server.run(graph))
    assert document.pictures[:2] == shorter.pictures
    assert set(unfinished(server)) == {*before, name}, "what the finished answer holds is removed, and nothing else"


def test_pictures_of_the_cache_are_kept_too(server: Server, random_model: Path):
    """A finished run, then another seed for the last picture, which is cancelled."""
    before = unfinished(server)
    graph = graphs.answer(random_model.name, request("reroll"), prefix="reroll/x", max_images=3)
    document = saved_document(server, server.run(graph))
    graph["3"]["inputs"]["seeds"] = "3: 99"
    server.post("/duogen_test/fail", {"drawing": 1})
    assert server.run(graph).error
    _, stopped = new_one(server, before)
    assert stopped.pictures == document.pictures[:2]


@pytest.mark.parametrize("kind", ["staged", "loop", "plan first"])
def test_other_graphs(server: Server, random_model: Path, kind: str):
    """Stages one by one, the user's own nodes in a loop, and an answer that was planned: the same holds."""
    before, words = unfinished(server), request(kind)
    if kind == "staged":
        graph = graphs.staged(random_model.name, words, pictures=3, prefix=f"other/{kind}")
    elif kind == "loop":
        graph = graphs.loop(random_model.name, words, max_images=3, prefix=f"other/{kind}")
    else:
        limits = {"max_images": 3, "max_tokens": 120, "mode": kind}
        graph = graphs.answer(random_model.name, words, prefix=f"other/{kind}", **limits)
    page = Page(server)
    server.post("/duogen_test/fail", {"drawing": 3})
    assert server.run(graph, watch=page).error
    name, stopped = new_one(server, before)
    drawn = [picture for picture in stopped.pictures if not picture.meta.get("pending")]
    assert len(drawn) == 2 and [len(pictures) for pictures in page.pictures] == [1, 2]
    assert page.answers[-1]["unfinished"] == name
    if kind == "plan first":
        assert stopped.turns[-1].meta["planned"], "the text that was planned is kept with its places"
    page = Page(server)
    document = saved_document(server, server.run(graph, watch=page))
    assert document.pictures[:2] == tuple(drawn)
    assert unfinished(server) == before


def test_a_planned_answer_is_continued(server: Server, random_model: Path):
    before, words = unfinished(server), request("planned")
    graph = graphs.answer(
        random_model.name, words, prefix="planned/x", max_images=3, max_tokens=120, mode="plan first"
    )  # fmt: skip
    server.post("/duogen_test/fail", {"drawing": 3})
    assert server.run(graph).error
    name, stopped = new_one(server, before)
    graph["2"] = node("DuoGenLoadDocument", document=name)
    graph["3"]["inputs"]["max_images"] = 1
    continued = saved_document(server, server.run(graph))
    drawn = [picture for picture in stopped.pictures if not picture.meta.get("pending")]
    assert len(continued.pictures) == 3 and continued.pictures[:2] == tuple(drawn)
    assert unfinished(server) == before | {name: stopped}, "what was opened is the user's, in the same server too"


def test_two_answers_of_one_prompt_have_their_own(server: Server, random_model: Path):
    """Of the four pictures that were finished, each is saved or in the copy of its answer, whichever comes first."""
    before = unfinished(server)
    graph = graphs.answer(random_model.name, request("one"), prefix="two/one", max_images=2, seed=60)
    other = graphs.answer(random_model.name, request("other"), prefix="two/other", max_images=3, seed=70)
    del graph["4"], graph["6"]
    graph |= {f"1{number}": other[number] for number in ("2", "3", "5")}
    graph["13"]["inputs"]["context"], graph["15"]["inputs"]["context"] = ["12", 0], ["13", 0]
    server.post("/duogen_test/fail", {"drawing": 5})
    assert server.run(graph).error
    kept = [document for name, document in unfinished(server).items() if name not in before]
    saved = [load_document(file.parent) for file in (server.base / "output").glob("two/*/document.json")]
    requests = [document.turns[0].text for document in (*kept, *saved)]
    assert len(requests) == len(set(requests)), "what is saved needs no copy"
    assert sum(len(document.pictures) for document in (*kept, *saved)) == 4
    assert server.run(graph).error is None
    assert unfinished(server) == before


def test_a_folder_that_cannot_be_written_costs_the_copy_and_not_the_run(server: Server, random_model: Path):
    folder = server.base / "output" / "duogen"
    aside = folder.with_name("duogen-aside")
    if folder.exists():
        folder.rename(aside)
    folder.write_text("a file where the folder should be")
    try:
        graph = graphs.answer(random_model.name, request("no folder"), prefix="blocked/x", max_images=2)
        assert len(saved_document(server, server.run(graph)).pictures) == 2
        assert "could not be kept" in server.log
    finally:
        folder.unlink()
        if aside.exists():
            aside.rename(folder)


def test_the_copy_holds_the_workflow(server: Server, random_model: Path):
    """Dropped on ComfyUI, its document.json brings the graph back."""
    before = unfinished(server)
    graph = graphs.answer(random_model.name, request("workflow"), prefix="x/x", max_images=2)
    server.post("/duogen_test/fail", {"drawing": 2})
    server.run(graph, extra={"extra_pnginfo": {"workflow": {"nodes": [], "version": 0.4}}})
    _, stopped = new_one(server, before)
    assert stopped.meta["comfyui"]["workflow"] == {"nodes": [], "version": 0.4}
    assert stopped.meta["comfyui"]["prompt"].keys() == graph.keys()


def test_interrupting_answers_at_once_all_the_same(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, request("cancel"), prefix="x/x", max_images=2, steps=400)
    before = unfinished(server)
    result = server.run(graph, watch=interrupt_in_picture(2, server))
    assert result.interrupted
    assert result.steps < 600  # of 800: all of the first picture, and of the second those before the server heard of it
    assert len(new_one(server, before)[1].pictures) == 1
