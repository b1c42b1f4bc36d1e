"""evaluate run, export, import: a benchmark's requests through a model, and official submissions both ways.

run       official requests -> OUT: answers as a run of shards that goes on, OUT/submission in the official layout
export    answers that are there (a run, documents) -> a submission
import    a submission, whoever wrote it -> answers, to be looked at, judged and reported like those of `run`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.data_engines import do_run
from duogen_core.commands.drawing_options import (
    PARTS,
    add_drawing_options,
    drawing_identity,
    drawing_settings,
    load_drawing_model,
    model_name,
    plain_name,
    size_of,
)
from duogen_core.commands.endpoint_options import add_model_options
from duogen_core.commands.run_options import Command, RunProgress, add_json, check_workers, write_json
from duogen_core.commands.run_options import plain as plain_options
from duogen_core.errors import DuoGenError, shown

if TYPE_CHECKING:
    from duogen_core.data.synthetic.comfyui_painter import WorkflowPainter
    from duogen_core.evaluation.benchmarks import Benchmark
    from duogen_core.evaluation.models import Model
    from duogen_core.llm.client import Client

SUBMISSION = "submission"
SERVER = "http://127.0.0.1:8188"
DEFAULTS = {"max_images": 8, "max_tokens": 1024, "device": "auto", "dtype": "auto", "offload": "auto", "compile": False}


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    from duogen_core.evaluation.benchmarks import NAMES

    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--requests", metavar="FILE", help="the official file of requests, with its images beside it; howto has its own"
    )


def benchmark_of(args: argparse.Namespace) -> tuple[Benchmark, Path]:
    """Returns the benchmark and its file of requests."""
    from duogen_core.evaluation.benchmarks import benchmark

    bench = benchmark(args.benchmark)
    ours = getattr(bench, "OURS", None)
    if not args.requests and ours is None:
        raise DuoGenError(f"--requests is missing: the official file of {bench.title} ({bench.source}).")
    return bench, Path(args.requests) if args.requests else ours


def check_name(name: str | None, option: str = "--name") -> None:
    """What submissions and files of results call a model or a judge: told before a run, not when all is paid."""
    from duogen_core.document import is_text
    from duogen_core.evaluation.results import MAX_NAME

    if name is not None and (not name.strip() or len(name) > MAX_NAME or not is_text(name)):
        raise DuoGenError(f"{option} is {shown(repr(name)[:60])}; expected a text of at most {MAX_NAME} characters.")


def add_out(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help=about)
    parser.set_defaults(locks=lambda args: [args.out] if args.out.strip() else [])
    add_json(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def out_of(args: argparse.Namespace) -> Path:
    if not args.out.strip() or "\0" in args.out:
        raise DuoGenError(f"--out {shown(args.out)!r} must be the name of a folder.")
    return Path(args.out)


# ------------------------------------------------------------ run


def add_run(parser: argparse.ArgumentParser) -> None:
    add_benchmark(parser)
    add_out(parser, "the run's folder; a run that was stopped goes on")
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="only N requests, spread over the file")
    add("--seed", type=int, default=0, metavar="N", help="of the run; every request's is made of it; default: 0")
    add(
        "--max-images",
        type=int,
        default=DEFAULTS["max_images"],
        metavar="N",
        help="of an answer whose number is free; default: 8",
    )
    add(
        "--insist",
        action="store_true",
        help="where a benchmark fixes the number of images and the model draws fewer, draw the missing ones at the end",
    )
    add(
        "--max-tokens",
        type=int,
        default=DEFAULTS["max_tokens"],
        metavar="N",
        help="maximum number of text tokens; default: 1024",
    )
    add("--size", metavar="WxH", help="size of the images; default: the model's or the workflow's own")
    add("--shard", type=int, default=8, metavar="N", help="answers per shard; default: 8")
    add("--give-up", type=int, default=3, metavar="N", help="stop when so many in a row fail; default: 3")
    add("--jobs", dest="workers", type=int, default=1, metavar="N", help="processes, each with a model; default: 1")
    about = "ray: on the cluster of RAY_ADDRESS, or here; the same bytes"
    add("--backend", choices=("local", "ray"), default="local", help=about)
    add("--name", metavar="NAME", help="what the submission calls the model; default: its own name")
    add_drawing_options(parser)
    add_model_options(parser, "writer", "plans every answer, which is then drawn")
    group = parser.add_argument_group("ComfyUI").add_argument
    group(
        "--workflow",
        metavar="FILE",
        help="the model under test is this workflow (API format), with ${prompt} in it, perhaps ${seed}, and "
        "${image_1}, ${image_2} in LoadImage nodes",
    )
    group(
        "--painter", action="append", default=[], metavar="comfyui:FILE",
        help="with --writer: draw with this workflow, as `generate --painter` does",
    )  # fmt: skip
    group("--server", default=SERVER, metavar="URL", help="the ComfyUI server; default: %(default)s")
    group("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one run of a workflow; default: 600")


def run_run(args: argparse.Namespace) -> int:
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.evaluation.running import RunEngine

    check_workers(args)
    check_name(args.name)
    _check(args)
    bench, file = benchmark_of(args)
    out = out_of(args)
    open_model = partial(_open_model, plain_options(args))
    engine = RunEngine(
        args.benchmark, file, open_model, args.seed, args.limit, not (args.workflow or args.painter), _identity(args)
    )

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"all": 1, "kept": int(not rule_of(dict(entry))), "pictures": kept_parts(dict(entry), "pictures")}

    with engine:
        done = do_run(args, engine, out, args.shard, count, workers=args.workers, give_up=args.give_up)
        name = args.name or str((done.run.details or {}).get("model") or "model")
    main, _ = _export(args, bench, file, [out], out / SUBMISSION, name, replaced=True)
    figures = {
        "benchmark": bench.name, "model": name, "requests": done.total, "answers": done.found["kept"],
        "images": done.found["pictures"], "failed": done.total - done.found["kept"], "submission": str(main),
        "seconds": round(done.seconds, 1),
    }  # fmt: skip
    if write_json(args.json, figures):
        return 0
    print(_told(bench, done))
    if failed := done.total - done.found["kept"]:
        print(f"{failed:,} requests have no answer yet; the same command asks for them again.")
    print(main)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("max_images", 1), ("max_tokens", 1), ("give_up", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise DuoGenError(f"--{name.replace('_', '-')} is {value}; expected at least {least}.")
    if args.workflow and (args.writer or args.model or any(getattr(args, part) for part in PARTS)):
        raise DuoGenError("--workflow is the model under test; leave out --writer, --model, --mllm, --dit and --vae.")
    if args.painter and not args.writer:
        raise DuoGenError("--painter draws what a --writer has planned; give one, or name a --workflow.")
    for what, said, names in (
        (
            args.workflow,
            "--workflow answers by itself",
            ("steps", "guidance", "size", "max_tokens", "device", "dtype", "offload", "compile"),
        ),
        (args.painter, "--painter draws", ("model", *PARTS, "steps", "guidance")),
        (args.writer, "--writer plans how much it writes and draws", ("max_images", "max_tokens")),
        (not args.writer, "There is no --writer", ("writer_model", "writer_key_variable", "writer_tokenizer")),
    ):
        given = [name for name in names if getattr(args, name) not in (None, "", DEFAULTS.get(name))]
        if what and given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise DuoGenError(f"{said}, so that nothing would become of {options}; leave that out.")
    if args.server != SERVER and not (args.painter or args.workflow):
        raise DuoGenError("--server is for --workflow and --painter; give one of them.")
    if args.insist and (args.writer or args.workflow):
        raise DuoGenError("--insist is for a DuoGen model that draws as it goes; leave it out.")
    if not args.timeout > 0:
        raise DuoGenError(f"--timeout is {args.timeout}; expected more than 0.")


def _open_model(args: argparse.Namespace) -> Model:
    """The model under test, in whichever process answers."""
    from duogen_core.evaluation.models import OwnModel, PlannedModel, WorkflowModel

    if args.workflow:
        return WorkflowModel(Path(args.workflow), args.server, args.timeout, args.max_images)
    # Nothing of the model's own (generation_config.json): a run's folder names the settings it was made with.
    plainly = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    settings = replace(drawing_settings(args), max_images=args.max_images, max_new_tokens=args.max_tokens, **plainly)
    load = partial(load_drawing_model, args)
    if not args.writer:
        return OwnModel(model_name(args), load, settings, args.insist)
    writer = _writer_name(args)
    draws = ", ".join(Path(one.partition(":")[2]).stem for one in args.painter) or model_name(args)
    about = {"writer": writer, "painter": draws}
    open_painter = partial(_open_painter, args) if args.painter else None
    return PlannedModel(f"{writer} + {draws}", partial(_open_writer, args), settings, load, open_painter, about)


def _writer_name(args: argparse.Namespace) -> str:
    from duogen_core.llm.opening import is_address

    if not is_address(args.writer):
        return plain_name(args.writer)
    return args.writer_model.rpartition("/")[2] or plain_name(_open_writer(args).endpoint.model)


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    """What answers depend on and no `Model` knows: the weights behind a name, and the precision."""
    from duogen_core.data.runs.folder import weights_digest
    from duogen_core.llm.opening import is_address

    found = {} if args.workflow or args.painter else drawing_identity(args)
    if args.writer and not is_address(args.writer):
        dtype = args.dtype if args.writer_dtype == "auto" else args.writer_dtype
        places = [Path(args.writer)] if Path(args.writer).exists() else []
        found |= {"writer_dtype": dtype, "writer_weights": weights_digest(*places)}
    return found


def _open_writer(args: argparse.Namespace) -> Client:
    from duogen_core.commands.endpoint_options import model_of

    return model_of(args, "writer")


def _open_painter(args: argparse.Namespace) -> WorkflowPainter:
    from duogen_core.commands.planned import open_painter

    painter = open_painter(args, size_of(args.size))
    assert painter is not None
    return painter


def _told(bench: Benchmark, done: Any) -> str:
    from duogen_core.commands.answers import count

    answers, images = count(done.found["kept"], "answer"), count(done.found["pictures"], "image")
    return f"{answers} of {bench.title} with {images}."


run = Command(add_run, run_run)


# ------------------------------------------------------------ export, import


def add_export(parser: argparse.ArgumentParser) -> None:
    add_benchmark(parser)
    parser.add_argument(
        "documents",
        nargs="+",
        metavar="DOCUMENTS",
        help="a run of `evaluate run` or `evaluate import`, a document, or a folder of documents",
    )
    add_out(parser, "a new folder for the submission")
    parser.add_argument("--name", default="model", metavar="NAME", help="what the submission calls the model")


def run_export(args: argparse.Namespace) -> int:
    check_name(args.name)
    bench, file = benchmark_of(args)
    main, missing = _export(args, bench, file, [Path(name) for name in args.documents], out_of(args), args.name)
    if write_json(args.json, {"benchmark": bench.name, "submission": str(main), "without_answer": missing}):
        return 0
    if missing:
        print(f"{missing:,} requests have no answer among these documents and are not in the submission.")
    print(main)
    return 0


def _export(
    args: argparse.Namespace, bench: Benchmark, file: Path, places: list[Path], out: Path, name: str,
    replaced: bool = False,
) -> tuple[Path, int]:  # fmt: skip
    """Returns what the scorer is given, and how many requests have no answer. replaced: what an earlier run of the
    same folder has written there gives way."""
    from duogen_core.evaluation.running import answered, checked_items, export

    progress = RunProgress(args.quiet, "answers")
    seen: set[str] = set()
    asked = 0

    def counted():
        nonlocal asked
        for item in checked_items(bench, file):
            asked += 1
            yield item

    def answers():
        first = counted()
        for place in places:
            for item, document in answered(place, bench, first if place is places[0] else checked_items(bench, file)):
                if item.id in seen:
                    raise DuoGenError(f"{item.id!r} is answered twice by these documents; leave one of them out.")
                seen.add(item.id)
                yield item, document
        for _ in first:  # those after the last answer are counted, too
            pass

    progress.line(f"Writing {out} …")
    main = export(bench, answers(), out, name, replaced=replaced)
    return main, asked - len(seen)


export = Command(add_export, run_export)


def add_import(parser: argparse.ArgumentParser) -> None:
    add_benchmark(parser)
    parser.add_argument("submission", metavar="SUBMISSION", help="the folder or main file in the official layout")
    add_out(parser, "the folder for the answers")
    parser.add_argument("--name", default="model", metavar="NAME", help="what the report calls the model")
    parser.set_defaults(backend="local")


def run_import(args: argparse.Namespace) -> int:
    from duogen_core.data.runs.log import kept_parts
    from duogen_core.evaluation.running import ImportEngine

    check_name(args.name)
    bench, file = benchmark_of(args)
    place = Path(args.submission)
    if not place.exists():
        raise DuoGenError(f"The submission {shown(str(place))} does not exist; check the path.")

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"kept": 1, "pictures": kept_parts(dict(entry), "pictures")}

    with ImportEngine(args.benchmark, file, place, args.name) as engine:
        done = do_run(args, engine, out_of(args), 32, count)
    figures = {"benchmark": bench.name, "answers": done.found["kept"], "images": done.found["pictures"]}
    if not write_json(args.json, figures):
        print(_told(bench, done))
        print(done.run.folder)
    return 0


import_ = Command(add_import, run_import)
