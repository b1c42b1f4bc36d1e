"""dev.py: what it installs and when, what it runs, and how it ends; pip and the environment are stand-ins."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """dev.py in an empty repository. `dev.ran` collects the commands; `dev.fails` are words that make one fail."""
    specification = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.ROOT, module.VENV = tmp_path, tmp_path / ".venv"
    module.ran, module.fails, module.present = [], {}, set()
    (tmp_path / "tests").mkdir()
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-comfyui-test.txt"):
        (tmp_path / name).write_text(name)

    def run(command, **_settings):
        words = " ".join(Path(str(word)).name for word in command[1:])
        module.ran.append(words)
        if "venv" in words and "venv" not in module.fails:
            module.VENV.mkdir(exist_ok=True)
            module.present.add("pip")
        if module.TORCH in words:
            module.present.add("torch")
        return next((code for word, code in module.fails.items() if word in words), 0)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "works", lambda code: code.split()[1] in module.present)
    monkeypatch.setattr(module, "find_comfyui", lambda: None)
    return module


def installs(dev) -> list[str]:
    return [words.split()[-1] for words in dev.ran if "pip install" in words]


def test_torch_comes_first_and_only_once(dev):
    assert dev.main(["answer"]) == 0
    assert installs(dev) == [dev.TORCH, "requirements.txt"]
    dev.ran.clear()
    assert dev.main(["answer", "Draw a red star.", "--seed", "3"]) == 0
    assert dev.ran == ["-m duogen_core generate --out answer --seed 3 -- Draw a red star."]
    assert dev.main(["test"]) == 0 and installs(dev) == ["requirements-dev.txt"]
    (dev.ROOT / "requirements.txt").write_text("changed")
    dev.ran.clear()
    assert dev.main(["answer"]) == 0 and installs(dev) == ["requirements.txt"]


def test_a_torch_that_is_there_is_kept(dev):
    dev.present.add("torch")
    assert dev.main(["answer"]) == 0 and installs(dev) == ["requirements.txt"]


def test_the_answer_is_named_last(dev, capsys):
    assert dev.main(["answer"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("document.html")
    dev.fails["generate"] = 2
    assert dev.main(["answer"]) == 2 and capsys.readouterr().out == ""


def test_all_checks_run_and_the_first_failure_is_the_exit_code(dev):
    assert dev.main(["test", "-k", "store"]) == 0
    assert [words.split()[1] for words in dev.ran[-3:]] == ["ruff", "ruff", "pytest"] and dev.ran[-1].endswith(
        "-k store"
    )
    dev.fails.update({"format": 3, "pytest": 5})
    assert dev.main(["test"]) == 3 and "pytest" in dev.ran[-1]


def test_quick_leaves_out_servers_and_slow_tests(dev, monkeypatch, tmp_path):
    monkeypatch.setattr(dev, "find_comfyui", lambda: tmp_path)
    assert dev.main(["test", "--quick", "-x"]) == 0
    assert "requirements-comfyui-test.txt" not in installs(dev)
    assert dev.ran[-1].endswith("core test_dev.py training -m not slow -x")  # (last parts of paths)
    dev.main(["test"])
    assert "not slow" not in dev.ran[-1]


def test_a_process_more_than_cores(dev, monkeypatch):
    for cores, workers in ((1, 2), (2, 3), (64, 4)):
        monkeypatch.setattr(dev.os, "cpu_count", lambda cores=cores: cores)
        dev.main(["test"])
        assert f"pytest -rs -n {workers} " in dev.ran[-1]


def test_requirements_for_comfyui_only_where_there_is_one(dev, monkeypatch, tmp_path):
    dev.main(["test"])
    assert "requirements-comfyui-test.txt" not in installs(dev)
    monkeypatch.setattr(dev, "find_comfyui", lambda: tmp_path)
    dev.main(["test"])
    assert "requirements-comfyui-test.txt" in installs(dev)


def test_what_fails_is_a_sentence_and_is_tried_again(dev):
    dev.fails["venv"] = 1
    with pytest.raises(dev.Failed, match="could not be made"):
        dev.main(["answer"])
    dev.fails = {"requirements.txt": 7}
    with pytest.raises(dev.Failed, match=r"Installing requirements\.txt failed") as error:
        dev.main(["answer"])
    assert error.value.code == 7
    dev.fails.clear()
    dev.ran.clear()
    assert dev.main(["answer"]) == 0 and installs(dev) == ["requirements.txt"]


def test_where_comfyui_is_looked_for(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    dev = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(dev)
    home, host = tmp_path / "home", tmp_path / "host"
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    dev.ROOT = host / "custom_nodes" / "duogen"
    assert dev.find_comfyui() is None
    for place in (home / "ComfyUI", home / "comfy" / "ComfyUI", host, tmp_path / "named"):
        place.mkdir(parents=True)
        (place / "main.py").touch()
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "named"))
        assert dev.find_comfyui() == place


def test_the_command_itself():
    def dev(*arguments):
        return subprocess.run([sys.executable, str(ROOT / "dev.py"), *arguments], capture_output=True, text=True)

    assert dev().returncode == 2 and "dev.py answer" in dev().stderr
    assert dev("--help").returncode == 0 and "dev.py test" in dev("--help").stdout


@pytest.mark.skipif(os.name == "nt", reason="exit codes of signals are POSIX")
def test_exit_codes_of_children(tmp_path):
    code = "import dev, sys; sys.exit(dev.run([sys.executable, '-c', sys.argv[1]]))"
    for child, expected in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)):
        assert subprocess.run([sys.executable, "-c", code, child], cwd=ROOT).returncode == expected


def test_both_lists_of_requirements_agree_and_pin_nothing():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    required = {line for line in lines if line and not line.startswith("#")}
    project = (ROOT / "pyproject.toml").read_text("utf-8").split("dependencies = [")[1].split("]")[0]
    assert {line.strip(' ",') for line in project.splitlines() if line.strip()} == required
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+(; python_version < '[0-9.]+')?", line) for line in required)


def test_every_comfyui_beside_the_first_runs_the_marked_tests(dev, monkeypatch, tmp_path, capsys):
    for name in ("ComfyUI", "ComfyUI-0.28", "ComfyUI-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.py").touch()
    (tmp_path / "ComfyUI-0.30").mkdir()  # empty
    monkeypatch.setattr(dev, "find_comfyui", lambda: tmp_path / "ComfyUI")
    assert dev.main(["test"]) == 0
    runs = [words for words in dev.ran if "pytest" in words]
    assert len(runs) == 2 and runs[1].endswith("comfyui -m every_comfyui")
    assert capsys.readouterr().out.splitlines()[-1].endswith("ComfyUI-0.28")
    dev.ran.clear()
    assert dev.main(["test", "-k", "store"]) == 0 and len([words for words in dev.ran if "pytest" in words]) == 1


def test_a_copy_without_tests_says_so(dev):
    (dev.ROOT / "tests").rmdir()
    with pytest.raises(dev.Failed, match="clone"):
        dev.main(["test"])
