"""Endpoints that misbehave: each ends in one sentence, in time, and within the byte cap."""

from __future__ import annotations

import time

import pytest

from duogen_core.data.llm.client import Client, Endpoint
from duogen_core.data.llm.endpoint import EndpointError, Limits, check_address
from duogen_core.errors import DuoGenError
from tests.core.endpoint_server import QUICK, completion, dripping, endpoint_server, hanging, raw

BODY = completion("fine")
OK = b"HTTP/1.1 200 OK\r\n"


def asked(server, limits: Limits = QUICK):
    endpoint = Endpoint(server.url, "tiny", limits=limits, attempts=1)
    return Client(endpoint).ask([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (raw(OK + b"Content-Length: 9000\r\n\r\n" + BODY), "announced 9000 bytes and sent"),
        (raw(OK + b"Content-Length: 20\r\n\r\n" + BODY), "not JSON"),
        (raw(OK + b"Content-Length: 99999999999999\r\n\r\n" + BODY), "more than 50,000 bytes"),
        (raw(OK + b"\r\n" + b" " * 60_000 + BODY), "more than 50,000 bytes"),
        (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n" + BODY), "broke off or does not speak HTTP"),
        (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nFFF\r\n" + BODY), "broke off or does not speak HTTP"),
        (raw(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b"), "compressed its answer"),
        (raw(OK + b"X: y\r\n" * 200 + b"\r\n" + BODY), "does not speak HTTP"),
        (raw(OK + b"X: " + b"y" * 70_000), "does not speak HTTP"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak HTTP"),
        (raw(b""), "does not speak HTTP"),
        (b"", "not JSON"),
        (b"<html>Hello</html>", "not JSON"),
        (b"[" * 40_000, "not JSON"),
        (b'{"x": "\xff"}', "not JSON"),
        (b"[]", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": "hi"}]}', "no chat completion"),
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
    ("reply", "sentence", "most"),
    [
        (hanging, "sent nothing for 0.5 seconds", 1.9),
        (raw(b""), "broke off", 1.9),
        (dripping(b"HTTP/1.1 200 OK\r\nX: "), "not finished after 2 seconds", 5),
        (dripping(OK + b"Content-Length: 4000\r\n\r\n"), "not finished after 2 seconds", 5),
    ],
)
def test_it_ends_in_time(reply, sentence, most):
    with endpoint_server(reply) as server, pytest.raises(EndpointError, match=sentence):
        start = time.monotonic()
        try:
            asked(server)
        finally:
            assert time.monotonic() - start < most


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
    ["", "localhost:8000", "file:///x", "http://", "http://a b/v1", "http://u:p@a/v1", "http://a:0x/", "http://[/"],
)
def test_address(address):
    with pytest.raises(DuoGenError, match="not an endpoint's address"):
        check_address(address)
