"""A client that is closed cuts what is on its way and asks again; one that is stopped sends nothing any more."""

from __future__ import annotations

import pytest

from duogen_core.net.client import HttpClient, Limits, NetworkError, any_address
from tests.core.endpoint_server import completion, endpoint_server


def test_closed_and_stopped():
    client = HttpClient(allowed=any_address)
    with endpoint_server(completion("yes")) as server:
        client.close()
        assert client.request("POST", server.url, b"{}", {}, Limits()).status == 200
        client.stop()
        with pytest.raises(NetworkError, match="unreachable"):
            client.request("POST", server.url, b"{}", {}, Limits())
        assert len(server.asked) == 1


def test_stopped_between_its_connection_and_its_request(monkeypatch):
    client = HttpClient(allowed=any_address)
    connect = client._connect

    def then_stopped(*arguments):
        found = connect(*arguments)
        client.stop()
        return found

    monkeypatch.setattr(client, "_connect", then_stopped)
    with endpoint_server(completion("yes")) as server:
        with pytest.raises(NetworkError):
            client.request("POST", server.url, b"{}", {}, Limits())
        assert not server.asked
