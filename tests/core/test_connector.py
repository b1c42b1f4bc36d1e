"""The connector: streamed = concatenate-then-project, Cosmos' normalisation, strict files."""

from __future__ import annotations

import json

import pytest
import torch

from duogen_core.bench.measure import Side, measure_memory
from duogen_core.bench.reference import project
from duogen_core.connector import Connector, ConnectorConfig, normalise
from duogen_core.errors import DuoGenError


def make(seed: int = 0, **sizes: int) -> Connector:
    torch.manual_seed(seed)
    return Connector(ConnectorConfig(**{"num_layers": 3, "hidden_size": 16, "cross_width": 8, **sizes})).eval()


@pytest.mark.parametrize("layers, hidden, width", [(1, 8, 4), (3, 16, 8), (28, 24, 40)])
def test_streamed_equals_concatenated(layers: int, hidden: int, width: int) -> None:
    connector = make(num_layers=layers, hidden_size=hidden, cross_width=width)
    states = torch.randn(2, 7, layers, hidden) * 5 + 3
    streamed = connector.finish(sum(connector.project_layer(i, states[..., i, :]) for i in range(layers)))
    torch.testing.assert_close(streamed, connector(states), atol=1e-5, rtol=1e-5)


def test_equals_the_projection_of_cosmos() -> None:
    connector = make()
    h = torch.randn(5, 3, 16)
    normed = [(x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8) for x in h.unbind(1)]
    reference = torch.nn.Sequential(connector.proj, torch.nn.GELU())(torch.cat(normed, dim=-1))
    torch.testing.assert_close(connector(h), reference)


def test_normalise_is_float32_with_unbiased_std() -> None:
    out = normalise(torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.tensor([[-1.0, 1.0]]) / 2**0.5)


def test_half_precision_weights_stay_close() -> None:
    connector = make()
    states = torch.randn(4, 3, 16)
    exact = connector(states)
    half = connector.to(torch.bfloat16)
    streamed = half.finish(sum(half.project_layer(i, states[:, i]) for i in range(3)))
    assert streamed.dtype == half(states).dtype == torch.float32
    torch.testing.assert_close(streamed, exact, atol=0.05, rtol=0.05)


def test_gradients_reach_every_layer() -> None:
    connector = make()
    connector(torch.randn(4, 3, 16)).sum().backward()
    assert all(part.abs().sum() > 0 for part in connector.proj.weight.grad.split(16, dim=1))


def test_foreign_states_are_refused() -> None:
    connector = make()
    with pytest.raises(DuoGenError, match="3 layers of width 16"):
        connector(torch.randn(2, 4, 16))
    with pytest.raises(DuoGenError, match="belongs to another MLLM"):
        connector.project_layer(3, torch.randn(2, 16))
    with pytest.raises(DuoGenError, match="width 12"):
        connector.project_layer(0, torch.randn(2, 12))
    with pytest.raises(DuoGenError, match="num_layers"):
        ConnectorConfig(0, 16, 8)


def test_save_and_load(tmp_path) -> None:
    connector = make()
    connector.save_pretrained(tmp_path / "connector")
    back = Connector.from_pretrained(tmp_path / "connector")
    states = torch.randn(2, 3, 16)
    assert back.config == connector.config and torch.equal(back(states), connector(states))


def test_broken_folders_are_named(tmp_path) -> None:
    with pytest.raises(DuoGenError, match=r"lacks config\.json"):
        Connector.from_pretrained(tmp_path)
    make().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(DuoGenError, match=r"model\.safetensors"):
        Connector.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({"num_layers": 4, "hidden_size": 16, "cross_width": 8}))
    with pytest.raises(DuoGenError, match=r"proj\.weight"):
        Connector.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(DuoGenError, match="not a connector configuration"):
        Connector.from_pretrained(tmp_path)


def test_the_last_layer_alone(tmp_path) -> None:
    connector = make(layers="last")
    assert connector.proj.weight.shape == (8, 16)
    states = torch.randn(2, 7, 3, 16)
    streamed = connector.finish(sum(connector.project_layer(i, states[..., i, :]) for i in range(3)))
    torch.testing.assert_close(streamed, connector(states), atol=1e-5, rtol=1e-5)
    other = states.clone()
    other[..., :2, :] += 1
    assert torch.equal(connector(other), connector(states))
    connector.save_pretrained(tmp_path)
    back = Connector.from_pretrained(tmp_path)
    assert back.config.layers == "last" and torch.equal(back(states), connector(states))


def test_a_config_from_before_the_switches_reads_as_it_was_meant(tmp_path) -> None:
    connector = make(drop="all_text")
    connector.save_pretrained(tmp_path)
    assert Connector.from_pretrained(tmp_path).config == connector.config
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 3, "hidden_size": 16, "cross_width": 8}))
    config = Connector.from_pretrained(tmp_path).config
    assert (config.layers, config.drop, config.segment) == ("all", "last_segment", "none")
    assert make().config.segment == "user", "what is trained from now on"
    with pytest.raises(DuoGenError, match="layers is 'first'"):
        ConnectorConfig(3, 16, 8, layers="first")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_blocks_of_tokens_add_up_to_the_whole(monkeypatch, dtype):
    """The sum of the layers before is changed in place, whatever shape the states have."""
    monkeypatch.setattr("duogen_core.connector.BLOCK", 7)
    torch.manual_seed(0)
    connector = Connector(ConnectorConfig(3, 16, 8)).to(dtype).eval()
    states = torch.randn(2, 20, 3, 16)
    with torch.no_grad():
        total = connector.project_layer(0, states[:, :, 0])
        for layer in (1, 2):
            assert connector.project_layer(layer, states[:, :, layer], total) is total
        found, whole = connector.finish(total), connector.finish(connector.project_layers(states))
        limit = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(found, connector(states).float(), atol=limit, rtol=limit)
        torch.testing.assert_close(whole, connector(states).float(), atol=limit, rtol=limit)


def test_a_long_context_takes_little_more_memory_than_its_sums():
    """Against concatenate-and-project, which has the normalised states of all layers side by side."""
    connector = Connector(ConnectorConfig(28, 64, 16)).eval()
    layers = torch.randn(28, 4000, 64)

    def streamed() -> torch.Tensor:
        total = None
        for number, h in enumerate(layers):
            total = connector.project_layer(number, h, total)
        return connector.finish(total)

    ours, reference = Side(), Side()
    with torch.inference_mode():
        found = measure_memory(ours, streamed, torch.device("cpu"))
        whole = measure_memory(reference, lambda: project(connector, [h.clone() for h in layers]), torch.device("cpu"))
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert 0 < ours.peak_bytes < 0.01 * reference.peak_bytes  # without blocks 0.02
