"""What the ComfyUI Registry gets: metadata, artwork, and an archive that a fresh ComfyUI runs.

The archive is what `comfy node pack` makes: the files that git tracks, without what .comfyignore names. To run any of
these tests on it: `python tests/comfyui/test_publishing.py archive/`, then `DUOGEN_PACK=archive/ pytest …`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pathspec
import pytest
from PIL import Image
from server import PACK, Server
from ui_to_api import convert

pytestmark = pytest.mark.every_comfyui

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MOST = 70 * 2**20  # bytes of the archive
NOT_FOR_USERS = re.compile(r"^(tests/|\.ci/|\.github/|models/.*/(training|runs)/|.*\.(jsonl|ya?ml~|pyc)$)")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_version_is_one(project: dict[str, Any]):
    version = project["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f'__version__ = "{version}"\n' in (ROOT / "duogen_core" / "__init__.py").read_text("utf-8")
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version


def test_dependencies_are_those_of_the_requirements(project: dict[str, Any]):
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert sorted(project["project"]["dependencies"]) == sorted(line for line in lines if line and line[0] != "#")


def test_comfyui_reads_all_of_it(project: dict[str, Any], comfyui: Path):
    """With the parser that ComfyUI and the Registry have; what it does not understand, it drops without a word."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from comfy_config.config_parser import extract_node_configuration\n"
        "print(extract_node_configuration(sys.argv[2]).model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code, comfyui, ROOT], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    assert read["project"]["license"]["text"] == "GPL-3.0-or-later"
    assert read["project"]["urls"]["repository"] == project["project"]["urls"]["Repository"]
    assert len(read["project"]["supported_accelerators"]) == 4 and read["project"]["supported_os"]
    oldest = re.search(r'OLDEST = "(.+)"', (ROOT / "nodes" / "host" / "self_check.py").read_text("utf-8"))[1]
    assert read["project"]["supported_comfyui_version"] == f">={oldest}.0"
    assert read["tool_comfy"]["publisher_id"] and read["tool_comfy"]["display_name"]


def test_artwork_lies_where_its_address_says(project: dict[str, Any]):
    def opened(entry: str) -> Image.Image:
        address, repository = project["tool"]["comfy"][entry], project["project"]["urls"]["Repository"]
        raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
        assert address.startswith(raw)
        return Image.open(ROOT / address.removeprefix(raw))

    icon, banner = opened("Icon"), opened("Banner")
    assert icon.width == icon.height <= 400
    assert banner.width * 9 == banner.height * 21


def archive_files() -> list[str]:
    """Names in the archive. As comfy-cli's zip_files (comfy_cli/file_utils.py)."""
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text("utf-8").splitlines())
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and not ignored.match_file(name)]


def unpack(folder: Path) -> None:
    for name in archive_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked as ComfyUI-Manager does: into a folder with the project's name."""
    if PACK != ROOT:
        pytest.skip("This is the archive.")
    folder = tmp_path_factory.mktemp("archive") / "custom_nodes" / "duogen"
    unpack(folder)
    return folder


def test_archive_is_small_and_has_nothing_that_users_do_not_need(archive: Path):
    files = [file for file in archive.rglob("*") if file.is_file()]
    names = [file.relative_to(archive).as_posix() for file in files]
    assert not [name for name in names if NOT_FOR_USERS.search(name)]
    packed = archive.parent / "node.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for file, name in zip(files, names, strict=True):
            out.write(file, name)
    size = packed.stat().st_size
    packed.unlink()
    assert size < MOST, f"{size / 2**20:.0f} MB"


def test_archive_has_what_its_pages_show(archive: Path):
    """Links of the README, the docs and the help pages into the pack. The front end takes those of a help page, in
    whatever language, to begin in web/docs."""
    missing, help_pages = [], archive / "web" / "docs"
    for page in archive.rglob("*.md"):
        base = help_pages if help_pages in page.parents else page.parent
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if "://" not in link and not (base / link).exists():
                missing.append(f"{page.relative_to(archive)}: {link}")
    assert not missing, missing


@pytest.mark.slow
def test_archive_runs_in_a_fresh_comfyui(archive: Path, comfyui: Path, tmp_path: Path):
    started = Server(comfyui, tmp_path, pack=archive)
    try:
        started.wait()
        assert "IMPORT FAILED" not in started.log
        template = json.loads(min((archive / "workflows").glob("*.json")).read_text("utf-8"))  # the first card
        result = started.run(convert(template, started.get("/object_info")))
        assert result.error is None, result.error
        documents = [output["duogen_document"][0] for output in result.outputs.values() if "duogen_document" in output]
        assert any(part["type"] == "image" for turn in documents[-1]["turns"] for part in turn["parts"])
    finally:
        started.stop()


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
