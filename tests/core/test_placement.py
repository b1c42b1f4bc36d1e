"""Where the parts of a model go: by their size and the free memory of one card or two; what an answer then needs."""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace
from functools import partial

import pytest
import torch

from duogen_core import device_options, devices, placement
from duogen_core.checkpoint import PictureSize, save_checkpoint
from duogen_core.cli import main
from duogen_core.device_options import Placement
from duogen_core.dit.wan import PackedWan
from duogen_core.document.reading import load_document
from duogen_core.errors import DuoGenError
from duogen_core.identify import identify
from duogen_core.memory import Need, terms
from duogen_core.placement import load_placed, place
from duogen_core.vae import PictureVae, new_vae, wan22_vae
from tests.core.other_device import limited, memory
from tests.core.test_devices import answered, assert_same_answer
from tests.core.tiny import random_components, request

NEED = Need(32, 32, references=2, tokens=64)


@pytest.fixture
def tight(monkeypatch):
    """Layers of a few hundred bytes are offloaded too, as everything here is tiny."""
    monkeypatch.setattr(placement, "SPARE", 1.0)
    monkeypatch.setattr(devices, "LEAST", 512)


def places(parts) -> dict[str, set[str]]:
    return {name: {str(weight.device) for weight in module.parameters()} for name, module in parts.modules.items()}


def needs(parts, *names: str) -> int:
    counted = placement._estimate(parts, NEED)
    return sum(term.bytes for term in counted if not names or term.part in {placement.KINDS[name] for name in names})


@pytest.mark.parametrize("channels", [16, 48])
def test_the_estimate_of_a_loaded_wan_is_that_of_its_files(tmp_path, channels):
    """Wan 2.2's tokens and its VAE's patches are larger in pixels, and a Wan's MLP has a width of its own."""
    parts = random_components()
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "text_dim": 32, "ffn_dim": 200}
    parts.dit = PackedWan(in_channels=channels, out_channels=channels, **sizes)
    parts.vae = PictureVae(wan22_vae(8, 16) if channels == 48 else new_vae(4))
    parts.config = replace(parts.config, picture=PictureSize(32, 32, 64, step=parts.vae.size_step))
    folder = save_checkpoint(parts, tmp_path / "wan")

    def work(counted):
        return {(term.part, term.what): term.arithmetic for term in counted if not term.weights}

    assert work(placement._estimate(parts, NEED)) == work(terms(identify(folder), NEED)) != {}


def test_what_fits_is_whole_on_one_card():
    said: list[str] = []
    parts = place(random_components(), Placement("card:0"), NEED, said.append)
    assert set.union(*places(parts).values()) == {"card:0"} and parts.turns is None and not said
    assert_same_answer(answered(parts), answered(random_components()))


def test_what_fits_two_cards_is_spread_over_them(tight):
    parts, said = random_components(), []
    room = int(needs(parts) * 0.8)
    with limited(room, 0), limited(room, 1):
        place(parts, Placement("card"), NEED, said.append)
        where = places(parts)
        assert where["mllm"] == where["connector"] and where["dit"] == where["vae"] and where["mllm"] != where["dit"]
        assert "language model is on card" in said[0] and len(said) == 1
        assert_same_answer(answered(parts), answered(random_components()))


def test_a_language_model_larger_than_a_card_is_on_two_of_them(tight):
    large = partial(random_components, layers=30)
    expected, parts, said = answered(large()), large(), []
    weights, work = devices.size_of(parts.mllm.model), needs(parts, "mllm") - devices.size_of(parts.mllm.model)
    room = work + weights * 11 // 20
    with limited(room + needs(parts, "dit", "vae", "connector"), 0), limited(room, 1):
        place(parts, Placement("card"), NEED, said.append)
        where = places(parts)
        assert where["mllm"] == {"card:0", "card:1"} and where["dit"] == where["vae"] == where["connector"] == {
            "card:0"
        }
        assert said == ["The language model is on card:0 and card:1, the DiT on card:0."]
        assert_same_answer(answered(parts), expected)
        del parts.mllm.continue_  # and it writes, with the states of both cards
        written = parts.mllm.continue_(request(), connector=parts.connector, max_new_tokens=6)
        plain = large()
        assert written == plain.mllm.continue_(request(), connector=plain.connector, max_new_tokens=6)
        states = [each.mllm.encode(request(), each.connector).states for each in (parts, plain)]
        torch.testing.assert_close(states[0].cpu(), states[1], rtol=0, atol=1e-5)
        assert "with nothing kept" in parts.go_leaner() and parts.turns is None


def test_what_fits_part_by_part_takes_turns_within_the_memory_of_the_card(tight):
    parts, said = random_components(), []
    total = needs(parts)
    room = placement._largest_turn(placement._estimate(parts, NEED))
    assert room < total
    with limited(room) as card:
        place(parts, Placement("card:0"), NEED, said.append)
        assert parts.turns is not None and "take turns on card:0" in said[0]
        assert_same_answer(answered(parts), answered(random_components()))
        assert card.highest <= card.limit


