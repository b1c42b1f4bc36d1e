"""A web of our own on this machine: any host name leads to one loopback server, whose pages are given by a mapping."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from duogen_core.net.client import HttpClient, NetworkError

Reply = tuple[int, dict[str, str], bytes] | Callable


class Web:
    """pages: "host/path" -> (status, headers, body), or a function of the handler. Asked for: (host, path, headers)."""

    def __init__(self) -> None:
        self.pages: dict[str, Reply] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.times: list[tuple[float, float]] = []  # when each request began and ended
        self.names: dict[str, list[str]] = {}  # host -> addresses; every other one is this server
        self.port = 0

    def url(self, place: str) -> str:
        host, slash, path = place.partition("/")
        return f"http://{host}:{self.port}{slash}{path}"

    def network(self) -> HttpClient:
        def resolve(host: str, port: int) -> list[str]:
            if host.startswith("gone."):
                raise OSError("no such host")
            return self.names.get(host, ["127.0.0.1"])

        return HttpClient(resolve, lambda address: address == "127.0.0.1")

    def paths(self) -> list[str]:
        return [f"{host}{path}" for host, path, _ in self.asked]


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            begun = time.monotonic()
            host = self.headers.get("Host", "").partition(":")[0]
            web.asked.append((host, self.path, dict(self.headers)))
            reply = web.pages.get(f"{host}{self.path}", (404, {}, b"gone"))
            try:
                if callable(reply):
                    reply(self)
                else:
                    status, headers, body = reply
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
            except OSError:
                pass  # the client has gone
            web.times.append((begun, time.monotonic()))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def html(body: str | bytes, **headers: str) -> Reply:
    data = body.encode() if isinstance(body, str) else body
    return (
        200,
        {"Content-Type": "text/html; charset=utf-8", **{k.replace("_", "-"): v for k, v in headers.items()}},
        data,
    )


def image(data: bytes, **headers: str) -> Reply:
    return 200, {"Content-Type": "image/png", **{k.replace("_", "-"): v for k, v in headers.items()}}, data


def leads(url: str, status: int = 302) -> Reply:
    return status, {"Location": url}, b""


def rule_of(get: Callable[[], object]) -> str:
    try:
        get()
    except NetworkError as error:
        return error.rule
    return ""
