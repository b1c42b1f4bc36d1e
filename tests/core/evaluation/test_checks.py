"""Checks without a judge: structure, SSIM against its formula, CLIP and SigLIP against transformers."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import checks


def noise(seed, height=24, width=32):
    return Picture(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def blank(value=128):
    return Picture(np.full((24, 32, 3), value, np.uint8))


def nearly(picture, by=1):
    """What a decoder makes of the same image."""
    wave = (np.arange(picture.pixels.size) // 3 % 3 - 1).reshape(picture.pixels.shape)
    return Picture(np.clip(picture.pixels.astype(int) + by * wave, 0, 255).astype(np.uint8))


DRAW = (Text("Draw."),)


def answer(*parts, given=DRAW, **generation):
    document = Document().begin_turn("user", given).begin_turn("assistant", parts)
    return document.replace_generation(**generation)


def test_structure():
    document = answer(Text("One."), Text(" And."), noise(1), Text("  \n"), noise(2), Text("End."), stop_reason="end")
    found = checks.check(document, 1, 2)
    assert found.values == {"images asked for": 1, "ended by itself": 1, "images with content": 1, "images new": 1}
    assert found.detail == {
        "order": "TIIT", "drawn": 2, "asked": 2, "stop": "end", "one_colour": [], "repeats": {}
    }  # fmt: skip
    assert checks.check(document, 1, 3).values["images asked for"] == 0
    assert checks.check(document, 1).values["images asked for"] is None


@pytest.mark.parametrize("stop, ended", [("max_images", 0), ("max_tokens", 0), ("interrupted", 0), (None, None)])
def test_an_early_end(stop, ended):
    assert (
        checks.check(answer(noise(1), **({"stop_reason": stop} if stop else {})), 1).values["ended by itself"] == ended
    )


def test_nothing_was_answered():
    found = checks.check(answer(), 1, 1)
    assert found.values == {
        "images asked for": 0,
        "ended by itself": None,
        "images with content": None,
        "images new": None,
    }
    assert found.detail["order"] == ""
    full = checks.check(answer(), 1, 1, likeness=True)
    assert full.values["likeness of steps"] is full.values["likeness to the given image"] is None


def test_blank_images():
    found = checks.check(answer(blank(), nearly(blank()), noise(1), blank(0)), 1)
    assert found.detail["one_colour"] == [1, 2, 4] and found.values["images with content"] == 0.25
    stripe = blank().pixels.copy()
    stripe[:, 10] = 255
    assert not checks.is_one_colour(Picture(stripe))


def test_an_earlier_image_again():
    """Of the answer or of the user; decoded again, it is still the same; of another size, it is another."""
    given = (noise(8), Text("Now the door."), noise(9))
    document = answer(
        noise(1), nearly(noise(9)), noise(2), noise(1), noise(8), noise(1), nearly(noise(2), 9), given=given
    )
    found = checks.check(document, 1)
    assert found.detail["repeats"] == {2: 0, 4: 1, 5: -1, 6: 4}
    assert found.values["images new"] == pytest.approx(3 / 7)
    assert not checks.is_same(noise(1), noise(1, 32, 24))


def test_later_turns_belong_to_the_answer():
    document = answer(Text("a"), noise(1)).begin_turn("user", [Text("more")]).begin_turn("assistant", [noise(2)])
    assert checks.check(document, 1).detail["order"] == "TII"
    assert checks.check(document, 3).detail["order"] == "I"


def reference(one, two):
    """The formula of Wang et al. 2004 with Gaussian windows by scipy; [H, W], where the window fits."""
    from scipy.ndimage import gaussian_filter

    def mean(values):
        return gaussian_filter(values, (1.5, 1.5, 0), truncate=3.5)

    one, two = one.pixels / 255, two.pixels / 255
    a, b = mean(one), mean(two)
    spread_a, spread_b, both = mean(one * one) - a * a, mean(two * two) - b * b, mean(one * two) - a * b
    found = (2 * a * b + 1e-4) * (2 * both + 9e-4) / ((a * a + b * b + 1e-4) * (spread_a + spread_b + 9e-4))
    return found.mean(-1)


def test_ssim_is_the_papers():
    one = noise(1, 40, 30)
    for other in (nearly(one, 20), noise(2, 40, 30), Picture(255 - one.pixels)):
        whole = reference(one, other)
        assert checks.ssim(one, other) == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-5)
        stays = np.zeros((40, 30), bool)
        stays[8:20, 6:15] = True
        assert checks.ssim(one, other, stays) == pytest.approx(whole[8:20, 6:15].mean(), abs=1e-5)
    assert checks.ssim(one, one) == pytest.approx(1)


def test_ssim_of_what_should_stay():
    """An edit of one half leaves the likeness of the other at 1."""
    one = noise(3, 48, 48)
    edited = one.pixels.copy()
    edited[:, 24:] = 0
    stays = np.zeros((48, 48), bool)
    stays[:, :16] = True
    assert checks.ssim(one, Picture(edited), stays) == pytest.approx(1)
    assert checks.ssim(one, Picture(edited)) < 0.6
    for bad in (stays[:10], ~np.ones((48, 48), bool)):
        with pytest.raises(DuoGenError, match="expected some of"):
            checks.ssim(one, one, bad)


def test_ssim_of_any_sizes():
    for height, width in ((1, 1), (2, 9), (3, 300), (11, 12), (12, 11)):
        one = noise(4, height, width)
        assert checks.ssim(one, one) == pytest.approx(1, abs=1e-5)
        assert -1 <= checks.ssim(one, noise(5, 30, 20)) <= 1


def test_likeness_in_a_check():
    given, first, second = noise(1), nearly(noise(1), 8), noise(2)
    found = checks.check(
        answer(Text("a"), first, second, first, given=(noise(5), given, Text("Edit."))), 1, likeness=True
    )
    assert found.values["likeness to the given image"] == checks.ssim(given, first) > 0.9
    assert found.values["likeness of steps"] == pytest.approx(
        (checks.ssim(first, second) + checks.ssim(second, first)) / 2
    )
    assert set(found.values) <= set(checks.MEASURES)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DuoGenError, match=r"kornia is not installed; run pip install -e '.\[evaluate\]'"):
        checks.ssim(noise(1), noise(1))
    assert checks.check(answer(noise(1)), 1).values["images new"] == 1  # needs nothing


def test_means_leave_out_what_does_not_apply():
    found = [checks.check(answer(noise(1), blank(), stop_reason="end"), 1), checks.check(answer(Text("no")), 1, 0)]
    assert checks.means(found) == {
        "images asked for": 1, "ended by itself": 1, "images with content": 0.5, "images new": 1
    }  # fmt: skip
    assert checks.means([]) == {}


def test_which_text_leads_to_an_image():
    said = [noise(1), Text(" a "), Text("b"), noise(2), noise(3), Text("\n"), noise(4), Text("end")]
    assert [text for text, _ in checks.captions([Text("first"), noise(0)], said)] == ["first", "a b", "a b", "a b"]
    assert checks.captions([], [noise(1)])[0][0] == ""


WORDS = ("a", "boat", "folded", "of", "paper", "red", "the")


def save_clip(folder, kind):
    """A tiny random model of the kind, with its tokenizer, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", "<s>", "</s>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # CLIP takes its text from the place of the end: the template puts it there.
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=12,
    )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(vocabulary), "max_position_embeddings": 12, "projection_dim": 16,
            "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {**sizes, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        images = SiglipImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    images.save_pretrained(folder)
    # Their processors ask for tokenizers by class; a fast one of any kind does.
    name = "CLIP" if kind == "clip" else "Siglip"
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "processor_class": f"{name}Processor"}))
    return model.eval(), fast, images


