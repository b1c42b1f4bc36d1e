"""The families of hostile inputs of the command line: files that a user may have been given, and the command for each.

A family is a function of (box, rng, k, stack) that writes the files of case k into box.input and returns the Case; its
first cases are listed, the rest come from generators (`mutations.py`). `FAMILIES` names them with their weights.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hardening import mutations
from tests.hardening.hostile import Box, Case, Family

QUICK = ["--steps", 1, "--max-images", 1, "--max-tokens", 20, "--size", "64x64"]
DOCUMENT = {
    "format": "duogen-document", "version": 1, "meta": {"source": "me", "scores": [0.5, 1]},
    "turns": [
        {"role": "system", "parts": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "parts": [{"type": "text", "text": "Draw a house."}, {"type": "image",
        "file": "images/000.png"}]},
        {"role": "assistant", "parts": [{"type": "text", "text": "Step 1. A wall.", "meta": {"caption": "a wall"}},
                                        {"type": "image", "file": "images/001.png", "meta": {"seed": 7}}]},
    ],
    "generation": {"model": "tiny", "seed": 7, "stop_reason": "end"},
}  # fmt: skip


def tiny(box: Box) -> Path:
    """A whole model of random weights, made once for all cases."""
    from tests.comfyui import random_checkpoint

    path = box.shared / "model"
    if not path.exists():
        random_checkpoint.write(path)
    return path


@lru_cache(maxsize=32)
def encoded(format_: str, width: int = 24, height: int = 16, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_)
    return buffer.getvalue()


def generate(box: Box, *options: object) -> list[object]:
    return ["generate", "Draw a red star.", "--model", tiny(box), "--out", box.out, *QUICK, *options]


# ---------------------------------------------------------------- pictures


def picture_files() -> list[tuple[str, Any, int | None]]:
    """(name, bytes or a function that makes the file, exit code or None where either is right)"""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, animated, cmyk = io.BytesIO(), io.BytesIO(), io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (k * 80, 0, 0)) for k in range(3)]
    Image.new("RGB", (40, 10), "red").save(turned, "JPEG", exif=exif)
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (16, 16), (9, 9, 9, 9)).save(cmyk, "JPEG")
    png = encoded("PNG")
    bomb = mutations.png_of([(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)),
                             (b"IDAT", __import__("zlib").compress(b"\0" * 10_000_000)), (b"IEND", b"")])  # fmt: skip
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    return [
        ("a.png", png, 0), ("a.jpg", encoded("JPEG"), 0), ("a.webp", encoded("WEBP"), 0), ("a.png", encoded("JPEG"),
        0),
        ("a.png", encoded("PNG", 24, 16, "L"), 0), ("a.png", encoded("PNG", 24, 16, "LA"), 0),
        ("a.png", encoded("PNG", 24, 16, "P"), 0), ("a.png", encoded("PNG", 24, 16, "1"), 0),
        ("a.png", encoded("PNG", 24, 16, "RGBA"), 0), ("a.png", encoded("PNG", 24, 16, "I;16"), 0),
        ("turned.jpg", turned.getvalue(), 0), ("cmyk.jpg", cmyk.getvalue(), 0), ("one.png", encoded("PNG", 1, 1),
        None),
        ("thin.png", encoded("PNG", 1, 200), None), ("long.png", encoded("PNG", 8, 6000), None),
        ("moves.gif", animated.getvalue(), 2), ("bomb.png", bomb, 2), ("empty.png", b"", 2), ("text.png", b"hello", 2),
        ("page.png", b"<!doctype html><html>not found</html>", 2), ("a.svg", svg, 2), ("a.ps", b"%!PS\nshowpage", 2),
        ("cut.png", png[: len(png) // 2], 2), ("cut.jpg", encoded("JPEG")[:-40], 2), ("zeros.png",
        png[:100] + b"\0" * 400, 2),
        ("folder.png", lambda path: path.mkdir(), 2), ("fifo.png", lambda path: os.mkfifo(path), 2),
        ("zero.png", lambda path: path.symlink_to("/dev/zero"), 2), ("loop.png", lambda path: path.symlink_to(path),
        2),
        ("random.png", lambda path: path.symlink_to("/dev/urandom"), 2), ("none.png", lambda path: None, 2),
        ("secret.png", lambda path: (path.write_bytes(png), path.chmod(0)), None),
        ("huge.png", lambda path: (path.write_bytes(png), os.truncate(path, 1 << 40)), 2),
        ("a.bmp", encoded("BMP"), 0), ("a.tif", encoded("TIFF"), 0), ("a.ico", encoded("ICO", 16, 16), 2),
        ("a.png", lambda path: path.write_bytes(png + b"\0" * 1000), 0), ("a.jp2", encoded("JPEG2000"), 2),
        ("heic.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400), 2),
    ]  # fmt: skip


def picture(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    listed = picture_files()
    if k < len(listed):
        name, data, code = listed[k]
    else:
        format_ = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
        data = encoded(format_)
        data = (
            mutations.png_mutated(data, rng)
            if format_ == "PNG" and rng.random() < 0.7
            else mutations.flipped(data, rng)
        )
        name, code = f"a.{rng.choice((format_.lower(), 'png', 'jpg'))}", None
    path = box.input / name
    data(path) if callable(data) else path.write_bytes(data)
    return Case(generate(box, "--image", path), (0, 2) if code is None else (code,))


# ---------------------------------------------------------------- documents, zips


def document_folder(folder: Path, whole: Any, rng: random.Random) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in ("000.png", "001.png"):
        (folder / "images" / name).write_bytes(encoded("PNG"))
    (folder / "document.json").write_bytes(whole if isinstance(whole, bytes) else mutations.json_bytes(whole, rng))
    return folder


def document(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    whole: Any = DOCUMENT
    if k:
        whole = mutations.mutated(DOCUMENT, rng, rng.choice((1, 1, 1, 3)))
    if 0 < k <= len(mutations.NAMES):  # as the name of a picture
        whole = json.loads(json.dumps(DOCUMENT))
        whole["turns"][1]["parts"][1]["file"] = mutations.NAMES[k - 1]
    elif k <= len(mutations.NAMES) + len(mutations.TEXTS) and k:  # as a text, which is right wherever it is Unicode
        whole = json.loads(json.dumps(DOCUMENT))
        whole["turns"][2]["parts"][0]["text"] = mutations.TEXTS[k - 1 - len(mutations.NAMES)]
    if not k:
        whole = json.dumps(DOCUMENT).encode()
    path = document_folder(box.input / "set" / "one", whole, rng)
    if not k:
        return Case(generate(box, "--document", path), (0,))
    if k % 3 == 0:
        return Case(["data", "check", f"documents:{path.parent}", "--quiet"], (0, 1, 2))
    return Case(generate(box, "--document", path if k % 2 else path / "document.json"))


def zipped(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    path = box.input / "a.zip"
    listed = [
        *mutations.NAMES, "link", "twice", "bomb", "encrypted", "method", "size", "cut", "flipped", "none", "two",
        "nested",
    ]  # fmt: skip
    kind = listed[k] if k < len(listed) else "flipped"
    members: list[tuple[Any, bytes]] = [
        ("document.json", json.dumps(DOCUMENT).encode()),
        ("images/000.png", encoded("PNG")),
        ("images/001.png", encoded("PNG")),
    ]
    if kind in ("two", "nested"):
        members = [(f"{place}/{name}", data) for place in ("a", "b")[: 1 + (kind == "two")] for name, data in members]
    elif kind == "link":
        info = zipfile.ZipInfo("images/000.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        members[1] = (info, b"/etc/passwd")
    elif kind == "twice":
        members.append(members[0])
    elif kind == "bomb":
        members[1] = ("images/000.png", b"\0" * 300_000_000)
    elif kind == "none":
        members = members[1:]
    elif k < len(mutations.NAMES):
        members.append((kind, b"x"))
    with (
        suppress(UnicodeEncodeError, ValueError, IndexError),
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, data in members:
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    central = data.rfind(b"PK\1\2", 0, data.rfind(b"PK\1\2"))
    if kind == "encrypted":
        data[central + 8] |= 1
        data[6] |= 1
    elif kind == "method":
        data[central + 10] = 99
    elif kind == "size":
        data[central + 24 : central + 28] = struct.pack("<I", 0xFFFFFFF0)
    elif kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "flipped":
        data = mutations.flipped(bytes(data), rng)
    path.write_bytes(data)
    right = 0 if kind == "nested" else None
    return Case(generate(box, "--document", path), (0, 2) if right is None else (right,))


# ---------------------------------------------------------------- rows of data sets


def tar(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    names = ["x.json", "x.000.png", "x.001.png"]
    whole = json.loads(json.dumps(DOCUMENT))
    for part, name in ((whole["turns"][1]["parts"][1], "000.png"), (whole["turns"][2]["parts"][1], "001.png")):
        part["file"] = name
    path = box.input / "a.tar"
    listed = [*mutations.NAMES, "link", "hard", "device", "fifo", "size", "pax", "sparse", "dots", "apart", "twice"]
    kind = listed[k] if k < len(listed) else rng.choice(("flipped", "json", "json"))
    if kind == "json":
        whole = mutations.mutated(whole, rng)
    data = [mutations.json_bytes(whole, rng) if kind == "json" else json.dumps(whole).encode(), *[encoded("PNG")] * 2]
    if kind == "dots":
        names = [name.replace("x.", "x.5.") for name in names]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for name, each in zip(names, data):
            info = tarfile.TarInfo(name)
            info.size = len(each)
            if kind == "pax":
                info.pax_headers = {"size": str(8 << 30), "path": "../x.json"}
            archive.addfile(info, io.BytesIO(each))
            if kind == "apart":
                archive.addfile(tarfile.TarInfo("y.txt"))
        extra = tarfile.TarInfo("x.002.png")
        types = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}
        if kind in types:
            extra.type, extra.linkname = types[kind], "/etc/passwd"
            archive.addfile(extra)
        elif kind == "twice":
            archive.addfile(tarfile.TarInfo("x.json"))
        elif kind == "sparse":
            extra.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "-5"}
            archive.addfile(extra)
        elif k < len(mutations.NAMES):
            with suppress(ValueError, UnicodeEncodeError):
                extra.name = kind
                archive.addfile(extra)
    found = bytearray(path.read_bytes())
    if kind == "size":
        found[124:136] = b"\x80" + b"\xff" * 11
    elif kind == "flipped":
        found = bytearray(mutations.flipped(bytes(found), rng))
    path.write_bytes(found)
    command = ["data", "check", f"webdataset:{path}", "--quiet"]
    if k % 2:
        command = ["data", "export", f"webdataset:{path}", "--out", box.out, "--quiet"]
    return Case(command, (0, 1, 2))


def jsonl(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    (box.input / "images").mkdir()
    for name in ("000.png", "001.png"):
        (box.input / "images" / name).write_bytes(encoded("PNG"))
    good = json.dumps(DOCUMENT).encode()
    lines = [good, mutations.json_bytes(mutations.mutated(DOCUMENT, rng), rng).replace(b"\n", b" "), good]
    ends = (b"\n", b"\r\n", b"\n\n", b"\n \n")
    data = rng.choice(ends).join(lines)
    if k % 7 == 6:
        data = mutations.flipped(data, rng)
    elif k % 7 == 5:
        data = good[:-1] + ', "meta": {"a": "x\u2028y\u2029z\x85"}}'.encode()
    (box.input / "a.jsonl").write_bytes(data)
    command = ["data", "check", f"jsonl:{box.input / 'a.jsonl'}", "--quiet"]
    if k % 2:
        command = ["data", "export", f"jsonl:{box.input / 'a.jsonl'}", "--out", box.out, "--quiet"]
    return Case(command, (0, 1, 2))


def parquet(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Rows of interleaved documents, a row each part, with hostile values and columns."""
    import pyarrow
    import pyarrow.parquet

    from duogen_core.data.export import write_rows
    from duogen_core.data.sources.rows import rows_of
    from tests.core.sample_sets import guide

    path = box.input / "a.parquet"
    with path.open("wb") as stream:
        write_rows(stream, [rows_of(guide(1), "001")])
    if k % 3 == 0 and k:
        path.write_bytes(mutations.flipped(path.read_bytes(), rng, 4))
    elif k:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        name = rng.choice(list(rows[0]))
        how = rng.random()
        for row in rows if how < 0.5 else rows[:1]:
            if how < 0.9:
                row[name] = tame(mutations.value(rng))
            else:
                del row[name]
        save_rows(rows, path)
    command = ["data", "check", f"parquet:{path}", "--quiet"]
    if k % 2:
        command = ["data", "export", f"parquet:{path}", "--out", box.out, "--quiet"]
    return Case(command, (0,) if not k else (0, 1, 2))


