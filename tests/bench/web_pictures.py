"""How well copies, codes and icons are found among the real pictures of two manuals.

    python tests/bench/web_pictures.py [--part duplicates|codes|icons]     needs the material of web_material.py

duplicates: 300 pictures each with a planted copy (rescaled, recompressed, framed, or all three), and 200 pairs of
screenshots that differ in one dialog: a window with and without it, or with another one in its place. What
is compared, and the thresholds, were worked out on pairs drawn with other seeds (1, 7, 11 and 23).
codes: 300 planted QR codes (alone, or on a picture, covering 3 to 60 % of it; rescaled, recompressed, turned a little),
and 1,000 pictures of the manuals without any.
icons: 200 pictures labelled by hand in web_icons.json.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from PIL import Image, ImageOps
from web_material import GIMP, GNUCASH, folder, pixels

from duogen_core.data.pictures.classing import code_share
from duogen_core.data.pictures.duplicates import are_same, fingerprints_of
from duogen_core.data.runs.presets import load_preset

SEED = 29
PRESET = load_preset("web")
LANCZOS = Image.Resampling.LANCZOS


def names(manual: str, least: tuple[int, int] = (150, 100)) -> list[str]:
    found = []
    for path in sorted((folder() / manual).rglob("*.*")):
        if path.suffix in (".png", ".jpg") and not path.is_symlink():
            with Image.open(path) as image:
                if image.width >= least[0] and image.height >= least[1]:
                    found.append(path.relative_to(folder()).as_posix())
    return found


def packed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((max(round(image.width * factor), 1), max(round(image.height * factor), 1)), LANCZOS)


def copy(image: Image.Image, kind: str, rng: random.Random) -> Image.Image:
    if kind in ("rescaled", "all"):
        image = scaled(image, rng.choice([0.5, 0.6, 0.75, 0.9, 1.3] if kind == "rescaled" else [0.7, 0.85]))
    if kind in ("framed", "all"):
        image = ImageOps.expand(image, rng.choice([2, 6, 12, 20]), rng.choice(["white", "black", "#888888"]))
    return packed(image, rng.choice([50, 65, 80])) if kind in ("recompressed", "all") else image


def duplicates() -> None:
    rng = random.Random(SEED)
    found: dict[str, list[bool]] = {}
    chosen = rng.sample(names(GIMP), 200) + rng.sample(names(GNUCASH), 100)
    for number, name in enumerate(chosen):
        kind = ("rescaled", "recompressed", "framed", "all")[number % 4]
        image = Image.fromarray(pixels(name))
        other = np.asarray(copy(image, kind, rng))
        same, difference = are_same(fingerprints_of(np.asarray(image)), fingerprints_of(other), PRESET.duplicate)
        found.setdefault(kind, []).append(same)
        if not same:
            print(f"  missed, {kind}, {difference}: {name}")
    every = [same for each in found.values() for same in each]
    print(
        f"copies found: {np.mean(every):.3f} of {len(every)}",
        {k: round(float(np.mean(v)), 3) for k, v in found.items()},
    )
    windows = names(GNUCASH, (700, 350))
    dialogs = [name for name in names(GIMP) + names(GNUCASH) if max(Image.open(folder() / name).size) <= 420]
    merged = []
    for number in range(200):
        window = Image.fromarray(pixels(rng.choice(windows)))
        dialog = Image.fromarray(pixels(rng.choice(dialogs)))
        dialog.thumbnail((window.width // 2, window.height // 2))
        place = rng.randrange(window.width - dialog.width + 1), rng.randrange(window.height - dialog.height + 1)
        with_it = window.copy()
        with_it.paste(dialog, place)
        before = window
        if number % 2:
            before = window.copy()
            before.paste(Image.fromarray(pixels(rng.choice(dialogs))).resize(dialog.size), place)
        both = (fingerprints_of(np.asarray(each)) for each in (before, with_it))
        merged.append(are_same(*both, PRESET.duplicate)[0])
    print(f"screenshots one dialog apart that were merged: {np.mean(merged):.3f} of {len(merged)}")


def codes() -> None:
    import zxingcpp

    rng = random.Random(SEED)
    manuals = names(GIMP) + names(GNUCASH)
    found = 0
    for number in range(300):
        text = "https://" + "".join(rng.choices("abcdefghij/.-", k=rng.randrange(8, 60)))
        barcode = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode)
        qr = Image.fromarray(np.array(barcode.to_image(scale=8))).convert("RGB")
        image = qr
        if number % 2:
            image = Image.fromarray(pixels(rng.choice(manuals)))
            image = scaled(image, max(1.0, 500 / min(image.size)))
            side = int((rng.uniform(0.05, 0.6) * image.width * image.height) ** 0.5)
            side = max(min(side, *image.size), 160)
            place = rng.randrange(image.width - side + 1), rng.randrange(image.height - side + 1)
            image.paste(qr.resize((side, side), LANCZOS), place)
        else:
            image = image.resize((rng.randrange(150, 500),) * 2, LANCZOS)
            image = image.rotate(
                rng.uniform(-10, 10), expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC
            )
        found += code_share(np.asarray(packed(image, rng.choice([60, 75, 90]))))[0] >= PRESET.picture["code_share"]
    print(f"planted QR codes found: {found / 300:.3f} of 300")
    claimed = [name for name in rng.sample(manuals, 1000) if code_share(pixels(name))[0] > 0]
    print(f"pictures of the manuals claimed to hold a code: {len(claimed)} of 1000", *claimed)


def icons() -> None:
    from duogen_core.data.pictures.decoding import Decoder
    from duogen_core.data.web.page import ImageRef
    from duogen_core.data.web.pictures import icon

    labels = json.loads(Path(__file__).with_name("web_icons.json").read_text("utf-8"))
    right = claimed = real = 0
    with Decoder({**PRESET.load, "stored_side": PRESET.picture["stored_side"]}) as decoder:
        for name, is_icon in labels.items():
            facts, _ = decoder.decode((folder() / name).read_bytes())
            said = not icon(ImageRef((name,)), facts, PRESET).keep
            right, claimed, real = right + (said and is_icon), claimed + said, real + is_icon
            if said != is_icon:
                print(f"  {'taken for an icon' if said else 'missed'}, {facts['width']}x{facts['height']}: {name}")
    print(f"icons: {real} of {len(labels)}; precision {right / claimed:.3f}, recall {right / real:.3f}")


if __name__ == "__main__":
    parts = {"duplicates": duplicates, "codes": codes, "icons": icons}
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=parts)
    part = parser.parse_args().part
    for name in [part] if part else parts:
        parts[name]()
