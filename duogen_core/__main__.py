"""python -m duogen_core …"""

from __future__ import annotations

import sys

from duogen_core import interrupt

if __name__ == "__main__":
    interrupt.at_once()  # before anything is imported that takes time
    from duogen_core.cli import main

    sys.exit(main())
