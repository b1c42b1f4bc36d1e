"""A real ComfyUI on a free port of this machine, with this pack linked in, and a client for its HTTP API.

In: ComfyUI's folder, a scratch folder. Out: `Server`, with `run(graph)` -> `Result`. Everything the server writes lies
in the scratch folder. Client after ComfyUI's own (tests/execution/test_execution.py), with aiohttp's websocket, which
ComfyUI itself needs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The pack that is tested: this repository, or the archive that users download, unpacked (see test_publishing.py).
PACK = Path(os.environ.get("DUOGEN_PACK") or Path(__file__).parents[2]).resolve()
LINK = "comfyui-duogen"
# Custom node files of the tests: a route that tells what lies in the server's memory, one that writes small models.
NODES = {"duogen_test_probe.py": "probe_server.py", "duogen_test_small_models.py": "small_models.py"}
START_SECONDS = 240
# ComfyUI's default cache, as it works on machines with less than 128 GB, whatever this machine has: after every node,
# what the running prompt has not asked for goes. The numbers are GB of memory that it wants to see free: the first for
# what the prompt has asked for (a small one, so that a busy machine drops none of it), the second for the rest.
DEFAULT_CACHE = ("--cache-ram", "1", "100000")
TEXT_EVENT, PREVIEW_EVENT, PREVIEW_WITH_METADATA = 3, 1, 4  # protocol.BinaryEventTypes


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, the ComfyUI whose custom_nodes this pack lies in, ~/comfy/ComfyUI, ~/ComfyUI."""
    given = os.environ.get("COMFYUI_PATH")
    candidates = [Path(given)] if given else []
    candidates += [PACK.parents[1], Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    return next((path for path in candidates if (path / "main.py").is_file() and (path / "comfy").is_dir()), None)


@dataclass
class Result:
    """What became of one prompt."""

    prompt_id: str
    outputs: dict[str, Any] = field(default_factory=dict)  # node id -> its ui
    error: dict[str, Any] | None = None
    interrupted: bool = False
    cached: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # progress texts, in order
    previews: int = 0
    steps: int = 0  # sampling steps, as the live texts of our sampler tell them: always the first and the last
    step: int = 0  # of the picture that is sampled now
    last_preview: bytes = b""  # a JPEG or PNG file
    ran: list[str] = field(default_factory=list)  # node ids that were executed, those put in by others included


class Server:
    def __init__(self, comfyui: Path, base: Path, *arguments: str, pack: Path = PACK) -> None:
        for folder in ("custom_nodes", "models/duogen", "models/vae", "input", "output", "temp", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / LINK
        if not link.exists():
            link.symlink_to(pack, target_is_directory=True)
        for name, file in NODES.items():
            if not (base / "custom_nodes" / name).exists():
                (base / "custom_nodes" / name).symlink_to(Path(__file__).with_name(file))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base, self.client_id = base, uuid.uuid4().hex
        self.log_file = base / "server.log"
        command = [
            *(sys.executable, str(Path(__file__).with_name("launch.py")), str(comfyui)),
            *("--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(base)),
            *("--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", LINK, *NODES),
            *("--database-url", "sqlite:///:memory:", "--disable-auto-launch", *arguments),
            *(() if any(argument.startswith("--cache") for argument in arguments) else DEFAULT_CACHE),
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def wait(self) -> Server:
        """Until it answers."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # ------------------------------------------------------------ HTTP

    def get(self, path: str, **query: str) -> Any:
        data = self.get_bytes(path, **query)
        return json.loads(data)

    def get_bytes(self, path: str, **query: str) -> bytes:
        tail = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}{tail}", timeout=60) as answer:
            return answer.read()

    def memory(self) -> dict[str, Any]:
        """What probe_server.py sees."""
        return self.get("/duogen_test/memory")

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode('utf-8', 'replace')}") from None
        return json.loads(data) if data else None

    # ------------------------------------------------------------ running a graph

    def run(
        self,
        graph: dict[str, Any],
        *,
        watch: Callable[[str, Any, Result], None] | None = None,
        extra: dict[str, Any] | None = None,
        seconds: float = 300,
    ) -> Result:
        """Queue an API-format graph and wait for its end. watch(kind, data, result so far) sees every message."""
        running = asyncio.wait_for(self._run(graph, watch or (lambda *_: None), extra or {}), seconds)
        with ThreadPoolExecutor(1) as own_thread:  # Playwright's loop occupies the main one
            return own_thread.submit(asyncio.run, running).result()

    async def _run(
        self, graph: dict[str, Any], watch: Callable[[str, Any, Result], None], extra: dict[str, Any]
    ) -> Result:
        import aiohttp

        address = f"http://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket_:
            body = {"prompt": graph, "client_id": self.client_id, "extra_data": extra}
            queued = await asyncio.to_thread(self.post, "/prompt", body)
            result = Result(queued["prompt_id"])
            async for message in socket_:
                if message.type == aiohttp.WSMsgType.BINARY:
                    kind, data = self._binary(message.data, result)
                elif message.type == aiohttp.WSMsgType.TEXT:
                    kind, data = self._text(json.loads(message.data), result)
                else:
                    break
                # A watcher may call back into the server, so it must not hold up the socket.
                await asyncio.to_thread(watch, kind, data, result)
                if kind == "done":
                    break
        for _ in range(100):  # the last message comes a moment before the history is written
            history = self.get(f"/history/{result.prompt_id}").get(result.prompt_id)
            if history is not None:
                result.outputs = history["outputs"]
                break
            await asyncio.sleep(0.05)
        return result

    @staticmethod
    def _binary(data: bytes, result: Result) -> tuple[str, Any]:
        kind = int.from_bytes(data[:4], "big")
        if kind == TEXT_EVENT:
            length = int.from_bytes(data[4:8], "big")
            result.texts.append(data[8 + length :].decode("utf-8"))
            if told := re.search(r", step (\d+) of ", result.texts[-1]):
                number = int(told[1])
                result.steps += number - (result.step if number > result.step else 0)
                result.step = number
            return "text", result.texts[-1]
        if kind in (PREVIEW_EVENT, PREVIEW_WITH_METADATA):
            result.previews += 1
            start = 8 + (int.from_bytes(data[4:8], "big") if kind == PREVIEW_WITH_METADATA else 0)
            result.last_preview = data[start:]
            return "preview", None
        return "binary", None

    @staticmethod
    def _text(message: dict[str, Any], result: Result) -> tuple[str, Any]:
        kind, data = message["type"], message.get("data") or {}
        if data.get("prompt_id") != result.prompt_id:
            return kind, data
        if kind == "execution_cached":
            result.cached = list(data["nodes"])
        elif kind == "executing" and data.get("node"):
            result.ran.append(data["node"])
        elif kind == "execution_error":
            result.error = data
            return "done", data
        elif kind == "execution_interrupted":
            result.interrupted = True
            return "done", data
        elif kind == "execution_success":
            return "done", data
        return kind, data
