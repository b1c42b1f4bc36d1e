"""Requests to a server that the user names (a language model's endpoint, ComfyUI): what goes wrong is a sentence.

    check_address("http://127.0.0.1:8000/v1")
    reply = ask_server("POST", url, body, headers, Limits(read=60), who="The ComfyUI server")

Any address is allowed, this machine's own above all, and no redirect is followed (`client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from duogen_core.data.net.client import HttpClient, Limits, NetworkError, Reply, any_address
from duogen_core.errors import DuoGenError


class EndpointError(DuoGenError):
    """The server could not be reached, or what it sent is no answer. `again`: another attempt may help."""

    def __init__(self, message: str, again: bool = True, wait: float | None = None):
        super().__init__(message)
        self.again = again
        self.wait = wait


def check_address(url: str) -> None:
    """Raises a DuoGenError for what is not the address of a server."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")  # an empty label, or one of more than 63 letters, is no name of a host
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username or not url.isascii() or " " in url:
        raise DuoGenError(f"{url[:200]} is not an endpoint's address; write it like http://127.0.0.1:8000/v1.")


def ask_server(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], limits: Limits, who: str = "The endpoint"
) -> Reply:
    """Returns the reply to one request, whatever its status. `who` is what messages call the server."""
    parts = urlsplit(url)
    where = f"{who} {parts.scheme}://{parts.netloc}"
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError:  # check_address refuses such names where people write them
        raise EndpointError(f"{where[:200]} has no host's name; check its address.", again=False) from None
    try:
        return HttpClient(allowed=any_address).request(method, url, body, headers, limits)
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
    ) from None
