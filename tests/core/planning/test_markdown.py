"""The Markdown form of a plan: every plan comes back as it was; what a person writes wrongly is told in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duogen_core.errors import DuoGenError
from duogen_core.planning.markdown import plan_from_markdown, plan_to_markdown
from duogen_core.planning.plan import Member, Part, Plan, PlannedPicture, Reference

WORDS = (
    st.text(alphabet="ab:：\\- #>*ßé画Image", min_size=1, max_size=20).map(lambda t: " ".join(t.split())).filter(bool)
)
PIECES = st.sampled_from(
    ["Fold it.", "---", "Image: x", "\\---", "# A head", "Cast:", "- a: b", "", "Size: 3", "\\\\Image: y"]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=4).map(lambda lines: "\n".join(lines).strip("\n")).filter(bool)


@st.composite
def plans(draw):
    parts, drawn = [], 0
    for _ in range(draw(st.integers(1, 4))):
        picture = None
        if draw(st.booleans()):
            numbers = st.builds(Reference, st.integers(1, max(1, drawn)), st.sampled_from(["cast", "before"]))
            seen = st.none() | (st.lists(numbers, max_size=3).map(tuple) if drawn else st.just(()))
            picture = PlannedPicture(draw(WORDS), draw(seen), draw(st.none() | st.just((64, 48))))
            drawn += 1
        parts.append(Part(draw(TEXTS if picture is None else TEXTS | st.just("")), picture))
    names = draw(st.lists(WORDS, max_size=3, unique_by=str.casefold))
    cast = tuple(Member(name, draw(WORDS | st.just(""))) for name in names)
    return Plan(draw(WORDS | st.just("")), tuple(parts), cast, draw(WORDS | st.just("")))


@settings(max_examples=300, deadline=None)
@given(plans())
def test_every_plan_comes_back(plan):
    assert plan_from_markdown(plan_to_markdown(plan)) == plan


def test_what_a_person_writes():
    written = """# A boat
Style:  flat
Cast:
 * Sheet : white

-----
Fold it.

Image: A sheet,
folded in half.
looks at: none
---
Again.
Picture: A smaller sheet.
Looks at: image 1, 1 (CAST)
Size: 640 × 480
---

---
Done."""
    plan = plan_from_markdown(written.replace("\n", "\r\n"))
    assert plan == Plan(
        "A boat",
        (
            Part("Fold it.", PlannedPicture("A sheet, folded in half.", ())),
            Part("Again.", PlannedPicture("A smaller sheet.", (Reference(1), Reference(1, "cast")), (640, 480))),
            Part("Done."),
        ),
        (Member("Sheet", "white"),),
        "flat",
    )


def test_a_text_without_a_head_is_a_part():
    assert plan_from_markdown("Fold it.\n\nImage: A sheet.") == Plan(
        "", (Part("Fold it.", PlannedPicture("A sheet.")),)
    )


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("", "has no parts"),
        ("# A boat", "has no parts"),
        ("a\nImage: b\nImage: c", "Part 1 of the plan has two images"),
        ("a\nImage:", "The image of part 1 of the plan says not what it shows"),
        ("a\n---\nLooks at: 1", "Part 2 of the plan has “Looks at: 1” but no line “Image"),
        ("a\nImage: b\nLooks at: x", "looks at 'x'; write numbers"),
        ("a\nImage: b\nLooks at: 1 (why)", "looks at '1 \\(why\\)'"),
        ("a\nImage: b\nLooks at: 1", "looks at image 1, but no image comes before it"),
        ("a\nImage: b\nSize: big", "has the size 'big'; write it like 1024x768"),
        ("a\nImage: b\nSize: 9x9\nmore", "has 'more' after its image"),
        ("a\nImage: b\nand c\n\nText.", "has 'Text.' after its image"),
        ("# A\nCast:\nSheet, white\n---\na", "has the line 'Sheet, white'; write each as"),
    ],
)
def test_what_is_wrong_is_a_sentence(written, sentence):
    with pytest.raises(DuoGenError, match=sentence):
        plan_from_markdown(written)
