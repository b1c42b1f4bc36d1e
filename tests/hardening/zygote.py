"""Runs commands in forked children of one process that has imported everything, so that a start costs milliseconds.

    with Zygote() as zygote:
        ended = zygote.run(["inspect", "model.safetensors"], cwd=folder)      # a command line of duogen_core
        child = zygote.start(["generate", …]); time.sleep(0.4); child.kill()

The zygote is a process of its own, with one thread, that never computes anything: forking it is safe, while forking the
campaign (which runs servers in threads) is not. A child is a session of its own, so that it and its workers can be
killed together. What it did is written to files as it happens, so a kill -9 loses none of it:

- `renames`: each os.replace and os.rename, after it was done: what the command could call finished;
- `outside`: each write, link, connection or program that its `Guard` does not allow;
- `locks`: each lock of an output folder that it asked for, where it has a `Guard`.

Linux only: it reads /proc, and forks.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.cli import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
MODULE = "duogen_core.cli:main"
SECONDS = 120.0  # no command of a campaign takes longer, on a busy machine either


@dataclass(frozen=True)
class Guard:
    """What a child may do. Written to `outside` is what it may not; nothing is prevented."""

    write: tuple[str, ...]  # folders
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    programs: bool = False  # may start others, for example workers


@dataclass(frozen=True)
class Limits:
    memory: int | None = None  # bytes of address space on top of what the zygote has
    file_size: int | None = None  # bytes that any one file may have
    fault: dict[str, Any] = field(default_factory=dict)  # for faults.install


@dataclass(frozen=True)
class Ended:
    code: int  # exit code; -9 for a killed one
    seconds: float
    memory: int  # bytes: its largest resident size above that with which it began
    stdout: str
    stderr: str
    renames: tuple[tuple[str, str], ...]
    outside: tuple[str, ...]
    locks: tuple[str, ...] = ()
    timed_out: bool = False


class Child:
    def __init__(self, zygote: Zygote, pid: int, folder: Path, started: float) -> None:
        self.zygote, self.pid, self.folder, self.started = zygote, pid, folder, started

    def kill(self, group: bool) -> None:
        """kill -9, of this process alone or with all that it started."""
        for kill in (os.killpg, os.kill) if group else (os.kill,):  # it may not have made its group yet
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)

    def members(self) -> list[int]:
        """Processes of its session that still run."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    state, _, _, session = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.pid and state not in "ZX":
                        found.append(int(entry))
        return found

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Its end; one that takes longer is killed with its workers, and marked."""
        end = self.zygote.end_of(self.pid, seconds)
        late = end is None
        if late:
            self.kill(group=True)
            end = self.zygote.end_of(self.pid, 30)
            if end is None:
                raise RuntimeError(f"Process {self.pid} cannot be killed.")
        status, largest, at = end
        texts = {}
        for name in ("stdout", "stderr", "renames", "outside", "locks", "resident"):
            file = self.folder / name
            texts[name] = file.read_bytes().decode("utf-8", "replace") if file.exists() else ""
            file.unlink(missing_ok=True)
        self.folder.rmdir()
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        renames = tuple(tuple(json.loads(line)) for line in texts["renames"].splitlines())
        outside = tuple(dict.fromkeys(texts["outside"].splitlines()))
        # A fork begins without the pages of mapped files (a torch for CUDA maps a gigabyte), so the zygote's size is
        # no measure of what it begins with.
        memory = max(0, largest - int(texts["resident"] or largest))
        said, locks = (texts["stdout"], texts["stderr"]), tuple(texts["locks"].splitlines())
        return Ended(code, at - self.started, memory, *said, renames, outside, locks, late)


class Zygote:
    def __init__(self) -> None:
        self._notes = tempfile.TemporaryDirectory(prefix="duogen-hardening-")
        self.cache = Path(self._notes.name) / "cache"  # of Hugging Face's libraries
        environment = {
            **os.environ,
            **LIBRARIES,  # which the command line sets before it imports them
            "HF_HOME": str(self.cache),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            **{"MPLBACKEND": "agg", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)},
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        self._buffer, self._ends, self._number = b"", {}, 0
        self._pids: dict[int, int] = {}
        if not self._read(lambda: self._ends.get("ready"), 300):
            raise RuntimeError("The process that children are forked from did not start.")

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._notes.cleanup()

    def start(
        self,
        arguments: Sequence[Any],
        *,
        cwd: Path | None = None,
        module: str = MODULE,
        guard: Guard | None = None,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """`module:function`, called with the arguments, in a child."""
        self._number += 1
        number = self._number
        folder = Path(self._notes.name) / str(number)
        folder.mkdir()
        request = {
            **{"number": number, "module": module, "arguments": list(map(str, arguments)), "cwd": str(cwd or ROOT)},
            **{"notes": str(folder), "guard": vars(guard) if guard else None, "limits": vars(limits or Limits())},
            "environment": dict(environment or {}),
        }
        started = time.monotonic()
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        pid = self._read(lambda: self._pids.pop(number, None), 60)
        if pid is None:
            raise RuntimeError("The process that children are forked from has ended.")
        return Child(self, pid, folder, started)

    def run(self, arguments: Sequence[Any], *, seconds: float = SECONDS, **options: Any) -> Ended:
        child = self.start(arguments, **options)
        ended = child.wait(seconds)
        child.kill(group=True)  # workers that outlive it
        return ended

    def end_of(self, pid: int, seconds: float) -> tuple[int, int, float] | None:
        return self._read(lambda: self._ends.pop(pid, None), seconds)

    def _read(self, wanted: Any, seconds: float) -> Any:
        """Reads what the zygote says until `wanted` has something."""
        end = time.monotonic() + seconds
        while (found := wanted()) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                return None
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in map(json.loads, lines):
                if line[0] == "forked":
                    self._pids[line[1]] = line[2]
                elif line[0] == "ended":
                    self._ends[line[1]] = (line[2], line[3], time.monotonic())
                else:
                    self._ends["ready"] = True
        return found


# ---------------------------------------------------------------- the process that forks


def serve() -> None:
    import_everything()
    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign
    out, buffer, children = os.dup(1), b"", set()
    os.dup2(2, 1)

    def say(*what: Any) -> None:
        os.write(out, json.dumps(what).encode() + b"\n")

    say("ready")
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            for pid in list(children):
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    children.discard(pid)
                    say("ended", pid, status, usage.ru_maxrss * 1024)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for request in map(json.loads, lines):
                if (pid := os.fork()) == 0:
                    for descriptor in (wake, wakes, out):
                        os.close(descriptor)
                    signal.set_wakeup_fd(-1)
                    for number in (signal.SIGCHLD, signal.SIGINT):
                        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                    be_child(request)
                children.add(pid)
                say("forked", request["number"], pid)
    for pid in children:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def import_everything() -> None:
    """All modules of the core, and what they import only when it is used."""
    import importlib
    import pkgutil

    import duogen_core

    found = [each.name for each in pkgutil.walk_packages(duogen_core.__path__, "duogen_core.")]
    late = [
        "matplotlib.pyplot",
        "accelerate",
        "peft",
        "av",
        "pyarrow.parquet",
        "datasets",
        "lxml.html",
        "warcio",
        "fpdf",
    ]
    late += ["PIL.PngImagePlugin", "PIL.JpegImagePlugin", "PIL.WebPImagePlugin", "PIL.GifImagePlugin", "jsonschema"]
    late += ["zxingcpp", "py3langid", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "diffusers", "sqlite3"]
    late += ["transformers.models.qwen3_vl.modeling_qwen3_vl", "torch._dynamo", "multiprocessing.pool", "fpdf"]
    for name in [*found, *late]:
        if not name.endswith(("__main__", "child")):  # programs, not modules
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from diffusers import AutoencoderKLWan, CosmosTransformer3DModel  # noqa: F401  (a lazy module)
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration  # noqa: F401


# ---------------------------------------------------------------- the child


def be_child(request: dict[str, Any]) -> None:
    os.setsid()
    notes = Path(request["notes"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # found again, from the environment
    os.chdir(request["cwd"])
    for descriptor, name in ((0, os.devnull), (1, notes / "stdout"), (2, notes / "stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    (notes / "resident").write_text(str(resident))
    code = 1
    try:
        tell_renames(notes / "renames")
        if request["guard"] is not None:
            watch(Guard(**request["guard"]), notes)
        limit(Limits(**request["limits"]))
        module, _, function = request["module"].partition(":")
        __import__(module)
        code = getattr(sys.modules[module], function)(request["arguments"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        with contextlib.suppress(BaseException):
            traceback.print_exc()
    leave(code)


def leave(code: int) -> None:
    """What the interpreter does at its end, without tearing down what the fork shares."""
    import atexit
    import threading

    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(BaseException):
            step()
    os._exit(code)


def tell_renames(file: Path) -> None:
    notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def telling(rename: Any) -> Any:
        def wrapped(source: Any, target: Any, **options: Any) -> None:
            rename(source, target, **options)
            os.write(notes, json.dumps([os.path.abspath(os.fsdecode(source)), os.path.abspath(os.fsdecode(target))])
                     .encode() + b"\n")  # fmt: skip

        return wrapped

    os.replace, os.rename = telling(os.replace), telling(os.rename)


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {  # audit events, and which of their arguments are paths that are changed
    "os.mkdir": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "os.setxattr": (0,),
}  # fmt: skip
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


def watch(guard: Guard, folder: Path) -> None:
    notes, locks = (os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("outside", "locks"))
    allowed = tuple(os.path.realpath(folder) for folder in guard.write)

    def tell(what: str) -> None:
        os.write(notes, what.encode("utf-8", "backslashreplace").replace(b"\n", b"\\n") + b"\n")

    def check(event: str, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.fsdecode(path)
            head, tail = os.path.split(os.path.abspath(name))
            real = os.path.join(os.path.realpath(head), tail)
            if not real.startswith(("/dev/", "/proc/")) and not any(
                real == folder or real.startswith(folder + os.sep) for folder in allowed
            ):
                tell(f"{event} {name}")

    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        try:
            if event == "open":
                # A relative name may belong to a folder's descriptor (shutil.rmtree): os.remove's event has the same.
                if isinstance(arguments[2], int) and arguments[2] & WRITES & ~os.O_RDONLY:
                    check("open", arguments[0])
                    if str(arguments[0]).endswith(".lock.duogen-tmp"):
                        os.write(locks, f"{arguments[0]}\n".encode())
            elif event in PATHS:
                if not any(isinstance(each, int) and each >= 0 for each in arguments[len(PATHS[event]) :]):
                    for place in PATHS[event]:
                        check(event, arguments[place])
            elif event in PROGRAMS and not guard.programs:
                tell(f"{event} {arguments[0]} {arguments[1]}")
            elif event == "socket.connect" and isinstance(arguments[1], tuple):
                if arguments[1][0] not in guard.hosts:
                    tell(f"{event} {arguments[1]}")
            elif event == "socket.getaddrinfo":
                if arguments[0] not in guard.hosts:
                    tell(f"{event} {arguments[0]}")
            elif event == "pickle.find_class" and not guard.programs and not from_the_library():
                tell(f"{event} {arguments}")
        except Exception as error:
            tell(f"the guard itself failed at {event}: {error!r}")
        finally:
            inside = False

    sys.addaudithook(hook)


def from_the_library() -> bool:
    """Whether a library unpickles what it pickled itself, to copy an object (copyreg, multiprocessing)."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_globals.get("__name__", "").startswith(("multiprocessing", "concurrent.futures")):
            return True
    return False


def limit(limits: Limits) -> None:
    if limits.memory is not None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, resource.RLIM_INFINITY))
    if limits.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size, resource.RLIM_INFINITY))
    if limits.fault:
        from tests.hardening import faults

        faults.install(**limits.fault)


@contextlib.contextmanager
def shared(zygote: Zygote | None = None) -> Iterator[Zygote]:
    """The one given, or one of its own."""
    if zygote is not None:
        yield zygote
    else:
        with Zygote() as own:
            yield own


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
    os._exit(0)  # taking apart all that was imported takes many seconds on a busy machine
