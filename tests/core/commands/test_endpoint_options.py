"""The options by which a command names a model, and what they open."""

from __future__ import annotations

import argparse

import pytest

from duogen_core.commands.endpoint_options import add_endpoint_options, add_model_options, client_of, model_of
from duogen_core.device_options import add_device_options
from duogen_core.errors import DuoGenError
from duogen_core.llm.own_mllm import OwnModel
from tests.core.endpoint_server import completion, endpoint_server

ASK = [{"role": "user", "content": "Hello"}]


def parsed(*typed: str, prefix: str = "writer", device: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_options(parser, prefix, "plans")
    if device:
        add_device_options(parser)
    return parser.parse_args(typed)


def test_a_server_with_a_name_and_a_key(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-secret")
    with endpoint_server(completion("Hi"), names=["a", "b"]) as server:
        typed = ["--critic", server.url, "--critic-model", "b", "--critic-key-variable", "TINY_KEY"]
        assert model_of(parsed(*typed, prefix="critic"), "critic").ask(ASK).text == "Hi"
        _, headers, body = server.asked[0]
    assert headers["Authorization"] == "Bearer sk-secret" and body["model"] == "b"


@pytest.mark.parametrize("device", [False, True])
def test_a_model_run_here(device):
    client = model_of(parsed("--writer", "duogen-tiny", "--writer-dtype", "bf16", device=device))
    assert isinstance(client.transport, OwnModel)
    assert {str(weight.dtype) for weight in client.transport.mllm.model.parameters()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "^Name a model with --writer: a folder"),
        (["--writer-model", "x"], "--writer-model is about a writer; name it with --writer"),
        (["--writer-key-variable", "x"], "--writer-key-variable is about a writer"),
        (["--writer", "localhost:80"], "looks like an address"),
    ],
)
def test_what_is_missing_is_said(typed, words):
    with pytest.raises(DuoGenError, match=words):
        model_of(parsed(*typed))


def test_the_data_engines_take_any_model_that_runs_here(tmp_path):
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser)
    args = parser.parse_args(["--mllm", "duogen-tiny"])
    answer = client_of(args, tmp_path / "a.jsonl").ask(ASK, {"const": [1]}, 9)
    assert answer.value == [1]
    args = parser.parse_args(["--mllm", "duogen-tiny", "--replay"])
    assert client_of(args, tmp_path / "a.jsonl").ask(ASK, {"const": [1]}, 9) == answer
    with pytest.raises(DuoGenError, match="give the address of a server as --endpoint"):
        client_of(parser.parse_args(["--mllm", "http://127.0.0.1:1/v1"]), tmp_path / "a.jsonl")
