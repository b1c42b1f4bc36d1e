"""The loop: what it asks of each room, its limits, and what is left on disk when it is stopped (invariant 6)."""

from __future__ import annotations

import errno
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from duogen_core import picture_sampling, pipeline
from duogen_core.connector import Connector
from duogen_core.document import Document, Picture, Text, store
from duogen_core.document.reading import load_document
from duogen_core.document.store import DocumentWriter
from duogen_core.errors import DuoGenError
from duogen_core.picture_sampling import PictureSampler, picture_seed
from duogen_core.pipeline import Callbacks, generate, generate_many
from duogen_core.settings import Settings
from tests.core.tiny import drawing, random_components, request, scripted

GUIDE = (
    ("Step 1. A wall.", "picture"),
    ("Step 2. A roof.", "picture"),
    ("Step 3. A door.", "picture"),
    ("Done.", "end"),
)


def noise_picture(width: int, height: int, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def components():
    return random_components()


@pytest.fixture(params=("frame_causal", "full"))
def attention(request):
    return request.param


@pytest.fixture
def calls(components, monkeypatch):
    """Every branch that is drawn: (sizes of the frames, number of text tokens that the target sees, frame_ends)."""
    seen, prepare = [], components.dit.prepare

    def spy(frames, texts, size, **options):
        sizes = [tuple(shape[-2:]) for shape in (*(frame.shape for frame in frames), size)]
        for text, hidden in texts:
            start, end = hidden or (0, 0)
            seen.append((sizes, text.shape[1] - (end - start), tuple(options["frame_ends"])))
        return prepare(frames, texts, size, **options)

    monkeypatch.setattr(components.dit, "prepare", spy)
    return seen


# ---------------------------------------------------------------- several answers at once

MANY = [request("Draw a star."), request("How do I draw a large house with a red roof?"), request("Blue.")]
SHORT = Settings(steps=1, max_images=2, max_new_tokens=9, temperature=0.9)


def test_several_answers_are_those_of_one_after_another(attention):
    alone = [
        generate(drawing(random_components(attention=attention)), document, replace(SHORT, seed=seed))
        for document, seed in zip(MANY, (4, 5, 6))
    ]
    events = []
    watch = [
        Callbacks(on_picture=lambda k, _, n=n: events.append((n, k)), on_token=lambda _, n=n: events.append(n))
        for n in range(3)
    ]
    together = generate_many(drawing(random_components(attention=attention)), MANY, SHORT, (4, 5, 6), watch)
    for ours, theirs in zip(together, alone):
        assert ours.text == theirs.text and ours.generation == theirs.generation
        assert [picture.meta for picture in ours.pictures] == [picture.meta for picture in theirs.pictures]
        for a, b in zip(ours.pictures, theirs.pictures):
            assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
    pictures = [event for event in events if isinstance(event, tuple)]
    assert pictures == [(n, k) for k in range(2) for n in range(3)], "all first images, then all second ones"
    assert {event for event in events if not isinstance(event, tuple)} == {0, 1, 2}


def test_several_answers_that_are_stopped_keep_what_they_have():
    drawn = []
    watch = [Callbacks(on_picture=lambda k, _: drawn.append(k)) for _ in MANY]
    stopped = generate_many(drawing(random_components()), MANY, SHORT, None, watch, lambda: len(drawn) == 2)
    assert [document.generation["stop_reason"] for document in stopped] == ["interrupted"] * 3
    assert [len(document.pictures) for document in stopped] == [1, 1, 0]
    assert all(document.last_turn.text for document in stopped)


def test_where_memory_runs_out_what_all_answers_have_cached_is_freed(monkeypatch):
    samplers, held = [], []

    class Watched(PictureSampler):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            samplers.append(self)

        def prepare(self, document, shape, cancelled=None):
            prepared = super().prepare(document, shape, cancelled)
            if self is samplers[1] and len(document.pictures) == 1 and not held:
                held.append([each.cache.bytes for each in samplers])
                raise MemoryError
            return prepared

    components = drawing(random_components(attention="frame_causal"))
    monkeypatch.setattr(pipeline, "PictureSampler", Watched)
    monkeypatch.setattr(components, "go_leaner", lambda: str(held.append([each.cache.bytes for each in samplers])))
    answers = generate_many(components, MANY, SHORT)
    assert all(held[0][:2]) and held[1] == [0, 0, 0]
    assert [len(answer.pictures) for answer in answers] == [2, 2, 2]


# ---------------------------------------------------------------- the answer


def test_texts_and_pictures_come_in_turn(components):
    asked = scripted(components, *GUIDE)
    answer = generate(components, request("A house."), Settings(seed=7))
    assert [turn.role for turn in answer.turns] == ["user", "assistant"]
    parts = answer.last_turn.parts
    assert [part.text if isinstance(part, Text) else "picture" for part in parts] == [
        "Step 1. A wall.", "picture", "Step 2. A roof.", "picture", "Step 3. A door.", "picture", "Done.",
    ]  # fmt: skip
    assert [part.meta for part in parts if isinstance(part, Picture)] == [
        {"seed": 7, "text": "Step 1. A wall."},
        {"seed": picture_seed(7, 1), "text": "Step 2. A roof."},
        {"seed": picture_seed(7, 2), "text": "Step 3. A door."},
    ]
    assert answer.generation == {
        "model": "tiny", "seed": 7, "steps": 2, "guidance": 2.0, "shift": 1.0, "temperature": 0.0, "stop_reason": "end",
    }  # fmt: skip
    assert [len(document.pictures) for document in asked] == [0, 1, 2, 3]


def test_pictures_of_neighbouring_seeds_share_no_noise(components):
    """Two seeds that a user tries one after another: no picture of one answer has the noise of one of the other."""
    used = [picture_seed(seed, k) for seed in range(50) for k in range(20)]
    assert len(set(used)) == len(used) and max(used) < 2**53
    drawn = []
    for seed in (7, 8):
        scripted(components, ("A wall.", "picture"), ("A wall.", "picture"), ("", "end"))
        drawn.append(generate(components, request(), Settings(seed=seed)).pictures)
    assert drawn[0][0].meta["seed"] == 7, "one picture: the seed of the answer, as any other program takes it"
    assert {picture.meta["seed"] for picture in drawn[0]}.isdisjoint(picture.meta["seed"] for picture in drawn[1])


def test_an_assistant_turn_is_continued(components):
    scripted(components, ("and so on.", "end"))
    answer = generate(components, request().begin_turn("assistant", [Text("First, "), noise_picture(32, 32)]))
    assert len(answer.turns) == 2 and answer.text == "First, and so on."


def test_a_picture_may_come_without_any_text(components):
    scripted(components, ("", "picture"), ("", "end"))
    answer = generate(components, request())
    assert [type(part) for part in answer.last_turn.parts] == [Picture]
    assert answer.last_turn.parts[0].meta["text"] == ""


def test_the_model_itself_runs_through(components):
    answer = generate(components, request(), Settings(max_new_tokens=12, max_images=1))
    assert (
        answer.generation["stop_reason"] in ("end", "max_tokens", "max_images") and answer.last_turn.role == "assistant"
    )


def test_the_same_seed_gives_the_same_bytes(components, tmp_path):
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        scripted(components, *GUIDE)
        generate(
            components, request(), Settings(seed=seed), Callbacks(on_document=DocumentWriter(tmp_path / name).update)
        )
        folder = tmp_path / name
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert files[0] == files[1] and len(files[0]) == 4
    assert files[0]["images/000.png"] != files[2]["images/000.png"]


def test_how_tokens_are_chosen_is_the_users_or_the_models(components):
    """Values reach the MLLM as they were chosen; where the model's own temperature counts, the document names it."""
    how, own = [], components.mllm.continue_

    def continue_(document, **options):
        how.append({name: options[name] for name in Settings().token_sampling()})
        return own(document, **options)

    components.mllm.continue_ = continue_
    components.mllm.generation = {"do_sample": True, "temperature": 0.25, "top_k": 7}
    chosen = Settings(max_images=0, max_new_tokens=3, temperature=0.5, top_k=4, min_p=0.1, repetition_penalty=1.2)
    generate(components, request(), chosen)
    assert how.pop() == {"temperature": 0.5, "top_p": None, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2}
    document = generate(components, request(), Settings(max_images=0, max_new_tokens=3, temperature=None))
    assert how.pop()["temperature"] == document.generation["temperature"] == 0.25
    assert generate(components, request(), Settings(max_new_tokens=3)).generation["temperature"] == 0


def test_the_callers_torch_is_left_alone(components):
    scripted(components, *GUIDE)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    generate(components, request())
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), state)
    assert not torch.is_inference_mode_enabled()


