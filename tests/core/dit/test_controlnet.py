"""The ControlNet: equal to diffusers', nothing until it is trained, and no change of any earlier image's keys."""

from __future__ import annotations

import json
import types

import pytest
import torch
from diffusers import CosmosControlNetModel, CosmosTransformer3DModel
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos

from duogen_core.dit import DitError
from duogen_core.dit.controlnet import PackedControlNet
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.frame_cache import FrameCache
from duogen_core.dit.packing import TrainingSequence
from duogen_core.errors import DuoGenError
from tests.core.dit.families import tiny as tiny_of

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "mlp_ratio": 2.0,
    "text_embed_dim": 20,
    "adaln_lora_dim": 8,
}


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model.eval()


def some(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def causal() -> PackedCosmos:
    return randomised(PackedCosmos(**TINY, num_layers=4, attention="frame_causal"))


@pytest.fixture()
def resize(monkeypatch):
    """diffusers resizes the padding mask, which is all zeros, with torchvision, which need not be there."""

    def zeros(mask, size, interpolation=None):
        return mask.new_zeros(*mask.shape[:2], *size)

    fake = types.SimpleNamespace(
        functional=types.SimpleNamespace(resize=zeros), InterpolationMode=types.SimpleNamespace(NEAREST=None)
    )
    for module in (transformer_cosmos, controlnet_cosmos):
        monkeypatch.setattr(module, "transforms", fake, raising=False)


@pytest.mark.parametrize("channels", (18, 24))  # of the control's patches: Transfer2.5 leaves most of its 130 empty
def test_a_controlnet_of_diffusers_loads_and_gives_its_velocity(tmp_path, resize, channels):
    """Files as Transfer2.5 has them; strengths; the residual behind every second block."""
    size = {"model_channels": 48, "in_channels": channels, "n_controlnet_blocks": 2, "rope_scale": (1.0, 1.0, 1.0)}
    theirs = randomised(CosmosControlNetModel(**TINY, **size))
    theirs.save_pretrained(tmp_path)
    ours = PackedControlNet.from_pretrained(tmp_path)
    stock = randomised(
        CosmosTransformer3DModel(
            **TINY, in_channels=17, num_layers=4, rope_scale=(1.0, 1.0, 1.0), extra_pos_embed_type=None,
            controlnet_block_every_n=2,
        )
    )  # fmt: skip
    packed = PackedCosmos(**TINY, num_layers=4).eval()
    packed.load_state_dict(stock.state_dict())
    x, control, text, t = some(2, 16, 6, 4), some(2, 16, 6, 4, seed=2), some(2, 5, 20, seed=3), torch.tensor([0.7, 0.2])
    masks = {"condition_mask": torch.zeros(2, 1, 1, 6, 4), "padding_mask": torch.zeros(1, 1, 48, 32)}
    with torch.no_grad():
        samples = theirs(control[:, :, None], x[:, :, None], t, text, conditioning_scale=0.8, **masks)
        expected = stock(
            x[:, :, None], t, text, block_controlnet_hidden_states=samples.control_block_samples, **masks
        ).sample[:, :, 0]
        plain = stock(x[:, :, None], t, text, **masks).sample[:, :, 0]
    prepared = packed.prepare([], [(text, None)], x.shape)
    added = ours.prepare(control, [(text, None)], 4, x.shape).residuals(x, t, 0.8)
    assert list(added) == [0, 2]
    torch.testing.assert_close(prepared.velocities(x, t, added)[0], expected, **CLOSE)
    assert (expected - plain).abs().max() > 0.01


def test_a_new_controlnet_changes_nothing_bit_for_bit(causal):
    net = PackedControlNet.of_dit(causal, 2)
    x, t, text = some(1, 16, 4, 6), torch.tensor([0.5]), some(1, 7, 20)
    texts = [(text, None), (text, (3, 6))]
    refs = [some(1, 16, 4, 4, seed=5)]
    prepared = causal.prepare(refs, texts, x.shape, frame_ends=[2])
    added = net.prepare(some(1, 16, 4, 6, seed=2), texts, 4, x.shape).residuals(x, t)
    for plain, controlled in zip(prepared.velocities(x, t), prepared.velocities(x, t, added), strict=True):
        assert torch.equal(plain, controlled)


@pytest.mark.parametrize("attention", ("frame_causal", "full"))
def test_drawing_with_guidance_equals_training_and_leaves_the_cache_as_it_is(attention):
    """Branches as one batch, references of other sizes, hidden text: each row as by the way of trainings, which runs
    the sequences one by one. Keys and values of the earlier images are those of a drawing without control."""
    dit = randomised(PackedCosmos(**TINY, num_layers=4, attention=attention))
    net = randomised(PackedControlNet.of_dit(dit, 2))
    refs, x = [some(1, 16, 4, 4, seed=5), some(1, 16, 6, 4, seed=6)], some(1, 16, 4, 6)
    control, text, t = some(1, 16, 4, 6, seed=2), some(1, 7, 20, seed=3), torch.tensor([0.4])
    ends, hidden = (2, 4), (5, 7)
    caches = [FrameCache(), FrameCache()]
    found = []
    for cache in caches:
        prepared = dit.prepare(refs, [(text, None), (text, hidden)], x.shape, frame_ends=ends, cache=cache)
        added = net.prepare(control, [(text, None), (text, hidden)], 4, x.shape).residuals(x, t)
        found.append(prepared.velocities(x, t, added if cache is caches[0] else None))
    if attention == "frame_causal":
        controlled, plain = (cache.lines[0] for cache in caches)
        for block, buffer in controlled.buffers.items():
            length = controlled.length
            assert length and torch.equal(buffer[..., :length, :], plain.buffers[block][..., :length, :])
    seen = torch.ones(3, 7, dtype=torch.bool)
    if attention == "frame_causal":
        for row, end in enumerate(ends):
            seen[row, end:] = False
    for velocity, dropped in zip(found[0], (None, hidden), strict=True):
        sees = seen.clone()
        if dropped:
            sees[-1 if attention == "frame_causal" else slice(None), dropped[0] : dropped[1]] = False
        sequence = TrainingSequence(tuple(r[0] for r in refs), (x[0],), (0, 1, 2), t, text[0], sees)
        with torch.no_grad():
            added = net.residuals_train([sequence], [[control[0]]], 4)
            expected = dit.forward_train([sequence], added)[0][0]
        torch.testing.assert_close(velocity[0], expected, **CLOSE)
    assert (found[0][0] - found[1][0]).abs().max() > 0.01


def test_targets_of_unlike_sizes_and_texts_in_one_pack_equal_each_by_itself(causal):
    net = randomised(PackedControlNet.of_dit(causal, 3))
    sizes, lengths = ((4, 6), (4, 4), (4, 6)), (5, 0, 3)
    sequences, controls = [], []
    for k, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        noisy = (some(16, *size, seed=k), some(16, *size, seed=k + 10))
        sees = torch.ones(3, length, dtype=torch.bool)
        sees[1, length // 2 :] = False
        clean = (some(16, 4, 4, seed=k + 20),)
        times = torch.tensor([0.3, 0.8])
        sequences.append(TrainingSequence(clean, noisy, (0, 1, 2), times, some(length, 20, seed=k + 30), sees))
        controls.append([some(16, *size, seed=k + 40), some(16, *size, seed=k + 50)])
    with torch.no_grad():
        together = causal.forward_train(sequences, net.residuals_train(sequences, controls, 4))
        for number, (sequence, own) in enumerate(zip(sequences, controls, strict=True)):
            alone = causal.forward_train([sequence], net.residuals_train([sequence], [own], 4))[0]
            for a, b in zip(together[number], alone, strict=True):
                torch.testing.assert_close(a, b, **CLOSE)


def test_what_does_not_fit_is_a_sentence(causal, tmp_path):
    net = PackedControlNet.of_dit(causal, 2)
    with pytest.raises(DitError, match="6x4; expected that of the image to be drawn, 4x4"):
        net.prepare(some(1, 16, 4, 6), [(some(1, 2, 20), None)], 4, (4, 4))
    with pytest.raises(DitError, match="made for another diffusion transformer: it has channels 48, the model 72"):
        net.check_fits(PackedCosmos(**{**TINY, "num_attention_heads": 3}, num_layers=4))
    with pytest.raises(DitError, match="img_context_dim_in 1152"):
        PackedControlNet(img_context_dim_in=1152)
    causal.save_pretrained(tmp_path)
    with pytest.raises(DitError, match="names the model PackedCosmos; expected a ControlNet"):
        PackedControlNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name,value",
    [("block_every_n", -1), ("block_every_n", 1.5), ("block_every_n", "2"), ("patch_size", [1, 0, 0]),
     ("mlp_ratio", "4"), ("rope_scale", [1]), ("n_controlnet_blocks", 10**7), ("n_controlnet_blocks", 0),
     ("extra_pos_embed_type", "learnable"), ("model_channels", None)],
)  # fmt: skip
def test_a_config_of_a_file_is_checked_before_anything_is_built(tmp_path, name, value):
    dit = PackedCosmos(num_attention_heads=2, attention_head_dim=24, num_layers=4, text_embed_dim=20, adaln_lora_dim=8)
    PackedControlNet.of_dit(dit, 2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), name: value}), "utf-8")
    with pytest.raises(DuoGenError, match=rf"(config has|says) {name} "):
        PackedControlNet.from_pretrained(tmp_path)


def test_a_wan_is_refused_by_name():
    wan = tiny_of("PackedWan")
    with pytest.raises(DitError, match="is a PackedWan, and ControlNets here are those of Cosmos"):
        PackedControlNet.of_dit(wan, 1)
    cosmos = tiny_of("PackedCosmos")
    with pytest.raises(DitError, match="is a PackedWan"):
        PackedControlNet.of_dit(cosmos, 1).check_fits(wan)
    PackedControlNet.of_dit(cosmos, 1).check_fits(cosmos)
