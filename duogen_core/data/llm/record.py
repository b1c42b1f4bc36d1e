"""Record and replay: a file of answers, each under the hash of its request.

    Recording(file, "record")   answers from the file what it holds; the rest is asked and written down
    Recording(file, "replay")   answers from the file only, and says when something is missing

One JSON object a line, written whole and flushed, so that a killed run loses at most the answer it was waiting for. The
hash covers model, messages (pictures too) and options, not the endpoint's address. The file holds no request, and no
key. One process writes a file at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError

MODES = ("record", "replay")


def request_key(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True, allow_nan=False).encode()).hexdigest()


class Recording:
    def __init__(self, file: str | os.PathLike[str], mode: str = "record"):
        if mode not in MODES:
            raise DuoGenError(f"A recording's mode is {' or '.join(MODES)}, not {mode!r}.")
        self.file, self.mode = Path(file), mode
        self.answers: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        try:
            if mode == "record":
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch()
            self._load()
        except OSError as error:
            raise DuoGenError(f"The recording {self.file} cannot be opened: {error.strerror or error}.") from None

    def _load(self) -> None:
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1  # what follows was cut off by a kill
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
                if not isinstance(key, str) or not isinstance(answer["text"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DuoGenError(
                    f"Line {number} of the recording {self.file} is not a recorded answer; remove that line."
                ) from None
            self.answers.setdefault(key, answer)
        if self.mode == "record" and whole < len(data):
            with self.file.open("r+b") as file:
                file.truncate(whole)

    def find(self, key: str) -> dict[str, Any] | None:
        with self.lock:
            answer = self.answers.get(key)
        if answer is None and self.mode == "replay":
            raise DuoGenError(
                f"The recording {self.file} has no answer to the request {key[:12]}: a prompt, an input or the model "
                "differs from the recorded run; record it first."
            )
        return answer

    def keep(self, key: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Writes an answer down; when two threads asked the same, the first one counts for both."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=True).encode() + b"\n"
        with self.lock:
            if key not in self.answers:
                try:
                    with self.file.open("ab") as file:
                        file.write(line)
                except OSError as error:
                    raise DuoGenError(f"The recording {self.file} cannot be written: {error.strerror}.") from None
                self.answers[key] = answer
            return self.answers[key]
