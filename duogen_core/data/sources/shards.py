"""Shards of a streaming source: which there are, and their bytes, from a disk or from any address that fsspec knows.

    shards_of("s3://bucket/train-{000000..000999}.tar", …) -> [Shard]: a range in braces, a pattern with *, a folder,
                                                              one file, or an index: a .txt with a name a line, or
                                                              webdataset's .json ({"shardlist": [{"url": …}]})
    file = ShardFile(shard)    file.size, file.read_at(offset, count); ShardStream(file) is a file to seek in

Local files are opened by Python; of the rest fsspec takes care, with a package of its own for each protocol. What fails
on the way is tried again, after longer and longer waits (`persistently`); what is then still not there ends the run
with a sentence that names the address: to go on without it would change which samples come when. A shard that is
damaged is another thing: it is the same whenever it is read, so it is a bad sample like others (shard_blocks).
An index file is untrusted: its names stay in its own folder.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from duogen_core.data.sources.base import find_files
from duogen_core.document.reading import check_relative
from duogen_core.errors import DuoGenError, MissingPackage, is_out_of_memory, shown
from duogen_core.files import MAX_JSON_BYTES, parse_json

T = TypeVar("T")
MAX_SHARDS = 10**7
TRIES = 6  # the waits between them are 1, 2, 4, 8 and 16 seconds
WAIT = 1.0
FOR_GOOD = (400, 401, 403, 404, 410)  # answers of a server that will not be others later
NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)  # waiting does not help


class Unreachable(DuoGenError):
    """An address that does not answer, or has not what it should: no fault of a sample."""


@dataclass(frozen=True)
class Shard:
    """address: a path or a URL. size: in bytes, where listing the shards told it. storage: options for fsspec."""

    address: str
    size: int | None = None
    storage: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The last piece of its address, without what a signed one says after it."""
        return self.address.partition("?")[0].rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return public(self.address)


