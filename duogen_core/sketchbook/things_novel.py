"""Things that no training of the bundled model shows: what a fine-tuning is tried and measured on.

`things.things()` stays the twenty of things_catalogue.py; these are found by name (`things.thing_named`).
"""

from __future__ import annotations

from duogen_core.sketchbook.drawing import Part, Thing, ellipse
from duogen_core.sketchbook.things_catalogue import ANY, BRIGHT, p

GLASS = ellipse(64, 60, 46)

_NOVEL = (
    Thing(
        "snow globe",
        (
            Part("base", "a", "at the bottom", ANY, (p((36, 98), (92, 98), (104, 122), (24, 122)),)),
            Part("glass", "a", "on top of the base", ("blue", "grey", "purple", "green"), (GLASS,), "circle"),
            Part(
                "snow",
                "",
                "at the bottom of the glass",
                ("white", "pink", "grey"),
                (tuple(point for point in GLASS if point[1] >= 76),),
            ),
            Part("tree", "a", "in the glass", BRIGHT, (p((42, 84), (86, 84), (64, 24)),), "triangle"),
        ),
    ),
)
NOVEL = {thing.name: thing for thing in _NOVEL}
