"""The optional filter for pictures not safe for work: a named rule with a threshold, by a tiny model made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from duogen_core.cli import main
from duogen_core.data.pictures.classing import Nsfw
from duogen_core.data.runs.presets import load_preset
from duogen_core.errors import DuoGenError
from tests.core.web_pages import file, photo, recipe, site


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Random, but for its last layer: it sees the label nsfw in bright pictures."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    names = {0: "normal", 1: "NSFW"}
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=names,
        label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    network = ResNetForImageClassification(config).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def seen(value: int) -> torch.Tensor:
        inputs = processor(images=np.full((32, 32, 3), value, np.uint8), return_tensors="pt")
        return network.resnet(**inputs).pooler_output.flatten()

    with torch.no_grad():
        dark, bright = seen(20), seen(235)
        last = network.classifier[1]
        along = (bright - dark) / (bright - dark).norm() ** 2
        last.weight[:] = torch.stack([-along, along]) * 8
        last.bias[:] = -(last.weight @ (dark + bright) / 2)
    folder = tmp_path_factory.mktemp("model")
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def dim(pixels: np.ndarray) -> np.ndarray:
    return (pixels // 5).astype(np.uint8)


def light(pixels: np.ndarray) -> np.ndarray:
    return (200 + pixels // 5).astype(np.uint8)


def rules(**changes) -> dict:
    return {**load_preset("web").nsfw, **changes}


def test_the_score_is_the_probability_of_the_labels_that_count(model):
    nsfw = Nsfw(rules(model=str(model)))
    assert nsfw.score(light(photo())) > 0.9 > 0.1 > nsfw.score(dim(photo()))
    both = Nsfw(rules(model=str(model), labels=["nsfw", "Normal"]))
    assert both.score(photo()) == 1.0


def test_it_is_off_unless_a_model_is_named():
    assert load_preset("web").nsfw["model"] == "" and load_preset("web", "obelics").nsfw["model"] == ""


def test_a_run_drops_what_the_model_sees_and_logs_every_score(model, tmp_path):
    pictures = {"dim.png": file(dim(photo(seed=1))), "light.png": file(light(photo(seed=2)))}
    pages = site(tmp_path / "site", {"p.html": recipe("dim.png", "light.png")}, pictures)
    command = ["data", "web", str(pages), "--workers", "1", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "off")]) == 0
    assert main([*command, str(tmp_path / "on"), "--set", f"nsfw.model={model}"]) == 0
    logs = [json.loads((tmp_path / name / "logs" / "00000.jsonl").read_text())["pictures"] for name in ("off", "on")]
    assert [each.get("rule") for each in logs[0]] == [None, None] and "nsfw" not in logs[0][0]
    assert [each.get("rule") for each in logs[1]] == [None, "nsfw"]
    assert logs[1][0]["nsfw"] < 0.5 <= logs[1][1]["nsfw"] == logs[1][1]["value"]
    raised = ["--set", f"nsfw.model={model}", "--set", "nsfw.threshold=1.01"]
    assert main([*command, str(tmp_path / "high"), *raised]) == 0
    log = json.loads((tmp_path / "high" / "logs" / "00000.jsonl").read_text())
    assert [each.get("rule") for each in log["pictures"]] == [None, None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/nowhere"}, "is not a model"),
        ({"labels": ["gore"]}, "has none of the labels gore.*normal, nsfw"),
    ],
)
def test_a_model_that_cannot_be_used_gets_a_sentence(model, changes, words):
    with pytest.raises(DuoGenError, match=words):
        Nsfw(rules(**{"model": str(model), **changes}))


def test_weights_that_are_a_pickle_are_not_read(model, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DuoGenError, match="cannot be loaded"):
        Nsfw(rules(model=str(tmp_path)))
