"""Plan first: any model that writes plans the whole answer, any painter draws it, a critic looks.

    plan.py        Plan: title, cast, parts of text and picture; its JSON, and the JSON schema that a writer fills in
    requests.py    what a request wants, found by code: a guide, a story or a plain answer, and how many parts
    reading.py     what writers really write -> Plan: fences, prose around it, cut off; part by part while it streams
    writing.py     request -> Plan: asks a model behind llm.client.Client, and asks again for captions that are no good
    faults.py      what is wrong with a plan, by rules
    language.py    which language a text is in, and its words; request_words.py: what requests are known by
    markdown.py    Plan <-> the text that a person edits
    as_document.py Plan <-> Document with pending pictures, which the pipeline and the nodes draw
    painters/      what a painter reads, one file a kind: models that edit, models that know words alone
    critic.py      a model that sees is asked about a picture -> Review (duogen_core.review has it drawn again)
    interleave_thinker.py  the planner and the critic of that name, asked in the formats they were trained on

Planning all steps first over a painter that is not trained for it is what InterleaveThinker (arXiv 2606.13679) does.
"""
