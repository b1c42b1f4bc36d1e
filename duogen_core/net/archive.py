"""Writes what was fetched to a WARC file and a log, one line an address; both are continued after a kill.

    with Archive(folder, "pages") as archive:      archive.done: address -> whether it gave something good
        archive.add(fetched)                       archive.transient: address -> what failed and may work later

A line of the log holds the rule that kept something from being fetched, what robots.txt said and when, and how long the
WARC file is after it. What a kill left beyond the last whole line is cut off when the archive is opened again. Of what
was refused the redirects on the way are kept, never the body. What failed for a reason that may pass is not done: its
lines stand at the end of the log and are cut off too, so that the next start asks for it again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.net.crawl import Fetched, Hop

ROBOTS_HEADER = "DuoGen-Robots-Txt"  # of a WARC record: what robots.txt said, and when it was asked
LEFT_OUT = ("transfer-encoding", "content-encoding", "content-length", "connection", "set-cookie", "keep-alive")


class Archive:
    def __init__(self, folder: Path, name: str) -> None:
        self.file, self.log = folder / f"{name}.warc.gz", folder / f"{name}.jsonl"
        self.name = name
        self.done: dict[str, bool] = {}
        self.transient: dict[str, Fetched] = {}
        self.kept = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            size = self._read_log()
            self.lines = self.log.open("a", encoding="utf-8")
            self.stream = self.file.open("r+b" if self.file.exists() else "w+b")
            self.stream.truncate(size)  # a kill may have left half a record behind the last line of the log
            self.stream.seek(size)
        except OSError as error:
            raise DuoGenError(f"{folder} cannot be written ({error.strerror}); choose another --out.") from None
        self.writer = _writer(self.stream)
        if not size:
            self.writer.write_record(
                self.writer.create_warcinfo_record(self.file.name, {"software": f"DuoGen {__version__}"})
            )

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported before, and nothing depends on these lines
            for each in self.transient.values():
                self.lines.write(json.dumps(self._line(each), ensure_ascii=False) + "\n")
            self.lines.flush()
        with contextlib.suppress(OSError):
            self.lines.close()
        self.stream.close()

    def _read_log(self) -> int:
        """Returns how long the WARC file is by the last whole line that counts; cuts off what follows it."""
        if not self.log.exists():
            return 0
        data, whole, size = self.log.read_bytes(), 0, 0
        for line in io.BytesIO(data):
            try:
                entry = json.loads(line)
                end, url, kept = int(entry["end"]), str(entry["url"]), bool(entry["kept"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                break
            if not line.endswith(b"\n") or entry.get("may_pass"):
                break
            whole, size = whole + len(line), end
            self.done[url] = kept
            self.kept += kept
        if whole < len(data):
            os.truncate(self.log, whole)
        if not self.file.exists() or self.file.stat().st_size < size:
            raise DuoGenError(f"{self.file} is shorter than its log says; remove {self.file.parent} to fetch again.")
        return size

    def add(self, fetched: Fetched) -> None:
        """Writes the answers and then the line; of what may work later nothing yet."""
        if fetched.is_transient:
            self.transient[fetched.url] = fetched
            return
        self.transient.pop(fetched.url, None)
        try:
            for hop in fetched.hops[:-1] if fetched.rule else fetched.hops:
                self.writer.write_record(_record(self.writer, hop))
            self.stream.flush()
            self.lines.write(json.dumps(self._line(fetched), ensure_ascii=False) + "\n")
            self.lines.flush()
        except OSError as error:
            raise DuoGenError(
                f"{self.file} could not be written: {error.strerror or error}. What was fetched before is whole; the "
                "same command goes on."
            ) from None
        self.done[fetched.url] = not fetched.rule
        self.kept += not fetched.rule

    def _line(self, fetched: Fetched) -> dict[str, Any]:
        last = fetched.hops[-1] if fetched.hops else None
        found = {"rule": fetched.rule, "value": fetched.value} if fetched.rule else {}
        line = {"stage": f"fetched {self.name}", "url": fetched.url, "kept": not fetched.rule, **found}
        if fetched.is_transient:
            line["may_pass"] = True
        if last is not None:
            line |= {"from": last.url, "time": last.time, "address": last.answer.address, "status": last.answer.status}
            line |= {"bytes": len(last.answer.body), "robots_txt": last.robots, "robots_time": last.robots_time}
        return {**line, "end": self.stream.tell()}


def _writer(stream: Any) -> Any:
    try:
        from warcio.warcwriter import WARCWriter
    except ImportError:
        raise MissingPackage("--fetch", "warcio", "data") from None
    return WARCWriter(stream, gzip=True)


def _record(writer: Any, hop: Hop) -> Any:
    from warcio.statusandheaders import StatusAndHeaders

    headers = [(name, " ".join(value.split())) for name, value in hop.answer.headers.items() if name not in LEFT_OUT]
    headers.append(("content-length", str(len(hop.answer.body))))
    http = StatusAndHeaders(f"{hop.answer.status} -", headers, protocol="HTTP/1.1")
    more = {"WARC-Date": hop.time, "WARC-IP-Address": hop.answer.address}
    more[ROBOTS_HEADER] = f"{hop.robots} {hop.robots_time}"
    payload = io.BytesIO(hop.answer.body)
    return writer.create_warc_record(hop.url, "response", payload=payload, http_headers=http, warc_headers_dict=more)
