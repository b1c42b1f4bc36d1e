"""Everything that touches ComfyUI's private side, so that a change of ComfyUI is mended here and nowhere else.

loading.py, model_management.py       files -> models under ComfyUI's memory management
diffusion_model.py, model_config.py   the DiT as a plain MODEL, and what it tells ComfyUI of itself
packed_forward.py, conditioning.py    one step of it, and what a CONDITIONING brings; transformer_options.py,
                                      controlnet.py, compiling.py, lora.py: what other nodes change of it
sampling.py, compatibility.py         sampling it, and whether what is connected belongs together
expansion.py, caches.py               nodes put into the running graph, and their results kept for the next run
display.py, images.py, metadata.py    progress on a node, IMAGE <-> Picture, the workflow in saved files
language.py                           errors and progress in the language of whoever runs the workflow
secrets.py                            keys of language model servers, from the environment or ComfyUI's settings
self_check.py                         says at start what this ComfyUI and this Python lack
settings.py, routes.py                what the user chose in ComfyUI's settings; what our page asks the server for
"""
