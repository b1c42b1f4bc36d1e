"""What the rules find wrong with a plan, and what they leave alone."""

from __future__ import annotations

import pytest

from duogen_core.planning.faults import (
    CAPTION_RULES,
    INSTRUCTION,
    NOTED_RULES,
    PLAN_RULES,
    alike,
    faults_of,
    incomplete,
)
from duogen_core.planning.plan import Member, Part, Plan, PlannedPicture
from duogen_core.planning.requests import wish_of

REQUEST = "How do I fold a paper boat?"


def plan(*parts, title="A paper boat", cast=()):
    made = (Part(text, None if shows is None else PlannedPicture(shows)) for text, shows in parts)
    return Plan(title, tuple(made), tuple(Member(*one) for one in cast))


GOOD = (
    ("Fold the sheet in half.", "A white sheet of paper lying folded in half on a wooden table."),
    ("Fold both corners down.", "The folded sheet with both upper corners bent to the middle, a hat of paper."),
    ("Pull the sides apart.", "A finished paper boat standing on the wooden table."),
)


def rules(made, request=REQUEST, instructions=()):
    return {(fault.rule, fault.part) for fault in faults_of(made, wish_of(request), request, instructions)}


def test_a_good_plan_has_no_fault():
    assert rules(plan(*GOOD)) == set()
    assert rules(plan(*GOOD, cast=[("Paper boat", "white")])) == set()
    assert rules(plan(("Paris.", None), title="Capital"), "What is the capital of France?") == set()


@pytest.mark.parametrize(
    ("parts", "request_", "expected"),
    [
        (GOOD[:2], REQUEST, {("few_pictures", None)}),
        (GOOD[:2], "How do I fold a paper boat in 2 steps?", set()),
        (GOOD, "How do I fold a paper boat in 4 steps?", {("count", None)}),
        (GOOD, "How do I fold a paper boat in at most 2 steps?", {("count", None)}),
        (GOOD, "How do I fold a paper boat in at least 4 steps?", {("count", None)}),
        ((*GOOD, ("Now it can sail.", None)), REQUEST, {("unpictured", 4)}),
        ((*GOOD, ("Now it can sail.", None)), "How do I fold a paper boat in 3 steps?", set()),
        ([(text, None) for text, _ in GOOD], "How do I fold a paper boat? No pictures", set()),
        ([(GOOD[0][0], None)], REQUEST, {("unpictured", None), ("unpictured", 1)}),
        (GOOD[1:], "How do I fold a paper boat in at most 2 steps?", set()),
        (GOOD, "How do I fold a paper boat? No pictures", {("pictured", None)}),
        (GOOD[2:], "What is a paper boat?", {("pictured", None)}),
        ([("Fold the sheet with the", GOOD[0][1]), *GOOD[1:]], REQUEST, {("cut_off", 1)}),
        ([("Fold the sheet in half,", GOOD[0][1]), *GOOD[1:]], REQUEST, {("cut_off", 1)}),
        ([("Fold the sheet in half", GOOD[0][1]), *GOOD[1:]], REQUEST, set()),
        (GOOD, "Wie falte ich ein Papierboot?", {("language", None)}),
    ],
)
def test_the_plan_as_a_whole(parts, request_, expected):
    assert rules(plan(*parts), request_) == expected


def test_one_caption():
    def caption(shows, text=GOOD[2][0], **more):
        return {rule for rule, part in rules(plan(*GOOD[:2], (text, shows), **more)) if part == 3}

    assert caption("Pull the sides apart.") >= {"same_words"}
    assert caption("A white sheet of paper, lying folded in half on the wooden table.") == {"repeated"}
    assert caption("It is finished and stands there now.") >= {"incomplete"}
    assert caption("A person standing in a kitchen and smiling.") == {"unnamed"}
    cast = [("Milo the sailor", "a mouse in blue")]
    text = "Milo the sailor pulls the sides of the boat apart."
    assert caption("A finished paper boat on a wooden table.", text, cast=cast) == {"cast"}
    assert caption("Milo, a mouse in blue, holds up a finished paper boat.", text, cast=cast) == set()


@pytest.mark.parametrize(
    "caption",
    [
        "boat.png",
        "https://example.com/a-boat-on-a-lake",
        "![a boat on a lake](boat)",
        "<picture of the boat on the lake>",
        "[image of step 3 goes here]",
        "A boat.",
        "Paper boat floating.",
        "Step 3 completed",
        "It is folded in half again.",
        "They are sitting on the table together.",
        "Fold it in half and press the edge.",
        "The same as before, but the boat is open.",
        "This is now folded in half twice.",
        "As above, with the corners folded down.",
        "The previous picture with one more fold in it.",
        "Es ist jetzt in der Mitte gefaltet.",
        "Dasselbe wie zuvor, nur mit einer Falte mehr.",
        "Lo mismo que antes, pero con un doblez.",
        "它现在已经对折好了，放在桌子上",
        "小船",
        "揉面团的图片。",
        "A picture of folding.",
        "Pierre-en-jardin-100x100 pixels jpg or png or gif or webp or svg.",
        "John-doe-friends-share-g glove (1) (1) (1) (1) (1) (1) (1) (1) (1).",
        "Boat-on-a-lake-10 with a sail in the wind.",
        "The boat and the boat and the boat and the boat and the boat.",
        "The Lost Kite in 4 Parts - The Lost Kite in 4 Parts - The Lost Kite in 4 Parts - The Lost Kite in 4 Parts.",
    ],
)
def test_captions_that_are_none(caption):
    assert incomplete(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A boat on a lake.",
        "The same paper boat, now floating on a lake.",
        "This is a paper boat on a table.",
        "Two hands press the edge of a sheet and crease it.",
        "The fox finds its hat and puts it on.",
        "Close-up of hands tying a blue shoelace.",
        "These cookies cool on a rack by the window.",
        "A picture of a boat on a lake with a white sail.",
        "A step-by-step guide lies open on a table.",
        "A red fox and a red hat under a red tree in red light.",
        "A 20x30 cm oak board with two holes in it.",
        "State-of-the-art kitchen with a red kettle on the stove.",
        "Das Boot liegt auf einem Tisch aus Holz.",
        "Dieselbe Katze schläft auf einem roten Sofa.",
        "El zorro y su sombrero rojo en el bosque.",
        "一只白色的纸船放在木桌上",
        "狐狸的红帽子挂在树枝上",
    ],
)
def test_captions_that_are_complete(caption):
    assert incomplete(caption) == ""


