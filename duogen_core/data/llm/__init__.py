"""Access to language models behind any OpenAI-compatible endpoint (vLLM, llama.cpp, `transformers serve`).

    prompt (a plain file) + data -> messages -> client -> endpoint -> answer (JSON: checked against a schema)

Every answer can be recorded and replayed, so that a run repeats exactly and needs no endpoint. Text from pages goes in
as delimited data, never as instruction, and what comes back is checked here, whatever the endpoint promises.
"""
