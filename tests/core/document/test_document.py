"""The Document value, and every kind of picture file a user may bring."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError, features

from duogen_core.document import Document, Picture, Text, Turn, picture_file
from duogen_core.document.picture_file import MAX_BYTES
from duogen_core.errors import DuoGenError


def pixels(height=4, width=6, value=7):
    return np.full((height, width, 3), value, np.uint8)


RED = Image.new("RGB", (4, 4), "red")


def encoded(image: Image.Image, format_="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def test_a_document_grows_and_never_changes():
    first = Document().begin_turn("user", [Text("Draw a house.")])
    second = first.begin_turn("assistant").append(Text("Step 1. ")).append(Picture(pixels())).append(Text("Step 2."))
    assert len(first.turns) == 1 and len(second.turns) == 2
    assert second.text == "Step 1. Step 2." and second.last_turn.role == "assistant"
    assert second.pictures == (Picture(pixels()),) and second.pictures[0].size == (6, 4)
    third = second.replace_generation(seed=7).replace_generation(stop_reason="end")
    assert third.generation == {"seed": 7, "stop_reason": "end"} and second.generation == {}
    assert hash(third) == hash(second) and third != second


def test_pictures_are_copies_nobody_can_write_to():
    array = pixels()
    picture = Picture(array[:, ::-1])
    array[:] = 0
    assert picture.pixels[0, 0, 0] == 7
    with pytest.raises(ValueError):
        picture.pixels[0] = 1
    assert picture == Picture(pixels()) and picture != Picture(pixels(value=8))
    assert picture != Picture(pixels(), {"seed": 1}) and picture.digest == Picture(pixels(), {"seed": 1}).digest
    assert Picture(pixels(2, 3)).digest != Picture(pixels(3, 2)).digest


def test_meta_is_copied_and_becomes_plain_json():
    meta = {"scores": [np.float64(0.5), (1, 2)], "nested": {"a": None}}
    part = Text("x", meta)
    meta["nested"]["a"] = 1
    assert part.meta == {"scores": [0.5, [1, 2]], "nested": {"a": None}}


def nested(value, levels: int):
    for _ in range(levels):
        value = {"a": [value]}
    return value


def endless() -> dict:
    value: dict = {}
    value["itself"] = value
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: Turn("robot"),
        lambda: Turn("user", ("text",)),
        lambda: Turn("user", Text("x")),
        lambda: Document(("hello",)),
        lambda: Document().append(Text("x")),
        lambda: Document().begin_turn("User"),
        lambda: Text(3),
        lambda: Text("\ud800"),
        lambda: Text("x", {"score": float("nan")}),
        lambda: Text("x", {1: "a"}),
        lambda: Text("x", {"a": {1, 2}}),
        lambda: Text("x", "meta"),
        lambda: Text("x", nested({}, 2000)),
        lambda: Text("x", endless()),
        lambda: Text("x", {"a": np.longdouble(1)}),
        lambda: Picture(np.zeros((4, 4, 4), np.uint8)),
        lambda: Picture(np.zeros((4, 4, 3), np.float32)),
        lambda: Picture(np.zeros((0, 4, 3), np.uint8)),
        lambda: Picture("a.png"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(make):
    with pytest.raises(DuoGenError) as error:
        make()
    assert len(str(error.value).split()) > 4 and str(error.value).endswith(".")


NEEDS_AVIF = pytest.mark.skipif("avif" not in features.get_supported(), reason="Pillow has AVIF since 11.3")
FORMATS = [
    ("PNG", {}),
    ("JPEG", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    pytest.param("AVIF", {"quality": 100}, marks=NEEDS_AVIF),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"big_tiff": True}),
]


@pytest.mark.parametrize("format_, options", FORMATS)
def test_formats(tmp_path, format_, options):
    image = Image.fromarray(np.full((8, 16, 3), (220, 50, 47), np.uint8))
    path = tmp_path / "picture.bin"  # the name says nothing, the content does
    path.write_bytes(encoded(image, format_, **options))
    picture = Picture.from_file(path)
    assert picture.size == (16, 8)
    assert np.abs(picture.pixels.astype(int) - (220, 50, 47)).max() <= 2


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format_):
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: what is stored at the left stands at the top
    picture = Picture.from_bytes(encoded(image, format_, exif=exif))
    assert picture.size == (4, 8)
    assert picture.pixels[0, 2, 2] > 200 and picture.pixels[7, 2, 0] > 200


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (690, 15_420), (1, 1)])
def test_long_and_small_pictures_are_read(size):
    assert Picture.from_bytes(encoded(Image.new("RGB", size, "red"))).size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_of_every_usual_kind_shows_the_same_picture(mode, compression):
    image = Image.fromarray(np.repeat(np.arange(0, 256, 17, np.uint8)[None], 4, 0))  # 16 greys
    values = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    picture = Picture.from_bytes(encoded(values, "TIFF", **({"compression": compression} if compression else {})))
    wanted = image.convert("1") if mode == "1" else image
    assert np.abs(picture.pixels.astype(int) - np.asarray(wanted.convert("RGB")).astype(int)).max() <= 1


def test_tiff_in_which_0_is_white_is_no_negative():
    data = bytearray(encoded(Image.new("L", (4, 4), 255), "TIFF"))
    place = data.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation, one SHORT
    data[place + 8] = 0
    assert Picture.from_bytes(bytes(data)).pixels.max() == 0


def tiff(tags):
    """A 4x4 grey TIFF with these tags besides the usual ones: {tag: a LONG}."""
    tags = {256: 4, 257: 4, 258: 8, 259: 5, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16, **tags}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()) if value)
    return b"II*\0" + struct.pack("<I", 24) + bytes(16) + struct.pack("<H", len(entries) // 12) + entries + bytes(4)


@pytest.mark.parametrize(
    "tags, says",
    [
        ({273: 0, 278: 0, 279: 0, 322: 60_000, 323: 60_000, 324: 8, 325: 16}, "has tiles of 60000x60000 pixels"),
        ({278: 2**31}, "has strips of 2147483648 rows"),
    ],
)
def test_a_tiff_that_states_absurd_sizes_is_not_taken_for_a_machine_without_memory(tags, says):
    with Image.open(io.BytesIO(tiff(tags))) as image, pytest.raises(OSError, match="-9"):
        image.load()
    with pytest.raises(DuoGenError, match=f"{says}; save it as a PNG"):
        Picture.from_bytes(tiff(tags))


@pytest.mark.parametrize(
    "data, says",
    [
        (lambda: encoded(RED, "TIFF", save_all=True, append_images=[RED]), "has several pages"),
        (lambda: encoded(Image.new("F", (4, 4)), "TIFF"), "not whole numbers of 1 to 16 bits"),
        (lambda: encoded(Image.new("I", (4, 4)), "TIFF"), "not whole numbers of 1 to 16 bits"),
        (lambda: encoded(Image.new("LAB", (4, 4)), "TIFF"), "PhotometricInterpretation 8"),
        (lambda: tiff({50706: 0x00000401}), "the raw data of a camera"),
        (lambda: tiff({254: 1}), "begins with a preview"),
    ],
)
def test_tiff_that_would_come_out_wrong_is_refused_by_what_it_is(data, says):
    with pytest.raises(DuoGenError, match=rf"a\.tif .*{says}.*; save it as a PNG\."):
        Picture.from_bytes(data(), name="a.tif")


def test_cmyk_is_converted():
    picture = Picture.from_bytes(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(picture.pixels[4, 4].astype(int) - (255, 0, 0)).max() <= 4


def test_16_bit_grey_keeps_its_greys():
    values = np.array([[0, 257 * 100, 65535, 256 * 200]], np.uint16)
    picture = Picture.from_bytes(encoded(Image.fromarray(values)))
    assert picture.pixels[0, :, 0].tolist() == [0, 100, 255, 199]
    assert picture.pixels[0, :, 2].tolist() == [0, 100, 255, 199]


def test_16_bit_colour():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\x00" + struct.pack(">HHH", 65535, 32768, 0) * 2
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert Picture.from_bytes(data).pixels[0, 0].tolist() == [255, 128, 0]


def test_transparency_is_laid_on_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    for data in (encoded(rgba), encoded(rgba, "WEBP", lossless=True)):
        assert Picture.from_bytes(data).pixels[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert Picture.from_bytes(encoded(half)).pixels[0, 0].tolist() == [127, 127, 127]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert Picture.from_bytes(encoded(palette, transparency=1)).pixels[0].tolist() == [[10, 20, 30], [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette(mode):
    assert Picture.from_bytes(encoded(Image.new(mode, (3, 2), 0))).pixels.shape == (2, 3, 3)


@pytest.mark.parametrize("format_", ["PNG", "GIF", "WEBP"])
def test_animated_pictures_are_refused(format_):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    with pytest.raises(DuoGenError, match="walk.gif is animated"):
        Picture.from_bytes(data, name="walk.gif")


def test_a_phone_photo_with_a_second_frame_is_a_still():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Picture.from_bytes(data).pixels[0, 0, 0] > 200


@pytest.mark.parametrize(
    "data, what",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "the raw data of a camera"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "a video"),
        (b"\xff\x0a\xfa\x7f", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"8BPS\0\x01", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04\x14\0", "a .zip file"),
        (b"<svg/>", "an SVG drawing"),
        (b'\n<?xml version="1.0"?>\n<!-- by hand -->\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"BM says hello to all who read this", "not an image that can be read"),
    ],
)
def test_files_of_other_kinds_are_named_for_what_they_are(data, what):
    with pytest.raises(DuoGenError) as error:
        Picture.from_bytes(data + bytes(64), name="photo.jpg")
    assert str(error.value).startswith(f"photo.jpg is {what}")
    assert str(error.value).endswith("; expected a PNG, JPEG, WebP, GIF, AVIF, BMP or TIFF file.")


def test_what_this_pillow_lacks_is_said(monkeypatch):
    def unidentified(*args, **kwargs):
        raise UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>")

    data = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif"
    monkeypatch.setattr(Image, "open", unidentified)
    monkeypatch.setattr(features, "get_supported", lambda: ["webp"])
    with pytest.raises(DuoGenError, match=r"a\.avif is an image in AVIF, which the installed Pillow cannot read"):
        Picture.from_bytes(data, name="a.avif")
    monkeypatch.setattr(features, "get_supported", lambda: ["webp", "avif"])
    with pytest.raises(DuoGenError, match=r"a\.avif is damaged .*begins like a AVIF"):
        Picture.from_bytes(data, name="a.avif")


@pytest.mark.parametrize("error", [MemoryError(), OSError("decoder error -9"), RuntimeError("Out of memory")])
def test_missing_memory_is_no_fault_of_the_picture(monkeypatch, error):
    def full(self):
        raise error

    data = encoded(RED)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", full)
    with pytest.raises(MemoryError):  # and no DuoGenError, by which a data engine would drop the picture for good
        Picture.from_bytes(data)


MUTATED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_pictures_are_a_sentence_or_a_picture(data):
    image = Image.fromarray(np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(10, 20, 3))
    compression = data.draw(st.sampled_from([{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}]))
    format_ = data.draw(st.sampled_from(MUTATED))
    damaged = bytearray(encoded(image, format_, **(compression if format_ == "TIFF" else {})))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        length = data.draw(st.sampled_from([1, 2, 4]))
        damaged[place : place + length] = data.draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)]))
        )
        damaged = damaged or bytearray(1)
    with contextlib.suppress(DuoGenError):
        assert Picture.from_bytes(bytes(damaged)).pixels.size


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"\x80\x04pickle", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(DuoGenError, match="odd.png"):
        Picture.from_bytes(data, name="odd.png")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_pictures_are_refused(format_, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format_)
    with pytest.raises(DuoGenError, match="half.png is damaged or cut off"):
        Picture.from_bytes(data[: int(len(data) * share)], name="half.png")


ENDED = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"restart_marker_blocks": 1}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
]


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("format_, options", ENDED)
def test_small_pictures_cut_off_anywhere_are_refused(monkeypatch, format_, options, tolerant):
    # Decoders do not miss what comes after the last pixel; ComfyUI and its packs make Pillow tolerate even more.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)), format_, **options
    )
    for cut in range(18, len(data)):  # a BMP is known by its first 18 bytes
        with pytest.raises(DuoGenError, match="half.png is damaged or cut off"):
            Picture.from_bytes(data[:cut], name="half.png")
    whole = Picture.from_bytes(data)
    assert whole.size == (20, 10)
    assert Picture.from_bytes(data + b"\0\xff\0 what a phone appends") == whole


def test_an_end_mark_inside_other_data_is_not_the_end():
    """A photo's own small preview ends with the mark that the photo itself lacks."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8))
    thumbnail = encoded(image.resize((4, 4)), "JPEG")
    data = encoded(image, "JPEG", comment=thumbnail)
    assert Picture.from_bytes(data) and thumbnail in data
    with pytest.raises(DuoGenError, match="cut off"):
        Picture.from_bytes(data[:-2])


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(DuoGenError, match="larger than 64 MB"):
        Picture.from_file(path)


