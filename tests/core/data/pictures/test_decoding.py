"""Hostile picture files: what each is refused for, that the child survives or is started again, and what comes back."""

from __future__ import annotations

import io
import os
import signal
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from duogen_core.data.pictures.decoding import Decoder
from tests.core.web_pages import file, photo, screenshot


@pytest.fixture(scope="module")
def decoder():
    with Decoder({"max_seconds": 120}) as decoder:  # for a machine with other work to do
        yield decoder


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def gif_of_two_frames() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_pixels_come_back(decoder):
    pixels = screenshot()
    for format_ in ("PNG", "GIF", "WEBP", "JPEG", "AVIF", "BMP", "TIFF"):
        options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}.get(format_, {})
        facts, decoded = decoder.decode(file(pixels, format_, **options))
        assert (facts["format"], facts["width"], facts["height"]) == (format_, 480, 320)
        assert np.abs(decoded.astype(int) - pixels).mean() < (3 if format_ in ("JPEG", "AVIF") else 0.8)


def test_large_pictures_are_stored_smaller_and_photos_upright(decoder):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "taken at home"
    facts, pixels = decoder.decode(file(photo(2000, 1000), "JPEG", exif=exif))
    assert (facts["width"], facts["height"]) == (1000, 2000)
    assert pixels.shape == (1536, 768, 3)


def test_transparency_is_measured(decoder):
    picture = np.zeros((100, 100, 4), np.uint8)
    picture[:25, :, 3] = 255
    facts, pixels = decoder.decode(file(picture))
    assert facts["transparent"] == 0.75
    assert pixels[50, 50].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "unknown_format"),
        (b"<html>not found</html>", "unknown_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unknown_format"),
        (file(photo(), "ICO"), "unknown_format"),
        (file(photo(), "TIFF")[:-500], "broken"),
        (file(photo(), "BMP")[:-500], "broken"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>", "svg"),
        (png_that_claims(60_000, 60_000), "too_many_pixels"),
        (png_that_claims(3000, 3000), "broken"),
        (file(photo())[:-500], "broken"),
        (file(photo(), "JPEG")[:3000], "broken"),
        (b"\x89PNG\r\n\x1a\n" + os.urandom(500), "broken"),
        (b"\xff\xd8\xff" + os.urandom(500), "broken"),
        (file(photo(), "AVIF")[:-1], "broken"),
        (b"\x00\x00\x00\x20ftypavif" + os.urandom(500), "broken"),
        (gif_of_two_frames(), "animated"),
        (file(photo(6, 6)), "small"),
    ],
)
def test_refused(decoder, data, rule):
    facts, pixels = decoder.decode(data)
    assert (facts["rule"], pixels) == (rule, None)


def test_a_polyglot_comes_back_as_pixels_only(decoder):
    data = file(photo(), "JPEG", comment=b"<script>alert(1)</script>") + b"PK\x03\x04 a zip behind it"
    _, pixels = decoder.decode(data)
    assert pixels is not None
    assert b"script" not in file(pixels) and b"PK\x03\x04" not in file(pixels)


def test_too_many_bytes_are_not_even_sent():
    decoder = Decoder({"max_bytes": 1000})
    assert decoder.decode(bytes(1001)) == ({"rule": "too_many_bytes", "size": 1001}, None)
    assert decoder.child is None


def test_a_picture_that_takes_too_much_memory():
    with Decoder({"max_memory_mb": 400, "max_pixels": 1_000_000_000}) as decoder:
        facts, _ = decoder.decode(png_that_claims(9000, 7000))
        assert facts["rule"] in ("too_much_memory", "crashed", "broken")
        assert decoder.decode(file(photo()))[1] is not None


def test_a_child_that_hangs_is_ended_and_another_one_started():
    with Decoder({"max_seconds": 60}) as decoder:
        assert decoder.decode(file(photo()))[1] is not None
        stopped = decoder.child
        os.kill(stopped.pid, signal.SIGSTOP)  # it answers nothing
        decoder.max_seconds = 1
        assert decoder.decode(file(photo())) == ({"rule": "too_slow"}, None)
        assert stopped.wait(60) == -signal.SIGKILL
        decoder.max_seconds = 60
        assert decoder.decode(file(photo()))[1] is not None


def test_a_child_that_is_killed_is_started_again(decoder):
    decoder.decode(file(photo()))
    decoder.child.kill()
    decoder.child.wait()
    assert decoder.decode(file(photo()))[1] is not None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_the_child_can_open_nothing_and_has_its_limits(decoder):
    decoder.decode(file(photo()))
    with open(f"/proc/{decoder.child.pid}/limits") as lines:
        limits = {line[:25].strip(): line[26:].split()[0] for line in lines}
    assert limits["Max open files"] == "3" and limits["Max file size"] == "0"
    assert limits["Max address space"] == str(1024 * 2**20)
