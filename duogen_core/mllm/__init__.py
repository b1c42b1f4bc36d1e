"""The multimodal language model (MLLM): reads a Document, writes until <BOV> or the end of the turn.

It also hands out its hidden states for the connector. `loading.load_mllm` reads one of any family.

Adding a family = one file here with a subclass of `base.Mllm`, and one line in FAMILIES. The contract:

    model_type                      the value of "model_type" in the folder's config.json
    published_as                    how the names of transformers' classes begin, and what stands in published names
    image_token                     the token that stands in a picture's places
    num_layers, hidden_size         how many decoder layers there are, how wide their outputs are
    max_positions                   how many tokens the family can look back on
    positions(ids, grids)           int64 [P, N] positions of the whole context; never guessed from the cache
    embed(ids, patches, grids)      ids [1, n] (whole pictures only) -> [1, n, hidden_size]; [rows, 1] of written tokens
                                    (patches and grids: what the family's ImageProcessor makes of the pictures)
    new_cache(), crop_cache(c, k)   the KV cache; crop_cache drops the last k tokens exactly
    run_layers(e, pos, cache, f)    [1, n, hidden_size] -> last hidden state after the final norm; calls f(l, h) with
                                    the output of every decoder layer 0 … L-1, the last one after the final norm
    batch(caches), run_rows(…)      optional: KV caches side by side, and run_layers on such a batch, one token a row
                                    (e [rows, 1, hidden_size], pos [P, rows, 1]); its give_back() ends it
    decoding()                      optional: is open while tokens are written
    logits(h)                       [rows, hidden_size] -> [rows, vocabulary]
    build(config)                   classmethod: a config.json, as a dict -> the torch module
    module_name(name)               classmethod: a tensor's name in any file -> in the module
    guess_config(shapes)            classmethod: the config.json of a file that has none, from the shapes of its tensors
                                    (named as in the module); None where it is not of this family, DuoGenError where
                                    it is but its shapes are not enough
    check_parts(module, p, path)    classmethod: refuses a module and picture settings that do not go together
    picture_settings                preprocessor_config.json of the published models, for such a file
    vision, look_at, embedded, decode
                                    for training, which has the torch module alone (decoder.py): which weights see
                                    pictures, and the same work as embed and run_layers on batches

How many tokens a picture takes, and where, is its ImageProcessor's to say (image_processor.py: one class for each kind
of published settings), what stands around them the tokenizer's (chat.py). Families on transformers derive from
decoder.DecoderMllm, which has the cache, the batch, the layers and the logits. What `embed` gives may be wider than
hidden_size where a family needs more of a picture than that (Qwen3-VL): any slice of it along n is complete. `build` is
called where nothing takes memory. Reading and checking files is `loading`'s.

Everything else (chat layout, prefix cache, decode loop, streaming, sampling, connector sums) lives in `base`, `chat`
and `prompted`, and is the same for all families. What a new family has to pass: tests/core/mllm/test_families.py, which
runs every family, and tests/core/mllm/test_loop.py (a mock family with fixed logits).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json

FAMILIES = {
    "qwen2_5_vl": ("duogen_core.mllm.qwen2_5_vl", "Qwen25VL"),
    "qwen3_vl": ("duogen_core.mllm.qwen3_vl", "Qwen3VL"),
    "llava_onevision": ("duogen_core.mllm.llava_onevision", "LlavaOneVision"),
}


def family_class(model_type: str) -> type:
    """The family's subclass of base.Mllm."""
    module, name = FAMILIES[model_type]
    return getattr(import_module(module), name)


def family_of_module(model: Any) -> type:
    """The class for a torch module, by its configuration."""
    return family_class(model.config.model_type)


def family_of(folder: str | Path) -> type:
    """The class for a model folder, by the "model_type" of its config.json."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise DuoGenError(f"{folder} is not a Hugging Face model folder: it has no config.json.")
    config = read_json(file, "configuration of an MLLM")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise DuoGenError(f"{file} has no model_type; expected one of: {', '.join(FAMILIES)}.")
    if model_type not in FAMILIES:
        authors = " LLaVA-OneVision as its authors saved it is read from its converted folder, such as llava-hf's."
        raise DuoGenError(
            f"{file} says model_type {model_type!r}; expected one of: {', '.join(FAMILIES)}."
            + authors * model_type.startswith("llava")
        )
    return family_class(model_type)
