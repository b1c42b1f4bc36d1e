"""PackedWan equals diffusers' WanTransformer3DModel: one frame and a video; and refuses by name.

frame_causal against masks in diffusers' blocks: test_frame_causal.py.
"""

from __future__ import annotations

import pytest
import torch

from duogen_core.dit import DitError
from duogen_core.dit.packing import TrainingSequence
from duogen_core.dit.wan import PackedWan, init_weights
from tests.core.dit.families import TINY, WIDTH, tiny
from tests.core.dit.masked_reference import stock_wan

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def wan(**options) -> PackedWan:
    return tiny("PackedWan", **options)


def latents(*sizes, batch=1, channels=16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, channels, h, w, generator=generator) for h, w in sizes]


@pytest.fixture(autouse=True)
def text() -> torch.Tensor:
    return torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "frame_causal"])
@pytest.mark.parametrize(
    "options", [{}, {"in_channels": 48, "out_channels": 48}, {"cross_attn_norm": False}, {"attention_head_dim": 22}]
)
def test_a_single_frame_equals_diffusers(text, attention, options):
    model = wan(attention=attention, **options)
    (x,) = latents((6, 8), batch=2, channels=model.config.out_channels)
    t = torch.tensor([0.7, 0.2])
    expected = stock_wan(model)(x[:, :, None], t * 1000, text).sample[:, :, 0]
    torch.testing.assert_close(model.forward_packed([x], t, text), expected, **CLOSE)
    sees = torch.ones(1, text.shape[1], dtype=torch.bool)
    pack = [TrainingSequence((), (x[b],), (0,), t[b : b + 1], text[b], sees) for b in range(2)]
    torch.testing.assert_close(torch.stack([v for (v,) in model.forward_train(pack)]), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("clean", [-1.0, 0.0, 0.3])
def test_frames_of_one_size_equal_diffusers_video(text, clean):
    """With the target's own time for all frames (-1), diffusers' usual way; else its timestep per token."""
    model = wan(clean_timestep=clean)
    frames, t = latents(*[(6, 4)] * 4, batch=2), torch.tensor([0.7, 0.2])
    times = t * 1000
    if clean >= 0:
        times = torch.full((2, 4, 6), clean * 1000)  # frames by tokens
        times[:, -1] = (t * 1000)[:, None]
        times = times.flatten(1)
    expected = stock_wan(model)(torch.stack(frames, dim=2), times, text).sample[:, :, -1]
    torch.testing.assert_close(model.forward_packed(frames, t, text), expected, **CLOSE)


@torch.no_grad()
def test_the_class_itself_still_is_diffusers_model(text):
    model = wan()
    video, t = torch.stack(latents(*[(4, 6)] * 3, batch=2), dim=2), torch.tensor([700.0, 20.0])
    assert torch.equal(model(video, t, text).sample, stock_wan(model)(video, t, text).sample)


@torch.no_grad()
def test_positions_beyond_diffusers_table_go_on(text):
    """rope_max_seq_len only says how long diffusers' table is."""
    x, t = latents((4, 60))[0], torch.tensor([0.5])
    short, long = wan(rope_max_seq_len=8), wan()
    assert torch.equal(short.forward_packed([x], t, text[:1]), long.forward_packed([x], t, text[:1]))
    assert short.config.rope_max_seq_len == 8


def test_new_weights_begin_with_the_mean_and_learn():
    torch.manual_seed(3)
    model = init_weights(PackedWan(**TINY["PackedWan"]))
    clean, target = latents((4, 6), (4, 4))
    text, t = torch.randn(7, WIDTH), torch.tensor([0.6])
    sequence = TrainingSequence((clean[0],), (target[0],), (0, 1), t, text, torch.ones(2, 7, dtype=torch.bool))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = (model.forward_train([sequence])[0][0] - target[0]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(target[0].square().mean().item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # the text is read, too: attention to it opens although its way out began at zero
    assert all(block.attn2.to_out[0].weight.any() for block in model.blocks)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_dim": 1280}, "image_dim 1280; expected none"),
        ({"added_kv_proj_dim": 48}, "added_kv_proj_dim 48; expected none"),
        ({"in_channels": 36}, "in_channels 36 and out_channels 16"),
        ({"qk_norm": "layer_norm"}, "qk_norm 'layer_norm'; expected rms_norm_across_heads"),
        ({"patch_size": (2, 2, 2)}, "patch_size .*expected 1 first"),
        ({"freq_dim": 15}, "freq_dim 15; expected an even number"),
        ({"attention_head_dim": 5}, "attention_head_dim 5"),
        ({"text_dim": 4096}, "text_dim 4096 and text_embed_dim 20"),
        ({"attention": "causal"}, "full, frame_causal"),
        ({"attention": "frame_causal", "clean_timestep": -1.0}, "clean_timestep"),
        ({"num_layers": 0}, "num_layers 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(options, message):
    with pytest.raises(DitError, match=message):
        wan(**options)


def test_calls_that_do_not_fit_are_named(text):
    model, (x,), t = wan(), latents((4, 4)), torch.tensor([0.5])
    with pytest.raises(DitError, match="multiples of the patch"):
        model.forward_packed([x[:, :, :3]], t, text[:1])
    with pytest.raises(DitError, match="4 channels; this DiT takes 16"):
        model.forward_packed([x[:, :4]], t, text[:1])
    with pytest.raises(DitError, match="5 wide; this DiT takes 20"):
        model.forward_packed([x], t, text[:1, :, :5])
