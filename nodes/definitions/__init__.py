"""The nodes: their schemas, tooltips and checks, one file per family, in the order in which a graph uses them.

loaders.py        models; prompt.py what the user asks; writing.py the language model writes
conditioning.py   CONDITIONING and size of the next image; sampling.py the sampler that knows the trained settings
loop.py           whole answers: DuoGen Interleave, Loop Open and Loop Close
documents.py      answers shown, taken apart, saved and opened
sockets.py        the pack's own sockets, and widgets that several nodes have

A node checks its inputs and calls nodes/steps; ../extension.py registers them all.
"""
