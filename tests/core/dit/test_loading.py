"""A checkpoint's DiT that is to run elsewhere: mapped from its file, in the type it has there."""

from __future__ import annotations

import json

import pytest
import torch

from duogen_core.dit.loading import load_dit
from duogen_core.errors import DuoGenError
from tests.core.tiny import random_components


@pytest.fixture
def folder(tmp_path):
    random_components().dit.bfloat16().save_pretrained(tmp_path)
    return tmp_path


def test_layers_are_prepared_before_their_weights_come(folder):
    seen = []
    dit = load_dit(
        folder, prepare=lambda module, formats: seen.extend([formats, *(p.is_meta for p in module.parameters())])
    )
    assert seen[0] == {} and all(seen[1:]) and not dit.training
    whole = load_dit(folder)
    assert {p.dtype for p in dit.parameters()} == {torch.bfloat16} and {p.dtype for p in whole.parameters()} == {
        torch.float32
    }
    assert all(
        torch.equal(mine.float(), theirs) for mine, theirs in zip(dit.parameters(), whole.parameters(), strict=True)
    )
    wide = load_dit(folder, dtype=torch.float32, prepare=lambda module, formats: None)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change, match",
    [({"num_layers": 3}, "tensors are missing"), ({"num_layers": "many"}, "num_layers 'many'; expected a whole")],
)
def test_a_configuration_that_does_not_fit(folder, change, match):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DuoGenError, match=match) as caught:
        load_dit(folder, prepare=lambda module, formats: None)
    assert "\n" not in str(caught.value)
