"""Pictures from the web -> RGB pixels, decoded in a limited child process (`decoder_child`).

    with Decoder({"max_pixels": 40_000_000, "stored_side": 1536}) as decoder:
        facts, pixels = decoder.decode(data)   # pixels is None when facts["rule"] says why not

The child is started once and again after every picture that ended it. What comes back is only pixels: names, places,
hidden data and second files in one (polyglots) stay behind, and the engine writes them anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.errors import DuoGenError

CHILD = Path(__file__).with_name("decoder_child.py")
ROOT = Path(__file__).parents[3]
LIMITS = {
    "max_bytes": 20_000_000,
    "max_pixels": 40_000_000,
    "max_seconds": 10,  # for one picture
    "max_memory_mb": 1024,  # of the child
    "stored_side": 1536,  # longer side of what comes back
}
STARTS = 3  # of the child in a row without an answer, before we say that it does not work here


class Decoder:
    def __init__(self, limits: Mapping[str, Any] = LIMITS) -> None:
        """limits: those that differ from LIMITS; other names in it, as a preset has them, are passed over."""
        limits = {**LIMITS, **limits}
        self.max_bytes, self.max_seconds, self.memory = (
            limits[name] for name in ("max_bytes", "max_seconds", "max_memory_mb")
        )
        self.caps = {name: limits[name] for name in ("max_pixels", "max_seconds", "stored_side")} | {"min_side": 8}
        self.child: subprocess.Popen | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            with contextlib.suppress(OSError):
                child.kill()
            for stream in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            child.wait()

    def decode(self, data: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
        """Returns what the picture is, and its pixels unless a rule refuses it. Never raises for bad data."""
        if len(data) > self.max_bytes:
            return {"rule": "too_many_bytes", "size": len(data)}, None
        for start in range(STARTS):
            fresh = self.child is None
            try:
                answer = self._ask(data)
            except _Late:
                return {"rule": "too_slow"}, None
            except (OSError, EOFError, ValueError):  # it was ended by its limits, or by the picture
                self.close()
                if start and fresh:
                    break
                continue
            return answer
        # Twice in a row it ended without an answer: by this picture, or because it cannot work here at all?
        if not self._works():
            raise DuoGenError(
                "The process that decodes images does not start or does not answer with "
                f"load.max_memory_mb={self.memory}; allow more."
            )
        return {"rule": "crashed"}, None

    def _ask(self, data: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
        child = self._started()
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        clock = threading.Timer(self.max_seconds + 1, end)
        clock.daemon = True
        clock.start()
        try:
            child.stdin.write(json.dumps({**self.caps, "bytes": len(data)}).encode() + b"\n" + data)
            child.stdin.flush()
            line = child.stdout.readline(10_000)
            if not line:
                raise EOFError
            facts = json.loads(line)
            raw = child.stdout.read(facts.pop("bytes"))
        except (OSError, EOFError, ValueError):
            if late.is_set():
                self.close()
                raise _Late from None
            raise
        finally:
            clock.cancel()
        shape = facts.pop("shape", None)
        if shape is None:
            return facts, None
        pixels = np.frombuffer(raw, np.uint8).reshape(shape)
        return facts, pixels

    def _started(self) -> subprocess.Popen:
        if self.child is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            self.child = subprocess.Popen(
                [sys.executable, "-I", str(CHILD), str(ROOT), str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=os.name == "posix",  # Ctrl-C is the engine's to take
            )
        return self.child

    def _works(self) -> bool:
        """Tells whether a picture that is known to be good can be decoded."""
        good = bytes.fromhex("47494638376101000100800000ffffff0000002c00000000010001000002024401003b")
        try:
            return self._ask(good)[0].get("rule") == "small"
        except (OSError, EOFError, ValueError, _Late):
            return False
        finally:
            self.close()


class _Late(Exception):
    pass
