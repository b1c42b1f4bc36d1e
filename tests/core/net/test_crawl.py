"""Fetching: public addresses only, pinned; caps; redirects; robots.txt; one request to a host at a time; resuming."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from itertools import pairwise

import pytest

from duogen_core.data.runs.presets import load_preset
from duogen_core.errors import DuoGenError
from duogen_core.net.archive import Archive
from duogen_core.net.client import HttpClient, is_public
from duogen_core.net.crawl import Fetched, Fetcher, crawl, user_agent
from tests.core.web_hosts import Web, html, leads, rule_of, serving

CAP = 10_000


@pytest.fixture
def web():
    with serving() as web:
        yield web


def fetcher(web: Web, *settings: str, network: HttpClient | None = None) -> Fetcher:
    quick = ["fetch.delay=0.01", "fetch.max_seconds=60", *settings]
    return Fetcher(load_preset("web", settings=quick).fetch, network or web.network())


# ---------------------------------------------------------------- one request


def test_only_public_addresses(web):
    """The system's own resolver and check: this very server must not be reached, by any name or number."""
    network = HttpClient()
    for url in (web.url("127.0.0.1/"), web.url("localhost/"), f"http://[::1]:{web.port}/"):
        assert rule_of(lambda url=url: network.get(url, {}, CAP, 60)) == "refused_link"
    to_us = HttpClient(resolve=lambda host, port: ["127.0.0.1"])
    assert rule_of(lambda: to_us.get(web.url("a.example.com/"), {}, CAP, 60)) == "private_address"
    assert web.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1",
     "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "no address"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("8.8.8.8") and is_public("2001:4860:4860::8888")


def test_one_private_address_among_a_host_s_is_enough(web):
    web.names["a.example.com"] = ["127.0.0.1", "10.0.0.1"]
    assert rule_of(lambda: web.network().get(web.url("a.example.com/"), {}, CAP, 60)) == "private_address"


def test_the_address_that_was_checked_is_the_one_connected_to(web):
    """DNS rebinding: the second answer of the resolver would be private; it is not asked twice."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    web.pages["a.example.com/"] = html("fine")
    network = HttpClient(lambda host, port: next(answers), lambda address: address == "127.0.0.1")
    answer = network.get(web.url("a.example.com/"), {}, CAP, 60)
    assert (answer.body, answer.address) == (b"fine", "127.0.0.1")
    assert next(answers) == ["10.0.0.1"]
    assert web.asked[0][0] == "a.example.com"  # the name, though the address was connected to


DRIPS = 10_000  # a tenth of a second apart: nothing waits for all of them
patient: list[str] = []  # servers that could write all they had


def drip(handler) -> None:
    for _ in range(DRIPS):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)
    patient.append(handler.path)


def slow(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    drip(handler)


def dripping_headers(handler) -> None:
    drip(handler)


def without_end(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(bytes(10_000))
    patient.append(handler.path)


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        (html(b"x" * 10_000), ""),
        (html(b"x" * 10_001), "too_many_bytes"),
        (html("short", Content_Length="99999999"), "too_many_bytes"),
        (without_end, "too_many_bytes"),
        (slow, "too_slow"),
        (dripping_headers, "too_slow"),
        (html("cut off", Content_Length="100"), "cut_off"),
        (lambda handler: handler.wfile.write(b"\x16\x03\x01 not http\r\n\r\n"), "bad_answer"),
        (html(b"\x1f\x8b", Content_Encoding="gzip"), "encoded"),
    ],
)
def test_caps_on_bytes_and_time(web, reply, rule):
    web.pages["a.example.com/"] = reply
    seconds = 1 if rule == "too_slow" else 60
    assert rule_of(lambda: web.network().get(web.url("a.example.com/"), {}, CAP, seconds)) == rule
    while not web.times:  # until the server knows that nobody listens any more
        time.sleep(0.01)
    assert not patient


def test_hosts_that_are_not_there(web):
    assert rule_of(lambda: web.network().get("http://gone.example.com/", {}, CAP, 60)) == "unresolved"
    assert rule_of(lambda: web.network().get("http://a.example.com:1/", {}, CAP, 60)) == "unreachable"
    assert rule_of(lambda: web.network().get(f"https://a.example.com:{web.port}/", {}, CAP, 60)) == "bad_certificate"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_the_certificate_must_be_that_of_the_name(tmp_path, monkeypatch):
    """Though the connection goes to an address, it is the name that is checked, by certificates that are trusted."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += [
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=a.example.com",
        "-addext",
        "subjectAltName=DNS:a.example.com",
    ]
    subprocess.run(list(map(str, made)), check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    with serving(server) as web:
        web.pages["a.example.com/"] = web.pages["b.example.com/"] = html("secret")

        def get(host: str) -> object:
            return web.network().get(f"https://{host}:{web.port}/", {}, CAP, 60)

        assert rule_of(lambda: get("a.example.com")) == "bad_certificate"  # by nobody that is trusted
        real = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda: real(cafile=str(certificate)))
        assert get("a.example.com").body == b"secret"
        assert rule_of(lambda: get("b.example.com")) == "bad_certificate"


