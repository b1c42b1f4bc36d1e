"""Pages -> dialogues: what comes after the web engine, with language models (DuoGen, arXiv 2602.00508, web engine).

    draft         Document of `data web` -> Draft: passages, pictures, places
    describe      each picture described
    placement     each moved to just after the text it shows (placement_model: a model is asked)
    copies        of two that show the same and now stand side by side one is dropped
    rewrite       text written anew
    converse      cut into turns
    compose       -> Document, checked as a whole
    engine, run   all steps for one Document; for all of them, in shards

Each step is a small function of a Draft (or what it became) and a writer: anything with `Client.ask`. Prompts are plain
files in prompts/; thresholds stand in presets/. What a page, an alt text or a picture says is data, and what a model
answers is checked here (`rules`).
"""
