"""Datasets and data engines. Everything here produces Documents and knows nothing of the model.

The engines, in the order data flows; `data …` is the command.

    web          pages that one has, or that --fetch brings -> clean Documents, by rules      data web
    dialogues    Documents of pages -> user-assistant dialogues, by language models           data dialogues
    synthetic    requests -> answers with images, by models                                   data synthetic
    pairs        videos and open sets of edits -> pairs of images with the change in words    data video, data editing
    sources      what any of these wrote, or others -> samples for training                   data check, train
    export       any source -> Parquet rows of NeMo Curator, or tars                          data export

What they share:

    runs         a run's folder: begun or continued, sharded, logged, reported
    pictures     images decoded in a limited process, classed, compared
    text         how alike two texts are, and personal data
"""
