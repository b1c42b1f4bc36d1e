"""The pages a person reads: every path and link on them exists, the index leads to each page, README stays short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "README.md"
CARD = ROOT / "models" / "duogen-tiny" / "README.md"
PAGES = [README, CARD, *sorted((ROOT / "docs").glob("*.md"))]
NAMED = [page.relative_to(ROOT).as_posix() for page in PAGES]

# A path in inline code is one of this repository if it begins with one of these, or ends like a file of ours.
PLACES = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - {"models", "output"}
ENDINGS = (".py", ".md", ".json", ".yaml", ".toml", ".svg")
# Files that a user has, that a command writes, or that lie in ComfyUI.
OF_USERS = {
    "config.json", "tokenizer.json", "vocab.json", "preprocessor_config.json", "tokenizer_config.json", "document.json",
    "document.md", "model_index.json", "adapter_config.json", "ablation.json", "ablation.md", "run.json", "data.json",
    "key.json", "mine.yaml", "extra_model_paths.yaml", "scores.json", "transformer/config.json",
    "text_and_image_to_image.json", "index.json",
    # of the benchmarks' own repositories
    "Benchmark/Basic/basic_edit.json", "config.py", "summarize.py", "test/test.json",
}  # fmt: skip

UNDEFINED = {"reference_latents"}  # a key of ComfyUI's conditioning, in the walks


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def paths_of(text: str) -> set[str]:
    """Paths of this repository in inline code; NAME stands for a file that the reader makes."""
    codes = {code for code in re.findall(r"`([\w./*-]+)`", without_blocks(text)) if "NAME" not in code} - OF_USERS
    ours = {code for code in codes if "/" in code and code.split("/")[0] in PLACES}
    return ours | {code for code in codes if code.endswith(ENDINGS) and "*" not in code}


def links_of(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)) if "://" not in link]


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", NAMED)
def test_every_path_on_a_page_exists(page: str):
    file = ROOT / page
    missing = [
        path
        for path in sorted(paths_of(text_of(file)))
        if not any(list(base.glob(path)) for base in (ROOT, file.parent, ROOT / "docs"))
        and not ("/" not in path and (list((ROOT / "duogen_core").rglob(path)) or list((ROOT / "tests").rglob(path))))
    ]
    assert missing == [], f"{page} names what is not here"


@pytest.mark.parametrize("page", NAMED)
def test_every_link_leads_somewhere(page: str):
    file = ROOT / page
    for link in links_of(text_of(file)):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists() and target.is_relative_to(ROOT), f"{page}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page}: {link} is no heading of {target.name}"


def test_the_index_leads_to_every_page_and_readme_to_the_index():
    reached = {(INDEX.parent / link.partition("#")[0]).resolve() for link in links_of(text_of(INDEX))}
    assert {page.name for page in PAGES if page.resolve() not in reached | {INDEX.resolve()}} == set()
    assert "docs/README.md" in links_of(text_of(README))


def test_a_page_and_the_index_ask_the_same_question():
    """The title of a page of docs/ is how the index asks for it."""
    asked = dict(re.findall(r"^\| ([^|]+?)(?: \([^|]*\))? \| \[[^\]]+\]\(([^)#]+)\) \|", text_of(INDEX), re.MULTILINE))
    asked = {page: question for question, page in asked.items()}
    for page in sorted(set((ROOT / "docs").glob("*.md")) - {INDEX}):
        assert text_of(page).partition("\n")[0] == f"# {asked[page.name]}"


def test_readme_is_read_in_three_minutes():
    assert text_of(README).count("\n") <= 130


def test_the_four_questions_of_a_newcomer_are_two_clicks_away():
    """README links to the page, and the page has the command or the folders."""
    for page, needed in {
        "install.md": ("git clone", "pip install -r", r"python_embeded\python.exe -s -m pip", "ComfyUI-Manager"),
        "finetuning.md": ("data check documents:", "train finetune data="),
        "data-web.md": ("data web ", 'pip install -e ".[data]"'),
        "own-models.md": ("diffusion_models", "text_encoders", "`vae`", "`duogen`", "DuoGen Load Language Model"),
    }.items():
        assert f"docs/{page}" in {link.partition("#")[0] for link in links_of(text_of(README))}
        assert [each for each in needed if each not in text_of(ROOT / "docs" / page)] == []


def test_pages_name_the_versions_that_pyproject_asks_for():
    project = text_of(ROOT / "pyproject.toml")
    comfyui = re.search(r'requires-comfyui = ">=(\d+\.\d+)\.0"', project)[1]
    python = re.search(r'requires-python = ">=(\d+\.\d+)"', project)[1]
    for page in (README, ROOT / "docs" / "install.md"):
        assert f"ComfyUI {comfyui}" in text_of(page) and f"Python {python} to" in text_of(page), page


def test_pages_name_nodes_templates_and_model_files_as_they_are():
    """Titles of nodes, names of templates, and the files that the templates ask for."""
    text = text_of(ROOT / "docs" / "comfyui.md")
    nodes = {node["display_name"] for node in json.loads(text_of(ROOT / "locales/en/nodeDefs.json")).values()}
    listed = set()
    for cell in re.findall(r"^\| (DuoGen [^|]+) \|", text, re.MULTILINE):
        listed |= {name if name.startswith("DuoGen ") else f"DuoGen {name}" for name in cell.split(", ")}
    assert listed <= nodes
    mentioned = " ".join(without_blocks(text).split())
    assert {name for name in nodes if name.removeprefix("DuoGen ") not in mentioned} == set()
    templates = {file.stem for file in (ROOT / "workflows").glob("*.json")}
    assert set(re.findall(r"\*\*(\d\d [^*]+)\*\*(?:,| \|)", text)) == templates

    page = text_of(ROOT / "docs" / "own-models.md")
    for file in sorted((ROOT / "workflows").glob("*.json")):
        for model in re.findall(r'"name": "([^"]+\.safetensors)", "url"', json.dumps(json.loads(text_of(file)))):
            assert model in page, f"{file.name} asks for {model}, which own-models.md does not name"


def test_the_walks_name_functions_that_are_in_their_files():
    """In a table of files, a name in the second column is defined in a file of the first."""
    rows = re.findall(r"^\| (`[^|]+\.py`) \| ([^|]+) \|", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert len(rows) > 15
    for files, says in rows:
        code = "\n".join(text_of(ROOT / file) for file in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([A-Za-z]\w+)`", says):
            assert re.search(rf"(def |class |^){name}\b|\"{name}\"", code, re.MULTILINE) or name in UNDEFINED, (
                files,
                name,
            )
