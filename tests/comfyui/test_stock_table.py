"""Every row of stock_table.py through a real server, and what of ComfyUI's own nodes takes more than one node."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import stock_table
from server import PACK, Server
from stock_table import Row
from test_stock_nodes import ROUNDING, STEPS, draw, node, plain, same  # noqa: F401 (draw and plain are fixtures)

Draw = Callable[..., np.ndarray]


def between(row: Row, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"patch": node(row.node, model=["1", 2], **inputs)}


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in stock_table.ROWS if not row.refused], ids=lambda row: row.node)
def test_it_runs_and_changes_what_it_should(server: Server, draw: Draw, plain: np.ndarray, row: Row):  # noqa: F811
    given = {**row.sampler, "checkpoint": "duogen-tiny" if row.trained else ""}
    without = draw(**given) if row.sampler or row.trained else plain
    told = len(server.log)
    if row.rests is not None:
        assert same(draw(between(row, row.rests), model="patch", **given), without, ROUNDING)
    if row.acts is not None:
        acting = draw(between(row, row.acts), model="patch", **given)
        assert not same(acting, without, ROUNDING)
    assert row.said in server.log[told:]


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in stock_table.ROWS if row.refused], ids=lambda row: row.node)
def test_it_is_refused_in_a_sentence(server: Server, random_model: Path, row: Row):
    graph = graphs.first_picture(random_model.name, steps=STEPS) | between(row, row.acts or {})
    graph["p.sample"]["inputs"]["model"] = ["patch", 0]
    graph["shown"] = node("PreviewImage", images=["p.decode", 0])
    error = server.run(graph).error
    assert error, "it was ignored"
    assert error["exception_type"].endswith(("DuoGenError", "DitError")), error["exception_message"]
    assert row.refused in error["exception_message"] and "take" in error["exception_message"]


# ------------------------------------------------------------ what takes more than one node


def custom(random_model: Path, guider: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """The sampling of graphs.first_picture through SamplerCustomAdvanced."""
    inputs = graphs.first_picture(random_model.name)["p.sample"]["inputs"]
    return {
        "noise": node("RandomNoise", noise_seed=inputs["seed"]),
        "guider": guider,
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=inputs["model"], scheduler="simple", steps=steps, denoise=1.0),
        "p.sample": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
            sigmas=["sigmas", 0], latent_image=inputs["latent_image"],
        ),
    }  # fmt: skip


@pytest.mark.slow
def test_guiders(draw: Draw, random_model: Path, plain: np.ndarray):  # noqa: F811
    """Each is compared with the KSampler where they must agree, and differs where they must not."""
    positive, negative = ["p.refer", 0], ["p.refer", 1]

    def with_guider(kind: str, **inputs: Any) -> np.ndarray:
        return draw(custom(random_model, node(kind, model=["1", 2], **inputs)))

    unguided = draw(cfg=1.0)
    assert same(with_guider("BasicGuider", conditioning=positive), unguided, ROUNDING)
    both = {"cond1": positive, "cond2": negative, "negative": negative, "style": "regular"}
    dual = with_guider("DualCFGGuider", **both, cfg_conds=2.0, cfg_cond2_negative=1.0)
    assert same(dual, plain, ROUNDING)
    assert not same(with_guider("DualCFGGuider", **both, cfg_conds=6.0, cfg_cond2_negative=1.0), plain, ROUNDING)
    perp = {"positive": positive, "negative": negative, "empty_conditioning": negative}
    assert same(with_guider("PerpNegGuider", **perp, cfg=2.0, neg_scale=0.0), plain, ROUNDING)
    other = {"other": node("ConditioningZeroOut", conditioning=positive)}
    graph = custom(random_model, node(
        "PerpNegGuider", model=["1", 2], positive=positive, negative=["other", 0], empty_conditioning=negative,
        cfg=2.0, neg_scale=8.0,
    ))  # fmt: skip
    assert not same(draw(graph | other), plain, ROUNDING)


@pytest.mark.slow
def test_two_halves(draw: Draw, random_model: Path):  # noqa: F811
    """Two KSamplerAdvanced that hand over a half-finished latent are one KSampler."""
    inputs = graphs.first_picture(random_model.name)["p.sample"]["inputs"]
    parts = {key: value for key, value in inputs.items() if key not in ("seed", "denoise")} | {"steps": 4}
    first = {"add_noise": "enable", "noise_seed": inputs["seed"], "start_at_step": 0, "end_at_step": 2,
             "return_with_leftover_noise": "enable"}  # fmt: skip
    second = {"add_noise": "disable", "noise_seed": 0, "start_at_step": 2, "end_at_step": 10000,
              "return_with_leftover_noise": "disable", "latent_image": ["half", 0]}  # fmt: skip
    nodes = {"half": node("KSamplerAdvanced", **parts, **first)}
    nodes["p.sample"] = node("KSamplerAdvanced", **{**parts, **second})
    assert same(draw(nodes), draw(steps=4), ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("checkpoint", ["", "duogen-tiny"], ids=["random", "bundled"])
def test_caches_leave_steps_out(server: Server, draw: Draw, kind: str, checkpoint: str):  # noqa: F811
    """At threshold 0 none. At the stock settings some, and so many calls of the transformer are saved."""
    steps = 16

    def drawn(**inputs: Any) -> tuple[np.ndarray, int, int]:
        told, calls = len(server.log), server.get("/duogen_test/steps")
        cache = node(kind, model=["1", 2], **{"start_percent": 0.15, "end_percent": 0.95, "verbose": False} | inputs)
        image = draw({"cache": cache}, model="cache", steps=steps, checkpoint=checkpoint)
        skipped = re.search(rf"{kind} - skipped (\d+)/{steps} steps", server.log[told:])
        assert skipped, "it said nothing"
        return image, int(skipped[1]), server.get("/duogen_test/steps") - calls

    whole, skipped, calls = drawn(reuse_threshold=0.0)
    assert (skipped, calls) == (0, steps)
    image, skipped, calls = drawn(reuse_threshold=0.2)
    assert skipped >= 2 and calls == steps - skipped
    assert 0 < np.abs(image - whole).mean() < 16, "another image, but nearly the same"


@pytest.mark.slow
def test_latent_operation(draw: Draw):  # noqa: F811
    nodes = {
        "operation": node("LatentOperationTonemapReinhard", multiplier=1.0),
        "patch": node("LatentApplyOperationCFG", model=["1", 2], operation=["operation", 0]),
    }
    assert not same(draw(nodes, model="patch", cfg=40.0), draw(cfg=40.0), ROUNDING)


HALF = {
    "none": node("SolidMask", value=0.0, width=96, height=64),
    "right": node("SolidMask", value=1.0, width=48, height=64),
    "mask": node("MaskComposite", destination=["none", 0], source=["right", 0], x=48, y=0, operation="add"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VAEEncodeForInpaint", "InpaintModelConditioning"])
def test_inpainting(draw: Draw, kind: str):  # noqa: F811
    """What the mask leaves out is kept, as far as a VAE keeps anything; the rest is drawn anew."""
    nodes = {
        **HALF,
        "colour": node("EmptyImage", width=96, height=64, batch_size=1, color=0x3070C0),
        "old": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "kept": node("VAEDecode", samples=["old", 0], vae=["1", 3]),
    }
    given: dict[str, Any] = {"latent_image": ["masked", 0]}
    if kind == "VAEEncodeForInpaint":
        nodes["masked"] = node(kind, pixels=["colour", 0], vae=["1", 3], mask=["mask", 0], grow_mask_by=0)
    else:
        nodes["masked"] = node(
            kind, positive=["p.refer", 0], negative=["p.refer", 1], vae=["1", 3], pixels=["colour", 0],
            mask=["mask", 0], noise_mask=True,
        )  # fmt: skip
        given = {"positive": ["masked", 0], "negative": ["masked", 1], "latent_image": ["masked", 2]}
    found, old = draw(nodes, **given), draw(nodes, ["kept", 0], **given)
    left, right = np.s_[:, :32], np.s_[:, 64:]  # away from the border, which a VAE carries across
    assert np.abs(found[left] - old[left]).mean() < np.abs(found[right] - old[right]).mean() / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ConditioningSetArea", "ConditioningSetMask"])
def test_regions(draw: Draw, kind: str):  # noqa: F811
    """Another text at the right; with strength 0 none."""

    def drawn(strength: float) -> np.ndarray:
        other = {"conditioning": ["p.connect", 1], "strength": strength}
        where = {"width": 64, "height": 64, "x": 32, "y": 0}
        if kind == "ConditioningSetMask":
            where = {"mask": ["mask", 0], "set_cond_area": "default"}
        nodes = {
            **HALF,
            "region": node(kind, **other, **where),
            "both": node("ConditioningCombine", conditioning_1=["p.refer", 0], conditioning_2=["region", 0]),
        }
        return draw(nodes, positive=["both", 0], cfg=1.0)

    whole = draw(cfg=1.0)
    assert same(drawn(0.0), whole, ROUNDING)
    assert not same(drawn(10.0), whole, ROUNDING)


@pytest.mark.slow
def test_a_text_for_some_steps(draw: Draw):  # noqa: F811
    def drawn(start: float, end: float) -> np.ndarray:
        nodes = {
            "some": node("ConditioningSetTimestepRange", conditioning=["p.refer", 0], start=start, end=end),
            "rest": node("ConditioningSetTimestepRange", conditioning=["p.refer", 1], start=end, end=1.0),
            "both": node("ConditioningCombine", conditioning_1=["some", 0], conditioning_2=["rest", 0]),
        }
        return draw(nodes, positive=["both", 0], cfg=1.0, steps=4)

    whole, half = drawn(0.0, 1.0), drawn(0.0, 0.5)
    assert same(whole, draw(cfg=1.0, steps=4), ROUNDING) and not same(half, whole, ROUNDING)


@pytest.mark.slow
def test_context_windows_over_a_batch(server: Server, draw: Draw):  # noqa: F811
    """The one thing an image model can be cut along: the windows are the images of a batch, each as without."""
    batch = {"two": node("RepeatLatentBatch", samples=["p.size", 0], amount=3)}
    windows = node(
        "ContextWindowsManual", model=["1", 2], **stock_table.WINDOWS, context_length=2, context_overlap=1, dim=0,
        cond_retain_index_list="", latent_retain_index_list="", causal_window_fix=False,
    )  # fmt: skip
    told = len(server.log)
    cut = draw(batch | {"windows": windows}, model="windows", latent_image=["two", 0])
    assert "Context window 2/2" in server.log[told:]
    assert same(cut, draw(batch, latent_image=["two", 0]), ROUNDING)


def test_the_page_shows_the_whole_list():
    """docs/stock-nodes.md has exactly these rows, and no test in them is missing."""
    page = (PACK / "docs" / "stock-nodes.md").read_text("utf-8").split("## Patches of other packs")[0]
    # This section's proofs are in test_stock_models.py.
    page = re.sub(r"^## Models: trained, merged.*?(?=^## )", "", page, flags=re.M | re.S)
    shown = {name: about for name, about in re.findall(r"^\| (.+?) \| (.+?) \|$", page, re.M) if name != "Node"}
    rows = {row.node: f"refused: {row.about}" if row.refused else row.about for row in stock_table.ROWS}
    rows |= {", ".join(names): about for names, (about, _) in stock_table.OTHERS.items()}
    assert shown == rows
    for _, proofs in stock_table.OTHERS.values():
        for proof in proofs:
            file, test = proof.split("::")
            assert f"def {test}(" in (PACK / "tests" / "comfyui" / file).read_text("utf-8"), proof
