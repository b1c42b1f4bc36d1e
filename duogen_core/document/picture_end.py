"""Whether the bytes of a picture file go on to the file's own end mark: what is cut off is refused.

Decoders do not say so: what is missing after the last pixel they do not notice, and programs that share a process with
us (ComfyUI and its packs) switch Pillow to fill the rest of a cut-off picture with grey. So the structure is walked, no
pixel decoded. What follows the end mark, such as a phone's second frame, does not matter.
Sources: PNG (W3C, section 5), JPEG (ITU T.81, annex B), GIF89a, WebP container (RFC 9649), ISO base media
file format (ISO/IEC 14496-12, section 4.2), BITMAPINFOHEADER (Microsoft). TIFF has no end: `picture_file` looks whether
its pixels lie within the file.
"""

from __future__ import annotations

import re
import struct

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
