"""Published Cosmos-Predict2.5, every size in every layout: a changed list is refused by the tensor's name."""

from __future__ import annotations

import pytest

from duogen_core.dit.loading import open_published
from duogen_core.errors import DuoGenError
from tests.core.dit.test_cosmos_files import PUBLISHED, layout
from tests.core.headers import hollow, key_list

LAYOUTS = ["official", "comfyui", "comfyui checkpoint", "diffusers"]
# The last block's second matrix of the MLP, in each layout and by our name.
ENDS = {"diffusers": "ff.net.2.weight", "": "mlp.layer2.weight"}
MUTATIONS = {
    "renamed": (
        lambda s, n: {(f"{k}_x" if k == n else k): v for k, v in s.items()},
        r"1 of \d+ .*are missing .*1 do not",
    ),
    "missing": (lambda s, n: {k: v for k, v in s.items() if k != n}, r"1 of \d+ tensors are missing"),
    "one more": (lambda s, n: {**s, f"{n}_x": (2, 2)}, r"1 do not belong there"),
    "wrong shape": (lambda s, n: {**s, n: s[n][::-1]}, r"1 have another shape"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("size", PUBLISHED)
def test_a_changed_list_is_refused_by_name(tmp_path, size, kind, mutation):
    shapes = layout(size, kind)
    end = f"locks.{PUBLISHED[size][1] - 1}.{ENDS.get(kind, ENDS[''])}"
    (name,) = [name for name in shapes if name.endswith(end)]
    change, match = MUTATIONS[mutation]
    with pytest.raises(DuoGenError, match=match) as caught:
        open_published(hollow(tmp_path / "model.safetensors", change(shapes, name)))
    ours = f"transformer_blocks.{PUBLISHED[size][1] - 1}.ff.net.2.weight"
    assert ("_x" if mutation == "one more" else ours) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other", ["wan_2.1_vae.official", "wan_2.1_vae.diffusers", "mllm-qwen2.5-vl-7b", "mllm-qwen3-vl-8b"]
)
def test_the_list_of_another_model_is_refused(tmp_path, other):
    with pytest.raises(DuoGenError, match="holds no Cosmos-Predict2.5 transformer: none of its"):
        open_published(hollow(tmp_path / "model.safetensors", key_list(other)))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_block_of_the_other_size_is_refused(tmp_path, kind):
    """Half of the 2B file in the 14B one: two downloads that were mixed up."""
    small, large = layout("2b", kind), layout("14b", kind)
    mixed = {name: small.get(name, shape) if ".3." in name else shape for name, shape in large.items()}
    with pytest.raises(DuoGenError, match=r"have another shape .*transformer_blocks\.3\.attn1.* instead of \["):
        open_published(hollow(tmp_path / "model.safetensors", mixed))
