"""The families of hostile servers: endpoints of models, ComfyUI as a painter, hosts of the web. All are on loopback.

As in `hostile_inputs.py`, whose FAMILIES these join: the first cases are listed, the rest come from generators.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from contextlib import ExitStack
from typing import Any

from tests.hardening import mutations
from tests.hardening.hostile import Box, Case, Family
from tests.hardening.hostile_inputs import encoded

# ---------------------------------------------------------------- models behind endpoints


def reply(rng: random.Random, k: int, good: Any) -> Any:
    """What a server says in place of a model's answer, which would be `good` as JSON."""
    from tests.core.endpoint_server import completion, raw, refusing

    listed: list[Any] = [
        b"", b"null", b"[]", b"{}", b"<html>", b"\xff" * 100, b"[" * 50_000, b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": "", "reasoning": "hm"}}]}',
        b'{"error": "no"}', b'{"error": {"message": "\\u001b[31mno"}}', completion(""), completion("x" * 3_000_000),
        completion("```json\n" + json.dumps(good) + "\n```"), completion("[" * 20_000), completion('{"a":' * 5000),
        completion(json.dumps(good), finish_reason="length"), completion(json.dumps(good),
        usage={"prompt_tokens": "many"}),
        completion(json.dumps(good), usage={"prompt_tokens": -5, "completion_tokens": 10**300}),
        raw(b""), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}"), raw(b"\0" * 3000),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000), raw(b"HTTP/1.1 999 \xff\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"),
        raw(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
        refusing(400), refusing(401), refusing(404), refusing(418, "\x1b[2Jgone\n" * 50), refusing(500), refusing(503),
    ]  # fmt: skip
    if k < len(listed):
        return listed[k]
    changed = json.dumps(mutations.mutated(good, rng, rng.choice((1, 2))))
    return completion(changed) if k % 3 else mutations.flipped(completion(json.dumps(good)), rng)


PLAN = {
    "steps": [{"text": "Fold the sheet in half along its long side.", "picture": "A sheet of paper, folded."}] * 3,
    "closing": "Done.",
}


