"""The loss of stage 2: what a sample shows, what chance decides, and that each switch trains what will be sampled."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from duogen_core.checkpoint import CheckpointConfig, Components
from duogen_core.connector import Connector, normalise
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.document import Document, Picture, Text
from duogen_core.mllm.base import ContextStates
from duogen_core.mllm.chat import build_inputs
from duogen_core.mllm.decoder import hidden_states_for
from duogen_core.picture_sampling import PictureSampler
from duogen_core.settings import Settings
from duogen_core.training import flow, stage2
from duogen_core.training.flow import FlowLoss, FlowSettings, LossSettings, edges, error_of, sample_of
from duogen_core.training.prepared import Prepared, places
from duogen_core.training.run import rng_for
from tests.core.tiny import random_components

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SIZES = ((32, 48), (32, 32), (48, 32))  # of the pictures, height and width


def conversation(wordless: bool = False) -> Document:
    """The user's picture, then two drawn ones, each of another size; wordless: of which the assistant says nothing."""
    generator = torch.Generator().manual_seed(3)
    pixels = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy() for size in SIZES]
    mine, *drawn = (Picture(each) for each in pixels)
    answer = [Text("The walls."), drawn[0], Text("The red roof."), drawn[1], Text("Done.")]
    return (
        Document()
        .begin_turn("user", [Text("Add a house."), mine])
        .begin_turn("assistant", drawn if wordless else answer)
    )


@pytest.fixture(scope="module")
def parts():
    return random_components()


@pytest.fixture(scope="module")
def prepared(parts) -> Prepared:
    return prepare(parts, conversation())


@pytest.fixture(scope="module")
def wordless(parts) -> Prepared:
    return prepare(parts, conversation(wordless=True))


def prepare(parts: Components, document: Document) -> Prepared:
    with torch.inference_mode():
        batch = build_inputs([document], parts.mllm.tokenizer, parts.mllm.image_processor)
        layers = hidden_states_for(parts.mllm.model, batch)[0]
        latents = tuple(parts.vae.encode(picture.pixels.copy())[0] for picture in document.pictures)
    spots = places(batch["layouts"][0])
    states = normalise(layers[:, : spots["ends"][-1]]).transpose(0, 1).flatten(1)
    return Prepared(latents, states, tuple(spots["ends"]), tuple(spots["segments"]), tuple(spots["drawn"]))


def context(document: Document, k: int) -> Document:
    """The conversation up to its drawn picture k (1 or 2)."""
    user, assistant = document.turns
    return Document((user, replace(assistant, parts=assistant.parts[: assistant.parts.index(document.pictures[k])])))


def wanted_sample(prepared: Prepared, chance: FlowSettings, wanted=lambda sample: True):
    """A sample that chance made as wanted."""
    return next(s for s in (sample_of(prepared, Random(seed), chance) for seed in range(200)) if wanted(s))