def test_what_the_others_have_cached_counts_in_a_turn(tight):
    many = Need(
        64, 64, references=200, tokens=64
    )  # whose cached keys and values stay on the card while the MLLM writes
    counted = placement._estimate(random_components(), many)
    parts = {kind: sum(term.bytes for term in counted if term.part == kind) for kind in placement.KINDS.values()}
    room = max(parts.values()) + parts["connector"]
    assert placement._largest_turn(counted) > room
    with limited(room):
        assert place(random_components(), Placement("card:0"), many).offload == "layers"
    with limited(placement._largest_turn(counted)):
        assert place(random_components(), Placement("card:0"), many).offload == "model"


def test_what_does_not_fit_comes_layer_by_layer(tight):
    parts, said = random_components(), []
    sizes = {name: devices.size_of(module) for name, module in parts.modules.items()}
    room = sizes["vae"] + sizes["connector"] + sizes["mllm"] * 2 // 3
    with limited(room) as card:
        place(parts, Placement("card:0"), Need(32, 32, 1, 8), said.append)
        assert "layer by layer" in said[0] and parts.turns is None
        assert places(parts)["mllm"] == places(parts)["dit"] == {"cpu", "card:0"}
        assert_same_answer(answered(parts), answered(random_components()))
        assert card.highest <= card.limit


@pytest.mark.parametrize("offload", ["off", "model", "layers"])
def test_what_the_user_asks_for_is_done(offload, monkeypatch):
    monkeypatch.setattr(devices, "LEAST", 512)
    parts = place(random_components(), Placement("card:1", "fp32", offload), NEED)
    assert (parts.turns is not None) == (offload == "model")
    gc.collect()
    before = memory[0].used
    assert_same_answer(answered(parts), answered(random_components()))
    assert memory[0].used == before and memory[1].used > 0


def test_the_cpu_keeps_what_it_has_and_offloads_nothing():
    parts = random_components()
    assert place(parts, Placement("cpu")) is parts and parts.dit.dtype == torch.float32
    assert place(parts, Placement("cpu", "bf16")).dit.dtype == torch.bfloat16
    for how in ("model", "layers"):
        with pytest.raises(DuoGenError, match="for a graphics card, but the device is the CPU"):
            place(parts, Placement("cpu", offload=how))


def test_a_checkpoint_is_read_in_the_dtype_it_runs_in(tmp_path):
    folder = save_checkpoint(random_components(), tmp_path / "model")
    parts = load_placed(folder, Placement("card:0", "bf16"))
    assert parts.dit.dtype == parts.mllm.model.dtype == torch.bfloat16
    assert set.union(*places(parts).values()) == {"card:0"}
    assert load_placed(folder, Placement("card:0")).dit.dtype == torch.float32  # small, so as it is
    with pytest.raises(DuoGenError, match="no device cuda:9"):
        load_placed(tmp_path / "nothing", Placement("cuda:9"))


def test_options_give_a_placement():
    parser = argparse.ArgumentParser()
    device_options.add_device_options(parser)
    assert device_options.placement_of(parser.parse_args([])) == Placement()
    given = parser.parse_args(["--device", "cuda:1", "--dtype", "bf16", "--offload", "layers"])
    assert device_options.placement_of(given) == Placement("cuda:1", "bf16", "layers")


def test_generate_runs_on_a_card_and_refuses_what_is_not_there(tmp_path, capsys):
    folder = save_checkpoint(random_components(), tmp_path / "model")
    asked = ["generate", "Draw.", "--model", str(folder), "--max-tokens", "12", "--max-images", "1", "--quiet"]
    with limited(2**40, 1) as card:
        begun = card.used
        for name, options in (("cpu", []), ("card", ["--device", "card:1", "--offload", "model"])):
            assert main([*asked, "--out", str(tmp_path / name), *options]) == 0
        assert card.highest > begun
    documents = [load_document(tmp_path / name) for name in ("cpu", "card")]
    assert_same_answer(*documents)
    capsys.readouterr()
    for options, words in (
        (["--device", "cuda"], "There is no device cuda"),
        (["--device", "warp"], "'warp' is not known"),
        (["--device", "cpu", "--offload", "layers"], "leave it out"),
    ):
        assert main([*asked, "--out", str(tmp_path / "none"), *options]) == 2
        out, err = capsys.readouterr()
        assert not out and words in err and err.count("\n") == 1 and not (tmp_path / "none").exists()


def test_an_own_language_model_runs_on_a_card_and_layer_by_layer(tight):
    expected = random_components().mllm.continue_(request(), max_new_tokens=6)
    for offload, room in (("auto", 2**40), ("layers", 2**40), ("auto", 400_000)):
        with limited(room) as card:
            begun = card.used
            mllm = placement.place_mllm(random_components().mllm, Placement("card:0", offload=offload))
            assert mllm.continue_(request(), max_new_tokens=6) == expected
            assert card.highest > begun
