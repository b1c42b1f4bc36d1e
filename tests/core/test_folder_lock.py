"""Two runs at once on one folder: the second is told; a lock ends with its process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from duogen_core import files
from duogen_core.errors import DuoGenError
from duogen_core.files import lock_folder

HOLD = """
import sys
from duogen_core.files import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
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


def test_a_run_that_is_about_to_sign_is_named_too(tmp_path):
    process = holder(tmp_path / "a")
    file = tmp_path / ".a.lock.duogen-tmp"
    signed = file.read_text()
    file.write_text("")
    later = threading.Timer(0.2, file.write_text, [signed])
    later.start()
    with pytest.raises(DuoGenError, match=rf"DuoGen \(process {process.pid}, -c\);"), lock_folder(tmp_path / "a"):
        pass
    later.join()
    process.communicate("\n")


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


def test_the_second_run_is_told_which_run_has_the_folder(tmp_path):
    process = holder(tmp_path / "a")
    with pytest.raises(DuoGenError, match=rf"a is in use by another run of DuoGen \(process {process.pid}, -c\);"):
        lock_folder(tmp_path / "a").__enter__()
    file = tmp_path / ".a.lock.duogen-tmp"
    about = json.loads(file.read_text())
    assert about == {"process": process.pid, "host": socket.gethostname(), "program": "-c"}
    for text, expected in [
        (json.dumps({**about, "host": "node7"}), rf"run of DuoGen \(process {process.pid} on node7, -c\);"),
        (json.dumps({**about, "program": "\x1b[31mx"}), r"process \d+, \\x1b\[31mx\);"),
        ("", "another run of DuoGen; wait"),
        ("[" * 4096, "another run of DuoGen; wait"),
        ('{"process": "x"}', "another run of DuoGen; wait"),
    ]:
        file.write_text(text)
        with pytest.raises(DuoGenError, match=expected):
            lock_folder(tmp_path / "a").__enter__()
    process.communicate("\n")


FORK = """
import os, sys, time
from duogen_core import files
with files.lock_folder(sys.argv[1]):
    if os.fork() == 0:
        with files.lock_folder(sys.argv[1]):  # a worker may write to what its run has
            pass
        if sys.argv[2] == "ends":
            files.unlock_all()
            os._exit(0)
        print(os.getpid(), flush=True)
        time.sleep(600)
    if sys.argv[2] == "ends":
        os.wait()
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def forking(folder: Path, child: str) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(folder), child], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    return process, int(process.stdout.readline())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_workers_of_a_killed_run_do_not_keep_its_lock(tmp_path):
    process, worker = forking(tmp_path / "a", "stays")
    with pytest.raises(DuoGenError, match="in use"), lock_folder(tmp_path / "a"):
        pass
    process.kill()
    process.wait()
    try:
        os.kill(worker, 0)  # it still runs
        with lock_folder(tmp_path / "a"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_worker_that_ends_leaves_the_lock_to_its_run(tmp_path):
    process, _ = forking(tmp_path / "a", "ends")
    try:
        with pytest.raises(DuoGenError, match="in use"), lock_folder(tmp_path / "a"):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_disk_without_locks_is_written_to_and_no_lock_file_stays(tmp_path, monkeypatch):
    def no_locks(_opened):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "_take", no_locks)
    (tmp_path / "a").mkdir()
    with lock_folder(tmp_path / "a"), lock_folder(tmp_path / "b" / "c"):
        assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_the_lock_of_another_user_counts(tmp_path, monkeypatch):
    process = holder(tmp_path / "a")
    system = os.open

    def not_ours_to_write(path, flags, *more, **options):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return system(path, flags, *more, **options)

    monkeypatch.setattr(files.os, "open", not_ours_to_write)
    with pytest.raises(DuoGenError, match=f"in use by another run of DuoGen .process {process.pid}"):
        lock_folder(tmp_path / "a").__enter__()
    monkeypatch.undo()
    process.communicate("\n")
