"""The detector of GenEval's objects: tiny random models against transformers, colours against CSS's names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import detector as detection
from duogen_core.evaluation.benchmarks import Item, benchmark
from duogen_core.evaluation.benchmarks.geneval import COLOURS

BENCH = benchmark("geneval")
DOCUMENT = Document().begin_turn("user", [Text("a photo")])
LABELS = {0: "dog", 1: "Mouse", 2: "dining table", 3: "cup", 4: "remote", 5: "bus"}


def picture(number=0, size=(48, 36)):
    return Picture(np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8))


def backbone():
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def save_detr(folder):
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    torch.manual_seed(1)
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=backbone(), backbone=None, use_pretrained_backbone=False, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=9, id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    # Other things at other places, and sure of some of them.
    layers = (
        (model.model.query_position_embeddings, 50),
        (model.model.decoder, 6),
        (model.class_labels_classifier, 60),
        (model.bbox_predictor, 6),
    )
    for layer, factor in layers:
        for weights in layer.parameters():
            if weights.ndim == 2:
                weights.data *= factor
    processor = DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    with torch.inference_mode():
        logits = model.eval()(**processor(images=[picture().pixels], return_tensors="pt")).logits
        model.class_labels_classifier.bias -= logits[0].mean(0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_mask2former(folder):
    import torch
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=9,
        id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    # Masks with holes, of some places alone.
    for name, weights in model.named_parameters():
        if "mask_projection" in name or "mask_embedder" in name:
            weights.data *= 0 if name.endswith("bias") else 5
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    return save_detr(tmp_path_factory.mktemp("detr"))


def asked(*classes, coloured=False, shown=None):
    include = [{"class": name, "count": 1, **({"color": "red"} if coloured else {})} for name in classes]
    record = {"tag": "two_object", "include": include, "prompt": "p"}
    item = Item("00000-0", DOCUMENT, record, "two_object", 1)
    return item, BENCH.asks(item, DOCUMENT.begin_turn("assistant", [shown or picture()]))[0]


def test_detr_finds_what_the_pipeline_of_transformers_finds(detr):
    from PIL import Image
    from transformers import AutoImageProcessor, DetrForObjectDetection, pipeline

    theirs = pipeline(
        "object-detection", model=DetrForObjectDetection.from_pretrained(detr),
        image_processor=AutoImageProcessor.from_pretrained(detr),
    )(Image.fromarray(picture().pixels), threshold=0.1)  # fmt: skip
    ours = detection.Detector(detr, sure=(0.1, 0.2)).find(picture())
    assert len(theirs) > 3 and len({one["label"] for one in theirs}) > 1
    assert sorted((one.label, round(one.score, 5)) for one in ours) == sorted(
        (one["label"], round(one["score"], 5)) for one in theirs
    )
    for one, other in zip(sorted(ours, key=lambda one: one.score), sorted(theirs, key=lambda one: one["score"])):
        assert np.allclose(one.box, list(other["box"].values()), atol=1)  # theirs are whole pixels


def test_a_reply_is_what_geneval_asks(detr):
    detector = detection.Detector(detr, sure=(0.0, 0.9))
    item, ask = asked("computer mouse", "dining table", "tv remote", coloured=True)
    reply = detector.reply(ask)
    assert reply["sure"] == [0.0, 0.9] and reply["objects"]
    names = {"computer mouse": "Mouse", "dining table": "dining table", "tv remote": "remote"}
    found = [one for one in detector.find(picture()) if one.label in names.values()]
    assert len(found) == len(reply["objects"])
    assert [one["score"] for one in reply["objects"]] == sorted(
        (one["score"] for one in reply["objects"]), reverse=True
    )
    width, height = picture().size
    for one in reply["objects"]:
        same = next(other for other in found if round(other.score, 5) == one["score"])
        assert same.label == names[one["class"]] and one["colour"] in detection.NAMED
        pixels = np.array(same.box) / (width, height, width, height) * 1000
        assert np.allclose(one["box"], np.clip(pixels, 0, 1000), atol=0.01)
    score = BENCH.score(item, DOCUMENT.begin_turn("assistant", [picture()]), {"objects": reply})
    assert score.values["correct"] in (0, 1) and score.detail["objects"] == reply["objects"]
    assert "colour" not in str(detector.reply(asked("dog")[1]))
    assert detection.Detector(detr, sure=(1.0, 1.0)).reply(ask)["objects"] == []


def test_thresholds_of_the_detector_are_used(detr):
    record = {"tag": "counting", "include": [{"class": "dog", "count": 1}], "prompt": "p"}
    item = Item("00000-0", DOCUMENT, record, "counting", 1)
    document = DOCUMENT.begin_turn("assistant", [picture()])
    one = {"class": "dog", "box": [0, 0, 9, 9], "score": 0.5}
    for sure, correct in (((0.3, 0.9), 0), ((0.3, 0.4), 1), ((0.6, 0.4), 1)):
        said = {"objects": {"objects": [one], "sure": list(sure)}}
        assert BENCH.score(item, document, said).values["correct"] == correct


def test_a_class_that_the_detector_does_not_know(detr):
    with pytest.raises(
        DuoGenError, match="does not know the class 'giraffe'; expected a detector of COCO's 80 classes"
    ):
        detection.Detector(detr).reply(asked("dog", "giraffe")[1])


def test_masks_of_mask2former(tmp_path):
    import torch
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    folder = save_mask2former(tmp_path)
    found = detection.Detector(folder, sure=(0.01, 0.9)).find(picture())
    processor, model = (
        AutoImageProcessor.from_pretrained(folder),
        Mask2FormerForUniversalSegmentation.from_pretrained(folder),
    )
    inputs = processor(images=[picture().pixels], return_tensors="pt")
    with torch.inference_mode():
        theirs = processor.post_process_instance_segmentation(
            model.eval()(**inputs), threshold=0.01, target_sizes=[(36, 48)], return_coco_annotation=False
        )[0]
    assert len(found) > 1
    assert {round(one.score, 4) for one in found} <= {round(one["score"], 4) for one in theirs["segments_info"]}
    for one in found:
        rows, columns = np.nonzero(one.mask)
        assert one.mask.shape == (36, 48)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.array_equal(detection.pixels_of(picture(), one), picture().pixels[one.mask])


def test_owlv2_is_asked_by_words(tmp_path):
    import torch
    from transformers import AutoProcessor, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    # A tokenizer of CLIP's kind, which knows letters alone.
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = {"vocab_size": len(tokens), "max_position_embeddings": 20}, {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    Owlv2ForObjectDetection(
        Owlv2Config(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=16)
    ).save_pretrained(tmp_path)
    Owlv2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    detector = detection.Detector(tmp_path, sure=(0.0, 0.9))
    classes = ["boat", "paper"]
    ask = asked(*classes)[1]
    processor, model = AutoProcessor.from_pretrained(tmp_path), Owlv2ForObjectDetection.from_pretrained(tmp_path)
    words = [["a photo of a boat", "a photo of a paper"]]
    inputs = processor(text=words, images=[picture().pixels], return_tensors="pt")
    with torch.inference_mode():
        theirs = processor.post_process_grounded_object_detection(
            model.eval()(**inputs), threshold=0.0, target_sizes=[(36, 48)], text_labels=[classes]
        )[0]
    found = detector.find(picture(), classes)
    assert [one.label for one in found] == theirs["text_labels"] and len({one.label for one in found}) == 2
    assert np.allclose([one.box for one in found], theirs["boxes"], atol=1e-4)
    reply = detector.reply(ask)["objects"]
    assert len(reply) == len(found) and {one["class"] for one in reply} == set(classes)
    assert all(0 <= side <= 1000 for one in reply for side in one["box"])


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_of_flat_objects(colour):
    """Every colour of the benchmark in its plain form, in light and in shade, before another colour all around."""
    from PIL import ImageColor

    plain = np.array(ImageColor.getrgb(colour))
    around = np.full((60, 60, 3), 200 if colour != "white" else 60, np.uint8)
    for light in (0.8, 1.0):
        pixels = around.copy()
        pixels[15:45, 15:45] = plain * light
        box = detection.Found("x", 1.0, (10, 10, 50, 50))
        assert detection.nearest_colour(detection.pixels_of(Picture(pixels), box)) == colour, light
        mask = np.zeros((60, 60), bool)
        mask[15:45, 15:20] = True
        found = detection.Found("x", 1.0, (15, 15, 20, 45), mask)
        assert detection.nearest_colour(detection.pixels_of(Picture(pixels), found)) == colour


def test_colours_that_are_none():
    assert detection.nearest_colour(np.full((5, 3), 128, np.uint8)) == "grey"
    half = np.concatenate([np.tile([[220, 30, 30]], (6, 1)), np.tile([[30, 30, 220]], (5, 1))]).astype(np.uint8)
    assert detection.nearest_colour(half) == "red"
    tiny = detection.Found("x", 1.0, (47.9, -3.0, 47.95, 0.0))
    assert detection.pixels_of(picture(), tiny).shape == (1, 3)
    assert detection.crop(picture(), tiny).size == (1, 1)


def test_lab_is_that_of_kornia():
    import torch
    from kornia.color import rgb_to_lab

    pixels = picture().pixels.reshape(-1, 3)
    theirs = rgb_to_lab(torch.tensor(pixels / 255.0).T[None, :, :, None])[0, :, :, 0].T.numpy()
    assert np.allclose(detection.lab(pixels), theirs, atol=0.05)


class FakeClip:
    """Texts are one-hot by their colour, an image is the one-hot of its first pixel."""

    def embeddings(self, texts, pictures):
        texts = np.array([[float(colour in text) for colour in COLOURS] for text in texts])
        images = np.zeros((1, len(COLOURS)))
        images[0, pictures[0].pixels[0, 0, 0]] = 1
        self.seen = pictures[0]
        return texts, images


def test_clip_sees_the_object_on_grey(detr):
    pixels = np.full((36, 48, 3), 3, np.uint8)
    pixels[10:20, 10:20] = 4
    mask = np.zeros((36, 48), bool)
    mask[10:20, 10:20] = True
    mask[12, 12] = False
    clip = FakeClip()
    detector = detection.Detector(detr, clip=clip)
    found = detection.Found("dog", 1.0, (10, 10, 20, 20), mask)
    assert detector.colour(Picture(pixels), found, "dog") == COLOURS[4]
    assert clip.seen.size == (10, 10) and tuple(clip.seen.pixels[2, 2]) == detection.GREY


def test_a_real_clip_gives_a_colour(detr, tmp_path):
    from duogen_core.evaluation.checks import Clip
    from tests.core.evaluation.test_checks import save_clip

    save_clip(tmp_path, "clip")
    detector = detection.Detector(detr, clip=Clip(tmp_path))
    assert detector.colour(picture(), detection.Found("dog", 1.0, (3, 3, 30, 30)), "dog") in COLOURS


def test_folders_that_are_none(tmp_path, detr):
    with pytest.raises(DuoGenError, match="is no folder"):
        detection.Detector(tmp_path / "facebook/detr-resnet-50")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DuoGenError, match="has no .safetensors"):
        detection.Detector(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DuoGenError, match="is of the kind 'bert'; expected mask2former"):
        detection.Detector(tmp_path)
    (tmp_path / "config.json").write_text((detr / "config.json").read_text())
    with pytest.raises(DuoGenError, match="cannot be loaded"):
        detection.Detector(tmp_path)
    from safetensors.numpy import save_file

    save_file({"nothing": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text((detr / "preprocessor_config.json").read_text())
    with pytest.raises(DuoGenError, match="lacks the weights|cannot be loaded"):
        detection.Detector(tmp_path)
    with pytest.raises(DuoGenError, match="sure between 0 and 1"):
        detection.Detector(detr, sure=(0.3, 9))
