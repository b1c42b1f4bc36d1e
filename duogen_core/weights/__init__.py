"""Files of weights: what is in them, reading, writing, and getting them into a module. Nothing is guessed silently.

    headers.py      one safetensors file: its header, and every fault named; never a pickle
    reading.py      weights in one file or several: headers first, tensors one by one, changes noticed
    module.py       weights -> a torch module: the one loader of MLLM, DiT, connector and VAE
    quantised.py    which layers of a file are quantised, fp8 layers that run anywhere, and how `convert` writes them
    cosmos_keys.py  Cosmos-Predict2.5: the names of its tensors in each layout, its configuration from their shapes
    wan_keys.py     the same of Wan 2.1 text-to-video and Wan 2.2 TI2V-5B
    lora.py         LoRA files: whose naming, for which model, and whether it fits
    writing.py      safetensors written in one pass: whole or not at all
    pickled.py      the official .pt, for `convert` alone: nothing else in this project may import it

Adding a published model = its names and shapes in a file like cosmos_keys.py, a loader like dit/loading.py, a key list
under tests/core/key_lists, and its line in identify.py.
"""
