"""The web engine: pages in, clean interleaved Documents out (DuoGen, arXiv 2602.00508: the steps before the LLM).

    inputs (WARC files, folders of HTML, MHTML) -> encodings -> walker (image_elements, block_writer) -> page
    -> pictures (found by their addresses, decoded in a limited process, judged; no copies) -> compose -> Document

`page` has the values that go from step to step, and the rules for pages; begin there, and at `engine`, which calls the
steps in this order.

Every rule is a small function with a name, a threshold in a preset (presets/*.yaml) and a value that is logged. A page
is a pure function of its bytes, its input's pictures and the preset (`engine`); a run does many, in shards that are
written whole, here or with Ray. `fetching` brings listed pages and missing pictures, only when asked for; otherwise
what is not in the input is missing.
"""
