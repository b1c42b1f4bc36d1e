"""How long a stranger waits for the first answer: an empty ComfyUI, this pack in it, a browser that was never there.

    python tests/bench/first_look.py [--rounds 3] [--template "01 Illustrated guide"]

A real ComfyUI ($COMFYUI_PATH or ~/comfy/ComfyUI) on the CPU, and a Chromium ($CHROMIUM_PATH, or the system's). Each
round starts with a new folder and a new browser; tests/comfyui/browser/first_look.py says what is done. Out: JSON, the
actions and, for each thing that was seen, the median of the seconds: from ComfyUI's start until it answers, then from
the moment the page was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOUSE = 4  # images of duogen-tiny's answer to the template's request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--template", default="01 Illustrated guide")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "comfyui"), str(ROOT / "tests" / "comfyui" / "browser")]
    import first_look
    from playwright.sync_api import sync_playwright
    from server import Server, find_comfyui

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            begun = time.monotonic()
            server = Server(find_comfyui(), Path(folder))
            try:
                server.wait()
                seconds = {"ComfyUI answers": round(time.monotonic() - begun, 1)}
                server.post("/settings", first_look.SETTINGS)
                browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
                page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
                page.set_default_timeout(180_000)
                address = f"http://127.0.0.1:{server.port}"
                rounds.append(seconds | first_look.look(page, address, options.template, HOUSE))
                browser.close()
            finally:
                server.stop()
        print(rounds[-1], file=sys.stderr, flush=True)
    medians = {what: statistics.median(each[what] for each in rounds) for what in rounds[0]}
    print(json.dumps({"actions": list(first_look.ACTIONS), "rounds": len(rounds), "seconds": medians}, indent=2))


if __name__ == "__main__":
    main()
