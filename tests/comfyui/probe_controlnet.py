"""Run by test_controlnet.py in a process of its own: our ControlNet through ComfyUI's Apply ControlNet and samplers.

python probe_controlnet.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> dict[str, Any]:
    import comfy.controlnet
    import comfy.model_base
    import comfy.sample
    import numpy as np
    import torch
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.host import controlnet, diffusion_model, loading

    import nodes
    from duogen_core.dit.controlnet import PackedControlNet
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.document import Picture
    from duogen_core.errors import DuoGenError
    from duogen_core.picture_sampling import control_pixels
    from duogen_core.sampling import initial_noise, sample_picture, sigmas
    from duogen_core.vae import PictureVae, new_vae

    steps, cfg, size = 4, 2.0, (8, 12)
    frames = [torch.randn(1, 16, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((8, 8), (12, 8))]
    text = torch.randn(1, 30, 20, generator=torch.Generator().manual_seed(0))
    ends, hidden = (4, 9), (22, 28)

    def randomised(module: Any) -> Any:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
        return module.eval()

    torch.manual_seed(0)
    core_vae = PictureVae(new_vae(8))
    vae, latents = loading.comfyui_vae(core_vae)
    dit = randomised(
        PackedCosmos(
            num_attention_heads=2, attention_head_dim=24, num_layers=4, mlp_ratio=2.0, text_embed_dim=20,
            adaln_lora_dim=8, attention="frame_causal",
        )
    )  # fmt: skip
    plain = PackedCosmos.from_config(dit.config).eval()
    plain.load_state_dict(dit.state_dict())
    fresh, net = PackedControlNet.of_dit(plain, 2).eval(), randomised(PackedControlNet.of_dit(plain, 2))
    second = PackedControlNet.of_dit(plain, 2).eval()
    second.load_state_dict(net.state_dict())
    model = diffusion_model.make_model(dit, shift=2.0, latent_format=latents)
    form = model.model.latent_format
    picture = (np.random.default_rng(3).random((130, 240, 3)) > 0.9).astype(np.uint8) * 255
    image = torch.from_numpy(picture)[None].float() / 255
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    ours, new = controlnet.control_of(second), controlnet.control_of(fresh)

    def conditioning() -> tuple[list, list]:
        refs = [form.process_out(frame.unsqueeze(2)) for frame in frames]
        values = {"reference_latents": refs, diffusion_model.FRAME_ENDS: ends}
        return [[text, values]], [[text, {**values, diffusion_model.HIDDEN_TEXT: hidden}]]

    def drawn(pair: tuple[list, list], batch: int = 1, one_by_one: bool = False, of: Any = model) -> torch.Tensor:
        noise = initial_noise(5, (batch, 16, 1, *size))
        if one_by_one:  # as where memory does not suffice for both branches at once
            of = of.clone()
            of.set_model_unet_function_wrapper(lambda run, args: run(args["input"], args["timestep"], **args["c"]))
            apart = diffusion_model.BranchCond.can_concat
            diffusion_model.BranchCond.can_concat = lambda self, other: False
        try:
            latent = comfy.sample.sample(
                of, noise, steps, cfg, "euler", "simple", *pair, torch.zeros_like(noise), disable_pbar=True, seed=5
            )
        finally:
            if one_by_one:
                diffusion_model.BranchCond.can_concat = apart
        return form.process_in(latent)[:, :, 0]

    def controlled(
        strength: float = 1.0, start: float = 0.0, end: float = 1.0, of: Any = ours, pair: Any = None
    ) -> Any:
        return apply(*(pair or conditioning()), of, image, strength, start, end, vae=vae)

    def expected(strength: float, batch: int = 1) -> torch.Tensor:
        """The core's own way, which `generate --control` takes."""
        hint = core_vae.encode(control_pixels(Picture(picture), size[1] * 8, size[0] * 8))
        own = text.expand(batch, -1, -1)
        texts = [(own, None), (own, hidden)]
        with torch.inference_mode():
            prepared = plain.prepare(frames, texts, size, frame_ends=ends)
            control = net.prepare(hint, texts, 4, size).steps_of(prepared, strength)
            noise = initial_noise(5, (batch, 16, 1, *size))[:, :, 0]
            return sample_picture(control.velocities, noise, sigmas(steps, 2.0), guidance=cfg)

    def away(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    def refusal(run: Any) -> str:
        try:
            run()
        except DuoGenError as error:
            return str(error)
        return ""

    without, whole = drawn(conditioning()), drawn(controlled())
    twice = controlled(0.5, pair=controlled(0.5))
    late, early = drawn(controlled(start=0.5)), drawn(controlled(end=0.5))
    out: dict[str, Any] = {
        "as the core": [away(whole, expected(1.0)), away(drawn(controlled(0.6)), expected(0.6))],
        "a batch of two": away(drawn(controlled(), batch=2), expected(1.0, batch=2)),
        "one branch after the other": away(drawn(controlled(), one_by_one=True), whole),
        "changes": away(whole, without),
        "a new one": torch.equal(drawn(controlled(of=new)), without),
        "strength 0": torch.equal(drawn(controlled(0.0)), without),
        "in no step": torch.equal(drawn(controlled(start=1.0, end=1.0)), without),
        "late, early": [away(late, without), away(late, whole), away(early, without), away(early, whole)],
        "two halves": away(drawn(twice), whole),
        "a new one behind it": away(drawn(controlled(of=new, pair=controlled())), whole),
        "without it again": torch.equal(drawn(conditioning()), without),
        "models": [type(each.model).__name__ for each in twice[0][0][1]["control"].get_models()],
        "held after a run": len(ours.prepared),
    }
    # A node that changes the text from step to step, by a wrapper or by an option: what was prepared is compared.
    made: list[int] = []
    original = PackedControlNet.prepare
    PackedControlNet.prepare = lambda *args: made.append(1) or original(*args)
    wrapped, optioned = model.clone(), model.clone()

    def changing(executor: Any, own: Any, conds: list, x: Any, time: torch.Tensor, options: Any) -> Any:
        for cond in (each for some in conds for each in some):
            known = cond["model_conds"]["c_crossattn"]
            cond["model_conds"] = {**cond["model_conds"], "c_crossattn": known._copy_with(text * time.mean())}
        return executor(own, conds, x, time, options)

    wrapped.add_wrapper(WrappersMP.CALC_COND_BATCH, changing)
    optioned.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    kept = drawn(controlled(), of=wrapped)
    controlnet.PREPARED, known = 0, controlnet.PREPARED
    out["text changes"] = away(kept, drawn(controlled(), of=wrapped))
    controlnet.PREPARED = known
    made.clear()
    drawn(controlled(pair=[[[text.double() * 1.1, each[0][1]]] for each in conditioning()]), of=optioned)
    out["prepared when the text stays"] = len(made)
    foreign = comfy.controlnet.ControlNet(torch.nn.Linear(1, 1))
    out["foreign"] = refusal(lambda: drawn(controlled(of=foreign)))
    out["foreign behind ours"] = refusal(lambda: drawn(controlled(of=ours, pair=controlled(of=foreign))))
    out["no vae"] = refusal(lambda: drawn(apply(*conditioning(), ours, image, 1.0, 0.0, 1.0)))
    out["foreign model"] = refusal(
        lambda: ours.copy().pre_run(comfy.model_base.BaseModel.__new__(comfy.model_base.Flux), None)
    )
    other = PackedControlNet.of_dit(PackedCosmos(num_attention_heads=3, attention_head_dim=24, text_embed_dim=20), 2)
    out["of another checkpoint"] = refusal(lambda: drawn(controlled(of=controlnet.control_of(other))))
    return out


if __name__ == "__main__":
    import probe_memory

    probe_memory.start(sys.argv[1])
    print(json.dumps(main()))
