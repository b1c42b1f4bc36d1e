"""Everything that touches ComfyUI's private side, so that a change of ComfyUI is mended here and nowhere else.

loading.py, model_management.py       files -> models under ComfyUI's memory management
diffusion_model.py, sampling.py       the DiT as a plain MODEL, and sampling it; lora.py, compatibility.py
expansion.py, caches.py               nodes put into the running graph, and their results kept for the next run
display.py, images.py, metadata.py    progress on a node, IMAGE <-> Picture, the workflow in saved files
self_check.py                         names at start what this ComfyUI lacks
"""
