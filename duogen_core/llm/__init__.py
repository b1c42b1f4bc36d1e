"""Language models that answer by a schema: behind an OpenAI-compatible endpoint, or run here.

    prompt (a plain file) + data -> messages -> client -> transport -> answer (JSON: checked against a schema)

    client, answers, messages   asks, checks, counts, tries again, records and replays
    endpoint                    the transport to a server (vLLM, llama.cpp, Ollama, a service)
    local_model                 the transport to a model run here; own_mllm and transformers_model are the two kinds
    gathering                   threads share a model that is run here
    opening                     opens any of them as a Client

Every answer can be recorded and replayed, so that a run repeats exactly and needs no endpoint. Text from pages goes in
as delimited data, never as instruction, and what comes back is checked here, whatever the endpoint promises.
"""
