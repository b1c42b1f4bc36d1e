"""One GET over HTTP(S), from a public address, within limits on bytes and on time.

    answer = Network().get("https://a.example.com/x", {"User-Agent": …}, max_bytes=…, max_seconds=…)

A name may mean a public address when it is checked and a private one when it is connected to (DNS rebinding); so it is
resolved once, all of its addresses are checked, and one of these is connected to. Proxies of the environment are not
used: they would resolve the name again. Redirects are not followed here. Anything that goes wrong is a NetworkError
with the name of a rule.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from duogen_core.data.net.links import is_private, refusal

CHUNK = 64 * 1024
TRIED = 3  # addresses of a host
TO_CONNECT = 10.0  # seconds, to each of them
QUERY = "/%:@!$&'()*+,;=?~-._[]"  # what may stand in a query as it is

Resolve = Callable[[str, int], Sequence[str]]


class NetworkError(Exception):
    def __init__(self, rule: str, value: str | int = "") -> None:
        super().__init__(f"{rule} {value}")
        self.rule, self.value = rule, value


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes = field(repr=False)
    address: str = ""  # the IP address that answered

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


def is_public(address: str) -> bool:
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return not is_private(address)


class Network:
    """resolve and allowed can be replaced, for tests against servers of one's own."""

    def __init__(self, resolve: Resolve = resolve, allowed: Callable[[str], bool] = is_public) -> None:
        self.resolve, self.allowed = resolve, allowed
        self.open: set[_Pinned] = set()

    def get(self, url: str, headers: Mapping[str, str], max_bytes: int, max_seconds: float) -> Answer:
        if reason := refusal(url):
            raise NetworkError("refused_link", reason)
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        address, connection = self._connect(parts.hostname, port, secure, max_seconds)
        late = threading.Event()

        def end() -> None:
            late.set()
            cut(connection)

        clock = threading.Timer(max_seconds, end)
        clock.daemon = True
        clock.start()
        self.open.add(connection)
        try:
            target = (parts.path or "/") + (f"?{quote(parts.query, safe=QUERY)}" if parts.query else "")
            connection.request("GET", target, headers={**headers, "Accept-Encoding": "identity"})
            response = connection.getresponse()
            body = _body(response, max_bytes)
            if late.is_set():  # what was cut looks whole where only the end of the connection tells
                raise NetworkError("too_slow", max_seconds)
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body, address)
        except (OSError, http.client.HTTPException, ValueError, NetworkError) as error:
            if isinstance(error, NetworkError) and not late.is_set():
                raise
            if late.is_set() or isinstance(error, TimeoutError):
                raise NetworkError("too_slow", max_seconds) from None
            if isinstance(error, ConnectionError):  # reset, or ended before an answer
                raise NetworkError("unreachable", f"{type(error).__name__}: {error}"[:200]) from None
            raise NetworkError("bad_answer", f"{type(error).__name__}: {error}"[:200]) from None
        finally:
            clock.cancel()
            self.open.discard(connection)
            connection.close()

    def _connect(self, host: str, port: int, secure: bool, max_seconds: float) -> tuple[str, _Pinned]:
        try:
            addresses = list(self.resolve(host, port))
        except (OSError, UnicodeError, ValueError):
            raise NetworkError("unresolved", host[:100]) from None
        if not addresses or not all(map(self.allowed, addresses)):
            raise NetworkError("private_address" if addresses else "unresolved", host[:100])
        error: Exception | None = None
        for address in addresses[:TRIED]:
            connection = _Pinned(host, port, address, secure, min(max_seconds, TO_CONNECT))
            try:
                connection.connect()
                connection.sock.settimeout(max_seconds)
                return address, connection
            except ssl.SSLError as problem:
                connection.close()
                raise NetworkError("bad_certificate", str(problem)[:200]) from None
            except OSError as problem:
                connection.close()
                error = problem
        raise NetworkError("unreachable", str(error)[:200])

    def close(self) -> None:
        """Cut every request that is still on its way."""
        for connection in list(self.open):
            cut(connection)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever its name means by now. The certificate must be the name's."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self.address, self.secure = address, secure
        self.wire: socket.socket | None = None  # stays when http.client has let go of its own
        self.default_port = 443 if secure else 80  # left out of the Host header

    def connect(self) -> None:
        self.wire = self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.wire = self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.getheader("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise NetworkError("encoded", response.getheader("Content-Encoding")[:50])  # we asked for none
    stated = response.length  # None where only the end of the connection tells
    if stated is not None and stated > max_bytes:
        raise NetworkError("too_many_bytes", stated)
    pieces, size = [], 0
    while piece := response.read1(CHUNK):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise NetworkError("too_many_bytes", size)
    if stated is not None and size < stated:
        raise NetworkError("cut_off", f"{size} of {stated} bytes")
    return b"".join(pieces)


def cut(connection: _Pinned) -> None:
    """End a request from another thread: whoever reads from it reads its end."""
    with contextlib.suppress(OSError, AttributeError):
        connection.wire.shutdown(socket.SHUT_RDWR)
