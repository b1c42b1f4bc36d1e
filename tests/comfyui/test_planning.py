"""The nodes that plan: written by hand, by a server, by any node that writes; drawn by Interleave and the loop.

The server is scripted (tests/core/endpoint_server.py). Painters are stock nodes that make one flat image, so that what
a painter would read and see is what counts; templates with painters have a file of their own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from answers import saved_document
from server import Result, Server
from test_lists import create_list, saved_documents
from test_stock_nodes import node

from duogen_core import picture_sampling
from tests.core.endpoint_server import DONE, chunk, completion, endpoint_server, hanging, streaming

REQUEST = "How do I build a small house of bricks? Three steps."
MARKDOWN = """# A small house

Style: Flat drawing.

Cast:
- House: a small house of red bricks

---

Lay the floor.

Image: A grey floor on green grass.

---

Build the walls.

Image: The House without a roof on the grey floor.
Size: 64x48

---

Lay the roof.

Image: The House with a brown roof.
Looks at: 2 (before)
"""
SHOWS = ["A grey floor on green grass.", "The House without a roof on the grey floor.", "The House with a brown roof."]
TEXTS = ["Lay the floor.", "Build the walls.", "Lay the roof."]
PLAN = {
    "title": "A small house",
    "cast": [{"name": "House", "looks": "a small house of red bricks"}],
    "parts": [{"text": text, "picture": shows} for text, shows in zip(TEXTS, SHOWS, strict=True)],
}


def planned(kind: str, **inputs: Any) -> dict[str, Any]:
    """Prompt (2) -> a node that plans (3), its Markdown shown by "plan"."""
    return {
        "2": node("DuoGenPrompt", text=REQUEST),
        "3": node(kind, context=["2", 0], **inputs),
        "plan": node("PreviewAny", source=["3", 1]),
    }


def by_hand(markdown: str = MARKDOWN, painter: str = "as planned") -> dict[str, Any]:
    return planned("DuoGenEditPlan", markdown=markdown, painter=painter)


def endpoint(address: str, **more: Any) -> dict[str, Any]:
    settings = {
        "address": address, "model": "tiny", "key": "", "style": "", "painter": "edit", "width": 0, "height": 0,
        "send_images": True, "seed": 1, "temperature": 0.0, "seconds": 60,
    }  # fmt: skip
    return planned("DuoGenPlanEndpoint", **settings | more)


def from_text(text: Any, **more: Any) -> dict[str, Any]:
    settings = {"style": "", "painter": "edit", "width": 0, "height": 0}
    return planned("DuoGenPlanFromText", text=text, **settings | more)


def drawn(prefix: str, context: list | None = None, *, seed: int = 7, which: str = "planned") -> dict[str, Any]:
    """Loop Open without a language model, an image in the size that is due, Loop Close, Save (5)."""
    return {
        "open": node(
            "DuoGenLoopOpen", context=context or ["3", 0], seed=seed, max_tokens=64, mode="as it goes", temperature=0.0
        ),
        "size": node(
            "DuoGenPictureSize", context=["open", 1], size="fixed", picture=1, width=32, height=32
        ),
        "look": node("DuoGenEarlierImages", context=["open", 1], which=which),
        "paint": node("EmptyImage", width=["size", 1], height=["size", 2], batch_size=1, color=["open", 3]),
        "reads": node("PreviewAny", source=["open", 2]),
        "sees": node("PreviewAny", source=["look", 3]),
        "close": node("DuoGenLoopClose", loop=["open", 0], image=["paint", 0], max_images=8, seeds=""),
        "5": node("DuoGenSaveDocument", context=["close", 0], filename_prefix=prefix),
        "text": node("PreviewAny", source=["close", 1]),
    }  # fmt: skip


def rounds(result: Result, name: str) -> list[str]:
    """What a node of the loop showed, round by round."""
    found = {key: shown for key, shown in result.outputs.items() if key.split(".")[-1] == name}
    return [found[key]["text"][0] for key in sorted(found, key=len)]


def error_of(result: Result) -> str:
    assert result.error is not None, "it ran"
    return result.error["exception_message"]


# ------------------------------------------------------------ by hand, and drawn


@pytest.mark.slow
def test_a_plan_by_hand_is_drawn_without_any_language_model(server: Server):
    result = server.run(by_hand() | drawn("planning/hand"))
    document = saved_document(server, result)
    assert [turn.text for turn in document.turns] == [REQUEST, "".join(TEXTS)]
    assert result.outputs["text"]["text"] == ["".join(TEXTS)]
    assert [picture.size for picture in document.pictures] == [(32, 32), (64, 48), (32, 32)], "the plan's size first"
    assert [picture.meta["seed"] for picture in document.pictures] == [
        7, picture_sampling.picture_seed(7, 1), picture_sampling.picture_seed(7, 2),
    ]  # fmt: skip
    read = rounds(result, "reads")
    assert [shows in text for shows, text in zip(SHOWS, read, strict=True)] == [True] * 3, "the composed caption"
    assert read[1].startswith("Continue from image 1:") and "a small house of red bricks" in read[1]
    assert read == [picture.meta["caption"] for picture in document.pictures]
    assert rounds(result, "sees") == ["0", "1", "1"], "what the plan says each looks at"
    assert document.generation["stop_reason"] == "end"
    everything = server.run(by_hand() | drawn("planning/all", seed=8, which="all"))
    assert rounds(everything, "sees") == ["0", "1", "2"]


@pytest.mark.slow
def test_duogens_own_model_draws_a_plan(server: Server, random_model: Path):
    """Interleave: the text is the plan's, not the language model's, and every image has the paragraph before it."""
    interleave = {
        "seed": 7, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "max_images": 8,
        "max_tokens": 64, "width": 0, "height": 0,
    }  # fmt: skip
    links = {name: ["1", k] for k, name in enumerate(("mllm", "connector", "model", "vae"))}
    graph = by_hand(painter="conversation") | {
        "1": node("DuoGenLoadCheckpoint", checkpoint=random_model.name),
        "4": node("DuoGenInterleave", **links, context=["3", 0], **interleave),
        "5": node("DuoGenSaveDocument", context=["4", 0], filename_prefix="planning/own"),
        "text": node("PreviewAny", source=["4", 1]),
        "images": node("PreviewImage", images=["4", 2]),
    }
    result = server.run(graph)
    document = saved_document(server, result)
    assert document.turns[-1].text == "".join(TEXTS) == result.outputs["text"]["text"][0]
    assert [picture.meta["text"] for picture in document.pictures] == TEXTS
    assert len(result.outputs["images"]["images"]) == 3
    assert document.pictures[1].size == (64, 48)


@pytest.mark.slow
def test_what_was_drawn_and_did_not_change_stays(server: Server):
    """The last image of a drawn answer is changed: only that one is drawn, with the seed it would have had."""
    changed = MARKDOWN.replace("a brown roof", "a blue roof")
    graph = by_hand() | drawn("planning/before")
    again = {f"b{name}": each for name, each in drawn("planning/after", ["edit", 0]).items()}
    for each in again.values():
        for name, value in each["inputs"].items():
            if isinstance(value, list) and f"b{value[0]}" in again:
                each["inputs"][name] = [f"b{value[0]}", value[1]]
    edit = node("DuoGenEditPlan", context=["close", 0], markdown=changed, painter="as planned")
    result = server.run(graph | again | {"edit": edit})
    before, after = saved_document(server, result), saved_document(server, result, "b5")
    assert after.pictures[:2] == before.pictures[:2] and len(after.pictures) == 3
    assert "a blue roof" in after.pictures[2].meta["caption"]
    assert after.pictures[2].meta["seed"] == before.pictures[2].meta["seed"]
    assert rounds(result, "breads") == [after.pictures[2].meta["caption"]]


@pytest.mark.slow
def test_a_plan_beyond_the_limit_of_images_says_what_is_left_out(server: Server):
    graph = by_hand() | drawn("planning/limit", seed=9)
    graph["close"]["inputs"]["max_images"] = 2
    result = server.run(graph)
    assert len(saved_document(server, result).pictures) == 2
    said = "\n".join(result.texts)
    assert "Of 3 images that are planned, 2 are drawn. Raise max_images" in said
    assert "Stopped at the limit of images. Images of the plan that were left out, with their texts: 1." in said
    assert "left out" not in "\n".join(server.run(by_hand() | drawn("planning/limit", seed=10)).texts)


@pytest.mark.slow
def test_a_changed_plan_draws_what_changed(server: Server):
    """In the loop: the first image stands in the user's own nodes; the second does not know what the third will be."""
    first = saved_document(server, server.run(by_hand() | drawn("planning/loop", seed=11)))
    changed = by_hand(MARKDOWN.replace("a brown roof", "a blue roof")) | drawn("planning/loop", seed=11)
    result = server.run(changed)
    second = saved_document(server, result)
    assert second.pictures[:2] == first.pictures[:2] and second.pictures[2] != first.pictures[2]
    assert [each for each in result.ran if each.split(".")[-1] == "paint"] == ["paint", "close.next.body.paint"]
    longer = by_hand(MARKDOWN + "\n---\n\nDone.\n") | drawn("planning/loop", seed=11)
    result = server.run(longer)
    assert saved_document(server, result).turns[-1].text == "".join(TEXTS) + "Done."
    assert [each for each in result.ran if each.split(".")[-1] == "paint"] == ["paint"]