def answer(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """To requests and plans."""
    from tests.core.endpoint_server import endpoint_server
    from tests.core.synthetic_writer import write_taxonomy

    server = stack.enter_context(endpoint_server(reply(rng, k, PLAN)))
    taxonomy = write_taxonomy(box.input / "taxonomy")
    step = ("plan", "expand")[k % 2]
    command = ["data", "synthetic", step, box.out, "--endpoint", server.url, "--llm", "tiny", "--taxonomy", taxonomy]
    command += ["--limit", 1] if step == "plan" else ["--count", 2]
    return Case([*command, "--parallel", 1, "--timeout", 3, "--answers", 2, "--quiet"], hosts=("127.0.0.1", str(k)))


def description(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """To pictures of pages and of videos, which are described; half of the answers are right, and one is not."""
    from tests.core.clips import scene, write_video
    from tests.core.data.pairs.test_video_run import SAID
    from tests.core.dialogue_pages import write_pages
    from tests.core.endpoint_server import completion, endpoint_server
    from tests.core.scripted_writer import Writer

    if k % 2:
        film = box.shared / "seen.mp4"
        if not film.exists():
            write_video(film, scene(1, 20))
        shutil.copy(film, box.input / "a.mp4")
        server = stack.enter_context(endpoint_server(reply(rng, k // 2, SAID), completion(json.dumps(SAID))))
        command = ["data", "video", box.input, "--workers", 1]
    else:
        write_pages(box.input / "pages", 2)
        server = stack.enter_context(
            endpoint_server(*[Writer()] * rng.choice((0, 1, 4)), reply(rng, k // 2, SAID), Writer())
        )
        command = ["data", "dialogues", box.input / "pages", "--parallel", 1]
    command += ["--endpoint", server.url, "--llm", "tiny", "--timeout", 3, "--answers", 2, "--out", box.out, "--quiet"]
    return Case(command, hosts=("127.0.0.1", str(k)), programs=True)


def address(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Where the endpoint is said to be."""
    listed = [
        "", "x", "http://", "http:///v1", "http://a..b/", "http://" + "a" * 300 + "/", "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://127.0.0.1:99999/", "http://127.0.0.1:-1/", "http://127.0.0.1:x/", "http://[::1",
        "http://127.0.0.1:9/v1\r\nX: y",
        "http://user:secret@127.0.0.1:9/", "http://\x00/", "javascript:alert(1)", "http://127.0.0.1:9/\u202e",
        "//127.0.0.1:9",
        "http://127.0.0.1:9/v1?x=1#y", "http://١٢٧.0.0.1/", "HTTP://127.0.0.1:9",
    ]  # fmt: skip
    text = listed[k % len(listed)] + ("" if k < len(listed) else rng.choice(mutations.NAMES))
    text = text.replace("\x00", "%00" if k >= len(listed) else "").encode("utf-8", "replace").decode()
    command = ["data", "synthetic", "plan", box.out, "--endpoint", text, "--llm", "x", "--limit", 1, "--timeout", 1]
    return Case([*command, "--answers", 1, "--quiet"], (2, 0), hosts=("127.0.0.1", "localhost", "::1", f"case {k}"))


# ---------------------------------------------------------------- painters


def workflow(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """A workflow of ComfyUI that is to draw: its JSON."""
    from tests.core.comfyui_server import comfyui_server, drawn
    from tests.core.data.synthetic.test_draw import NODES
    from tests.core.synthetic_plans import write_plans

    server = stack.enter_context(comfyui_server(drawn))
    path = box.input / "text.json"
    path.write_bytes(
        mutations.json_bytes(mutations.mutated(NODES, rng) if k else NODES, rng) if k else json.dumps(NODES).encode()
    )
    box.out.parent.mkdir(exist_ok=True)
    write_plans(box.out)
    command = ["data", "synthetic", "draw", box.out, "--painter", "comfyui", "--server", server.url, "--workflow", path]
    return Case([*command, "--timeout", 5, "--give-up", 2, "--quiet"], hosts=("127.0.0.1", str(k)), programs=True)


def painter(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """What a ComfyUI says to what a painter asks."""
    from tests.core.comfyui_server import comfyui_server, drawn, history_of
    from tests.core.data.synthetic.test_draw import NODES
    from tests.core.synthetic_plans import write_plans

    png = encoded("PNG", 96, 64)
    image = {"filename": "a.png", "subfolder": "", "type": "temp"}
    texts = [
        b"", b"null", b"[]", b"{}", b"<html>", b"\xff" * 50, b"[" * 50_000, b'{"a":' * 5000, b"1e999", b'"x"',
        {"prompt_id": None}, {"prompt_id": "../../x"}, {"prompt_id": ["a"]}, {"prompt_id": "\x1b[31m" * 500},
        {"error": {"message": "\x1b[2Jno\n" * 200}, "node_errors": {}}, {"error": "no"}, {"node_errors": {"1": "x"}},
    ]  # fmt: skip
    outputs = [
        {}, None, [], {"9": None}, {"9": {"images": None}}, {"9": {"images": [None]}}, {"9": {"images": [{}]}},
        {"9": {"images": [{**image, "filename": "../../../etc/passwd"}]}}, {"9": {"images": [image] * 3000}},
        {"9": {"images": [{**image, "type": "file:///"}]}}, {"9": {"images": [{**image, "subfolder": "\r\nX: y"}]}},
    ]  # fmt: skip
    pictures = [
        b"", b"no picture", png[:40], encoded("GIF"), encoded("PNG", 1, 1), encoded("PNG", 8, 6000),
        mutations.png_of([(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IEND", b"")]),
        mutations.png_mutated(png, rng), mutations.png_mutated(png, rng), mutations.flipped(png, rng),
    ]  # fmt: skip
    status = rng.choice((200, 200, 200, 400, 500, 404, 302))
    which = k % 4
    if which == 0:
        value = texts[k // 4] if k // 4 < len(texts) else mutations.mutated({"prompt_id": "a", "node_errors": {}}, rng)
        answers = {"prompt": lambda handler: (status, value)}
    elif which == 1:
        found = outputs[k // 4] if k // 4 < len(outputs) else mutations.mutated({"9": {"images": [image]}}, rng)
        answers = {"history": lambda handler: history_of(handler, found), "view": lambda handler: (200, png)}
    elif which == 2:
        answers = {"view": lambda handler: (status, rng.choice(pictures))}
    else:
        value = rng.choice((*texts, mutations.value(rng)))
        answers = {rng.choice(("queue", "history", "interrupt")): lambda handler: (status, value)}
    server = stack.enter_context(comfyui_server(drawn, **answers))
    path = box.input / "text.json"
    path.write_text(json.dumps(NODES))
    write_plans(box.out)
    command = ["data", "synthetic", "draw", box.out, "--painter", "comfyui", "--server", server.url, "--workflow", path]
    command += ["--timeout", 3, "--give-up", 2, "--quiet"]
    if not k:
        server.answers.clear()
    return Case(command, (0, 2) if k else (0,), hosts=("127.0.0.1", str(k)), programs=True)


# ---------------------------------------------------------------- hosts of the web


def host(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """What hosts send in place of pages, pictures and robots.txt to `data web --fetch`."""
    from tests.core.web_hosts import html, image, leads, serving
    from tests.core.web_pages import file, photo, recipe

    web = stack.enter_context(serving())
    good = file(photo(seed=1))

    def raw(data: bytes) -> Any:
        return lambda handler: handler.wfile.write(data)

    def told(status: int, **headers: str) -> Any:
        return lambda handler: send(handler, status, headers)

    def send(handler: Any, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(b"x")

    listed = [
        raw(b""), raw(b"\0" * 5000), raw(b"HTTP/1.1 999 \xff\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX: \x1b[31m\r\n folded\r\n\r\n<p>x"),
        leads("/p.html"), leads("file:///etc/passwd"), leads("http://127.0.0.1:9/"), leads("http://[::1]/"),
        leads("http://a..b/"), leads("//" + "a" * 5000), leads("\u202e".encode().decode("latin-1")), leads(""),
        leads("http://user:secret@a.example.com/"), leads("javascript:alert(1)"), leads("data:text/html,x"),
        told(304), told(204), told(101), told(206, Content_Range="bytes 5-1/x"), told(429, Retry_After="-1"),
        told(503, Retry_After="Fri, 99 Foo 2026"), told(401, WWW_Authenticate="Basic realm=x"), told(418),
        html("<p>x", Content_Type="text/html; charset=" + "x" * 3000), html(b"\xff\xfe" * 5000), html("", Refresh="0"),
        image(good[:50]), image(good, Content_Type="image/svg+xml"), image(b"\0" * 3_000_000), image(good),
    ]  # fmt: skip
    hostile = listed[k] if k < len(listed) else raw(
        mutations.flipped(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 900\r\n\r\n"
                          + recipe("a.png", "b.png").encode(), rng, 12))  # fmt: skip
    page = html(recipe("a.png", "b.png"))
    web.pages = {"a.example.com/p.html": page, "a.example.com/a.png": image(good), "a.example.com/b.png": image(good)}
    web.pages["a.example.com/robots.txt"] = (404, {}, b"")
    if k:
        web.pages[f"a.example.com/{rng.choice(('p.html', 'p.html', 'a.png', 'robots.txt'))}"] = hostile
    (box.input / "pages.txt").write_text(web.url("a.example.com/p.html") + "\n")
    command = ["data", "web", box.input / "pages.txt", "--out", box.out, "--fetch", "--workers", 1, "--quiet"]
    for rule in ("contact=https://example.org/bot", "delay=0.01", "max_seconds=2"):
        command += ["--set", f"fetch.{rule}"]
    return Case(
        command, hosts=("127.0.0.1", str(k)), programs=True, module="tests.hardening.hostile_servers:on_loopback"
    )


def on_loopback(arguments: list[str]) -> int:
    """The command line; every host of the web is 127.0.0.1."""
    from duogen_core.net import client
    from tests.hardening.hostile import without_pauses

    real = client.HttpClient
    client.HttpClient = lambda: real(lambda name, port: ["127.0.0.1"], lambda address: address == "127.0.0.1")
    return without_pauses(arguments)


SERVERS: dict[str, tuple[Family, int]] = {
    "endpoint answers": (answer, 4), "descriptions": (description, 3), "endpoint addresses": (address, 2),
    "workflows": (workflow, 2), "painters": (painter, 3), "hosts of the web": (host, 3),
}  # fmt: skip
