"""generate --requests: answers a file of requests, several of them written together as one batch.

In: a text file, one request a line: the prompt itself, or a JSON object {"prompt": "…", "images": ["a.png"], "seed":
3, "out": "name"} of which only the prompt must be there; images are named from the file's own folder. Out: a folder for
each in --out, by its "out" or the number of its line. An answer that is finished there, to the same request and seed,
is left alone, so that a run which was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core import interrupt
from duogen_core.commands import answers
from duogen_core.commands.critic_options import Tries, open_critic
from duogen_core.commands.progress import Progress
from duogen_core.errors import DuoGenError, shown
from duogen_core.files import lock_folder, parse_json, read_limited

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.document import Document
    from duogen_core.pipeline import Callbacks
    from duogen_core.settings import Settings

MAX_BYTES = 256 << 20
FIELDS = {"prompt": (str, "text"), "images": (list, "a list"), "seed": (int, "a whole number"), "out": (str, "text")}
NAME = re.compile(
    r"[^\\/:*?\"<>|\x00-\x1f.][^\\/:*?\"<>|\x00-\x1f]{0,99}"
)  # a folder on every system, never hidden or above


@dataclass(frozen=True)
class Request:
    document: Document
    seed: int
    out: Path


def run_requests(args: argparse.Namespace) -> int:
    if args.prompt is not None or args.image or args.document:
        raise DuoGenError("--requests names a file of requests; leave out the prompt, --image and --document.")
    if args.batch < 1:
        raise DuoGenError(f"--batch must be at least 1, not {args.batch}.")
    settings = answers.settings_of(args, args.seed)
    out = Path(args.out)
    if not args.out.strip() or "\0" in args.out or (out.exists() and not out.is_dir()):
        raise DuoGenError(f"--out {shown(args.out)!r} must be the name of a folder.")
    requests = read_requests(Path(args.requests), out, settings.seed)
    for request in requests:
        answers.checked_out(str(request.out))
    with lock_folder(out):
        from duogen_core.document.store import finish_swap

        for request in requests:
            finish_swap(request.out)  # left half-way by a run that was killed
        progress = Progress(args.quiet)
        waiting = [request for request in requests if not _finished(request)]
        if len(waiting) < len(requests):
            progress.line(f"{len(requests) - len(waiting)} of {len(requests)} are finished already.")
        stopped = _answer_all(args, waiting, settings, progress) if waiting else False
    print(json.dumps(_summary(requests, progress)) if args.json else out, flush=True)
    return interrupt.EXIT_CODE if stopped else 0


def read_requests(file: Path, out: Path, seed: int) -> list[Request]:
    """Reads the file; a line that is no request is named with its number."""
    data = read_limited(file, MAX_BYTES, str(file), "file of requests")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DuoGenError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    requests: list[Request] = []
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        value = _checked(parse_json(line, where) if line.lstrip().startswith("{") else {"prompt": line.strip()}, where)
        name = value.get("out", f"{number:04d}")
        if not NAME.fullmatch(name) or name != name.rstrip(" ."):
            raise DuoGenError(f"{where}: out is {shown(name)!r}; expected a plain name for a folder in --out.")
        if (other := names.setdefault(name.casefold(), number)) != number:
            raise DuoGenError(f"{where}: out is {name!r}, as in line {other}; give each answer a folder of its own.")
        requests.append(Request(_document(value, file, where), value.get("seed", seed), out / name))
    if not requests:
        raise DuoGenError(f"{file} has no requests; write one on each line.")
    return requests


def _checked(value: dict[str, Any], where: str) -> dict[str, Any]:
    from duogen_core.settings import MAX_SEED

    for name, entry in value.items():
        if name not in FIELDS:
            raise DuoGenError(f"{where} has {shown(name)!r}, which is not known; expected {', '.join(FIELDS)}.")
        kind, called = FIELDS[name]
        if not isinstance(entry, kind) or isinstance(entry, bool):
            raise DuoGenError(f"{where}: {name} is {shown(repr(entry)[:60])}; expected {called}.")
    if not value.get("prompt", "").strip():
        raise DuoGenError(f"{where} has no prompt; write what the answer should be about.")
    if not 0 <= value.get("seed", 0) <= MAX_SEED:
        raise DuoGenError(f"{where}: seed is {value['seed']}; expected a number from 0 to {MAX_SEED}.")
    if not all(isinstance(name, str) for name in value.get("images", [])):
        raise DuoGenError(f"{where}: images must be names of files.")
    return value


def _document(value: dict[str, Any], file: Path, where: str) -> Document:
    from duogen_core.document import Document, Picture, Text

    try:
        pictures = [Picture.from_file(file.parent / name) for name in value.get("images", [])]
        return Document().begin_turn("user", [*pictures, Text(value["prompt"])])
    except DuoGenError as error:
        raise DuoGenError(f"{where}: {error}") from None


def _finished(request: Request) -> bool:
    """Whether the folder holds the whole answer to this request."""
    from duogen_core.document.reading import load_document

    if not (request.out / "document.html").is_file():  # it is written last
        return False
    try:
        found = load_document(request.out)
    except DuoGenError:
        return False
    of_this = found.turns[:-1] == request.document.turns and found.generation.get("seed") == request.seed
    return of_this and found.generation.get("stop_reason") not in (None, "interrupted")


def _answer_all(args: argparse.Namespace, requests: list[Request], settings: Settings, progress: Progress) -> bool:
    """Answers what is not finished, a batch at a time; returns whether it was stopped."""
    largest = max((request.document for request in requests), key=lambda document: len(document.pictures))
    components = answers.load_placed(args, largest, settings, progress)
    answers.say_size(settings, progress, components.config.picture.step)
    critic = open_critic(args, interrupt.requested)
    interrupt.finish()
    done: list[str] = []
    for start in range(0, len(requests), args.batch):
        group = requests[start : start + args.batch]
        how = {"critic": critic, "redraws": args.redraws or 0}
        if _answer_group(components, group, settings, progress, done, len(requests), how):
            print(f"Stopped. What was finished is in {args.out}.", file=sys.stderr)
            return True
    return False


def _answer_group(
    components: Components, group: list[Request], settings: Settings, progress: Progress, done: list[str], total: int,
    how: dict[str, Any],
) -> bool:  # fmt: skip
    """Answers one batch; returns whether it was stopped. how: critic and redraws."""
    from duogen_core.pipeline import generate_many

    with ExitStack() as locks:
        for request in group:  # another command may write to one of these folders by its own name
            locks.enter_context(lock_folder(request.out))
        watches = [_Watch(request, settings.max_images, progress, done, total, how["redraws"]) for request in group]
        try:
            generate_many(
                components, [request.document for request in group], settings, [request.seed for request in group],
                [watch.callbacks() for watch in watches], interrupt.requested, **how,
            )  # fmt: skip
        except KeyboardInterrupt:
            return True
    return bool(interrupt.requested())


class _Watch:
    """Writes one answer while it grows, and its pages when it has ended; says how far it is."""

    def __init__(
        self, request: Request, max_images: int, progress: Progress, done: list[str], total: int, redraws: int = 0
    ) -> None:
        from duogen_core.document.store import DocumentWriter

        self.request, self.max_images, self.progress = request, max_images, progress
        self.done, self.total = done, total  # of the whole run
        request.out.parent.mkdir(parents=True, exist_ok=True)
        (request.out / "document.html").unlink(missing_ok=True)  # of an earlier answer; a new one says: finished
        self.writer = DocumentWriter(request.out, overwrite=True)
        self.tries = Tries(request.out, redraws, progress)

    def callbacks(self) -> Callbacks:
        from duogen_core.pipeline import Callbacks

        return Callbacks(
            on_picture=self.picture,
            on_try=self.tries.on_try,
            on_document=self.document,
            on_notice=self.progress.line,
        )

    def picture(self, k: int, picture: Any) -> None:
        self.progress.line(f"  {self.request.out.name}: image {k + 1} of at most {self.max_images}")
        self.tries.on_picture(k, picture)

    def document(self, document: Document) -> None:
        self.writer.update(document)
        stop = document.generation["stop_reason"]
        if stop != "interrupted":  # as it is called until the answer has ended
            from duogen_core.render import write_rendered

            self.tries.finish(document)
            write_rendered(document, self.request.out)
            self.done.append(self.request.out.name)
            pictures = answers.count(len(document.pictures) - len(self.request.document.pictures), "image")
            self.progress.line(
                f"{len(self.done)} of {self.total}: {self.request.out.name}, {pictures}, {answers.REASONS[stop]}."
            )


def _summary(requests: list[Request], progress: Progress) -> list[dict[str, Any]]:
    from duogen_core.document.reading import load_document

    shown_: list[dict[str, Any]] = []
    for request in requests:
        if (request.out / "document.json").is_file():
            document = load_document(request.out)
            pictures = len(document.pictures) - len(request.document.pictures)
            shown_.append(answers.summary(document, request.out, pictures, progress))
    return shown_