@pytest.mark.slow
def test_freed_memory_holds_no_images_of_a_plan(server: Server):
    assert server.run(by_hand() | drawn("planning/freed", seed=12)).error is None
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 120
    while server.memory()["alive"]["ResultCache"] and time.monotonic() < end:
        time.sleep(0.5)
    assert server.memory()["alive"]["ResultCache"] == 0


@pytest.mark.slow
def test_a_list_of_plans(server: Server):
    """One has images, the other has none: each is drawn, and ends, by itself."""
    graph = by_hand()
    plans = [node("PrimitiveString", value=text) for text in (MARKDOWN, "Forty-two.\n")]
    graph["3"]["inputs"]["markdown"] = create_list(graph, "plans", *plans)
    one, other = saved_documents(server, server.run(graph | drawn("planning/list", seed=13)))
    assert len(one.pictures) == 3 and one.turns[-1].text == "".join(TEXTS)
    assert not other.pictures and other.turns[-1].text == "Forty-two."


@pytest.mark.slow
def test_the_page_gets_the_plan_and_what_each_image_will_show(server: Server):
    result = server.run(by_hand("# <b>T</b>\n\n---\n\n<script>x</script>\n\nImage: <img src=x onerror=alert(1)>.\n"))
    shown = result.outputs["3"]
    (turn,) = shown["duogen_document"][0]["turns"]
    assert [part.get("shows", part.get("text")) for part in turn["parts"]] == [
        "<script>x</script>", "<img src=x onerror=alert(1)>.",
    ]  # fmt: skip
    assert turn["parts"][1]["pending"] is True and "filename" not in turn["parts"][1]
    assert shown["duogen_plan"] == result.outputs["plan"]["text"]


