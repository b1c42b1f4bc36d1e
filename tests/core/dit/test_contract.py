"""What every DiT family promises (duogen_core/dit/__init__.py), for all names in FAMILIES and both kinds of attention.

A new family adds its smallest configuration to families.py.
"""

from __future__ import annotations

import json

import pytest
import torch

from duogen_core.dit import FAMILIES, DitError
from duogen_core.dit.frame_cache import FrameCache
from duogen_core.dit.loading import load_dit
from duogen_core.dit.packing import TrainingSequence
from duogen_core.errors import DuoGenError
from tests.core.dit.families import WIDTH, family, tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SIZES = ((4, 6), (8, 4), (6, 6))  # latents of unlike pictures, the last one the target
ENDS = (2, 5)
TOKENS = 9


@pytest.fixture(scope="module", params=["full", "frame_causal"])
def attention(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name, attention):
    return tiny(name, attention=attention)


@pytest.fixture()
def inputs(model, attention):
    """(frames, timestep, text) for a batch of two, and the frame_ends that this attention takes."""
    torch.manual_seed(1)
    frames = [torch.randn(2, 16, h, w) for h, w in SIZES]
    ends = {"frame_ends": ENDS} if attention == "frame_causal" else {}
    return (frames, torch.tensor([0.7, 0.2]), torch.randn(2, TOKENS, WIDTH)), ends


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_config_says_what_the_caller_must_know(model, attention):
    assert model.config.attention == attention
    assert 0 <= model.config.clean_timestep <= 1
    assert model.config.text_embed_dim == WIDTH


def test_velocity_has_the_targets_shape(model, inputs):
    args, ends = inputs
    v = model.forward_packed(*args, **ends)
    assert v.shape == args[0][-1].shape and v.dtype == args[0][-1].dtype and v.isfinite().all() and v.std() > 1e-3
    alone = model.forward_packed(args[0][-1:], *args[1:])  # no earlier picture: no frame_ends needed
    assert alone.shape == v.shape and not torch.allclose(alone, v, **CLOSE)


def test_every_input_matters(model, inputs):
    (frames, timestep, text), ends = inputs
    v = model.forward_packed(frames, timestep, text, **ends)
    for k in range(len(frames)):
        other = [frame + (i == k) for i, frame in enumerate(frames)]
        assert not torch.allclose(model.forward_packed(other, timestep, text, **ends), v, **CLOSE)
    assert not torch.allclose(model.forward_packed(frames, timestep / 2, text, **ends), v, **CLOSE)
    for token in (0, TOKENS - 1):
        other = text.clone()
        other[:, token] += 1
        assert not torch.allclose(model.forward_packed(frames, timestep, other, **ends), v, **CLOSE)
    swapped = [frames[1], frames[0], frames[2]]
    assert not torch.allclose(model.forward_packed(swapped, timestep, text, **ends), v, **CLOSE)


def test_rows_of_a_batch_are_independent(model, inputs):
    (frames, timestep, text), ends = inputs
    v = model.forward_packed(frames, timestep, text, **ends)
    for row in (slice(0, 1), slice(1, 2)):
        alone = model.forward_packed([frame[row] for frame in frames], timestep[row], text[row], **ends)
        torch.testing.assert_close(alone, v[row], **CLOSE)


def test_a_finished_picture_of_batch_one_is_repeated(model, inputs):
    (frames, timestep, text), ends = inputs
    one = [frame[:1] for frame in frames[:-1]]
    two = [frame.repeat(2, 1, 1, 1) for frame in one]
    expected = model.forward_packed([*two, frames[-1]], timestep, text, **ends)
    torch.testing.assert_close(model.forward_packed([*one, frames[-1]], timestep, text, **ends), expected, **CLOSE)


def test_there_may_be_no_text(model, inputs, attention):
    (frames, timestep, text), _ = inputs
    ends = {"frame_ends": (0, 0)} if attention == "frame_causal" else {}
    assert model.forward_packed(frames, timestep, text[:, :0], **ends).isfinite().all()


def test_inputs_are_left_as_they_were(model, inputs):
    (frames, timestep, text), ends = inputs
    before = [tensor.clone() for tensor in (*frames, timestep, text)]
    model.forward_packed(frames, timestep, text, **ends)
    assert all(torch.equal(a, b) for a, b in zip(before, (*frames, timestep, text), strict=True))


def test_nothing_depends_on_the_cache(model, inputs):
    (frames, timestep, text), ends = inputs
    cache = FrameCache()
    for step in (1.0, 0.5):
        for tokens in (TOKENS, ENDS[-1]):  # both guidance branches
            args = (frames, timestep * step, text[:, :tokens])
            cached = model.forward_packed(*args, **ends, cache=cache)
            torch.testing.assert_close(cached, model.forward_packed(*args, **ends), **CLOSE)


