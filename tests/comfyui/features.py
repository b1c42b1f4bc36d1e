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
    "Patches of blocks and attention apply": [
        "test_stock_table.py::test_it_runs_and_changes_what_it_should",
        "test_stock_table.py::test_it_is_refused_in_a_sentence",
    ],
    "ControlNet per image": [
        "test_controlnet.py::test_shapes_are_drawn_exactly_in_their_outlines",
        "test_controlnet.py::test_in_the_loop_each_image_has_outlines_of_its_own",
    ],
    "Ends early at the end of the turn": [
        "test_features.py::test_the_model_decides_when_to_draw_and_when_to_end",
    ],
    "Plan can be edited before it is drawn": [
        "test_planning.py::test_a_changed_plan_draws_what_changed",
        "test_planning.py::test_what_was_drawn_and_did_not_change_stays",
    ],
    "A critic has bad images drawn again": [
        "test_review.py::test_a_refused_image_is_drawn_again_with_the_better_prompt",
        "test_review.py::test_the_language_model_on_the_socket_looks",
        "test_review.py::test_where_none_is_good_the_best_is_kept",
    ],
    "Reroll one image": [
        "test_reroll.py::test_reroll_draws_from_there_on",
        "test_reroll.py::test_reroll_in_the_loop",
        "browser/test_actions.py::test_a_reroll_by_one_click_draws_from_there_only",
    ],
    "Edit a text and go on from there": [
        "test_given.py::test_an_edited_text_goes_on_from_there",
        "test_given.py::test_given_in_the_loop",
        "browser/test_actions.py::test_a_text_is_edited_and_the_answer_goes_on",
    ],
    "Different size per image": [
        "test_features.py::test_every_picture_has_its_own_size",
    ],
    "Any model writes, any model draws": [
        "test_workflow_any_writer.py::test_any_writer",
        "test_workflow_painter.py::test_any_painter",
        "test_workflow_planned.py::test_endpoint_flux2",
    ],
    "Streams text": [
        "test_workflow.py::test_streams_and_previews",
    ],
    "Runs in App mode": [
        "browser/test_apps.py::test_an_app_runs",
    ],
    "In Chinese": [
        "test_locales.py::test_chinese_is_complete",
        "test_languages.py::test_error_in_the_language_of_the_prompt",
    ],
    "Saves an ordered document": [
        "test_workflow.py::test_saved_folder",
    ],
    "Finished images survive a crash": [
        "test_unfinished.py::test_finished_pictures_are_continued_in_a_new_server",
    ],
    "Low VRAM": [
        "test_gguf.py::test_an_answer_is_that_of_the_same_weights_whole",
        "test_quantised.py::test_an_answer_of_a_quantised_checkpoint",
        "test_memory.py::test_same_numbers_as_plain_modules",
        "test_flags.py::test_free_gives_it_all_back",
    ],
}
