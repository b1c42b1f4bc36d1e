"""Starts ComfyUI's own main.py, with stand-ins for what a test machine may lack.

In: `python launch.py COMFYUI_FOLDER [main.py's arguments]`. Out: the running server (this process becomes it).
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).resolve().parent
    comfyui = Path(sys.argv[1]).resolve()
    sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != here]  # ComfyUI has modules named `tests`, `utils`
    sys.path.insert(0, str(here))
    import standins

    replaced = standins.install()
    if os.environ.get("DUOGEN_TEST_BLOCKED"):
        import blocked_imports  # noqa: F401
    sys.path.remove(str(here))
    if replaced:
        print("stand-ins for: " + ", ".join(replaced), flush=True)
    sys.argv = [str(comfyui / "main.py"), *sys.argv[2:]]
    sys.path.insert(0, str(comfyui))
    os.chdir(comfyui)
    runpy.run_path(str(comfyui / "main.py"), run_name="__main__")


if __name__ == "__main__":
    main()
