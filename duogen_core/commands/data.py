"""The commands of `data` for documents of any kind; the engines stand in `data_engines` and `synthetic`.

    check    reads every sample of some sources, names the bad ones and says what the good ones hold
    make     draws Documents of Sketchbook
    export   any source of Documents -> interleaved Parquet files (NeMo Curator's rows) or tars
    stats    what a run of an engine kept, and which rule refused the rest: a table, a plot and JSON
    view     one HTML file that shows the same, rule by rule

check: bad samples go to stderr as they are found, each with its sentence; the table to stdout. It exits with 0 if all
are good, 1 if some are bad, 2 if a source cannot be opened. Of endless sources the first --samples cases are checked.
make: the Documents are a pure function of the options; the names of their random generators are not those of the
evaluation. DIR appears when all of them are written, with an overview of the first ones as DIR/overview.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TextIO

from duogen_core.commands.progress import StatusLine, harmless
from duogen_core.commands.run_options import STDOUT, Command, add_json, write_json
from duogen_core.errors import DuoGenError, shown
from duogen_core.files import atomic_path

if TYPE_CHECKING:
    from duogen_core.data.sources import Bad, Source
    from duogen_core.data.sources.survey import Totals
    from duogen_core.document import Document
    from duogen_core.sketchbook.tasks.common import Case

MOST_NAMED = 10_000  # bad samples of a source in the report; all of them are counted


def add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "documents:DIR, jsonl:FILE, webdataset:FILES, parquet:FILES, stream:FILES, hf:NAME or sketchbook"
    add("sources", nargs="+", metavar="SPEC", help=f"{kinds}; or a JSON object with options, as in a config")
    add_json(parser)
    add("--tokenizer", metavar="MODEL", help="count tokens as this model does (a model's name or folder)")
    add("--max-side", type=int, metavar="PIXELS", help="maximum side of an image in pixels; default: 8192")
    add("--max-pictures", type=int, metavar="N", help="maximum number of images in a sample; default: 64")
    add("--max-tokens", type=int, metavar="N", help="maximum number of tokens in a sample; needs --tokenizer")
    add("--samples", type=int, metavar="N", help="check only the first N of each source; endless ones: default 1000")
    add("--workers", type=int, default=0, metavar="N", help="number of reading processes; default: only this one")
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
    from duogen_core.data.sources.stream import Stream
    from duogen_core.data.sources.survey import Totals, survey

    if isinstance(source, Stream):  # it has an end, only nobody knows where before it was read
        samples = args.samples
    else:
        samples = args.samples or 1000 if source.endless else min(args.samples or len(source), len(source))
    totals, named = Totals(), []
    bar = CheckProgress(source.name, samples or 0, args.quiet)
    for facts in survey(source, samples, count_tokens, args.workers):
        totals.add(facts)
        if facts.bad:
            bar.line(f"bad: {facts.bad.sentence}")
            if len(named) < MOST_NAMED:
                named.append(facts.bad)
        bar.step(totals.bad)
    bar.finish(totals.bad)
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


class CheckProgress(StatusLine):
    """How many samples of a source were read, and how many of them are bad."""

    def __init__(self, name: str, total: int, quiet: bool, stream: TextIO | None = None) -> None:
        super().__init__(quiet, stream)
        self.name, self.total = shown(name), total
        self.done, self.started, self.first = 0, 0.0, 0

    def step(self, bad: int) -> None:
        self.advance(1, bad)

    def advance(self, samples: int, bad: int) -> None:
        self.done += samples
        if not self.started:  # what came first, with all that is loaded for it, is no part of the speed
            self.started, self.first = time.monotonic(), self.done
        if self.due(0.1):
            self.state(bad)

    def finish(self, bad: int) -> None:
        self.state(bad)
        self.end()

    def state(self, bad: int) -> None:
        total = f"/{self.total:,}" if self.total else ""
        text = f"{self.name} {self.done:,}{total}, {bad:,} bad"
        if self.done > self.first:
            text += f", {(self.done - self.first) / max(time.monotonic() - self.started, 1e-6):,.0f} a second"
        self.show(text, self.done / max(self.total, 1))


def _table(rows: list[tuple[str, Totals]], with_tokens: bool) -> str:
    head = ["source", "samples", "bad", "turns", "images", "image sizes"]
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


# ------------------------------------------------------------ make

SHOWN = 40  # documents in the overview


def add_make(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the folder to make; it must not exist, or be empty")
    add("--count", type=int, default=200, metavar="N", help="how many documents; default: 200")
    add("--thing", metavar="NAME", help="only guides of this thing, and drawings of it to continue")
    add("--families", metavar="A,B", help="only these tasks, equally often; default: all, as in training")
    add("--seed", type=int, default=0, metavar="N", help="another seed gives other documents; default: 0")
    parser.set_defaults(locks=lambda args: [args.out])


def run_make(args: argparse.Namespace) -> int:
    from duogen_core.errors import unknown
    from duogen_core.sketchbook.tasks import FAMILIES, OF_THINGS, WEIGHTS
    from duogen_core.sketchbook.things import thing_named

    if args.count < 1:
        raise DuoGenError(f"--count must be at least 1, not {args.count}.")
    families = [name.strip() for name in args.families.split(",")] if args.families is not None else []
    for name in families:
        if name not in FAMILIES:
            raise DuoGenError(unknown("--families: the task", name, FAMILIES))
        if args.thing and name not in OF_THINGS:
            raise DuoGenError(f"--families {name} is not about one thing; with --thing give {' or '.join(OF_THINGS)}.")
    weights = dict.fromkeys(families, 1.0) or ({"guide": 0.75, "continue": 0.25} if args.thing else WEIGHTS)
    if args.thing:
        thing_named(args.thing)
    folder = checked_folder(args.out)
    try:
        with atomic_path(folder) as temporary:
            made = make_documents(temporary, args.count, args.seed, weights, args.thing)
            overview(made[:SHOWN], temporary / "overview.png")
    except OSError as error:
        raise DuoGenError(f"The documents cannot be written to {folder}: {error.strerror or error}.") from None
    counts = {name: sum(case.family == name for case in made) for name in weights}
    print(f"{len(made)} documents ({', '.join(f'{n} {name}' for name, n in counts.items() if n)}):")
    print(folder)
    return 0


def make_documents(folder: Path, count: int, seed: int, weights: dict[str, float], thing: str | None) -> list[Case]:
    from duogen_core.document.store import save_document
    from duogen_core.sketchbook.tasks import evaluation_case, training_case

    made = []
    for number in range(count):
        rng = Random(f"make-{seed}-{f'{thing}-' if thing else ''}{number}")
        if thing:
            case = evaluation_case(rng.choices(list(weights), list(weights.values()))[0], rng, thing=thing)
        else:
            case = training_case(rng, weights)
        meta = {"source": "sketchbook", "family": case.family, "truth": dict(case.truth)}
        save_document(replace(case.document, meta=meta), folder / f"{number:06d}")
        made.append(case)
    return made


def overview(made: Sequence[Case], file: Path) -> None:
    from duogen_core.evaluation.report import contact_sheet

    rows = [
        (f"{number:06d} {case.family}", case.document, len(case.prompt.turns), {}) for number, case in enumerate(made)
    ]
    contact_sheet(rows, file)


def checked_folder(name: str) -> Path:
    folder = Path(name)
    if not name.strip() or (folder.exists() and not folder.is_dir()):
        raise DuoGenError(f"--out {name!r} must be the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise DuoGenError(f"The folder {name} has something in it; choose another --out, or empty it first.")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {name} cannot be made ({error.strerror}); choose another --out.") from None
    return folder


sketchbook = Command(add_make, run_make)


# ------------------------------------------------------------ export


def add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SPEC", help="webdataset:FILES, documents:DIR, jsonl:FILES, parquet:FILES or hf:NAME")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder of the shards; an export that was begun there is continued",
    )
    add("--to", choices=("parquet", "webdataset", "mint1t"), default="parquet", help="mint1t: tars that Curator reads")
    add("--shard-samples", type=int, default=1000, metavar="N", help="samples per shard; default: 1000")
    add("--photo-quality", type=int, metavar="Q", help="photographs as JPEG of this quality; default: PNG, exact")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [args.out])


def run_export(args: argparse.Namespace) -> int:
    from duogen_core.data.export import ENDINGS
    from duogen_core.data.export import export as write
    from duogen_core.data.sources import open_source

    source = open_source(args.source)
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise DuoGenError(f"--out {folder} is a file; give a folder.")
    bar = CheckProgress(source.name, 0 if source.endless else len(source), args.quiet)
    written = bad = 0
    for result in write(source, folder, args.to, args.shard_samples, args.photo_quality):
        written, bad = written + result["samples"], bad + result["bad"]
        bar.advance(result["samples"] + result["bad"], bad)
    bar.finish(bad)
    left_out = f", {bad:,} bad ones left out and named in {folder / 'bad_samples.jsonl'}" if bad else ""
    there = len(source) - written - bad
    print(f"{written:,} documents written{left_out}{f'; {there:,} were done before' if there else ''}.")
    print(f"{'parquet' if args.to == 'parquet' else 'webdataset'}:{folder}/*.{ENDINGS[args.to]}")
    return 0


export = Command(add_export, run_export)


# ------------------------------------------------------------ stats


def add_stats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web` or of another engine")
    add("--plot", metavar="FILE", help="write a plot of what is left after each rule (PNG)")
    add_json(parser)


def run_stats(args: argparse.Namespace) -> int:
    from duogen_core.data.runs import log
    from duogen_core.data.runs.log import open_logs

    logs = open_logs(Path(args.folder))
    found, empty = log.surveys(logs)
    figures = {each.log.folder.name: each.to_json() for each in found} if len(logs) > 1 else found[0].to_json()
    if args.plot:
        log.plot(found, Path(args.plot))
    if write_json(args.json, figures):
        return 0
    for each in found:
        print((f"{each.log.folder}\n" if len(logs) > 1 else "") + log.text(each))
    for each in empty:
        print(f"{each.folder}\nbegun, and nothing is finished yet")
    if args.plot:
        print(args.plot)
    return 0


stats = Command(add_stats, run_stats)


# ------------------------------------------------------------ view


def add_view(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web` or of another engine")
    add("--out", metavar="FILE", help="the HTML file; default: DIR/report.html")
    add("--samples", type=int, default=50, metavar="N", help="kept and refused samples shown per rule; default: 50")
    add("--pages", type=int, default=10, metavar="N", help="data web: pages shown before and after; default: 10")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [_view_file(args)])


def _view_file(args: argparse.Namespace) -> Path:
    return Path(args.out or Path(args.folder, "report.html"))


def run_view(args: argparse.Namespace) -> int:
    if args.samples < 1 or args.pages < 0:
        raise DuoGenError(f"--samples is {args.samples} and --pages {args.pages}; expected at least 1 and 0.")
    from duogen_core.data.runs import report as run_report
    from duogen_core.data.runs.log import open_logs

    folder, file = Path(args.folder), _view_file(args)
    progress = StatusLine(args.quiet)
    kinds = [log.kind for log in open_logs(folder)]

    def step(done: int, total: int) -> None:
        if progress.live:
            progress.show(f"{done:,}/{total:,} looked at again")
            if done == total:
                progress.end()

    if kinds == ["web"]:
        from duogen_core.data.runs.run import open_run
        from duogen_core.data.web.report import write_report

        write_report(open_run(folder, "web"), file, args.samples, args.pages, step)
    elif kinds == ["dedup"]:
        from duogen_core.data.dedup.report import write_report
        from duogen_core.data.runs.run import open_run

        write_report(open_run(folder, "dedup"), file, args.samples, step)
    elif kinds in (["video"], ["editing"]):
        from duogen_core.data.pairs import report

        report.write_report(folder, file, args.samples, step)
    else:
        run_report.write_report(folder, file, args.samples)
    print(file)
    return 0


view = Command(add_view, run_view)
