"""The one HTTP client: a request -> its Reply, within limits on every wait, on the whole exchange and on bytes.

    HttpClient().get("https://a.example.com/x", {"User-Agent": …}, max_bytes=…, max_seconds=…)     public addresses only
    HttpClient(allowed=any_address).request("POST", url, body, headers, Limits(total=600))           any address

A name may mean a public address when it is checked and a private one when it is connected to (DNS rebinding); so it is
resolved once, all of its addresses are checked, and one of these is connected to, while the certificate must still be
the name's. Redirects are not followed, so headers with a key go to the named host alone; proxies of the environment are
not used, since they would resolve the name again. Anything that goes wrong is a NetworkError with the name of a rule.

The standard library's http.client speaks HTTP. requests, urllib3 and httpx would not make this file shorter: they bound
single waits, not the exchange or the bytes, and resolve names themselves; and huggingface_hub brings httpx in one
version and httpx2 in the next.

Below it, requests to a server that the user names (a language model's endpoint, ComfyUI): any address is allowed, this
machine's own above all, and what goes wrong is a sentence for the user.

    check_address("http://127.0.0.1:8000/v1")
    reply = ask_server("POST", url, body, headers, Limits(read=60), who="The ComfyUI server")
    reply = ask_server(…, on_bytes=feed, watch=stopped)     handed over as it comes; ended within a tenth of a second
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote, urlsplit

from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.net.links import is_private, refusal

CHUNK = 64 * 1024
TRIED = 3  # addresses of a host
TO_CONNECT = 10.0  # seconds, to each of them
LOOKS = 0.05  # seconds between two looks at whether a request is still wanted
QUERY = "/%:@!$&'()*+,;=?~-._[]"  # what may stand in a query as it is

Resolve = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True)
class Limits:
    """Seconds to connect, without a byte, and for the whole exchange; and the most bytes a reply may have."""

    connect: float = 10.0
    read: float = 120.0
    total: float = 600.0
    max_bytes: int = 8 * 2**20


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes = field(repr=False)
    address: str = ""  # the IP address that answered

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


class NetworkError(Exception):
    """Says why there is no reply. rule: a short name, as in a run's log; value: what it was decided by."""

    def __init__(self, rule: str, value: str | int | float = "") -> None:
        super().__init__(f"{rule} {value}")
        self.rule, self.value = rule, value


