"""The English locale is what the nodes themselves say. This writes it, after their words have changed.

In: `python english_locale.py http://127.0.0.1:8188`, a running ComfyUI with this pack. Out: locales/en/nodeDefs.json.
The Chinese one is translated by hand; test_locales.py says what it lacks.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"


def escape(text: str) -> str:
    """The front end reads a translation as a message of vue-i18n, in which these characters have a meaning."""
    return re.sub(r"[@${}|%]", lambda found: "{'" + found[0] + "'}", text.replace("\\", "\\\\"))


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """nodeDefs.json for the nodes of this pack that a user meets, from the server's /object_info."""
    return {
        name: _node(info)
        for name, info in sorted(object_info.items())
        if name.startswith("DuoGen") and not info.get("dev_only")
    }


def _node(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    entry = {
        "display_name": info["display_name"],
        "description": escape(info["description"]),
        "inputs": {
            name: {"name": name, "tooltip": escape(specification[1]["tooltip"])}
            for name, specification in sorted(inputs.items())
        },
    }
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    if info["output_name"]:
        entry["outputs"] = {str(i): {"name": name, "tooltip": escape(tip)} for i, (name, tip) in enumerate(outputs)}
    return entry


def main(address: str) -> None:
    with urllib.request.urlopen(f"{address.rstrip('/')}/object_info", timeout=60) as answer:
        entries = english(json.load(answer))
    file = LOCALES / "en" / "nodeDefs.json"
    file.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
