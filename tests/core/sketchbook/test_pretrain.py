from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import build_inputs, model_inputs, picture_patches
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.mllm.loading import load_mllm
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, new_model
from duogen_core.sketchbook import pretrain
from duogen_core.sketchbook.boards import Board, draw_board, read_board
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.pretrain import PretrainConfig, sketchbook_texts, sketchbook_tokenizer
from duogen_core.sketchbook.probes import ATTRIBUTES, Vocabulary, WordProbes
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    Scene,
    Shape,
)
from duogen_core.sketchbook.source import SketchbookWorld, evaluation_cases, example_of
from duogen_core.sketchbook.tasks import FAMILIES
from duogen_core.sketchbook.things import THINGS
from duogen_core.sketchbook.vision import (
    ANY,
    NONE,
    WORDS,
    ReadOut,
    VisionConfig,
    board_words,
    palette_points,
    random_pictures,
    random_scene,
    scene_words,
    smudged,
    thing_words,
    visible_parts,
    warm_up,
    word_directions,
)
from duogen_core.training import stage1
from duogen_core.training.next_token import Batcher, NextTokenLoss
from duogen_core.training.stage1 import evaluate, optimizers_of
from tests.core.runs import losses, stopped_in

SIZES = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 32,
    "vision_hidden_size": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "vision_intermediate_size": 32,
    "mrope_section": (2, 3, 3),
}
TINY = PretrainConfig(
    out=Path("."), batch=3, sizes=SIZES, tokenizer_cases=40, vocab_size=400, eval_cases=1, warmup=2, steps=4,
    vision=VisionConfig(steps=2, batch=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return sketchbook_tokenizer(0, 60, 500)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return new_model(tokenizer, **SIZES)


class CaseBatcher(Batcher):
    """Takes cases."""

    def __call__(self, cases):
        return super().__call__([example_of(case, TINY.vision_families) for case in cases])


@pytest.fixture
def batcher(tokenizer):
    return CaseBatcher(tokenizer, small_image_processor())


def cases(count: int, seed: int = 0):
    rng = random.Random(seed)
    return [FAMILIES[family](rng) for family in list(FAMILIES) * count][:count]


def with_pictures(family: str):
    return next(c for c in (FAMILIES[family](random.Random(k)) for k in range(20)) if c.document.pictures)


@pytest.mark.parametrize("canvas", CANVASES)
def test_the_batched_tower_equals_transformers_own(model, canvas):
    pixels = [draw_scene(random_scene(random.Random(k), canvas)) for k in range(3)]
    patches, grids = picture_patches([Picture(p) for p in pixels], small_image_processor())
    with torch.no_grad():
        wanted = model.model.visual(patches, grid_thw=grids)
        wanted = getattr(wanted, "pooler_output", wanted)
        found = Qwen25VL.look_at(model, torch.from_numpy(np.stack(pixels)), grids[0].tolist())
    assert found.shape == (3, canvas[0] * canvas[1] // 32**2, 32)
    torch.testing.assert_close(found.flatten(0, 1), wanted, atol=1e-5, rtol=1e-5)


def test_stage_one_loss_equals_transformers_own_on_the_same_labels(model, tokenizer):
    some = cases(7)
    batches, pixels = CaseBatcher(tokenizer, small_image_processor(), tokens=300)(some)
    assert len(batches) > 1
    batch = build_inputs([case.document for case in some], tokenizer, small_image_processor())
    with torch.no_grad():
        wanted = model(**model_inputs(batch)).loss
        found, _ = NextTokenLoss(model)(batches, pixels)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_micro_batches_hold_every_conversation_once_and_stay_within_the_budget(tokenizer):
    batches, _ = CaseBatcher(tokenizer, small_image_processor(), tokens=500)(cases(14))
    assert sum(len(batch.ids) for batch in batches) == 14
    assert all(batch.ids.numel() <= 500 or len(batch.ids) == 1 for batch in batches)


def test_the_users_text_is_learnt_from_scratch_and_not_in_stage_one(tokenizer, batcher):
    case = cases(1)[0]
    for weight in (0.0, 0.25):
        batcher.user_weight = weight
        (batch,), _ = batcher([case])
        learnt = {float(w): tokenizer.decode(batch.ids[0][batch.weight[0] == w].tolist()) for w in (0.25, 1.0)}
        assert learnt[1.0].count("<BOV>") == len(case.document.pictures)
        assert learnt[1.0].count("<|im_end|>") == 1 and "<|image_pad|>" not in learnt[1.0]
        assert learnt[0.25] == (case.document.turns[0].parts[0].text if weight else "")


def test_the_tower_learns_from_the_users_pictures_and_not_from_a_guides_own(model, batcher):
    for family, learns in (("guide", False), ("draw", False), ("describe", True), ("edit", True)):
        case = with_pictures(family)
        model.zero_grad()
        NextTokenLoss(model)(*batcher([case]))[0].backward()
        assert (model.model.visual.patch_embed.proj.weight.grad is not None) == learns
        assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_equal_pictures_are_seen_once(batcher):
    case = with_pictures("describe")
    _, pixels = batcher([case, case])
    assert len(pixels) == 1


def test_evaluation_scores(model, batcher):
    some = SketchbookWorld().evaluation_examples(1)
    batcher = Batcher(batcher.tokenizer, batcher.processor)
    scores = evaluate(model, batcher, {family: some[family] for family in ("draw", "describe")})
    assert set(scores) == {"draw", "describe"}
    assert all(0 <= score[name] <= 1 for score in scores.values() for name in ("token", "when"))
    assert all(5 < score["loss"] < 8 for score in scores.values())  # of a guess among 500 tokens: log 500 = 6.2
    assert evaluation_cases(2, ("edit",)) == evaluation_cases(2, ("edit",))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_weight_has_exactly_one_optimizer(model, name):
    config = replace(TINY, optimizer=name, tower_lr=1e-3)
    found = [p for o in optimizers_of(model, config).values() for p in _parameters(o)]
    assert len(found) == len({id(p) for p in found}) == len(list(model.parameters()))


def test_a_torch_without_muon_is_told(model, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(DuoGenError, match="Muon comes with torch 2.9, and this is .*optimizer=adamw"):
        optimizers_of(model, TINY)
    assert optimizers_of(model, replace(TINY, optimizer="adamw"))


def test_a_frozen_tower_stays_as_it_is(model, batcher):
    found = [p for o in optimizers_of(model, replace(TINY, tower_lr=0.0)).values() for p in _parameters(o)]
    tower = list(model.model.visual.parameters())
    assert len(found) == len(list(model.parameters())) - len(tower)
    NextTokenLoss(model)(*batcher([with_pictures("describe")]))[0].backward()
    assert all(p.grad is None for p in tower) and all(p.grad is not None for p in found if p.ndim == 2)


def _parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_the_vocabulary_reads_every_text_back(tokenizer):
    for text in sketchbook_texts(1, 30):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert len(ids) < 0.75 * len(text)
    assert len(tokenizer.encode("<BOV>")) == 1


def test_a_family_that_is_none_is_named():
    for weights, said in (
        ({"poem": 1.0}, "family 'poem' is not known"),
        ({"gudie": 1.0}, "'weights': the task family 'gudie' is not known; did you mean 'guide'"),
        ({"guide": -1.0}, "'weights.guide' is -1.0; expected a number from 0 on"),
        ({"guide": 0.0}, "has no task family with a weight above 0"),
    ):
        with pytest.raises(DuoGenError, match=said):
            replace(TINY, weights=weights)
    with pytest.raises(DuoGenError, match="'sizes': the setting 'hiden_size' is not known; did you mean 'hidden_size'"):
        replace(TINY, sizes={"hiden_size": 8})


def read(words):
    """What tokens say, attribute by attribute; "" for nothing, None where nobody asks."""
    return [
        [None if k == ANY else "" if k == NONE else names[k] for names, k in zip(WORDS.values(), token, strict=True)]
        for token in words
    ]


def test_a_shape_is_told_by_one_token():
    scene = Scene((Shape("top left", "star", "red", "small"), Shape("right", "cross", "blue", "large")))
    words = read(scene_words(scene))
    assert len(words) == 16
    assert words[0] == ["star", "red", "small", "top", "left", "", "", ""]
    assert words[11] == ["cross", "blue", "large", "centre", "right", "", "", ""]
    assert words[12] == ["background", "cream", "", "bottom", "left", "", "", ""]
    assert words[1] == words[7] == ["background", "cream"] + [""] * 6  # between the middles of the cells
    assert sum(word[0] != "background" for word in words) == 2
    for canvas in CANVASES:
        nine = Scene(tuple(Shape(cell, "circle", "red") for cell in CELLS), canvas=canvas)
        assert sorted((w[3], w[4]) for w in read(scene_words(nine)) if w[0] == "circle") == sorted(
            (row, column) for row in WORDS["row"] for column in WORDS["column"]
        )


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("name", THINGS)
def test_a_part_of_a_thing_is_told_by_one_token_that_shows_it(name, canvas):
    thing = THINGS[name]
    colours = thing.choose_colours(random.Random(1))
    for steps in range(1, thing.steps + 1):
        words = read(thing_words(thing, colours, steps, canvas))
        told = [(what, colour) for what, colour, *_ in words if what != "background"]
        assert sorted(told) == sorted((part.name, colours[part.name]) for part in thing.parts[:steps])
        assert {word[5] for word in words} == {name} and words[0][2:5] == [None] * 3
        if canvas != (128, 128):
            continue  # where a thing is small, parts share tokens, and some move to the token beside
        shown = visible_parts(thing, steps, canvas).reshape(steps, -1)
        for number, part in enumerate(thing.parts[:steps]):
            at = next(k for k, word in enumerate(words) if word[0] == part.name)
            assert shown[number, at] > 0.25 * shown[number].max()


def test_a_board_is_told_cell_by_cell():
    board = Board(4, 4, (0, 1), (3, 3), ((1, 1),), "blue", "pink", "brown")
    words = read(board_words(board))
    assert words[4] == ["marker", "blue", "", None, None, "", "1", "2"]
    assert words[5] == ["wall", "brown", "", None, None, "", "2", "2"]
    assert words[15] == ["goal", "pink", "", None, None, "", "4", "4"]
    assert words[0] == ["background", "cream", "", None, None, "", "1", "1"]
    assert read(board_words(replace(board, marker=(3, 3))))[15][:2] == ["marker", "blue"]


def test_pictures_for_the_tower_are_of_all_kinds_and_never_of_a_held_out_pair():
    assert not any(s.held_out for k in range(200) for s in random_scene(random.Random(k), (128, 128)).shapes)
    pixels, words, kinds = random_pictures(random.Random(0), 40)
    again = random_pictures(random.Random(0), 40)
    assert all(np.array_equal(a, b) for a, b in zip((pixels, words, kinds), again, strict=True))
    assert set(kinds) == {0, 1, 2} and words.shape == (40, pixels.shape[1] * pixels.shape[2] // 1024, len(WORDS))
    points = palette_points(draw_scene(Scene((Shape("top left", "star", "red", "large"),)))[None])
    assert points.shape == (1, 16, 16) and {COLOURS[k] for k in np.unique(points)} >= {"red", "cream"}


def test_smudged_pictures_stay_what_they_are():
    board = Board(4, 4, (0, 1), (3, 3), ((1, 1),))
    pictures = [smudged(draw_board(board), random.Random(k)) for k in range(8)]
    assert all(read_board(picture) == board for picture in pictures)
    assert 0 < sum(np.array_equal(picture, draw_board(board)) for picture in pictures) < 8


def test_a_token_in_the_direction_of_its_words_is_read_right(tokenizer):
    directions = word_directions(torch.randn(len(tokenizer), 256), tokenizer)
    assert not torch.equal(directions["board row"], directions["board column"])
    scene = Scene((Shape("top left", "star", "red", "small"),))
    words = torch.from_numpy(scene_words(scene))[None]
    exact = torch.stack([
        torch.stack([sum(d[k] for d, k in zip(directions.values(), word, strict=True) if k >= 0) for word in words[0]])
    ])  # fmt: skip
    points, kinds = torch.zeros(1, 16, 16, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    read_out = ReadOut(directions, 1.0)
    assert read_out(exact, words, points, kinds)[1]["scene"] == 1.0
    assert read_out(exact.roll(1, dims=1), words, points, kinds)[1]["scene"] == 0.0
    silent, chatty = words.clone(), words.clone()
    silent[0, 0, 2] = NONE  # the token says a size that it should not
    chatty[0, 0, 5] = 3  # it does not say a thing that it should
    assert read_out(exact, silent, points, kinds)[1]["scene"] == read_out(exact, chatty, points, kinds)[1]["scene"] == 0
    silent[0, 0, 2] = ANY
    assert read_out(exact, silent, points, kinds)[1]["scene"] == 1.0


def test_what_belongs_together_is_known_at_the_last_word_of_it(tokenizer):
    def named(text):
        row = Vocabulary(tokenizer).last_named(tokenizer.encode(text, add_special_tokens=False))[-1][:4]
        return [words[k] if k >= 0 else None for words, k in zip(ATTRIBUTES.values(), row, strict=False)]

    assert named("Here is a large red star in the top left") == ["star", "red", "large", "top left"]
    assert named("a large red star in the top left and a small blue circle at the top") == [
        "circle", "blue", "small", "top"
    ]  # fmt: skip
    assert named("a star on the right") == ["star", None, None, "right"]
    assert named("a star in the centre") == ["star", None, None, "centre"]
    assert named("a red star. Let us go on with something else that takes many words, then one") == [None] * 4


def test_every_token_says_how_many_images_came_before(tokenizer):
    text = "Draw a star." + "<|vision_start|><|image_pad|><|vision_end|> Now a circle." * 9
    ids = tokenizer.encode(text, add_special_tokens=False)
    counts = [row[-1] for row in Vocabulary(tokenizer).last_named(ids)]
    begun = [k for k, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("<|vision_start|>")]
    assert len(begun) == 9
    assert counts == [min(7, sum(start <= k for start in begun)) for k in range(len(ids))]


def test_a_batch_without_a_target_asks_the_probes_nothing(tokenizer):
    batcher = CaseBatcher(tokenizer, small_image_processor(), probes=WordProbes(tokenizer, 2, 32))
    labels = batcher.silent().labels
    assert labels.shape[-1] == len(ATTRIBUTES) and (labels == -1).all()
    batches, _ = batcher([FAMILIES["draw"](random.Random(0))])
    assert (batches[0].labels[..., -1] == 0).any()  # no image before


def test_states_learn_what_belongs_together(model, tokenizer):
    probes = WordProbes(tokenizer, 2, 32)
    loss_of = NextTokenLoss(model, probes)
    some = CaseBatcher(tokenizer, small_image_processor(), probes=probes)(
        [FAMILIES["draw"](random.Random(k)) for k in range(4)]
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *probes.parameters()], 3e-3)
    losses = []
    for _ in range(30):
        losses.append(loss_of(*some)[1])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_warm_up_lowers_the_loss_and_leaves_the_language_model_alone(model, tokenizer, tmp_path):
    before = {k: v.clone() for k, v in model.model.language_model.state_dict().items()}
    run = warm_up(model, tokenizer, tmp_path, VisionConfig(steps=60, batch=4, lr=3e-3))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert run.finished and losses[-1] < 0.75 * losses[0], losses
    assert all(torch.equal(v, before[k]) for k, v in model.model.language_model.state_dict().items())


def weights_of(folder):
    return load_mllm(folder).model.state_dict()


def same(one, two, part=""):
    return all(torch.equal(value, two[key]) for key, value in one.items() if part in key)


@pytest.mark.slow
def test_pretraining_stopped_in_either_phase_ends_as_unbroken(tmp_path):
    assert pretrain.train(replace(TINY, out=tmp_path / "whole", seed=1, log_every=1)).finished
    broken = replace(TINY, out=tmp_path / "broken", seed=1, log_every=1)
    for step in (1, 3, 1):  # in the language's second step, its last one, and the tower's last one
        with stopped_in(step):
            assert pretrain.train(broken).interrupted
    pretrain.train(broken)
    for part in ("", "vision"):
        assert list((broken.out / part / "tensorboard").iterdir())
        answers = sorted(path.name for path in (broken.out / part / "samples").glob("*/*.html"))
        assert {"edit.html", "describe.html"} < set(answers)
    assert losses(broken.out) == losses(tmp_path / "whole") and len(losses(broken.out)) == 4
    assert same(weights_of(tmp_path / "whole" / "export"), weights_of(tmp_path / "broken" / "export"))


@pytest.mark.slow
def test_stage_one_trains_the_language_model_and_leaves_the_tower(tmp_path):
    pretrain.train(replace(TINY, out=tmp_path / "pretrain"))
    start = tmp_path / "pretrain" / "export"
    config = stage1.Stage1Config(out=tmp_path / "stage1", init=start, batch=3, eval_cases=1, warmup=2, steps=2)
    assert stage1.train(config).finished
    before, after = weights_of(start), weights_of(config.out / "export")
    assert same(before, after, "visual") and not same(before, after, "language_model.layers")

    mllm = load_mllm(config.out / "export")
    prompt: Document = cases(1)[0].prompt
    assert mllm.continue_(prompt, max_new_tokens=4).tokens <= 4
    assert json.loads((config.out / "config.json").read_text())["config"]["weights"]["guide"] > 0