def resolve(host: str, port: int) -> list[str]:
    """Returns the IP addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


def is_public(address: str) -> bool:
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return not is_private(address)


def any_address(address: str) -> bool:
    """Allows every address: for servers that the user names, which may well be this machine."""
    return True


class HttpClient:
    """Threads may share one. resolve and allowed can be replaced; only public addresses are allowed otherwise."""

    def __init__(self, resolve: Resolve = resolve, allowed: Callable[[str], bool] = is_public) -> None:
        self.resolve, self.allowed = resolve, allowed
        self.open: set[socket.socket] = set()
        self.stopped = False

    def get(self, url: str, headers: Mapping[str, str], max_bytes: int, max_seconds: float) -> Reply:
        """GETs an address that was found in a page, so only a public one."""
        if reason := refusal(url):
            raise NetworkError("refused_link", reason)
        limits = Limits(min(max_seconds, TO_CONNECT), max_seconds, max_seconds, max_bytes)
        return self.request("GET", url, None, headers, limits)

    def request(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        limits: Limits,
        on_bytes: Callable[[bytes], bool] | None = None,
    ) -> Reply:
        """on_bytes: gets the body of a reply of status 200 as it comes; True: that is enough, no more is read."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        address, wire = self._connect(parts.hostname or "", parts.port or (443 if secure else 80), secure, limits)
        connection = http.client.HTTPConnection(parts.hostname, parts.port or (443 if secure else 80))
        connection.default_port = 443 if secure else 80  # left out of the Host header
        connection.sock = wire  # it is connected already, and to an address that was checked
        target = (parts.path or "/") + (f"?{quote(parts.query, safe=QUERY)}" if parts.query else "")
        late = threading.Event()
        try:
            with self._until(wire, limits.total, late):
                fields = {**headers, "Accept-Encoding": "identity", "Connection": "close"}
                connection.request(method, target, body=body, headers=fields)
                response = connection.getresponse()
                data = _body(response, limits.max_bytes, on_bytes if response.status == 200 else None)
            if late.is_set():  # a body without a stated length looks whole when it was cut
                raise NetworkError("too_slow", limits.total)
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, data, address)
        except (OSError, http.client.HTTPException, ValueError, NetworkError) as error:
            if late.is_set():
                raise NetworkError("too_slow", limits.total) from None
            if isinstance(error, NetworkError):
                raise
            if isinstance(error, TimeoutError):
                # Where one wait may take as long as everything, which of the two ended first says nothing.
                silent = limits.read < limits.total
                raise NetworkError(*(("silent", limits.read) if silent else ("too_slow", limits.total))) from None
            # Reset, or ended before an answer: that may pass. Anything else is not HTTP.
            rule = "broke_off" if isinstance(error, ConnectionError) else "bad_answer"
            raise NetworkError(rule, f"{type(error).__name__}: {error}"[:200]) from None
        finally:
            connection.close()
            wire.close()

    def _connect(self, host: str, port: int, secure: bool, limits: Limits) -> tuple[str, socket.socket]:
        try:
            addresses = list(self.resolve(host, port))
        except (OSError, UnicodeError, ValueError):
            raise NetworkError("unresolved", host[:100]) from None
        if not addresses or not all(map(self.allowed, addresses)):
            raise NetworkError("private_address" if addresses else "unresolved", host[:100])
        failed: OSError | None = None
        for address in addresses[:TRIED]:
            wire = None
            try:
                wire = socket.create_connection((address, port), limits.connect)
                if secure:
                    wire = ssl.create_default_context().wrap_socket(wire, server_hostname=host)
                wire.settimeout(limits.read)
                if self.stopped:
                    raise OSError("stopped")
                return address, wire
            except OSError as error:
                if wire is not None:
                    wire.close()
                if isinstance(error, ssl.SSLError):
                    raise NetworkError("bad_certificate", str(error)[:200]) from None
                failed = error
        raise NetworkError("unreachable", (failed.strerror or str(failed) or "no answer")[:200])

    @contextlib.contextmanager
    def _until(self, wire: socket.socket, seconds: float, late: threading.Event) -> Iterator[None]:
        """Cuts the connection when the time is over: a timeout of the socket never ends a server that drips bytes."""

        def end() -> None:
            late.set()
            _cut(wire)

        clock = threading.Timer(seconds, end)
        clock.daemon = True
        clock.start()
        self.open.add(wire)
        if self.stopped:  # since it was connected
            _cut(wire)
        try:
            yield
        finally:
            clock.cancel()
            self.open.discard(wire)

    def close(self) -> None:
        """Cuts every request that is still on its way. Later ones go out as before."""
        for wire in list(self.open):
            _cut(wire)

    def stop(self) -> None:
        """Cuts as well what is only being connected, and lets nothing go out any more."""
        self.stopped = True
        self.close()


