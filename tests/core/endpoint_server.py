"""A small endpoint on loopback for tests: sends the given replies one after another, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from duogen_core.net.client import Limits

QUICK = Limits(connect=5, read=20, total=60, max_bytes=50_000)  # a busy machine may keep a test's server waiting
HASTY = Limits(connect=5, read=0.5, total=20, max_bytes=50_000)  # for servers that never answer


def completion(text: Any, **more: Any) -> bytes:
    """The body of a chat completion."""
    usage = more.pop("usage", {"prompt_tokens": 7, "completion_tokens": 3})
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        names = self.server.names
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()
        with suppress(OSError):
            send(self, body) if names else send(self, b"{}", 404)
        self.close_connection = True

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), self.body))
        reply = self.server.replies[min(len(self.server.asked), len(self.server.replies)) - 1]
        with suppress(OSError):  # the client may have left, as several tests want it to
            reply(self) if callable(reply) else send(self, reply)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def send(handler: Handler, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(body)


def refusing(status: int, message: str = "no", **headers: str) -> Callable[[Handler], None]:
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler: send(handler, body, status, {name.replace("_", "-"): text for name, text in headers.items()})


def chunk(text: Any = None, finish: str | None = None, **delta: Any) -> bytes:
    """One server-sent event of a streamed completion."""
    content = {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": {**content, **delta}, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"


def streaming(*pieces: bytes, pause: float = 0.0, hold: bool = False) -> Callable[[Handler], None]:
    """Events one by one, as servers send them: chunked. hold: the connection stays open after the last one."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            handler.wfile.flush()
            if pause and handler.server.leaving.wait(pause):
                return
        if hold:
            handler.server.leaving.wait(120)
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def raw(data: bytes) -> Callable[[Handler], None]:
    return lambda handler: handler.wfile.write(data)


def hanging(handler: Handler) -> None:
    """Sends nothing until the test is over."""
    handler.server.leaving.wait(120)


def dripping(data: bytes) -> Callable[[Handler], None]:
    """Bytes without end, each sooner than the read limit."""

    def drip(handler: Handler) -> None:
        handler.wfile.write(data)
        for _ in range(2400):
            handler.wfile.write(b"a")
            handler.wfile.flush()
            if handler.server.leaving.wait(0.05):
                return

    return drip


@contextmanager
def endpoint_server(*replies: bytes | Callable[[Handler], None], names: Sequence[str] = ()):
    """Yields the server: its `url` and, in `asked`, (path, headers, body) of each request. names: of its models."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.replies, server.asked, server.leaving, server.names = replies, [], threading.Event(), names
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.leaving.set()
        server.shutdown()
        server.server_close()


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
