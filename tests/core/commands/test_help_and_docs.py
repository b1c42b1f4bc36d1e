"""Every option of every command has a help text and stands in the documentation, and so do the extras.

That the pages name no option that does not exist is in tests/hardening/test_campaigns.py, which runs their commands.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from duogen_core.cli import COMMANDS, Parser, command_of

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = "\n".join([README, *(file.read_text("utf-8") for file in sorted((ROOT / "docs").glob("*.md")))])


def leaves(commands: dict, name: str = ""):
    for each, (_, inside, *_) in commands.items():
        if isinstance(inside, dict):
            yield from leaves(inside, f"{name}{each} ")
        else:
            yield f"{name}{each}", inside


MODULES = dict(leaves(COMMANDS))


def options(name: str) -> list[argparse.Action]:
    parser = Parser(prog=name)
    command_of(MODULES[name]).add_arguments(parser)
    return parser._actions


@pytest.mark.parametrize("name", MODULES)
def test_every_option_has_a_help_text_and_stands_in_the_documentation(name):
    for action in options(name):
        what = " ".join(action.option_strings) or action.dest
        assert action.help and len(action.help.split()) > 1, f"{what} of `{name}` has no help text"
        assert not action.help.startswith("default"), f"the help of {what} of `{name}` does not say what it is"
        if action.option_strings:
            found = [re.search(rf"(?<![\w-]){re.escape(one)}(?![\w-])", PAGES) for one in action.option_strings]
            assert any(found), f"{what} of `{name}` is in no document"


def test_readme_names_the_program_and_every_extra_stands_in_the_documentation():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", listed, re.M)
    assert {"train", "data"} <= set(extras)
    for extra in extras:
        assert f'".[{extra}]"' in PAGES, f"the extra {extra} is in no document"
    (script,) = re.findall(r"^(\w+) = ", project.partition("[project.scripts]")[2].partition("\n[")[0], re.M)
    assert f"`{script} generate" in README
