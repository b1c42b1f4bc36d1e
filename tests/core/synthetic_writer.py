"""A language model for tests of the synthetic engine: a function of the request's body, in a Client or behind HTTP."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from duogen_core.llm.answers import Answer, Recording
from duogen_core.llm.client import Client, Endpoint
from tests.core.endpoint_server import completion

ADJECTIVES = (
    "amber",
    "brisk", "copper", "dusty", "eager", "fragile", "gentle", "hollow",
    "ivory", "jolly", "keen", "lucid", "mellow", "nimble", "ornate",
)  # fmt: skip
NOUNS = (
    "anchor",
    "basket", "candle", "dragon", "ember", "falcon", "garland", "hammer",
    "island", "jigsaw", "kettle", "lantern", "marble", "needle", "oyster",
)  # fmt: skip
VERBS = (
    "assemble",
    "balance", "compare", "decorate", "explore", "fasten", "gather", "harvest",
    "imagine", "juggle", "knead", "launch", "measure",
)  # fmt: skip
TAXONOMY = {
    "Knots": {"Loops": "Show me how to tie a bowline, with a picture of every turn of the rope.",
              "Hitches": "Draw three ways to moor a small boat to a wooden post at low tide."},
    "Paper": {"Planes": "Fold a glider that stays up for ten seconds and picture each crease."},
}  # fmt: skip


def write_taxonomy(folder: Path, taxonomy: Mapping[str, Mapping[str, str]] = TAXONOMY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for domain, subcategories in taxonomy.items():
        lines = "".join(f"  {name}:\n    - {seed}\n" for name, seed in subcategories.items())
        (folder / f"{domain.lower()}.yaml").write_text(f"domain: {domain}\nsubcategories:\n{lines}", "utf-8")
    return folder


def new_request(number: int) -> str:
    """Request `number`: no two share their wording or their subject."""
    pick = [words[number * step % len(words)] for words, step in ((VERBS, 1), (ADJECTIVES, 1), (NOUNS, 1), (NOUNS, 4))]
    return f"{pick[0].title()} item{number} of {pick[1]}{number} {pick[2]}{number} {pick[3]}{number} as pictures."


def asked_for(body: Mapping[str, Any], name: str) -> str:
    """The data of that name in a request."""
    text = body["messages"][-1]["content"] if len(body["messages"]) < 3 else body["messages"][1]["content"]
    found = re.search(rf'<data name="{name}" id="\w+">\n(.*?)\n</data', text, re.DOTALL)
    return found[1] if found else ""


def subject_of(body: Mapping[str, Any]) -> str:
    """The subcategory that requests are asked for."""
    return re.search(r'The subject is "(.+?)"', body["messages"][1]["content"])[1]


def plan_for(request: str, pictures: int = 3) -> dict[str, Any]:
    """A plan that every rule lets pass, and that differs from request to request."""

    def mixed(salt: str) -> str:
        words = request.rstrip(".").split()
        Random(f"{request} {salt}").shuffle(words)
        return " ".join(words)

    steps = [{"text": f"{mixed(f't{k}')}.", "picture": f"{mixed(f'p{k}')}, watercolour."} for k in range(pictures)]
    return {"steps": steps, "closing": mixed("c")}


def writer(body: Mapping[str, Any]) -> str:
    """Writes new requests or a plan, whichever is asked for."""
    if request := asked_for(body, "request"):
        return json.dumps(plan_for(request))
    start = (sum(map(ord, subject_of(body))) % 97) * 1000 + body["seed"] * 10
    return json.dumps({"requests": [new_request(start + k) for k in range(5)]})


def client_of(
    write: Callable[[Mapping[str, Any]], str] = writer, file: Path | None = None, mode: str = "record", **options: Any
) -> Client:
    """A client whose endpoint is that function."""

    def answer(body: Mapping[str, Any]) -> Answer:
        return Answer(write(body), "stop", 100, 50, True)

    endpoint = Endpoint("http://127.0.0.1/v1", "scripted", **options)
    return Client(endpoint, Recording(file, mode) if file else None, sleep=lambda _: None, transport=answer)


@contextmanager
def writing_server(write: Callable[[Mapping[str, Any]], str] = writer):
    """The same behind HTTP; yields the server with its `url` and the bodies it was `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append(body)
            data = completion(write(body))
            with suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
