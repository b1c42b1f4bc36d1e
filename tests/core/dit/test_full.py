"""Full attention: PackedCosmos equals diffusers, and unlike sizes equal a reference built by hand."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers import transformer_cosmos
from einops import rearrange
from safetensors.torch import load_file, save_file

from duogen_core.dit import DitError
from duogen_core.dit.cosmos import PackedCosmos, init_weights
from duogen_core.dit.loading import load_dit
from duogen_core.dit.packing import TrainingSequence
from duogen_core.weights.headers import WeightError

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 20,
    "adaln_lora_dim": 8,
}


def tiny(**config) -> PackedCosmos:
    torch.manual_seed(0)
    model = PackedCosmos(**{**TINY, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model


def latents(*sizes: tuple[int, int], batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 16, h, w, generator=generator) for h, w in sizes]


@pytest.fixture()
def resize(monkeypatch):
    """diffusers resizes the padding mask with torchvision, which need not be there: the mask is all zeros anyway."""

    def zeros(mask, size, interpolation=None):
        assert not mask.any()
        return mask.new_zeros(*mask.shape[:2], *size)

    fake = types.SimpleNamespace(
        functional=types.SimpleNamespace(resize=zeros), InterpolationMode=types.SimpleNamespace(NEAREST=None)
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", fake, raising=False)


def diffusers_forward(model, frames, timestep, text) -> torch.Tensor:
    video = torch.stack(frames, dim=2)
    batch, _, count, height, width = video.shape
    mask = torch.ones(batch, 1, count, height, width)
    mask[:, :, -1] = 0
    times = torch.full((batch, 1, count, 1, 1), 1e-4)
    times[:, 0, -1, 0, 0] = timestep
    out = CosmosTransformer3DModel.forward(
        model, video, times, text, condition_mask=mask, padding_mask=torch.zeros(1, 1, height * 8, width * 8)
    )
    return out.sample[:, :, -1]


def with_stock_blocks(model, frames, timestep, text) -> torch.Tensor:
    """Our pieces around diffusers' own blocks, which evaluate adaLN per token."""
    grids, last = [model.grid(frame.shape) for frame in frames], len(frames) - 1
    x = model.embed(torch.cat([model.patches(frame, clean=i < last) for i, frame in enumerate(frames)], dim=1))
    rope = model.rope_of([(i, *grid) for i, grid in enumerate(grids)], x.device)
    tokens = grids[0][0] * grids[0][1]
    times = torch.full((len(timestep), len(frames)), 1e-4)
    times[:, last] = timestep
    temb, embedded = model.time_embed(x, times.flatten())
    temb, embedded = (e.unflatten(0, times.shape).repeat_interleave(tokens, dim=1) for e in (temb, embedded))
    for block in model.transformer_blocks:
        x = block(x, text, embedded, temb, rope)
    return model.unpatch(model.proj_out(model.norm_out(x, embedded, temb))[:, -tokens:], grids[-1])


