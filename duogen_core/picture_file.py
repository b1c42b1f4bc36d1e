"""Picture files in: bytes of a PNG, JPEG, WebP, GIF or AVIF -> uint8 RGB [H, W, 3]; and such an array -> a PNG.

Reading is strict about what a file is and how large it may be, and generous about how the colours are stored: EXIF
orientation is applied, CMYK, palette, grey and 16-bit pictures are converted, transparency is laid on white.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from duogen_core.errors import DuoGenError
from duogen_core.files import read_limited
from duogen_core.picture_end import has_end

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6


def format_of(data: bytes) -> str | None:
    """The format by the first bytes, never by the file name."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and {b"avif", b"avis"} & {data[place : place + 4] for place in range(8, 40, 4)}:
        return "AVIF"  # where this Pillow was built without it, opening says so
    return None


def read_picture_bytes(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The bytes of a picture file and the name messages call it by."""
    return read_limited(path, MAX_BYTES, str(path)), str(path)


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """The bytes of a picture file -> uint8 RGB [H, W, 3], read-only."""
    if len(data) > MAX_BYTES:
        raise DuoGenError(
            f"The picture {name} is larger than {MAX_BYTES / 2**20:g} MB, the most that is read; make it smaller."
        )
    format_ = format_of(data)
    if format_ is None:
        raise DuoGenError(f"{name} is not a picture that can be read; expected a PNG, JPEG, WebP, GIF or AVIF file.")
    try:
        with warnings.catch_warnings():  # of very large pictures; what is too large gets a sentence of ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=[format_])
        with opened as image:
            _check_size(image.size, name)  # the header is read, no pixel is decoded yet
            # A JPEG with several frames is a phone's photo with a depth or brightness map: the first is the photo.
            if format_ != "JPEG" and getattr(image, "n_frames", 1) > 1:
                raise DuoGenError(
                    f"The picture {name} is animated ({image.n_frames} frames); expected a still one: save one frame."
                )
            if not has_end(data, format_):
                raise EOFError("its end is missing")
            image.load()
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except DuoGenError:
        raise
    except Image.DecompressionBombError:
        raise DuoGenError(f"The picture {name} is far too large; at most {MAX_PIXELS:,} pixels are read.") from None
    except MemoryError:
        raise DuoGenError(f"The picture {name} does not fit into memory; make it smaller.") from None
    except Exception as error:  # decoders fail in every way on damaged files: struct.error, SyntaxError, zlib.error, …
        raise DuoGenError(
            f"The picture {name} is damaged or cut off and cannot be read ({error}); save it again."
        ) from None
    pixels.flags.writeable = False
    return pixels


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DuoGenError(
            f"The picture {name} is {width}x{height} pixels; at most {MAX_PIXELS:,} pixels are read. Make it smaller."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values + 128) // 257).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def encode_png(pixels: np.ndarray, texts: Mapping[str, str]) -> bytes:
    """uint8 RGB [H, W, 3] -> PNG bytes, with `texts` in the PNG's text fields. Same input, same bytes."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
