"""Real pages and pictures for the web engine's measurements: Debian packages, unpacked into a folder, never committed.

    python tests/bench/web_material.py [FOLDER]     (about 520 MB to download, 1.3 GB unpacked; needs apt-get and dpkg)

FOLDER is ~/.cache/duogen-material unless given, or set as DUOGEN_MATERIAL; what is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
from pathlib import Path

import numpy as np

PACKAGES = (
    "gimp-help-en",
    "gnucash-docs",
    "opencv-doc",
    "python3-skimage",
    "gnome-backgrounds",
    "mate-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "r-doc-pdf",
    "webext-ublock-origin-firefox",  # EasyList
)
GIMP = "gimp-help-en/usr/share/gimp/2.0/help/en"
GNUCASH = "gnucash-docs/usr/share/doc/gnucash-docs/gnucash-guide-en"
PDF_WIDTH = 800  # pixels


def folder() -> Path:
    return Path(os.environ.get("DUOGEN_MATERIAL") or Path.home() / ".cache" / "duogen-material")


def fetch(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (target / package).is_dir():
            continue
        subprocess.run(["apt-get", "download", package], cwd=target, check=True)
        archive = next(target.glob(f"{package}_*.deb"))
        unpacking = target / f".{package}.unpacking"
        subprocess.run(["dpkg", "-x", str(archive), str(unpacking)], check=True)
        unpacking.rename(target / package)
        archive.unlink()


def pixels(name: str, longest: int = 1536) -> np.ndarray:
    """A picture of the material by its path, or a page of a PDF by path#number."""
    from PIL import Image

    path, _, page = name.partition("#")
    file = folder() / path
    if page:
        image = _page(file, int(page))
    else:
        image = Image.open(file)
        image = image.convert("RGBA") if "transparency" in image.info else image
        if image.mode in ("RGBA", "LA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _page(file: Path, number: int):
    import pypdfium2

    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    with pypdfium2.PdfDocument(data) as document:
        page = document[number % len(document)]
        return page.render(scale=PDF_WIDTH / page.get_width()).to_pil()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=folder(), metavar="FOLDER")
    fetch(parser.parse_args().folder)