def test_everything_is_reported_as_it_happens(components):
    scripted(components, *GUIDE[:1], ("Done.", "end"))
    events = []
    generate(
        components,
        request(),
        Settings(steps=3),
        Callbacks(
            on_token=lambda text: events.append(text),
            on_picture_step=lambda k, step, steps, latent: events.append((k, step, steps, tuple(latent.shape))),
            on_picture=lambda k, picture: events.append((k, picture.size)),
            on_document=lambda document: events.append(
                (len(document.turns[-1].parts), document.generation["stop_reason"])
            ),
        ),
    )
    steps = [(0, step, 3, (1, 16, 4, 4)) for step in (1, 2, 3)]
    started = ["Step ", "1. ", "A ", "wall.", (1, "interrupted"), *steps, (2, "interrupted"), (0, (32, 32))]
    assert events == [*started, "Done.", (3, "interrupted"), (3, "end")]


# ---------------------------------------------------------------- what the DiT sees


@pytest.mark.parametrize("attention", ["full", "frame_causal"])
def test_every_earlier_picture_is_a_frame(attention, monkeypatch):
    components = random_components(attention=attention)
    calls = []
    prepare = components.dit.prepare
    monkeypatch.setattr(
        components.dit,
        "prepare",
        lambda frames, texts, size, **options: (
            calls.append([tuple(shape[-2:]) for shape in (*(f.shape for f in frames), size)])
            or prepare(frames, texts, size, **options)
        ),
    )
    scripted(components, *GUIDE[:2], ("Done.", "end"))
    document = Document().begin_turn("user", [noise_picture(64, 32), Text("Go on.")])
    answer = generate(components, document, Settings(steps=1, guidance=1.0))
    assert calls == [[(4, 8), (4, 8)], [(4, 8), (4, 8), (4, 8)]]  # drawn at the size of the user's picture
    assert [picture.size for picture in answer.pictures] == [(64, 32)] * 3


