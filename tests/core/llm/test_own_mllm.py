"""The core's own MLLM in an endpoint's place: requests become Documents, answers are checked and recorded as others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import AnswerError, Recording
from duogen_core.llm.client import Client, Endpoint, Question
from duogen_core.llm.local_model import HERE
from duogen_core.llm.messages import messages
from duogen_core.llm.opening import open_model
from duogen_core.llm.own_mllm import OwnModel, Untaught, document_of
from duogen_core.mllm.base import Continuation
from duogen_core.mllm.prompted import Prompted
from duogen_core.net.client import EndpointError
from tests.core.tiny import random_components

WORDS = {"type": "array", "items": {"type": "string"}}
SEED = 1  # with which the random model writes something
PIXELS = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)


def client(mllm, recording=None, structured="none") -> Client:
    return Client(Endpoint(HERE, "own", structured=structured, attempts=1), recording, transport=OwnModel(mllm))


def scripted(*texts: str, stop: str = "end"):
    """An MLLM that writes these texts; `asked` are the documents it was given."""
    asked: list[Document] = []

    def continue_many(documents, *, max_new_tokens, temperature, seeds, **_):
        asked.extend(documents)
        return [Continuation(texts[len(asked) - 1], stop, 3)]

    return SimpleNamespace(
        continue_many=continue_many, cache_tokens=lambda row: 20, clear_cache=lambda: None, prompted=None, asked=asked
    )


def test_the_real_model_answers_and_repeats(tmp_path):
    ask = messages("Describe it. ${page}", {"page": "a blue square"}, [PIXELS])
    how = {"max_tokens": 8, "temperature": 1.0, "seed": SEED}
    first = client(random_components().mllm, Recording(tmp_path / "a.jsonl")).ask(ask, **how)
    assert first.text and first.counted and 1 <= first.completion_tokens <= 8 and first.prompt_tokens > 50
    assert client(random_components().mllm).ask(ask, **how) == first
    replayed = Client(Endpoint(HERE, "own", attempts=1), Recording(tmp_path / "a.jsonl", "replay"))
    assert replayed.ask(ask, **how) == first
    with pytest.raises(DuoGenError, match="has no answer"):
        replayed.ask(ask, **{**how, "max_tokens": 9})


def test_a_request_becomes_a_document():
    document = document_of(messages("Look. ${page}", {"page": "x"}, [PIXELS]))
    assert [turn.role for turn in document.turns] == ["system", "user"]
    assert np.array_equal(document.pictures[0].pixels, PIXELS)


def test_schema_checks_and_second_attempts_are_the_clients():
    mllm = scripted("prose", '["a"]')
    asking = client(mllm)
    assert asking.ask([{"role": "user", "content": "Words?"}], WORDS).value == ["a"]
    assert [turn.role for turn in mllm.asked[1].turns] == ["system", "user", "assistant", "user"]
    assert (asking.usage.requests, asking.usage.refused_answers, asking.usage.prompt_tokens) == (2, 1, 34)
    with pytest.raises(AnswerError, match="cut off after 9 tokens"):
        client(scripted(*["["] * 3, stop="max_tokens")).ask(
            [{"role": "user", "content": "Words?"}], WORDS, max_tokens=9
        )


def test_a_model_without_the_token_gets_no_lesson():
    mllm = scripted("yes")
    mllm.prompted = Prompted()
    asking = client(mllm)
    asking.ask([{"role": "user", "content": "Yes?"}])
    untaught = asking.transport.mllm.prompted
    assert isinstance(untaught, Untaught) and type(mllm.prompted) is Prompted, "who draws with it needs its lesson"
    assert untaught.taught(mllm.asked[0]) == mllm.asked[0] == Document().begin_turn("user", [Text("Yes?")])


def test_what_it_cannot_answer_is_this_requests_fault():
    def too_long(documents, **_):
        raise DuoGenError("The conversation is 9000 tokens long.")

    for mllm, words in ((scripted("  "), "wrote nothing"), (scripted(), "9000 tokens")):
        mllm.continue_many = mllm.continue_many if words == "wrote nothing" else too_long
        with pytest.raises(EndpointError, match=words) as caught:
            client(mllm).ask([{"role": "user", "content": "x"}])
        assert not caught.value.again


def test_one_request_that_cannot_be_answered_leaves_the_others_alone():
    """A schema that nothing can be held to; a conversation that is too long, which the batch meets as it begins."""
    mllm = random_components().mllm
    ask = [{"role": "user", "content": "Words?"}]
    heard: dict[int, str] = {}
    questions = [
        Question(ask, {"not": {}}, read=str),
        Question(ask, WORDS, 40, read=str),
        Question([{"role": "user", "content": "circle " * 2 * mllm.max_positions}]),
        Question(ask, max_tokens=5, temperature=1.0, seed=SEED),
    ]
    found = client(mllm, structured="schema").ask_many(
        questions, on_text=lambda index, piece: heard.update({index: heard.get(index, "") + piece})
    )
    assert [isinstance(each, EndpointError) for each in found] == [True, False, True, False]
    assert "held to this JSON schema" in str(found[0]) and "tokens long" in str(found[2])
    assert heard == {1: found[1].text, 3: found[3].text}, "told once and whole"


def test_what_was_heard_in_part_is_not_told_again():
    mllm, heard = scripted("ab", "cd"), []
    whole = mllm.continue_many

    def breaks(documents, on_token, **how):
        if len(documents) > 1:
            on_token(0, "a")
            raise DuoGenError("never allowed")
        on_token(0, "x")
        return whole(documents, **how)

    mllm.continue_many = breaks
    bodies = [{"messages": [{"role": "user", "content": "?"}], "seed": 0, "max_tokens": 9}] * 2
    mllm.continue_many = lambda documents, on_token, **how: breaks(documents, on_token or (lambda *_: None), **how)
    found = OwnModel(mllm).many(bodies, on_text=lambda *told: heard.append(told))
    assert [answer.text for answer in found] == ["ab", "cd"] and heard == [(0, "a"), (1, "x")]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as Qwen publishes it, but with vocab.json and merges.txt in place of tokenizer.json."""
    import json

    mllm, folder = random_components().mllm, tmp_path_factory.mktemp("Qwen-VL")
    mllm.save_pretrained(folder)
    value = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "vocab.json").write_text(json.dumps(value["model"]["vocab"]), "utf-8")
    merges = [each if isinstance(each, str) else " ".join(each) for each in value["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    added = {str(each["id"]): {"content": each["content"], "special": True} for each in value["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}), "utf-8")
    (folder / "tokenizer.json").unlink()
    return folder


