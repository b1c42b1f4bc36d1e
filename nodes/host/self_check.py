"""Says in a sentence, when ComfyUI starts, what is missing here: a newer ComfyUI, names in it, Python packages.

Most of what the pack uses is ComfyUI's private side, which may change in any release. A missing name would otherwise
show up as an AttributeError in the middle of somebody's run. And who copies the pack's folder often forgets its
requirements.txt: the nodes load all the same, the page says so once, and a node that needs the package names the
command (`explained`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

OLDEST = "0.28"
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# Packages whose module has another name.
MODULES = {"fpdf2": "fpdf", "markdown-it-py": "markdown_it", "pillow": "PIL", "pyyaml": "yaml"}
# Module -> names in it. Why each is needed stands where it is used.
USED: Mapping[str, tuple[str, ...]] = {
    "comfy_api.latest": ("Caching", "ComfyExtension", "io"),
    "comfy_execution.graph_utils": ("ExecutionBlocker", "GraphBuilder", "is_link"),
    "comfy_execution.progress": ("NodeState", "get_progress_state"),
    "comfy_execution.utils": ("get_executing_context",),
    "comfy.cli_args": ("args", "parser"),
    "comfy.conds": ("CONDConstant", "CONDRegular"),
    "comfy.controlnet": ("ControlBase",),
    "comfy.latent_formats": ("Wan21", "Wan22"),
    "comfy.ldm.common_dit": ("pad_to_patch_size",),
    "comfy.ldm.modules.attention": ("attention_sub_quad", "optimized_attention"),
    "comfy.ldm.wan.vae": ("WanVAE",),
    "comfy.ldm.wan.vae2_2": ("WanVAE",),
    "comfy.lora": ("model_lora_keys_unet",),  # looked up by its name: see lora.py
    "comfy.model_base": ("ModelType", "QwenImage"),
    "comfy.model_management": (
        *(
            "InterruptProcessingException",
            "archive_model_dtypes",
            "dtype_size",
            "get_total_memory",
            "is_device_cpu",
            "loaded_models",
            "total_ram",
            "get_torch_device",
            "intermediate_device",
            "intermediate_dtype",
            "is_oom",
        ),
        *("load_models_gpu", "processing_interrupted", "soft_empty_cache", "text_encoder_device"),
        *("text_encoder_offload_device", "throw_exception_if_processing_interrupted", "unet_dtype"),
        *("unet_manual_cast", "unet_offload_device", "unload_all_models"),
    ),
    "comfy.model_patcher": ("CoreModelPatcher", "ModelPatcher"),
    "comfy.model_sampling": ("CONST", "ModelSamplingDiscreteFlow"),
    "comfy.ops": ("CastWeightBiasOp", "cast_bias_weight", "pick_operations", "uncast_bias_weight"),
    "comfy.options": ("args_parsing",),
    "comfy.patcher_extension": ("CallbacksMP", "WrapperExecutor", "WrappersMP", "get_all_wrappers"),
    "comfy.sample": ("fix_empty_latent_channels", "prepare_noise", "sample", "sample_custom"),
    "comfy.samplers": ("KSAMPLER", "KSampler", "calculate_sigmas", "sampler_object"),
    "comfy.sd": ("VAE",),
    "comfy.supported_models_base": ("BASE",),
    "comfy.taesd.taehv": ("TAEHV",),
    "comfy.utils": ("ProgressBar", "get_attr", "repeat_to_batch_size"),
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


@lru_cache(maxsize=1)
def packages() -> dict[str, str]:
    """{name of the module: what requirements.txt says of its package}, of those that this Python needs."""
    from packaging.requirements import Requirement

    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text("utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    here = [each for each in wanted if each.marker is None or each.marker.evaluate()]
    return {MODULES.get(each.name.lower(), each.name): f"{each.name}{each.specifier}" for each in here}


def missing_packages() -> list[str]:
    """Returns the packages of requirements.txt that are not installed, or too old, as it names them."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    found = []
    for module, requirement in packages().items():
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        wanted = Requirement(requirement)
        try:
            fits = wanted.specifier.contains(version(wanted.name), prereleases=True)
        except PackageNotFoundError:
            fits = True  # there, by another name
        if not there or not fits:
            found.append(requirement)
    return found


def install_command() -> str:
    """What a user types: the Python that runs ComfyUI, and this pack's own file."""
    return f'"{sys.executable}" -m pip install -r "{REQUIREMENTS}"'


def lacking() -> str:
    """One sentence about Python packages, for the log and the page; "" where nothing is missing."""
    try:
        names = missing_packages()
    except Exception as error:  # never the reason why the pack does not load
        logging.debug("DuoGen: the installed packages could not be looked up: %s", error)
        return ""
    if not names:
        return ""
    return (
        f"DuoGen needs Python packages that are missing or too old here: {', '.join(names)}. Install them and start "
        f"ComfyUI again: {install_command()}"
    )


def explained(error: Exception) -> str:
    """One sentence for an import that failed while a node ran; "" where it is no package of requirements.txt."""
    # transformers tells of a failed import in an error of its own, raised from the first one, and so does the core.
    seen: BaseException | None = error
    while seen is not None:
        top = (getattr(seen, "name", None) or "").partition(".")[0]
        if isinstance(seen, ImportError) and top in packages():
            # A package may be there, and lack a package of its own or a name that a newer version has.
            why = "is not installed" if f"No module named '{top}'" in str(seen) else f"cannot be used ({seen})"
            return (
                f"The Python package {packages()[top]}, which this node needs, {why}. Install this pack's requirements "
                f"and start ComfyUI again: {install_command()}"
            )
        seen = seen.__cause__ or seen.__context__
    return ""


def version_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def too_old() -> str:
    """One sentence where this ComfyUI is older than what the pack needs; else ""."""
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "older than 0.3"
    if version_numbers(__version__) >= version_numbers(OLDEST):
        return ""
    return f"DuoGen needs ComfyUI {OLDEST} or newer, and this is {__version__}: update ComfyUI."


def report() -> None:
    """Writes a line to the log for each thing that is missing. The nodes load all the same: some may still work."""
    if old := too_old():
        logging.warning("%s", old)
    if lacks := missing():
        logging.warning(
            "DuoGen: this ComfyUI lacks %s, which the pack uses; some nodes will fail. Update ComfyUI (at least %s) "
            "and this pack.",
            *(", ".join(lacks), OLDEST),
        )
    if said := lacking():
        logging.warning("%s", said)


def without_nodes(error: Exception) -> type[Any]:
    """The extension for a ComfyUI that is too old for the nodes: none, after the sentence of `report`, where a
    traceback would say nothing to a user. In any other ComfyUI the error is a fault of ours, and is raised again."""
    from comfy_api.latest import ComfyExtension

    if not too_old():
        raise error

    class Nothing(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return []

    return Nothing