def test_pictures_of_earlier_turns_count_too(components, calls):
    scripted(components, *GUIDE[:1], ("Done.", "end"))
    document = Document().begin_turn("user", [noise_picture(32, 32)]).begin_turn("assistant", [noise_picture(48, 32)])
    generate(components, document.begin_turn("user", [Text("Again.")]), Settings(steps=1, guidance=1.0))
    assert [sizes for sizes, *_ in calls] == [[(4, 4), (4, 6), (4, 6)]]


def test_a_large_picture_is_seen_at_the_models_size_and_kept_as_it_is(components, calls):
    scripted(components, *GUIDE[:1], ("Done.", "end"))
    photo = noise_picture(300, 200)
    answer = generate(
        components, Document().begin_turn("user", [photo, Text("Go on.")]), Settings(steps=1, guidance=1.0)
    )
    assert answer.pictures[0] == photo
    assert [sizes for sizes, *_ in calls] == [[(6, 8), (6, 8)]]  # 300x200 -> 64x43 -> 64x48


def test_the_size_can_be_chosen(components, calls):
    scripted(components, *GUIDE[:1], ("Done.", "end"))
    answer = generate(components, request(), Settings(steps=1, guidance=1.0, size=(50, 33)))
    assert answer.pictures[0].size == (48, 32)


@pytest.mark.parametrize(
    "given, seen",
    [((32, 32), (32, 32)), ((64, 48), (64, 48)), ((640, 480), (64, 48)), ((9000, 10), (64, 32)), ((1, 1), (32, 32))],
)
def test_the_fit_rule(components, given, seen):
    assert picture_sampling.fit_area(*given, components.config) == seen


def test_guidance_drops_the_last_text_and_keeps_the_pictures(components, calls):
    scripted(components, *GUIDE[:2], ("Done.", "end"))
    document = request()
    generate(components, document, Settings(steps=1))
    (sizes, positive, ends), (same_sizes, negative, same_ends) = calls[2:]
    assert sizes == same_sizes == [(4, 4), (4, 4)] and ends == same_ends
    assert positive - negative == len(components.mllm.tokenizer.encode("Step 2. A roof.", add_special_tokens=False))


