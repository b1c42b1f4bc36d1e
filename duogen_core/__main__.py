"""python -m duogen_core …"""

from __future__ import annotations

import os
import sys

from duogen_core import interrupt

if __name__ == "__main__":
    interrupt.at_once()  # before anything is imported that takes time
    from duogen_core.cli import main

    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of several processes of a training
        from duogen_core.training.distributed import leave

        leave(code)
    sys.exit(code)
