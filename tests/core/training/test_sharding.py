"""What one of eight processes holds of a model under FSDP: its rows alone, tied weights once; 4-bit weights too.

One process that believes in seven others (torch's fake process group), so that bytes can be counted.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.mllm.loading import load_mllm
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, new_model
from duogen_core.sketchbook.pretrain import sketchbook_tokenizer
from duogen_core.training import distributed
from duogen_core.training.average import Ema
from duogen_core.training.checkpoints import own_state
from duogen_core.training.distributed import shard
from duogen_core.training.flow import FlowLoss
from duogen_core.training.lora import LoraSettings, trainable
from duogen_core.training.next_token import NextTokenLoss
from duogen_core.training.stage1 import adapt
from tests.core.dit.families import TINY, WIDTH, tiny
from tests.core.mllm_families import CREATE, lively

RANK, WORLD = 3, 8
SIZES = {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 256,
         "vision_hidden_size": 64, "vision_layers": 1}  # fmt: skip


@pytest.fixture
def one_of_eight(monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    torch.distributed.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllm")
    torch.manual_seed(0)
    tokenizer = sketchbook_tokenizer(0, 60, 500)
    model = new_model(tokenizer, **SIZES).bfloat16()
    Qwen25VL(model, tokenizer, small_image_processor()).save_pretrained(folder)
    return folder


def storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return getattr(tensor, "_local_tensor", tensor).untyped_storage()  # of a DTensor, what is here


class Bytes(TorchDispatchMode):
    """Counts the memory that operations take, and what is copied out of tensors that were there before."""

    def __init__(self, mapped: set[int]) -> None:
        super().__init__()
        self.mapped, self.taken, self.read = mapped, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {storage(t).data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and storage(tensor).data_ptr() not in before:
                self.taken += storage(tensor).nbytes() if storage(tensor).data_ptr() else 0
        if func is torch.ops.aten.copy_.default and storage(args[1]).data_ptr() in self.mapped:
            self.read += args[1].numel() * args[1].element_size()
        return out


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """What the process has of a tensor."""
    chunks = tensor.chunk(WORLD)
    return chunks[RANK] if len(chunks) > RANK else tensor[:0]


def sharded(loss: torch.nn.Module, dtype: torch.dtype | None) -> tuple[torch.optim.Optimizer, Bytes]:
    optimizer = torch.optim.AdamW(trainable(loss).values())
    # Tensors of one file share its mapping, so the storages of the parameters are the mapped ones.
    counted = Bytes({p.untyped_storage().data_ptr() for p in loss.parameters()})
    with counted:
        shard(loss, {"adamw": optimizer}, torch.device("cpu"), dtype)
    return optimizer, counted


def test_a_process_reads_and_holds_its_rows_alone(folder, one_of_eight):
    mllm = load_mllm(folder)
    loss = NextTokenLoss(mllm.model)
    whole = {name: parameter.detach() for name, parameter in loss.named_parameters()}
    weights = sum(tensor.numel() for tensor in whole.values())
    largest = max(-(-len(tensor) // WORLD) * tensor[0].numel() for tensor in whole.values())
    optimizer, counted = sharded(loss, torch.float32)
    for name, parameter in loss.named_parameters():
        assert torch.equal(parameter.to_local(), rows(whole[name]).float()), name
    # bf16 in the file, float32 in memory; a tensor with fewer rows than processes is rounded up
    assert counted.read == sum(rows(tensor).nbytes for tensor in whole.values()) < 2 * weights / WORLD * 1.1
    assert counted.taken <= 4 * weights / WORLD * 1.1 + 4 * largest
    learns = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in learns} == {id(p) for p in loss.parameters()}
    # Tied weights stay one, and a checkpoint has them once.
    assert mllm.model.lm_head.weight is mllm.model.get_input_embeddings().weight
    state = own_state(mllm.model)
    assert "lm_head.weight" not in state and len(state) == len(whole)
    average = Ema(mllm.model, 0.9)
    assert sum(tensor.to_local().nbytes for tensor in average.shadow.values()) <= 4 * weights / WORLD * 1.1


@pytest.mark.parametrize("name", [*CREATE, *TINY])
def test_every_family_tells_the_layers_that_are_gathered_one_at_a_time(name, one_of_eight):
    if name in CREATE:
        mllm = lively(name)
        loss, count = NextTokenLoss(mllm.model), mllm.num_layers
    else:
        loss, count = FlowLoss(tiny(name), Connector(ConnectorConfig(2, 8, WIDTH))), TINY[name]["num_layers"]
    whole = {name: parameter.detach() for name, parameter in loss.named_parameters()}
    sharded(loss, torch.float32)
    assert [type(layer).__name__.startswith("FSDP") for layer in loss.layers] == [True] * count
    for name, parameter in loss.named_parameters():
        assert torch.equal(parameter.to_local(), rows(whole[name])), name


@pytest.mark.parametrize("quantised", [None, "nf4"])
def test_lora_and_what_it_freezes_are_split(folder, one_of_eight, quantised):
    pytest.importorskip("peft")
    if quantised:
        pytest.importorskip("bitsandbytes")
    mllm = load_mllm(folder)
    adapt(mllm, LoraSettings(rank=8, quantise=quantised), bf16=False)
    loss = NextTokenLoss(mllm.model)
    kinds = {name: (parameter.shape, parameter.dtype) for name, parameter in loss.named_parameters()}
    optimizer, _ = sharded(loss, None)
    assert {name: (parameter.shape, parameter.dtype) for name, parameter in loss.named_parameters()} == kinds
    for name, parameter in loss.named_parameters():
        assert len(parameter.to_local()) == len(rows(torch.empty(parameter.shape, device="meta"))), name
    layer = mllm.model.model.language_model.layers[0].mlp.up_proj.base_layer.weight
    assert layer.dtype == (torch.uint8 if quantised else torch.bfloat16)
    assert {p.dtype for group in optimizer.param_groups for p in group["params"]} == {torch.float32}


def test_a_host_without_memory_for_a_whole_copy_gathers_to_the_end(monkeypatch):
    """The other processes count on this one in every gather."""
    gathered = []

    class Full(torch.Tensor):
        def cpu(self):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def full_tensor(tensor):
        gathered.append(tuple(tensor.shape))
        return tensor.as_subclass(Full) if tensor.ndim == 1 else tensor

    monkeypatch.setattr(distributed, "full_tensor", full_tensor)
    processes = distributed.Processes()
    processes.sharded, processes._wrapped = True, torch.nn.Module()
    parts = torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)
    with pytest.raises(MemoryError, match="no memory for a whole copy"), processes.gathered(*parts):
        raise AssertionError("there is nothing whole")
    assert gathered == [(3, 2), (3,), (4, 3), (4,)]
    assert all("state_dict" not in vars(part) for part in parts)
