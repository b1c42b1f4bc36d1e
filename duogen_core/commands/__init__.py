"""Commands of the command line, and what they share: progress on stderr, options, what --json writes.

Begin at ../cli.py, which lists every command and the module it stands in: here (generate, inspect, convert, data …), or
beside what it runs (train … in training/ and sketchbook/, evaluate … and ablation in sketchbook/). Each command has
add_arguments(parser) and run(args) -> exit code, checks what the user gave, and leaves the work to the package.

generate.py, inspect.py, convert.py       one command each
data.py                                   data check, make, export, stats, view
data_engines.py                           data web, dialogues, video, editing: options -> Engine -> `do_run`
synthetic.py, synthetic_documents.py      data synthetic: requests and plans; documents
evaluate_plan.py, evaluate_benchmarks.py  evaluate plan; evaluate run, export, import
evaluate_judge.py, evaluate_compare.py    evaluate judge; evaluate compare, rate, ratings
evaluate_check.py, evaluate_report.py     evaluate check; evaluate report
run_options.py, endpoint_options.py       options and progress of the data engines; options of language models
progress.py                               progress of `generate`
"""