def _body(response: http.client.HTTPResponse, max_bytes: int, on_bytes: Callable[[bytes], bool] | None = None) -> bytes:
    coding = response.getheader("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise NetworkError("encoded", coding[:50])  # we asked for none
    stated = response.length  # None where only the end of the connection tells
    if stated is not None and stated > max_bytes:
        raise NetworkError("too_many_bytes", stated)
    pieces, size = [], 0
    while piece := response.read1(CHUNK):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise NetworkError("too_many_bytes", size)
        if on_bytes is not None and on_bytes(piece):
            return b"".join(pieces)
    if stated is not None and size < stated:
        raise NetworkError("cut_off", f"{size} of {stated} bytes")
    return b"".join(pieces)


def _cut(wire: socket.socket) -> None:
    """Ends a request from another thread: its reader meets the end of the stream."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(wire, socket.SHUT_RDWR)  # TLS's own shutdown would race with the reader


# ------------------------------------------------------------ servers that the user names


class EndpointError(DuoGenError):
    """The server could not be reached, or what it sent is no answer.

    again: another attempt may help, after `wait` seconds if the server said so. lasting: but hardly after a moment, as
    nothing answers there at all, or it took all the time there was: where somebody waits, it is not tried.
    """

    def __init__(self, message: str, again: bool = True, wait: float | None = None, lasting: bool = False):
        super().__init__(message)
        self.again, self.wait, self.lasting = again, wait, lasting


def check_address(url: str) -> None:
    """Raises a DuoGenError for what is not the address of a server. A password or key in it is not repeated."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")  # an empty label, or one of more than 63 letters, is no name of a host
    except ValueError:
        good = False
    if "@" in url or "?" in url or "#" in url:
        raise DuoGenError(
            "What is given as the endpoint's address holds a user's name or a query; write it like "
            "http://127.0.0.1:8000/v1, without any key."
        )
    if not good or not url.isascii() or " " in url:
        raise DuoGenError(f"{url[:200]} is not an endpoint's address; write it like http://127.0.0.1:8000/v1.")


def ask_server(
    method: str,
    url: str,
    body: bytes | None,
    headers: Mapping[str, str],
    limits: Limits,
    who: str = "The endpoint",
    on_bytes: Callable[[bytes], bool] | None = None,
    watch: Callable[[], bool] | None = None,
) -> Reply:
    """Returns the reply to one request, whatever its status. `who` is what messages call the server.

    on_bytes: as in `HttpClient.request`. watch: called by the caller's thread every LOOKS seconds; when it says True
    the request is cut, whatever it waits for, and Cancelled is raised. on_bytes is called by another thread then.
    """
    parts = urlsplit(url)
    where = f"{who} {parts.scheme}://{parts.netloc}"
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError:  # check_address refuses such names where people write them
        raise EndpointError(f"{where[:200]} has no host's name; check its address.", again=False) from None
    client = HttpClient(allowed=any_address)
    ask = partial(client.request, method, url, body, headers, limits, on_bytes)
    try:
        return ask() if watch is None else _watched(ask, client, watch)
    except NetworkError as error:
        rule, value = error.rule, error.value
    again = rule not in ("encoded", "too_many_bytes", "bad_certificate")
    raise EndpointError(
        {
            "unresolved": f"{where} cannot be reached (no such host); check its address.",
            "unreachable": f"{where} cannot be reached ({value}); start it or check its address.",
            "bad_certificate": f"{where} has no certificate that is trusted ({value}); check its address.",
            "encoded": f"{where} compressed its answer ({value}) though asked not to.",
            "too_many_bytes": f"{where} sent more than {limits.max_bytes:,} bytes; ask for less or raise max_bytes.",
            "silent": f"{where} sent nothing for {limits.read:g} seconds; raise the read limit or look at the server.",
            "too_slow": f"{where} had not finished after {limits.total:g} seconds; raise the total limit or ask for "
            "less.",
        }.get(rule, f"{where} broke off or does not speak HTTP ({value}); look at the server."),
        again,
        lasting=rule in ("unresolved", "unreachable", "too_slow", "silent"),
    ) from None


def _watched(ask: Callable[[], Reply], client: HttpClient, watch: Callable[[], bool]) -> Reply:
    """Runs a request in a thread of its own, as nothing else ends the wait for a name, a connection or a byte alike."""
    found: list[Reply | BaseException] = []

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            if watch():
                raise Cancelled("The request was stopped.")
            thread.join(LOOKS)
    except BaseException:  # Ctrl-C too, and whatever the caller's own functions raise: nobody waits for it any more
        client.stop()
        raise
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
