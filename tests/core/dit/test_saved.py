"""What ComfyUI's Save Diffusion Model writes of a DiT of ours, read again: `model.diffusion_model.`, and a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.loading import SAVED, open_saved, saved_note
from duogen_core.errors import DuoGenError
from duogen_core.identify import identify
from duogen_core.sampling import Sampling

SAMPLING = Sampling(steps=9, guidance=3.0, shift=2.5)


@pytest.fixture
def dit() -> PackedCosmos:
    torch.manual_seed(0)
    return PackedCosmos(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2.0, text_embed_dim=20, adaln_lora_dim=8,
        attention="frame_causal",
    ).eval()  # fmt: skip


def write(path: Path, dit: PackedCosmos, note: bytes, **more: torch.Tensor) -> Path:
    weights = {f"model.diffusion_model.{name}": value for name, value in dit.state_dict().items()}
    save_file({**weights, **more, SAVED: torch.frombuffer(bytearray(note), dtype=torch.uint8)}, path)
    return path


def test_it_is_the_same_dit_again(dit: PackedCosmos, tmp_path: Path):
    note = saved_note(dit, SAMPLING, {"mean": [0.0]})
    found = open_saved(write(tmp_path / "a.safetensors", dit, note, vae=torch.zeros(3)))
    assert found is not None and found.sampling == SAMPLING and found.latents == {"mean": [0.0]}
    again = found.load_dit()
    assert again.config.attention == "frame_causal"
    text, frames = torch.randn(1, 5, 20), [torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 12)]
    drawn = [one.forward_packed(frames, torch.tensor([0.5]), text, frame_ends=[2]) for one in (dit, again)]
    assert torch.equal(*drawn)
    (told,) = identify(tmp_path / "a.safetensors")
    assert (told.family, told.layout) == ("DuoGen's Cosmos, frame_causal attention", "ComfyUI's Save Diffusion Model")
    assert open_saved(tmp_path) is None and open_saved(tmp_path / "no.safetensors") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda note: note.update(version=2), "has the version 2; this DuoGen reads version 1"),
        (lambda note: note.update(dit=[]), "has dit .*; expected an object"),
        (lambda note: note["dit"].update(_class_name="Other"), "names the model Other"),
        (lambda note: note["dit"].update(num_layers=3), "transformer_blocks.2"),
        (lambda note: note["dit"].update(num_attention_heads=10**9), "."),
        (lambda note: note["sampling"].update(steps=-1), "sampling.steps is -1"),
    ],
)
def test_a_damaged_note_is_a_sentence(dit: PackedCosmos, tmp_path: Path, change, said: str):
    note = json.loads(saved_note(dit, SAMPLING, {}))
    change(note)
    with pytest.raises(DuoGenError, match=said):
        open_saved(write(tmp_path / "a.safetensors", dit, json.dumps(note).encode())).load_dit()


@pytest.mark.parametrize("note", [b"{", b"[1]", b"\xff\xfe", b"{" + b" " * 70_000 + b"}"])
def test_what_is_no_note_is_a_sentence(dit: PackedCosmos, tmp_path: Path, note: bytes):
    with pytest.raises(DuoGenError):
        open_saved(write(tmp_path / "a.safetensors", dit, note))
