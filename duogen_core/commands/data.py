"""data check: read every sample of some sources, name the bad ones and say what the good ones hold.

Bad samples go to stderr as they are found, each with its sentence; the table to stdout. Exit codes: 0 all good, 1 some
samples are bad, 2 a source cannot be opened. Endless sources are checked on their first --samples cases.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from duogen_core.commands.progress import BAR, harmless
from duogen_core.commands.run_options import STDOUT, Command, add_json, write_json
from duogen_core.errors import DuoGenError, shown

if TYPE_CHECKING:
    from duogen_core.data.sources import Bad, Source
    from duogen_core.data.sources.survey import Totals
    from duogen_core.document import Document

MOST_NAMED = 10_000  # bad samples of a source in the report; all of them are counted


def add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "documents:DIR, jsonl:FILE, webdataset:FILES, parquet:FILES, hf:NAME or sketchbook"
    add("sources", nargs="+", metavar="SPEC", help=f"{kinds}; or a JSON object with options, as in a config")
    add_json(parser)
    add("--tokenizer", metavar="MODEL", help="count tokens as this model does (a model's name or folder)")
    add("--max-side", type=int, metavar="PIXELS", help="longest side of a picture; default: 8192")
    add("--max-pictures", type=int, metavar="N", help="most pictures in a sample; default: 64")
    add("--max-tokens", type=int, metavar="N", help="most tokens in a sample; needs --tokenizer")
    add("--samples", type=int, metavar="N", help="check only the first N of each source; endless ones: default 1000")
    add("--workers", type=int, default=0, metavar="N", help="processes that read; default: this one alone")
    add("--quiet", action="store_true", help="no progress and no list of bad samples on stderr")


def run_check(args: argparse.Namespace) -> int:
    for name in ("samples", "workers"):
        value = getattr(args, name)
        if value is not None and value < (1 if name == "samples" else 0):
            raise DuoGenError(f"--{name} is {value}; expected {'at least 1' if name == 'samples' else '0 or more'}.")
    report = _checked_report(args.json)
    from duogen_core.data.sources import Limits, open_source, parse_spec

    count_tokens = TokenCounter(args.tokenizer) if args.tokenizer else None
    given = {"max_side": args.max_side, "max_pictures": args.max_pictures}
    if args.max_tokens is not None:
        if count_tokens is None:
            raise DuoGenError("--max-tokens needs --tokenizer, the model whose tokens are counted.")
        given |= {"max_tokens": args.max_tokens, "count_tokens": count_tokens}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    specs = [parse_spec(text) for text in args.sources]
    sources = [open_source(spec, limits=limits) for spec in specs]
    results = [_check(source, args, count_tokens) for source in sources]
    for spec, (totals, _) in zip(specs, results, strict=True):
        totals.alignment = totals.good if spec.alignment else totals.alignment
    bad = sum(totals.bad for totals, _ in results)
    if write_json(report, _figures(sources, results)):
        return 1 if bad else 0
    print(_table([(source.name, totals) for source, (totals, _) in zip(sources, results)], count_tokens is not None))
    if alignment := sum(totals.alignment for totals, _ in results):
        print(f"{alignment:,} samples are alignment data, which stage 1 leaves out.")
    if bad:
        print(f"{bad:,} of {sum(t.good + t.bad for t, _ in results):,} samples cannot be used.")
    return 1 if bad else 0


def _check(source: Source, args: argparse.Namespace, count_tokens: Any) -> tuple[Totals, list[Bad]]:
    from duogen_core.data.sources.survey import Totals, survey

    samples = args.samples or 1000 if source.endless else min(args.samples or len(source), len(source))
    totals, named = Totals(), []
    bar = Bar(source.name, samples, args.quiet)
    for facts in survey(source, samples, count_tokens, args.workers):
        totals.add(facts)
        if facts.bad:
            bar.line(f"bad: {facts.bad.sentence}")
            if len(named) < MOST_NAMED:
                named.append(facts.bad)
        bar.step(totals.bad)
    bar.end(totals.bad)
    return totals, named


class TokenCounter:
    """How many tokens a document has for a model; the tokenizer is loaded in the process that counts."""

    def __init__(self, model: str) -> None:
        from duogen_core.checkpoint import resolve_mllm

        self.folder, self._loaded = resolve_mllm(model), None

    def __call__(self, document: Document) -> int:
        from duogen_core.mllm.chat import image_token_counts, layout
        from duogen_core.mllm.image_processor import load_image_processor
        from duogen_core.mllm.tokenizer import load_tokenizer

        if self._loaded is None:
            self._loaded = load_tokenizer(self.folder), load_image_processor(self.folder)
        tokenizer, processor = self._loaded
        return len(layout(document, tokenizer, image_token_counts(document, processor)).ids)


class Bar:
    """A progress bar on a terminal; elsewhere a line now and then."""

    def __init__(self, name: str, total: int, quiet: bool, stream: TextIO | None = None) -> None:
        self.name, self.total, self.quiet, self.stream = shown(name), total, quiet, stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.done, self.started, self.first, self.shown = 0, 0.0, 0, time.monotonic()

    def line(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(("\r\x1b[K" if self.live else "") + text + "\n")

    def step(self, bad: int) -> None:
        self.advance(1, bad)

    def advance(self, samples: int, bad: int) -> None:
        self.done += samples
        now = time.monotonic()
        if not self.started:  # what came first, with all that is loaded for it, is no part of the speed
            self.started, self.first = now, self.done
        if now - self.shown >= (0.1 if self.live else 10):
            self.shown = now
            self._show(bad)

    def end(self, bad: int) -> None:
        self._show(bad)
        if self.live:
            self.stream.write("\n")

    def _show(self, bad: int) -> None:
        if self.quiet:
            return
        share = self.done / max(self.total, 1)
        filled = int(BAR * share)
        text = f"{self.name} {self.done:,}/{self.total:,}, {bad:,} bad"
        if self.done > self.first:
            text += f", {(self.done - self.first) / max(time.monotonic() - self.started, 1e-6):,.0f} a second"
        if self.live:
            self.stream.write(f"\r\x1b[K{'█' * filled}{'░' * (BAR - filled)} {text}")
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def _table(rows: list[tuple[str, Totals]], with_tokens: bool) -> str:
    head = ["source", "samples", "bad", "turns", "pictures", "picture sizes"]
    if with_tokens:
        head += ["tokens", "most in one"]
    lines = [head]
    for name, totals in rows:
        cells = [harmless(name), totals.good + totals.bad, totals.bad, totals.turns, totals.pictures, _sizes(totals)]
        if with_tokens:
            cells += [totals.tokens, totals.most_tokens]
        lines.append([f"{cell:,}" if isinstance(cell, int) else cell for cell in cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    texts = {0, 5}
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k in texts else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _sizes(totals: Totals) -> str:
    common = [f"{w}x{h}" for (w, h), _ in totals.sizes.most_common(3)]
    more = len(totals.sizes) - len(common)
    return (", ".join(common) + (f" and {more:,} more, longest side {totals.largest_side:,}" if more else "")) or "-"


def _checked_report(name: str | None) -> str | None:
    if name in (None, STDOUT):
        return name
    file = Path(name)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise DuoGenError(f"--json {name} cannot be written; give a file in a folder that exists.")
    return name


def _figures(sources: list[Source], results: list[tuple[Totals, list[Bad]]]) -> dict[str, Any]:
    entries = []
    for source, (totals, named) in zip(sources, results, strict=True):
        bad = [{"index": each.index, "sample": each.label, "sentence": each.sentence} for each in named]
        entry = {"source": source.name, "identity": source.identity(), **totals.to_json(), "bad_samples": bad}
        entries.append({**entry, "bad_not_named": totals.bad - len(named)})
    totals_of = {
        name: sum(entry[name] for entry in entries) for name in ("samples", "good", "bad", "turns", "pictures")
    }
    return {"sources": entries, "totals": totals_of}


check = Command(add_check, run_check)
