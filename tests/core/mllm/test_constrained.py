"""Constrained decoding: random models write what fits a schema, alone and in a batch."""

from __future__ import annotations

import builtins
import json
import re

import pytest
import torch

from duogen_core.errors import DuoGenError
from duogen_core.mllm.constrained import Constraint, json_grammar
from duogen_core.mllm.token_sampling import TokenSampling, choose
from tests.core.mllm_families import CONTEXTS, CREATE, lively, tokenizer

STEPS = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["howto", "plain"]},
        "steps": {
            "type": "array",
            "items": {"type": "string", "maxLength": 12, "pattern": r"^[A-Z][a-z ]+[.!?]$"},
            "minItems": 2,
            "maxItems": 3,
        },
        "n": {"type": "integer", "minimum": 1, "maximum": 12},
    },
    "required": ["kind", "steps", "n"],
    "additionalProperties": False,
}
SENTENCE = re.compile(r"[A-Z][a-z ]+[.!?]")
HOT = {"max_new_tokens": 200, "temperature": 1.5}


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["kind", "steps", "n"] and value["kind"] in ("howto", "plain") and 1 <= value["n"] <= 12
    assert 2 <= len(value["steps"]) <= 3
    assert all(SENTENCE.fullmatch(step) and len(step) <= 12 for step in value["steps"])


@pytest.mark.parametrize("family", CREATE)
def test_random_weights_write_what_fits_alone_and_in_a_batch(family):
    mllm = lively(family)
    document = CONTEXTS["text only"]
    for seed in range(3):
        heard = []
        written = mllm.continue_(document, constraint=mllm.constraint(STEPS), seed=seed, on_token=heard.append, **HOT)
        check(written.text)
        assert written.stop == "end" and "".join(heard) == written.text
    names = ["text only", "system and user picture"]
    constraints = [
        mllm.constraint(STEPS),
        None,
        mllm.constraint({"type": "array", "items": {"const": 7}, "maxItems": 2}),
    ]
    batch = mllm.continue_many(
        [CONTEXTS[names[0]], CONTEXTS[names[1]], CONTEXTS[names[0]]],
        constraints=constraints, max_new_tokens=[200, 5, 200], temperature=1.5, seeds=[0, 0, 1],
    )  # fmt: skip
    check(batch[0].text)
    assert batch[1].tokens <= 5 and batch[2].text in ("[]", "[7]", "[7, 7]")
    assert constraints[0].done and constraints[2].done


def test_a_text_in_the_answer_is_no_marker_of_a_prompted_model():
    mllm = lively("qwen2_5_vl")
    from duogen_core.mllm.prompted import Prompted

    mllm.prompted = Prompted()
    written = mllm.continue_(
        CONTEXTS["text only"], constraint=mllm.constraint({"const": "<BOV: a cat>"}), max_new_tokens=99
    )
    assert (written.text, written.stop, written.caption) == ('"<BOV: a cat>"', "end", "")


def test_it_ends_with_the_last_token_that_fits_and_at_the_budget():
    mllm = lively("qwen2_5_vl")
    whole = mllm.continue_(CONTEXTS["text only"], constraint=mllm.constraint(STEPS), max_new_tokens=300)
    short = mllm.continue_(CONTEXTS["text only"], constraint=mllm.constraint(STEPS), max_new_tokens=whole.tokens)
    assert short == whole and whole.stop == "end" and whole.text.endswith("}")
    cut = mllm.continue_(CONTEXTS["text only"], constraint=mllm.constraint(STEPS), max_new_tokens=whole.tokens - 1)
    assert cut.stop == "max_tokens" and cut.tokens == whole.tokens - 1 and whole.text.startswith(cut.text)


def test_a_number_may_go_on_or_end_with_either_end_of_a_turn():
    words = tokenizer()
    ends = [words.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    constraint = Constraint({"type": "integer"}, words, ends)
    logits = torch.zeros(len(words) + 9)  # more rows than tokens
    constraint.mask(logits)
    allowed = {words.decode([token]) for token in (logits == 0).nonzero()[:, 0].tolist()}
    assert allowed <= set("-0123456789")
    constraint.take(words.convert_tokens_to_ids("4"))
    logits = torch.zeros(len(words) + 9)
    constraint.mask(logits)
    assert logits[ends].tolist() == [0, 0] and not constraint.done
    constraint.take(ends[1])
    assert constraint.done


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "nothing"}, "Invalid type: nothing"),
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"$ref": "http://127.0.0.1/x"}, "does not fetch"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength .5. is greater"),
    ],
)
def test_a_schema_that_cannot_be_decoded_by(schema, words):
    with pytest.raises(DuoGenError, match=words) as caught:
        json_grammar(schema)
    assert str(caught.value).startswith("No model can be held to this JSON schema") and "\n" not in str(caught.value)


def test_a_token_that_was_never_allowed_is_a_sentence():
    words = tokenizer()
    constraint = Constraint({"type": "integer"}, words, [words.convert_tokens_to_ids("<|im_end|>")])
    with pytest.raises(DuoGenError, match="cannot be held to the JSON schema: .*satisfy the grammar") as caught:
        constraint.take(words.convert_tokens_to_ids("a"))
    assert len(str(caught.value)) < 400


def test_without_the_library(monkeypatch):
    real = builtins.__import__

    def missing(name, *more):
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DuoGenError, match="needs the package llguidance; run pip install llguidance"):
        json_grammar({"type": "integer"})


# ---------------------------------------------------------------- the penalty over the reply


def test_the_penalty_over_the_reply_leaves_the_prompt_alone():
    sampling = TokenSampling(reply_penalty=2.0).resolved({"do_sample": True, "repetition_penalty": 9.0})
    assert (sampling.repetition_penalty, sampling.reply_penalty) == (1.0, 2.0)
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    seen = [torch.tensor([0]), torch.tensor([0])]
    assert choose(logits.clone(), sampling, [0, 0], [0, 0], seen, [[], [0]]) == [0, 1]
    with pytest.raises(DuoGenError, match="reply_penalty must be a number above 0"):
        TokenSampling(reply_penalty=0)


def test_a_model_that_repeats_itself_is_kept_from_that():
    mllm = lively("qwen2_5_vl")
    free = mllm.continue_(CONTEXTS["text only"], max_new_tokens=30)
    held = mllm.continue_(CONTEXTS["text only"], max_new_tokens=30, reply_penalty=5.0)
    assert free.text != held.text
    assert mllm.continue_(CONTEXTS["text only"], max_new_tokens=30, reply_penalty=1.0) == free
