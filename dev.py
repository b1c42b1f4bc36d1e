"""The two commands of this repository, for a machine that has Python and nothing else.

    python3 dev.py answer ["question"] [options of `generate`]    answer with the bundled model, into answer/
    python3 dev.py test [--quick] [options of pytest]             style and all tests; --quick: those of the core that
                                                                  need no server, no browser and no training

Both make their own environment in .venv on the first run and bring it up to date when the requirements change.
Only the standard library is used here. The exit code is that of the command that ran.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = "torch==2.13.0"  # what the bundled model was trained and measured with; any torch that is there already is kept
LONGEST = ("--durations=40", "--durations-min=15")  # what the tests say at the end: where the time went
QUESTION = "How do I draw a house with a red roof?"


class Failed(Exception):
    """A sentence for the user and the exit code."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036, for whoever starts it with an older one
        raise Failed("This needs Python 3.10 or newer; the one running is {}.{}.".format(*sys.version_info[:2]))
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "answer":
        return answer(rest)
    if command == "test":
        return test(rest)
    print(__doc__.strip(), file=sys.stdout if command in ("-h", "--help") else sys.stderr)
    return 0 if command in ("-h", "--help") else 2


def answer(arguments: list[str]) -> int:
    """Answer a question with the bundled model and say where the answer lies."""
    question, options = (
        (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else (QUESTION, arguments)
    )
    prepare("requirements.txt")
    out = ROOT / "answer"
    code = run([PYTHON, "-m", "duogen_core", "generate", "--out", out, *options, "--", question], PYTHONPATH=str(ROOT))
    if code == 0 and not any(option.startswith(("--out", "--help", "-h")) for option in options):
        print(f"Open it in a browser: {out / 'document.html'}")
    return code


def test(arguments: list[str]) -> int:
    """Check the style and run the tests; every check runs, and the first that failed gives the exit code.

    Each further ComfyUI beside the first one (such as ~/comfy/ComfyUI-0.28) runs the tests that are marked so.
    """
    if not (ROOT / "tests").is_dir():
        raise Failed("This copy of the pack has no tests; the repository has them: clone it, and run this there.")
    requirements = ["requirements.txt", "requirements-dev.txt"]
    quick = "--quick" in arguments
    arguments = [argument for argument in arguments if argument != "--quick"]
    comfyui = None if quick else find_comfyui()
    settings = {}
    if comfyui:
        settings["COMFYUI_PATH"] = str(comfyui)
        if (ROOT / "requirements-comfyui-test.txt").is_file():
            requirements.append("requirements-comfyui-test.txt")
    if quick:
        arguments = ["tests/core", "tests/test_dev.py", "--ignore=tests/core/training", "-m", "not slow", *arguments]
    else:
        print(f"ComfyUI: {comfyui or 'not found, so the tests against it will be skipped'}", flush=True)
    prepare(*requirements)
    # One test process more than there are cores, since many tests wait for a server; and few threads of torch in each,
    # since the models of the tests are small. Four are enough: each starts ComfyUI servers of its own.
    cores = os.cpu_count() or 1
    workers = min(4, cores + 1)
    settings["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    parallel = ["-n", str(workers), "--dist", "worksteal"]
    codes = [run([PYTHON, "-m", "ruff", "check", ROOT]), run([PYTHON, "-m", "ruff", "format", "--check", ROOT])]
    codes.append(run([PYTHON, "-m", "pytest", "-rs", *parallel, *LONGEST, *arguments], cwd=ROOT, **settings))
    for version in other_versions(comfyui) if not arguments else []:
        print(f"ComfyUI: {version}", flush=True)
        marked = ["tests/comfyui", "-m", "every_comfyui"]
        settings["COMFYUI_PATH"] = str(version)
        codes.append(run([PYTHON, "-m", "pytest", "-rs", *parallel, *marked], cwd=ROOT, **settings))
    return next((code for code in codes if code), 0)


def find_comfyui() -> Path | None:
    """The folder of ComfyUI: $COMFYUI_PATH, the one this pack is installed in, or the usual places."""
    places = [os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    if ROOT.parent.name == "custom_nodes":
        places.insert(1, ROOT.parent.parent)
    return next((Path(place) for place in places if place and (Path(place) / "main.py").is_file()), None)


def other_versions(comfyui: Path | None) -> list[Path]:
    """Folders beside ComfyUI's that are named for a version, such as ComfyUI-0.28."""
    folders = comfyui.parent.glob("ComfyUI-[0-9]*") if comfyui else ()
    return sorted(folder for folder in folders if (folder / "main.py").is_file())


def prepare(*requirements: str) -> None:
    """Bring .venv to what these files ask for. A file that was installed and has not changed costs nothing."""
    if not works("import pip"):
        print(f"Making an environment in {VENV} …", file=sys.stderr, flush=True)
        if run([sys.executable, "-m", "venv", "--clear", VENV]) != 0 or not works("import pip"):
            raise Failed(
                f"The environment {VENV} could not be made. On Debian and Ubuntu this needs the package python3-venv; "
                "elsewhere check that the folder can be written and the disk is not full."
            )
    pending = [name for name in requirements if not is_installed(name)]
    if pending and not works("import torch"):
        pip(TORCH)
    for name in pending:
        pip("-r", str(ROOT / name))
        stamp(name).write_text(fingerprint(name), encoding="utf-8")


def stamp(name: str) -> Path:
    return VENV / f"installed-{name}.sha256"


def fingerprint(name: str) -> str:
    return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()


def is_installed(name: str) -> bool:
    return stamp(name).is_file() and stamp(name).read_text(encoding="utf-8") == fingerprint(name)


def works(code: str) -> bool:
    """Whether the environment's Python exists and runs this."""
    return PYTHON.is_file() and subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode == 0


def pip(*what: str) -> None:
    wanted = Path(what[-1]).name
    print(f"Installing {wanted} (only the first time; torch alone is large) …", file=sys.stderr, flush=True)
    code = run([PYTHON, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *what], stdout=sys.stderr)
    if code:
        raise Failed(
            f"Installing {wanted} failed; the reason is above. Check the network connection and the free disk space, "
            "then run the same command again: it goes on where it stopped.",
            code,
        )


def run(command: list, *, cwd: Path | None = None, stdout=None, **settings: str) -> int:
    """Run a command to its end and return its exit code. Ctrl-C reaches it too: it tidies up, we wait for it."""
    stdout = stdout.fileno() if stdout else None
    process = subprocess.Popen([str(word) for word in command], cwd=cwd, stdout=stdout, env={**os.environ, **settings})
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