@pytest.mark.slow
def test_an_empty_edit_leaves_the_plan_as_it_is(server: Server):
    graph = by_hand()
    graph["edit"] = node("DuoGenEditPlan", context=["3", 0], markdown=" \n", painter="as planned")
    graph["same"] = node("PreviewAny", source=["edit", 1])
    graph["count"] = node("PreviewAny", source=["edit", 2])
    result = server.run(graph)
    assert result.outputs["same"]["text"] == result.outputs["plan"]["text"] == [MARKDOWN]
    assert result.outputs["count"]["text"] == ["3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "markdown, words",
    [
        (MARKDOWN.replace("2 (before)", "the floor"), "part 3 looks at 'the floor'"),
        (MARKDOWN.replace("2 (before)", "7"), "looks at image 7"),
        (MARKDOWN.replace("64x48", "large"), "size 'large'"),
        ("\n---\n".join(["Step."] * 200), "200 parts; expected at most 100"),
        ("", "no answer, so there is no plan"),
    ],
)
def test_a_wrong_line_is_named(server: Server, markdown: str, words: str):
    assert words in error_of(server.run(by_hand(markdown)))


@pytest.mark.slow
def test_a_loop_without_a_plan_needs_a_language_model(server: Server):
    message = error_of(server.run(by_hand() | drawn("planning/none", ["2", 0])))
    assert "Connect the mllm, or plan the answer first" in message


# ------------------------------------------------------------ a server plans


def pieces(text: str) -> list[bytes]:
    """A streamed completion, a few characters at a time."""
    return [chunk(text[k : k + 11]) for k in range(0, len(text), 11)]


def whole(plan: dict[str, Any] = PLAN) -> Any:
    return streaming(*pieces(json.dumps(plan)), chunk(finish="stop"), DONE)


@pytest.mark.slow
def test_a_server_plans_and_its_parts_are_shown_as_they_come(server: Server):
    with endpoint_server(whole()) as writer:
        result = server.run(endpoint(writer.url, style="A woodcut.", width=48, height=32) | drawn("planning/endpoint"))
        document = saved_document(server, result)
        ((_, headers, body),) = writer.asked
    assert document.turns[-1].text == "".join(TEXTS)
    assert [picture.size for picture in document.pictures] == [(48, 32)] * 3
    assert all(picture.meta["caption"].endswith("A woodcut.") for picture in document.pictures)
    told = [text for text in result.texts if text.startswith("Planning part")]
    assert told[0] == "Planning part 1" and TEXTS[0] in told[1] and TEXTS[1] not in told[1]
    assert body["model"] == "tiny" and body["response_format"]["type"] == "json_schema"
    assert "Authorization" not in headers and "A woodcut" not in json.dumps(body)
    assert REQUEST in json.dumps(body["messages"])


