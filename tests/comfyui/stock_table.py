"""The list of ComfyUI's own nodes on our MODEL: which run and what they must change, which are refused and how.

docs/stock-nodes.md shows it; test_stock_table.py runs every row through a real server and holds the page to it. What
needs more than one node between the loader and the KSampler is told in OTHERS, by the tests that prove it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SKIPPED = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
EXACT = {"scale_x": 1.0, "shift_x": 0.0, "scale_y": 1.0, "shift_y": 0.0, "scale_t": 1.0, "shift_t": 0.0}
WHOLE = {"q": 1.0, "k": 1.0, "v": 1.0, "out": 1.0}
WINDOWS = {
    "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid",
    "freenoise": False, "split_conds_to_windows": False,
}  # fmt: skip
GUIDANCE, STRONG, ATTENTION, BLOCKS, SPEED, TRAINED = (
    "guidance", "strong guidance", "attention", "blocks", "speed", "sampling",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A node that takes our MODEL and gives one.

    acts: inputs with which the image must become another one; None: it never may. rests: inputs with which it must stay
    as it is; None: there are none. refused: what the sentence says. about: of docs/stock-nodes.md.
    sampler: inputs of KSampler, for both.
    """

    node: str
    about: str
    acts: dict[str, Any] | None = None
    rests: dict[str, Any] | None = None
    refused: str = ""
    sampler: dict[str, Any] = field(default_factory=dict)
    said: str = ""  # what the server's log says
    trained: bool = False  # shown on the bundled model: the random one's two branches are too much alike


