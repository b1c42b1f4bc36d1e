"""Frame-causal attention: equal to a masked one-pass reference, exact with the cache, blind to what comes later."""

from __future__ import annotations

import pytest
import torch

from duogen_core.dit import DitError
from duogen_core.dit.frame_cache import FrameCache
from tests.core.dit.families import TINY, tiny
from tests.core.dit.masked_reference import reference

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=TINY)
def model(request):
    return tiny(request.param, num_layers=3, attention="frame_causal")


def latents(*sizes: tuple[int, int], batch: int = 1, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 16, h, w, generator=generator) for h, w in sizes]


MIXED = ((4, 6), (8, 4), (4, 4), (6, 6))
ENDS = (2, 2, 9)


@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_masked_reference(model, batch):
    frames = latents(*MIXED, batch=batch)
    timestep, text = torch.linspace(0.7, 0.2, batch), torch.randn(batch, 12, 20)
    with torch.no_grad():
        ours = model.forward_packed(frames, timestep, text, frame_ends=ENDS)
        torch.testing.assert_close(ours, reference(model, frames, timestep, text, ENDS), **CLOSE)


@pytest.mark.parametrize("alike", [True, False])
def test_attention_gets_batches_of_one_size(model, monkeypatch, alike):
    """Unlike earlier images with one text: torch would repeat what is missing, but only on its slowest way."""
    frames, text = latents(*MIXED, batch=2), torch.randn(1 if alike else 2, 12, 20).expand(2, -1, -1)
    attend, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watched(q, k, v):
        seen.add(len({len(q), len(k), len(v)}))
        return attend(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model.forward_packed(frames, torch.rand(2), text, frame_ends=ENDS)
    assert seen == {1}


def test_the_cache_changes_nothing(model):
    """Steps, growing documents, both guidance branches, a rerolled picture: always what an empty cache gives."""
    cache = FrameCache()
    frames, text = latents(*MIXED), torch.randn(1, 14, 20)
    with torch.no_grad():
        for count in (1, 2, 3, 4):
            ends = ENDS[: count - 1]
            tokens = (2, 4, 9, 14)[count - 1]
            cache.hits = cache.misses = 0
            for step in (0.9, 0.5, 0.1):
                target = latents(MIXED[count - 1], seed=int(step * 10))[0]
                positive = text[:, :tokens]
                negative = positive[:, : ends[-1] if ends else 0]  # the last text segment dropped
                for branch in (positive, negative):
                    args = ([*frames[: count - 1], target], torch.tensor([step]), branch)
                    cached = model.forward_packed(*args, frame_ends=ends, cache=cache)
                    torch.testing.assert_close(cached, model.forward_packed(*args, frame_ends=ends), **CLOSE)
                    torch.testing.assert_close(cached, reference(model, *args, ends), **CLOSE)
            # a picture is computed once, for the first branch after it was finished; both share one line
            assert cache.misses == (1 if count > 1 else 0)
            assert cache.hits == 6 * (count - 1) - cache.misses
            assert len([line for line in cache.lines if line.frames]) == (1 if count > 1 else 0)
        frames[1] = latents(MIXED[1], seed=77)[0]  # a rerolled picture keeps what is before it
        cache.misses = 0
        args = (frames, torch.tensor([0.5]), text)
        cached = model.forward_packed(*args, frame_ends=ENDS, cache=cache)
        assert cache.misses == 2
        torch.testing.assert_close(cached, model.forward_packed(*args, frame_ends=ENDS), **CLOSE)


@pytest.mark.parametrize("change", ["latent", "text", "end"])
def test_the_cache_notices_every_change(model, change):
    frames, text, ends = latents((4, 4), (4, 4)), torch.randn(1, 6, 20), [3]
    cache = FrameCache()
    with torch.no_grad():
        before = model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=ends, cache=cache)
        if change == "latent":
            frames[0] += 0.5  # in place: contents count, not identity
        elif change == "text":
            text[0, 1] += 0.5
        else:
            ends = [4]
        after = model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=ends, cache=cache)
        fresh = model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=ends)
    assert not torch.allclose(before, after, atol=1e-5)
    torch.testing.assert_close(after, fresh, **CLOSE)


def test_a_finished_picture_never_depends_on_what_comes_later(model):
    """Its keys and values are the same whatever the target, the timestep, later text and later pictures are."""
    frames, text = latents((4, 4), (4, 6), (4, 4)), torch.randn(1, 10, 20)
    kept = []
    for later in range(2):
        cache = FrameCache()
        text = text.clone()
        text[:, 5:] += later
        target = frames[2] + later
        model.forward_packed(
            [*frames[:2], target], torch.tensor([0.2 + later / 2]), text, frame_ends=[3, 5], cache=cache
        )
        (line,) = cache.lines
        kept.append([buffer[:, :, :, : line.length] for buffer in line.buffers.values()])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_unused_lines_stay_within_the_limit(model):
    text, one = torch.randn(1, 4, 20), None
    cache = FrameCache(max_bytes=0)
    for seed in range(6):
        frames = latents((2, 2), (2, 2), (2, 2), seed=seed)
        out = model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=[1, 2], cache=cache)
        torch.testing.assert_close(out, model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=[1, 2]))
        one = one or cache.bytes
        assert len(cache.lines) == 1 and cache.bytes == one > 0  # what is drawn with is kept, whatever it takes
    cache.max_bytes = 3 * one
    for seed in range(6):
        frames = latents((2, 2), (2, 2), (2, 2), seed=seed)
        model.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=[1, 2], cache=cache)
    assert cache.bytes in (3 * one, 4 * one)
    cache.clear()
    assert cache.bytes == 0


