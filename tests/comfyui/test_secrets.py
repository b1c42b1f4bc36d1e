"""Keys: found in widgets and refused; from the environment or the settings they go to their own server alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from server import PACK

from duogen_core.errors import DuoGenError

HERE, CLOUD = "http://127.0.0.1:11434/v1", "https://api.example.com/v1"
KEY = "sk-proj-4fQ9xT2bLmZ7pWc1"


def module_alone(name: str) -> ModuleType:
    """A module of nodes/host without ComfyUI."""
    spec = importlib.util.spec_from_file_location(f"duogen_{name}", PACK / "nodes" / "host" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module without settings."""
    module = module_alone("secrets")
    monkeypatch.setattr(module, "_setting", lambda: "")
    monkeypatch.delenv("DUOGEN_KEYS", raising=False)
    return module


@pytest.mark.parametrize(
    "text",
    [
        *(KEY, f"Bearer {KEY}", "hf_aB3dE5gH7jK9mN1pQ3sT", "AIzaSyA1234567890abcdefghijklmnopqrstu"),
        *("9f8b2c4d6e1a3b5c7d9e0f1a2b3c4d5e", "aZ3kT9xQ2mW7pL5vR8nB4cY6dF1gH", "eyJhbGciOiJIUzI1NiJ9aa.eyJzdWIi.x"),
        "https://example.com/v1?key=9f8b2c4d6e1a3b5c7d9e0f1a2b3c4d5e",
    ],
)
def test_what_looks_like_a_key(secrets: ModuleType, text: str):
    with pytest.raises(DuoGenError) as refused:
        secrets.refuse_keys(model=text)
    assert "input model seems to hold a key" in str(refused.value) and "settings" in str(refused.value)
    assert text not in str(refused.value), "repeated in the log and on the page"


@pytest.mark.parametrize(
    "text",
    [
        *("", "Qwen3-VL-8B-Instruct-Q4_K_M", "qwen2.5-coder:7b-instruct-q4_K_M", "hf.co/bartowski/Qwen2.5-VL-7B"),
        *("OPENAI_API_KEY", "MY_OPENROUTER_API_KEY_2026", "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", HERE, CLOUD),
        *("A woodcut in black and red; sk-learn-like shapes.", "Donaudampfschifffahrtsgesellschaft"),
        "/models/DeepSeekR1DistillQwen32BInstruct2025.gguf",
    ],
)
def test_what_does_not(secrets: ModuleType, text: str):
    secrets.refuse_keys(model=text)


def test_a_variable_goes_to_this_machine(secrets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    for address in (HERE, "http://localhost:1234/v1", "http://[::1]:80/v1"):
        assert secrets.key_for(address, "MY_KEY") == KEY
        assert secrets.key_for(address) == ""


def test_a_variable_goes_to_another_machine_where_the_settings_say_so(
    secrets: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    """A workflow from a stranger may name any address and any variable."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OTHER", "another secret")
    with pytest.raises(DuoGenError, match=r"allow it once in .*: api\.example\.com=MY_KEY$"):
        secrets.key_for(CLOUD, "MY_KEY")
    monkeypatch.setattr(secrets, "_setting", lambda: "api.example.com=MY_KEY")
    assert secrets.key_for(CLOUD, "MY_KEY") == secrets.key_for(CLOUD) == KEY
    for address in ("https://api.example.com.evil.org/v1", "https://evil.org/api.example.com", "https://a@evil.org/v1"):
        assert secrets.key_for(address) == ""
        with pytest.raises(DuoGenError, match="may not go to"):
            secrets.key_for(address, "MY_KEY")
    with pytest.raises(DuoGenError, match="may not go to"):
        secrets.key_for(CLOUD, "OTHER")


def test_the_settings_may_hold_the_key_itself(secrets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(secrets, "_setting", lambda: f"https://api.example.com/v1={KEY}, 10.0.0.5:8000=apikey")
    assert secrets.key_for(CLOUD) == KEY
    assert secrets.key_for("http://10.0.0.5:8000/v1") == "apikey" and secrets.key_for("http://10.0.0.5:9000/v1") == ""
    monkeypatch.setenv("DUOGEN_KEYS", "10.0.0.6=server-side")
    assert secrets.key_for("http://10.0.0.6:8000/v1") == "server-side"


def test_a_workflow_cannot_have_a_key_sent_without_encryption(secrets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """It may write http for https."""
    monkeypatch.setattr(secrets, "_setting", lambda: f"api.example.com={KEY}, box={KEY}, old.example.com:80={KEY}")
    for address in ("http://api.example.com/v1", "http://api.example.com:443/v1", "HTTP://api.example.com:8000/v1"):
        with pytest.raises(DuoGenError, match="would be sent without encryption: write https") as refused:
            secrets.key_for(address)
        assert KEY not in str(refused.value)
    for address in ("https://api.example.com:8443/v1", "http://box:8000/v1", "http://old.example.com/v1"):
        assert secrets.key_for(address) == KEY
    assert secrets.key_for("http://unknown.example.com/v1") == ""


@pytest.mark.parametrize("name", ["my key", "MY-KEY", "$MY_KEY", "key\n2"])
def test_what_is_no_name_of_a_variable(secrets: ModuleType, name: str):
    with pytest.raises(DuoGenError, match="not the name of an environment variable") as refused:
        secrets.key_for(HERE, name)
    assert name not in str(refused.value)


def test_a_variable_that_is_not_set(secrets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for name in ("MY_KEY", "my_key"):
        monkeypatch.delenv(name, raising=False)
        with pytest.raises(DuoGenError, match="is not set"):
            secrets.key_for(HERE, name)
    with pytest.raises(DuoGenError, match="seems to hold a key"):
        secrets.key_for(HERE, KEY)


def test_the_pages_setting_is_the_one_that_is_read():
    page = Path(PACK / "web" / "duogen" / "settings.js").read_text("utf-8")
    assert '"DuoGen.Keys"' in page