@pytest.mark.filterwarnings("error")  # nothing but our sentence is said
@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (60000, 60000)])
def test_a_small_file_with_a_huge_picture_is_refused(size):
    # Only the header is read; were the pixels decoded first, this test would run out of memory.
    small = encoded(Image.new("1", (8, 8)))
    header = bytearray(small[8:33])
    header[8:16] = struct.pack(">II", *size)
    header[21:25] = struct.pack(">I", zlib.crc32(bytes(header[4:21])))
    with pytest.raises(DuoGenError, match=r"bomb\.png .*64,000,000 pixels"):
        Picture.from_bytes(small[:8] + bytes(header) + small[33:], name="bomb.png")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DuoGenError, match="does not exist"):
        Picture.from_file(tmp_path / "nowhere.png")
    with pytest.raises(DuoGenError, match="is not a file"):
        Picture.from_file(tmp_path)
    with pytest.raises(DuoGenError, match="cannot be read"):
        Picture.from_file("bad\0name.png")


def test_every_page_states_the_formats_that_are_read():
    """The pages that name the formats, and --help; where the list grows, they must."""
    root = Path(__file__).parents[3]
    helped = subprocess.run(
        [sys.executable, "-m", "duogen_core", "generate", "--help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    pages = [
        root / name for name in ("docs/command-line.md", "docs/data.md", "docs/data-web.md", "docs/data-synthetic.md")
    ]
    for text in [helped.stdout, *(page.read_text() for page in pages)]:
        assert picture_file.FORMATS in " ".join(text.split())
