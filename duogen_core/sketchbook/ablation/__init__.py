"""The paper in miniature: what each of DuoGen's choices is worth, measured on Sketchbook with the same budget each.

    python -m duogen_core ablation out=runs/ablation minutes=6

arms.py        the questions, their arms, and the trainings that these need: a table
trainings.py   one training of the table: its settings, the common start, documents prepared once for all
alignment.py   wordless edits, which stage 1 should not learn from
pictures.py    how well an arm draws: in the ideal context, and in answers of its own
words.py       how well an arm writes: answers with ideal pictures put in
results.py     means, intervals, and differences case by case -> ablation.json and a Markdown table
plot.py        the same as a picture
command.py     the command: trains and measures what is not there yet
"""