@pytest.mark.parametrize("batch,count,size", [(1, 1, (8, 8)), (1, 4, (8, 6)), (2, 3, (6, 10)), (3, 2, (2, 2))])
def test_equals_diffusers(resize, batch, count, size):
    model = tiny(rope_scale=(1.0, 3.0, 3.0))
    frames = latents(*[size] * count, batch=batch)
    timestep, text = torch.linspace(0.2, 0.9, batch), torch.randn(batch, 7, 20)
    with torch.no_grad():
        ours = model.forward_packed(frames, timestep, text)
        theirs = diffusers_forward(model, frames, timestep, text)
        assert torch.equal(with_stock_blocks(model, frames, timestep, text), theirs), (
            "patches, positions, mask channels"
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.01


def test_equals_diffusers_after_save_and_load(resize, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "packed")
    packed = load_dit(tmp_path / "packed")
    stock = CosmosTransformer3DModel(
        **{**TINY, "in_channels": 17, "extra_pos_embed_type": None, "rope_scale": (1, 1, 1)}
    )
    stock.load_state_dict(packed.state_dict())
    stock.save_pretrained(tmp_path / "stock")
    from_stock = load_dit(tmp_path / "stock")  # a folder that diffusers wrote loads as the packed class
    frames, timestep, text = latents((4, 6), (4, 6)), torch.tensor([0.5]), torch.randn(1, 5, 20)
    with torch.no_grad():
        expected = diffusers_forward(stock.eval(), frames, timestep, text)
        for loaded in (packed, from_stock):
            assert isinstance(loaded, PackedCosmos) and loaded.config.attention == "full"
            torch.testing.assert_close(loaded.forward_packed(frames, timestep, text), expected, atol=1e-5, rtol=1e-5)


def by_hand(model, frames, timestep, text) -> torch.Tensor:
    """Tokens, positions and modulations written out frame by frame, then the stock blocks."""
    tokens, angles, times = [], [], []
    thetas = (model.rope.t_ntk_factor, model.rope.h_ntk_factor, model.rope.w_ntk_factor)
    dims = (model.rope.dim_t, model.rope.dim_h, model.rope.dim_w)
    for index, frame in enumerate(frames):
        clean = index < len(frames) - 1
        ones = torch.full_like(frame[:, :1], float(clean))
        frame = torch.cat([frame, ones, torch.zeros_like(ones)], dim=1)
        tokens.append(rearrange(frame, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2))
        for y in range(frame.shape[2] // 2):
            for x in range(frame.shape[3] // 2):
                row = [
                    position / (10000.0 * theta) ** (np.arange(0, dim, 2) / dim)
                    for position, theta, dim in zip((index, y, x), thetas, dims, strict=True)
                ]
                angles.append(np.concatenate(row * 2))
                times.append(torch.full_like(timestep, 1e-4) if clean else timestep)
    x = model.patch_embed.proj(torch.cat(tokens, dim=1))
    angle = torch.tensor(np.stack(angles))
    rope = (angle.cos().float(), angle.sin().float())
    per_token = torch.stack(times, dim=1)
    temb, embedded = (e.view(*per_token.shape, -1) for e in model.time_embed(x, per_token.flatten()))
    for block in model.transformer_blocks:
        x = block(x, text, embedded, temb, rope)
    x = model.proj_out(model.norm_out(x, embedded, temb))
    height, width = (side // 2 for side in frames[-1].shape[-2:])
    return rearrange(x[:, -height * width :], "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=2, q=2, c=16)


def test_mixed_sizes_equal_the_reference_by_hand():
    model = tiny()
    frames = latents((8, 6), (4, 10), (2, 2), (6, 8), batch=2)
    timestep, text = torch.tensor([0.3, 0.8]), torch.randn(2, 9, 20)
    with torch.no_grad():
        ours = model.forward_packed(frames, timestep, text)
        assert ours.shape == frames[-1].shape
        torch.testing.assert_close(ours, by_hand(model, frames, timestep, text), atol=1e-5, rtol=1e-4)
        # every earlier picture and the text are really looked at
        for index in range(3):
            other = [frame + (i == index) for i, frame in enumerate(frames)]
            assert not torch.allclose(model.forward_packed(other, timestep, text), ours, atol=1e-4)
        assert not torch.allclose(model.forward_packed(frames, timestep, text + 1), ours, atol=1e-4)


def test_batch_entries_do_not_meet_and_a_single_reference_serves_the_batch():
    model = tiny()
    clean, target = latents((4, 4), batch=1)[0], latents((6, 4), batch=2)[0]
    timestep, text = torch.tensor([0.3, 0.8]), torch.randn(2, 9, 20)
    with torch.no_grad():
        both = model.forward_packed([clean, target], timestep, text)
        for i in range(2):
            one = model.forward_packed([clean, target[i : i + 1]], timestep[i : i + 1], text[i : i + 1])
            torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=1e-4)


def test_negative_clean_timestep_shares_the_targets():
    shared, own = tiny(clean_timestep=-1.0), tiny(clean_timestep=0.6)
    frames, text = latents((4, 4), (4, 4)), torch.randn(1, 3, 20)
    with torch.no_grad():
        for t in (0.6, 0.2):
            a, b = (m.forward_packed(frames, torch.tensor([t]), text) for m in (shared, own))
            assert torch.allclose(a, b, atol=1e-5) == (t == 0.6)


def test_the_connector_inside_the_checkpoint_is_applied():
    model = tiny(use_crossattn_projection=True, crossattn_proj_in_channels=30, encoder_hidden_states_channels=20)
    frames, timestep, states = latents((4, 4)), torch.tensor([0.5]), torch.randn(1, 6, 30)
    with torch.no_grad():
        projected = model.crossattn_proj(states)
        assert torch.equal(
            model.forward_packed(frames, timestep, states), model.forward_packed(frames, timestep, projected)
        )


def test_fresh_weights_predict_zero_and_open_up_when_trained():
    torch.manual_seed(0)
    model = init_weights(PackedCosmos(**TINY))
    frames, timestep, text = latents((4, 4), (4, 4)), torch.tensor([0.5]), torch.randn(1, 6, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        sees = torch.ones(2, 6, dtype=torch.bool)
        sequence = TrainingSequence((frames[0][0],), (frames[1][0],), (0, 1), timestep, text[0], sees)
        v = model.forward_train([sequence])[0][0]
        loss = (v - frames[0][0]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(frames[0].square().mean().item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m, f, t, c: m.forward_packed([f[0][:, :, :3]], t, c), "multiples of the patch"),
        (lambda m, f, t, c: m.forward_packed([f[0][:, :4]], t, c), "4 channels"),
        (lambda m, f, t, c: m.forward_packed(f, t, c[..., :5]), "5 wide"),
        (lambda m, f, t, c: m.forward_packed(f, t[[0, 0]], c), "batch 1"),
        (lambda m, f, t, c: tiny(attention="causal"), "full, frame_causal"),
        (lambda m, f, t, c: tiny(in_channels=16), "in_channels 16"),
        (lambda m, f, t, c: tiny(attention="frame_causal", clean_timestep=-1.0), "clean_timestep"),
    ],
)
def test_calls_that_do_not_fit_are_named(call, message):
    with pytest.raises(DitError, match=message):
        call(tiny(), latents((4, 4)), torch.tensor([0.5]), torch.randn(1, 6, 20))


def test_folders_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(DitError, match=r"config\.json is missing"):
        load_dit(tmp_path)
    tiny().save_pretrained(tmp_path)
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    good = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # not mapped: the file is overwritten
    save_file({name: tensor for name, tensor in good.items() if name != "proj_out.weight"}, weights)
    with pytest.raises(WeightError, match=r"proj_out\.weight"):
        load_dit(tmp_path)
    save_file({**good, "stranger": torch.zeros(1)}, weights)
    with pytest.raises(WeightError, match="stranger"):
        load_dit(tmp_path)
    weights.unlink()
    with pytest.raises(WeightError, match="weights of the DiT are missing"):
        load_dit(tmp_path)
    config.write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(DitError, match="UNet2DModel"):
        load_dit(tmp_path)


def steps_of(model, frames, text, refresh: int, hidden=(3, 6)) -> list[list[torch.Tensor]]:
    *clean, target = frames
    prepared = model.prepare(clean, [(text, None), (text, hidden)], target.shape, refresh=refresh)
    return [prepared.velocities(target * (1 + step), torch.tensor([0.9 - step / 10])) for step in range(5)]


def test_refreshing_every_step_is_exact_and_otherwise_the_steps_between_reuse_what_was_there():
    model = tiny()
    frames, text = latents((4, 6), (6, 4), (4, 4)), torch.randn(1, 9, 20)
    exact, third = steps_of(model, frames, text, 1), steps_of(model, frames, text, 3)
    for step, (ours, theirs) in enumerate(zip(third, exact, strict=True)):
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, other, atol=1e-5) == (step % 3 == 0)
    # What is reused is what the finished frames had: with the target and its time unchanged nothing differs.
    prepared = model.prepare(frames[:-1], [(text, None), (text, (3, 6))], frames[-1].shape, refresh=4)
    first, *others = [prepared.velocities(frames[-1], torch.tensor([0.5])) for _ in range(4)]
    for again in others:
        torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-5)
    rows = model.prepare(frames[:-1], [(text, None), (text, (3, 6))], frames[-1].shape, refresh=4)
    both = torch.cat([frames[-1]] * 2)
    for _ in range(4):
        v = rows.velocity(both, torch.tensor([0.5, 0.5]))
        torch.testing.assert_close(v, torch.cat(first), atol=1e-5, rtol=1e-5)
    with pytest.raises(DitError, match="refresh is 0"):
        model.prepare(frames[:-1], [(text, None)], frames[-1].shape, refresh=0)
