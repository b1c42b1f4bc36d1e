"""Run by test_stock_models.py in a process of its own: a MODEL and a VAE that ComfyUI loads once more itself.

python probe_reload.py COMFYUI CHECKPOINT. A CPU has no dynamic patcher, so a patcher is told that it is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(checkpoint: Path) -> dict[str, Any]:
    import comfy.model_patcher
    import folder_paths
    import torch
    from pack.nodes.host import loading

    loading.register_model_folder()
    folder_paths.add_model_folder_path("duogen", str(checkpoint.parent))
    *_, model, vae = loading.load_checkpoint(checkpoint.name)
    models = {"checkpoint": model, "dit": loading.load_dit(checkpoint.name), "vae": vae.patcher}
    found = {}
    for name, patcher in models.items():
        key = next(key for key, value in patcher.model.state_dict().items() if value.ndim > 1)
        patcher.add_patches({key: ("diff", (torch.ones_like(patcher.model.state_dict()[key]),))})
        patcher.is_dynamic = lambda: True
        clones = [patcher.clone(disable_dynamic=True), patcher.deepclone_multigpu(torch.device("cpu"))]
        mine = patcher.model.state_dict()
        weights = [clone.model.state_dict() for clone in clones]
        found[name] = {
            "other module": len({id(each.model) for each in (patcher, *clones)}) == 3,
            "same weights": all(
                own.keys() == mine.keys() and all(torch.equal(own[each], mine[each]) for each in mine)
                for own in weights
            ),
            "classic": type(clones[0]) is comfy.model_patcher.ModelPatcher,
            "patches kept": all(key in clone.patches for clone in clones),
        }
    return found


if __name__ == "__main__":
    import probe_memory

    comfyui, checkpoint = sys.argv[1:]
    probe_memory.start(comfyui)
    print(json.dumps(main(Path(checkpoint))))
