"""Sketchbook: a flat-drawing world drawn by code, with an exact checker, so that quality is measured and not guessed.

scene.py    shapes on a nine-cell canvas, the values a picture is made from
draw.py     marks -> pixels
parts.py    a thing and its parts, one per step of a guide
things.py   all the things (things_catalogue.py), their pictures, and reading a step back; things_novel.py has what
            training never shows
boards.py   the plan boards
tasks/      one file per task family: a random case -> Document
checker.py  pixels -> scene, without knowing the request
"""
