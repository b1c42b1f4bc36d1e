"""Weight files: whole ones are read, every fault is named, and nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save, save_file

from duogen_core.errors import DuoGenError
from duogen_core.weights.headers import (
    Entry,
    WeightError,
    check_tensors,
    read_header,
    refuse_pickle,
)
from duogen_core.weights.reading import WeightFiles, folder_weights


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was read')",)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path, {"format": "pt"})
    return path


def test_reads_names_shapes_and_types(weights):
    assert read_header(weights) == {"a": Entry("F32", (2, 3)), "b": Entry("BF16", (4,))}


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_a_cut_off_file_is_named_at_any_length(weights, keep):
    data = weights.read_bytes()
    weights.write_bytes(data[:keep])
    with pytest.raises(WeightError, match=r"model\.safetensors is cut off: it has \d+ bytes"):
        read_header(weights)


def test_bytes_after_the_last_tensor_are_left_alone_with_a_warning(tmp_path, caplog):
    """ComfyUI loads such files (its issue 15602); the safetensors library refuses them."""
    kinds = [
        t
        for t in (getattr(torch, name, None) for name in dir(torch))
        if isinstance(t, torch.dtype) and t != torch.complex32
    ]
    tensors = {}
    for kind in set(kinds):
        with contextlib.suppress(KeyError, RuntimeError, TypeError, ValueError):  # those that no file can hold
            save({"x": torch.ones(3).to(kind)})
            tensors[str(kind)] = torch.arange(6).reshape(2, 3).to(kind)
    tensors |= {"nothing": torch.zeros(0, 4), "number": torch.tensor(5.0), "odd": torch.ones(3, dtype=torch.int8)}
    path = tmp_path / "model.safetensors"
    data = save(tensors, {"format": "pt"})
    path.write_bytes(data + b"xyz")
    assert read_header(path) == read_header(path) and len(tensors) > 12
    assert [record.getMessage().count("3 bytes follow its last tensor") for record in caplog.records] == [1]
    files = WeightFiles([path])
    read = dict(files.tensors())
    assert read.keys() == tensors.keys() and files.rest == {path: 3}
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float()), name
    read["number"].fill_(7)  # private: the file stays as it is
    assert path.read_bytes() == data + b"xyz"
    path.write_bytes(data[:-1])
    with pytest.raises(WeightError, match="is cut off"):
        read_header(path)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
LIES = [
    *({"data_offsets": value} for value in ([], [0], [0, 4, 8], 4, "04", None, [0, "4"], [-4, 0], [0, 4.0], [True, 4])),
    *({"data_offsets": [0, value]} for value in (float("inf"), float("nan"), 2**70, "1e999")),
    *(
        {"shape": value}
        for value in ([float("inf")], [float("nan")], [-1], [1.0], [True], "1", 1, None, [[1]], [2**70])
    ),
    *({"dtype": value} for value in (None, 1, [], {}, "F31", "a/../../b.png")),
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_header_with_impossible_numbers_is_a_sentence(tmp_path, lie):
    text = json.dumps({"a": {**ONE, **lie}}).replace('"1e999"', "1e999").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(WeightError, match=r"model\.safetensors is not a (readable|sound) safetensors file"):
        read_header(path)


def test_bottomless_headers_and_names_that_no_file_can_have_are_sentences(tmp_path):
    for text in (b"{" * 5000, b'{"a":' * 50_000, b'{"__metadata__":' + b"[" * 90_000, b'{"a": 1' + b"0" * 5000 + b"}"):
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(WeightError, match="its header is broken"):
            read_header(tmp_path / "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("a" * 5000, "a\0b", "", ".", "a\nb", "\ud800"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(DuoGenError, match=r"not a file in its own folder|are missing|not valid|not UTF-8"):
            folder_weights(tmp_path)
    for text in ("[" * 100_000, '{"weight_map":' * 1000, "[]", "3", '{"weight_map": {}}', '{"weight_map": [1]}'):
        index.write_text(text)
        with pytest.raises(DuoGenError, match=r"model\.safetensors\.index\.json"):
            folder_weights(tmp_path)
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(WeightError, match="cannot be read"):
            read_header(tmp_path / name)


@pytest.mark.parametrize("data", [b"\x00" * 64, b"GIF89a" + b"\x01" * 64, struct.pack("<Q", 4) + b"nope"])
def test_a_foreign_file_is_not_safetensors(weights, data):
    weights.write_bytes(data)
    with pytest.raises(WeightError, match="is not a safetensors file"):
        read_header(weights)


@pytest.mark.parametrize("header", [b"{broken}", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"[]      "])
def test_a_broken_header_is_refused(weights, header):
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightError, match="safetensors file"):
        read_header(weights)


def test_a_header_that_lies_about_a_place_is_refused(weights):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(WeightError, match="place for 'a' does not fit"):
        read_header(weights)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".PT"])
def test_pickles_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightError, match=r"never reads pickles.*convert it to \.safetensors"):
        refuse_pickle(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_a_safetensors_name_is_refused(weights, protocol):
    weights.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(WeightError, match="never reads pickles"):
        read_header(weights)
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(WeightError, match="never reads pickles"):
        read_header(weights)


def test_a_header_as_long_as_a_pickle_opens_is_not_taken_for_one(tmp_path):
    """A header of 0x0280 bytes makes the file begin with the two bytes of a pickle of protocol 2."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"__metadata__": {}}).encode().ljust(0x0280)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path) == {}


def test_a_missing_file_is_named_and_a_pickle_in_its_place_pointed_out(tmp_path):
    with pytest.raises(WeightError, match=r"weights of the DiT are missing: expected the file .*model\.safetensors"):
        folder_weights(tmp_path, what="weights of the DiT")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightError, match=r"pytorch_model\.bin lies there, but DuoGen never reads pickled"):
        folder_weights(tmp_path)


def test_shards_are_read_through_their_index(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert set(folder_weights(tmp_path).entries) == {"a", "b"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightError, match=r"expected the file .*model-2\.safetensors"):
        folder_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(WeightError, match="not a file in its own folder"):
        folder_weights(tmp_path)


def test_tensors_must_be_exactly_the_expected_ones():
    found = {"a": Entry("F32", (2,)), "c": Entry("F32", (1,)), **{f"x{i}": Entry("F32", ()) for i in range(6)}}
    expected = {"a": (3,), "b": (1,), "tied": (9,)}
    with pytest.raises(WeightError) as caught:
        check_tensors(found, expected, "dit.safetensors", "DiT", optional=["tied"])
    message = str(caught.value)
    assert "dit.safetensors does not hold the DiT" in message
    assert "1 of 3 tensors are missing (b)" in message
    assert "7 do not belong there (c, x0, x1, x2 and 3 more)" in message
    assert "1 have another shape (a is [2] instead of [3])" in message
    check_tensors({"a": Entry("F16", (3,)), "b": Entry("F32", (1,))}, expected, "x", optional=["tied"])
