"""The taxonomy that ships, and what the loader refuses."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from duogen_core.data.synthetic.requests import load_taxonomy, near_duplicates
from duogen_core.errors import DuoGenError

SEED = "Show me how to tie a bowline, with a picture of every turn of the rope."


@pytest.fixture(scope="module")
def taxonomy():
    return load_taxonomy()


def test_counts(taxonomy):
    assert len(taxonomy.domains) == 8
    assert len(taxonomy.subcategories) == 151
    assert len({one.name.casefold() for one in taxonomy.subcategories}) == 151


def test_no_two_seeds_are_alike(taxonomy):
    assert near_duplicates(taxonomy.seeds, 0.4) == []
    assert len({seed.casefold() for seed in taxonomy.seeds}) == len(taxonomy.seeds)


def test_balance(taxonomy):
    for one in taxonomy.subcategories:
        assert 9 <= len(one.seeds) <= 11, one.name
    sizes = [len(found) for found in taxonomy.domains.values()]
    assert max(sizes) - min(sizes) <= 1


def test_the_seeds_vary(taxonomy):
    """No opening and no form takes over: neither "Show me how ..." nor guides alone."""
    openings = Counter(" ".join(seed.split()[:2]).casefold() for seed in taxonomy.seeds)
    assert openings.most_common(1)[0][1] <= 0.1 * len(taxonomy.seeds)
    for one in taxonomy.subcategories:
        assert len({seed.split()[0] for seed in one.seeds}) >= 5, one.name


def test_they_ask_for_pictures(taxonomy):
    seen = re.compile(
        r"pictur|illustrat|photo|image|draw|sketch|show|look|visual|paint|comic|storyboard|diagram|render|see|scene|panel"
        r"|poster|frame|postcard|map|close-up|a view|cartoon|portra|engraving|depict|cutaway",
        re.IGNORECASE,
    )
    silent = [seed for seed in taxonomy.seeds if not seen.search(seed)]
    assert silent == []


def test_near_duplicates():
    close = SEED.replace("bowline", "clove hitch")
    assert near_duplicates([SEED, close, "Tell a story about a rope."]) == [(SEED, close)]
    assert near_duplicates([SEED, SEED.upper()]) != []


def write(folder, text):
    (folder / "one.yaml").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("domain: [", "cannot be read"),
        ("domain: Knots\n", "must hold domain and subcategories"),
        ("domain: Knots\nsubcategories: []\n", "list of seeds for each"),
        ("domain: Knots\nsubcategories:\n  Loops: []\n", "Loops .* needs a list of seeds"),
        ("domain: Knots\nsubcategories:\n  Loops:\n    - Short.\n", "not one line of 30 to 400"),
        ("domain: Knots\nsubcategories:\n  Loops:\n    - a: b\n", "not one line of 30 to 400"),
        (f"domain: Knots\nsubcategories:\n  Loops:\n    - {SEED}\n  Ends:\n    - {SEED}\n", "too much alike"),
    ],
)
def test_refused(tmp_path, text, sentence):
    with pytest.raises(DuoGenError, match=sentence):
        load_taxonomy(write(tmp_path, text))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DuoGenError, match="holds no taxonomy"):
        load_taxonomy(tmp_path)


def test_order_and_names(tmp_path):
    write(tmp_path, f"domain: Knots\nsubcategories:\n  Loops:\n    - {SEED}\n")
    (only,) = load_taxonomy(tmp_path).subcategories
    assert (only.domain, only.name, only.seeds) == ("Knots", "Loops", (SEED,))
