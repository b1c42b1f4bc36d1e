"""Finds what the pages tell a user to type: shell commands in code blocks and inline code, programs in Python, and the
options and settings that are named in passing.

Pages: README.md, docs/*.md (named without their folder, but for docs/README.md), the bundled model's README.md, and
the help pages of the nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.hardening.zygote import ROOT

# Words that begin a line of a shell; none begins a line of JSON, YAML, Python or a listing on these pages.
PROGRAMS = "python python3 pip pip3 uv accelerate duogen torchrun ray git cd cp mv ln mkdir ls export source curl wget"
PROGRAMS += " sbatch npm npx docker conda apt apt-get brew sudo comfy bash sh"
STARTS = tuple(f"{program} " for program in PROGRAMS.split())


@dataclass(frozen=True)
class Written:
    page: str
    line: int
    text: str  # one line, comments and line ends taken out


def pages() -> dict[str, str]:
    """Name and text; those of docs/ are named without their folder."""
    found = {"README.md": (ROOT / "README.md").read_text("utf-8")}
    for path in sorted((ROOT / "docs").glob("*.md")):
        found[path.name if path.name != "README.md" else "docs/README.md"] = path.read_text("utf-8")
    for path in [ROOT / "models" / "duogen-tiny" / "README.md", *sorted((ROOT / "web" / "docs").rglob("*.md"))]:
        found[path.relative_to(ROOT).as_posix()] = path.read_text("utf-8")
    return found


def commands() -> Iterator[Written]:
    for name, text in pages().items():
        yield from of_page(name, text)


def programs() -> Iterator[Written]:
    """The blocks of Python; `text` is the whole of one."""
    for name, text in pages().items():
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield Written(name, text.count("\n", 0, block.start()) + 1, block[1])


def options() -> Iterator[Written]:
    """Every --option that a page names anywhere."""
    for name, text in pages().items():
        for number, line in enumerate(text.splitlines(), 1):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", line):
                yield Written(name, number, option)


def settings() -> Iterator[Written]:
    """Every name=value in inline code, and every rule after --set; also those that stand in a command."""
    for name, text in pages().items():
        for number, line in enumerate(text.splitlines(), 1):
            for found in re.findall(r"--set ([a-z_0-9.]+=[^` ]+)", line):
                yield Written(name, number, found)
            for found in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*=[^` ]+)`", line):
                yield Written(name, number, found)


def of_page(name: str, text: str) -> Iterator[Written]:
    """In the order in which they stand. Inline code counts where it is a whole command."""
    block = pending = ""
    begun, prose = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if (fence := re.match(r"\s*(```+|~~~+)(.*)", line)) and (not block or fence[1] == block):
            block = "" if block else fence[1]
        elif block:
            pending = f"{pending} {line.strip()}" if pending else line.strip()
            begun = begun if pending != line.strip() else number
            if pending.endswith("\\"):
                pending = pending[:-1].rstrip()
                continue
            text_, pending = re.sub(r"\s+# .*", "", pending), ""
            if text_.startswith(STARTS):
                yield Written(name, begun, re.sub(r"\s+", " ", text_))
        else:
            prose.append((number, line))
            if line.strip():
                continue
        if prose and (block or not line.strip()):
            yield from inline(name, prose)
            prose = []
    yield from inline(name, prose)


def inline(name: str, prose: list[tuple[int, str]]) -> Iterator[Written]:
    """Whole commands in the inline code of a paragraph, whose lines may break anywhere."""
    for found in re.findall(r"`([^`]+)`", " ".join(line.strip() for _, line in prose)):
        if found.startswith(("python -m duogen_core ", "python tests/", "python3 dev.py", "accelerate ")):
            yield Written(name, prose[0][0], found.strip())


if __name__ == "__main__":
    for each in commands():
        print(f"{each.page}:{each.line}: {each.text}")
