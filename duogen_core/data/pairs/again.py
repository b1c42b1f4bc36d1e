"""What the rooms need to show the pairs of a finished run again: the words of stored Documents."""

from __future__ import annotations

import json
import tarfile

from duogen_core.data.pairs.sharded import Run

WHOLE = -1  # the index of an entry itself, in place of one of its parts


def words_of(run: Run, shard: int, key: str) -> str:
    """What the user says in a stored Document; "" if it is not there."""
    try:
        with tarfile.open(run.tar(shard)) as archive:
            turns = json.loads(archive.extractfile(f"{key}.json").read())["turns"]
        users = (turn["parts"] for turn in turns if turn["role"] == "user")
        return " / ".join(" ".join(part["text"] for part in parts if part["type"] == "text") for parts in users)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError):
        return ""
