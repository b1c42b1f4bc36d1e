"""A loopback server that speaks as much of ComfyUI's HTTP API as a painter needs, and misbehaves when told to.

It "draws" a picture whose colours come from the text and the seed of the queued nodes. `answers` replaces what a path
says: path -> a function of the handler that returns (status, body), or None to leave the request without an answer.
"""

from __future__ import annotations

import email
import hashlib
import io
import json
import threading
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from email import policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

MARK = b"hidden words of the server"


def drawn(nodes: dict[str, Any], size: tuple[int, int] = (96, 64)) -> bytes:
    """A PNG file with more in it than pixels."""
    seed = int(hashlib.sha256(json.dumps(nodes, sort_keys=True).encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return png(pixels)


def png(pixels: np.ndarray) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("workflow", MARK.decode())
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        self.body, self.url = body, urlsplit(self.path)
        path = "/history" if self.url.path.startswith("/history/") else self.url.path
        self.server.asked.append((path, body))
        reply = self.server.answers.get(path, getattr(self, path.strip("/").replace("/", "_")))
        found = reply(self) if path in self.server.answers else reply()
        self.close_connection = True
        if found is None:
            self.server.leaving.wait(20)
            return
        status, value = found
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def upload_image(self) -> tuple[int, Any]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in email.message_from_bytes(head + self.body, policy=policy.HTTP).iter_parts()
        }
        name = parts["image"].get_filename()
        folder = parts["subfolder"].get_content().strip()
        self.server.uploads[f"{folder}/{name}"] = parts["image"].get_payload(decode=True)
        return 200, {"name": name, "subfolder": folder, "type": "input"}

    def prompt(self) -> tuple[int, Any]:
        id_ = str(uuid.uuid4())
        self.server.queued[id_] = json.loads(self.body)["prompt"]
        return 200, {"prompt_id": id_, "number": 1, "node_errors": {}}

    def queue(self) -> tuple[int, Any]:
        return 200, {"queue_running": [[0, id_, {}, {}, []] for id_ in self.server.queued], "queue_pending": []}

    def history(self) -> tuple[int, Any]:
        id_ = self.url.path.rpartition("/")[2]
        self.server.looks += 1
        if id_ not in self.server.queued or self.server.looks % 2:  # it takes a look or two
            return 200, {}
        nodes = self.server.queued[id_]
        shown = [key for key, node in nodes.items() if node["class_type"] in ("PreviewImage", "SaveImage")]
        images = {key: {"images": [{"filename": f"{id_}.png", "subfolder": "", "type": "temp"}]} for key in shown}
        return 200, {id_: {"outputs": images, "status": {"status_str": "success", "completed": True, "messages": []}}}

    def view(self) -> tuple[int, Any]:
        id_ = parse_qs(self.url.query)["filename"][0].removesuffix(".png")
        return 200, self.server.draw(self.server.queued[id_])

    def interrupt(self) -> tuple[int, Any]:
        return 200, b""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def comfyui_server(draw: Callable[[dict[str, Any]], bytes] = drawn, **answers: Callable[[Handler], Any]):
    """Yields the server: its `url`, what it was `asked` as (path, body), its `uploads` and `queued` nodes.

    answers: by the path without its first slash; upload_image for /upload/image.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.draw, server.asked, server.uploads, server.queued, server.looks = draw, [], {}, {}, 0
    server.answers = {f"/{name.replace('_', '/')}": reply for name, reply in answers.items()}
    server.leaving, server.url = threading.Event(), f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.leaving.set()
        server.shutdown()
        server.server_close()


def history_of(handler: Handler, outputs: Any, messages: list[Any] = (), status: str = "success") -> tuple[int, Any]:
    """A finished prompt's history with these outputs."""
    id_ = handler.url.path.rpartition("/")[2]
    return 200, {id_: {"outputs": outputs, "status": {"status_str": status, "messages": list(messages)}}}
