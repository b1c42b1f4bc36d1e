"""Paths -> Inputs: one of every WARC file and of every folder with pages; a folder may hold WARC files too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duogen_core.data.web.folder import Folder
from duogen_core.data.web.page import PAGES, Input
from duogen_core.data.web.warc import Warc
from duogen_core.errors import DuoGenError

WARCS = (".warc", ".warc.gz")


def open_inputs(paths: Sequence[str]) -> list[Input]:
    """An Input for each WARC file and each folder or file of pages."""
    inputs: list[Input] = []
    for given in paths:
        path = Path(given)
        if path.is_file() and is_warc(path):
            inputs.append(Warc(path))
        elif path.is_file() and path.suffix.lower() in PAGES:
            inputs.append(Folder(path.parent, [path.name]))
        elif path.is_dir():
            inputs += [Warc(file) for file in sorted(path.iterdir()) if is_warc(file) and file.is_file()]
            folder = Folder(path)
            if next(folder.names(), None) is not None:
                inputs.append(folder)
        elif path.exists():
            raise DuoGenError(
                f"{given} is no input; expected a .warc or .warc.gz file, an .html or .mhtml file, or a folder."
            )
        else:
            raise DuoGenError(f"{given} does not exist; give WARC files or folders of HTML pages.")
    if not inputs:
        raise DuoGenError(f"There is no page in {', '.join(paths)}; expected .html, .mhtml, .warc or .warc.gz files.")
    return inputs


def is_warc(path: Path) -> bool:
    return path.name.lower().endswith(WARCS)