HARD = {"cfg": 6.0}
ROWS = (
    # how strongly, and with what, the text guides
    Row("RescaleCFG", "brings the contrast of strong guidance back", {"multiplier": 1.0}, {"multiplier": 0.0},
        sampler={"cfg": 40.0}),
    Row("CFGZeroStar", "rescales the negative before guidance", {}, sampler={"cfg": 40.0}),
    Row("CFGNorm", "keeps the guided latent's size", {"strength": 0.5}, sampler=HARD),
    Row("TCFG", "drops what of the negative points elsewhere", {}, sampler=HARD),
    Row("APG", "splits guidance into parallel and orthogonal", {"eta": 0.0, "norm_threshold": 5.0, "momentum": 0.0},
        sampler=HARD),
    Row("Mahiro", "leans guidance to the positive", {}, sampler=HARD, trained=True),
    Row("RenormCFG", "limits the guided latent's size", {"cfg_trunc": 100.0, "renorm_cfg": 0.5},
        {"cfg_trunc": 100.0, "renorm_cfg": 0.0}, sampler=HARD),
    Row("FreSca", "scales guidance by frequency", {"scale_low": 0.2, "scale_high": 3.0, "freq_cutoff": 1},
        {"scale_low": 1.0, "scale_high": 1.0, "freq_cutoff": 1}, sampler=HARD),
    Row("Epsilon Scaling", "scales the predicted noise", {"scaling_factor": 1.4}, {"scaling_factor": 1.0}),
    Row("TemporalScoreRescaling", "rescales the score over the steps", {"tsr_k": 0.3, "tsr_sigma": 1.0},
        {"tsr_k": 1.0, "tsr_sigma": 1.0}),
    Row("VideoLinearCFGGuidance", "guidance that grows over a batch: a single image gets *min_cfg*", {"min_cfg": 6.0},
        {"min_cfg": 2.0}),
    Row("VideoTriangleCFGGuidance", "guidance that grows and falls over a batch: a single image gets *min_cfg*",
        {"min_cfg": 6.0}, {"min_cfg": 2.0}),
    # inside the model
    Row("SkipLayerGuidanceDiT", "leaves blocks out in a further pass and leads away from it; name them in "
        "*double_layers*", {**SKIPPED, "scale": 3.0, "rescaling_scale": 0.0},
        {**SKIPPED, "scale": 3.0, "rescaling_scale": 0.0, "start_percent": 1.0}),
    Row("SkipLayerGuidanceDiTSimple", "leaves blocks out of the negative", SKIPPED, {**SKIPPED, "start_percent": 1.0}),
    Row("PerturbedAttentionGuidance", "leads away from a pass in whose middle block each token sees itself alone",
        {"scale": 3.0}, {"scale": 0.0}),
    Row("LTXVSpatioTemporalGuidance", "the same in blocks of your choice", {
        "scale": 3.0, "blocks": "0, 1", "start_percent": 0.0, "end_percent": 1.0},
        {"scale": 0.0, "blocks": "0, 1", "start_percent": 0.0, "end_percent": 1.0}),
    Row("NAGuidance", "leads attention between images away from the negative's; where memory splits the batch, "
        "nothing", {"nag_scale": 50.0, "nag_alpha": 1.0, "nag_tau": 10.0},
        {"nag_scale": 50.0, "nag_alpha": 0.0, "nag_tau": 10.0}, sampler={"steps": 6}, trained=True),
    Row("ScaleROPE", "stretches rows and columns, and the distance between images", {**EXACT, "scale_x": 3.0}, EXACT),
    Row("UNetSelfAttentionMultiply", "scales the weights of attention between images", {**WHOLE, "v": 0.3}, WHOLE),
    Row("UNetCrossAttentionMultiply", "scales the weights of attention to the text", {**WHOLE, "v": 3.0}, WHOLE),
    Row("ModelAttentionBackend", "takes this attention function", rests={"attention": "pytorch attention"}),
    Row("ModelComputeDtype", "calculates in this precision", {"dtype": "bf16"}, {"dtype": "fp32"}),
    # how it is sampled
    Row("ModelSamplingSD3", "sets the flow's shift", {"shift": 6.0}, {"shift": 2.0}),
    Row("ModelSamplingAuraFlow", "sets the flow's shift", {"shift": 6.0}, {"shift": 2.0}),
    Row("ModelSamplingFlux", "sets the shift by the size", {
        "max_shift": 3.0, "base_shift": 0.5, "width": 2048, "height": 2048}),
    Row("ModelNoiseScale", "scales the noise that is begun with", {"noise_scale": 2.0}, {"noise_scale": 1.0}),
    Row("DifferentialDiffusion", "works with a mask of grey values (without one: nothing)", rests={"strength": 1.0}),
    # what an image has not got
    Row("ContextWindowsManual", "windows over a batch; an image has one frame, and the log says that nothing is cut",
        rests={**WINDOWS, "context_length": 4, "context_overlap": 1, "dim": 2, "cond_retain_index_list": "",
               "latent_retain_index_list": "", "causal_window_fix": True}, said="Not using context windows"),
    Row("WanContextWindowsManual", "as above", rests={
        **WINDOWS, "context_length": 81, "context_overlap": 30, "retain_first_frame": False},
        said="Not using context windows"),
    Row("LTXVContextWindows", "as above", rests={
        **WINDOWS, "context_length": 145, "context_overlap": 40, "retain_first_frame": False},
        said="Not using context windows"),
    # refused
    Row("FreeU", "made for the layers of a U-Net", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
        refused="asks for the model_channels of a U-Net"),
    Row("FreeU_V2", "made for the layers of a U-Net", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
        refused="asks for the model_channels of a U-Net"),
    Row("HyperTile", "made for the layers of a U-Net", {
        "tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}, refused="HyperTile (nodes_hypertile)"),
    Row("TomePatchModel", "made for the layers of a U-Net", {"ratio": 0.5}, refused="TomePatchModel (nodes_tomesd)"),
    Row("SelfAttentionGuidance", "made for the layers of a U-Net", {"scale": 0.5, "blur_sigma": 2.0},
        refused="SelfAttentionGuidance (nodes_sag)"),
    Row("PatchModelAddDownscale", "made for the layers of a U-Net", {
        "block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
        "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"},
        refused="PatchModelAddDownscale (nodes_model_downscale)"),
    Row("FluxKVCache", "made for Flux; this MODEL keeps what it needs of earlier images by itself", {},
        refused="Flux KV Cache"),
    Row("LTXVModalityGuidance", "made for the sound of LTXV", {
        "modality_scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}, refused="LTXV Modality Guidance"),
    Row("ChromaRadianceOptions", "made for Chroma Radiance", {
        "preserve_wrapper": True, "start_sigma": 1.0, "end_sigma": 0.0, "nerf_tile_size": 8,
        "force_sequential_txt_ids": False},
        refused="Chroma Radiance Options"),
    Row("ModelSamplingDiscrete", "made for models that predict noise", {"sampling": "eps", "zsnr": False},
        refused="trained for flow matching"),
    Row("ModelSamplingContinuousEDM", "made for models that predict noise", {
        "sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002}, refused="trained for flow matching"),
    Row("ModelSamplingContinuousV", "made for models that predict noise", {
        "sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03}, refused="trained for flow matching"),
    Row("ModelSamplingStableCascade", "made for models that predict noise", {"shift": 2.0},
        refused="trained for flow matching"),
)  # fmt: skip

# node ids -> what they do, and the tests that prove it.
OTHERS = {
    ("KSampler", "KSamplerAdvanced"): (
        "sample", ("test_stock_nodes.py::test_ksampler_settings_count", "test_stock_table.py::test_two_halves")),
    ("SamplerCustomAdvanced", "CFGGuider", "RandomNoise", "KSamplerSelect", "BasicScheduler"): (
        "the same sampling from its parts", ("test_stock_nodes.py::test_custom_sampler_with_guider_is_ksampler",)),
    ("BasicGuider",): ("no guidance", ("test_stock_table.py::test_guiders",)),
    ("DualCFGGuider",): ("guides by two texts", ("test_stock_table.py::test_guiders",)),
    ("PerpNegGuider",): (
        "guides by what of the negative stands at a right angle", ("test_stock_table.py::test_guiders",)),
    ("EasyCache",): ("leaves steps out, and says how many", ("test_stock_table.py::test_caches_leave_steps_out",)),
    ("LazyCache",): ("leaves steps out, and says how many", ("test_stock_table.py::test_caches_leave_steps_out",)),
    ("LatentApplyOperationCFG", "LatentOperationTonemapReinhard"): (
        "works on the guidance's latent (LatentOperationSharpen fails: it takes no latents with frames)",
        ("test_stock_table.py::test_latent_operation",)),
    ("SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning"): (
        "draw inside a mask and keep the rest", (
            "test_stock_nodes.py::test_inpainting_keeps_what_the_mask_leaves_out",
            "test_stock_table.py::test_inpainting")),
    ("ConditioningSetArea", "ConditioningSetMask", "ConditioningCombine"): (
        "another text in a region", ("test_stock_table.py::test_regions",)),
    ("ConditioningSetTimestepRange",): (
        "a text for some of the steps", ("test_stock_table.py::test_a_text_for_some_steps",)),
    ("ReferenceLatent",): (
        "one more image to look at", ("test_stock_nodes.py::test_stock_reference_latent",)),
    ("ControlNetApplyAdvanced",): (
        "a ControlNet of DuoGen Load ControlNet; another model's is refused",
        ("test_controlnet.py::test_images_are_the_cores_at_any_strength_and_in_any_batch",
         "test_patches.py::test_what_has_no_place_is_refused")),
    ("LoraLoaderModelOnly",): ("a LoRA", ("test_stock_nodes.py::test_lora_counts_by_its_strength",)),
    ("GLIGENTextBoxApply", "HypernetworkLoader"): (
        "refused: made for other models' layers", ("test_patches.py::test_what_has_no_place_is_refused",)),
}  # fmt: skip
