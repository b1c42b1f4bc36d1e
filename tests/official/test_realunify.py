"""RealUnify's two scorers read what we export: unchanged but for what its README says everybody has to fill in (names
of files and models, the folder for results, and the judge, which is a stub there).

Stood in for: the judge, on loopback; `cv2`, which is imported and never used.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest

from duogen_core.document import Text
from duogen_core.evaluation.benchmarks.realunify import RealUnify, option_in
from tests.official.harness import ANSWERS, BUNDLED, MODEL, exported, judge, official, run

BENCH = RealUnify()
ASKED = """
def get_response_from_judge_model(prompt, image_file=None):
    import base64, urllib.request
    image = base64.b64encode(open(image_file, "rb").read()).decode()
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": prompt}, {"type": "image_url",
            "image_url": {"url": "data:image/png;base64," + image}}]}]}
    request = urllib.request.Request(os.environ["JUDGE"] + "/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


"""
# Its sum looks up tasks that it never counted: it ends in this error whatever it is given, its results written before.
GUARDED = """
import runpy
try:
    runpy.run_path("scorer.py", run_name="__main__")
except KeyError as error:
    print("ended in KeyError", error)
"""


def filled(source: str, file: str) -> str:
    """What a user must fill in; nothing else of the scorer changes."""
    names = re.compile(r"    task_json_list = \{.*?\n    \}\n", re.DOTALL)
    source, times = names.subn(f'    task_json_list = {{"duogen-tiny": {file!r}}}\n', source)
    assert times == 1
    return source.replace("path_to_save_results", "results")


@pytest.mark.parametrize("by", ANSWERS)
@pytest.mark.parametrize("kind", ["UEG_direct", "UEG_step"])
def test_drawing(kind, by, tmp_path):
    scorer = official("FrankYang-17+RealUnify") / "eval/eval_generation.py"
    asked = exported("realunify", tmp_path, by, kind, 2)
    items, file = asked.items, asked.place
    source, times = re.subn(
        r"def get_response_from_judge_model.*?\n    pass\n+",
        lambda _: ASKED,
        scorer.read_text("utf-8"),
        flags=re.DOTALL,
    )
    assert times == 1
    (file.parent / "scorer.py").write_text(filled(source, file.name), "utf-8")
    (tmp_path / "standins").mkdir()
    (tmp_path / "standins/cv2.py").write_text("")

    def reply(body):
        return "No." if "ice" in body["messages"][0]["content"][0]["text"] else "Yes, I see it."

    with judge(reply) as server:
        env = {"PYTHONPATH": str(tmp_path / "standins"), "JUDGE": server.url}
        said = run(file.parent, "-c", GUARDED, env=env)
    assert "Traceback" not in said and "Error:" not in said and "ended in KeyError" in said

    results = file.parent / "results/duogen-tiny.json"
    scores = {score.id: score.values["image"] for score in BENCH.results(results, items)}
    assert set(scores) == {item.id for item in items} and len(scores) == 8  # none skipped, null for none
    # The first and the fourth task's questions are met, the second's and one of the third's are not, by an image.
    drawn = [bool(item.pictures(document)) for item, document in asked.answers]
    expected = [met * there for met, there in zip([1, 0, 0, 1] * 2, drawn)]
    assert [scores[item.id] for item in items] == expected
    assert BENCH.summary(BENCH.results(results, items))["image"] == sum(expected) / 8
    assert len(server.asked) == sum(number * there for number, there in zip([2, 1, 2, 1] * 2, drawn))
    assert drawn == {"contract": [True, True, True, False] * 2, "bundled": drawn}.get(by, [True] * 8)


@pytest.mark.parametrize("kind", ["GEU_direct", "GEU_step"])
def test_understanding(kind, tmp_path):
    """A hundred of each task, as it takes for granted when it sums: then its figures are ours."""
    scorer = official("FrankYang-17+RealUnify") / "eval/eval_understanding.py"
    asked = exported("realunify", tmp_path, "contract", kind, 100)
    answers = asked.answers
    for number, (item, document) in enumerate(answers):
        if number % 3:
            said = ("C", "The best answer is A.", "It must be (D)", "**B**, not A")[number % 4]
            answers[number] = item, document.append(Text(said))
    shutil.rmtree(asked.out)
    asked.out.mkdir()
    assert 0 < understood(scorer, asked, BENCH.export(answers, asked.out, MODEL), 100) < 1


@pytest.mark.parametrize("by", BUNDLED)
@pytest.mark.parametrize("kind", ["GEU_direct", "GEU_step"])
def test_what_the_bundled_model_understands(kind, by, tmp_path):
    scorer = official("FrankYang-17+RealUnify") / "eval/eval_understanding.py"
    asked = exported("realunify", tmp_path, by, kind, 2)
    understood(scorer, asked, asked.place, 2)


def understood(scorer, asked, file, times):
    """times: how many of each task there are; the scorer divides by a hundred."""
    (file.parent / "scorer.py").write_text(filled(scorer.read_text("utf-8"), file.name), "utf-8")
    said = run(file.parent, "scorer.py")
    assert "Error" not in said
    theirs = {task: float(acc) for task, acc in re.findall(r"Task: (\w+), Acc: ([\d.]+)", said)}
    total = float(re.search(r"Total Acc: ([\d.]+)", said)[1])
    scores, summary = asked.back(file)
    assert len(scores) == 4 * times and len(theirs) == 4
    assert summary.pop("answer") * times / 100 == pytest.approx(total, abs=5e-5)
    assert summary == pytest.approx({f"{task}: answer": acc * 100 / times for task, acc in theirs.items()})
    assert summary == pytest.approx({
        name: value for name, value in
        BENCH.summary(BENCH.score(item, document, {}) for item, document in asked.answers).items() if name != "answer"
    })  # fmt: skip
    return total


def test_options_are_read_as_the_official_scorer_reads_them(tmp_path):
    scorer = official("FrankYang-17+RealUnify") / "eval/eval_understanding.py"
    pieces = ("The best answer is", "Best answer:", "Best option:", "Answer", "Answer is", "The answer", " A", " B.",
              "(C)", "D", " because", "\n", "of it ", " no idea at all", "é", "答案是")  # fmt: skip
    import random

    chance = random.Random(0)
    texts = ["".join(chance.choices(pieces, k=chance.randrange(9))) for _ in range(3000)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "dump.py").write_text(
        f"import json, sys\nsys.path.insert(0, {str(scorer.parent)!r})\n"
        "from eval_understanding import extract_characters_regex as read\n"
        "json.dump([read(text) for text in json.load(open('texts.json'))], open('found.json', 'w'))\n"
    )
    run(tmp_path, "dump.py")
    assert json.loads((tmp_path / "found.json").read_text()) == [option_in(text) for text in texts]
