"""How good a model is, in figures. `evaluate sketchbook` measures the bundled world with its exact checker.

pictures.py    one picture against the ideal: the new part right, the rest kept
scores.py      an answer (Document) against the truth of its Case -> checks in [0, 1], one function a task family
report.py      means, counts and intervals; the JSON report and the table
sheet.py       an overview of answers as one PNG
sketchbook.py  the command: draws cases, lets the model answer them, scores, writes the report
"""
