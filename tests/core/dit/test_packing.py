"""Packing: sequences of unlike sizes and counts in one pass give what they give one by one, gradients too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from duogen_core.dit import DitError
from duogen_core.dit.packing import TrainingSequence, additive, attention_product
from tests.core.dit.families import TINY, WIDTH, tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
# per document: the pictures' sizes, and how many of the last ones are targets
DOCUMENTS = [
    (((4, 6), (8, 4), (4, 4)), 2),
    (((4, 4),), 1),
    (((4, 6), (8, 4), (4, 4)), 2),
    (((6, 4), (4, 6), (4, 4)), 3),
    (((2, 2), (8, 4), (4, 4), (4, 4)), 1),
    (((4, 4),), 1),
]
UNIFORM = [(((4, 4), (4, 4)), 2), (((4, 4),), 1), (((4, 4), (4, 4)), 1), (((4, 4), (4, 4)), 2)]


@pytest.fixture(scope="module", params=TINY)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(name) -> dict:
    return {attention: tiny(name, attention=attention) for attention in ("full", "frame_causal")}


@pytest.fixture()
def causal(models):
    return models["frame_causal"]


def sequences(documents, attention: str) -> list[TrainingSequence]:
    generator = torch.Generator().manual_seed(7)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    pack = []
    for number, (sizes, targets) in enumerate(documents):
        last, tokens = len(sizes) - 1, 5 + 2 * number
        targets = 1 if attention == "full" else targets
        drawn = range(last + 1 - targets, last + 1)
        places = (*range(last), *drawn)
        ends = torch.linspace(1, tokens, last + 1).long()[list(places)]
        sees = torch.arange(tokens)[None] < ends[:, None]
        if attention == "full":
            sees[:] = True
        clean = tuple(noise(16, *sizes[k]) for k in range(last))
        noisy = tuple(noise(16, *sizes[k]) for k in drawn)
        pack.append(
            TrainingSequence(clean, noisy, places, torch.rand(targets, generator=generator), noise(tokens, WIDTH), sees)
        )
    return pack


def one_by_one(model, pack: list[TrainingSequence]) -> list[list[torch.Tensor]]:
    """Every target by itself, the way it will be drawn; dropped text (a hole in what it sees) is cut out."""
    found = []
    for sequence in pack:
        found.append([])
        for j, target in enumerate(sequence.noisy):
            row = len(sequence.clean) + j
            place = sequence.frame_indices[row]
            clean = [frame[None] for frame, p in zip(sequence.clean, sequence.frame_indices) if p < place]
            ends = sequence.sees.sum(1)[: len(clean)].tolist()
            text = sequence.text[sequence.sees[row]][None]
            how = {"frame_ends": ends} if model.config.attention == "frame_causal" else {}
            v = model.forward_packed([*clean, target[None]], sequence.timestep[j : j + 1], text, **how)
            found[-1].append(v[0])
    return found


def alone(model, pack: list[TrainingSequence]) -> list[list[torch.Tensor]]:
    """Every target in a training pass of its own, with the frames before it: what gradients are compared with."""
    found = []
    for sequence in pack:
        found.append([])
        for j, target in enumerate(sequence.noisy):
            row = len(sequence.clean) + j
            place = sequence.frame_indices[row]
            rows = [i for i, p in enumerate(sequence.frame_indices[: len(sequence.clean)]) if p < place]
            one = TrainingSequence(
                tuple(sequence.clean[i] for i in rows),
                (target,),
                (*(sequence.frame_indices[i] for i in rows), place),
                sequence.timestep[j : j + 1],
                sequence.text,
                sequence.sees[[*rows, row]],
            )
            found[-1].append(model.forward_train([one])[0][0])
    return found


def assert_close(a, b) -> None:
    assert [len(each) for each in a] == [len(each) for each in b]
    for mine, theirs in zip(a, b, strict=True):
        for v, w in zip(mine, theirs, strict=True):
            torch.testing.assert_close(v, w, **CLOSE)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("documents", [DOCUMENTS, UNIFORM], ids=["mixed", "uniform"])
@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_a_pack_equals_one_by_one_gradients_too(models, attention, documents):
    model = models[attention]
    pack = sequences(documents, attention)
    assert_close(model.forward_train(pack), one_by_one(model, pack))

    def error(found):
        return sum(v.square().mean() for each in found for v in each)

    mine = gradients(model, error(model.forward_train(pack)))
    theirs = gradients(model, error(alone(model, pack)))
    for name, gradient in theirs.items():
        assert gradient.any()
        torch.testing.assert_close(mine[name], gradient, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_the_order_in_a_pack_says_nothing(models, attention):
    model = models[attention]
    pack = sequences(DOCUMENTS, attention)
    with torch.no_grad():
        assert_close(model.forward_train(pack[::-1])[::-1], model.forward_train(pack))


def test_text_that_is_dropped_for_one_target_is_dropped_for_it_alone(causal):
    pack = sequences(DOCUMENTS, "frame_causal")
    with torch.no_grad():
        before = causal.forward_train(pack)
        sees = pack[3].sees.clone()
        sees[3, 2:4] = False  # a hole in what the second target of the fourth document sees
        pack[3] = replace(pack[3], sees=sees)
        after = causal.forward_train(pack)
        assert_close(after, one_by_one(causal, pack))
        sees[4] = False  # all of its third target's text, while its clean frames keep theirs
        after = causal.forward_train(pack)
        assert all(v.isfinite().all() for each in after for v in each)
        changed = [
            (i, j) for i, each in enumerate(after) for j, v in enumerate(each) if not torch.allclose(v, before[i][j])
        ]
        assert changed == [(3, 1), (3, 2)]


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_sequences_without_any_text(models, attention):
    model = models[attention]
    pack = sequences(DOCUMENTS, attention)
    mute = [replace(each, text=each.text[:0], sees=each.sees[:, :0]) for each in pack]
    with torch.no_grad():
        assert_close(model.forward_train([mute[0], *pack[1:]]), one_by_one(model, [mute[0], *pack[1:]]))
        assert_close(model.forward_train(mute), one_by_one(model, mute))


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_targets_without_clean_frames(name, attention):
    """Without references a document's targets share a sequence (frame_causal) and see nothing of each other."""
    model = tiny(name, attention=attention, references=False)
    pack = [
        replace(each, clean=(), frame_indices=each.frame_indices[len(each.clean) :], sees=each.sees[len(each.clean) :])
        for each in sequences(DOCUMENTS, attention)
    ]
    with torch.no_grad():
        assert_close(model.forward_train(pack), one_by_one(model, pack))


