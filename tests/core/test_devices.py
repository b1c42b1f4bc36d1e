"""Devices, dtypes and offloading: every part runs on a card with the user's tensors on the CPU, and draws the same."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn

from duogen_core import devices
from duogen_core.checkpoint import Components
from duogen_core.device_options import Placement
from duogen_core.devices import Turns, choose_device, choose_dtype, offload_layers
from duogen_core.errors import DuoGenError
from duogen_core.mllm.prompt_states import prompt_states
from duogen_core.pipeline import generate
from duogen_core.settings import Settings
from duogen_core.text_to_picture import prompt_latent
from tests.core.other_device import memory
from tests.core.tiny import random_components, request, scripted

SCRIPT = (("A square. ", "picture"), ("Now a star. ", "picture"), ("Done.", "end"))
CARD = torch.device("card", 0)


def on_card(attention: str = "frame_causal") -> Components:
    return random_components(attention=attention).to("card")


def close(on_card: torch.Tensor, on_cpu: torch.Tensor) -> None:
    assert on_card.device == CARD
    torch.testing.assert_close(on_card.cpu(), on_cpu, rtol=0, atol=1e-5)


def answered(components: Components, settings: Settings | None = None, script=SCRIPT):
    scripted(components, *script)
    return generate(components, request(), settings)


def assert_same_answer(one, other) -> None:
    assert one.text == other.text
    for ours, theirs in zip(one.pictures, other.pictures, strict=True):
        assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 1  # rounding at a half


# ---------------------------------------------------------------- every forward


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_an_answer_with_images_is_the_same_on_a_card(attention):
    expected = answered(random_components(attention=attention))
    assert_same_answer(answered(on_card(attention)), expected)


def test_an_image_of_the_request_and_writing_itself_run_on_a_card():
    parts = random_components()
    document = answered(parts).begin_turn("user", request().turns[-1].parts)
    del parts.mllm.continue_
    written = [each.mllm.continue_(document, max_new_tokens=8, connector=each.connector) for each in (parts, on_card())]
    assert written[0] == written[1]
    states = [each.mllm.encode(document, each.connector).states for each in (parts, on_card())]
    close(states[1], states[0])


def test_several_documents_are_written_as_one_batch_on_a_card():
    documents, found = [request(), request("Draw a small star and a very large heart."), request("Why?")], []
    for parts in (random_components(), on_card()):
        how = {"connector": parts.connector, "max_new_tokens": 7, "temperature": 0.8, "seeds": [1, 2, 3]}
        written = parts.mllm.continue_many(documents, **how)
        found.append((written, [parts.mllm.encode(each, parts.connector).states for each in documents]))
    assert found[0][0] == found[1][0]
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        close(ours, theirs)


def test_refreshed_earlier_images_run_on_a_card():
    settings = Settings(steps=4, refresh=2)
    parts = [random_components(attention="full"), on_card("full")]
    assert_same_answer(*(answered(each, settings) for each in parts))


def test_prompts_alone_run_on_a_card():
    for pad_to in (None, 16):
        states = [
            prompt_states(each.mllm, each.connector, "A star", pad_to) for each in (random_components(), on_card())
        ]
        close(states[1], states[0])
    settings = Settings(seed=3)
    latents = [
        prompt_latent(each, "A star", settings, (32, 32), negative_prompt="ugly", pad_to=16)
        for each in (random_components(attention="full"), on_card("full"))
    ]
    close(latents[1], latents[0])


def test_the_vae_takes_pixels_and_latents_of_the_cpu():
    ours, theirs = on_card().vae, random_components().vae
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    latent = theirs.encode(pixels)
    close(ours.encode(pixels), latent)
    close(ours.decode(latent), theirs.decode(latent))
    assert np.abs(ours.decode_pixels(latent).astype(int) - theirs.decode_pixels(latent)).max() <= 1


def test_parts_on_three_devices():
    expected = answered(random_components())
    parts = random_components()
    parts.mllm.model.to("card:1")
    parts.dit.to("card:0")
    assert_same_answer(answered(parts), expected)


# ---------------------------------------------------------------- which device, which dtype


def test_a_device_that_is_not_there_is_one_sentence_that_names_what_is():
    for name, words in (
        ("cuda", "There is no device cuda here.*cpu"), ("cuda:1", "no device cuda:1"), ("gpu", "'gpu' is not known"),
        ("card:7", "only 2 of its kind"), ("meta", "no device meta"), ("", "is not known"),
    ):  # fmt: skip
        with pytest.raises(DuoGenError, match=words):
            choose_device(name)
    assert choose_device() == torch.device("cpu") and choose_device(" CPU ") == torch.device("cpu")
    assert choose_device("card") == CARD


def test_auto_takes_the_first_card(monkeypatch):
    monkeypatch.setattr(devices, "count_devices", lambda kind: {"cuda": 2, "cpu": 1}.get(kind, 0))
    assert choose_device() == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DuoGenError, match="only 2 of its kind.*cuda:0 and cuda:1 and cpu"):
        choose_device("cuda:2")


def test_dtypes_follow_the_device_and_the_weights(monkeypatch):
    half, full, brain = torch.float16, torch.float32, torch.bfloat16
    cpu, cuda, large = torch.device("cpu"), torch.device("cuda", 0), 2_000_000_000
    for stored in (half, full, brain):
        assert choose_dtype("auto", cpu, stored, large) == stored
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_dtype("auto", cuda, full, 1000) == full  # small
    assert choose_dtype("auto", cuda, full, large) == choose_dtype("auto", cuda, half, large) == brain
    assert choose_dtype("fp16", cuda, full, 1000) == half
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_dtype("auto", cuda, brain, large) == full
    with pytest.raises(DuoGenError, match="cuda:0 cannot compute in bf16; it can in fp16 and fp32"):
        choose_dtype("bf16", cuda, full, 1000)
    for wrong in ({"dtype": "int8"}, {"offload": "yes"}):
        with pytest.raises(DuoGenError, match="expected auto"):
            Placement(**wrong)


@pytest.mark.parametrize(("dtype", "vae"), [("bf16", torch.bfloat16), ("fp16", torch.float32)])
def test_half_precision_leaves_connector_and_tables_alone(dtype, vae):
    parts = random_components().to("card", dtype)
    assert {weight.dtype for weight in parts.dit.parameters()} == {devices.DTYPES[dtype]}
    assert {weight.dtype for weight in parts.mllm.model.parameters()} == {devices.DTYPES[dtype]}
    assert {buffer.dtype for buffer in parts.mllm.model.buffers()} <= {torch.float32, torch.int64}
    assert parts.vae.model.dtype == vae
    assert parts.connector.proj.weight.dtype == torch.float32
    assert len(answered(parts).pictures) == 2


def test_an_image_that_is_no_number_is_refused_and_not_black():
    vae = random_components().vae
    for wrong in (float("nan"), float("inf")):
        latent = torch.zeros(1, 16, 4, 4)
        latent[0, 3, 1, 2] = wrong
        with pytest.raises(DuoGenError, match="not made of numbers any more.*bf16 or fp32"):
            vae.decode_pixels(latent)


def test_quantised_weights_stay_quantised():
    from duogen_core.weights.quantised import FORMATS, ScaledLinear, quantise

    layer = nn.Linear(16, 16)
    numbers, scale = quantise(layer.weight.detach(), FORMATS["fp8"])
    layer.__class__ = ScaledLinear
    layer.load_state_dict({"weight": numbers, "weight_scale": scale, "bias": layer.bias}, strict=False, assign=True)
    model, x = nn.Sequential(layer, nn.Linear(16, 4)), torch.randn(2, 16)
    expected = model(x)
    devices.move(model, CARD, torch.float32)
    close(model(x.to(CARD)), expected)
    devices.move(model, dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight_scale.dtype == torch.float32
    assert layer.bias.dtype == model[1].weight.dtype == torch.bfloat16


# ---------------------------------------------------------------- offloading


def test_parts_take_turns_on_the_card_and_the_prefix_cache_outlives_them():
    expected = answered(random_components())
    parts = random_components()
    whole = sum(map(devices.size_of, parts.modules.values()))
    before = memory[0].used
    parts.turns = Turns({name: parts.modules[name] for name in ("mllm", "dit", "vae")}, CARD)
    parts.mllm.device = CARD
    assert memory[0].used - before < whole / 10
    drew = []
    parts.dit.patch_embed.proj.register_forward_hook(lambda _module, _args, out: drew.append(out.device))
    assert_same_answer(answered(parts), expected)
    assert set(drew) == {CARD}
    parts.use("mllm")
    there = parts.modules["mllm"].get_input_embeddings().weight
    assert there.device == CARD and parts.dit.patch_embed.proj.weight.device.type == "cpu"
    parts.use("dit")
    assert parts.modules["mllm"].get_input_embeddings().weight.device.type == "cpu"
    # What was read before the DiT had its turn is not read again.
    parts.use("mllm")
    document = request()
    del parts.mllm.continue_
    parts.mllm.continue_(document, max_new_tokens=1)
    cache = parts.mllm._cache
    parts.use("dit")
    parts.use("mllm")
    parts.mllm.continue_(document, max_new_tokens=1)
    assert parts.mllm._cache is cache


def test_layers_bring_their_weights_one_by_one():
    expected = answered(random_components())
    parts = random_components()
    moved = {name: offload_layers(parts.modules[name], CARD, least=512) for name in ("mllm", "dit")}
    for name in ("connector", "vae"):
        parts.modules[name].to(CARD)
    parts.mllm.device = CARD
    for name in ("mllm", "dit"):
        assert moved[name] > 0.7 * devices.size_of(parts.modules[name])
    before = memory[0].used
    assert_same_answer(answered(parts), expected)
    parts.mllm.clear_cache()
    gc.collect()
    assert memory[0].used - before < min(moved.values()) / 4, "the layers' weights stayed on the card"
    staying = random_components().dit
    size = devices.size_of(staying)
    assert offload_layers(staying, CARD, stay=size // 2, least=512) < 0.7 * size


def test_a_layer_whose_input_is_wrong_still_leaves_the_card():
    layer = nn.Linear(64, 64)
    offload_layers(layer, CARD, least=1)
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 3, device=CARD))
    assert layer.weight.device.type == "cpu"