@pytest.mark.slow
def test_a_cancel_while_it_plans_ends_within_a_second_and_shows_what_there_was(server: Server):
    begun = json.dumps(PLAN)
    begun = begun[: begun.index(TEXTS[2])]
    stopped: list[float] = []

    def watch(kind: str, data: Any, result: Result) -> None:
        if kind == "text" and TEXTS[1] in data and not stopped:
            stopped.append(time.monotonic())
            server.post("/interrupt", {})

    with endpoint_server(streaming(*pieces(begun), hold=True)) as writer:
        result = server.run(endpoint(writer.url, seed=2), watch=watch)
        seconds = time.monotonic() - stopped[0]
    assert result.interrupted and seconds < 10, "it waited for the server"
    assert result.texts[-1].startswith("Cancelled. Planned so far:")
    assert TEXTS[0] in result.texts[-1] and TEXTS[1] in result.texts[-1]


@pytest.mark.slow
def test_a_cancel_while_it_draws_keeps_the_plan(server: Server):
    """The server is not asked again."""
    done: list[str] = []

    def watch(kind: str, data: Any, result: Result) -> None:
        if kind == "executed" and str(data.get("node", "")).endswith("append") and not done:
            done.append(data["node"])
            server.post("/interrupt", {})

    with endpoint_server(whole(), completion("no plan")) as writer:
        graph = endpoint(writer.url, seed=3) | drawn("planning/cancelled")
        assert server.run(graph, watch=watch).interrupted
        document = saved_document(server, server.run(graph))
        assert len(document.pictures) == 3 and document.turns[-1].text == "".join(TEXTS)
        assert len(writer.asked) == 1, "planned anew"


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_sentence_at_once(server: Server):
    with endpoint_server(whole()) as writer:
        gone = writer.url
    begun = time.monotonic()
    message = error_of(server.run(endpoint(gone, seed=4)))
    assert "cannot be reached" in message and "\n" not in message.strip()
    assert time.monotonic() - begun < 20, "it was asked again and again"


@pytest.mark.slow
def test_a_server_without_an_answer_is_given_up(server: Server):
    with endpoint_server(hanging) as writer:
        message = error_of(server.run(endpoint(writer.url, seconds=1, seed=5)))
    assert "1 seconds" in message


@pytest.mark.slow
def test_the_only_model_needs_no_name(server: Server):
    with endpoint_server(whole()) as writer:
        writer.names = ["one"]
        assert server.run(endpoint(writer.url, model="", seed=6)).error is None
        assert writer.asked[0][2]["model"] == "one"
        writer.names = ["one", "two"]
        assert "it has one, two" in error_of(server.run(endpoint(writer.url, model="", seed=7)))


@pytest.mark.slow
@pytest.mark.parametrize("widget", ["address", "model", "key", "style"])
def test_a_key_in_a_workflow_is_refused_before_it_is_queued(server: Server, widget: str):
    key = "sk-proj-4fQ9xT2bLmZ7pWc1"
    before = set(server.get("/history"))
    text = f"http://127.0.0.1:1/v1/{key}" if widget == "address" else key
    with pytest.raises(RuntimeError) as refused:
        server.run(endpoint("http://127.0.0.1:1/v1", **{widget: text}) if widget != "address" else endpoint(text))
    assert f"input {widget} seems to hold a key" in str(refused.value)
    assert "environment variable" in str(refused.value)
    assert set(server.get("/history")) == before


@pytest.mark.slow
def test_a_key_of_the_settings_goes_to_its_own_server(server: Server):
    with endpoint_server(whole()) as writer, endpoint_server(whole()) as other:
        port = writer.url.rpartition(":")[2].partition("/")[0]
        server.post("/settings", {"DuoGen.Keys": f"127.0.0.1:{port}=not-in-a-workflow"})
        try:
            for one in (writer, other):
                assert server.run(endpoint(one.url, seed=8)).error is None
        finally:
            server.post("/settings", {"DuoGen.Keys": ""})
        assert writer.asked[0][1]["Authorization"] == "Bearer not-in-a-workflow"
        assert "Authorization" not in other.asked[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        ({"address": "ftp://127.0.0.1/v1"}, "not an endpoint's address"),
        ({"key": "my key"}, "not the name of an environment variable"),
        ({"key": "DUOGEN_TEST_NO_SUCH_VARIABLE"}, "is not set"),
        ({"width": 64}, "set both sides"),
    ],
)
def test_bad_settings_of_a_server(server: Server, change: dict[str, Any], words: str):
    with endpoint_server(whole()) as writer:
        assert words in error_of(server.run(endpoint(**{"address": writer.url, "seed": 9} | change)))


