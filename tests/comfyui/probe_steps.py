"""Run by test_steps.py in a process of its own: what a sampling run prepares, and what the next one finds of it.

python probe_steps.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> dict[str, Any]:
    import comfy.sample
    import comfy.sd
    import torch
    from comfy.conds import CONDRegular
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.definitions import sampling
    from pack.nodes.host import diffusion_model, model_config

    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.errors import DuoGenError
    from duogen_core.sampling import initial_noise, sample_picture, sigmas

    steps, cfg, sizes = 3, 2.0, ((8, 8), (8, 12), (12, 8), (8, 8))
    frames = [torch.randn(1, 16, h, w, generator=torch.Generator().manual_seed(h + 3 * w)) for h, w in sizes]
    text = torch.randn(1, 30, 20, generator=torch.Generator().manual_seed(0))
    ends, hidden = (4, 9, 20), (22, 28)

    def model_of(attention: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        dit = PackedCosmos(
            num_attention_heads=2, attention_head_dim=24, num_layers=3, mlp_ratio=2.0, text_embed_dim=20,
            adaln_lora_dim=8, attention=attention,
        ).eval()  # fmt: skip
        with torch.no_grad():
            for parameter in dit.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
        plain = PackedCosmos.from_config(dit.config).eval()
        plain.load_state_dict(dit.state_dict())
        return plain, diffusion_model.make_model(dit, shift=2.0, latent_format=model_config.PictureLatent())

    def conditioning(count: int, cut: tuple[int, int] | None, latent_format: Any) -> list:
        values = {
            "reference_latents": [latent_format.process_out(frame.unsqueeze(2)) for frame in frames[:count]],
            diffusion_model.FRAME_ENDS: ends[:count],
        }
        return [[text, values | ({diffusion_model.HIDDEN_TEXT: cut} if cut else {})]]

    def drawn(model: Any, count: int, batch: int = 1) -> torch.Tensor:
        form = model.model.latent_format
        noise = initial_noise(5, (batch, 16, 1, *sizes[-1]))
        latent = comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", conditioning(count, None, form),
            conditioning(count, hidden, form), torch.zeros_like(noise), disable_pbar=True, seed=5,
        )  # fmt: skip
        return form.process_in(latent)[:, :, 0]

    def expected(plain: Any, count: int, batch: int = 1, refresh: int = 1) -> torch.Tensor:
        with torch.inference_mode():
            own = text.expand(batch, -1, -1)
            prepared = plain.prepare(
                frames[:count], [(own, None), (own, hidden)], sizes[-1], frame_ends=ends[:count], refresh=refresh
            )
            noise = initial_noise(5, (batch, 16, 1, *sizes[-1]))[:, :, 0]
            return sample_picture(prepared.velocities, noise, sigmas(steps, 2.0), guidance=cfg)

    out: dict[str, Any] = {}
    refused, note = [], model_config.PictureLatent().note()
    assert model_config.PictureLatent.from_note(note, "a file").same_as(model_config.PictureLatent())
    for change in (
        {"mean": [10**400] * 16},
        {"std": [0.0] * 16},
        {"std": "x"},
        {"rgb": [["x"], 1]},
        {"vae_width": "a"},
    ):
        try:
            model_config.PictureLatent.from_note({**note, **change}, "a file")
        except DuoGenError as error:
            refused.append(str(error))
    assert len(refused) == 5 and all("damaged" in said for said in refused), refused
    for attention in ("full", "frame_causal"):
        plain, model = model_of(attention)
        dit, seen = model.model.diffusion_model, []
        original = dit.prepare

        def counted(*args: Any, seen: list = seen, original: Any = original, **kwargs: Any) -> Any:
            cache = kwargs["cache"]
            before = (0, 0) if cache is None else (cache.hits, cache.misses)
            result = original(*args, **kwargs)
            found = (0, 0) if cache is None else (cache.hits - before[0], cache.misses - before[1])
            seen.append((len(args[1]), *found))
            return result

        dit.prepare = counted
        mine = out[attention] = {"away": []}

        def compare(count: int, batch: int = 1, mine: dict = mine, model: Any = model, plain: Any = plain) -> None:
            mine["away"].append(float((drawn(model, count, batch) - expected(plain, count, batch)).abs().max()))

        for count in (0, 1, 2, 3):
            compare(count)
        mine["prepared"] = list(seen)  # per picture: branches of one batch, frames found, frames computed
        mine["held after the run"] = 0 if dit.frame_cache is None else dit.frame_cache.bytes
        mine["runs after the run"] = len(dit.runs)
        seen.clear()
        compare(3, batch=2)
        mine["a batch of two"] = list(seen)
        seen.clear()
        # A node in front of the model that changes the text from step to step: nothing stale is used.
        wrapped = model.clone()
        wrapped.set_model_unet_function_wrapper(
            lambda apply, args: apply(
                args["input"],
                args["timestep"],
                **{**args["c"], "c_crossattn": args["c"]["c_crossattn"] * args["timestep"].mean()},
            )
        )
        drawn(wrapped, 2)
        mine["prepared when the text changes"] = len(seen)
        # Other weights: what was computed with the old ones goes.
        changed = model.clone()
        name = next(key for key in model.model.state_dict() if key.endswith("transformer_blocks.0.attn1.to_k.weight"))
        changed.add_patches({name: ("diff", (torch.randn(48, 48),))}, 0.5)
        seen.clear()
        other = drawn(changed, 3)
        mine["found by other weights"] = sum(found for _, found, _ in seen)
        mine["other weights draw another picture"] = float((other - drawn(model, 3)).abs().max()) > 1e-3
        compare(3)
        sampling.DuoGenRefreshEarlierImages.GET_SCHEMA()
        (refreshed,) = sampling.DuoGenRefreshEarlierImages.execute(model, 2).result
        mine["refreshed"] = [
            float((drawn(refreshed, 3) - expected(plain, 3, refresh=every)).abs().max()) for every in (1, 2)
        ]
        # ComfyUI makes one batch of branches whose references have the same sizes; these show other images.
        form = model.model.latent_format
        others = conditioning(2, hidden, form)
        others[0][1]["reference_latents"] = [form.process_out(-frame.unsqueeze(2)) for frame in frames[:2]]
        with torch.inference_mode():
            branches = [
                plain.prepare(own, [(text, cut)], sizes[-1], frame_ends=ends[:2])
                for own, cut in ((frames[:2], None), ([-frame for frame in frames[:2]], hidden))
            ]
            noise = initial_noise(5, (1, 16, 1, *sizes[-1]))
            right = sample_picture(
                lambda x, t, branches=branches: [each.velocities(x, t)[0] for each in branches],
                noise[:, :, 0], sigmas(steps, 2.0), guidance=cfg,
            )  # fmt: skip
            found = comfy.sample.sample(
                model, noise, steps, cfg, "euler", "simple", conditioning(2, None, form), others,
                torch.zeros_like(noise), disable_pbar=True, seed=5,
            )  # fmt: skip
        mine["other images in the negative"] = float((form.process_in(found)[:, :, 0] - right).abs().max())

        # A wrapper that changes the text around each step's batch.
        def fading(executor: Any, model: Any, conds: list, x: Any, time: torch.Tensor, options: dict) -> Any:
            faded = [
                [
                    {**one, "model_conds": {**own, "c_crossattn": CONDRegular(own["c_crossattn"].cond * time.mean())}}
                    for one in each
                    for own in [one["model_conds"]]
                ]
                for each in conds
            ]
            return executor(model, faded, x, time, options)

        wrapped = model.clone()
        wrapped.add_wrapper(WrappersMP.CALC_COND_BATCH, fading)
        seen.clear()
        drawn(wrapped, 2)
        mine["prepared when a wrapper changes the text"] = len(seen)
        # A LoRA in bypass mode leaves the patches as they are.
        layer = "diffusion_model.transformer_blocks.0.attn1.to_k"
        lora = {f"{layer}.lora_{side}.weight": torch.randn(shape) for side, shape in (("A", (4, 48)), ("B", (48, 4)))}
        merged, bypassed = (
            load(model, None, lora, 0.2, 0.0)[0]
            for load in (comfy.sd.load_lora_for_models, comfy.sd.load_bypass_lora_for_models)
        )
        own = drawn(model, 3)
        mine["a LoRA in bypass mode"] = [
            float((a - b).abs().max()) for a, b in ((drawn(bypassed, 3), drawn(merged, 3)), (drawn(model, 3), own))
        ]
        # So does a layer that a node puts in the place of another.
        replaced = model.clone()
        replaced.add_object_patch(layer, torch.nn.Linear(48, 48, bias=False))
        first, dit.frame_cache = drawn(replaced, 3), None
        mine["another layer in its place"] = float((first - drawn(replaced, 3)).abs().max())
        # With gradients, as for ComfyUI's Train LoRA: the same velocity, and slopes that are true.
        x, aside = (initial_noise(seed, (2, 16, 1, *sizes[-1])) for seed in (6, 7))
        time = torch.tensor([0.7, 0.4])
        branches = (diffusion_model.BranchOfRun(None), diffusion_model.BranchOfRun(hidden))

        def velocity(x: torch.Tensor, dit: Any = dit, time: Any = time, branches: Any = branches) -> torch.Tensor:
            refs = [frame.unsqueeze(2).expand(4, -1, -1, -1, -1) for frame in frames[:3]]
            both, context = torch.cat([x, x]), text.expand(4, -1, -1)
            return dit(both, time.repeat(2), context, ref_latents=refs, frame_ends=ends, branches=branches)

        along = x.clone().requires_grad_(True)
        learnt = velocity(along)
        learnt.square().mean().backward()
        with torch.no_grad():
            away = float((learnt - velocity(x)).abs().max())
            more, less = (velocity(x + step * aside).square().mean() for step in (1e-2, -1e-2))
        mine["with gradients"] = [away, float((along.grad * aside).sum() / ((more - less) / 2e-2))]
        shapes = {"ref_latents": [[1, 16, 256]], "c_crossattn": [[1, 1000, 20]]}
        held = model.model.memory_required([1, 16, 1, 8, 8], shapes)
        model.detach()
        mine["held after unloading"] = 0 if dit.frame_cache is None else dit.frame_cache.bytes
        mine["asked for"] = [held, model.model.memory_required([1, 16, 1, 8, 8], shapes)]
        shapes["c_crossattn"] = [[1, 0, 20]]
        mine["asked for without text"] = model.model.memory_required([1, 16, 1, 8, 8], shapes)
    return out


if __name__ == "__main__":
    import probe_memory

    probe_memory.start(sys.argv[1])
    print(json.dumps(main()))
