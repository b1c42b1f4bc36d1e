"""generate with a model put together from published files: --mllm, --dit, --vae."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

from duogen_core.cli import main
from duogen_core.document.reading import load_document
from duogen_core.vae import PictureVae, new_vae
from tests.core.dit.test_cosmos_files import official, tiny
from tests.core.mllm.test_prompted import without_bov
from tests.core.mllm_families import CREATE


@pytest.fixture(scope="module", params=CREATE)
def parts(request, tmp_path_factory):
    """Every family of language models."""
    folder = tmp_path_factory.mktemp("parts")
    mllm = CREATE[request.param](
        without_bov(size=400, family=request.param), hidden_size=32, layers=2, heads=1, kv_heads=1,
        intermediate_size=24, vision_hidden_size=32, vision_layers=1, vision_heads=2, vision_intermediate_size=48,
        **({"deepstack": (0,)} if request.param == "qwen3_vl" else {}),
    )  # fmt: skip
    mllm.save_pretrained(folder / "mllm")
    save_file(official(tiny()), folder / "dit.safetensors")
    save_file(PictureVae(new_vae(4)).to_single_file(), folder / "vae.safetensors")
    return {"--mllm": folder / "mllm", "--dit": folder / "dit.safetensors", "--vae": folder / "vae.safetensors"}


@pytest.fixture
def ask(parts, tmp_path, capsys):
    def run(*more, without=()):
        named = [str(word) for name, path in parts.items() if name not in without for word in (name, path)]
        words = ["generate", "Draw a circle.", "--out", str(tmp_path / "answer"), "--max-tokens", "4", *named, *more]
        return main(words), capsys.readouterr().err

    return run


def test_published_files_answer(ask, tmp_path):
    code, said = ask("--convention", "pre-trained", "--size", "32x32")
    assert code == 0 and "Loading mllm, dit.safetensors and vae.safetensors" in said
    made = load_document(tmp_path / "answer").generation
    assert (made["steps"], made["guidance"], made["shift"]) == (36, 8.0, 5.0)


@pytest.mark.parametrize(
    "more, without, match",
    [
        ((), ("--vae",), "needs --mllm, --dit and --vae; --vae is missing"),
        (("--model", "duogen-tiny"), (), "--model names a whole model"),
        (("--tokenizer", "words"), ("--mllm", "--dit", "--vae"), "--tokenizer is about published files"),
    ],
)
def test_files_that_do_not_go_together(ask, tmp_path, more, without, match):
    code, said = ask(*more, without=without)
    assert code == 2 and match in said and "Traceback" not in said
    assert not (tmp_path / "answer").exists()
