"""The nodes: their schemas, tooltips and checks, one file per family, in the order in which a graph uses them.

loaders.py        models; prompt.py what the user asks; writing.py the language model writes
planning.py       the whole answer before anything is drawn
conditioning.py   CONDITIONING and size of the next image; sampling.py the sampler that knows the trained settings
review.py         a critic looks at an image, and has a bad one drawn again
interleave.py     a whole answer in one node; loop.py around nodes of the user's own
documents.py      answers shown, taken apart, saved and opened
sockets.py        the pack's own sockets, and widgets that several nodes have

A node checks its inputs and calls nodes/steps; ../extension.py registers them all.
"""
