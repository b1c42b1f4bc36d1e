"""What the benchmarks share: files of records, pictures beside them, the picture that stands for none."""

from __future__ import annotations

import numpy as np
import pytest

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks.reading import (
    file_name,
    is_there,
    no_picture,
    picture_or_none,
    write_picture_or_none,
)


def test_no_picture_is_known_again(tmp_path):
    write_picture_or_none(None, tmp_path / "none.png", (40, 30))
    grey = Picture(no_picture((40, 30)).pixels)
    write_picture_or_none(grey, tmp_path / "grey.png")
    assert picture_or_none(tmp_path, "none.png", "here") is None
    write_picture_or_none(None, tmp_path / "large.png")  # its text stands behind the pixels
    assert picture_or_none(tmp_path, "large.png", "here") is None
    assert Picture.from_file(tmp_path / "none.png").size == (40, 30)
    assert np.array_equal(picture_or_none(tmp_path, "./grey.png", "here").pixels, grey.pixels)
    with pytest.raises(DuoGenError, match=r"1\.png \(named by here\)"):
        picture_or_none(tmp_path, "1.png", "here")
    with pytest.raises(DuoGenError, match="not allowed"):
        picture_or_none(tmp_path, "../none.png", "here")


def test_a_name_of_a_file_is_one_on_every_system():
    assert file_name("../a b/ö?.x") == "_a_b_.x" and file_name("...") == file_name("") == "_"
    assert file_name("x" * 99 + ".y") == "x" * 99
    assert [file_name(one) for one in ("CON", "aux.1", "com1", "console", "a.con")] == [
        "CON_", "aux_.1", "com1_", "console", "a.con",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x" * 3000, "a/" * 3000 + "b", "a\0b"])
def test_a_name_that_no_system_has_is_not_there(tmp_path, name):
    assert not is_there(tmp_path / name)
