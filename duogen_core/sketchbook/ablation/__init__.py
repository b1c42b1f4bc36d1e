"""The paper in miniature: what each of DuoGen's choices is worth, measured on Sketchbook with the same budget each.

    python -m duogen_core ablation out=runs/ablation minutes=6

trainings.py   the questions, their arms, and one training of each: a table, the settings, the common start
measuring.py   how well an arm draws, and how well it writes
results.py     means, intervals, and differences case by case -> ablation.json, a Markdown table and a plot
command.py     the command: trains and measures what is not there yet
"""
