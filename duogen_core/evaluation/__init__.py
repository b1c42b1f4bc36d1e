"""What every evaluation shares, whatever it measures: it knows no benchmark and no world.

answering.py  answers prompts with a model, in this process or in several
report.py     means, counts and intervals; the JSON report, the table, the overview image

A benchmark is a command of its own (`evaluate NAME`) that brings prompts and scores the answers; see
sketchbook/evaluation.py for one.
"""
