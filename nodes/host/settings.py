"""What the user chose in ComfyUI's settings, as the page saves it on the server (web/duogen/settings.js).

Of several users (--multi-user) nobody knows here who runs the workflow: then every setting has its default. What can
stand in the workflow is no matter of the server at all: the page puts it into new nodes (web/duogen/first_run.js).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LIVE = "DuoGen.LivePreview"


def setting(name: str, default: Any) -> Any:
    """Returns the value of a setting; the default where it was never changed, or is of another type."""
    import folder_paths
    from comfy.cli_args import args

    if args.multi_user:
        return default
    try:
        file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return default
    value = settings.get(name, default) if isinstance(settings, dict) else default
    return value if type(value) is type(default) else default


def live_preview() -> bool:
    """Whether text is shown while it is written, and an image while it is sampled."""
    return setting(LIVE, True)
