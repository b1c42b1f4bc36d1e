"""Small videos of our own for tests: scenes with something that moves, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, RATE = 192, 112, 10


def scene(seed: int, frames: int, step: float = 2.0) -> list[np.ndarray]:
    """A scene that nobody mistakes for another one, in which a square goes to the right by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
    ground = np.asarray(soft).copy()
    for _ in range(12):
        x, y = rng.integers(0, WIDTH - 20), rng.integers(0, HEIGHT - 20)
        ground[y : y + 12, x : x + 12] = rng.integers(0, 256, 3)
    colour = 255 - ground.mean((0, 1))
    shown = []
    for k in range(frames):
        frame, x = ground.copy(), int(8 + k * step) % (WIDTH - 40)
        frame[40:72, x : x + 32] = np.where(colour > 127, 250, 5)
        shown.append(frame)
    return shown


def blend(one: np.ndarray, other: np.ndarray, frames: int) -> list[np.ndarray]:
    """A dissolve."""
    shares = np.linspace(0, 1, frames + 2)[1:-1]
    return [np.uint8(one * (1 - share) + other * share) for share in shares]


def write_video(
    file: Path,
    frames: Sequence[np.ndarray],
    rate: int = RATE,
    ratio: str = "",
    codec: str = "mpeg4",
    transfer: int = 0,
    **metadata: str,
) -> Path:
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 3_000_000
        stream.height, stream.width = frames[0].shape[:2]
        if ratio:
            stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        if transfer:
            stream.codec_context.color_trc = transfer
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


def small(frames: list[np.ndarray]) -> np.ndarray:
    """What the detector of shots is given."""
    return np.stack([np.asarray(Image.fromarray(each).resize((32, 18), Image.BOX)) for each in frames])
