"""GGUF headers: whole ones are read, big-endian and split ones too; every fault is a sentence, and costs nothing."""

from __future__ import annotations

import random
import struct

import gguf
import numpy as np
import pytest
import torch

from duogen_core.weights.gguf import LARGE_ARRAY, LongArray, read_gguf_header
from duogen_core.weights.gguf_layers import unpacked
from duogen_core.weights.headers import Entry, WeightError
from duogen_core.weights.reading import HALVES, GgufFiles, find_weights
from tests.core.gguf_files import SCALES, blocks, write_gguf

NOTES = {"a.number": 7, "a.real": 0.5, "a.flag": True, "a.text": "é", "a.list": [1, 2, 3], "a.words": ["x", "yz"]}
TENSORS = {
    "norm": np.arange(5, dtype=np.float32),
    "half": np.ones((2, 3), dtype=np.float16),
    "layer.weight": (blocks("Q4_K", 3, 256), "Q4_K"),
}


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "a.gguf", "test", TENSORS, NOTES)


def test_notes_and_tensors_are_those_that_the_gguf_package_reads(file):
    header, theirs = read_gguf_header(file), gguf.GGUFReader(file)
    assert header.architecture == "test" and not header.big
    assert {key: header.notes[key] for key in NOTES} == NOTES
    assert header.tensors == {
        "norm": Entry("F32", (5,)), "half": Entry("F16", (2, 3)), "layer.weight": Entry("Q4_K", (3, 256)),
    }  # fmt: skip
    assert {t.name: (int(t.data_offset), int(t.data_offset + t.n_bytes)) for t in theirs.tensors} == header.spans
    weights = find_weights(file)
    assert isinstance(weights, GgufFiles)
    for name, tensor in weights.tensors():
        data = TENSORS[name][0] if isinstance(TENSORS[name], tuple) else TENSORS[name]
        assert np.array_equal(tensor.numpy(), data), name
    before = file.read_bytes()
    weights.tensor("norm").fill_(3)
    assert file.read_bytes() == before


def test_long_arrays_are_read_when_they_are_asked_for(tmp_path):
    words = [f"word {number}" for number in range(LARGE_ARRAY + 1)]
    file = write_gguf(tmp_path / "a.gguf", "test", TENSORS, {"words": words, "numbers": list(range(5000)), "z": 1})
    notes = read_gguf_header(file).notes
    assert isinstance(notes["words"], LongArray) and len(notes["words"]) == len(words)
    assert notes["words"].read() == words and notes["numbers"].read() == list(range(5000)) and notes["z"] == 1


def test_every_cut_is_named(file):
    data, end = file.read_bytes(), max(stop for _, stop in read_gguf_header(file).spans.values())
    for keep in [*range(0, 700, 3), end - 1]:
        file.write_bytes(data[:keep])
        with pytest.raises(WeightError) as caught:
            read_gguf_header(file)
        assert "a.gguf" in str(caught.value) and "\n" not in str(caught.value), keep


def test_no_changed_byte_ends_in_anything_but_a_sentence_or_a_header(file):
    data, choose = file.read_bytes(), random.Random(1)
    end = read_gguf_header(file).spans["norm"][0]
    for at in range(end):
        for value in (0, 255, data[at] ^ (1 << choose.randrange(8))):
            file.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                list(GgufFiles(file).tensors())
            except WeightError as error:
                assert "\n" not in str(error)


def note(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def tensor(name: bytes, sides: list[int], kind: int = 0, place: int = 0) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, place)


def header(notes: list[bytes] = (), tensors: list[bytes] = (), counts=None, version=3) -> bytes:
    counts = counts or (len(tensors), len(notes))
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*notes, *tensors])


