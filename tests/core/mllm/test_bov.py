"""<BOV> for a model that has none: a spare id, a start for its rows, and everything else as it was."""

from __future__ import annotations

import json

import pytest
import torch

from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import BOV, IM_END
from duogen_core.mllm.loading import load_with_bov
from duogen_core.mllm.tokenizer import FIRST_ID, add_bov, load_tokenizer, start_bov
from duogen_core.training.next_token import Batcher, NextTokenLoss
from tests.core.sample_sets import guide
from tests.core.tiny import random_components
from tests.core.training.test_lora import untie


def trained(tied=True):
    """A tiny model that has learnt to write, and whose row of <BOV> is then taken away."""
    mllm = random_components().mllm
    model = mllm.model
    if not tied:
        untie(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = Batcher(mllm.tokenizer, mllm.image_processor)([guide(k) for k in range(4)])
    for _ in range(30):
        optimizer.zero_grad()
        NextTokenLoss(model)(*batch)[0].backward()
        optimizer.step()
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[mllm.control.bov] = 1e-4 * torch.randn(weight.shape[1])
    return mllm, batch


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_were_never_learnt_start_from_something_and_others_stay(tied):
    mllm, batch = trained(tied)
    model, bov = mllm.model, mllm.control.bov
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        without = NextTokenLoss(model)(*batch)[0]
        assert start_bov(model, mllm.tokenizer) == (["embedding"] if tied else ["embedding", "lm_head"])
        loss = NextTokenLoss(model)(*batch)[0]
    assert torch.isfinite(loss) and loss < 0.9 * without
    for name, tensor in model.state_dict().items():
        rows = (tensor != before[name]).flatten(1).any(1).nonzero().flatten().tolist() if tensor.ndim > 1 else []
        assert rows == ([bov] if "embed_tokens" in name or "lm_head" in name else []), name
        assert tensor.ndim > 1 or torch.equal(tensor, before[name])
    assert start_bov(model, mllm.tokenizer) == []  # now they are there


def test_a_learnt_row_is_left_alone():
    mllm = random_components().mllm
    before = mllm.model.get_input_embeddings().weight.clone()
    assert start_bov(mllm.model, mllm.tokenizer) == []
    assert torch.equal(mllm.model.get_input_embeddings().weight, before)


def without_bov(folder):
    """A model folder like a published one: no <BOV> in the tokenizer, spare rows in the embedding."""
    mllm = random_components().mllm
    mllm.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != BOV]
    content["model"]["vocab"].pop(BOV, None)
    file.write_text(json.dumps(content))
    return mllm


def test_a_tokenizer_without_it_gets_a_spare_id(tmp_path):
    mllm = without_bov(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    size = len(tokenizer)
    assert BOV not in tokenizer.get_vocab()
    with pytest.raises(DuoGenError, match=f"no spare row for <BOV>: its vocabulary has {size} entries"):
        add_bov(tokenizer, rows=size)
    add_bov(tokenizer, rows=size + 1)
    assert tokenizer.get_vocab()[BOV] == size and tokenizer.encode(BOV) == [size]
    add_bov(tokenizer, rows=size + 1)
    assert len(tokenizer) == size + 1
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").get_vocab()[BOV] == size
    assert mllm.tokenizer.get_vocab()[IM_END] == tokenizer.get_vocab()[IM_END]


class Large:
    """A tokenizer as large as Qwen2.5-VL's, as far as add_bov looks."""

    def __init__(self, size):
        self.added, self.size = [], size

    def get_vocab(self):
        return {}

    def __len__(self):
        return self.size

    def add_tokens(self, tokens, special_tokens):
        self.added += [token.content for token in tokens]


def test_in_qwens_vocabulary_the_ids_that_others_use_are_passed_over():
    tokenizer = Large(151_665)
    add_bov(tokenizer, rows=152_064)
    assert 151_665 + tokenizer.added.index(BOV) == FIRST_ID == 151_669
    with pytest.raises(DuoGenError, match="no spare row"):
        add_bov(Large(151_665), rows=151_666)


def test_a_published_model_can_be_trained(tmp_path):
    without_bov(tmp_path / "model")
    mllm, started = load_with_bov(tmp_path / "model")
    assert mllm.tokenizer.get_vocab()[BOV] == mllm.control.bov < mllm.model.get_input_embeddings().num_embeddings
    assert started == []  # random rows are as long as all others
    loss, _ = NextTokenLoss(mllm.model)(*Batcher(mllm.tokenizer, mllm.image_processor)([guide(1)]))
    assert torch.isfinite(loss)
