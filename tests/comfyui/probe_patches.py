"""Run by test_patches.py in a process of its own: patches inside our MODEL against the core's own arithmetic.

python probe_patches.py COMFYUI            all of it
python probe_patches.py COMFYUI FLAG       only which attention function it is with this flag of ComfyUI's
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from typing import Any


def main() -> dict[str, Any]:
    import comfy.ldm.modules.attention as attention
    import comfy.sample
    import torch
    from comfy_extras.nodes_lt import LTXVSpatioTemporalGuidance
    from comfy_extras.nodes_nag import NAGuidance
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
    from pack.nodes.host import diffusion_model, model_config

    from duogen_core.dit import FAMILIES
    from duogen_core.dit.patched import Patches, patched_velocity
    from duogen_core.sampling import initial_noise, sample_picture, sigmas

    steps, cfg, sizes, blocks = 4, 2.0, ((8, 8), (8, 12), (12, 8)), 4
    frames = [torch.randn(1, 16, h, w, generator=torch.Generator().manual_seed(h + 3 * w)) for h, w in sizes]
    text = torch.randn(1, 30, 20, generator=torch.Generator().manual_seed(0))
    ends, hidden, clean = (4, 9), (22, 28), 16 + 24  # tokens of the earlier images

    own = {"PackedCosmos": {"mlp_ratio": 2.0, "adaln_lora_dim": 8}, "PackedWan": {"ffn_dim": 96, "freq_dim": 16}}

    def model_of(family: str, kind: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        module, name = FAMILIES[family]
        cls = getattr(importlib.import_module(module), name)
        dit = cls(
            num_attention_heads=2, attention_head_dim=24, num_layers=blocks, text_embed_dim=20, attention=kind,
            **own[family],
        ).eval()  # fmt: skip
        with torch.no_grad():
            for parameter in dit.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
        plain = cls.from_config(dit.config).eval()
        plain.load_state_dict(dit.state_dict())
        return plain, diffusion_model.make_model(dit, shift=2.0, latent_format=model_config.PictureLatent())

    def conditioning(cut: tuple[int, int] | None, latent_format: Any, **more: Any) -> list:
        values = {
            "reference_latents": [latent_format.process_out(frame.unsqueeze(2)) for frame in frames[:2]],
            diffusion_model.FRAME_ENDS: ends,
        }
        return [[text, values | more | ({diffusion_model.HIDDEN_TEXT: cut} if cut else {})]]

    def noise() -> torch.Tensor:
        return initial_noise(5, (1, 16, 1, *sizes[-1]))

    def drawn(model: Any, **more: Any) -> torch.Tensor:
        form = model.model.latent_format
        latent = comfy.sample.sample(
            model, noise(), steps, cfg, "euler", "simple", conditioning(None, form, **more), conditioning(hidden, form),
            torch.zeros_like(noise()), disable_pbar=True, seed=5,
        )  # fmt: skip
        return form.process_in(latent)[:, :, 0]

    def away(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    def sentence(act: Any) -> str:
        try:
            act()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing was refused"

    def with_patch(model: Any, name: str, patch: Any) -> Any:
        own = model.clone()
        own.set_model_patch(patch, name)
        return own

    def with_replaced(model: Any, patch: Any, kind: str, *key: Any) -> Any:
        own = model.clone()
        own.set_model_patch_replace(patch, kind, *key)
        return own

    def seen_with(family: str, kind: str) -> dict[str, Any]:
        plain, model = model_of(family, kind)
        mine: dict[str, Any] = {}
        first = drawn(model)

        def prepared(dit: Any, *cuts: Any, **how: Any) -> Any:
            return dit.prepare(frames[:2], [(text, cut) for cut in cuts], sizes[-1], frame_ends=ends, **how)

        def guided(steer: Any) -> torch.Tensor:
            """The core's sampling, `steer` added to each step's guided velocity."""
            own = prepared(plain, None, hidden)

            def one(x: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
                positive, negative = own.velocities(x, t)
                return [negative + cfg * (positive - negative) + steer(x, t, positive)]

            with torch.inference_mode():
                return sample_picture(one, noise()[:, :, 0], sigmas(steps, 2.0), guidance=1.0)

        # Skip-layer guidance, in all steps and in some: a model without the block.
        without = copy.deepcopy(plain)
        del without.transformer_blocks[1]  # of either family's list of blocks

        def skipping(x: torch.Tensor, t: torch.Tensor, positive: torch.Tensor, low: float = 0.0) -> Any:
            return 3.0 * (positive - prepared(without, None).velocities(x, t)[0]) if t[0] >= low else 0.0

        slg = SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "").result[0]
        mine["skip layer"] = away(drawn(slg), guided(skipping))
        half = model.model.model_sampling.percent_to_sigma(0.4)
        some = SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 0.4, "1", "").result[0]
        mine["skip layer in some steps"] = away(
            drawn(some), guided(lambda x, t, positive: skipping(x, t, positive, half))
        )
        mine["that is another image"] = [away(drawn(slg), first), away(drawn(some), drawn(slg))]
        simple = SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "1", "").result[0]
        seen = prepared(without, hidden)

        def of_negative(x: torch.Tensor, t: torch.Tensor, positive: torch.Tensor) -> Any:
            negative = prepared(plain, hidden).velocities(x, t)[0]
            return (1 - cfg) * (seen.velocities(x, t)[0] - negative)

        mine["skip layer of the negative"] = away(drawn(simple), guided(of_negative))

        # Perturbed attention: each token sees itself alone.
        class Alone(Patches):
            def attention(self, index: int, kind: str, q: Any, k: Any, v: Any, run: Any) -> Any:
                return v if kind == "frames" and index == blocks // 2 else run(q, k, v)

        def perturbed(x: torch.Tensor, t: torch.Tensor, positive: torch.Tensor) -> Any:
            return 2.0 * (positive - patched_velocity(prepared(plain, None, together=True), x, t, Alone()))

        pag = PerturbedAttentionGuidance.execute(model, 2.0).result[0]
        stg = LTXVSpatioTemporalGuidance.execute(model, 2.0, str(blocks // 2), 0.0, 1.0).result[0]
        expected = guided(perturbed)
        mine["perturbed attention"] = [away(drawn(pag), expected), away(drawn(stg), expected)]
        mine["normalized attention guidance"] = away(drawn(NAGuidance.execute(model, 8.0, 1.0, 5.0).result[0]), first)

        # ComfyUI's attention functions, as an override and as the flag sets them.
        def called(function: Any) -> tuple[Any, list]:
            seen: list = []

            def counted(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                seen.append((kwargs["transformer_options"]["block_index"], args[0].shape[2], args[1].shape[2]))
                return function(*args, **kwargs)

            own = model.clone()
            own.model_options["transformer_options"]["optimized_attention_override"] = counted
            return own, seen

        mine["attention"] = {}
        names = ("attention_pytorch", "attention_sub_quad", "attention_split", "attention_basic")
        default = attention.optimized_attention
        for name in names:
            function = getattr(attention, name)
            own, seen = called(function)
            override = away(drawn(own), first)
            attention.optimized_attention = lambda *a, f=function, **k: f(*a, **k)
            mine["attention"][name] = [override, away(drawn(model), first), sorted({index for index, *_ in seen})]
            attention.optimized_attention = default
        own, seen = called(lambda *a, **k: attention.attention_pytorch(*a, **k) / 2)
        mine["another attention"] = away(drawn(own), first)
        mine["without it again"] = torch.equal(drawn(model), first)

        # How patches are called: the target's tokens first.
        shapes: list = []
        push = torch.randn(1, 24, 48, generator=torch.Generator().manual_seed(3))

        def added(args: dict) -> dict:
            shapes.append([args["block_index"], *args["img"].shape[1:], *args["txt"].shape[1:]])
            args["img"][:, :24] += push
            return args

        class Adding(Patches):
            def block(self, index: int, x: Any, inputs: Any, run: Any) -> Any:
                x = run(x)
                return torch.cat([x[:, :clean], x[:, clean:] + push], dim=1)

        together = prepared(plain, None, hidden, together=True)
        with torch.inference_mode():
            expected = sample_picture(
                lambda x, t: list(
                    patched_velocity(together, x.repeat(2, 1, 1, 1), t.repeat(2), Adding()).chunk(2)
                ),
                noise()[:, :, 0], sigmas(steps, 2.0), guidance=cfg,
            )  # fmt: skip
        mine["added after each block"] = [away(drawn(with_patch(model, "double_block", added)), expected), shapes[:4]]

        def replaced(args: dict, extra: dict) -> dict:
            return {"img": 2 * extra["original_block"](args)["img"] - args["img"]}

        def plainly(args: dict, extra: dict) -> dict:
            return extra["original_block"](args)

        around = model.clone()
        for block in range(blocks):
            around.set_model_patch_replace(plainly, "dit", "double_block", block)
        mine["around every block"] = away(drawn(around), first)
        mine["a block twice"] = away(drawn(with_replaced(model, replaced, "dit", "block", 2)), first)

        def same(*args: Any, **named: Any) -> Any:
            return dict(zip("qkv", args)) if named else args[0]

        idle = model
        for name in (
            "post_input",
            "mlp_patch",
            "attn1_patch",
            "attn2_patch",
            "attn1_output_patch",
            "attn2_output_patch",
        ):
            idle = with_patch(idle, name, same)
        mine["patches that change nothing"] = away(drawn(idle), first)
        mine["patches that change something"] = {
            name: away(drawn(with_patch(model, name, patch)), first)
            for name, patch in {
                "post_input": lambda args: args | {"img": args["img"] * 2},
                "mlp_patch": lambda args: args | {"x": args["x"] * 2},
                "attn1_patch": lambda q, k, v, pe, attn_mask, extra_options: {"v": v * 2},
                "attn2_patch": lambda q, k, v, pe, attn_mask, extra_options: {"v": v * 2},
                "attn1_output_patch": lambda out, extra_options: out * 2,
                "attn2_output_patch": lambda out, extra_options: out * 2,
            }.items()
        }

        # A wrapper around the model may write into what it gets (EasyCache does).
        def writing(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            result = executor(*args, **kwargs)
            args[0].add_(100.0)
            return result

        own = model.clone()
        own.add_wrapper("diffusion_model", writing)
        mine["a wrapper that writes into its input"] = away(drawn(own), first)

        # What is refused.
        class OtherControl:
            previous_controlnet = None

        class Network:
            def __call__(self, q: Any, k: Any, v: Any, extra_options: Any) -> Any:
                return q, k, v

        mine["refused"] = {
            "hypernetwork": sentence(lambda: drawn(with_patch(model, "attn1_patch", Network()))),
            "gligen": sentence(lambda: drawn(with_patch(model, "middle_patch", same))),
            "blocks": sentence(lambda: drawn(SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "8, 9", "").result[0])),
            "single": sentence(lambda: drawn(SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "", "1").result[0])),
            "unet block": sentence(lambda: drawn(with_replaced(model, same, "attn1", "input", 4))),
            "shape": sentence(lambda: drawn(with_patch(model, "attn1_output_patch", lambda out, _: out[:, 1:]))),
            "crash": sentence(
                lambda: drawn(with_patch(model, "double_block", lambda args: args["img"] @ torch.ones(5, 5)))
            ),
            "control": sentence(lambda: model.model.extra_conds(control=OtherControl(), cross_attn=text)),
        }
        # With gradients, as for Train LoRA.
        dit = model.model.diffusion_model
        x = noise().requires_grad_(True)

        def trained(options: dict) -> torch.Tensor:
            return dit(x, torch.tensor([0.5]), text, transformer_options=options)

        mine["refused"]["training"] = sentence(lambda: trained({"patches": {"double_block": [added]}}))
        chosen = {"optimized_attention_override": lambda f, *a, **k: f(*a, **k)}
        mine["training with a chosen attention"] = away(trained(chosen), trained({}))
        mine["at the end, nothing between"] = torch.equal(drawn(model), first)
        return mine

    return {f"{family} {kind}": seen_with(family, kind) for family in own for kind in ("full", "frame_causal")}


def chosen_attention() -> str:
    import torch
    from pack.nodes.host.transformer_options import attention_of

    attention = attention_of({}, torch.device("cpu"))
    return getattr(attention, "function", attention).__name__


if __name__ == "__main__":
    import probe_memory

    _, comfyui, *flags = sys.argv
    probe_memory.start(comfyui, *flags)
    print(json.dumps(chosen_attention() if flags else main()))
