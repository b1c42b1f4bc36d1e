"""data web --fetch: listed pages and missing pictures are fetched once, and then read like any other input."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.data.sources import open_source
from duogen_core.data.web import engine, fetching
from duogen_core.data.web.walker import walk
from duogen_core.net import client
from duogen_core.net.client import HttpClient
from tests.core.web_hosts import html, image, leads, serving
from tests.core.web_pages import file, page, photo, recipe, screenshot, site


@pytest.fixture
def web(monkeypatch):
    with serving() as web:
        monkeypatch.setattr(client, "HttpClient", web.network)
        yield web


def run(*arguments: object) -> int:
    quick = ("--set", "fetch.delay=0.01", "--workers", 1, "--quiet")
    return main(["data", "web", *map(str, (*arguments, *quick))])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in folder.open()]


def documents(out: Path) -> list:
    source = open_source(f"webdataset:{out / 'shards'}")
    return [source.load(index) for index in range(len(source))]


def bread(web) -> None:
    web.pages["a.example.com/bread"] = html(
        recipe("a.png", "http://cdn.example.com:PORT/b.png").replace("PORT", str(web.port))
    )
    web.pages["a.example.com/a.png"] = leads("/real/a.png")
    web.pages["a.example.com/real/a.png"] = image(file(photo(seed=1)))
    web.pages["cdn.example.com/b.png"] = image(file(screenshot(seed=2)))


def test_listed_pages_become_documents_with_their_pictures(web, tmp_path, capsys):
    bread(web)
    web.pages["a.example.com/robots.txt"] = html("User-agent: *\nDisallow: /secret")
    web.pages["a.example.com/doc.pdf"] = (200, {"Content-Type": "application/pdf"}, b"%PDF")
    places = ("a.example.com/bread", "a.example.com/secret", "a.example.com/doc.pdf", "gone.example.com/")
    (tmp_path / "list.txt").write_text("# pages\n" + "\n".join(map(web.url, places)) + "\n\n")
    out = tmp_path / "out"
    assert run(tmp_path / "list.txt", "--out", out, "--fetch", "--max-unreachable", 0.5) == 0
    assert "1 of 4 pages could not be fetched" in capsys.readouterr().out
    (document,) = documents(out)
    assert document.pictures[1].pixels.tolist() == screenshot(seed=2).tolist() and len(document.pictures) == 2
    assert document.pictures[0].meta["url"] == web.url("a.example.com/real/a.png")
    assert document.meta["url"] == web.url("a.example.com/bread") and document.meta["time"].endswith("Z")
    robots = document.meta["robots"]
    assert robots["robots_txt"] == "allowed" and robots["robots_time"].startswith("20")
    rules = {line["url"].rpartition("/")[2]: line.get("rule") for line in lines(out / "fetched" / "pages.jsonl")}
    assert rules == {"bread": None, "secret": "robots_txt", "doc.pdf": "wrong_type", "": "robots_txt"}
    assert "a.example.com/secret" not in web.paths()
    assert main(["data", "stats", str(out)]) == 0
    assert "fetched pages" in capsys.readouterr().out


def test_a_finished_run_fetches_nothing_again(web, tmp_path):
    bread(web)
    (tmp_path / "list.urls").write_text(web.url("a.example.com/bread"))
    run(tmp_path / "list.urls", "--out", tmp_path / "out", "--fetch")
    asked = len(web.asked)
    (tmp_path / "out" / "logs" / "00000.jsonl").unlink()
    tar = (tmp_path / "out" / "shards" / "00000.tar").read_bytes()
    web.pages.clear()
    assert run(tmp_path / "list.urls", "--out", tmp_path / "out", "--fetch") == 0
    assert len(web.asked) == asked and (tmp_path / "out" / "shards" / "00000.tar").read_bytes() == tar
    assert main(["data", "view", str(tmp_path / "out"), "--quiet"]) == 0


def test_fetching_that_was_stopped_goes_on(web, tmp_path, monkeypatch):
    bread(web)
    web.pages["b.example.com/two"] = html(recipe("http://cdn.example.com:PORT/b.png").replace("PORT", str(web.port)))
    (tmp_path / "list.txt").write_text("\n".join(map(web.url, ("a.example.com/bread", "b.example.com/two"))))
    from duogen_core.net.archive import Archive

    add = Archive.add

    def stopping(self, fetched):
        add(self, fetched)
        raise KeyboardInterrupt

    monkeypatch.setattr(Archive, "add", stopping)
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch") == 130
    assert len(lines(tmp_path / "out" / "fetched" / "pages.jsonl")) == 1
    monkeypatch.setattr(Archive, "add", add)
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch") == 0
    assert len(lines(tmp_path / "out" / "fetched" / "pages.jsonl")) == 2
    assert len(documents(tmp_path / "out")) == 2


def test_pictures_that_a_saved_page_lacks_are_fetched_and_others_are_not(web, tmp_path):
    address = f"<!-- saved from url=(0030){web.url('a.example.com/p/bread.html')} -->"
    more = "<nav><img src=nav.png></nav><img src=data:image/png;base64,xx><img src='file:///etc/x.png'>"
    html_ = address + recipe("a.png", "here.png", "noai.png", "page.png").replace("</body>", more + "</body>")
    folder = site(tmp_path / "site", {"p.html": html_, "text.html": page("<p>x")}, {"here.png": file(photo(seed=9))})
    web.pages["a.example.com/p/a.png"] = image(file(photo(seed=1)))
    web.pages["a.example.com/p/noai.png"] = image(file(photo(seed=5)), X_Robots_Tag="noai")
    web.pages["a.example.com/p/page.png"] = html("<p>sorry")
    assert run(folder, "--out", tmp_path / "out", "--fetch") == 0
    (document,) = documents(tmp_path / "out")
    assert [each.meta["url"].rpartition("/")[2] for each in document.pictures] == ["a.png", "here.png"]
    assert sorted(web.paths()) == [f"a.example.com/{x}" for x in ("p/a.png", "p/noai.png", "p/page.png", "robots.txt")]
    rules = [line.get("rule") for line in lines(tmp_path / "out" / "fetched" / "pictures.jsonl")]
    assert sorted(map(str, rules)) == ["None", "robots", "wrong_type"]


def test_a_placeholder_that_is_there_does_not_stand_for_the_picture(web, tmp_path):
    saved = f"<!-- saved from url=(0030){web.url('a.example.com/p/bread.html')} -->"
    late = "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' data-src=a.png><img src=spacer.gif data-big=b.png>"
    html_ = saved + recipe("x").replace("<img src='x'>", late)
    folder = site(tmp_path / "site", {"p.html": html_}, {"spacer.gif": file(photo(2, 2), "GIF")})
    web.pages["a.example.com/p/a.png"] = image(file(photo(seed=1)))
    web.pages["a.example.com/p/b.png"] = image(file(photo(seed=2)))
    assert run(folder, "--out", tmp_path / "out", "--fetch") == 0
    (document,) = documents(tmp_path / "out")
    assert [each.meta["url"].rpartition("/")[2] for each in document.pictures] == ["a.png", "b.png"]


def once(web, place: str, first) -> None:
    """The first answer at a place, and its own from then on."""
    then = web.pages[place]

    def answer(handler) -> None:
        web.pages[place] = then
        status, headers, body = first
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    web.pages[place] = answer


def test_without_a_resolver_nothing_is_done_and_later_all_of_it(web, tmp_path, capsys, monkeypatch):
    bread(web)
    (tmp_path / "list.txt").write_text(web.url("a.example.com/bread"))
    working = web.network

    def down(host: str, port: int) -> list[str]:
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(client, "HttpClient", lambda: HttpClient(down, lambda address: True))
    out = tmp_path / "out"
    assert run(tmp_path / "list.txt", "--out", out, "--fetch") == 2
    told = capsys.readouterr().err
    assert "1 of 1 pages could not be fetched because the network or a host failed (robots_txt unreachable 1" in told
    assert not (out / "run.json").exists() and not (out / "plan.jsonl").exists()
    (line,) = lines(out / "fetched" / "pages.jsonl")
    assert (line["kept"], line["rule"], line["may_pass"]) == (False, "robots_txt", True)
    monkeypatch.setattr(client, "HttpClient", working)
    assert run(tmp_path / "list.txt", "--out", out, "--fetch") == 0
    assert len(documents(out)) == 1 and len(lines(out / "fetched" / "pages.jsonl")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, b""),
        (503, {"Retry-After": "0"}, b""),
        (429, {"Retry-After": "0"}, b""),
        (200, {"Content-Length": "99", "Content-Type": "text/html"}, b"cut"),
        "unresolved",
        "unreachable",
        "too_slow",
        "reset",
        "robots",
    ],
)
def test_faults_that_pass_are_asked_for_again(web, tmp_path, monkeypatch, fault):
    bread(web)
    (tmp_path / "list.txt").write_text(web.url("a.example.com/bread"))
    good = web.pages["a.example.com/bread"]
    failing = [True]
    if fault == "robots":
        web.pages["a.example.com/robots.txt"] = (500, {}, b"")
    elif isinstance(fault, tuple):
        web.pages["a.example.com/bread"] = fault
    else:
        web.pages["a.example.com/robots.txt"] = (404, {}, b"")
        working = web.network

        def made() -> HttpClient:
            made = working()
            get = made.get

            def answer(url, *rest):
                if failing[0] and "bread" in url:
                    raise client.NetworkError({"reset": "unreachable"}.get(fault, fault), "a fault")
                return get(url, *rest)

            made.get = answer
            return made

        monkeypatch.setattr(client, "HttpClient", made)
    command = (tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch", "--set", "fetch.max_delay=0.01")
    assert run(*command) == 2
    asked = len(web.asked)
    assert run(*command) == 2 and (len(web.asked) > asked or not isinstance(fault, tuple))
    failing[0], web.pages["a.example.com/bread"] = False, good
    web.pages.pop("a.example.com/robots.txt", None)
    assert run(*command) == 0 and len(documents(tmp_path / "out")) == 1


def test_a_host_that_failed_once_is_asked_again_before_the_run_is_planned(web, tmp_path):
    bread(web)
    once(web, "a.example.com/bread", (500, {}, b""))
    once(web, "cdn.example.com/b.png", (502, {}, b""))
    (tmp_path / "list.txt").write_text(web.url("a.example.com/bread"))
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch") == 0
    (document,) = documents(tmp_path / "out")
    assert len(document.pictures) == 2


def test_pages_that_came_later_are_in_the_run(web, tmp_path):
    """The pages of the first start are indexed when its pictures fail; that of the second must be there too."""
    bread(web)
    there = dict(web.pages)
    for place in ("a.example.com/real/a.png", "cdn.example.com/b.png", "b.example.com/two"):
        web.pages[place] = (503, {}, b"")
    (tmp_path / "list.txt").write_text("\n".join(map(web.url, ("a.example.com/bread", "b.example.com/two"))))
    command = (tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch", "--max-unreachable", 0.5)
    assert run(*command) == 2
    assert (tmp_path / "out" / "index" / "000.sqlite").exists()
    web.pages.update(there)
    web.pages["b.example.com/two"] = html(recipe("http://cdn.example.com:PORT/b.png").replace("PORT", str(web.port)))
    assert run(*command) == 0
    assert [len(document.pictures) for document in documents(tmp_path / "out")] == [2, 1]


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_a_share_is_from_0_to_1(tmp_path, share, capsys):
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch", "--max-unreachable", share) == 2
    assert "expected a share from 0 to 1" in capsys.readouterr().err


def failing_at(address: str, error: Exception, monkeypatch) -> None:
    """The walker fails on every page in which the address stands, when fetching looks at it and when the run does."""

    def walked(html: str, *limits: int):
        if address in html:
            raise error
        return walk(html, *limits)

    monkeypatch.setattr(fetching, "walk", walked)
    monkeypatch.setattr(engine, "walk", walked)


def two_pages(web, tmp_path) -> Path:
    saved = f"<!-- saved from url=(0030){web.url('a.example.com/p/x.html')} -->"
    web.pages["a.example.com/p/a.png"] = image(file(photo(seed=1)))
    return site(tmp_path / "site", {"bad.html": saved + recipe("b.png"), "good.html": saved + recipe("a.png")}, {})


def test_a_page_that_fails_while_fetching_is_named_by_the_run_and_the_others_are_fetched(web, tmp_path, monkeypatch):
    failing_at("b.png", RuntimeError("a fault in the walker"), monkeypatch)
    assert run(two_pages(web, tmp_path), "--out", tmp_path / "out", "--fetch") == 0
    assert sorted(web.paths()) == ["a.example.com/p/a.png", "a.example.com/robots.txt"]
    logged = "".join(path.read_text("utf-8") for path in (tmp_path / "out" / "logs").iterdir())
    assert "RuntimeError: a fault in the walker" in logged and len(documents(tmp_path / "out")) == 1


def test_a_machine_that_gives_out_while_fetching_stops_the_run(web, tmp_path, monkeypatch, capsys):
    failing_at("b.png", OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    assert run(two_pages(web, tmp_path), "--out", tmp_path / "out", "--fetch") == 2
    assert "This machine failed at the page bad.html (No space left on device)" in capsys.readouterr().err
    assert web.asked == []


def test_without_fetch_nothing_is_asked_for(web, tmp_path, capsys):
    bread(web)
    (tmp_path / "list.txt").write_text(web.url("a.example.com/bread"))
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out") == 2
    assert "only with --fetch" in capsys.readouterr().err
    html_ = f"<!-- saved from url=(0030){web.url('a.example.com/bread')} -->" + recipe("a.png")
    assert run(site(tmp_path / "site", {"p.html": html_}, {}), "--out", tmp_path / "out") == 0
    assert web.asked == []


@pytest.mark.parametrize(
    "line", ["file:///etc/passwd", "http://127.0.0.1/", "a.example.com/x", "http://u:p@a.example.com/"]
)
def test_lists_with_other_addresses_get_a_sentence(web, tmp_path, capsys, line):
    (tmp_path / "list.txt").write_text(f"# one\n{line}\n")
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch") == 2
    assert "list.txt, line 2" in capsys.readouterr().err and not web.asked


def test_another_list_in_the_same_folder_is_refused(web, tmp_path, capsys):
    bread(web)
    (tmp_path / "list.txt").write_text(web.url("a.example.com/bread"))
    run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch")
    (tmp_path / "list.txt").write_text(web.url("a.example.com/other"))
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out", "--fetch") == 2
    assert "other values of fetch" in capsys.readouterr().err
