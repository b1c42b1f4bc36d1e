"""The process that decodes pictures from the web, and nothing else. Run by `decoding`, never imported by the engine.

It limits its own memory, its CPU time for each picture, and the files it may open or write (where the system can), then
reads requests from stdin: a JSON line with `bytes` and the caps, and that many bytes. It answers with a JSON line and
the raw RGB pixels. Whatever a hostile picture does to it, the engine only sees a rule's name, or an end of the pipe.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time

sys.path.insert(0, sys.argv[1])

import numpy as np
from PIL import Image

from duogen_core.document.picture_file import decode_picture, format_of, is_animated
from duogen_core.errors import is_out_of_memory

# 16x12 pixels, half transparent: an AVIF file to decode where Pillow's encoder is missing or slow to start.
AVIF = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAAGGbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG"
    "l0bQAAAAAAAQAAACxpbG9jAAAAAEQAAAIAAQAAAAEAAAHAAAAAJwACAAAAAQAAAa4AAAASAAAAQmlpbmYAAAAAAAIAAAAaaW5mZQIAAAAAAQAA"
    "YXYwMUNvbG9yAAAAABppbmZlAgAAAAACAABhdjAxQWxwaGEAAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAADDaXBycAAAAJ1pcGNvAAAAFG"
    "lzcGUAAAAAAAAAEAAAAAwAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAA5waXhpAAAAAAEIAAAADGF2"
    "MUOBABwAAAAAOGF1eEMAAAAAdXJuOm1wZWc6bXBlZ0I6Y2ljcDpzeXN0ZW1zOmF1eGlsaWFyeTphbHBoYQAAAAAeaXBtYQAAAAAAAAACAAEEAQ"
    "KDBAACBAEFhgcAAABBbWRhdBIACgUYDP7YVDIHGwBpoQAVMBIACgkYDP7aICGg0IAyGBxHh4Xd0000wsAAAHV9Wb3MseWq6qqG2A=="
)
MAX_MEMORY = int(sys.argv[2]) * 2**20


def limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the engine's own clock is what limits then
        return
    for name, value in (("RLIMIT_AS", MAX_MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_NOFILE", 3), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            continue


def limit_cpu(seconds: float) -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 2, resource.RLIM_INFINITY))


def decode(data: bytes, caps: dict) -> tuple[dict, bytes]:
    """Answers for one picture: its facts, with `rule` when it is refused, and its pixels."""
    format_ = format_of(data)
    if format_ is None:
        head = data[:256].lstrip().lower()
        return {"rule": "svg" if head.startswith((b"<svg", b"<?xml", b"<!doctype svg")) else "unknown_format"}, b""
    try:
        with Image.open(io.BytesIO(data), formats=[format_]) as image:
            width, height = image.size
            facts = {"format": format_, "width": width, "height": height, "transparent": 0.0}
            if width * height > caps["max_pixels"]:
                return {**facts, "rule": "too_many_pixels"}, b""
            if width < caps["min_side"] or height < caps["min_side"]:
                return {**facts, "rule": "small"}, b""
            if is_animated(image):
                return {**facts, "rule": "animated"}, b""
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                alpha = np.asarray(image.convert("RGBA").getchannel("A"))
                facts["transparent"] = round(float((alpha < 128).mean()), 4)
        pixels = decode_picture(data, "it")
    except Image.DecompressionBombError:  # Pillow's own cap, far above ours
        return {"format": format_, "rule": "too_many_pixels"}, b""
    except Exception as error:  # decoders fail on damaged files in every way
        # This process has little memory by its own limit, so what does not fit is the picture's fault here.
        return {"format": format_, "rule": "too_much_memory" if is_out_of_memory(error) else "broken"}, b""
    facts["height"], facts["width"] = pixels.shape[:2]  # a photo may have been turned upright
    side = caps["stored_side"]
    if max(pixels.shape[:2]) > side:
        image = Image.fromarray(pixels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        pixels = np.asarray(image)
    return {**facts, "shape": list(pixels.shape)}, pixels.tobytes()


def warm_up() -> None:
    """Decodes a picture of every format, so that no module has to be opened when files may no longer be."""
    caps = {"max_pixels": 1000, "min_side": 1, "stored_side": 8}
    decode(AVIF, caps)
    for format_, mode in (
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
    ):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new(mode, (16, 12)).save(buffer, format_, exif=exif)
        decode(buffer.getvalue(), caps)


def main() -> None:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    warm_up()
    limit()
    while line := stdin.readline(10_000):
        caps = json.loads(line)
        data = stdin.read(caps["bytes"])
        limit_cpu(caps["max_seconds"])
        facts, pixels = decode(data, caps)
        stdout.write(json.dumps({**facts, "bytes": len(pixels)}).encode() + b"\n")
        stdout.write(pixels)
        stdout.flush()


if __name__ == "__main__":
    main()
