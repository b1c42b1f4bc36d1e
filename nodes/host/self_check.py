"""Names what this ComfyUI lacks of what the pack uses, once, when it starts.

Most of it is ComfyUI's private side, which may change in any release. A missing name would otherwise show up as an
AttributeError in the middle of somebody's run.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping

OLDEST = "0.28"
# Module -> names in it. Why each is needed stands where it is used.
USED: Mapping[str, tuple[str, ...]] = {
    "comfy_api.latest": ("Caching", "ComfyExtension", "io"),
    "comfy_execution.graph_utils": ("ExecutionBlocker", "GraphBuilder", "is_link"),
    "comfy_execution.progress": ("NodeState", "get_progress_state"),
    "comfy_execution.utils": ("get_executing_context",),
    "comfy.conds": ("CONDConstant",),
    "comfy.latent_formats": ("Wan21",),
    "comfy.ldm.common_dit": ("pad_to_patch_size",),
    "comfy.ldm.wan.vae": ("WanVAE",),
    "comfy.lora": ("model_lora_keys_unet",),  # looked up by its name: see lora.py
    "comfy.model_base": ("ModelType", "QwenImage"),
    "comfy.model_management": (
        *("archive_model_dtypes", "get_torch_device", "intermediate_device", "intermediate_dtype", "is_oom"),
        *("load_models_gpu", "processing_interrupted", "soft_empty_cache", "text_encoder_device"),
        *("text_encoder_offload_device", "throw_exception_if_processing_interrupted", "unet_dtype"),
        *("unet_manual_cast", "unet_offload_device", "unload_all_models"),
    ),
    "comfy.model_patcher": ("CoreModelPatcher",),
    "comfy.model_sampling": ("CONST", "ModelSamplingDiscreteFlow"),
    "comfy.ops": ("CastWeightBiasOp", "cast_bias_weight", "pick_operations", "uncast_bias_weight"),
    "comfy.patcher_extension": ("CallbacksMP", "WrapperExecutor", "WrappersMP", "get_all_wrappers"),
    "comfy.sample": ("fix_empty_latent_channels", "prepare_noise", "sample", "sample_custom"),
    "comfy.samplers": ("KSAMPLER", "KSampler", "calculate_sigmas", "sampler_object"),
    "comfy.sd": ("VAE",),
    "comfy.supported_models_base": ("BASE",),
    "comfy.taesd.taehv": ("TAEHV",),
    "comfy.weight_adapter": ("LoRAAdapter", "WeightAdapterBase"),
    "latent_preview": ("Latent2RGBPreviewer", "get_previewer"),
    "node_helpers": ("conditioning_set_values",),
}


def missing(used: Mapping[str, tuple[str, ...]] = USED) -> list[str]:
    """Returns what is not there, as "module.name"."""
    found = []
    for module, names in used.items():
        try:
            there = importlib.import_module(module)
        except ImportError:
            there = None
        found += [f"{module}.{name}" for name in names if not hasattr(there, name)]
    return found


def report() -> None:
    """Writes one line to the log where something is missing. The nodes load all the same: some may still work."""
    if lacks := missing():
        logging.warning(
            "DuoGen: this ComfyUI lacks %s, which the pack uses; some nodes will fail. Update ComfyUI (at least %s) "
            "and this pack.",
            *(", ".join(lacks), OLDEST),
        )