WORDLESS = {
    "text to picture": Document().begin_turn("user", [Text("A red star.")]),
    "an edit": Document().begin_turn("user", [Text("Make it blue."), noise_picture(32, 32)]),
    "a picture alone": Document().begin_turn("user", [noise_picture(32, 32)]),
}


@pytest.mark.parametrize("name", WORDLESS)
def test_guidance_has_an_effect_where_the_assistant_writes_nothing(components, calls, name):
    """Its negative branch lacks what the user asked then, for both of two pictures in a row."""
    drawn = []
    for guidance in (1.0, 3.0):
        scripted(components, ("", "picture"), ("", "picture"), ("", "end"))
        drawn.append(generate(components, WORDLESS[name], Settings(steps=1, guidance=guidance)).pictures[-2:])
    assert len(calls) == 2 + 4
    for (_, positive, ends), (_, negative, same_ends) in (calls[2:4], calls[4:6]):
        assert positive > negative and ends == same_ends
    assert all(plain != guided for plain, guided in zip(*drawn, strict=True))


def test_weights_trained_before_that_rule_keep_theirs(components, calls):
    components = replace(components, connector=Connector(replace(components.connector.config, segment="none")))
    scripted(components, ("A wall.", "picture"), ("", "picture"), ("", "end"))
    generate(components, request(), Settings(steps=1, guidance=3.0))
    assert len(calls) == 2 + 1  # the second picture has no text of its own: one branch is enough


def test_an_image_is_decoded_when_what_its_steps_needed_is_gone(components, monkeypatch):
    made, prepare, decode = [], components.dit.prepare, components.vae.decode_pixels

    def watched(*arguments, **options):
        prepared = prepare(*arguments, **options)
        made.append(weakref.ref(prepared))
        return prepared

    def decoding(latent):
        assert made[-1]() is None
        return decode(latent)

    monkeypatch.setattr(components.dit, "prepare", watched)
    monkeypatch.setattr(components.vae, "decode_pixels", decoding)
    assert len(generate(drawing(components), request("Draw."), SHORT).pictures) == len(made) == 2


def test_the_frame_cache_saves_work_and_changes_nothing(components, monkeypatch):
    document = Document().begin_turn("user", [noise_picture(64, 32), Text("Go on.")])
    caches, answers = [], []
    for cached in (True, False):

        class Watched(PictureSampler):
            def __init__(self, *args, cached=cached):
                super().__init__(*args)
                caches.append(self.cache)
                self.cache = self.cache if cached else None

        monkeypatch.setattr(pipeline, "PictureSampler", Watched)
        scripted(components, *GUIDE)
        answers.append(generate(components, document, Settings(steps=3)))
    assert caches[0].misses == 3  # the user's picture and two drawn ones, each once for all steps and both branches
    differences = [
        np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max() for a, b in zip(*(each.pictures for each in answers))
    ]
    assert max(differences) <= 1


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_limit_of_pictures(components, limit):
    scripted(components, *GUIDE)
    answer = generate(components, request(), Settings(max_images=limit))
    assert len(answer.pictures) == limit and answer.generation["stop_reason"] == "max_images"


def test_exactly_as_many_pictures_as_allowed_is_a_complete_answer(components):
    scripted(components, *GUIDE)
    assert generate(components, request(), Settings(max_images=3)).generation["stop_reason"] == "end"


def test_the_limit_of_text_holds_for_the_whole_answer(components):
    limits = []
    texts = iter([("one two three", "picture"), ("four", "max_tokens")])

    def continue_(document, *, max_new_tokens, **_):
        limits.append(max_new_tokens)
        text, stop = next(texts)
        return pipeline_continuation(text, stop)

    from duogen_core.mllm.base import Continuation

    def pipeline_continuation(text, stop):
        return Continuation(text, stop, len(text.split()))

    components.mllm.continue_ = continue_
    answer = generate(components, request(), Settings(max_new_tokens=4))
    assert limits == [4, 1] and answer.generation["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    "values, match",
    [
        ({"seed": -1}, "The seed must be between 0 and"),
        ({"seed": 2**64}, "The seed must be between"),
        ({"steps": 0}, "The number of steps must be between 1 and 1000, not 0"),
        ({"steps": 2.5}, "The number of steps must be a whole number"),
        ({"guidance": float("nan")}, "The guidance must be between"),
        ({"max_images": -1}, "The limit of images must be between 0"),
        ({"max_new_tokens": 0}, "The limit of tokens must be between 1"),
        ({"size": (0, 64)}, "A side of the image must be between 16"),
        ({"temperature": -0.1}, "The temperature must be between 0"),
    ],
)
def test_settings_out_of_range_are_refused(values, match):
    with pytest.raises(DuoGenError, match=match):
        Settings(**values)