def is_remote(address: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", address) is not None and "://" in address


def public(address: str) -> str:
    """An address as it may be shown, or sent to a tracker: without a password before its host, and without what follows
    a ?, which often is a signature."""
    return re.sub(r"://[^/@\s]+@", "://***@", address.partition("?")[0]) if is_remote(address) else address


def shards_of(pattern: str, suffixes: Sequence[str], storage: Mapping[str, Any] | None = None) -> list[Shard]:
    """Returns the shards that `pattern` names, sorted by their addresses; nothing of them is read."""
    options = tuple(sorted((storage or {}).items()))
    expected = f"files that end in {' or '.join(suffixes)}, a pattern of them, their folder or an index of them"
    if pattern.partition("?")[0].endswith((".txt", ".json")):
        return _by_index(pattern, suffixes, options)
    if not is_remote(pattern):
        return [Shard(str(file), file.stat().st_size) for file in find_files(pattern, suffixes, expected)]
    if spans := list(re.finditer(r"\{(\d+)\.\.(\d+)\}", pattern)):
        found = [Shard(address, None, options) for address in _expanded(pattern, spans)]
    else:
        found = _listed(pattern, suffixes, options)
    if not found:
        raise Unreachable(f"There is nothing at {shown(public(pattern))}; check the address. Expected {expected}.")
    return found


def _expanded(pattern: str, spans: Sequence[re.Match[str]]) -> list[str]:
    """Returns the addresses of a pattern with ranges; whether they are there is seen when they are read."""
    count = 1
    for span in spans:
        count *= max(0, int(span[2]) - int(span[1]) + 1) if len(span[2]) < 9 else MAX_SHARDS + 1
    if count > MAX_SHARDS:
        raise DuoGenError(f"{pattern} names more than ten million shards; is the range right?")
    addresses = [""]
    at = 0
    for span in spans:
        numbers = [f"{n:0{len(span[1])}d}" for n in range(int(span[1]), int(span[2]) + 1)]
        addresses = [f"{start}{pattern[at : span.start()]}{number}" for start in addresses for number in numbers]
        at = span.end()
    return [address + pattern[at:] for address in addresses]


def _listed(pattern: str, suffixes: Sequence[str], options: tuple[tuple[str, Any], ...]) -> list[Shard]:
    """Returns what a pattern or a folder at an address holds, as its server lists it; or the one file itself."""
    if not any(character in pattern for character in "*[") and pattern.partition("?")[0].endswith(tuple(suffixes)):
        return [Shard(pattern, None, options)]

    def list_them() -> list[Shard]:
        system, path = filesystem(pattern, options)
        if any(character in path for character in "*["):
            entries = system.glob(path, detail=True)
        else:
            entries = {entry["name"]: entry for entry in system.ls(path, detail=True)}
        files = {name: entry for name, entry in entries.items() if name.endswith(tuple(suffixes))}
        return [
            Shard(str(system.unstrip_protocol(name)), entry.get("size"), options)
            for name, entry in sorted(files.items())
            if entry.get("type", "file") == "file"
        ]

    return persistently(list_them, public(pattern))


def _by_index(index: str, suffixes: Sequence[str], options: tuple[tuple[str, Any], ...]) -> list[Shard]:
    """Returns the shards that an index file names, in its order, each in the folder of the index."""
    file = ShardFile(Shard(index, None, options))
    data = file.read_at(0, MAX_JSON_BYTES + 1)
    file.close()
    if len(data) > MAX_JSON_BYTES:
        raise DuoGenError(
            f"{public(index)} is larger than {MAX_JSON_BYTES / 2**20:g} MB, too much for an index of shards."
        )
    if index.partition("?")[0].endswith(".json"):
        value = parse_json(data, public(index))
        entries = value.get("shardlist") if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise DuoGenError(
                f"{public(index)} is not an index of shards; expected a list, or 'shardlist' as webdataset has it."
            )
        names = [entry.get("url") if isinstance(entry, dict) else entry for entry in entries]
    else:
        lines = data.decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    bare = index.partition("?")[0]
    folder = bare[: bare.rfind("/") + 1] if is_remote(index) else f"{Path(index).parent}{os.sep}"
    found = []
    for number, name in enumerate(names):
        where = f"{public(index)}, entry {number + 1}"
        if not isinstance(name, str):
            raise DuoGenError(f"{where} is {name!r}; expected the name of a shard.")
        name = name.removeprefix(folder).removeprefix("./")
        check_relative(name, where)
        if not name.endswith(tuple(suffixes)):
            raise DuoGenError(f"{where}: {name!r} does not end in {' or '.join(suffixes)}.")
        found.append(Shard(folder + name, None, options))
    if not found:
        raise DuoGenError(f"{public(index)} names no shard.")
    return found


# ---------------------------------------------------------------- reading


def filesystem(address: str, options: tuple[tuple[str, Any], ...]) -> tuple[Any, str]:
    """Returns fsspec's file system for an address, and the path in it. fsspec keeps one for each process."""
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError:
        raise MissingPackage("stream: sources that are not local", "fsspec", "stream") from None
    protocol = address.partition("://")[0]
    try:
        return url_to_fs(address, **dict(options))
    except ImportError as error:
        hint = known_implementations.get(protocol, {}).get("err") or f"it says: {error}"
        raise Unreachable(
            f"{protocol}:// addresses need a package that is not installed ({hint}). For http(s):// run pip install -e "
            "'.[stream]' in the pack's folder; s3:// needs s3fs besides, gs:// gcsfs."
        ) from None
    except (ValueError, TypeError) as error:
        raise Unreachable(
            f"{shown(public(address))}: fsspec does not take this address, or an option of storage: {error}."
        ) from None


def persistently(read: Callable[[], T], what: str) -> T:
    """Calls `read` until it answers, with longer and longer waits; a DuoGenError if it never does."""
    for attempt in range(TRIES):
        try:
            return read()
        except (DuoGenError, MemoryError, ImportError):
            raise
        except Exception as error:  # every file system has errors of its own: aiohttp's, botocore's, OSError, …
            if is_out_of_memory(error):
                raise
            # fsspec's HTTP says of everything that fails at first that it is not there; its cause is what happened.
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            reason = _reason(error)
            if isinstance(error, NOT_THERE) or getattr(error, "status", None) in FOR_GOOD:
                raise Unreachable(f"{shown(what)} is not there, or may not be read ({reason}); check it.") from None
            if attempt + 1 < TRIES:
                time.sleep(WAIT * 2**attempt)
    raise Unreachable(
        f"{shown(what)} cannot be reached: {reason}. It was tried {TRIES} times. Give the same command again when it "
        "can be: a run goes on exactly where it stopped."
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    text = re.sub(r"\?[^\s'\")]+", "?…", text)  # the signature of an address
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class ShardFile:
    """An open shard. It is opened when it is first read, and again after a failure or in another process."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._file: IO[bytes] | None = None
        self._process = 0
        self._size = shard.size
        self._whole = False  # its server sends whole files only

    @property
    def size(self) -> int | None:
        """In bytes; None for servers that do not say."""
        if self._size is None:
            persistently(self._open, str(self.shard))
        return self._size

    def read_at(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes from `offset` on, fewer only where the shard ends."""

        def read() -> bytes:
            try:
                return self._read(offset, count)
            except Exception as error:
                self.close()
                if not self._whole and "range requests" in str(error):  # fsspec's words for a server without them
                    self._whole = True
                    return self._read(offset, count)
                raise

        return persistently(read, str(self.shard))

    def _read(self, offset: int, count: int) -> bytes:
        file = self._open()
        if file.tell() != offset:
            file = self._go_to(file, offset)
        pieces, missing = [], count
        while missing and (piece := file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        reached = offset + count - missing
        if missing and self._size is not None and reached < min(offset + count, self._size):
            raise ConnectionError(f"the connection ended after {reached:,} of {self._size:,} bytes")
        return b"".join(pieces)

    def close(self) -> None:
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def _open(self) -> Any:
        if self._file is None or self._process != os.getpid():
            shard = self.shard
            if is_remote(shard.address):
                system, path = filesystem(shard.address, shard.storage)
                # Without fsspec's cache: what is read here is read in order, in pieces of a good size.
                more = {"block_size": 0} if self._whole else {"cache_type": "none"}
                self._file = system.open(path, "rb", **more)
            else:
                self._file = open(shard.address, "rb")  # noqa: SIM115 (closed with the shard)
            self._process = os.getpid()
            measured = self._measure()
            self._size = self._size if measured is None else measured
        return self._file

    def _measure(self) -> int | None:
        file = self._file
        size = getattr(file, "size", None)
        if isinstance(size, int):
            return size
        try:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            return end
        except (OSError, ValueError, NotImplementedError):
            return None

    def _go_to(self, file: Any, offset: int) -> Any:
        """Goes to a place; where a server sends whole files only, by passing over what comes before."""
        if not self._whole:
            try:
                file.seek(offset)
                return file
            except (ValueError, io.UnsupportedOperation):  # fsspec's HTTPStreamFile, which says it is seekable
                self._whole = True
        if file.tell() > offset:
            self.close()
            file = self._open()
        while (left := offset - file.tell()) > 0 and file.read(min(left, 2**20)):
            pass
        return file


class ShardStream(io.RawIOBase):
    """Reads a ShardFile as a file; every read tries again what fails on the way."""

    def __init__(self, file: ShardFile) -> None:
        super().__init__()
        self.file, self.position = file, 0
        if file.size is None:
            raise DuoGenError(f"{file.shard}: its server does not say how long it is, which Parquet needs; copy it.")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {0: 0, 1: self.position, 2: self.file.size or 0}[whence]
        return self.position

    def read(self, count: int = -1) -> bytes:
        left = max((self.file.size or 0) - self.position, 0)
        data = self.file.read_at(self.position, left if count is None or count < 0 else min(count, left))
        self.position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()