def trained_and_drawn(
    parts: Components, prepared: Prepared, config: stage2.Stage2Config, dropped: bool, said: Document | None = None
):
    """(velocity in training, velocity in sampling) of every target of a sample; dropped: of the negative branch."""
    torch.manual_seed(0)
    dit, connector = stage2.new_models(config, 2, 64)
    for parameter in [*dit.parameters(), *connector.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    components = Components(parts.mllm, connector.eval(), dit.eval(), parts.vae, CheckpointConfig("trained"))
    chance = replace(stage2.flow_settings(config), drop_text=1.0 if dropped else 0.0)
    sample = wanted_sample(prepared, chance, lambda s: s.frame_indices[-1] == 2)
    sampler = PictureSampler(components, Settings(size=None))
    with torch.inference_mode():
        text = connector.project(sample.states)
        trained = dit.forward_train([flow.noised(sample, text)])[0]
        drawn = []
        for k, t, noise, x0 in zip(
            sample.frame_indices[len(sample.clean) :], sample.timestep, sample.noise, sample.targets
        ):
            document = context(said or conversation(), k)
            states = parts.mllm.encode(document, connector)
            chosen, hidden = states.negative() if dropped else (states.positive(), None)
            frames = [*(sampler.latent(p) for p in document.pictures), (t * noise + (1 - t) * x0)[None]]
            places = {"frame_ends": states.frame_ends, "hidden": hidden}
            drawn.append(dit.forward_packed(frames, t[None], chosen[None], **places)[0])
    return list(zip(trained, drawn, strict=True))


TINY = stage2.Stage2Config(layers=2, heads=2, cross_width=32)


@pytest.mark.parametrize("dropped", [False, True], ids=["positive", "negative"])
@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("drop", ["last_segment", "all_text"])
@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_what_is_trained_is_what_is_sampled(parts, prepared, attention, references, drop, layers, dropped):
    """With every switch both branches of guidance are computed as they were trained, for every target."""
    config = replace(TINY, attention=attention, references=references, drop=drop, connector_layers=layers)
    pairs = trained_and_drawn(parts, prepared, config, dropped)
    assert len(pairs) == (1 if attention == "full" else 2)
    for trained, drawn in pairs:
        torch.testing.assert_close(trained, drawn, **CLOSE)


@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_wordless_pictures_are_trained_and_sampled_without_the_request(parts, wordless, attention):
    """An edit, or text to picture: the assistant writes nothing, so the negative branch hides what the user asked.

    Under frame_causal the earlier pictures keep seeing the request: in the negative branch too, as in training.
    """
    assert all(last > first for first, last in wordless.segments[1:])
    config, said = replace(TINY, attention=attention), conversation(wordless=True)
    both = [trained_and_drawn(parts, wordless, config, dropped, said) for dropped in (False, True)]
    for trained, drawn in [*both[0], *both[1]]:
        torch.testing.assert_close(trained, drawn, **CLOSE)
    assert not torch.allclose(both[0][-1][1], both[1][-1][1], **CLOSE)


def test_every_switch_changes_what_is_sampled(parts, prepared):
    def last(config, dropped):
        return trained_and_drawn(parts, prepared, config, dropped)[-1][1]  # every time from the same noise, if not t

    for switch in ({"attention": "full"}, {"references": False}, {"connector_layers": "last"}):
        assert not torch.allclose(last(replace(TINY, **switch), False), last(TINY, False), **CLOSE)
    all_text = replace(TINY, drop="all_text")
    assert torch.equal(last(all_text, False), last(TINY, False))
    assert not torch.allclose(last(all_text, True), last(TINY, True), **CLOSE)


def test_the_switches_are_kept_with_the_weights(tmp_path):
    config = replace(TINY, attention="full", references=False, connector_layers="last", drop="all_text")
    dit, connector = stage2.new_models(config, 2, 64)
    dit.save_pretrained(tmp_path / "dit")
    connector.save_pretrained(tmp_path / "connector")
    dit = PackedCosmos.from_pretrained(tmp_path / "dit")
    assert (dit.config.attention, dit.config.references) == ("full", False)
    shape = Connector.from_pretrained(tmp_path / "connector").config
    assert (shape.layers, shape.drop) == ("last", "all_text")


def test_a_dropped_segment_is_all_that_a_target_loses(prepared):
    kept = wanted_sample(prepared, FlowSettings(drop_text=0.0))
    lost = wanted_sample(prepared, FlowSettings(drop_text=1.0))
    assert torch.equal(kept.states, lost.states) and kept.frame_indices == (0, 1, 1, 2)
    assert torch.equal(kept.sees[:2], lost.sees[:2])  # clean frames keep what they see
    assert kept.sees.sum(1).tolist() == [prepared.ends[k] for k in kept.frame_indices]
    for row, k in ((2, 1), (3, 2)):
        first, last = prepared.segments[k]
        assert last > first
        assert (kept.sees[row] ^ lost.sees[row]).nonzero().flatten().tolist() == list(range(first, last))


def test_full_attention_takes_one_random_target_with_the_earlier_pictures_clean(prepared):
    chance = FlowSettings(attention="full", drop_text=0.5)
    seen = [sample_of(prepared, Random(seed), chance) for seed in range(60)]
    assert {sample.frame_indices for sample in seen} == {(0, 1), (0, 1, 2)}
    for sample in seen:
        k = sample.frame_indices[-1]
        first, last = prepared.segments[k]
        assert len(sample.targets) == 1 and len(sample.clean) == k and sample.sees.all()
        assert len(sample.states) in (prepared.ends[k], prepared.ends[k] - (last - first))
    assert 15 < sum(len(s.states) == prepared.ends[s.frame_indices[-1]] for s in seen) < 45


def test_timesteps_are_logit_normal_and_shifted(prepared):
    times = torch.cat([sample_of(prepared, Random(seed), FlowSettings(shift=3.0)).timestep for seed in range(400)])
    assert times.min() > 0 and times.max() < 1
    logits = torch.logit(times / (3 - 2 * times))  # the shift undone
    assert abs(float(logits.mean())) < 0.12 and abs(float(logits.std()) - 1) < 0.1


def test_a_share_of_the_timesteps_is_not_shifted(prepared):
    def median(unshifted_share: float) -> float:
        chance = FlowSettings(shift=6.0, unshifted_share=unshifted_share)
        return float(torch.cat([sample_of(prepared, Random(seed), chance).timestep for seed in range(400)]).median())

    assert abs(median(1.0) - 0.5) < 0.05
    assert abs(median(0.0) - 6 / 7) < 0.03
    assert median(1.0) < median(0.35) < median(0.0)


def test_the_noise_does_not_depend_on_the_share(prepared):
    one, other = (sample_of(prepared, Random(3), FlowSettings(unshifted_share=share)) for share in (0.0, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(one.noise, other.noise))


def of_a_sample(prepared, settings, decode=None, training=True):
    torch.manual_seed(0)
    dit, connector = stage2.new_models(TINY, 2, 64)
    loss = FlowLoss(dit, connector, settings=settings, decode=decode).train(training)
    return loss, loss([wanted_sample(prepared, FlowSettings())])


def test_the_error_of_x0_is_t_times_that_of_the_velocity():
    error, t, x0 = torch.randn(16, 4, 4), torch.tensor(0.3), torch.randn(16, 4, 4)
    velocity, of_x0 = (error_of(error, t, x0, LossSettings(loss)) for loss in ("velocity", "x0"))
    x, v = torch.randn_like(x0), torch.randn_like(x0)  # x_t - t v, and what it should be
    torch.testing.assert_close(((x - t * (v + error)) - (x - t * v)).square().mean(), of_x0)
    torch.testing.assert_close(velocity * t**2, of_x0)


def test_errors_at_edges_count_more_and_weights_are_one_on_average():
    x0 = torch.zeros(16, 8, 8)
    x0[:, :, 4:] = 1.0
    found = edges(x0)
    assert found.shape == (8, 8) and found[:, 3:5].min() > 0 == found[:, :3].max() == found[:, 5:].max()
    assert float(found.mean()) == pytest.approx(1)
    settings, t = LossSettings(edge_weight=2.0), torch.tensor(0.5)
    at_edge, beside = torch.zeros(16, 8, 8), torch.zeros(16, 8, 8)
    at_edge[:, 2, 3], beside[:, 2, 1] = 1.0, 1.0
    plain = at_edge.square().mean()
    assert error_of(at_edge, t, x0, settings) > 2 * plain and error_of(beside, t, x0, settings) < 0.5 * plain
    assert float(edges(torch.ones(16, 4, 4)).sum()) == 0


def test_pixels_count_through_the_decoder_and_in_training_alone(prepared):
    decode, seen = torch.nn.Conv2d(16, 3, 1).requires_grad_(False), []

    def counted(latents):
        seen.append(len(latents))
        return decode(latents)

    plain, wanted = of_a_sample(prepared, LossSettings())
    module, loss = of_a_sample(prepared, LossSettings(decoder_weight=0.5), counted)
    assert loss > wanted and 0 < len(seen) <= 2 * flow.DECODED
    loss.backward()
    assert module.dit.proj_out.weight.grad.abs().sum() > 0 and all(p.grad is None for p in decode.parameters())
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in plain.named_parameters()}
    _, scored = of_a_sample(prepared, LossSettings("x0", 2.0, 0.5), counted, training=False)
    torch.testing.assert_close(scored, of_a_sample(prepared, LossSettings(), training=False)[1])


def test_noise_on_earlier_pictures_changes_nothing_else(prepared):
    exact, noisy = (wanted_sample(prepared, FlowSettings(reference_noise=most)) for most in (0.0, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(exact.targets + exact.noise, noisy.targets + noisy.noise))
    assert torch.equal(exact.timestep, noisy.timestep) and torch.equal(exact.sees, noisy.sees)
    amounts = [float((a - b).std()) for a, b in zip(exact.clean, noisy.clean)]
    assert len(set(amounts)) == len(amounts) and all(0 < amount < 0.33 for amount in amounts)
    assert all(torch.equal(x, prepared.latents[k]) for k, x in enumerate(exact.clean))


def random_parts(config=None) -> FlowLoss:
    torch.manual_seed(0)
    dit, connector = stage2.new_models(config or TINY, 2, 64)
    for parameter in dit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return FlowLoss(dit, connector, settings=LossSettings(own_references=1.0))


def test_an_own_reference_is_what_one_step_of_drawing_gives(prepared):
    """The user's picture (0) stays; of the drawn ones (1, 2) only 1 stands before another one."""
    plain, sample = (wanted_sample(prepared, FlowSettings(own_references=share)) for share in (0.0, 1.0))
    assert plain.own == () and sample.own == (1,) and flow.OWN_TIMES[0] <= sample.own_time <= flow.OWN_TIMES[1]
    assert torch.equal(plain.timestep, sample.timestep) and all(map(torch.equal, plain.noise, sample.noise))
    module = random_parts()
    (found,) = module.with_own_references([sample])
    assert torch.equal(found.clean[0], sample.clean[0]) and torch.equal(found.timestep, sample.timestep)
    t = torch.full_like(sample.timestep, sample.own_time)
    (text,) = flow.projected(module.connector, [sample.states])
    with torch.no_grad():
        ((velocity, _),) = module.dit.forward_train([flow.noised(replace(sample, timestep=t), text)])
    x = t[0] * sample.noise[0] + (1 - t[0]) * sample.targets[0]
    torch.testing.assert_close(found.clean[1], x - t[0] * velocity, **CLOSE)
    assert not torch.allclose(found.clean[1], sample.clean[1], atol=0.1)
    # What is learnt, and what is scored: of the same sample with these frames, and of the ideal ones.
    torch.testing.assert_close(module([sample]), FlowLoss(module.dit, module.connector)([replace(found, own=())]))
    torch.testing.assert_close(module.eval()([sample]), FlowLoss(module.dit, module.connector)([plain]))


def test_weights_that_guess_still_learn_in_bfloat16(prepared):
    sample = wanted_sample(prepared, FlowSettings(own_references=1.0))
    module = random_parts()
    module.bf16 = True
    module([sample]).backward()
    found = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    plain = random_parts()
    plain([replace(sample, own=())]).backward()
    assert found == {name for name, parameter in plain.named_parameters() if parameter.grad is not None}


def test_a_picture_whose_text_is_hidden_is_not_guessed(prepared):
    settings = FlowSettings(own_references=0.5, drop_text=0.5)
    samples = [sample_of(prepared, Random(k), settings) for k in range(60)]
    hidden = [bool((~sample.sees[len(sample.clean), : prepared.ends[1]]).any()) for sample in samples]
    assert any(hidden) and not any(sample.own for sample, hid in zip(samples, hidden) if hid)
    shown = [sample for sample, hid in zip(samples, hidden) if not hid]
    assert 0.25 < sum(bool(sample.own) for sample in shown) / len(shown) < 0.75


@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_the_loss_is_the_same_however_a_batch_is_shared_out(prepared, attention):
    torch.manual_seed(0)
    config = replace(TINY, attention=attention, bf16=False)
    dit, connector = stage2.new_models(config, 2, 64)
    for parameter in dit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    loss = FlowLoss(dit, connector)
    batch = [sample_of(prepared, rng_for(0, "flow", i), stage2.flow_settings(config)) for i in range(5)]
    total = sum(len(sample.targets) for sample in batch)
    whole = loss(batch)
    whole.backward()
    grads = [p.grad.clone() for p in loss.parameters() if p.grad is not None]
    loss.zero_grad(set_to_none=True)
    shares = [loss(batch[rank::2], total) for rank in range(2)]
    for share in shares:
        share.backward()
    torch.testing.assert_close(sum(shares), whole, **CLOSE)
    for parameter, grad in zip((p for p in loss.parameters() if p.grad is not None), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, **CLOSE)


def test_the_loss_is_the_mean_over_targets_of_the_velocitys_squared_error(prepared):
    dit, connector = stage2.new_models(TINY, 2, 64)  # a new DiT answers zero
    sample = sample_of(prepared, Random(0), FlowSettings())
    expected = torch.stack([(n - x).square().mean() for n, x in zip(sample.noise, sample.targets)]).mean()
    torch.testing.assert_close(FlowLoss(dit, connector)([sample]), expected, **CLOSE)


def test_without_a_new_text_the_request_is_dropped():
    """Two pictures with no word between them: of the second, training drops the user's text, as guidance will."""
    parts = random_components()
    document = conversation()
    user, assistant = document.turns
    one, two = assistant.parts[1], assistant.parts[3]
    twice = Document((user, replace(assistant, parts=(Text("The walls."), one, two, one))))
    layout = build_inputs([twice], parts.mllm.tokenizer, parts.mllm.image_processor)["layouts"][0]
    asked, _, walls, *_ = layout.parts
    spots = places(layout)
    assert spots["drawn"] == [1, 2, 3] and spots["segments"][0] == (spots["ends"][0],) * 2
    assert spots["segments"][1:] == [(walls.start, walls.end), *[(asked.start, asked.end)] * 2]
    before = places(layout, "none")["segments"]  # weights trained without the rule: nothing is dropped of these
    assert before[1] == (walls.start, walls.end) and before[2:] == [(end, end) for end in spots["ends"][2:]]


def test_a_branch_without_any_text_is_there_even_when_nothing_new_was_written():
    states = ContextStates(torch.randn(9, 4), (2, 5), (5,), "all_text")  # the last text stands before the last picture
    text, hidden = states.negative()
    assert len(text) == 0 and hidden is None
