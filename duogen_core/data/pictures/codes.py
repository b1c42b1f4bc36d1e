"""QR codes and bar codes in a picture: the share of it that they cover. Read by zxing-cpp."""

from __future__ import annotations

import numpy as np
from PIL import Image

from duogen_core.errors import MissingPackage

LONGEST = 1200  # pixels; a code in a larger picture is found in a smaller copy of it


def code_share(pixels: np.ndarray) -> tuple[float, str]:
    """The largest code's share of the picture (0 where there is none), and its kind."""
    try:
        import zxingcpp
    except ImportError:
        raise MissingPackage("Finding QR codes", "zxing-cpp", "data") from None
    image = Image.fromarray(pixels).convert("L")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR, reducing_gap=2.0)
    best, kind = 0.0, ""
    for code in zxingcpp.read_barcodes(np.asarray(image), formats=_formats(zxingcpp)):
        corners = (
            code.position.top_left,
            code.position.top_right,
            code.position.bottom_right,
            code.position.bottom_left,
        )
        share = _area([(point.x, point.y) for point in corners]) / (image.width * image.height)
        if share >= best:
            best, kind = max(share, 1e-4), str(code.format).rpartition(".")[2]
    return round(min(best, 1.0), 4), kind


def _formats(zxingcpp) -> list:
    names = ("QRCode", "MicroQRCode", "Aztec", "DataMatrix", "PDF417", "EAN13", "Code128")
    return [getattr(zxingcpp.BarcodeFormat, name) for name in names]


def _area(points: list[tuple[int, int]]) -> float:
    pairs = zip(points, points[1:] + points[:1])
    return abs(sum(x * b - a * y for (x, y), (a, b) in pairs)) / 2
