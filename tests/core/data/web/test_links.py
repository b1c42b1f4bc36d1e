"""Addresses that are refused, personal data that is taken out, and presets."""

from __future__ import annotations

import pytest

from duogen_core.data.runs.presets import load_preset, preset_of_run
from duogen_core.data.text import remove_personal
from duogen_core.errors import DuoGenError
from duogen_core.net.links import absolute, refusal

ALL = ("email", "phone", "ip")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://a.example.com/x.png",
        "gopher://a.example.com/",
        "javascript:alert(1)",
        "http://localhost/x.png",
        "http://printer/x.png",
        "http://nas.local/x.png",
        "http://127.0.0.1/x.png",
        "http://127.1/x.png",
        "http://2130706433/x.png",
        "http://0x7f.0.0.1/x.png",
        "http://0177.0.0.1/x.png",
        "http://10.1.2.3/x.png",
        "http://192.168.1.1/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/x.png",
        "http://[::ffff:10.0.0.1]/x.png",
        "http://[fd00::1]/x.png",
        "http://[64:ff9b::a00:1]/x.png",
        "http://[fe80::1%25eth0]/x.png",
        "http://0/x.png",
        "http://100.64.0.1/x.png",
        "http://224.0.0.1/x.png",
        "http://127.0.0.1./x.png",
        "http://%31%32%37.0.0.1/x.png",
        "http://user:pass@a.example.com/x.png",
        "http://a.example.com:99999/x.png",
        "http://[bad/x.png",
        "http:///x.png",
        "x.png",
    ],
)
def test_refused(address):
    assert refusal(address)


@pytest.mark.parametrize("address", ["http://a.example.com/x.png", "https://8.8.8.8/x.png", "https://münchen.de/ä.png"])
def test_taken(address):
    assert refusal(address) == ""


@pytest.mark.parametrize(
    ("address", "result"),
    [
        ("../i/a b.png#x", "http://h.example.com/i/a%20b.png"),
        ("//o.example.com/a.png", "http://o.example.com/a.png"),
        ("\\i\\a.png", "http://h.example.com/i/a.png"),
        ("a\n.png?x=1", "http://h.example.com/p/a.png?x=1"),
        ("http://[", ""),
    ],
)
def test_absolute(address, result):
    assert absolute(address, "http://h.example.com/p/q.html") == result


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to jo.doe+x@mail.example.co.uk today.", "Write to [email] today."),
        ("jo [at] example [dot] org", "[email]"),
        ("Call +49 (0)30 1234-5678 or (555) 123-4567.", "Call [phone] or [phone]."),
        ("Call 555-123-4567 now", "Call [phone] now"),
        ("from 8.8.8.8 and 2001:4860:4860::8888.", "from [ip] and [ip]."),
    ],
)
def test_personal_data_goes(text, clean):
    assert remove_personal(text, ALL)[0] == clean


@pytest.mark.parametrize(
    "text",
    [
        "Open 192.168.0.1 in the browser.",
        "Version 2.10.34.1 of 2023-11-05, 12:30:45, was 1,234,567.89 long.",
        "The ratio 16:9, f(12) = 345, pages 100-200, 1920x1080, ISBN 978-3-16-148410-0.",
        "Meet me at example dot com",
        "### 3.12.1.1. Overview of 2.10.34.2",
        "std::vector::size and 10.000.000 people at noon.",
        "Add 1000 2000 3000 ml, then 12345678901234.",
    ],
)
def test_what_is_not_personal_stays(text):
    assert remove_personal(text, ALL)[0] == text


def test_only_the_kinds_asked_for_go():
    text, found = remove_personal("a@example.com from 8.8.8.8", ["ip"])
    assert (text, dict(found)) == ("a@example.com from [ip]", {"ip": 1})


def test_presets():
    howto, obelics = (
        load_preset("web"),
        load_preset("web", "obelics", ["page.languages=[en, de]", "picture.max_aspect.photo=2.5"]),
    )
    assert obelics.page["max_words"] == 2000 and obelics.page["languages"] == ["en", "de"]
    assert obelics.picture["max_aspect"] == {"photo": 2.5, "screenshot": 2, "document": 2}
    assert howto.picture["max_aspect"]["photo"] == 3
    assert obelics.digest != howto.digest
    assert preset_of_run("web", obelics.to_json()) == obelics


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("nothing", [], "There is no preset nothing; give howto, obelics"),
        ("howto", ["page.min_wordz=3"], "page.min_wordz, which is not a rule"),
        ("howto", ["page.min_words=many"], "sets page.min_words to 'many'; expected float"),
        ("howto", ["min_words=3"], "write it like"),
        ("../howto", [], "There is no preset"),
    ],
)
def test_wrong_presets_get_a_sentence(name, settings, words):
    with pytest.raises(DuoGenError, match=words.replace(".", r"\.")):
        load_preset("web", name, settings)
