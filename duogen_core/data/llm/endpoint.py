"""One request over HTTP, with limits on every wait and on the size of the answer; post_json is the one of endpoints.

In: an address, a body, headers. Out: a Reply (status, headers, bytes), or an EndpointError. The standard library
does it, since huggingface_hub brings httpx in one version and httpx2 in the next. Redirects are not followed (a key in
the headers goes to the named host alone), and answers are taken uncompressed only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from duogen_core.errors import DuoGenError


@dataclass(frozen=True)
class Limits:
    """Seconds to connect, without a byte, and for the whole exchange; and the most bytes an answer may have."""

    connect: float = 10.0
    read: float = 120.0
    total: float = 600.0
    max_bytes: int = 8 * 2**20


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class EndpointError(DuoGenError):
    """The endpoint could not be reached, or what it sent is no answer. `again`: another attempt may help."""

    def __init__(self, message: str, again: bool = True, wait: float | None = None):
        super().__init__(message)
        self.again = again
        self.wait = wait


def check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")  # an empty label, or one of more than 63 letters, is no name of a host
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username or not url.isascii() or " " in url:
        raise DuoGenError(f"{url[:200]} is not an endpoint's address; write it like http://127.0.0.1:8000/v1.")


def post_json(url: str, value: Any, headers: Mapping[str, str], limits: Limits) -> Reply:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return exchange("POST", url, body, {**headers, "Content-Type": "application/json"}, limits)


def exchange(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], limits: Limits, who: str = "The endpoint"
) -> Reply:
    """The reply to one request. `who` is what messages call the server."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=limits.connect)
    where = f"{who} {parts.scheme}://{parts.netloc}"
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    fields = {**headers, "Accept-Encoding": "identity", "Connection": "close"}
    try:
        connection.connect()
    except UnicodeError:  # of http.client's idna; check_address refuses such names where people write them
        raise EndpointError(f"{where[:200]} has no host's name; check its address.", again=False) from None
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        raise EndpointError(f"{where} cannot be reached ({reason}); start it or check its address.") from None
    try:
        connection.sock.settimeout(limits.read)
        with _until(connection.sock, limits.total) as late:
            try:
                connection.request(method, target, body=body, headers=fields)
                reply = _read(connection.getresponse(), where, limits.max_bytes)
                if not late.is_set():  # a socket that was shut reads like an answer that ended
                    return reply
            except EndpointError:
                if not late.is_set():
                    raise
            except TimeoutError:
                if not late.is_set():
                    raise EndpointError(
                        f"{where} sent nothing for {limits.read:g} seconds; raise the read limit or look at the server."
                    ) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not late.is_set():
                    name = type(error).__name__
                    raise EndpointError(
                        f"{where} broke off or does not speak HTTP ({name}); look at the server."
                    ) from None
    finally:
        connection.close()
    raise EndpointError(
        f"{where} had not finished after {limits.total:g} seconds; raise the total limit or ask for less."
    )


@contextlib.contextmanager
def _until(sock: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Shuts the socket when the time is over: a timeout of the socket alone never ends a server that drips bytes."""
    late = threading.Event()

    def shut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own shutdown would race with the reader

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, where: str, most: int) -> Reply:
    headers = {name.lower(): text for name, text in response.getheaders()}
    coding = headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise EndpointError(f"{where} compressed its answer ({coding[:20]}) though asked not to.", False)
    declared = headers.get("content-length", "")
    length = int(declared) if declared.isascii() and declared.isdigit() and "transfer-encoding" not in headers else None
    body = bytearray()
    while len(body) <= most and (length is None or length <= most):
        part = response.read(min(2**16, most + 1 - len(body)))
        if not part:
            if length is not None and len(body) < length:
                raise EndpointError(f"{where} announced {length} bytes and sent {len(body)}.")
            return Reply(response.status, headers, bytes(body))
        body += part
    raise EndpointError(f"{where} sent more than {most:,} bytes; ask for less or raise max_bytes.", False)