def test_a_folder_with_the_older_tokenizer_files_writes(published, tmp_path):
    how = {"max_tokens": 4, "temperature": 1.0, "seed": SEED}
    ask = [{"role": "user", "content": "Describe it."}]
    expected = client(random_components().mllm).ask(ask, **how)
    assert open_model(str(published), recording=Recording(tmp_path / "a.jsonl")).ask(ask, **how) == expected
    with pytest.raises(DuoGenError, match="give the model.s folder, with its config.json"):
        open_model(str(published / "model.safetensors"))


def test_one_function_says_what_a_folder_is_wherever_a_model_is_named(published, tmp_path):
    from duogen_core.checkpoint import models_folder, resolve_mllm
    from duogen_core.commands.data import TokenCounter

    tiny = models_folder() / "duogen-tiny"
    assert resolve_mllm("duogen-tiny") == resolve_mllm(tiny) == resolve_mllm(tiny / "model_index.json") == tiny / "mllm"
    assert resolve_mllm(published) == published and TokenCounter(str(published)).folder == published
    assert TokenCounter(str(published))(Document().begin_turn("user", [Text("Hello there")])) > 4
    (tmp_path / "weights.bin").write_bytes(b"x")
    for wrong, words in (("none", "There is no model 'none'"), (tmp_path, "neither model_index.json"),
                         (tmp_path / "weights.bin", "safetensors")):  # fmt: skip
        with pytest.raises(DuoGenError, match=words):
            resolve_mllm(wrong)
