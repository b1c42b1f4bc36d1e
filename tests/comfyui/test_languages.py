"""Errors and progress in the language of whoever runs the workflow, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from server import PACK, Result, Server
from test_secrets import module_alone

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError

EMPTY = "The request is empty; write in DuoGen Prompt what the answer should be about."
CHINESE = json.loads((PACK / "locales" / "zh" / "messages.json").read_text("utf-8"))


def sentence(result: Result) -> str:
    assert result.error is not None, "this should have failed"
    return result.error["exception_message"].strip()


@pytest.fixture(scope="module")
def language() -> Any:
    return module_alone("language")


def test_error_in_the_language_of_the_prompt(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, "")
    before = len(server.log)
    assert sentence(server.run(graph, extra={"duogen_language": "zh-TW"})) == CHINESE[EMPTY], "zh-TW reads zh"
    assert EMPTY in server.log[before:], "the log is English"
    for locale in ("en", "", "fr", "../zh", None, 7):
        assert sentence(server.run(graph, extra={"duogen_language": locale})) == EMPTY


def test_error_of_our_model_in_a_stock_node(server: Server, random_model: Path):
    graph = graphs.first_picture(random_model.name)
    graph["shift"] = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": ["1", 2], "sampling": "v_prediction", "zsnr": False},
    }
    graph["p.sample"]["inputs"]["model"] = ["shift", 0]
    graph["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["p.decode", 0]}}
    result = server.run(graph, extra={"duogen_language": "zh"})
    assert result.error is not None and result.error["node_type"] == "KSampler"
    assert sentence(result).startswith("采样器之前的节点（ModelSamplingDiscrete")


def test_page_tells_the_language_of_its_client(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, "")
    server.post("/duogen/language", {"client_id": server.client_id, "locale": "zh"})
    try:
        assert sentence(server.run(graph)) == CHINESE[EMPTY]
        graph = graphs.answer(random_model.name, max_images=0, prefix="../../out")
        body = {"prompt": {**graph, "7": graphs.answer(random_model.name)["5"]}, "client_id": server.client_id}
        refused = server.post("/prompt", body)["node_errors"]["5"]["errors"]  # by validate_inputs, before it is queued
        assert "超出了 ComfyUI 的输出文件夹" in refused[0]["details"]
        server.post("/interrupt", {})
    finally:
        server.post("/duogen/language", {"client_id": server.client_id, "locale": "en"})
    assert sentence(server.run(graphs.answer(random_model.name, ""))) == EMPTY
    for bad in ({}, [], {"client_id": "", "locale": "zh"}, {"client_id": "a", "locale": "z" * 99}):
        with pytest.raises(RuntimeError, match="400"):
            server.post("/duogen/language", bad)


def test_progress_in_the_language_of_the_prompt(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, "Draw a wall.", seed=91)
    result = server.run(graph, extra={"duogen_language": "zh"})
    assert result.error is None
    assert any(text.startswith("图像 1（最多 8 张），第 1/4 步") for text in result.texts), result.texts


@pytest.mark.parametrize(("data", "said"), [(b"?", "不是可读取的图像"), (b"%PDF", "是 PDF")])
def test_a_fault_of_a_file_is_said_in_the_language_whole(language: Any, data: bytes, said: str):
    """The name of the file brings words of ours into the sentence, and so does what the file is."""
    with pytest.raises(DuoGenError) as refused:
        Picture.from_bytes(data, name="images/000.png (named by document.json, turns[1])")
    name = "images/000.png（由 document.json, turns[1] 指出）"
    assert language.translated(str(refused.value), "zh").startswith(f"{name} {said}；应为")


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("There is no model 'a' in models/x.", "在 models/x 中没有模型 'a'。"),
        ("There is no model '{places}' in $& <b>.", "在 $& <b> 中没有模型 '{places}'。"),
        ("There is no model  in .", "在  中没有模型 。"),
        ("It failed: There is no model b in c.", "失败：在 c 中没有模型 b。"),  # a sentence of ours in a place
        ('What is {a}? {"b": c}.', '{"b": c} 问 {a}？'),
        ("A user wrote: There is no model b in c", "A user wrote: There is no model b in c"),
        ("There is no model b in c. It failed: x.", "在 c 中没有模型 b。 失败：x。"),  # two in a row
        ("The image of it a b is not known.", "未知的图像：a b。"),  # where a thing ends, is known
        ("", ""),
    ],
)
def test_sentences(language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, english: str, chinese: str):
    """What stands in a place stays as it is, whatever it looks like."""
    known = {
        "There is no model {name} in {places}.": "在 {places} 中没有模型 {name}。",
        "It failed: {error}.": "失败：{error}。",
        "It failed: {error}": "失败：{error}",
        "{what} {name} is not known.": "未知的{what}：{name}。",
        "The image of it": "图像",
        'What is {{a}}? {{"b": {value}}}.': '{{"b": {value}}} 问 {{a}}？',
    }
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "messages.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(language, "LOCALES", tmp_path)
    language.templates.cache_clear()
    language.things.cache_clear()
    language._whole.cache_clear()
    assert language.translated(english, "zh") == chinese


@pytest.mark.parametrize(
    "quoted",
    [
        " ".join(f"Word{i} is here." for i in range(110)),
        " ".join(["It failed: x. Expected y, not z: it is damaged."] * 40),
        " ".join(sorted(CHINESE, key=len)[200:240])[:1900],
    ],
)
def test_long_quotation_is_looked_at_once(language: Any, monkeypatch: pytest.MonkeyPatch, quoted: str):
    """A file or a model writes what a message quotes. Parts that are looked at are counted here, not seconds."""
    looked, values = [], language.Template.values
    monkeypatch.setattr(language.Template, "values", lambda *args: looked.append(1) or values(*args))
    language._whole.cache_clear()
    english = f"The document 'Foo. {quoted}' does not exist; check the path."
    assert language.translated(english, "zh") != english
    assert 0 < len(looked) < 200_000


def test_languages_of_a_page_take_no_memory(language: Any):
    for number in range(100):
        language.translated(EMPTY, f"x{number}")
    assert language.templates.cache_info().currsize <= 16
    assert language.translated(EMPTY, "zh-" + "x" * 5000) == EMPTY
