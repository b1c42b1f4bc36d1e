"""Steps whose blocks a host changes: the plain step where nothing is changed, another model where something is."""

from __future__ import annotations

import copy

import pytest
import torch

from duogen_core.dit.base import PackedDit
from duogen_core.dit.frame_cache import FrameCache
from duogen_core.dit.patched import Patches, patched_velocity
from tests.core.dit.families import TINY, tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
ENDS = (2, 2, 9)
HIDDEN = (6, 11)


@pytest.fixture(scope="module", params=["full", "frame_causal"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest, attention: str) -> PackedDit:
    return tiny(request.param, num_layers=4, attention=attention)


def inputs(batch: int = 1) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    frames = [torch.randn(1, 16, h, w, generator=noise) for h, w in ((4, 6), (8, 4), (4, 4))]
    text = torch.randn(batch, 13, 20, generator=noise)
    x = torch.randn(2 * batch, 16, 6, 6, generator=noise)
    return frames, text, x, torch.linspace(0.3, 0.8, 2 * batch)


def prepared(model: PackedDit, batch: int = 1, texts: int = 13, shorter: bool = False, **how):
    frames, text, x, t = inputs(batch)
    ends = ENDS if texts else (0, 0, 0)
    second = (text[:, :10], None) if shorter else (text[:, :texts], HIDDEN if texts else None)
    both = [(text[:, :texts], None), second]
    return model.prepare(frames, both, x.shape, frame_ends=ends, **how), x, t


@pytest.mark.parametrize(("batch", "texts"), [(1, 13), (2, 13), (1, 0)])
def test_nothing_changed_is_the_plain_step(model: PackedDit, batch: int, texts: int):
    plain, x, t = prepared(model, batch, texts)
    together, *_ = prepared(model, batch, texts, together=True)
    torch.testing.assert_close(patched_velocity(together, x, t, Patches()), plain.velocity(x, t), **CLOSE)


@pytest.mark.parametrize("shorter", [False, True], ids=["one text", "a shorter one too"])
def test_seen_attention_changes_nothing(model: PackedDit, shorter: bool):
    class Watching(Patches):
        changes_text = True

        def __init__(self):
            self.seen = []

        def attention(self, index, kind, q, k, v, run):
            self.seen.append((kind, k.shape[2]))
            return run(q, k, v)

    plain, x, t = prepared(model, 2, shorter=shorter)
    together, *_ = prepared(model, 2, shorter=shorter, together=True)
    watching = Watching()
    torch.testing.assert_close(patched_velocity(together, x, t, watching), plain.velocity(x, t), **CLOSE)
    tokens = 2 * 3 + 4 * 2 + 2 * 2 + 3 * 3
    assert watching.seen == [("frames", tokens), ("text", 13)] * 4


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_skipped_block_is_a_model_without_it(model: PackedDit, skipped: int):
    """For the finished frames as well, whose tokens the later blocks read."""

    class Skipping(Patches):
        def block(self, index, x, inputs, run):
            return x if index == skipped else run(x)

    without = copy.deepcopy(model)
    del without.transformer_blocks[skipped]
    expected, x, t = prepared(without)
    together, *_ = prepared(model, together=True)
    found = patched_velocity(together, x, t, Skipping())
    torch.testing.assert_close(found, expected.velocity(x, t), **CLOSE)
    plain, *_ = prepared(model)
    assert (found - plain.velocity(x, t)).abs().max() > 1e-2


def test_a_controlnets_residuals_come_behind_the_patches(model: PackedDit):
    noise = torch.Generator().manual_seed(5)
    residuals = {block: torch.randn(2, 9, 48, generator=noise) for block in (0, 2)}
    plain, x, t = prepared(model)
    together, *_ = prepared(model, together=True)
    found = patched_velocity(together, x, t, Patches(), residuals)
    torch.testing.assert_close(found, plain.velocity(x, t, residuals), **CLOSE)
    assert (found - plain.velocity(x, t)).abs().max() > 1e-2


def test_what_the_mlp_and_the_first_block_read_may_change(model: PackedDit):
    class Doubling(Patches):
        changes_mlp = True

        def mlp(self, index, x):
            return 2 * x

        def tokens(self, x):
            return x + 0

    twice = copy.deepcopy(model)
    for block in twice.transformer_blocks:
        (block.ffn if hasattr(block, "ffn") else block.ff).net[0].proj.weight.data *= 2
    expected, x, t = prepared(twice)
    together, *_ = prepared(model, together=True)
    torch.testing.assert_close(patched_velocity(together, x, t, Doubling()), expected.velocity(x, t), **CLOSE)


def test_patched_steps_leave_nothing_to_plain_ones(model: PackedDit):
    class Skipping(Patches):
        def block(self, index, x, inputs, run):
            return x if index == 1 else run(x)

    cache = FrameCache()
    before, x, t = prepared(model, cache=cache)
    plain = before.velocity(x, t)
    held = cache.bytes
    together, *_ = prepared(model, cache=cache, together=True)
    patched_velocity(together, x, t, Skipping())
    assert cache.bytes == held
    after, *_ = prepared(model, cache=cache)
    assert torch.equal(after.velocity(x, t), plain)


def test_other_attention_and_positions_are_other_keys_and_values(model: PackedDit):
    def halved(_block, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v) / 2

    cache = FrameCache()
    plain = prepared(model, cache=cache)[0]
    _, x, t = prepared(model)
    first = plain.velocity(x, t)
    for how in ({"attention": halved}, {"positions": ((1, 0), (2.0, 0.5), (0.5, 0))}):
        other = prepared(model, cache=cache, **how)[0].velocity(x, t)
        assert (other - first).abs().max() > 1e-3
        fresh = prepared(model, **how)[0].velocity(x, t)
        torch.testing.assert_close(other, fresh, **CLOSE)
        together = prepared(model, together=True, **how)[0]
        torch.testing.assert_close(patched_velocity(together, x, t, Patches()), fresh, **CLOSE)
    assert torch.equal(prepared(model, cache=cache)[0].velocity(x, t), first)
