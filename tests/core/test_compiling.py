"""Compiled pieces: the same results, no new graph for a new size, and a compiler that fails stops nothing."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from duogen_core.compiling import Compiled, pieces_of_dit, pieces_of_mllm
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.mllm import decoding
from tests.core.test_devices import CARD, answered, assert_same_answer
from tests.core.tiny import random_components, request

CASES = ((64, 64), 3, 20), ((32, 48), 1, 11), ((64, 32), 2, 30)  # size, finished frames, tokens


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def velocities(dit, size, frames, tokens):
    made = torch.Generator().manual_seed(frames)
    clean = [torch.randn(1, 16, size[1] // 8, size[0] // 8, generator=made) for _ in range(frames)]
    text = torch.randn(1, tokens, dit.config.text_embed_dim, generator=made)
    x = torch.randn(1, 16, size[1] // 8, size[0] // 8, generator=made)
    ends = tuple(range(1, frames + 1))
    prepared = dit.prepare(clean, [(text, None), (text, (tokens - 3, tokens))], x.shape, frame_ends=ends)
    return prepared.velocities(x, torch.tensor([0.5]))


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_new_sizes_compile_nothing_new(attention):
    dit, counter, said = random_components(attention=attention).dit, CompileCounter(), []
    with torch.inference_mode():
        expected = [velocities(dit, *case) for case in CASES]
        compiled = Compiled(pieces_of_dit(dit), said.append, backend=counter)
        assert len(compiled.pieces) == 4 * len(dit.transformer_blocks)
        graphs = []
        for case, want in zip(CASES, expected, strict=True):
            torch.testing.assert_close(velocities(dit, *case), want, rtol=0, atol=1e-5)
            graphs.append(counter.frame_count)
    assert 4 <= graphs[0] <= 24 and graphs[-1] == graphs[0], graphs
    assert not said


@pytest.mark.exhaustive
@pytest.mark.slow
def test_more_blocks_compile_nothing_more():
    found = []
    for layers in (3, 5):
        torch._dynamo.reset()

        dit, counter = (
            PackedCosmos(num_attention_heads=2, num_layers=layers, text_embed_dim=32).eval(),
            CompileCounter(),
        )
        Compiled(pieces_of_dit(dit), pytest.fail, backend=counter)
        with torch.inference_mode():
            velocities(dit, *CASES[0])
        found.append(counter.frame_count)
    assert found[1] == found[0]


def test_writing_is_the_same_and_compiles_for_one_token_and_for_many():
    parts, counter = random_components(), CompileCounter()
    expected = parts.mllm.continue_(request(), max_new_tokens=8)
    parts.mllm.clear_cache()
    Compiled(pieces_of_mllm(parts.mllm.model), pytest.fail, backend=counter)
    assert parts.mllm.continue_(request(), max_new_tokens=8) == expected
    before = counter.frame_count
    assert 4 <= before <= 8
    parts.mllm.clear_cache()
    parts.mllm.continue_(request("Draw a very, very large and quite blue square, please."), max_new_tokens=5)
    assert counter.frame_count == before


def test_the_cpus_own_operator_for_few_rows_is_not_given_to_the_compiler(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    parts, graphs = random_components(), []
    expected = parts.mllm.continue_(request(), max_new_tokens=4)
    parts.mllm.clear_cache()

    def backend(graph, inputs):  # inductor stops at this operator
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = Compiled(pieces_of_mllm(parts.mllm.model), pytest.fail, backend=backend)
    assert parts.mllm.continue_(request(), max_new_tokens=4) == expected
    assert compiled.pieces and graphs and not any("mkldnn" in graph for graph in graphs)


@pytest.mark.slow
def test_an_answer_is_the_same_compiled_also_when_parts_take_turns():
    expected, said, counter = answered(random_components()), [], CompileCounter()
    parts = random_components()
    # As on a card: each turn has new parameters in the places of the old ones. (The stand-in cannot be traced.)
    parts.take_turns(torch.device("cpu"))
    parts.compile(said.append, backend=counter)
    assert_same_answer(answered(parts), expected)
    graphs = counter.frame_count
    assert_same_answer(answered(parts), expected)
    assert counter.frame_count == graphs > 4 and not said


def test_a_compiler_that_fails_stops_nothing_and_is_told_once():
    def broken(graph, inputs):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin torch/_inductor")

    expected, said = answered(random_components()), []
    parts = random_components()
    parts.compile(said.append, backend=broken)
    assert_same_answer(answered(parts), expected)
    assert len(said) == 1 and "Compiling failed" in said[0] and "No working C++ compiler" in said[0]
    assert not parts.compiled.pieces and "queries" not in parts.dit.transformer_blocks[0].__dict__


class Halves(torch.nn.Module):
    """Two sums whose way back a faulty compiler can lose."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


@pytest.mark.parametrize("lost", [False, True])
def test_gradients_that_a_compiler_loses_are_noticed_at_the_first_step(lost):
    def backend(graph, inputs):
        def call(*given):
            out = graph(*given)
            if lost and torch.is_grad_enabled():  # the right values, and nothing to learn from them inside
                names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
                outer = next(each for name, each in zip(names, given) if "outer" in name and "weight" in name)
                out = tuple(each.detach() + 0 * outer.sum() for each in out)
            return out

        return call

    torch.manual_seed(0)
    module, said = Halves(), []
    wanted = torch.autograd.grad(module(torch.ones(3, 8)).sum(), list(module.parameters()))
    compiled = Compiled([(module, "forward")], said.append, backend=backend)
    with torch.no_grad():
        module(torch.ones(3, 8))  # nothing to compare yet
    for _ in range(2):
        found = torch.autograd.grad(module(torch.ones(3, 8, requires_grad=True)).sum(), list(module.parameters()))
        assert all(map(torch.allclose, found, wanted))
    assert bool(compiled.pieces) == (not lost)
    assert said == (["Compiled, Halves.forward has other gradients; going on without compiling."] if lost else [])


def test_a_fault_of_the_input_is_still_told_as_it_is():
    said = []
    dit = random_components().dit
    Compiled(pieces_of_dit(dit), said.append, backend="eager")
    with pytest.raises(Exception, match="[Ss]ize|shape"), torch.inference_mode():
        dit.transformer_blocks[0].add_attended(*[torch.ones(1, 1, 4, 64)] * 2, torch.ones(1, 2, 5, 32), None)


def test_layers_that_come_one_by_one_are_not_compiled():
    said = []
    parts = random_components()
    parts.compile(said.append, backend="eager")
    parts.come_by_layer(CARD)
    assert not parts.compiled.pieces
    parts.compile(said.append)
    assert said == ["Nothing is compiled, since the layers come to the card one by one."]