def tame(value: Any) -> Any:
    """What Arrow can hold at all."""
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return float(min(value, 2**1000))
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [[1]]
    return {"a": 1} if isinstance(value, dict) else [1, 2] if isinstance(value, list) else value


def save_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):  # one column, one type
            columns[name] = pyarrow.array([None if value is None else repr(value)[:1000] for value in values])
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1)


def rows(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Rows in the layouts of Hugging Face: turns and pictures in columns."""
    import datasets

    talk = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A house. <image>"}]
    said = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A house. <image>"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Draw."}]},
        {"role": "assistant", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Done."}]},
    ]
    name, turns, count = (("messages", talk, 2), ("conversations", said, 2), ("turns", parts, 1))[k % 3]
    good = {name: turns, "images": [{"bytes": encoded("PNG"), "path": "a.png"}] * count}
    hostile = dict(good)
    how = rng.random()
    if k < 3:
        pass
    elif how < 0.5:
        hostile[name] = mutations.json_text(mutations.mutated(turns, rng, rng.choice((1, 1, 3))))
        good = {**good, name: json.dumps(turns)}  # one column, one type
    elif how < 0.8:
        changed = [dict(each) for each in good["images"]]
        changed[0]["bytes"] = rng.choice((None, b"", mutations.flipped(encoded("PNG"), rng), encoded("GIF"), b"x" * 9))
        changed[0]["path"] = rng.choice(mutations.NAMES).encode("utf-8", "replace").decode()
        hostile["images"] = rng.choice((changed, changed * 3, [], changed[:1]))
    else:
        hostile[name] = [{**each, "content": rng.choice(mutations.TEXTS).encode("utf-8", "replace").decode()}
                         if name == "messages" else each for each in turns[: rng.randint(0, 2)]]  # fmt: skip
    path = box.input / "rows.parquet"
    datasets.Dataset.from_list([good, hostile, good]).to_parquet(path)
    if k % 10 == 9:
        path.write_bytes(mutations.flipped(path.read_bytes(), rng, 4))
    command = ["data", "check", f"hf:{path}", "--quiet"]
    if k % 2:
        command = ["data", "export", f"hf:{path}", "--out", box.out, "--quiet"]
    return Case(command, (0,) if k < 3 else (0, 1, 2), caches=True)


def lesson(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """A step of each training on documents of which one is hostile."""
    (box.input / "images").mkdir()
    for name in ("000.png", "001.png"):
        size = rng.choice(((32, 32), (32, 32), (1, 1), (1, 300), (700, 9)))
        (box.input / "images" / name).write_bytes(encoded("PNG", *size))
    whole = json.loads(json.dumps(DOCUMENT))
    if k % 2:
        part = rng.choice((whole["turns"][1]["parts"][0], whole["turns"][2]["parts"][0]))
        part["text"] = rng.choice(mutations.TEXTS)
    else:
        whole = mutations.mutated(DOCUMENT, rng)
    lines = [json.dumps(DOCUMENT).encode(), json.dumps(whole).encode()]
    (box.input / "a.jsonl").write_bytes(b"\n".join(lines))
    short = [f"data=[jsonl:{box.input / 'a.jsonl'}]", "steps=2", f"out={box.out}", "bf16=false", "tensorboard=false"]
    if k % 4 < 2:
        return Case(["train", "stage1", f"init={tiny(box) / 'mllm'}", "batch=4", "eval_cases=0", *short], whole=False)
    short += [f"vae={tiny(box) / 'vae' / 'wan_vae.safetensors'}", f"mllm={tiny(box) / 'mllm'}", "shards=1"]
    return Case(["train", "stage2", *short, "tokens=800", "layers=1", "heads=1", "cross_width=32"], whole=False)


def edits(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Rows of every published layout of edits."""
    from tests.core.data.pairs.test_editing import ROWS

    layouts = [*ROWS, "sharegpt-4o-image", "x2i"]
    layout = layouts[k % len(layouts)]
    if layout in ROWS:
        rows = [dict(ROWS[layout]) for _ in range(3)]
        name = rng.choice(list(rows[1]))
        if rng.random() < 0.85:
            rows[1][name] = tame(mutations.value(rng))
        else:
            rows[1][name] = {"bytes": mutations.flipped(encoded("PNG"), rng), "path": rng.choice(mutations.NAMES[:10])}
        path = box.input / "a.parquet"
        save_rows(rows, path)
        if rng.random() < 0.15:
            path.write_bytes(mutations.flipped(path.read_bytes(), rng, 4))
    else:
        path = box.input / "set"
        (path / "image").mkdir(parents=True)
        for each in ("a", "b"):
            (path / "image" / f"{each}.png").write_bytes(encoded("PNG", 64, 48))
        if layout == "x2i":
            good = {"task_type": "edit", "instruction": "Only <img><|image_1|></img>.",
            "input_images": ["image/a.png"],
                    "output_image": "image/b.png"}  # fmt: skip
            lines = [json.dumps(good).encode(), mutations.json_bytes(mutations.mutated(good, rng), rng)]
            (path / "a.jsonl").write_bytes(b"\n".join(lines))
        else:
            good = {"input_prompt": "Move it.", "input_image": ["image/a.png"], "output_image": "image/b.png"}
            whole = [good, mutations.mutated(good, rng)]
            (path / "text_and_image_to_image.json").write_bytes(mutations.json_bytes(whole, rng))
    return Case(["data", "editing", layout, path, "--out", box.out, "--quiet", "--workers", 1], programs=True)


# ---------------------------------------------------------------- pages and archives


def html_page(rng: random.Random, k: int) -> bytes:
    from tests.core.web_pages import page, recipe

    good = recipe("a.png", "b.png")
    hostile = [
        "<div>" * 20_000, "<p>" + "x" * 2_000_000, "<table>" * 500 + "<tr><td>x", "<!--" * 1000, "&" * 100_000,
        "<a href='javascript:alert(1)'>x</a>", mutations.SCRIPT, "<img src='../../../etc/passwd'>", "\x00" * 1000,
        "<img src='file:///etc/passwd'><img src='http://127.0.0.1:9/x.png'>", "<base href='file:///'>" + good,
        "<svg><script>alert(1)</script></svg>", "<iframe src='/etc/passwd'></iframe>", "<meta charset=utf-7>+ADw-",
        "<img srcset='" + "a.png 1x," * 50_000 + "'>", "<img src='data:image/png;base64," + "A" * 1_000_000 + "'>",
        "<p dir=rtl>\u202e" + "x" * 100, "<td>|" * 300, "<li>" * 3000, "<pre>" + "`" * 5000, "<h1>" * 200,
        "<b><i>" * 3000,
        "<p>" + "a\u0301" * 50_000, "<![CDATA[x]]>" * 100, "<?php system('id') ?>", "<p>[a][" * 2000, "\ufeff" * 50,
        *(f"<p>{text}</p>" for text in mutations.TEXTS),
        *(f"<img src='{name}' alt='{name}'>" for name in mutations.NAMES),
    ]  # fmt: skip
    if k < len(hostile):
        text = good.replace("<h1>", hostile[k] + "<h1>", 1) if k % 2 else page(hostile[k] + good)
        return text.encode("utf-8", "surrogatepass")
    return mutations.flipped(good.encode(), rng, 30)


def pages(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    from tests.core.web_pages import file, photo

    (box.input / "p.html").write_bytes(html_page(rng, k))
    (box.input / "a.png").write_bytes(file(photo(seed=1)))
    (box.input / "b.png").write_bytes(
        mutations.flipped(file(photo(seed=2)), rng) if k % 3 == 0 else file(photo(seed=2))
    )
    return Case(["data", "web", box.input, "--out", box.out, "--workers", 1, "--quiet"], programs=True)


def saved_page(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """MHTML: a page and its pictures in one file."""
    from tests.core.data.web.test_mhtml import A, B, message
    from tests.core.web_pages import recipe

    html = recipe("https://cdn.example.com/a.png", "cid:b-1@mhtml.blink")
    good = message(html, A, B)
    kind, headers, data = A
    listed = [
        lambda: message(html, A, B, charset="utf-16"), lambda: message("", A, B), lambda: message(html),
        lambda: good.replace(b'boundary="----B"', b""), lambda: good.replace(b'boundary="----B"', b'boundary=""'),
        lambda: good.replace(b"base64", b"quoted-printable"), lambda: good.replace(b"base64", b"uuencode"),
        lambda: good.replace(b"Content-Type: text/html", b"Content-Type: " + b"x" * 100_000, 1),
        lambda: good.replace(b"\r\n", b"\n"), lambda: good.replace(b"\r\n------B--", b""),
        lambda: good[: len(good) // 2],
        lambda: good.replace(b"Subject: ", b"Subject: =?utf-8?Q?" + b"=00" * 5000 + b"?= ", 1),
        lambda: message(html, (kind, {"Content-Location": "file:///etc/passwd"}, data)),
        lambda: message(html, (kind, {"Content-Location": "\u202e" + "a" * 100_000}, data)),
        lambda: message(html, *[A] * 300), lambda: b"From: \r\n" * 100_000,
        lambda: b"------B\r\n".join([good] * 2), lambda: b"MIME-Version: 1.0\r\n\r\n",
        lambda: good.replace(b"------B", b"------B\r\nContent-Type: multipart/mixed; boundary=----B\r\n\r\n------B"),
        lambda: message(mutations.SCRIPT + html, A, B), lambda: message(html, (kind, headers, b"\0" * 3_000_000)),
    ]  # fmt: skip
    data = listed[k]() if k < len(listed) else mutations.flipped(good, rng, 8)
    (box.input / f"page.{rng.choice(('mhtml', 'mht'))}").write_bytes(data)
    return Case(["data", "web", box.input, "--out", box.out, "--workers", 1, "--quiet"], programs=True)


def warc(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    import gzip

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    from tests.core.web_pages import file, photo, recipe

    def record(address: str, kind: str, body: bytes, *more: tuple[str, str], status: str = "200 OK") -> bytes:
        buffer = io.BytesIO()
        writer = WARCWriter(buffer, gzip=False)
        headers = StatusAndHeaders(status, [("Content-Type", kind), *more], "HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(address, "response", payload=io.BytesIO(body), http_headers=headers)
        )
        return buffer.getvalue()

    place = "https://example.org/"
    good = [
        record(place + "p.html", "text/html", recipe("a.png", "b.png").encode()),
        record(place + "a.png", "image/png", file(photo(seed=1))),
        record(place + "b.png", "image/png", file(photo(seed=2))),
    ]
    listed = [
        lambda: [record("file:///etc/passwd", "text/html", b"<p>x"), *good],
        lambda: [record("https://example.org/" + "a" * 100_000, "text/html", b"<p>x"), *good],
        lambda: [record("\u202ehttps://example.org/\x1b[31m".encode("ascii", "backslashreplace").decode(),
        "text/html", b"x"), *good],
        lambda: [good[0].replace(b"Content-Length: ", b"Content-Length: 9999999999999", 1), *good],
        lambda: [good[0].replace(b"Content-Length: ", b"Content-Length: -", 1), *good],
        lambda: [good[0].replace(b"WARC/1.0", b"WARC/9.9", 1), *good],
        lambda: [record(place + "z", "text/html", gzip.compress(b"\0" * 200_000_000), ("Content-Encoding", "gzip")),
        *good],
        lambda: [record(place + "z", "text/html", b"\xff" * 1000, ("Content-Encoding", "br")), *good],
        lambda: [record(place + "z", "text/html", b"\xff" * 1000, ("Content-Encoding", "zstd")), *good],
        lambda: [record(place + "z", "text/html", b"5\r\nhello\r\nfffffffffffff\r\nx", ("Transfer-Encoding",
        "chunked")), *good],
        lambda: [record(place + "p.html", "text/html", b"", ("Location", place + "p.html"), status="301 Moved"),
        *good],
        lambda: [record(place + "z", "text/html; charset=" + "x" * 5000, b"<p>\xff\xfe"), *good],
        lambda: [b"WARC/1.0\r\n" + b"X: y\r\n" * 200_000 + b"\r\n", *good],
        lambda: [b"", b"\r\n" * 100_000],
        lambda: [b"<html>not an archive</html>"],
    ]  # fmt: skip
    parts = listed[k]() if k < len(listed) else good
    compress = k % 2 == 1
    data = b"".join(gzip.compress(part) if compress else part for part in parts)
    if k >= len(listed):
        data = mutations.flipped(data, rng, 4)
        if k % 9 == 8:
            data = gzip.compress(b"".join(parts))  # gzipped whole
    path = box.input / ("crawl.warc.gz" if compress else "crawl.warc")
    path.write_bytes(data)
    return Case(["data", "web", path, "--out", box.out, "--workers", 1, "--quiet"], programs=True)


def film(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    from tests.core.clips import scene, write_video

    good = box.shared / "film.mp4"
    if not good.exists():
        write_video(good, scene(1, 20))
    name = f"a{rng.choice(('.mp4', '.avi', '.mkv', '.webm', '.mov'))}"
    listed = [
        b"",
        b"\0" * 10_000,
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<html>",
    ]
    (box.input / name).write_bytes(listed[k] if k < len(listed) else mutations.flipped(good.read_bytes(), rng, 20))
    (box.input / f"{Path(name).stem}.json").write_bytes(
        mutations.json_bytes(mutations.mutated({"webpage_url": "x"}, rng), rng)
    )
    command = ["data", "video", box.input, "--out", box.out, "--undescribed", "--workers", 1, "--quiet"]
    return Case(command, programs=True)


# ---------------------------------------------------------------- models


def copied(box: Box, *parts: str) -> Path:
    """The tiny model in the case's folder; files are links but for those that are named."""
    source, target = tiny(box), box.input / "model"
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.relative_to(source).as_posix() in parts:
                shutil.copy(path, place)
            else:
                place.symlink_to(path)
    return target


WEIGHTS = ("mllm/model.safetensors", "dit/diffusion_pytorch_model.safetensors", "connector/model.safetensors",
           "vae/wan_vae.safetensors")  # fmt: skip
ENTRIES = (
    {"data_offsets": []}, {"data_offsets": [0]}, {"data_offsets": [0, 1, 2]}, {"data_offsets": [-1, 4]},
    {"data_offsets": [0, 2**63]}, {"data_offsets": [4, 0]}, {"data_offsets": ["0", "4"]}, {"data_offsets": None},
    {"shape": [-1]}, {"shape": [2**40, 2**40]}, {"shape": "x"}, {"shape": [1.5]}, {"shape": [None]}, {"shape": [[1]]},
    {"shape": [1] * 1000}, {"dtype": "F33"}, {"dtype": None}, {"dtype": ["F32"]}, {"dtype": "\x1b[31m"},
    {"dtype": "a" * 10_000},
)  # fmt: skip


def header(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """safetensors: its header, its lengths, its end."""
    name = rng.choice(WEIGHTS)
    model = copied(box, name)
    path = model / name
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    whole, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    tensor = rng.choice([each for each in whole if each != "__metadata__"])
    texts = (
        b"", b"x", b"\0" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000) + b"[" * 200_000, data[: len(data) // 2], data + b"\0" * 100,
        data[:8] + b"\xff" * 100,
        b"\x80\x04\x95" + b"\0" * 50, b"PK\3\4" + b"\0" * 50, b"GGUF" + b"\xff" * 60,
        b"version https://git-lfs.github.com/spec/v1\n",
    )  # fmt: skip
    if k < len(texts):
        path.write_bytes(texts[k])
    else:
        if k < len(texts) + len(ENTRIES):
            whole[tensor] |= ENTRIES[k - len(texts)]
        elif k % 4 == 0:
            whole = mutations.mutated(whole, rng)
        elif k % 4 == 1:
            whole[rng.choice(mutations.NAMES)] = whole.pop(tensor)
        elif k % 4 == 2:
            whole["__metadata__"] = mutations.value(rng)
        else:
            whole[tensor] = mutations.mutated(whole[tensor], rng)
        text = mutations.json_bytes(whole, rng)
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    commands = (
        ["inspect", model],
        ["inspect", path],
        generate(box, "--model", model),
        ["convert", path, box.out / "x.safetensors"],
    )
    box.out.mkdir()
    return Case(commands[k % 4])


def blocks(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """GGUF: its header, its counts, its notes, the vision beside it."""
    from tests.core.gguf_files import write_causal, write_pair
    from tests.core.llm.test_gguf_model import tiny as causal
    from tests.core.mllm_families import lively, tokenizer

    folder = box.shared / "gguf"
    if not folder.exists():
        (folder.with_name("gguf-new")).mkdir(exist_ok=True)
        write_pair(folder.with_name("gguf-new"), lively("qwen2_5_vl"), "vl.gguf", "mmproj-vl.gguf")
        write_causal(folder.with_name("gguf-new") / "text.gguf", causal("qwen2", tokenizer()), "qwen2", tokenizer())
        folder.with_name("gguf-new").rename(folder)
    shutil.copytree(folder, box.input, dirs_exist_ok=True)
    path = box.input / rng.choice(("vl.gguf", "mmproj-vl.gguf", "text.gguf"))
    data = bytearray(path.read_bytes())
    start = 24 + rng.randrange(400) if k % 3 else rng.randrange(24)  # counts, or the first notes and their types
    listed = (
        b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"GGUF\3\0\0\0" + b"\xff" * 16, b"GGUF\0\0\0\3" + b"\0" * 40,
        bytes(data[: len(data) // 2]), bytes(data[:-40]), bytes(data) + b"x" * 1000, b"PK\3\4" + b"\0" * 50,
    )  # fmt: skip
    if k < len(listed):
        path.write_bytes(listed[k])
    elif k % 2:
        data[start : start + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**62, 2**64 - 1)))
        path.write_bytes(bytes(data))
    else:
        path.write_bytes(mutations.flipped(bytes(data[:3000]), rng, 3) + bytes(data[3000:]))
    box.out.mkdir()
    commands = (
        ["inspect", path],
        ["plan", "Draw a house.", "--writer", box.input / "text.gguf", "--out", box.out / "plan.json", "--quiet"],
        ["inspect", box.input / "vl.gguf"],
        ["plan", "Draw a house.", "--writer", box.input / "vl.gguf", "--out", box.out / "plan.json", "--quiet"],
    )
    return Case(commands[k % 4])


class Runs:
    """What a pickle can do: call anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def pickled(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Files of torch.save, which are pickles: only tensors may come of them."""
    import pickle

    import torch
    from safetensors.torch import load_file

    path = box.input / rng.choice(("model.pt", "model.pth", "model.ckpt", "model.bin"))
    good = box.shared / "vae.pt"
    if not good.exists():
        torch.save(load_file(tiny(box) / "vae" / "wan_vae.safetensors"), good)
    marked = box.folder / "home" / "ran"
    listed: list[Any] = [
        {"a": Runs(os.system, f"touch {marked}")}, {"a": Runs(exec, f"open({str(marked)!r}, 'w')")},
        {"a": Runs(eval, "1+1")}, Runs(__import__, "antigravity"), {"a": Runs(torch.zeros, 1 << 40)},
        {"a": Runs(bytearray, 1 << 40)}, {"state_dict": {"a": torch.zeros(3)}}, [torch.zeros(3)], torch.zeros(3), {},
        {"a": 1, 2: torch.zeros(2)}, {("a", "b"): torch.zeros(2)}, {"a": torch.zeros(1).expand(1 << 40)},
        {"a": torch.zeros(3, dtype=torch.complex64)}, {"a": torch.zeros(3).to_sparse()}, torch.nn.Linear(2, 2),
        {"\x1b[31m\n": torch.zeros(2)}, {"a" * 100_000: torch.zeros(2)}, {"a": torch.zeros(2), "b": "x" * 100_000},
        {"a": torch.empty(3, device="meta")}, {"a": torch.nn.Parameter(torch.zeros(2))}, {"": torch.zeros(2)},
    ]  # fmt: skip
    if k == 27:
        shutil.copy(good, path)
    elif k < len(listed):
        torch.save(listed[k], path, _use_new_zipfile_serialization=bool(k % 3))
    elif k < len(listed) + 4:
        path.write_bytes(
            (pickle.dumps({"a": Runs(os.system, f"touch {marked}")}), b"PK\5\6" + b"\0" * 18, b"\x80\x02", b"")[k % 4]
        )
    else:
        path.write_bytes(mutations.flipped(good.read_bytes(), rng, 6))
    box.out.mkdir()
    commands = (
        ["convert", path, box.out / "x.safetensors", "--quiet"],
        ["inspect", path],
        [
            "generate",
            "Draw.",
            "--mllm",
            tiny(box) / "mllm",
            "--dit",
            path,
            "--vae",
            path,
            "--out",
            box.out / "a",
            *QUICK,
        ],
    )
    return Case(commands[k % 3], (0, 2) if k != 27 else (0,))


def adapter(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """PEFT's folder of an adapter: its configuration and its weights."""
    from tests.hardening import docs

    good = box.shared / "adapter"
    if not good.exists():
        docs.adapter(good, tiny(box))
    folder = box.input / "adapter"
    shutil.copytree(good, folder)
    if k % 2 == 0:
        path = folder / "adapter_config.json"
        path.write_bytes(mutations.json_bytes(mutations.mutated(json.loads(path.read_bytes()), rng), rng))
    else:
        path = folder / "adapter_model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = mutations.json_bytes(mutations.mutated(json.loads(data[8 : 8 + length]), rng), rng)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    box.out.mkdir()
    return Case((["convert", folder, box.out / "lora.safetensors", "--quiet"], ["inspect", folder])[k // 2 % 2])


CONFIGS = ("model_index.json", "mllm/config.json", "mllm/tokenizer.json", "mllm/tokenizer_config.json",
"dit/config.json",
           "mllm/preprocessor_config.json", "mllm/generation_config.json", "connector/config.json")  # fmt: skip
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "depth", "num_layers", "patch_size",
         "rope_scale", "attention_head_dim", "mlp_ratio", "text_embed_dim", "adaln_lora_dim", "intermediate_size",
         "num_key_value_heads", "cross_width", "rope_scaling", "rope_theta", "image_token_id",
         "spatial_merge_size")  # fmt: skip


def config(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """A model's JSON files: any value of any of them, and more often one that says how large something is."""
    name = CONFIGS[k % len(CONFIGS)]
    model = copied(box, name)
    path = model / name
    if not path.exists():
        path.write_text("{}")
    whole = json.loads(path.read_text())
    if name.endswith("tokenizer.json"):
        whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items()))
    found = [place for place in mutations.places(whole) if place[-1] in SIZES]
    if found and rng.random() < 0.6:
        parent = whole
        *places, last = rng.choice(found)
        for each in places:
            parent = parent[each]
        parent[last] = rng.choice((*mutations.NUMBERS, [], [0], "", None, "8", {}, [1, 2], True))
    elif rng.random() < 0.15 and isinstance(whole, dict):
        whole |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "trust_remote_code": True}
        (path.parent / "evil.py").write_text(f"open({str(box.folder / 'home' / 'ran')!r}, 'w')")
    else:
        whole = mutations.mutated(whole, rng)
    path.write_bytes(mutations.json_bytes(whole, rng))
    return Case((generate(box, "--model", model), generate(box, "--model", model), ["inspect", model])[k % 3])


# ---------------------------------------------------------------- names, settings, workflows


def name(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """File names: of a picture, of the output, of a page and of a folder of documents."""
    text = mutations.NAMES[k % len(mutations.NAMES)] if k < 4 * len(mutations.NAMES) else rng.choice(mutations.TEXTS)
    text = text.replace("\x00", "")
    how = k % 4
    if how == 1:  # the output may be called what the user likes, below the folder that may be written to
        inside = text.lstrip("/\\").replace("..", "_")
        return Case([*generate(box)[:5], box.out / inside if inside else box.out, *QUICK])
    safe = text.replace("/", "_").strip(".") or "_"
    path: Any = box.input / safe
    with suppress(OSError, UnicodeEncodeError, ValueError):
        if how == 0:
            path.write_bytes(encoded("PNG"))
        elif how == 2:
            from tests.core.web_pages import file, photo, recipe

            (box.input / "a.png").write_bytes(file(photo(seed=1)))
            path.with_name(path.name + ".html").write_text(recipe("a.png", "a.png"))
        else:
            document_folder(path, json.dumps(DOCUMENT).encode(), rng)
    if how == 0:
        return Case(generate(box, "--image", os.fsdecode(os.fspath(path))))
    if how == 2:
        return Case(["data", "web", box.input, "--out", box.out, "--workers", 1, "--quiet"], programs=True)
    return Case(["data", "check", f"documents:{box.input}", "--quiet"], (0, 1, 2))


SETTINGS = (
    "lr",
    "steps",
    "batch",
    "data",
    "out",
    "weights",
    "lora",
    "seed",
    "optimizer",
    "bf16",
    "init",
    "max_side",
    "minutes",
)
YAMLS = ("2026-02-30", "!!int x", "!!float x", "!!timestamp x", "!!bool x", "!!python/object/apply:os.system [id]",
"[" * 5000,
         "&a [*a]", "{a: b", "0xfff", "0x" + "f" * 5000, "1e999", ".nan", ".inf", "null", "~", "yes", "'", '"',
         "\t", "- x", "? x",
         "1:30:00", "0o17", "!!binary x", "<<: 1", "a: b: c", "%TAG", "@x", "`x`", "{}", "[]", "-1", "1_000",
         "=")  # fmt: skip


def setting(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """name=value, YAML and TOML files, presets."""
    text = YAMLS[k % len(YAMLS)] if k < 3 * len(YAMLS) else str(mutations.value(rng))[:5000]
    which = rng.choice(SETTINGS)
    if k % 3 == 0:
        return Case(["train", "stage1", f"{which}={text}", "--print-config"])
    if k % 3 == 1:
        path = box.input / f"my.{rng.choice(('yaml', 'toml', 'yml', 'txt'))}"
        line = f"{which} = {text}" if path.suffix == ".toml" else f"{which}: {text}"
        path.write_bytes(
            mutations.flipped(line.encode("utf-8", "replace"), rng) if k % 6 == 4 else line.encode("utf-8", "replace")
        )
        return Case(["train", rng.choice(("stage1", "stage2")), "--config", path, "--print-config"])
    rule = rng.choice(
        ("page.min_words", "fetch.contact", "load.max_seconds", "store.format", "nsfw.model", "page.languages", "x.y")
    )
    (box.input / "p.html").write_text("<p>x")
    return Case(
        ["data", "web", box.input, "--out", box.out, "--set", f"{rule}={text}", "--workers", 1, "--quiet"],
        programs=True,
    )


def plans(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """The files of a run, edited by hand or cut by a kill: plans, requests, run.json."""
    from tests.core.synthetic_plans import write_plans

    write_plans(box.input / "run")
    path = box.input / "run" / ("plans.jsonl", "requests.jsonl")[k % 2]
    lines = path.read_bytes().splitlines()
    index = rng.randrange(len(lines))
    lines[index] = mutations.json_bytes(mutations.mutated(json.loads(lines[index]), rng), rng)
    path.write_bytes(b"\n".join(lines) + (b"\n" if rng.random() < 0.7 else b""))
    shutil.copytree(box.input / "run", box.out)
    command = ["data", "synthetic", "answer", box.out, "--model", tiny(box), "--max-images", 1, "--max-tokens", 10]
    command = [*command, "--limit", 2, "--quiet"] if k % 3 else ["data", "synthetic", "balance", box.out]
    return Case(command, whole=False)


def log(box: Box, rng: random.Random, k: int, stack: ExitStack) -> Case:
    """Logs and records of a finished run, for `data stats` and `data view`."""
    run = box.out
    for each in ("shards", "logs", "times"):
        (run / each).mkdir(parents=True)
    entry = {
        "number": 0,
        "page": "a.html",
        "kept": False,
        "rule": "small",
        "value": 3,
        "pictures": [{"rule": "icon", "class": "photo"}],
    }
    about = {"format": "duogen-web-run", "version": 1, "identity": {"duogen": "0"}, "pages": 2, "shards": 1}
    files = {
        "logs/00000.jsonl": entry,
        "run.json": about,
        "times/00000.json": {"pages": 1, "seconds": 1.0, "stages": {"walk": 0.1}},
    }
    hostile = list(files)[k % 3]
    for each, whole in files.items():
        data = (
            mutations.json_bytes(mutations.mutated(whole, rng), rng) if each == hostile else json.dumps(whole).encode()
        )
        (run / each).write_bytes(data + b"\n")
    return Case(["data", "stats", run] if k % 2 else ["data", "view", run, "--quiet"], whole=False)


FAMILIES: dict[str, tuple[Family, int]] = {
    "pictures": (picture, 5), "documents": (document, 7), "zips": (zipped, 4), "tars": (tar, 4), "jsonl": (jsonl, 3),
    "parquet": (parquet, 3), "hugging face rows": (rows, 3), "edits": (edits, 4), "lessons": (lesson, 2),
    "html": (pages, 6), "mhtml": (saved_page, 2), "warc": (warc, 3), "videos": (film, 2),
    "safetensors": (header, 5), "gguf": (blocks, 4), "pickles": (pickled, 3), "adapters": (adapter, 2),
    "configs": (config, 6), "names": (name, 5), "settings": (setting, 5), "plans": (plans, 2), "logs": (log, 3),
}  # fmt: skip
