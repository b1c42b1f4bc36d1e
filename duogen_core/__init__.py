"""DuoGen: answers made of text and pictures in turn. Importing this package imports no model code."""

from __future__ import annotations

__version__ = "0.1.0"
