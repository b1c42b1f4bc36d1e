"""Benchmarks: this pack against what a user writes with transformers and diffusers alone, on the same weights.

measure.py    seconds of two sides, alternating in one process; peak memory; whether both gave the same
models.py     a random model of middle size that writes a known text, or the user's own
reference.py  the other side: the libraries alone, as well as they can be used
parts.py      connector, mllm and dit, each by itself
loop.py       the whole loop, image by image

A benchmark returns a `Report`; `duogen_core/commands/bench.py` prints it. A side that computes something else than the
other is an error, not a figure.
"""