# ---------------------------------------------------------------- robots, redirects, patience


def test_who_asks_says_so(web):
    web.pages["a.example.com/x?q=ä"] = html("x")
    fetcher(web, "fetch.contact=https://me.example.org/bot").fetch(web.url("a.example.com/x?q=%C3%A4"), CAP)
    assert web.paths() == ["a.example.com/robots.txt", "a.example.com/x?q=%C3%A4"]
    assert all(each[2]["User-Agent"].startswith("DuoGen/") for each in web.asked)
    assert web.asked[0][2]["User-Agent"].endswith("(+https://me.example.org/bot)")
    for agent, contact in (("", ""), ("Duo Gen", ""), ("DuoGen", "a\r\nX: y")):
        with pytest.raises(DuoGenError, match="expected plain words"):
            user_agent(agent, contact)


@pytest.mark.parametrize(
    ("robots", "path", "rule"),
    [
        (html("User-agent: *\nDisallow: /private/"), "public/x", ""),
        (html("User-agent: *\nDisallow: /private/"), "private/x", "robots_txt"),
        (html("User-agent: *\nDisallow: /\n\nUser-agent: duogen\nAllow: /"), "x", ""),
        (html("User-agent: DuoGen\nDisallow: /"), "x", "robots_txt"),
        (html("User-agent: *\nDisallow: /\nAllow: /open/"), "open/x", ""),
        (html("User-agent: *\nDisallow: /*.png$"), "x.png", "robots_txt"),
        ((404, {}, b""), "x", ""),
        ((500, {}, b""), "x", "robots_txt"),
        (html(b"x" * 600_000), "x", "robots_txt"),
    ],
)
def test_robots_txt(web, robots, path, rule):
    web.pages["a.example.com/robots.txt"] = robots
    web.pages[f"a.example.com/{path}"] = html("x")
    fetched = fetcher(web).fetch(web.url(f"a.example.com/{path}"), CAP)
    assert fetched.rule == rule
    assert (f"a.example.com/{path}" in web.paths()) == (rule == "")
    if not rule:
        assert fetched.hops[0].robots == "allowed" and fetched.hops[0].robots_time.endswith("Z")


def test_redirects_are_checked_one_by_one(web):
    web.pages["a.example.com/x"] = leads(web.url("b.example.com/y"))
    web.pages["b.example.com/y"] = html("here")
    fetched = fetcher(web).fetch(web.url("a.example.com/x"), CAP)
    assert [hop.answer.status for hop in fetched.hops] == [302, 200] and not fetched.rule
    assert web.paths().count("b.example.com/robots.txt") == 1


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("http://127.0.0.1/", "refused_link"),
        ("http://169.254.169.254/latest/", "refused_link"),
        ("file:///etc/passwd", "refused_link"),
        ("http://inside.example.com/", "private_address"),
        ("http://gone.example.com/", "robots_txt"),  # its robots.txt cannot be asked for
        ("b.example.com/forbidden", "robots_txt"),
        ("a.example.com/x", "too_many_redirects"),
    ],
)
def test_redirects_that_are_not_followed(web, target, rule):
    web.names["inside.example.com"] = ["10.0.0.1"]
    web.pages["b.example.com/robots.txt"] = html("User-agent: *\nDisallow: /forbidden")
    web.pages["a.example.com/x"] = leads(target if ":" in target else web.url(target))
    fetched = fetcher(web).fetch(web.url("a.example.com/x"), CAP)
    assert fetched.rule == ("robots_txt" if rule == "private_address" else rule)
    assert not {"inside.example.com", "127.0.0.1"} & {host for host, _, _ in web.asked}
    assert fetched.hops and fetched.hops[-1].answer.status == 302


def test_a_busy_host_is_asked_again_once(web):
    answers = iter([(503, {"Retry-After": "0"}, b""), html("now")[0:3]])

    def busy(handler) -> None:
        status, headers, body = next(answers)
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    web.pages["a.example.com/x"] = busy
    assert fetcher(web).fetch(web.url("a.example.com/x"), CAP).hops[0].answer.body == b"now"
    web.pages["a.example.com/y"] = (503, {}, b"")
    fetched = fetcher(web).fetch(web.url("a.example.com/y"), CAP)
    assert (fetched.rule, fetched.value) == ("status", 503)


# ---------------------------------------------------------------- many


def take(web: Web, places: list[tuple[str, ...]], asked: Fetcher, done: dict[str, bool] | None = None) -> list[Fetched]:
    wanted = [tuple(web.url(place) for place in each) for each in places]
    return list(crawl(wanted, asked, 4, CAP, lambda fetched: fetched, {} if done is None else done))


