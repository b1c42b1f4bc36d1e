"""DuoGen: answers made of text and pictures in turn. Importing this package imports no model code.

Begin at pipeline.py, the loop that writes, draws and looks. Its parts are mllm/, connector.py, sampling.py, dit/ and
vae.py; checkpoint.py loads them as one model. docs/architecture.md follows three walks through the code, file by file.
"""

from __future__ import annotations

__version__ = "1.0.0"
