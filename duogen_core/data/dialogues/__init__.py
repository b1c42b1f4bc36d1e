"""Pages -> dialogues: what comes after the web engine, with language models (DuoGen, arXiv 2602.00508, web engine).

    draft       Document of `data web` -> Draft: passages, pictures, places
    describe    describes each picture
    placement   moves each picture to just after the text it shows, and drops copies that this brings side by side
    rewrite     writes the text anew
    converse    cuts it into turns, makes the Document of them and checks it as a whole
    engine      takes one Document through all steps

Each step is a small function of a Draft (or what it became) and a writer: anything with `Client.ask`. Prompts are plain
files in prompts/; thresholds stand in presets/. What a page, an alt text or a picture says is data, and what a model
answers is checked here (`rules`).
"""
