"""The tests that prove our column of the feature table in docs/features.md: row -> "file::test" of each."""

from __future__ import annotations

PROOFS: dict[str, list[str]] = {
    "Model decides when to draw": [
        "test_features.py::test_the_model_decides_when_to_draw_and_when_to_end",
    ],
    "Order kept in outputs": [
        "test_workflow.py::test_streams_and_previews",
        "test_documents.py::test_format_gives_each_picture_its_paragraph",
    ],
    "Sampler, LoRA and own nodes per image": [
        "test_features.py::test_one_picture_with_a_lora_and_a_sampler_of_its_own",
        "test_loop.py::test_own_nodes_between",
        "test_workflow_painter.py::test_any_painter",
    ],
    "Ends early at the end of the turn": [
        "test_features.py::test_the_model_decides_when_to_draw_and_when_to_end",
    ],
    "Reroll one image": [
        "test_reroll.py::test_reroll_draws_from_there_on",
        "test_reroll.py::test_reroll_in_the_loop",
    ],
    "Different size per image": [
        "test_features.py::test_every_picture_has_its_own_size",
    ],
    "Streams text": [
        "test_workflow.py::test_streams_and_previews",
    ],
    "Saves an ordered document": [
        "test_workflow.py::test_saved_folder",
    ],
    "Low VRAM": [
        "test_memory.py::test_same_numbers_as_plain_modules",
        "test_flags.py::test_free_gives_it_all_back",
    ],
}
