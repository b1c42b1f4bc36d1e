"""Model files as other people publish them -> our modules. One file here per kind of file; nothing is guessed silently.

    reading.py      weights in one safetensors file or several: headers first, tensors one by one, changes noticed
    quantised.py    which layers of a file are quantised, and how; fp8 layers that run anywhere
    quantise.py     the way there: matrices of eight bits, for `convert --quantise`
    own_dit.py      the DiT of a DuoGen checkpoint, quantised or not, mapped from its file
    cosmos_keys.py  Cosmos-Predict2.5: the names of its tensors in each layout, its configuration from their shapes
    cosmos.py       Cosmos-Predict2.5 -> PackedCosmos, and its crossattn_proj -> Connector
    lora.py         LoRA files: whose naming, for which model, and whether it fits
    adapter.py      the numbers of a LoRA for the MLLM, by the names of its modules
    identify.py     what a file or folder is, from headers and JSON alone
    memory.py       what a model needs in memory, as a sum that can be shown
    writing.py      safetensors written in one pass: whole or not at all
    pickled.py      the official .pt, for `convert` alone: nothing else in this project may import it

Adding a published model = its names and shapes in a file like cosmos_keys.py, a loader like cosmos.py, a key list under
tests/core/key_lists, and its line in identify.py.
"""
