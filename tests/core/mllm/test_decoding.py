"""What makes decoding fast gives what the slow form gives: cached keys, products of few rows, waiting states."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.document import Document, Text
from duogen_core.mllm import decoding
from tests.core.mllm_families import CONTEXTS, CREATE, SIZES, another, lively, written


def test_the_growing_cache_is_transformers_own() -> None:
    """Any order of tokens added and cropped away; a view that was handed out is never what the next call sees."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = decoding.KeyValueCache(), DynamicCache()
    for count, remove in ((300, 0), (1, 7), (1, 0), (512, 800), (3, 0), (250, 1), (1, 1)):
        for layer in range(2):
            keys, values = torch.randn(2, 1, 3, count, 8, generator=draw)
            got, expected = ours.update(keys, values, layer), theirs.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(got, expected))
        if remove:
            ours.crop(-remove)
            theirs.crop(-remove)
        assert ours.get_seq_length() == theirs.get_seq_length()
    room = ours.layers[0]._buffers[0]
    assert room.shape[2] % decoding.STEP == 0 and room.data_ptr() == ours.layers[0].keys.data_ptr()


def test_a_token_is_written_in_its_place_without_a_copy_of_the_rest() -> None:
    cache = decoding.KeyValueCache()
    cache.update(*torch.randn(2, 1, 2, 10, 4), 0)
    before = cache.layers[0].keys.data_ptr()
    cache.update(*torch.randn(2, 1, 2, 1, 4), 0)
    assert cache.layers[0].keys.data_ptr() == before and cache.get_seq_length() == 11


@pytest.fixture
def several(monkeypatch):
    if not torch.backends.mkl.is_available():
        pytest.skip("another library than MKL")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("bias", (True, False))
def test_few_rows_on_several_cores_give_the_same_product(several, bias) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 1024, bias=bias))
    for shape in ((1, 1, 256), (1, 256), (256,), (2, 3, 256), (40, 256)):
        x = torch.randn(shape)
        expected = model(x)
        with decoding.several_cores(model):
            assert isinstance(model[0], decoding._FewRowsLinear)
            got = model(x)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_layers_get_their_own_class_back(several) -> None:
    class Other(nn.Linear):  # as ComfyUI's, which fetches its weights
        pass

    layers = nn.Sequential(nn.Linear(512, 512), Other(512, 512), nn.Linear(8, 8), nn.Linear(512, 512).half())
    with pytest.raises(KeyboardInterrupt), decoding.several_cores(layers):
        assert [type(each) for each in layers] == [decoding._FewRowsLinear, Other, decoding._FewRowsLinear, nn.Linear]
        raise KeyboardInterrupt
    assert [type(each) for each in layers] == [nn.Linear, Other, nn.Linear, nn.Linear]


@pytest.mark.parametrize("family", CREATE)
def test_states_that_wait_are_the_states_of_a_second_pass(family, monkeypatch) -> None:
    """Written tokens go through the connector together; what is cropped away in between leaves no trace."""
    monkeypatch.setattr("duogen_core.mllm.base.WAITING", 5)
    torch.manual_seed(1)
    mllm = lively(family)
    connectors = [
        Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24, layers=layers)).eval()
        for layers in ("all", "last")
    ]
    document = CONTEXTS["drawn pictures, then text"]
    for connector in connectors:
        growing = another(mllm)
        for count in (3, 5, 12):
            out = growing.continue_(document, connector=connector, max_new_tokens=count)
            whole = document.append(Text(out.text))
            for each in (whole, document.append(Text(out.text[: len(out.text) // 2])), document):
                expected = another(mllm).encode(each, connector).states
                torch.testing.assert_close(growing.encode(each, connector).states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CREATE)
def test_layers_on_several_cores_write_the_same(family, several, monkeypatch) -> None:
    mllm, document = lively(family), CONTEXTS["text only"]
    plain = written(mllm, document, max_new_tokens=20)
    monkeypatch.setattr(decoding, "LARGE", 1)
    ran = []
    forward = decoding._FewRowsLinear.forward
    monkeypatch.setattr(decoding._FewRowsLinear, "forward", lambda self, x: ran.append(1) or forward(self, x))
    assert written(another(mllm), document, max_new_tokens=20) == plain and ran


def test_a_repetition_penalty_leaves_control_tokens_alone() -> None:
    """That an image was drawn or a turn ended is no repetition."""
    mllm = lively("qwen2_5_vl")
    document = Document().begin_turn("user", [Text("Draw a circle, a circle.")])
    keys = mllm._keys(document, mllm._layout(document))
    seen = set(mllm._seen(keys).tolist())
    assert seen and not seen & {mllm.control.bov, mllm.control.im_end, mllm.control.im_start}
    assert mllm._seen([-5]).dtype == torch.long


def test_many_rows_go_the_way_that_is_faster_for_them(several, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        decoding, "linear", lambda x, *weights: asked.append(len(x)) or nn.functional.linear(x, *weights)
    )
    layers = nn.Sequential(nn.Linear(512, 512)).requires_grad_(False)
    rows = torch.randn(40, 512)
    with torch.inference_mode(), decoding.several_cores(layers):
        torch.testing.assert_close(layers(rows)[:3], layers(rows[:3]), atol=1e-5, rtol=1e-5)
    assert asked == [40]
