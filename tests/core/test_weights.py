"""Weight files: whole ones are read, every fault is named, and nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.weights import Entry, WeightError, check_tensors, read_folder, read_header, refuse_pickle


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


def test_bytes_after_the_last_tensor_are_refused(weights):
    weights.write_bytes(weights.read_bytes() + b"xyz")
    with pytest.raises(WeightError, match="3 bytes follow its last tensor"):
        read_header(weights)


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
        read_folder(tmp_path, what="weights of the DiT")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightError, match=r"pytorch_model\.bin lies there, but DuoGen never reads pickled"):
        read_folder(tmp_path)


def test_shards_are_read_through_their_index(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert set(read_folder(tmp_path)) == {"a", "b"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightError, match=r"expected the file .*model-2\.safetensors"):
        read_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(WeightError, match="not a file in its own folder"):
        read_folder(tmp_path)


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
