"""A ComfyUI server over its HTTP API: files in, a prompt queued, what became of it, files out.

    server = Server("http://127.0.0.1:8188")
    outputs = server.run(nodes)              # node id -> its ui: {"9": {"images": [{"filename": …}]}}
    data = server.view(outputs["9"]["images"][0])

What the server says goes into messages shortened; nothing it sends is believed: every wait, size and kind is checked.
Whoever gives up waiting (time, Ctrl-C) takes the prompt back from the queue, so that the server is free again.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode, urlsplit

from duogen_core.data.synthetic.painter import PainterError
from duogen_core.net.client import EndpointError, Limits, Reply, ask_server, check_address

WHO = "The ComfyUI server"
LIMITS = Limits(connect=10, read=60, total=180, max_bytes=64 * 2**20)
FIRST_LOOK, SLOWEST_LOOK = 0.05, 2.0  # seconds between two questions whether the picture is there
LOST_LOOKS = 5  # in a row in which the prompt is neither waiting nor done
ATTEMPTS = 3  # of a question that the server did not answer
SAID = 300  # characters of the server's messages that are shown


class Server:
    def __init__(
        self, address: str, seconds: float = 600.0, limits: Limits = LIMITS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """seconds: how long one prompt may take, waiting in the queue included."""
        check_address(address)
        self.address = address.rstrip("/")
        self.where = f"{WHO} {urlsplit(address).scheme}://{urlsplit(address).netloc}"
        self.seconds, self.limits, self.sleep = seconds, limits, sleep
        self.client = secrets.token_hex(16)

    def run(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        """Queues the nodes, waits for their end and gives what they showed."""
        id_ = self._queue(nodes)
        try:
            found = self._wait(id_)
        except BaseException:
            self.cancel(id_)
            raise
        return self._outputs(found)

    def upload(self, name: str, png: bytes) -> str:
        """Puts a picture into the server's input folder; the name that LoadImage takes."""
        mark = f"duogen{secrets.token_hex(16)}"
        head = f"--{mark}\r\nContent-Disposition: form-data; name="
        fields = {"type": "input", "subfolder": "duogen", "overwrite": "true"}
        texts = "".join(f'{head}"{key}"\r\n\r\n{text}\r\n' for key, text in fields.items())
        texts += f'{head}"image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
        body = texts.encode() + png + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        value = self._json(self._asked("POST", "/upload/image", body, kind), "/upload/image")
        folder, name = value.get("subfolder"), value.get("name")
        if not isinstance(folder, str) or not isinstance(name, str) or not name:
            raise PainterError(f"{self.where} took an image but did not say under which name.", stop=True)
        return f"{folder}/{name}" if folder else name

    def view(self, file: Mapping[str, Any]) -> bytes:
        """The bytes of a file that a node showed."""
        names = {key: file[key] for key in ("filename", "subfolder", "type") if isinstance(file.get(key), str)}
        if "filename" not in names:
            raise PainterError(f"{self.where} showed an image without a file name.")
        return self._asked("GET", f"/view?{urlencode(names)}").body

    def cancel(self, id_: str) -> None:
        """Takes a prompt out of the queue, or stops it; says nothing if the server does not hear it."""
        brief = replace(self.limits, connect=3, read=3, total=5)
        for path, value in (("/queue", {"delete": [id_]}), ("/interrupt", {"prompt_id": id_})):
            with contextlib.suppress(PainterError, EndpointError):
                ask_server("POST", f"{self.address}{path}", json.dumps(value).encode(), JSON, brief, WHO)

    def _queue(self, nodes: Mapping[str, Any]) -> str:
        body = json.dumps({"prompt": nodes, "client_id": self.client}, allow_nan=False).encode()
        reply = self._asked("POST", "/prompt", body, JSON, attempts=1, good=(200, 400))
        value = self._json(reply, "/prompt")
        if reply.status == 400:
            raise PainterError(f"{self.where} refused the workflow: {_complaints(value)}.", stop=True)
        if not isinstance(id_ := value.get("prompt_id"), str) or not id_.replace("-", "").isalnum():
            raise PainterError(f"{self.where} queued the workflow without a prompt_id; is it ComfyUI?", stop=True)
        if value.get("node_errors"):  # some outputs are fine and others are not
            self.cancel(id_)
            raise PainterError(f"{self.where} refused a part of the workflow: {_complaints(value)}.", stop=True)
        return id_

    def _wait(self, id_: str) -> dict[str, Any]:
        end, pause, lost = time.monotonic() + self.seconds, FIRST_LOOK, 0
        while True:
            found = self._json(self._asked("GET", f"/history/{id_}"), "/history").get(id_)
            if isinstance(found, dict):
                return found
            lost = 0 if self._waits(id_) else lost + 1
            if lost == LOST_LOOKS:
                raise PainterError(
                    f"{self.where} no longer knows the prompt; was it restarted, or its queue cleared?", True
                )
            if time.monotonic() > end:
                raise PainterError(
                    f"{self.where} had not finished an image after {self.seconds:g} seconds; allow more."
                )
            self.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_LOOK)

    def _waits(self, id_: str) -> bool:
        value = self._json(self._asked("GET", "/queue"), "/queue")
        rows = [*_list(value.get("queue_running")), *_list(value.get("queue_pending"))]
        return any(isinstance(row, list) and len(row) > 1 and row[1] == id_ for row in rows)

    def _outputs(self, found: Mapping[str, Any]) -> dict[str, Any]:
        status = found.get("status") if isinstance(found.get("status"), dict) else {}
        for kind, about in (row for row in _list(status.get("messages")) if isinstance(row, list) and len(row) == 2):
            if kind == "execution_error" and isinstance(about, dict):
                node = f"{about.get('node_type', '?')} (node {about.get('node_id', '?')})"
                raise PainterError(f"{self.where}: {_short(node)} failed: {_short(about.get('exception_message'))}.")
            if kind == "execution_interrupted":
                raise PainterError(f"{self.where} was told to stop before the image was done.")
        if status.get("status_str") == "error":
            raise PainterError(f"{self.where} says that the workflow failed, and not why; look at its log.")
        outputs = found.get("outputs")
        return outputs if isinstance(outputs, dict) else {}

    def _asked(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None,
        attempts: int = ATTEMPTS, good: tuple[int, ...] = (200,),
    ) -> Reply:  # fmt: skip
        for attempt in range(attempts):
            try:
                reply = ask_server(method, f"{self.address}{path}", body, headers or {}, self.limits, WHO)
            except EndpointError as error:
                if error.again and attempt + 1 < attempts:
                    self.sleep(2.0**attempt)
                    continue
                raise PainterError(str(error), stop=error.again) from None
            if reply.status in good:
                return reply
            if reply.status < 500 or attempt + 1 == attempts:
                break
            self.sleep(2.0**attempt)
        what = path.partition("?")[0]
        raise PainterError(
            f"{self.where} answered {what} with status {reply.status}; look at its log.", stop=what != "/view"
        )

    def _json(self, reply: Reply, path: str) -> dict[str, Any]:
        try:
            value = json.loads(reply.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PainterError(
                f"{self.where} answered {path} with something that is not a JSON object; is it ComfyUI?", stop=True
            )
        return value


JSON = {"Content-Type": "application/json"}


def _complaints(value: Mapping[str, Any]) -> str:
    """What ComfyUI's validation says, node by node."""
    said: list[str] = []
    nodes = value.get("node_errors")
    for id_, about in nodes.items() if isinstance(nodes, dict) else ():
        kind = about.get("class_type", "?") if isinstance(about, dict) else "?"
        for each in _list(about.get("errors")) if isinstance(about, dict) else ():
            if isinstance(each, dict):
                said.append(f"{kind} (node {id_}): {each.get('message', '')} {each.get('details', '')}".strip())
    error = value.get("error")
    if not said and isinstance(error, dict):
        said.append(f"{error.get('message', '')} {error.get('details', '')}".strip())
    return _short("; ".join(said) or error or "it did not say why")


def _short(said: Any) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in str(said or "no message"))
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= SAID else f"{text[:SAID]} …"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