def test_clean_frames_may_share_the_targets_timestep(name):
    model = tiny(name, attention="full", clean_timestep=-1.0)
    pack = sequences(DOCUMENTS, "full")
    with torch.no_grad():
        assert_close(model.forward_train(pack), one_by_one(model, pack))


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_gradient_checkpointing_changes_nothing_but_what_is_kept(name, attention):
    model = tiny(name, attention=attention).train()
    pack = sequences(DOCUMENTS, attention)

    def run():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = sum(v.square().mean() for each in model.forward_train(pack) for v in each)
        return loss.detach(), sum(kept), gradients(model, loss)

    loss, size, plain = run()
    model.enable_gradient_checkpointing()
    again, smaller, checkpointed = run()
    assert torch.equal(loss, again) and smaller < size / 2
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_named(models, causal):
    pack = sequences(DOCUMENTS, "frame_causal")
    with pytest.raises(DitError, match="own sequence"):
        models["full"].forward_train(pack)
    with pytest.raises(DitError, match="do not fit together"):
        causal.forward_train([replace(pack[0], timestep=torch.zeros(3))])
    with pytest.raises(DitError, match="frames by tokens"):
        causal.forward_train([replace(pack[0], sees=pack[0].sees[:1])])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_on_a_cpu_is_torchs_own(masked):
    """Forward and backward, of what `forward_train` computes as two products there."""
    generator = torch.Generator().manual_seed(3)
    q, k, v, wanted = (torch.randn(2, 3, n, 32, generator=generator) for n in (12, 9, 9, 12))
    mask = None
    if masked:
        sees = torch.rand(2, 1, 12, 9, generator=generator) < 0.5
        sees[..., 0] = True
        mask = additive(sees, torch.float32)

    def gradients(attention) -> list[torch.Tensor]:
        parts = [part.clone().requires_grad_() for part in (q, k, v)]
        out = attention(*parts, mask).float()
        return [out.detach(), *torch.autograd.grad((out * wanted).sum(), parts)]

    exact = gradients(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert all(torch.equal(*pair) for pair in zip(gradients(attention_product), exact, strict=True))  # no autocast
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(attention_product)
    for one, other in zip(found, exact, strict=True):
        assert not torch.equal(one, other) and (one - other).abs().max() < 0.03 * other.abs().max()
