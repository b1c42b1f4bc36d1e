"""Two runs at once on one folder: the second is told; a lock ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.folder_lock import lock_folder

HOLD = """
import sys
from duogen_core.folder_lock import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("name", ["a", "not/there/yet", "."])
def test_the_second_run_is_told_and_a_lock_leaves_nothing(tmp_path, name):
    folder = tmp_path / "work" / name
    (tmp_path / "work").mkdir()
    process = holder(folder)
    with pytest.raises(DuoGenError, match="in use by another run"), lock_folder(folder):
        pass
    process.communicate("\n")
    with lock_folder(folder), lock_folder(folder):  # of one process
        assert not folder.exists() or not any(folder.iterdir())
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


@pytest.mark.skipif(os.name == "nt", reason="no kill -9")
def test_a_lock_dies_with_its_process(tmp_path):
    process = holder(tmp_path / "a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock_folder(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    try:
        (tmp_path / ".a.lock.duogen-tmp").symlink_to(tmp_path / "thesis.txt")
    except OSError:
        pytest.skip("this system lets us make no symbolic links")
    with lock_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_where_the_folder_above_is_not_ours_the_lock_lies_inside(tmp_path):
    (tmp_path / "mounted").mkdir()
    tmp_path.chmod(0o500)
    try:
        process = holder(tmp_path / "mounted")
        with pytest.raises(DuoGenError, match="in use"), lock_folder(tmp_path / "mounted"):
            pass
        process.communicate("\n")
    finally:
        tmp_path.chmod(0o700)


def test_through_a_link_it_is_the_same_folder(tmp_path):
    (tmp_path / "a").mkdir()
    try:
        (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets us make no symbolic links")
    process = holder(tmp_path / "a")
    with pytest.raises(DuoGenError, match="in use"), lock_folder(tmp_path / "b"):
        pass
    process.communicate("\n")
