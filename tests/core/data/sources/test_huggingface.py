"""Hugging Face datasets as a source: the usual shapes of turns and pictures, and what may be wrong with them."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from duogen_core.data.sources import Bad, Sample, open_source
from duogen_core.document.store import document_json
from duogen_core.errors import DuoGenError
from tests.core.documents import picture
from tests.core.sample_sets import guide, only_bad

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def pillow(number: int) -> Image.Image:
    return Image.fromarray(picture(number).pixels)


def saved(root, columns: dict, features=None) -> str:
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(root / "set"))
    return f"hf:{root / 'set'}"


IMAGES = datasets.Features(
    {
        "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        "images": datasets.Sequence(datasets.Image()),
    }
)


def chat(content="<image>Which colour?", answer="Red. <image>") -> list[dict]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def kinds(sample: Sample) -> list:
    return [
        (turn.role, [part.text if hasattr(part, "text") else part.size for part in turn.parts])
        for turn in sample.document.turns
    ]


def test_messages_with_places_for_pictures(tmp_path):
    spec = saved(tmp_path, {"messages": [chat(), chat()], "images": [[pillow(0), pillow(1)]] * 2}, IMAGES)
    source = open_source(spec)
    sample = source.read(1)
    assert len(source) == 2 and sample.label == f"{source.name}, row 1"
    assert kinds(sample) == [("user", [(12, 8), "Which colour?"]), ("assistant", ["Red. ", (12, 8)])]
    assert np.array_equal(sample.document.pictures[1].pixels, picture(1).pixels)


def test_conversations_columns_and_roles_of_your_choice(tmp_path):
    talk = [[{"from": "customer", "value": "Hello <pic>"}, {"from": "gpt", "value": "Hi"}]]
    spec = {"source": saved(tmp_path, {"talk": talk, "photo": [pillow(0)], "id": [7]})}
    with pytest.raises(DuoGenError, match="no column turns or messages.* option 'turns'. It has talk, photo, id"):
        open_source(spec)
    source = open_source({**spec, "turns": "talk", "images": "photo", "roles": {"customer": "user"}, "marker": "<pic>"})
    assert kinds(source.read(0)) == [("user", ["Hello ", (12, 8)]), ("assistant", ["Hi"])]
    with pytest.raises(DuoGenError, match="the column 'foto' is not known; did you mean 'photo'"):
        open_source({**spec, "turns": "talk", "images": "foto"})


def test_the_layout_of_this_project_as_json_text(tmp_path):
    value = json.dumps(document_json(guide(3), ["0", "1"])["turns"])
    source = open_source(saved(tmp_path, {"turns": [value], "images": [[pillow(0), pillow(1)]]}))
    assert kinds(source.read(0))[1] == ("assistant", ["Step 1.", (12, 8), "Done."])


def test_lists_of_parts_and_text_alone(tmp_path):
    parts = [{"type": "text", "text": "Hi"}, {"type": "image", "text": None}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
    source = open_source(saved(tmp_path, {"messages": [turns], "images": [[pillow(0)]]}))
    assert kinds(source.read(0))[0] == ("user", ["Hi", (12, 8)])
    text = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "b").mkdir()
    assert isinstance(open_source(saved(tmp_path / "b", {"messages": [text]})).read(0), Sample)


def test_parquet_files_splits_and_the_same_order_again(tmp_path):
    rows = [chat(f"Number {i}", "Yes.") for i in range(9)]
    table = datasets.Dataset.from_dict({"messages": rows})
    table.to_parquet(str(tmp_path / "a.parquet"))
    source = open_source(f"hf:{tmp_path / 'a.parquet'}")
    order = [sample.document.turns[0].text for sample in source.epoch(0, 0)]
    assert sorted(order) == [f"Number {i}" for i in range(9)] != order
    assert [sample.document.turns[0].text for sample in source.epoch(0, 0).skip(5)] == order[5:]
    assert json.loads(json.dumps(source.identity())) == open_source(f"hf:{tmp_path / 'a.parquet'}").identity()
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "dict"))
    assert len(open_source({"source": f"hf:{tmp_path / 'dict'}", "split": "test"})) == 9
    with pytest.raises(DuoGenError, match="the split 'tset' is not known; did you mean 'test'"):
        open_source({"source": f"hf:{tmp_path / 'dict'}", "split": "tset"})


@pytest.mark.parametrize(
    "turns, pictures, match",
    [
        (chat(), 1, "no image left for this place; one is missing"),
        (chat("Hello", "Hi"), 1, "it has 1 images and places for 0"),
        ([{"role": "robot", "content": "Hi"}], 0, "the role is 'robot'; expected one of system, user, assistant"),
        ([{"role": "user", "content": "Hi"}], 0, "no assistant turn"),
        ([{"role": "user", "content": None}], 0, "has no content"),
        ([], 0, "has no turns"),
    ],
)
def test_bad_rows(tmp_path, turns, pictures, match):
    images = [[pillow(k) for k in range(pictures)]]
    only_bad(open_source(saved(tmp_path, {"messages": [turns], "images": images}, IMAGES)), match)


def test_pictures_that_are_broken_or_lie_elsewhere(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    raw = io.BytesIO()
    pillow(0).save(raw, "PNG")
    stored = [
        {"bytes": raw.getvalue(), "path": None},
        {"bytes": raw.getvalue()[:60], "path": None},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": "../secret.png"},
        None,
    ]
    columns = {"messages": [chat("<image>", "Red.")] * 5, "images": [[each] for each in stored]}
    source = open_source(saved(tmp_path, columns))
    assert isinstance(source.read(0), Sample)
    only_bad(source, "damaged or cut off", 1)
    only_bad(source, "is not allowed", 2)
    only_bad(source, "is not allowed", 3)
    only_bad(source, "is missing", 4)


def test_pictures_may_lie_in_the_folder_of_the_dataset(tmp_path):
    (tmp_path / "photos").mkdir()
    pillow(0).save(tmp_path / "photos" / "a.png")
    stored = [{"bytes": None, "path": name} for name in ("photos/a.png", str(tmp_path / "photos" / "a.png"))]
    columns = {"messages": [chat("<image>", "Red.")] * 2, "images": [[each] for each in stored]}
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "a.parquet"))
    source = open_source(f"hf:{tmp_path / 'a.parquet'}")
    for index in range(2):
        assert np.array_equal(source.read(index).document.pictures[0].pixels, picture(0).pixels)


def test_a_place_without_a_dataset_and_without_the_library(tmp_path, monkeypatch):
    with pytest.raises(DuoGenError, match="cannot be opened"):
        open_source(f"hf:{tmp_path / 'nowhere'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DuoGenError, match=r"\.\[hf\]"):
        open_source("hf:anything")


def test_a_bad_row_never_raises(tmp_path):
    source = open_source(saved(tmp_path, {"messages": [["text"], ["text"]]}))
    assert all(isinstance(source.read(i), Bad) for i in range(2))