@pytest.fixture(params=["clip", "siglip"])
def model(request, tmp_path):
    return request.param, tmp_path, *save_clip(tmp_path, request.param)


def test_cosines_are_those_of_transformers(model):
    import torch

    kind, folder, reference, tokenizer, images = model
    pairs = [("a red boat", noise(1, 40, 30)), ("the paper folded " * 9, noise(2, 16, 16)), ("", noise(3))]
    found = checks.Clip(folder).scores(pairs)
    for (text, picture), cosine in zip(pairs, found):
        inputs = tokenizer(
            [text], return_tensors="pt", truncation=True, max_length=12,
            padding="max_length" if kind == "siglip" else True,
        )  # fmt: skip
        pixels = images(images=[picture.pixels], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = reference(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"] if kind == "clip"
                            else None, pixel_values=pixels)  # fmt: skip
        logit = out.logits_per_image[0, 0]
        if kind == "siglip":
            logit = logit - reference.logit_bias.detach()
        assert cosine == pytest.approx(float(logit / reference.logit_scale.detach().exp()), abs=1e-5)
    assert len(set(found)) == 3


def test_text_and_image_in_a_check(model):
    clip = checks.Clip(model[1])
    one, two = noise(1), noise(2)
    found = checks.check(answer(Text("a red boat"), one, Text("the paper"), two), 1, clip=clip)
    assert found.values["text and image"] == pytest.approx(
        sum(clip.scores([("a red boat", one), ("the paper", two)])) / 2
    )
    assert checks.check(answer(Text("no")), 1, clip=clip).values["text and image"] is None


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(DuoGenError, match="is no folder; expected one with config.json"):
        checks.Clip(tmp_path / "openai/clip-vit-base-patch32")
    with pytest.raises(DuoGenError, match="config.json does not exist"):
        checks.Clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DuoGenError, match="is of the kind 'bert'; expected clip or siglip"):
        checks.Clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DuoGenError, match="has no .safetensors"):
        checks.Clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(DuoGenError, match="cannot be loaded"):
        checks.Clip(tmp_path)


def test_weights_that_are_missing_are_not_made_up(model):
    import safetensors.torch

    weights = safetensors.torch.load_file(model[1] / "model.safetensors")
    del weights["logit_scale"]
    safetensors.torch.save_file(weights, model[1] / "model.safetensors", {"format": "pt"})
    with pytest.raises(DuoGenError, match="lacks the weights logit_scale"):
        checks.Clip(model[1])