HUGE = 2**62
HOSTILE = {
    "another file": (b"GGML" + b"\0" * 60, "begins with b'GGML'; expected b'GGUF'"),
    "an old version": (header(version=1), "of version 1; expected version 2 or 3"),
    "countless notes": (header(counts=(0, HUGE)), "a list of .* notes at byte 24 needs"),
    "countless tensors": (header(counts=(HUGE, 0)), "a list of .* tensors at byte 24 needs"),
    "a long name": (header([struct.pack("<Q", HUGE) + b"x" * 32]), "the name of a note at byte 32 needs"),
    "a long array": (header([note(b"a", 9, struct.pack("<IQ", 4, HUGE))]), "the array 'a' of .* items at byte"),
    "an endless text array": (
        header([note(b"a", 9, struct.pack("<IQ", 8, 2000) + struct.pack("<Q", HUGE) + b"\0" * 20_000)]),
        "the array 'a'",
    ),
    "arrays in arrays": (header([note(b"a", 9, struct.pack("<IQ", 9, 1) + b"\0" * 40)]), "an array of the type 9"),
    "an unknown type": (header([note(b"a", 77, b"\0" * 8)]), "'a' is of the type 77"),
    "a note twice": (header([note(b"a", 4, b"\0" * 4)] * 2), "it has the note 'a' twice"),
    "a tensor twice": (header([], [tensor(b"t", [1]), tensor(b"t", [1], 0, 32)]) + b"\0" * 99, "the tensor 't' twice"),
    "too many sides": (header([], [tensor(b"t", [1] * 5)]) + b"\0" * 99, "'t' has 5 sides"),
    "a huge tensor": (header([], [tensor(b"t", [2**40, 2**40])]) + b"\0" * 99, "'t' has an impossible shape"),
    "more than there is": (header([], [tensor(b"t", [1000])]) + b"\0" * 99, "is cut off: it has .* bytes of the"),
    "an unknown quantisation": (header([], [tensor(b"t", [32], 4000)]) + b"\0" * 99, "'t' is of the type 4000"),
    "a type of sums alone": (header([], [tensor(b"t", [256], 15)]) + b"\0" * 999, "'t' is Q8_K, which .* cannot make"),
    "half a block": (header([], [tensor(b"t", [31], 8)]) + b"\0" * 99, "Q8_0 with rows of 31; expected a multiple"),
    "a crooked place": (header([], [tensor(b"t", [1], 0, 7)]) + b"\0" * 99, "does not begin at a multiple of 32 bytes"),
    "one on another": (
        header([], [tensor(b"t", [16]), tensor(b"u", [16], 0, 32)]) + b"\0" * 999, "the place of 'u' overlaps"
    ),
    "alignment 0": (header([note(b"general.alignment", 4, b"\0" * 4)]), "general.alignment is 0"),
    "alignment text": (header([note(b"general.alignment", 8, struct.pack("<Q", 1) + b"x")]), "general.alignment is x"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_at_once(tmp_path, name):
    data, sentence = HOSTILE[name]
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(WeightError, match=sentence):
        read_gguf_header(tmp_path / "a.gguf")


def test_what_is_no_file_is_named(tmp_path):
    for path, sentence in ((tmp_path / "none.gguf", "are missing"), (tmp_path, "is not a file")):
        with pytest.raises(WeightError, match=sentence):
            read_gguf_header(path)


def turned(kind: str, data: np.ndarray) -> np.ndarray:
    """Blocks as a big-endian machine has them."""
    data = data.reshape(len(data), -1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]).copy()
    for at in HALVES[kind]:
        data[..., [at, at + 1]] = data[..., [at + 1, at]]
    return data.reshape(len(data), -1)


def test_big_endian_files_hold_the_same_numbers(tmp_path):
    packed = {kind: blocks(kind, 3, 256) for kind in HALVES}
    tensors = {f"{kind}.weight": (turned(kind, data), kind) for kind, data in packed.items()}
    path = write_gguf(tmp_path / "a.gguf", "test", TENSORS | tensors, NOTES, big=True)
    # The package turns plain numbers round as it writes them, and leaves blocks as they are.
    weights = GgufFiles(path)
    assert weights.header.big and {key: weights.notes[key] for key in NOTES} == NOTES
    assert weights.tensor("norm").tolist() == [0, 1, 2, 3, 4] and weights.tensor("half").tolist() == [[1.0] * 3] * 2
    for kind, data in packed.items():
        ours = unpacked(weights.tensor(f"{kind}.weight"), kind, torch.float32)
        assert torch.equal(ours, unpacked(torch.from_numpy(data), kind, torch.float32)), kind
    rare = write_gguf(tmp_path / "b.gguf", "test", {"a.weight": (blocks("IQ2_S", 2, 256), "IQ2_S")}, big=True)
    with pytest.raises(WeightError, match="A big-endian GGUF file with IQ2_S is not read"):
        GgufFiles(rare).tensor("a.weight")


def test_a_quantised_norm_is_made_whole_before_it_is_changed(tmp_path):
    """Gemma's get 1 taken off: of a number, not of a block's bytes."""
    packed = blocks("Q8_0", 1, 64)
    path = write_gguf(tmp_path / "a.gguf", "test", {"norm.weight": (packed[0], "Q8_0")})
    weights = GgufFiles(path)
    weights.edits["norm.weight"] = lambda tensor: tensor - 1
    assert weights.entries["norm.weight"] == Entry("F32", (64,))
    expected = unpacked(torch.from_numpy(packed), "Q8_0", torch.float32)[0] - 1
    assert torch.equal(weights.tensor("norm.weight"), expected)


def test_all_scales_are_known_by_their_place():
    assert all(set(SCALES[kind]) <= set(HALVES[kind]) for kind in set(HALVES) & set(SCALES))


def split(folder, count: int = 3, **changes):
    for number in range(count):
        notes = {"split.no": number, "split.count": count} | (NOTES if number == 0 else {}) | changes
        name = f"model-{number + 1:05}-of-{count:05}.gguf"
        write_gguf(folder / name, "test", {f"{number}.weight": (blocks("Q8_0", 2, 64, number), "Q8_0")}, notes)
    return folder / f"model-00002-of-{count:05}.gguf"


def test_a_split_set_is_read_from_any_of_its_files(tmp_path):
    weights = GgufFiles(split(tmp_path))
    assert len(weights.files) == 3 and set(weights.entries) == {"0.weight", "1.weight", "2.weight"}
    assert weights.notes["a.number"] == 7
    assert np.array_equal(weights.tensor("2.weight").numpy(), blocks("Q8_0", 2, 64, 2))
    (tmp_path / "model-00003-of-00003.gguf").unlink()
    with pytest.raises(WeightError, match="model-00003-of-00003.gguf"):
        GgufFiles(tmp_path / "model-00001-of-00003.gguf")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"split.no": 0}, "says that it is file 0 of a set of 3; expected 1 of 3"),
        ({"split.count": 5}, "is part of a set of 5 files, which its name does not say"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(tmp_path, change, sentence):
    with pytest.raises(WeightError, match=sentence):
        GgufFiles(split(tmp_path, **change))


def test_a_piece_cut_from_a_file_is_told_apart_from_a_part_of_a_set(tmp_path, file):
    piece = tmp_path / "model-00001-of-00002.gguf"
    piece.write_bytes(file.read_bytes())
    with pytest.raises(WeightError, match="is a piece cut from a GGUF file"):
        GgufFiles(piece)


def test_a_file_that_changed_is_an_error(file):
    weights = GgufFiles(file)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(WeightError, match="changed while it was being read"):
        weights.tensor("norm")
