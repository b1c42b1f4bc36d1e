"""Every node, input and output has its words in English and Chinese, and no word outlives what it was for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import messages
import pytest
from english_locale import LOCALES, english
from server import Server

LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir())
CHINESE = re.compile("[\u4e00-\u9fff]")


def read(locale: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / locale / f"{name}.json").read_text("utf-8"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    else:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")


@pytest.fixture(scope="module")
def said(server: Server) -> dict[str, Any]:
    """What the nodes say."""
    return english(server.get("/object_info"))


def test_english_is_what_the_nodes_say(said: dict[str, Any]):
    kept, now = dict(leaves(read("en", "nodeDefs"))), dict(leaves(said))
    changed = sorted(path for path in kept.keys() | now.keys() if kept.get(path) != now.get(path))
    assert not changed, "run tests/comfyui/english_locale.py, and look over locales/zh"


def test_chinese_is_complete(said: dict[str, Any]):
    kept, now = dict(leaves(read("zh", "nodeDefs"))), dict(leaves(said))
    assert sorted(now.keys() - kept.keys()) == [], "not translated"
    assert sorted(kept.keys() - now.keys()) == [], "translated, but no longer there"
    prose = [
        path for path, text in kept.items() if path.endswith(("tooltip", "description")) and not CHINESE.search(text)
    ]
    assert prose == [], "not in Chinese"


def test_translations_keep_what_the_user_has_to_type(said: dict[str, Any]):
    """Examples such as `3: 1234` or `last 2`, markers and file names are the same in every language."""
    typed = re.compile(r"<image1>|\b\d+: \d+\b|\blast \d+|document\.json|models/duogen|images/000\.png|%[^%]+%")
    kept = dict(leaves(read("zh", "nodeDefs")))
    for path, text in leaves(said):
        for piece in typed.findall(text):
            assert piece in kept[path], f"{path}: {piece} is missing"


def test_socket_types_and_categories(server: Server, said: dict[str, Any]):
    info = {name: node for name, node in server.get("/object_info").items() if name in said}
    types = {type_ for node in info.values() for type_ in node["output"] if type_.startswith("DUOGEN_")}
    served = server.get("/i18n")
    for locale in ("en", "zh"):
        main = read(locale, "main")
        assert set(main["dataTypes"]) == types
        used = {piece for node in info.values() for piece in node["category"].split("/")}
        assert used <= set(main["nodeCategories"]), "folders of the node menu"
        assert set(said) <= set(served[locale]["nodeDefs"]), "the server does not hand it out"
    assert set(read("en", "main")["nodeCategories"]) == set(read("zh", "main")["nodeCategories"])


def places(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_words_of_the_front_end():
    """Each word is used, each one used is there, and a translation has the same places to fill in."""
    english = {
        path.removesuffix("/one").removesuffix("/other"): text for path, text in leaves(read("en", "main")["duogen"])
    }
    for locale in LANGUAGES:
        forms = list(leaves(read(locale, "main").get("duogen", {})))
        missing = english.keys() - {re.sub("/(zero|one|two|few|many|other)$", "", path) for path, _ in forms}
        assert sorted(missing) == [], f"locales/{locale}/main.json lacks these under duogen"
        for path, text in forms:
            entry = english.get(re.sub("/(zero|one|two|few|many|other)$", "", path))
            assert entry is not None, f"{locale}: {path} is a word for nothing"
            assert places(text) <= places(entry), f"{locale}: {path}"
    code = "".join(file.read_text("utf-8") for file in (LOCALES.parent / "web" / "duogen").glob("*.js"))
    code = re.sub(r"^import .*|//.*", "", code, flags=re.MULTILINE)
    first = {path.split("/")[1] for path in english}
    used = set(re.findall(r"\bstrings\.(\w+)", code)) | {
        name.split(":")[0].strip()
        for group in re.findall(r"\{([^{}]*)\} = strings;", code)
        for name in group.split(",")
    }
    assert used - first == set(), "used in web/duogen, and not in locales/en/main.json"
    assert {word for word in first if not re.search(rf"\b{word}\b", code)} == set(), "a word that nothing says"


@pytest.mark.parametrize("locale", [locale for locale in LANGUAGES if locale != "en"])
def test_sentences_of_errors_and_progress(locale: str):
    """`python tests/comfyui/messages.py LANGUAGE` prints what is missing, to be filled in."""
    now, kept = messages.templates(), read(locale, "messages")
    assert len(now) > 500 and "The request is empty; write in DuoGen Prompt what the answer should be about." in now
    assert sorted(now - kept.keys()) == [], f"locales/{locale}/messages.json lacks these"
    assert sorted(kept.keys() - now) == [], "translated, but nothing says it any more"
    for sentence, text in kept.items():
        assert text and places(text) == places(sentence), f"{locale}: {sentence}"


def test_settings_have_words():
    code = (LOCALES.parent / "web" / "duogen" / "settings.js").read_text("utf-8")
    ids = set(re.findall(r"\"DuoGen\.(\w+)\"", code))
    assert len(re.findall(r"^    id: ", code, re.MULTILINE)) == len(ids)
    headings = set(re.findall(r'category: \["DuoGen", "(\w+)"', code))
    for locale in LANGUAGES:
        words = read(locale, "settings")
        assert set(words) == {f"DuoGen_{each}" for each in ids}, locale
        assert all(set(each) == {"name", "tooltip"} and all(each.values()) for each in words.values()), locale
        assert set(read(locale, "main")["settingsCategories"]) == headings, locale


def test_choices_have_words(server: Server, said: dict[str, Any]):
    """What a list offers is a value of the workflow; the page shows words for it. Files and samplers have none."""
    info = server.get("/object_info")
    inputs = {
        (node, name): given
        for node in said
        for group in info[node]["input"].values()
        for name, given in group.items()
        if given[0] == "COMBO" and name not in ("checkpoint", "tokenizer", "document", "lora_name", "controlnet")
    }
    stock = {name: set(info["KSampler"]["input"]["required"][name][0]) for name in ("sampler_name", "scheduler")}
    choices = {
        value
        for (_, name), given in inputs.items()
        for value in given[1]["options"]
        if value not in stock.get(name, ())
    }
    for locale in LANGUAGES:
        words = read(locale, "main")["duogen"]["options"]
        assert choices - words.keys() == set(), f"locales/{locale}/main.json lacks these under options"
        assert words.keys() - choices == set(), "no node offers these"


def shape(page: str) -> dict[str, Any]:
    """What a translation keeps of a help page: headings, lists, tables, code, links and images."""
    fenced = re.findall(r"^```.*?^```", page, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)", text)
    return {
        "headings": re.findall(r"^#+(?= )", text, re.MULTILINE),
        "list entries": len(re.findall(r"^(?:-|\d+\.) ", text, re.MULTILINE)),
        "table rows": len(re.findall(r"^\|", text, re.MULTILINE)),
        "code": sorted(re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", text))),
        "blocks of code": fenced,
        "links": sorted(links),
    }


@pytest.mark.parametrize("locale", [locale for locale in LANGUAGES if locale != "en"])
def test_help_pages(said: dict[str, Any], locale: str):
    """A page names in its last line the English one that it follows, so that it is looked at when that one changes."""
    docs = LOCALES.parent / "web" / "docs"
    wrong = []
    for original in sorted(docs.glob("*.md")):
        page = docs / original.stem / f"{locale}.md"
        if not page.is_file():
            wrong.append(f"{page.parent.name}/{page.name} is missing")
            continue
        ours, theirs = shape(page.read_text("utf-8")), shape(original.read_text("utf-8"))
        wrong += [f"{original.stem}: other {what}" for what in theirs if ours[what] != theirs[what]]
        end = f"<!-- follows {original.name} {hashlib.sha256(original.read_bytes()).hexdigest()[:8]} -->"
        if page.read_text("utf-8").splitlines()[-1] != end:
            wrong.append(
                f"{original.name} has changed; look {page.parent.name}/{page.name} over, then end it with {end}"
            )
        title = read(locale, "nodeDefs")[original.stem]["display_name"]
        if not page.read_text("utf-8").startswith(f"# {title}\n"):
            wrong.append(f"{page.parent.name}/{page.name} does not begin with the node's name")
    assert wrong == []
    assert {page.stem for page in docs.glob("*.md")} == set(said), "each node has its page"


def test_a_user_reads_of_images_only(said: dict[str, Any]):
    """One word for one thing: ComfyUI's own. Values and ids of saved workflows keep the other one."""
    kept = re.compile(r"picture, end or max_tokens|`picture`")
    texts = [(path, text) for path, text in leaves(said) if not path.endswith("/name")]
    texts += [(page.name, page.read_text("utf-8")) for page in sorted((LOCALES.parent / "web" / "docs").glob("*.md"))]
    for file in sorted((LOCALES.parent / "workflows").glob("*.json")):
        workflow = json.loads(file.read_text("utf-8"))
        titles = [node.get("title") or "" for node in workflow["nodes"]] + [
            each["title"] for each in workflow["groups"]
        ]
        notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
        texts += [(file.name, text) for text in (*titles, *notes)]
    assert [path for path, text in texts if "picture" in kept.sub("", text).lower()] == []
