"""What a model's name means: an address, a folder, a file, a model of this pack, or a sentence."""

from __future__ import annotations

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.llm.opening import is_address, open_model
from duogen_core.llm.own_mllm import OwnModel
from duogen_core.net.client import EndpointError
from tests.core.endpoint_server import completion, endpoint_server

ASK = [{"role": "user", "content": "Hello"}]


def test_the_bundled_model_by_name():
    client = open_model("duogen-tiny")
    assert isinstance(client.transport, OwnModel) and client.sees and client.endpoint.model == "duogen-tiny"
    answer = client.ask(ASK, {"const": [1, 2]}, 30, read=str)
    assert answer.text == "[1, 2]" and answer.finish == "stop"


def test_an_address_with_and_without_its_path_and_model(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-secret")
    with endpoint_server(completion("Hi"), names=["only"]) as server:
        host = server.url.removesuffix("/v1")
        for spec in (server.url, host, host + "/", f" {host.upper()}"):
            client = open_model(spec, key_variable="TINY_KEY", options={"think": False})
            assert client.ask(ASK).text == "Hi" and client.endpoint.model == "only" and not client.endpoint.waits
        path, headers, body = server.asked[-1]
        assert (path, headers["Authorization"], body["think"]) == ("/v1/chat/completions", "Bearer sk-secret", False)
        assert open_model(server.url, model_name="other", sees=False).endpoint.model == "other"
    with endpoint_server(names=["a", "b"]) as server, pytest.raises(DuoGenError, match="has several models; .*: a, b."):
        open_model(server.url)
    with endpoint_server(names=[]) as server, pytest.raises(DuoGenError, match="does not list its models"):
        open_model(server.url)
    with pytest.raises(EndpointError, match="cannot be reached"):
        open_model(server.url)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("localhost:11434", "looks like an address; write it as http://localhost:11434"),
        ("127.0.0.1:8080/v1", "write it as http://127.0.0.1:8080/v1"),
        ("//gpu-box.example:8000", "write it as http://gpu-box.example:8000"),
        ("[::1]:8080", "looks like an address"),
        ("http://", "is not an endpoint's address"),
        (
            "https://user:secret@host/v1",
            r"holds a user's name or a query; write it like http://[\d.:]+/v1, without any",
        ),
        ("https://:secret@host/v1", "holds a user's name or a query"),
        ("http://host/v1?key=secret", "holds a user's name or a query"),
        ("Qwen/Qwen3-4B", "nothing is downloaded by itself"),
        ("qwen3", "There is no model 'qwen3'; give a folder"),
        ("../nowhere/model.gguf", "There is no model"),
        ("", "has no name"),
        ("  ", "has no name"),
    ],
)
def test_names_that_mean_nothing(spec, words):
    with pytest.raises(DuoGenError, match=words) as caught:
        open_model(spec)
    assert "secret" not in str(caught.value)


def test_what_belongs_to_a_server_is_refused_for_a_model_run_here(tmp_path):
    with pytest.raises(DuoGenError, match="A model's name .x. is for a server"):
        open_model("duogen-tiny", model_name="x")
    with pytest.raises(DuoGenError, match="A key .KEY. is for a server"):
        open_model("duogen-tiny", key_variable="KEY")
    with pytest.raises(DuoGenError, match="neither model_index.json"):
        open_model(str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(DuoGenError, match=r"x\.gguf"):
        open_model(str(tmp_path / "x.gguf"))


def test_a_file_may_be_named_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.b:8").mkdir()
    assert not is_address("a.b:8") and not is_address("duogen-tiny") and is_address("HTTP://a.b:8")
