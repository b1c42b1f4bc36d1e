"""DuoGen Review Image: refused images are drawn again by copies of the user's nodes, and what each try got is kept.

The critic is a scripted server. It judges the colour that it is shown: painters are stock nodes whose flat image has
the seed as its colour, so every try tells which seed it was drawn with.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from answers import command_line, saved_document
from server import Server
from test_planning import by_hand, drawn, error_of, rounds
from test_stock_nodes import node

from duogen_core import picture_sampling
from duogen_core.document import Picture
from duogen_core.review import TRIES, redraw_seed
from tests.core.endpoint_server import completion, endpoint_server, refusing

GOOD = {"seen": "A wall.", "wrong": "", "shows": True, "same_cast": True, "score": 9, "prompt": ""}
BAD = {**GOOD, "wrong": "It is <b>too</b> dark.", "shows": False, "score": 2, "prompt": "A bright wall."}
SEED = 7


def reply(value: dict[str, Any]) -> bytes:
    return completion(json.dumps(value))


def reviewed(prefix: str, address: str, *, redraws: int = 2, seeded: bool = True, **more: Any) -> dict[str, Any]:
    """A plan by hand, drawn in a loop whose images are flat, with Review Image before Loop Close."""
    graph = by_hand() | drawn(prefix, seed=SEED)
    settings = {"critic": "endpoint", "redraws": redraws, "address": address, "model": "looker", "key": "", **more}
    seed = {"seed": ["open", 3]} if seeded else {}
    graph["review"] = node("DuoGenReviewImage", image=["paint", 0], context=["open", 1], **settings, **seed)
    graph["close"]["inputs"]["image"] = ["review", 0]
    graph["said"] = node("PreviewAny", source=["review", 1])
    return graph


def colour(picture: Picture) -> int:
    red, green, blue = (int(value) for value in picture.pixels[0, 0])
    return red << 16 | green << 8 | blue


def of_seed(seed: int) -> int:
    """The colour that EmptyImage makes of a seed."""
    return seed & 0xFFFFFF


@pytest.mark.slow
def test_a_refused_image_is_drawn_again_with_the_better_prompt(server: Server):
    with endpoint_server(reply(BAD), reply({**BAD, "score": 4}), reply(GOOD)) as critic:
        result = server.run(reviewed("review/again", critic.url))
        bodies = [body for *_, body in critic.asked]
    document = saved_document(server, result)
    first, second, third = document.pictures
    seeds = [redraw_seed(SEED, number) for number in range(3)]
    assert colour(first) == of_seed(seeds[2]) and first.meta["seed"] == seeds[2]
    tries = first.meta[TRIES]
    assert [one["seed"] for one in tries] == seeds and [one.get("kept", False) for one in tries] == [False, False, True]
    assert [one.get("score") for one in tries] == [0.2, 0.4, 0.9] and tries[0]["wrong"] == BAD["wrong"]
    assert [one["prompt"] for one in tries] == ["", "A bright wall.", "A bright wall."]
    assert second.meta["seed"] == picture_sampling.picture_seed(SEED, 1) and len(second.meta[TRIES]) == 1
    assert colour(second) == of_seed(second.meta["seed"]) and len(third.meta[TRIES]) == 1
    folder = server.base / "output" / result.outputs["5"]["document"][0]["folder"]
    refused = {one["image"] for one in tries if "image" in one}
    assert {file.stem for file in (folder / "tries").iterdir()} == refused and len(refused) == 2
    # what the critic saw: the second try was asked about with the prompt that it was drawn from
    asked = [body["messages"][-1]["content"][0]["text"] for body in bodies]
    assert "A grey floor on green grass." in asked[0] and "A bright wall." in asked[1]
    shown = bodies[2]["messages"][-1]["content"][-1]["image_url"]["url"].partition(",")[2]
    assert colour(Picture.from_bytes(base64.b64decode(shown))) == of_seed(seeds[2])


@pytest.mark.slow
def test_the_same_images_without_a_critic_have_no_tries(server: Server):
    """A record belongs to the graph that asked for it, not to whoever draws the very image later."""
    with endpoint_server(reply(GOOD)) as critic:
        graph = reviewed("review/without", critic.url)
        with_critic = saved_document(server, server.run(graph))
    graph["close"]["inputs"]["image"] = ["paint", 0]
    del graph["review"], graph["said"]
    without = saved_document(server, server.run(graph))
    assert [picture.digest for picture in without.pictures] == [picture.digest for picture in with_critic.pictures]
    assert all(TRIES in picture.meta for picture in with_critic.pictures)
    assert not any(TRIES in picture.meta for picture in without.pictures)


@pytest.mark.slow
def test_freed_memory_holds_no_redraws(server: Server):
    """Where a server looks, no language model owns what was drawn again: it goes with the request."""
    with endpoint_server(reply(BAD), reply(GOOD)) as critic:
        assert server.run(reviewed("review/freed", critic.url)).error is None
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 120
    while server.memory()["alive"]["ResultCache"] and time.monotonic() < end:
        time.sleep(0.5)
    assert server.memory()["alive"]["ResultCache"] == 0


@pytest.mark.slow
def test_the_painter_reads_the_better_prompt_and_the_answer_keeps_its_own(server: Server):
    """The image is as wide as its prompt is long."""
    with endpoint_server(reply(BAD), reply(GOOD)) as critic:
        graph = reviewed("review/prompt", critic.url)
        graph["length"] = node("StringLength", string=["open", 2])
        graph["paint"]["inputs"]["width"] = ["length", 0]
        document = saved_document(server, server.run(graph))
    first, second, _ = document.pictures
    assert first.size == (len("A bright wall."), 32)
    assert "A grey floor on green grass." in first.meta["caption"]
    assert second.size == (len(second.meta["caption"]), 48)


@pytest.mark.slow
def test_later_images_of_the_loop_are_drawn_again_too(server: Server):
    """There the nodes that draw are copies themselves."""
    with endpoint_server(reply(GOOD), reply(BAD), reply(BAD), reply(GOOD), reply(BAD), reply(GOOD)) as critic:
        result = server.run(reviewed("review/later", critic.url))
    document = saved_document(server, result)
    assert [len(picture.meta[TRIES]) for picture in document.pictures] == [1, 3, 2]
    for index, (picture, redraws) in enumerate(zip(document.pictures, (0, 2, 1), strict=True)):
        seed = redraw_seed(picture_sampling.picture_seed(SEED, index), redraws)
        assert picture.meta["seed"] == seed and colour(picture) == of_seed(seed)


@pytest.mark.slow
def test_where_none_is_good_the_best_is_kept(server: Server):
    with endpoint_server(reply({**BAD, "score": 5}), reply({**BAD, "score": 3}), reply(GOOD)) as critic:
        result = server.run(reviewed("review/best", critic.url, redraws=1))
    first = saved_document(server, result).pictures[0]
    assert colour(first) == of_seed(SEED) and first.meta["seed"] == SEED
    assert [one.get("kept", False) for one in first.meta[TRIES]] == [True, False]


@pytest.mark.slow
def test_without_the_seed_connected_the_widgets_of_the_painter_change(server: Server, random_model: Path):
    graph = {
        "1": node("DuoGenLoadCheckpoint", checkpoint=random_model.name),
        "2": node("DuoGenPrompt", text="Draw a wall."),
        "write": node("DuoGenWrite", mllm=["1", 0], context=["2", 0], connector=["1", 1], max_tokens=64, seed=3,
                      temperature=0.0, top_p=1.0),
        "ready": node("DuoGenConditionNextImage", mllm=["1", 0], connector=["1", 1], vae=["1", 3], context=["write", 0],
                      which="all"),
        "size": node("DuoGenPictureSize", context=["write", 0], size="fixed", picture=1, width=64, height=64),
        "sample": node("KSampler", model=["1", 2], positive=["ready", 0], negative=["ready", 1],
                       latent_image=["size", 0], seed=11, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple",
                       denoise=1.0),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["1", 3]),
    }  # fmt: skip
    with endpoint_server(reply({**BAD, "prompt": ""}), reply(GOOD)) as critic:
        graph |= {
            "review": node("DuoGenReviewImage", image=["decode", 0], context=["write", 0], critic="endpoint", redraws=1,
                           address=critic.url, model="looker", key=""),
            "append": node("DuoGenAppendImage", context=["write", 0], image=["review", 0]),
            "5": node("DuoGenSaveDocument", context=["append", 0], filename_prefix="review/widgets"),
        }  # fmt: skip
        result = server.run(graph)
    assert [name for name in result.ran if name.endswith("try.sample")], "the sampler ran again, with another seed"
    assert not [name for name in result.ran if name.endswith("try.write")], "the text was not written again"
    one, two = saved_document(server, result).pictures[0].meta[TRIES]
    assert not one["shows"] and two["kept"] and "seed" not in one


@pytest.mark.slow
def test_a_redraw_is_that_of_the_command_line(server: Server, random_model: Path, tmp_path: Path):
    """A DuoGen model draws again from a short conversation with the better prompt, here as there."""
    replies = reply(BAD), reply({**BAD, "prompt": ""}), reply(GOOD)
    request = "Draw two, reviewed."
    with endpoint_server(*replies) as critic:
        graph = graphs.loop(random_model.name, request, prefix="review/same")
        graph["review"] = node(
            "DuoGenReviewImage", image=["p.decode", 0], context=["3", 1], seed=["3", 3], critic="endpoint", redraws=2,
            address=critic.url, model="looker", key="",
        )  # fmt: skip
        graph["9"]["inputs"]["image"] = ["review", 0]
        ours = saved_document(server, server.run(graph))
    with endpoint_server(*replies) as critic:
        options = ("--critic", critic.url, "--critic-model", "looker", "--redraws", "2", "--steps", "4")
        limits = ("--guidance", "2", "--max-images", "2", "--seed", "7")
        theirs = command_line(tmp_path / "answer", random_model, *options, *limits, prompt=request)
    assert [len(picture.meta[TRIES]) for picture in ours.pictures] == [3, 1]
    told = [[{**one, "image": ""} for one in picture.meta[TRIES]] for picture in ours.pictures]
    assert told == [[{**one, "image": ""} for one in picture.meta[TRIES]] for picture in theirs.pictures]
    for mine, other in zip(ours.pictures, theirs.pictures, strict=True):
        assert mine.size == other.size and mine.meta["seed"] == other.meta["seed"]
        assert np.abs(mine.pixels.astype(int) - other.pixels.astype(int)).mean() <= 1


@pytest.mark.slow
def test_the_language_model_on_the_socket_looks(server: Server, random_model: Path):
    """Random weights have no opinion worth anything, but it has the form that was asked for."""
    graph = reviewed("review/own", "", critic="mllm", redraws=1)
    graph["1"] = node("DuoGenLoadCheckpoint", checkpoint=random_model.name)
    graph["review"]["inputs"]["mllm"] = ["1", 0]
    result = server.run(graph)
    document = saved_document(server, result)
    assert all(1 <= len(picture.meta[TRIES]) <= 2 for picture in document.pictures)
    assert all(0 <= one["score"] <= 1 for picture in document.pictures for one in picture.meta[TRIES])


@pytest.mark.slow
def test_a_critic_that_is_gone_costs_no_image(server: Server):
    with endpoint_server(refusing(500)) as critic:
        result = server.run(reviewed("review/gone", critic.url))
    document = saved_document(server, result)
    assert len(document.pictures) == 3 and colour(document.pictures[0]) == of_seed(SEED)
    assert "did not judge" in " ".join(rounds(result, "said"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"critic": "mllm"}, "none is connected"),
        ({"address": "127.0.0.1"}, "http"),
        ({"key": "not a name"}, "environment variable"),
    ],
)
def test_faults_are_sentences(server: Server, change: dict[str, Any], words: str):
    graph = reviewed("review/fault", "http://127.0.0.1:9/v1")
    graph["review"]["inputs"] |= change
    assert words in error_of(server.run(graph))


@pytest.mark.slow
def test_a_key_in_the_workflow_is_refused_before_it_is_queued(server: Server):
    graph = reviewed("review/key", "http://127.0.0.1:9/v1", key="sk-proj-4fQ9xT2bLmZ7pWc1")
    for shown in ("plan", "reads", "sees"):  # what does not lead through the node would run all the same
        del graph[shown]
    with pytest.raises(RuntimeError, match="input key seems to hold a key"):
        server.run(graph)
