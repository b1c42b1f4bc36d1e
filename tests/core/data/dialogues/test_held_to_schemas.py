"""Models that are run here are held to narrower schemas: what they write breaks no rule that a grammar can keep."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from jsonschema import Draft202012Validator

from duogen_core.data.dialogues import converse, describe, placement, rewrite
from duogen_core.data.dialogues.draft import read_draft
from duogen_core.data.dialogues.engine import DialogueEngine
from duogen_core.data.pairs.video import engine as video
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.synthetic import expand, planning
from duogen_core.llm.client import Client, Endpoint
from duogen_core.llm.local_model import HERE
from duogen_core.llm.own_mllm import OwnModel
from duogen_core.mllm.chat import encode_text
from duogen_core.mllm.constrained import json_grammar
from tests.core.dialogue_pages import page
from tests.core.mllm_families import CONTEXTS, lively

PRESET = load_preset("dialogues")


@pytest.fixture(scope="module")
def mllm():
    return lively("qwen2_5_vl")


def written(mllm, schema, seed=0):
    """What a random model writes when it is held to a schema."""
    found = mllm.continue_(
        CONTEXTS["text only"], constraint=mllm.constraint(schema), max_new_tokens=390, temperature=1.5, seed=seed
    )
    assert found.stop == "end", found.text
    return json.loads(found.text)


def test_every_schema_of_the_data_engines_can_be_decoded_by():
    for schema in (
        *(describe.SCHEMA, rewrite.SCHEMA, converse.SCHEMA, placement.schema(3, 5), placement.narrower(3, 5)),
        *(video.SCHEMA, expand.schema(10), planning.schema(6)),
    ):
        Draft202012Validator.check_schema(schema)
        assert json_grammar(schema)


@pytest.mark.parametrize("places", [(1, 2, 3, 4), (0, 2, 2, 4), (0, 0, 1, 1), (4, 4, 4, 4), (1, 2, 2, 3)])
def test_a_rewritten_piece_has_each_picture_once_in_order_and_a_fitting_length(mllm, places):
    draft = replace(read_draft(page()), passages=("Open it.", "Drain it.", "Wash it.", "Close it."), places=places)
    schema = rewrite.narrower(draft, 0, 4, [0, 1, 2, 3], PRESET["rewrite"])
    value = written(mllm, schema)
    Draft202012Validator(rewrite.SCHEMA).validate(value)
    assert [number for passage in value["passages"] for number in passage["images"]] == [1, 2, 3, 4]
    assert len(value["passages"]) == len({*places, 4} - {0})
    for passage, shape in zip(value["passages"], schema["properties"]["passages"]["prefixItems"]):
        assert re.fullmatch(shape["properties"]["text"]["pattern"], passage["text"]) and 3 <= len(passage["text"]) <= 90


@pytest.mark.parametrize(("said", "free"), [("look at it.[3]", False), ("look at a[0].", True)])
def test_no_mark_of_an_image_is_written_into_a_text_that_has_no_brackets(mllm, said, free):
    draft = replace(read_draft(page()), passages=(f"Open the lid of the box, and then {said}",), places=(1, 1, 1, 1))
    constraint = mllm.constraint(rewrite.narrower(draft, 0, 1, [0, 1, 2, 3], PRESET["rewrite"]))
    for token in encode_text(mllm.tokenizer, '{"passages": [{"text": "See the lid. '):
        constraint.take(token)
    logits = torch.zeros(len(mllm.tokenizer))
    constraint.mask(logits)
    (bracket,) = encode_text(mllm.tokenizer, "[")
    assert (logits[bracket] == 0) == free and logits[encode_text(mllm.tokenizer, "j")[0]] == 0


def test_a_later_piece_of_a_long_page_has_its_own_pictures():
    draft = replace(
        read_draft(page()), passages=("Open it.", "Drain it.", "Wash it.", "Close it."), places=(1, 2, 3, 4)
    )
    schema = rewrite.narrower(draft, 2, 4, [2, 3], PRESET["rewrite"])
    shapes = schema["properties"]["passages"]["prefixItems"]
    assert [shape["properties"]["images"] for shape in shapes] == [{"const": [1]}, {"const": [2]}]
    none = rewrite.narrower(draft, 2, 4, [], PRESET["rewrite"])["properties"]["passages"]
    assert none["maxItems"] == 1 and none["prefixItems"][0]["properties"]["images"] == {"const": []}


@pytest.mark.parametrize("brings", [False, True])
def test_a_dialogue_ends_with_the_last_passage_and_brings_what_it_should(mllm, brings):
    rules = {**PRESET["dialogue"], "max_request_words": 5}
    counts = set()
    for seed in range(4):
        exchanges = written(mllm, converse.narrower(4, [1, 2], brings, rules), seed)["exchanges"]
        Draft202012Validator(converse.SCHEMA).validate({"exchanges": exchanges})
        counts.add(len(exchanges))
        assert exchanges[-1]["last_passage"] == 4 and all(e["last_passage"] < 4 for e in exchanges[:-1])
        assert sum(len(e["request_images"]) for e in exchanges) == int(brings)
        assert all(e["request"][-1] in ".!?。！？" and len(e["request"]) <= 25 for e in exchanges)
    assert counts <= {1, 2, 3}
    one = converse.narrower(1, [1], False, rules)["properties"]["exchanges"]["anyOf"]
    assert len(one) == 1 and one[0]["maxItems"] == 1, "a single passage answers a single request"


def test_placement_names_every_image_once(mllm):
    places = written(mllm, placement.narrower(3, 5))["places"]
    assert [place["image"] for place in places] == [1, 2, 3] and all(1 <= p["passage"] <= 5 for p in places)


def test_a_model_run_here_is_held_to_them_and_a_server_is_told_the_usual_one(mllm, monkeypatch):
    """Random weights: every answer fits the first time, and what refuses the page is a rule about its words."""
    monkeypatch.setattr(rewrite, "TOKENS_PER_WORD", 30)  # its tokens are letters
    client = Client(Endpoint(HERE, "own", attempts=1, answers=1, here=True), transport=OwnModel(mllm))
    sent = []
    inner = client.transport
    client.transport = lambda body: sent.append(body) or inner(body)
    preset = load_preset("dialogues", "", ["describe.ask=false"])
    outcome = DialogueEngine(preset, lambda: (client, client)).document(page())
    assert outcome.rule in ("rewrite.min_overlap", "rewrite.max_new_numbers", "rewrite.marks", "rewrite.new_links",
                            "rewrite.min_length", "rewrite.max_length"), outcome.value  # fmt: skip
    (body,) = sent
    assert "prefixItems" in json.dumps(body["response_format"]) and "JSON Schema" not in json.dumps(body["messages"])
