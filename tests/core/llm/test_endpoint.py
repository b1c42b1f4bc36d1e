"""Endpoints that misbehave: each ends in one sentence, in time, and within the byte cap."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of
from duogen_core.errors import DuoGenError
from duogen_core.llm.client import Client, Endpoint
from duogen_core.net.client import EndpointError, Limits, ask_server, check_address
from tests.core.endpoint_server import HASTY, QUICK, completion, dripping, endpoint_server, hanging, raw

BODY = completion("fine")
SOON_OVER = replace(QUICK, total=1)
OK = b"HTTP/1.1 200 OK\r\n"


def asked(server, limits: Limits = QUICK):
    endpoint = Endpoint(server.url, "tiny", limits=limits, attempts=1)
    return Client(endpoint).ask([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (raw(OK + b"Content-Length: 9000\r\n\r\n" + BODY), f"{len(BODY)} of 9000 bytes"),
        (raw(OK + b"Content-Length: 20\r\n\r\n" + BODY), "not JSON"),
        (raw(OK + b"Content-Length: 99999999999999\r\n\r\n" + BODY), "more than 50,000 bytes"),
        (raw(OK + b"\r\n" + b" " * 60_000 + BODY), "more than 50,000 bytes"),
        (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n" + BODY), "broke off or does not speak HTTP"),
        (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nFFF\r\n" + BODY), "broke off or does not speak HTTP"),
        (raw(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b"), "compressed its answer"),
        (raw(OK + b"X: y\r\n" * 200 + b"\r\n" + BODY), "does not speak HTTP"),
        (raw(OK + b"X: " + b"y" * 70_000), "does not speak HTTP"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak HTTP"),
        (raw(b""), "broke off or does not speak HTTP"),
        (b"", "not JSON"),
        (b"<html>Hello</html>", "not JSON"),
        (b"[" * 40_000, "not JSON"),
        (b'{"x": "\xff"}', "not JSON"),
        (b"[]", "not a chat completion"),
        (b'{"choices": []}', "not a chat completion"),
        (b'{"choices": [{"message": "hi"}]}', "not a chat completion"),
        (completion(None), "without text"),
        (completion(""), "without text"),
        (completion(["a"]), "without text"),
        (completion("half \ud800 pair"), "not valid Unicode"),
    ],
)
def test_no_answer(reply, sentence):
    with endpoint_server(reply) as server, pytest.raises(EndpointError, match=sentence) as caught:
        asked(server)
    assert str(caught.value).endswith(".") and ". " not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "limits", "sentence"),
    [
        (hanging, HASTY, "sent nothing for 0.5 seconds"),
        (dripping(b"HTTP/1.1 200 OK\r\nX: "), SOON_OVER, "not finished after 1 seconds"),
        (dripping(OK + b"Content-Length: 4000\r\n\r\n"), SOON_OVER, "not finished after 1 seconds"),
    ],
)
def test_it_ends_though_the_server_does_not(reply, limits, sentence):
    """These servers go on for two minutes and then close, which would be another sentence."""
    with endpoint_server(reply) as server, pytest.raises(EndpointError, match=sentence):
        asked(server, limits)


THOUGHT = {"role": "assistant", "content": "", "reasoning": "Let me see. " * 100}


@pytest.mark.parametrize(
    ("message", "finish", "sentence"),
    [
        (
            THOUGHT,
            "length",
            r"only the model's thoughts until max_tokens was reached \(1,199 characters of reasoning\)",
        ),
        ({**THOUGHT, "content": None}, "stop", r"only the model's thoughts \(1,199 characters"),
        ({"content": "", "reasoning_content": "Hm."}, "stop", "thoughts .3 characters .* --think false or --reasoning"),
        ({"content": "", "reasoning": "  "}, "stop", "an answer without text"),
        ({"content": "", "reasoning": ["a"]}, "stop", "an answer without text"),
    ],
)
def test_thoughts_alone_are_asked_for_once_more_without_thinking_and_then_named(message, finish, sentence):
    with endpoint_server(completion("", message=message, finish_reason=finish)) as server:
        endpoint = Endpoint(server.url, "tiny", limits=QUICK, attempts=1 if "without" in sentence else 3)
        with pytest.raises(EndpointError, match=sentence):
            Client(endpoint).ask([{"role": "user", "content": "Hello"}])
        bodies = [body for _, _, body in server.asked]
    if "without" in sentence:
        assert len(bodies) == 1
    else:
        without = {"reasoning_effort": "none", "think": False, "chat_template_kwargs": {"enable_thinking": False}}
        assert bodies[1] == {**bodies[0], **without} and len(bodies) == 2


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ([], {}),
        (["--reasoning-effort", "none"], {"reasoning_effort": "none"}),
        (["--think", "false"], {"think": False, "chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_whether_a_model_thinks_is_sent_only_when_it_is_said(tmp_path, typed, sent):
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser)
    with endpoint_server(BODY) as server:
        args = parser.parse_args(["--endpoint", server.url, "--llm", "tiny", *typed])
        client_of(args, tmp_path / "answers.jsonl").ask([{"role": "user", "content": "Hello"}])
        (_, _, body) = server.asked[0]
    usual = {"model", "messages", "max_tokens", "temperature", "seed"}
    assert {name: value for name, value in body.items() if name not in usual} == sent


def test_nobody_there():
    with endpoint_server(BODY) as server:
        pass
    with pytest.raises(EndpointError, match="cannot be reached"):
        asked(server)


def test_lengths_may_be_missing_or_chunked():
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    for reply in (raw(OK + b"\r\n" + BODY), raw(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)):
        with endpoint_server(reply) as server:
            assert asked(server).text == "fine"


@pytest.mark.parametrize(
    "address",
    [
        *[
            "",
            "localhost:8000",
            "file:///x",
            "http://",
            "http://a b/v1",
            "http://a:0x/",
            "http://[/",
        ],
        *["http://a..b/", "http://.a/", f"http://{'a' * 300}/", f"http://b.{'a' * 64}.de/v1"],
    ],
)
def test_address(address):
    with pytest.raises(DuoGenError, match="not an endpoint's address"):
        check_address(address)


def test_an_address_with_a_password_is_not_repeated():
    with pytest.raises(DuoGenError, match="holds a user's name or a query") as refused:
        check_address("http://user:secret@a/v1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["a..b", "a" * 300])
def test_a_name_that_is_no_hosts_is_a_sentence_wherever_it_comes_from(host):
    with pytest.raises(EndpointError, match="has no host's name") as caught:
        ask_server("GET", f"http://{host}/", None, {}, QUICK)
    assert not caught.value.again and len(str(caught.value)) < 300