def test_alike_counts_the_words_that_are_seen():
    sheet = "A white square sheet of paper folded in half on a wooden table."
    assert alike(sheet, "The white square sheet of paper is folded in half on the wooden table")
    assert not alike(sheet, "A white square sheet of paper folded in quarters on a wooden table.")
    assert alike("The picture shows a well on a rock by the water.", "A well on a rock by the water.")
    long = " ".join(f"word{number}" for number in range(20))
    assert alike(f"{long} blue", f"{long} red")  # one of 21 words
    assert not alike("A recipe on a table", "A story on a table")  # words of requests are no grammar here
    assert alike("一只狐狸坐在森林里", "一只狐狸坐在森林里。")
    assert not alike("", "") and alike("It is", "it is")


def test_words_in_another_script():
    slip = plan(("Fold the 纸 in half.", GOOD[0][1]), *GOOD[1:])
    assert rules(slip) == {("mixed", 1)}
    assert rules(slip, "How do I fold a boat of Chinese paper?") == set() == rules(slip, "How do I fold a 纸 boat?")


def test_what_to_do_is_not_what_is_seen():
    for caption in (
        "Pour the milk into a bowl.",
        "You will need a bowl and milk.",
        "In a large bowl, mix together the eggs.",
    ):
        assert INSTRUCTION.search(caption.lower()), caption
        made = plan(*GOOD[:2], (GOOD[2][0], caption))
        assert ("instruction", 3) in rules(made)
    for caption in (
        "Cut flowers stand in a vase.",
        "Open window with curtains.",
        "Water runs into a sink.",
        "A set of tools.",
    ):
        assert not INSTRUCTION.search(caption.lower()), caption


def test_words_of_the_instructions_are_copied_those_of_the_request_are_not():
    lesson = ["Describe a red fox sitting on a green hill, as in this example."]
    tale = plan(("The fox rests.", "A red fox sitting on a green hill at noon."), title="The fox")
    assert ("copied", 1) in rules(tale, "Tell me a story about a fox", lesson)
    assert ("copied", 1) not in rules(tale, "Tell me a story about a red fox sitting on a green hill", lesson)
    chinese = plan(("狐狸在休息。", "一只红色的狐狸坐在绿色的山坡上休息"), title="狐狸")
    assert ("copied", 1) in rules(chinese, "讲一个狐狸的故事", ["例如：一只红色的狐狸坐在绿色的山坡上"])


def test_names_and_captions_in_other_languages():
    story = plan(
        ("狐狸丢了帽子。", "一只狐狸在森林里找红色的帽子"),
        ("猫头鹰看见了。", "夜里的一座房子和一个月亮"),
        ("狐狸很高兴。", "A happy fox wears a red hat."),
        cast=[("狐狸", "红色")],
    )
    assert rules(story, "讲一个狐狸的故事") == {("unnamed", 2), ("cast", 3)}
    german = plan(
        ("Falte das Blatt in der Mitte.", "Gefaltete Blätter liegen auf dem Tisch."),
        ("Biege die Ecken um.", "Zwei Ecken des Papiers sind umgebogen."),
        ("Zieh das Boot auseinander.", "Ein fertiges Boot steht auf dem Tisch."),
    )
    assert rules(german, "Wie falte ich ein Boot?") == set()


def test_a_writer_is_told_in_a_sentence_which_part_is_meant():
    made = plan(GOOD[0], ("Fold.", "It is folded."), *GOOD[1:])
    for fault in faults_of(made, wish_of(REQUEST)):
        assert fault.rule in CAPTION_RULES + PLAN_RULES + NOTED_RULES and fault.sentence.endswith(".")
    of_captions = {(one.part, one.rule) for one in faults_of(made, wish_of(REQUEST)) if one.rule in CAPTION_RULES}
    assert of_captions == {(2, "incomplete"), (2, "unnamed")}


def test_hostile_captions_end():
    for piece in ("it ", "<", "a b ", "the same ", "[", "这", "\u202e", "a-"):
        faults_of(
            plan((piece * 5000 + "x", piece * 5000 + "x"), (piece * 4000 + "x", piece * 5000 + "x")), wish_of("?")
        )
