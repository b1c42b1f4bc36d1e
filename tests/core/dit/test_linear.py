"""Linear layers by oneDNN: the same numbers, everywhere F.linear can go, and only where it is faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from duogen_core import linear as module
from duogen_core.dit.cosmos import PackedCosmos

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture()
def calls(monkeypatch):
    """Answers as on a processor where oneDNN is faster, and notes how often it is asked."""
    if not ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    seen = []

    def fast(x, weight, bias, *rest):
        seen.append(tuple(x.shape))
        assert weight.is_contiguous() or weight.t().is_contiguous(), "oneDNN's slow way"
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, *rest)

    monkeypatch.setattr(module, "product", fast)
    return seen


def layer(bias: bool = True) -> module.FastLinear:
    torch.manual_seed(0)
    made = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    made.__class__ = module.FastLinear
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 48), (2, 20, 48), (2, 1, 40, 48), (1, 31, 48), (48,), (0, 48)])
def test_it_is_f_linear(calls, shape, bias):
    one, x = layer(bias), torch.randn(shape)
    torch.testing.assert_close(one(x), F.linear(x, one.weight, one.bias), atol=1e-6, rtol=1e-5)
    assert bool(calls) == (x.numel() >= module.FEW * 48)
    turned = torch.randn(48, 64).t()  # not contiguous
    torch.testing.assert_close(one(turned), F.linear(turned, one.weight, one.bias), atol=1e-6, rtol=1e-5)


def test_what_it_cannot_do_goes_the_usual_way(calls):
    one, x = layer(), torch.randn(64, 48)
    asked = x.clone().requires_grad_()
    one(asked).sum().backward()
    assert torch.allclose(asked.grad, one.weight.sum(0).expand(64, -1), atol=1e-5)
    module.linear(x.double(), one.weight.double())
    module.linear(x.bfloat16(), one.weight.bfloat16())
    module.linear(x.to("meta"), one.weight.to("meta"))
    module.linear(x[:, :8], one.weight[:, :8])  # a slice of columns
    one.weight.requires_grad_()
    one(x).sum().backward()
    assert one.weight.grad is not None and not calls
    with torch.no_grad():
        one(x)
    assert len(calls) == 1


@pytest.mark.parametrize("queries,keys", [(128, 1024), (300, 700), (257, 5000), (128, 1023), (64, 4096), (2, 3)])
def test_attention_is_torchs(calls, queries, keys):
    torch.manual_seed(0)
    q = torch.randn(2, queries, 3, 24).transpose(1, 2)  # as heads are cut out of a linear layer's output
    k = torch.randn(2, keys, 3, 24).transpose(1, 2)
    v = torch.randn(2, 3, keys + 50, 24)[:, :, :keys]  # a part of a buffer
    before = [each.clone() for each in (q, k, v)]
    with torch.no_grad():
        out = module.attention(q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), atol=1e-6, rtol=1e-5)
    assert bool(calls) == (queries * keys >= module.SCORES and queries >= 128)
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))


def test_attention_that_onednn_cannot_do_goes_the_usual_way(calls):
    q, k = torch.randn(1, 2, 256, 16), torch.randn(1, 2, 1024, 16)
    asked = q.clone().requires_grad_()
    module.attention(asked, k, k).sum().backward()
    assert asked.grad is not None
    module.attention(q.bfloat16(), k.bfloat16(), k.bfloat16())
    module.attention(q.to("meta"), k.to("meta"), k.to("meta"))
    assert not calls


def test_a_transformer_runs_through_it(calls):
    torch.manual_seed(0)
    dit = PackedCosmos(num_attention_heads=2, num_layers=2, mlp_ratio=2.0, text_embed_dim=20, adaln_lora_dim=8).eval()
    arguments = [torch.randn(1, 16, 16, 16)] * 2, torch.tensor([0.5]), torch.randn(1, 40, 20)
    with torch.no_grad():
        fast = dit.forward_packed(*arguments)
        assert {(2, 64, 64), (1, 128, 64), (1, 2, 64, 64)} & set(calls), calls
        for each in dit.modules():
            if isinstance(each, nn.Linear):
                each.__class__ = nn.Linear
        torch.testing.assert_close(fast, dit.forward_packed(*arguments), atol=1e-5, rtol=1e-5)


def test_the_processor_decides_and_nothing_else(monkeypatch):
    assert module.onednn_is_faster() is module.onednn_is_faster()
    monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    dit = PackedCosmos(num_attention_heads=2, num_layers=1, mlp_ratio=2.0, text_embed_dim=20, adaln_lora_dim=8)
    assert not any(type(each) is module.FastLinear for each in dit.modules())