def test_the_target_alone_does_not_see_hidden_text(model, inputs, attention):
    """Guidance's negative branch: under frame_causal the finished pictures still see that text, in front of them."""
    (frames, timestep, text), ends = inputs
    sees = torch.ones(len(frames), text.shape[1], dtype=torch.bool)
    if attention == "frame_causal":
        sees[:-1] = torch.arange(text.shape[1])[None] < torch.tensor(ENDS)[:, None]
        sees[-1, 1:3] = False
    else:
        sees[:, 1:3] = False
    with torch.no_grad():
        out = model.forward_packed(frames, timestep, text, hidden=(1, 3), **ends)
        for row in range(len(text)):
            one = [frame[row % len(frame)] for frame in frames]
            places = tuple(range(len(frames)))
            sequence = TrainingSequence(tuple(one[:-1]), (one[-1],), places, timestep[row : row + 1], text[row], sees)
            torch.testing.assert_close(out[row], model.forward_train([sequence])[0][0], **CLOSE)
        assert not torch.allclose(out, model.forward_packed(frames, timestep, text, **ends), **CLOSE)
        with pytest.raises(DitError, match="hidden"):
            model.forward_packed(frames, timestep, text, hidden=(3, text.shape[1] + 1), **ends)


def test_frame_ends_rule_under_frame_causal_only(model, inputs, attention):
    (frames, timestep, text), _ = inputs

    def v(ends):
        return model.forward_packed(frames, timestep, text, frame_ends=ends)

    if attention == "full":
        assert torch.equal(v(None), v(ENDS)) and torch.equal(v(None), v((0, TOKENS)))
        return
    assert not torch.allclose(v(ENDS), v((ENDS[0], TOKENS)), **CLOSE)
    assert v((0, 0)).isfinite().all() and v((TOKENS, TOKENS)).isfinite().all()
    for wrong in (None, (), (2,), (1, 2, 3), (5, 2), (2, TOKENS + 1), (-1, 2)):
        with pytest.raises(DitError, match="frame_ends"):
            v(wrong)


def test_training_equals_drawing(model, inputs, attention):
    (frames, timestep, text), ends = inputs
    *clean, target = frames
    sees = torch.arange(TOKENS)[None] < torch.tensor([*(ENDS if ends else (TOKENS,) * 2), TOKENS])[:, None]
    pack = [
        TrainingSequence(
            tuple(frame[b] for frame in clean), (target[b],), (0, 1, 2), timestep[b : b + 1], text[b], sees
        )
        for b in range(2)
    ]
    v = torch.stack([found for (found,) in model.forward_train(pack)])
    torch.testing.assert_close(v, model.forward_packed(frames, timestep, text, **ends), **CLOSE)


def test_no_text_means_none_for_any_frame(model, inputs, attention):
    """A negative branch that drops all text still brings the places of the pictures in it."""
    (frames, timestep, text), ends = inputs
    none = model.forward_packed(frames, timestep, text[:, :0], **ends)
    assert none.isfinite().all()
    assert torch.equal(none, model.forward_packed(frames, timestep, text[:, :0], frame_ends=(0, 0)))


def test_weights_that_draw_without_references_leave_earlier_pictures_out(model, inputs, name, attention, tmp_path):
    (frames, timestep, text), ends = inputs
    alone = model.forward_packed(frames[-1:], timestep, text)
    assert not torch.allclose(model.forward_packed(frames, timestep, text, **ends), alone, **CLOSE)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "references": False}), "utf-8")
    blind = load_dit(tmp_path).eval()
    assert torch.equal(blind.forward_packed(frames, timestep, text, **ends), alone)
    shown = TrainingSequence(
        (frames[0][0],), (frames[2][0],), (0, 2), timestep[:1], text[0], torch.ones(2, TOKENS).bool()
    )
    with pytest.raises(DitError, match="without looking at earlier images"):
        blind.forward_train([shown])


def test_save_and_load_give_the_same_model(model, inputs, name, tmp_path):
    args, ends = inputs
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": name}), "utf-8")
    loaded = load_dit(tmp_path).eval()
    assert type(loaded) is family(name)
    for key, value in model.config.items():
        if not key.startswith("_"):
            mine, theirs = (list(v) if isinstance(v, tuple) else v for v in (value, loaded.config[key]))
            assert mine == theirs, key
    assert torch.equal(loaded.forward_packed(*args, **ends), model.forward_packed(*args, **ends))


def test_what_is_missing_or_foreign_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DuoGenError, match=f"weights of the DiT are missing: .*{tmp_path.name}"):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "Stranger"}', "utf-8")
    with pytest.raises(DitError, match="Stranger"):
        load_dit(tmp_path)
