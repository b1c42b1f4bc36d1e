"""Reads picture files: bytes of a PNG, JPEG, WebP, GIF, AVIF, BMP or TIFF -> uint8 RGB [H, W, 3]. Writes arrays as PNG.

Reading is strict about what a file is and how large it may be, and generous about how the colours are stored: EXIF
orientation is applied, CMYK, palette, grey and 16-bit images are converted, transparency is laid on white. A file of
another kind is named for what it is. A cut-off file is refused: `has_end` walks the structure to the file's own end
mark, because decoders do not notice what is missing after the last pixel. Missing memory is the machine's fault and
not the file's: the MemoryError passes, so that a run over many files stops and loses none of them.
Sources of the structures: PNG (W3C, section 5), JPEG (ITU T.81, annex B), GIF89a, WebP container (RFC 9649), ISO base
media file format (ISO/IEC 14496-12, section 4.2), BITMAPINFOHEADER (Microsoft), TIFF 6.0 (Adobe, 1992), section 8.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from duogen_core.errors import DuoGenError, is_out_of_memory
from duogen_core.files import read_limited

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6

FORMATS = "PNG, JPEG, WebP, GIF, AVIF, BMP or TIFF"
# Files that people take for pictures to read: how they begin, and what a message calls them.
OTHERS = (
    (rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "a HEIC image, as phones take them"),
    (rb"....ftypcrx", "the raw data of a camera"),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI", "a video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"8BP[SB]", "a Photoshop file"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS", "a PostScript file"),
    (rb"\0\0[\x01\x02]\0", "an icon file"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR image"),
    (rb"#\?RADIANCE", "a Radiance HDR image"),
    (rb"DDS ", "a DDS texture"),
    (rb"qoif", "a QOI image"),
    (rb"P[1-7]\s", "a PNM image"),
    (rb"PK\x03\x04", "a .zip file"),
    (rb"(?i:\s*(<\?xml.*?)?(<!--.*?-->|\s)*(<!doctype svg.*?)?<svg)", "an SVG drawing"),
    (rb"(?i:\s*<(!doctype html|html))", "a web page"),
)
ORIENTATION = 0x0112  # the EXIF tag; from 5 on width and height change places
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the second header, behind the 14 bytes of the first


def format_of(data: bytes) -> str | None:
    """The format by the first bytes, never by the file name; None for what is not read."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and {b"avif", b"avis"} & {data[place : place + 4] for place in range(8, 40, 4)}:
        return "AVIF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    return None


def read_picture_bytes(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The bytes of a picture file and the name messages call it by."""
    return read_limited(path, MAX_BYTES, str(path)), str(path)


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """The bytes of a picture file -> uint8 RGB [H, W, 3], read-only. MemoryError where this machine has too little."""
    if len(data) > MAX_BYTES:
        raise DuoGenError(
            f"The image {name} is larger than {MAX_BYTES / 2**20:g} MB, the most that is read; make it smaller."
        )
    format_ = _known_format(data, name)
    try:
        # Pillow warns of very large pictures and of odd metadata; what matters gets a sentence of ours. Nothing but
        # Pillow's warnings is named here: where two threads do this at once, the filters may stay.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            pixels = _decoded(data, format_, name)
    except DuoGenError:
        raise
    except Image.DecompressionBombError:
        raise DuoGenError(f"The image {name} is far too large; at most {MAX_PIXELS:,} pixels are read.") from None
    except Exception as error:  # decoders fail in every way on damaged files: struct.error, SyntaxError, zlib.error, …
        if is_out_of_memory(error) or str(error).endswith("-9"):  # the number that Pillow's decoders have for it
            raise MemoryError(f"no memory to read {name}") from None
        if isinstance(error, UnidentifiedImageError):
            if format_ in ("AVIF", "WEBP") and format_.lower() not in features.get_supported():
                raise DuoGenError(
                    f"{name} is an image in {format_}, which the installed Pillow cannot read; update it "
                    "(pip install -U pillow), or save the image as a PNG."
                ) from None
            error = EOFError(f"it begins like a {format_} and goes on like none")  # Pillow's own text is an address
        raise DuoGenError(
            f"The image {name} is damaged or cut off and cannot be read ({error}); save it again."
        ) from None
    pixels.flags.writeable = False
    return pixels


def _known_format(data: bytes, name: str) -> str:
    format_ = format_of(data)
    if format_ is None:
        begins = (what for pattern, what in OTHERS if re.match(pattern, data[:4096], re.DOTALL))
        what = next(begins, "not an image that can be read")
        raise DuoGenError(f"{name} is {what}; expected a {FORMATS} file.")
    return format_


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) that `decode_picture` would give, by the header: of PNG, JPEG, GIF and BMP the beginning of the
    file is enough. What is wrong behind the header is not noticed."""
    format_ = _known_format(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(data), formats=[format_]) as image:
                _check_size(image.size, name)
                if format_ == "TIFF":  # some versions of Pillow give the turned size, others the stored one
                    size, turned = (image.tag_v2[256], image.tag_v2[257]), image.tag_v2.get(ORIENTATION, 1) >= 5
                else:  # Pillow would decode a PNG to look for an orientation behind its pixels
                    size = image.size
                    turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
                return size[::-1] if turned else size
    except DuoGenError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"no memory to read {name}") from None
        raise DuoGenError(f"The image {name} is damaged or cut off and cannot be read; save it again.") from None