# ------------------------------------------------------------ any node that writes


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PLAN),
        f"Sure! Here it is:\n```json\n{json.dumps(PLAN, indent=1)}\n```\nAnything else?",
        MARKDOWN.replace("Style: Flat drawing.\n\n", ""),
    ],
)
def test_json_and_markdown_of_any_writer(server: Server, text: str):
    result = server.run(from_text(text) | drawn("planning/text"))
    assert [shows in read for shows, read in zip(SHOWS, rounds(result, "reads"), strict=True)] == [True] * 3


@pytest.mark.slow
def test_json_of_ones_own_keeps_all_that_it_says(server: Server):
    own = {**PLAN, "style": "Flat.", "parts": [dict(part) for part in PLAN["parts"]]}
    own["parts"][2]["picture"] = {"shows": SHOWS[2], "looks_at": [{"picture": 1, "why": "cast"}], "size": [48, 16]}
    # As the command line writes it, with the request beside it.
    (markdown,) = server.run(from_text(json.dumps({"request": REQUEST, **own}))).outputs["plan"]["text"]
    assert "Style: Flat." in markdown and "Looks at: 1 (cast)\nSize: 48x16" in markdown
    own["parts"][2]["picture"]["looks_at"] = [{"picture": 3, "why": "cast"}]
    assert "part 3 looks at image 3, but earlier images are 1 to 2" in error_of(server.run(from_text(json.dumps(own))))


@pytest.mark.slow
def test_a_text_that_ends_too_early_is_said(server: Server):
    result = server.run(from_text(json.dumps(PLAN)[:-20]))
    assert "ends too early; kept are its whole parts: 2." in "\n".join(result.texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, words",
    [
        ("I would rather not.", "no plan that can be drawn"),
        (json.dumps({"parts": PLAN["parts"] * 67}), "201 parts; expected at most 100"),
        (MARKDOWN.replace("2 (before)", "the floor"), "part 3 looks at 'the floor'"),
        ("", "no plan that can be drawn"),
    ],
)
def test_a_text_that_is_no_plan(server: Server, text: str, words: str):
    assert words in error_of(server.run(from_text(text)))


def writer(second: str) -> dict[str, Any]:
    """Plan Prompt -> two stock nodes that stand for a model: it refuses, and when it is told so answers `second`."""
    return {
        "ask": node("DuoGenPlanPrompt", context=["2", 0]),
        "first": node(
            "RegexReplace", string=["ask", 0], regex_pattern=r"\A(?!.*was no plan).*\Z", replace="I cannot.",
            case_insensitive=False, multiline=False, dotall=True, count=1,
        ),
        "then": node(
            "RegexReplace", string=["first", 0], regex_pattern=r"\A.*was no plan: The answer is not JSON.*\Z",
            replace=second, case_insensitive=False, multiline=False, dotall=True, count=1,
        ),
        "wrote": node("PreviewAny", source=["then", 0]),
    }  # fmt: skip


@pytest.mark.slow
def test_a_writer_that_wrote_no_plan_is_asked_once_more(server: Server):
    graph = from_text(["then", 0]) | writer(json.dumps(PLAN)) | drawn("planning/again")
    result = server.run(graph)
    document = saved_document(server, result)
    assert document.turns[-1].text == "".join(TEXTS) and len(document.pictures) == 3
    assert result.outputs["wrote"]["text"] == ["I cannot."], "what hangs beside it is not run again"
    assert [each for each in result.ran if each.endswith("again.then")] == ["3.again.then"]

    graph |= writer("I still cannot.")
    assert "The writer was asked twice." in error_of(server.run(graph))


@pytest.mark.slow
def test_the_plan_prompt_says_what_is_wanted(server: Server):
    graph = {
        "2": node("DuoGenPrompt", text=REQUEST),
        "ask": node("DuoGenPlanPrompt", context=["2", 0]),
        "prompt": node("PreviewAny", source=["ask", 0]),
        "pictures": node("PreviewAny", source=["ask", 1]),
    }
    result = server.run(graph)
    (prompt,) = result.outputs["prompt"]["text"]
    assert REQUEST in prompt and "exactly 3 parts" in prompt and '"parts"' in prompt
    assert result.outputs["pictures"]["text"] == ["None"]
