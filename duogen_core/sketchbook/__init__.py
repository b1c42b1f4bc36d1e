"""Sketchbook: a flat-drawing world drawn by code, with an exact checker, so that quality is measured and not guessed.

The world
  scene.py             what an image is made from: shapes of a palette on a nine-cell canvas
  drawing.py           coloured polygons -> pixels
  things.py            what can be drawn step by step, and reading a step back
  boards.py            the boards of the plan task: drawing, reading, solving
  checker.py           pixels -> scene, without knowing the request
The tasks
  tasks/               one file per family of tasks: a random case, with its ideal answer as a Document
  source.py            the tasks as an endless source of documents, and what training asks of them besides
  scores.py            an answer against its case
  evaluation.py        the command `evaluate sketchbook`
What the small model learns before stage 1
  vae.py               its VAE
  pretrain.py          its language model from nothing, then its vision tower (vision.py)
  probes.py            an auxiliary loss of its language model in stage 1
  bundled.py           all its parts in one command
  ablation/            what each of DuoGen's choices is worth, measured here
"""
