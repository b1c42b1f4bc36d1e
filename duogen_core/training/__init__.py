"""Training of the small model from nothing, on its own world (paper section 3.3 and 4.1; design.md section 4).

loop.py       what every script shares: run folder, checkpoints, exact resume, progress, schedule, EMA, loss curve
curve.py      the loss curve as a PNG
tokenizer.py  byte-level BPE on Sketchbook text
vae.py        the picture VAE
fast.py       the vision tower in large batches
vision.py     warm-up of the MLLM's vision tower
mllm.py       the MLLM: from scratch on Sketchbook text and pictures, then stage 1
stage2.py     connector and DiT, MLLM frozen
"""