def _decoded(data: bytes, format_: str, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=[format_]) as image:
        _check_size(image.size, name)  # the header is read, no pixel is decoded yet
        if is_animated(image):
            raise DuoGenError(f"The image {name} is animated; expected a still one: save one frame.")
        if format_ == "TIFF":
            _check_tiff(image, data, name)
        elif not has_end(data, format_):
            raise EOFError("its end is missing")
        image.load()
        return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def is_animated(image: Image.Image) -> bool:
    """Whether an opened picture moves. Looks for a second frame only: a file may hold millions, counted one by one."""
    # A JPEG with several frames is a phone's photo with a depth or brightness map: the first is the photo.
    return image.format not in ("JPEG", "MPO", "TIFF") and getattr(image, "is_animated", False)


def _check_tiff(image: Image.Image, data: bytes, name: str) -> None:
    """Lets pass the TIFF files that have one right reading: one page, in whole numbers of at most 16 bits.

    Others come out nearly black, as a negative, or as the small preview in a camera's raw file. The numbers are tags of
    TIFF 6.0 (Adobe, 1992), section 8.
    """
    tags = image.tag_v2
    bits, sample_formats, photometric = set(tags.get(258, (1,))), set(tags.get(339, (1,))), tags.get(262)
    offsets, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if data[8:10] == b"CR" or 50706 in tags or tags.get(254, 0) & 1:  # Canon's mark, DNG's version, "reduced"
        what = "is the raw data of a camera, or begins with a preview"
    elif tags.next:
        what = "has several pages"
    elif not bits <= {1, 2, 4, 8, 16} or sample_formats != {1}:
        what = "has values that are not whole numbers of 1 to 16 bits"
    elif photometric not in (0, 1, 2, 3, 5, 6) or (photometric == 0 and 16 in bits):
        what = f"stores its colours in a way that is not read (PhotometricInterpretation {photometric})"
    elif tags.get(322, 1) * tags.get(323, 1) > MAX_PIXELS:  # a decoder takes memory for a whole tile
        what = f"has tiles of {tags.get(322, 1)}x{tags.get(323, 1)} pixels"
    elif 2**31 <= tags.get(278, 1) < 2**32 - 1:
        what = f"has strips of {tags[278]} rows"
    elif any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=False)):
        raise EOFError("its end is missing")
    else:
        return
    raise DuoGenError(f"The TIFF file {name} {what}; save it as a PNG.")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DuoGenError(
            f"The image {name} is {width}x{height} pixels; at most {MAX_PIXELS:,} pixels are read. Make it smaller."
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


# ---------------------------------------------------------------- is the file whole?
# Programs that share a process with us (ComfyUI and its packs) switch Pillow to fill the rest of a cut-off image with
# grey, so Pillow cannot be asked. No pixel is decoded here. What follows the end mark, such as a phone's second frame,
# does not matter. TIFF has no end mark: `_check_tiff` looks whether the pixels lie within the file.

# Any marker but those that stand inside JPEG's pixel data: stuffing (00), fill (FF) and restarts (D0 … D7).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)


def has_end(data: bytes, format_: str) -> bool:
    """Whether a PNG, JPEG, WEBP, GIF, AVIF or BMP is there to its end."""
    return {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "AVIF": _avif, "BMP": _bmp}[format_](data)


def _png(data: bytes) -> bool:
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            return place <= len(data)
    return False


def _jpeg(data: bytes) -> bool:
    place = 2
    while marker := _JPEG_MARKER.search(data, place):
        place = marker.end()
        if marker[1] == b"\xd9":
            return True
        if marker[1] not in b"\x01\xd8":  # these two have no length
            place += int.from_bytes(data[place : place + 2], "big")
    return False


def _webp(data: bytes) -> bool:
    return len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _gif(data: bytes) -> bool:
    place = 13 + _colours(data[10:11])
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return True
        if kind == 0x21:
            place += 2
        elif kind == 0x2C:
            place += 11 + _colours(data[place + 9 : place + 10])
        else:  # not a block: for the decoder to judge
            return True
        while place < len(data) and data[place]:  # sub-blocks, the last one empty
            place += 1 + data[place]
        place += 1
    return False


def _avif(data: bytes) -> bool:
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size follows the kind, in 64 bits
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        elif size == 0:  # the box ends where the file does
            return True
        if size < 8:  # not a box: for the decoder to judge
            return True
        place += size
    return place == len(data)


def _bmp(data: bytes) -> bool:
    pixels, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, size = 0, 0
    else:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    if compression in (0, 3, 6):  # not compressed: rows of whole 32-bit words; `size` may be wrong
        size = (width * bits + 31) // 32 * 4 * abs(height)
    return len(data) >= pixels + size


def _colours(flags: bytes) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0
