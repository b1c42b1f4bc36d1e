"""The field's benchmarks, the measure of plans, and what every evaluation shares; Sketchbook's stands beside its world.

answering.py  answers prompts with a model, in this process or in several
report.py     means, counts and intervals; the JSON report, the table, the overview image
results.py    the file of results of a benchmark: what every judge writes and every report reads
plans.py      writers of plans: 100 requests (plan_requests.yaml), scores by rules, the page of the worst (plans.html)
benchmarks/   the field's benchmarks, one file each behind one contract
models.py     what is put to them: a DuoGen model, a plan that is drawn, a ComfyUI workflow
running.py    their requests through a model, as a run; submissions out of it and into it
judging.py    what a judge says of the answers
answer_sets.py, pairwise.py, ratings.py   two models' answers side by side; a judge between them; who won, and Elo
benchmark_report.py, published.yaml   the page of results (benchmark_report.html); what papers say
rating_page.py   the page for people who rate (rating_page.html, rating_page.js)
statistics.py  intervals, agreement, ratings: what a number is worth
"""
