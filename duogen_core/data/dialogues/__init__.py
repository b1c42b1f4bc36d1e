"""Pages -> dialogues: what comes after the web engine, with language models (DuoGen, arXiv 2602.00508, web engine).

    Document of `data web` -> Draft (passages, pictures, places) -> pictures described -> each moved to just after the
    text it shows -> text rewritten -> cut into turns -> checked -> Document

Each step is a small function of a Draft (or what it became) and a writer: anything with `Client.ask`. Prompts are plain
files in prompts/; thresholds stand in presets/. What a page, an alt text or a picture says is data, and what a model
answers is checked here.
"""
