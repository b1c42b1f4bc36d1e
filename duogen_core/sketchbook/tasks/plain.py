"""Plain questions without a picture, and their one answer each: the model must know when not to draw."""

from __future__ import annotations

from random import Random

# Wordings of a question -> answer, and the words a right answer contains.
PLAIN: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (
        ("What colour do you get from red and yellow?", "Which colour do red and yellow make?"),
        "Red and yellow make orange.",
        ("orange",),
    ),
    (
        ("What colour do you get from blue and yellow?", "Which colour do blue and yellow make?"),
        "Blue and yellow make green.",
        ("green",),
    ),
    (
        ("What colour do you get from red and blue?", "Which colour do red and blue make?"),
        "Red and blue make purple.",
        ("purple",),
    ),
    (
        ("What colour do you get from red and white?", "Which colour do red and white make?"),
        "Red and white make pink.",
        ("pink",),
    ),
    (
        ("What colour do you get from black and white?", "Which colour do black and white make?"),
        "Black and white make grey.",
        ("grey",),
    ),
    (
        ("What can you draw?", "Which things can you draw?", "What are you able to draw?"),
        "I can draw shapes, and things like a house, a tree, a car or a rocket, step by step.",
        ("house", "tree"),
    ),
    (
        ("Which shapes do you know?", "What shapes can you draw?", "Which shapes can you draw?"),
        "I know the circle, square, triangle, diamond, star, heart, cross and hexagon.",
        ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "hexagon"),
    ),
    (
        ("Which colours do you know?", "What colours can you use?", "Which colours can you draw with?"),
        "I know red, orange, yellow, green, blue, purple, pink, brown, black, white, grey and cream.",
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    ),
    (("Hello!", "Hi!", "Hello.", "Good morning!", "Hi there!"), "Hello! What shall I draw for you?", ("Hello",)),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"), "You are welcome!", ("welcome",)),
    (("Goodbye!", "Bye!", "See you!"), "Goodbye!", ("Goodbye",)),
    (("Who are you?", "What is your name?"), "I am DuoGen. I answer with words and pictures.", ("DuoGen",)),
    (("How are you?", "How are you today?"), "I am fine and ready to draw.", ("fine",)),
    (("What is a hexagon?", "What does hexagon mean?"), "A hexagon is a shape with six sides.", ("six sides",)),
    (("What is a square?",), "A square is a shape with four equal sides.", ("four equal sides",)),
    (("What is a triangle?",), "A triangle is a shape with three sides.", ("three sides",)),
    (("What is a circle?", "What does circle mean?"), "A circle is a round shape without corners.", ("round",)),
    (
        ("How many sides does a hexagon have?", "How many corners does a hexagon have?"),
        "A hexagon has six sides and six corners.",
        ("six",),
    ),
    (
        ("How many sides does a triangle have?", "How many corners does a triangle have?"),
        "A triangle has three sides and three corners.",
        ("three",),
    ),
    (
        ("How many sides does a square have?", "How many corners does a square have?"),
        "A square has four sides and four corners.",
        ("four",),
    ),
    (("How many wheels does a car have?",), "A car has four wheels, and from the side you see two.", ("four", "two")),
    (("What colour is the sky?", "Which colour is the sky?"), "The sky is blue.", ("blue",)),
    (("What colour is grass?", "Which colour is grass?"), "Grass is green.", ("green",)),
    (("What colour is snow?", "Which colour is snow?"), "Snow is white.", ("white",)),
)

UNKNOWN = (
    "horse",
    "dog",
    "person",
    "elephant",
    "dragon",
    "bicycle",
    "guitar",
    "bird",
    "lion",
    "bridge",
    "phone",
    "chair",
    "table",
    "plane",
    "city",
    "monkey",
    "piano",
    "pirate",
    "tiger",
    "watch",
    "camera",
    "spider",
    "whale",
    "bottle",
)
_UNKNOWN_REQUESTS = (
    "How do I draw {}?",
    "Draw {}.",
    "Show me how to draw {}.",
    "Draw {} step by step.",
    "Can you draw {}?",
)


def plain_question(rng: Random) -> tuple[str, str, list[str]]:
    wordings, answer, key = rng.choice(PLAIN)
    return rng.choice(wordings), answer, list(key)


def unknown_thing(rng: Random) -> tuple[str, str, list[str]]:
    """A thing outside the Sketchbook: the honest answer is words."""
    name = rng.choice(UNKNOWN)
    phrase = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    answer = f"I have not learned to draw {phrase}. Ask me for a house, a tree or a car."
    return rng.choice(_UNKNOWN_REQUESTS).format(phrase), answer, ["not learned"]
