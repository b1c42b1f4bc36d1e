"""Datasets and data engines. Everything here produces Documents and knows nothing of the model.

The rooms, in the order data flows; `data …` is the command.

    web          pages that one has -> clean Documents, by rules                      data web
    fetch        brings pages and pictures from the web, only when asked for          data web --fetch
    dialogues    Documents of pages -> user-assistant dialogues, by language models   data dialogues
    synthetic    requests -> answers with pictures, by models                         data synthetic
    video        videos -> pairs of pictures with the change in words                 data video
    editing      open sets of edits -> pairs of pictures                              data editing
    sketchbook   a procedural world, drawn by code -> Documents with known truth      data make sketchbook
    interleaved  Documents <-> Parquet rows and tars of NeMo Curator                  data export
    sources      what any of these wrote -> samples for training                      data check, train

What they share:

    llm          access to language models, recorded and replayed
    pairs        pairs of pictures: values, rules, Documents, runs, report (video and editing)
    run_folder   a run's folder: how it is begun and gone on with
    shards       a shard of it while it is written; whole_file, its files
    in_order     threads whose results come in order
    presets      thresholds in YAML files
    run_log      reads the logs of any run -> yields (data stats), run_report (data view)
    report_parts what all reports are made of
    names_below  the files in a folder
"""
