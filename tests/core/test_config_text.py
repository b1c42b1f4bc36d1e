"""YAML and TOML that people write: plain values or one sentence, in settings, files and presets."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duogen_core.cli import main
from duogen_core.config_text import ConfigTextError, read_toml, read_yaml
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.synthetic.requests import load_taxonomy
from duogen_core.errors import DuoGenError
from duogen_core.training.configuration import ConfigError, load_config
from duogen_core.training.stage2_data import Stage2Config

BOMB = "&a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
BROKEN = [
    '!!int "x"',
    '!!int ""',
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "!!timestamp 2026-02-30",
    "!!set {a, b}",
    "!!binary aGVsbG8=",
    "!!python/object/apply:os.system [ls]",
    "[" * 3000,
    "[" * 60 + "]" * 60,
    "{a: " * 3000,
    "9" * 5000,
    "0x" + "f" * 5000,
    "99999999999999999999",
    '"\\0"',
    '"\\ud800"',
    "&a [*a]",
    "{a: 1, a: 2}",
    "*nothing",
    "a: b: c",
    "\x07",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_what_is_no_value_is_a_sentence_everywhere(text, tmp_path, capsys):
    with pytest.raises(ConfigTextError):
        read_yaml(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Stage2Config, None, [f"lr={text}"])
    with pytest.raises(DuoGenError, match="cannot be read"):
        load_preset("web", settings=[f"page.min_words={text}"])
    for folder in ("settings", "taxonomy"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.yaml").write_text(f"lr:\n  {text}\n", "utf-8")
    file = tmp_path / "settings" / "a.yaml"
    with pytest.raises(ConfigError, match="is not valid"):
        load_config(Stage2Config, file)
    with pytest.raises(DuoGenError, match=r"a\.yaml cannot be read"):
        load_preset("web", str(file))
    with pytest.raises(DuoGenError, match=r"a\.yaml cannot be read"):
        load_taxonomy(tmp_path / "taxonomy")
    assert main(["train", "stage2", "steps=1", f"lr={text}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 600


def test_names_that_multiply_take_no_time_and_no_memory():
    with pytest.raises(ConfigTextError, match="more than 100,000 values"):
        read_yaml(f"a: {BOMB}")


@pytest.mark.parametrize("value", ["2026-02-30", "2026-02-28", "2026-02-28T10:00:00"])
def test_dates_are_texts(value, tmp_path):
    with pytest.raises(ConfigError, match=f"'lr' in .* is '{value}'; expected a number"):
        load_config(Stage2Config, None, [f"lr={value}"])
    assert str(load_config(Stage2Config, None, [f"out={value}"]).out) == value
    with pytest.raises(DuoGenError, match=f"sets page.min_words to '{value}'"):
        load_preset("web", settings=[f"page.min_words={value}"])


def test_the_same_name_twice_is_told_and_merged_sections_still_work():
    with pytest.raises(ConfigTextError, match="'lr' is given twice, in line 2, column 1"):
        read_yaml("lr: 1\nlr: 2\n")
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text",
    ["a = [" + "[" * 3000, "a = " + "9" * 5000, "a = 99999999999999999999", "a = 2026-02-30", "a = 1\na = 2", "a"],
)
def test_toml_that_is_none_is_a_sentence(text, tmp_path):
    pytest.importorskip("tomllib")
    with pytest.raises(ConfigTextError):
        read_toml(text)
    (tmp_path / "a.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="is not valid"):
        load_config(Stage2Config, tmp_path / "a.toml")


def test_toml_dates_are_texts():
    pytest.importorskip("tomllib")
    assert read_toml("out = 2026-02-28\nlr = 0.1") == {"out": "2026-02-28", "lr": 0.1}


def test_toml_on_python_3_10_is_read_by_tomli_or_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", types.SimpleNamespace(loads=lambda text: {"read": text}))
    assert read_toml("a = 1") == {"read": "a = 1"}
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ConfigTextError, match="pip install tomli"):
        read_toml("a = 1")


TAGS = ["!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!null ", "!!omap ", "!!pairs ", "!!set ", "!!str ", "! "]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(TAGS) | st.text("[]{}&*!:-?,|>'\"#%@ \nabx.0123456789=<~", max_size=8), max_size=12))
def test_any_text_is_a_value_or_a_sentence(parts):
    text = "".join(parts)
    for read in (read_yaml, read_toml) if sys.version_info >= (3, 11) else (read_yaml,):
        try:
            read(text)
        except ConfigTextError as error:
            assert "\n" not in str(error) and str(error)
    for load in (
        lambda: load_config(Stage2Config, None, [f"lr={text}"]),
        lambda: load_preset("web", settings=[f"page.min_words={text}"]),
    ):
        try:
            load()
        except DuoGenError as error:
            assert len(str(error)) < 1000