@pytest.mark.parametrize(
    "document, match",
    [
        (Document(), "The document is empty"),
        (request(" \n"), "The request is empty"),
        (Document().begin_turn("user"), "The request is empty"),
        (Document().begin_turn("system", [Text("Be brief.")]), "ends with a system turn"),
    ],
)
def test_a_document_without_a_request_is_refused(components, document, match):
    with pytest.raises(DuoGenError, match=match):
        generate(components, document)


# ---------------------------------------------------------------- stopped in the middle


def test_cancelled_while_drawing_picture_three(components, tmp_path):
    scripted(components, *GUIDE)
    steps = []
    answer = generate(
        components,
        request(),
        Settings(steps=4),
        Callbacks(
            on_picture_step=lambda *call: steps.append(call[:2]), on_document=DocumentWriter(tmp_path / "out").update
        ),
        cancelled=lambda: (2, 2) in steps,
    )
    assert steps[-1] == (2, 2)  # it answers within one step
    assert answer.generation["stop_reason"] == "interrupted" and len(answer.pictures) == 2
    assert load_document(tmp_path / "out") == answer


def test_cancelled_while_the_states_are_read(components, monkeypatch):
    """Between the last word and the first sampling step."""
    scripted(components, *GUIDE)
    steps, stop, read = [], [], components.mllm.encode

    def encode(document, connector, cancelled=None):
        stop.append(len(document.pictures) == 1)
        components.mllm.clear_cache()
        return read(document, connector, cancelled)

    monkeypatch.setattr(components.mllm, "encode", encode)
    watch = Callbacks(on_picture_step=lambda k, *_: steps.append(k))
    answer = generate(components, request(), Settings(steps=2), watch, cancelled=lambda: any(stop))
    assert answer.generation["stop_reason"] == "interrupted" and len(answer.pictures) == 1 and set(steps) == {0}


def test_cancelled_while_writing(components, tmp_path):
    stop = []
    watch = Callbacks(on_token=lambda text: stop.append(text), on_document=DocumentWriter(tmp_path / "out").update)
    answer = generate(components, request(), Settings(max_new_tokens=50), watch, cancelled=lambda: len(stop) >= 2)
    assert answer.generation["stop_reason"] == "interrupted"
    assert load_document(tmp_path / "out") == answer


@pytest.mark.parametrize("failure", [RuntimeError("a kernel failed"), KeyboardInterrupt()])
def test_a_crash_at_picture_three_leaves_two_on_disk(components, tmp_path, failure):
    scripted(components, *GUIDE)

    def crash(k, step, *_):
        if (k, step) == (2, 1):
            raise failure

    watch = Callbacks(on_picture_step=crash, on_document=DocumentWriter(tmp_path / "out").update)
    with pytest.raises(type(failure)):
        generate(components, request(), None, watch)
    left = load_document(tmp_path / "out")
    assert len(left.pictures) == 2 and left.text == "Step 1. A wall.Step 2. A roof.Step 3. A door."
    assert left.generation["stop_reason"] == "interrupted"


@pytest.mark.parametrize("file", ["002.png", "document.json"])
def test_a_full_disk_at_picture_three_leaves_two_readable(components, tmp_path, monkeypatch, file):
    scripted(components, *GUIDE)
    write_bytes = store.Path.write_bytes

    def full(path, data):
        if file in path.name and (tmp_path / "out/images/001.png").exists() and b"A door." in data:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(store.Path, "write_bytes", full)
    with pytest.raises(DuoGenError, match="The disk is full"):
        generate(components, request(), None, Callbacks(on_document=DocumentWriter(tmp_path / "out").update))
    monkeypatch.undo()
    assert len(load_document(tmp_path / "out").pictures) == 2
