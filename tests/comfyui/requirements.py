"""What a given ComfyUI needs to start in our test environment: its own requirements, less what launch.py stands in for.

In: `python requirements.py COMFYUI_FOLDER`. Out: lines for `pip install -r`. Left out are torch and what would drag in
another build of it (torchvision, torchaudio, spandrel), and the example workflows of ComfyUI, which are large.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LEFT_OUT = {"torch", "torchvision", "torchaudio", "spandrel", "comfyui-workflow-templates"}


def wanted(comfyui: Path) -> list[str]:
    lines = (comfyui / "requirements.txt").read_text("utf-8").splitlines()
    names = [(re.match(r"[A-Za-z0-9_.-]+", line.strip()), line.strip()) for line in lines]
    return [line for match, line in names if match and match[0].lower().replace("_", "-") not in LEFT_OUT]


if __name__ == "__main__":
    print("\n".join(wanted(Path(sys.argv[1]))))