def test_one_request_to_a_host_at_a_time_with_a_pause(web):
    class Timed(HttpClient):
        """Measured where the pause is kept: a server on a busy machine may take note late."""

        spans: list[tuple[float, float]] = []

        def get(self, url, *rest):
            begun = time.monotonic()
            answer = super().get(url, *rest)
            self.spans.append((begun, time.monotonic()))
            return answer

    places = [(f"a.example.com/{k}",) for k in range(4)]
    web.pages.update({place: html("x") for (place,) in places})
    network = Timed(lambda host, port: ["127.0.0.1"], lambda address: True)
    assert len(take(web, places, fetcher(web, "fetch.delay=0.1", network=network))) == 4
    assert len(Timed.spans) == 5
    assert all(after[0] - before[1] >= 0.099 for before, after in pairwise(sorted(Timed.spans)))


def test_several_hosts_at_once(web):
    together = threading.Barrier(4, timeout=60)

    def waiting(handler) -> None:
        together.wait()  # for the requests to the three other hosts
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    places = [(f"{name}.example.com/x",) for name in "abcd"]
    web.pages.update({place: waiting for (place,) in places})
    fetched = take(web, places, fetcher(web, "fetch.max_seconds=120"))
    assert [each.rule for each in fetched] == [""] * 4 and not together.broken


def test_the_next_address_is_tried_and_none_is_asked_twice(web):
    web.pages["a.example.com/b"] = html("b")
    done: dict[str, bool] = {}
    places = [("a.example.com/a", "a.example.com/b", "a.example.com/c"), ("a.example.com/b",), ("a.example.com/a",)]
    fetched = take(web, places, fetcher(web), done)
    assert [each.rule for each in fetched] == ["status", ""]
    assert web.paths() == ["a.example.com/robots.txt", "a.example.com/a", "a.example.com/b"]
    assert list(done.values()) == [False, True]


def test_a_host_that_is_down_is_left_alone(web):
    places = [(f"a.example.com/{k}",) for k in range(8)]
    wanted = [(f"http://a.example.com:1/{k}",) for k in range(8)]
    found = list(crawl(wanted, fetcher(web), 2, CAP, lambda fetched: fetched, {}))
    assert {each.rule for each in found} == {"robots_txt"} and len(found) == len(places)  # unreachable, asked once


# ---------------------------------------------------------------- what is kept


def test_an_archive_goes_on_after_a_kill(web, tmp_path):
    web.pages["a.example.com/x"] = leads("/y")
    web.pages["a.example.com/y"] = html("y", X_Robots_Tag="noai")
    web.pages["a.example.com/z"] = html("z")
    asked = fetcher(web)
    with Archive(tmp_path, "pages") as archive:
        archive.add(asked.fetch(web.url("a.example.com/x"), CAP))
        archive.add(asked.fetch(web.url("a.example.com/none"), CAP))
    lines = [json.loads(line) for line in (tmp_path / "pages.jsonl").open()]
    assert [(line["kept"], line.get("rule"), line["status"]) for line in lines] == [
        (True, None, 200),
        (False, "status", 404),
    ]
    assert lines[0]["from"].endswith("/y") and lines[0]["robots_txt"] == "allowed"
    whole = (tmp_path / "pages.warc.gz").read_bytes()
    assert lines[1]["end"] == len(whole)
    with (tmp_path / "pages.warc.gz").open("ab") as stream:
        stream.write(b"half a record")
    with (tmp_path / "pages.jsonl").open("ab") as stream:
        stream.write(b'{"url": "http://a.exam')
    with Archive(tmp_path, "pages") as archive:
        assert archive.done == {web.url("a.example.com/x"): True, web.url("a.example.com/none"): False}
        assert (tmp_path / "pages.warc.gz").read_bytes() == whole
        archive.add(asked.fetch(web.url("a.example.com/z"), CAP))
    from warcio.archiveiterator import ArchiveIterator

    with (tmp_path / "pages.warc.gz").open("rb") as stream:
        records = [
            (record.rec_type, record.rec_headers.get_header("WARC-Target-URI") or "", record.content_stream().read())
            for record in ArchiveIterator(stream)
        ]
    assert [(kind, url.rpartition("/")[2], body) for kind, url, body in records[1:]] == [
        ("response", "x", b""),
        ("response", "y", b"y"),
        ("response", "z", b"z"),
    ]
    (tmp_path / "pages.warc.gz").write_bytes(whole[:50])
    with pytest.raises(DuoGenError, match="shorter than its log says"):
        Archive(tmp_path, "pages")


def test_what_is_refused_leaves_no_body(web, tmp_path):
    web.pages["a.example.com/x"] = (404, {}, b"a secret page")
    with Archive(tmp_path, "pages") as archive:
        archive.add(fetcher(web).fetch(web.url("a.example.com/x"), CAP))
    import gzip

    assert b"a secret page" not in gzip.decompress((tmp_path / "pages.warc.gz").read_bytes())