def test_what_was_kept_in_inference_mode_serves_outside_of_it(model):
    """ComfyUI samples in inference mode, but not in a node that trains."""
    frames, text, cache = latents(*MIXED), torch.randn(1, 14, 20), FrameCache()
    time = torch.tensor([0.4])
    with torch.inference_mode():
        prepared(model, frames[:3], text, cache, ENDS[:2])
        forked = prepared(model, frames[:2], text, cache, ENDS[:1])
    for count, each in ((4, prepared(model, frames, text, cache, ENDS)), (2, forked)):
        own = frames[:count]
        v, _ = each.velocities(own[-1], time)
        torch.testing.assert_close(v, model.forward_packed(own, time, text, frame_ends=ENDS[: count - 1]), **CLOSE)


def prepared(model, frames, text, cache, ends, hidden=None):
    *clean, target = frames
    return model.prepare(clean, [(text, None), (text.clone(), hidden)], target.shape, frame_ends=ends, cache=cache)


def test_pictures_that_are_drawn_side_by_side_do_not_disturb_each_other(model):
    """One grows the line of another, one goes back to an earlier picture: each keeps its own frames."""
    frames, text, cache = latents(*MIXED), torch.randn(1, 14, 20), FrameCache()
    rerolled = [frames[0], latents(MIXED[1], seed=9)[0], frames[2], frames[3]]
    jobs = [(frames[:2], ENDS[:1]), (frames, ENDS), (rerolled, ENDS), (frames[:3], ENDS[:2]), (rerolled[:3], ENDS[:2])]
    all_prepared = [prepared(model, own, text, cache, ends, (10, 12)) for own, ends in jobs]
    for _ in range(2):
        for (own, ends), each in zip(jobs, all_prepared, strict=True):
            for t in (0.9, 0.3):
                time = torch.tensor([t])
                for hidden, v in zip((None, (10, 12)), each.velocities(own[-1], time), strict=True):
                    expected = model.forward_packed(own, time, text, frame_ends=ends, hidden=hidden)
                    torch.testing.assert_close(v, expected, **CLOSE)


@pytest.mark.parametrize("hidden", [(10, 12), (1, 5), (0, 14), (3, 3)])
def test_text_that_is_hidden_may_stand_before_finished_pictures(model, hidden):
    """The keys stand in an order of their own then; finished pictures still see what stands before them."""
    frames, text = latents(*MIXED), torch.randn(1, 14, 20)
    each = prepared(model, frames, text, FrameCache(), ENDS, hidden)
    assert each.branches[0].text is each.branches[1].text, "both branches read one buffer"
    for own, v in zip((None, hidden), each.velocities(frames[-1], torch.tensor([0.4])), strict=True):
        alone = model.prepare(frames[:-1], [(text, own)], frames[-1].shape, frame_ends=ENDS)
        torch.testing.assert_close(v, alone.velocities(frames[-1], torch.tensor([0.4]))[0], **CLOSE)
    torch.testing.assert_close(
        each.velocities(frames[-1], torch.tensor([0.4]))[0],
        reference(model, frames, torch.tensor([0.4]), text, ENDS),
        **CLOSE,
    )


def test_no_text_at_all(model):
    frames = latents((4, 4), (4, 4))
    with torch.no_grad():
        none = model.forward_packed(frames, torch.tensor([0.5]), torch.zeros(1, 0, 20), frame_ends=[0])
        some = model.forward_packed(frames, torch.tensor([0.5]), torch.randn(1, 3, 20), frame_ends=[0])
    assert none.isfinite().all() and not torch.allclose(none, some, atol=1e-5)


@pytest.mark.parametrize(
    "ends,message",
    [
        (None, "0 entries for 1"),
        ([1, 2], "2 entries for 1"),
        ([7], "within the 6"),
        ([[1], [2]], "differ within one batch"),
    ],
)
def test_wrong_frame_ends_are_named(model, ends, message):
    frames, text = latents((4, 4), (4, 4), batch=2), torch.randn(2, 6, 20)
    with pytest.raises(DitError, match=message):
        model.forward_packed(frames, torch.rand(2), text, frame_ends=ends)


def test_equal_frame_ends_per_entry_are_taken(model):
    frames, text, timestep = latents((4, 4), (4, 4), batch=2), torch.randn(2, 6, 20), torch.rand(2)
    with torch.no_grad():
        nested = model.forward_packed(frames, timestep, text, frame_ends=[[4], [4]])
        assert torch.equal(nested, model.forward_packed(frames, timestep, text, frame_ends=[4]))
