"""Bootstrap, kappa, Spearman, Bradley-Terry and Elo against the libraries and a textbook, to 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation import statistics
from duogen_core.evaluation.statistics import (
    Comparison,
    bootstrap,
    bradley_terry,
    elo,
    kappa,
    ranks,
    resampled,
    spearman,
    win_rate,
    wins_of,
)

SCORES = np.random.default_rng(5).beta(0.6, 0.2, 37).round(1)  # skewed, as shares of met rubrics are
# Two judges from 0 to 5, and what scikit-learn 1.9.1's cohen_kappa_score says of them.
OURS = [4, 0, 1, 1, 1, 4, 5, 3, 0, 0, 1, 2, 3, 2, 1, 0, 4, 4, 0, 0, 2, 2, 5, 3, 2, 2, 3, 3, 1, 4]
OURS += [4, 5, 4, 1, 1, 3, 3, 4, 5, 1, 5, 0, 0, 5, 5, 1, 0, 1, 0, 5, 3, 3, 1, 2, 1, 4, 2, 0, 1, 4]
THEIRS = [4, 0, 0, 0, 2, 5, 5, 5, 2, 0, 2, 3, 2, 1, 1, 1, 3, 5, 1, 0, 1, 4, 5, 4, 0, 3, 2, 5, 3, 4]
THEIRS += [5, 5, 3, 3, 0, 1, 3, 5, 5, 0, 5, 0, 0, 3, 4, 2, 1, 0, 1, 5, 1, 2, 1, 2, 0, 3, 0, 1, 3, 2]
KAPPA, WEIGHTED = 0.13856427378964942, 0.777918208901327
# The American League's East in 1987 (Agresti, Categorical Data Analysis, table 10.10): how often the row's team won.
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
WINS = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)
AGRESTI = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0]
CHOIX = [0.5311533407, 0.3862058958, 0.2442825879, 0.1974153091, 0.0574951694, -0.3663497669, -1.050202536]


@pytest.mark.parametrize("method", ["BCa", "percentile"])
@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_bootstrap_is_that_of_scipy(method, statistic, monkeypatch):
    stats = pytest.importorskip("scipy.stats")
    ours = {"mean": statistics.mean, "std": lambda values: np.std(values, axis=-1)}[statistic]
    theirs = stats.bootstrap(
        (SCORES,), getattr(np, statistic), n_resamples=2000, method=method, rng=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap(SCORES, ours, method=method, seed=7)
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    monkeypatch.setattr(statistics, "CHUNK", 1000)  # a few at a time, as of many answers: the same
    assert bootstrap(SCORES, ours, method=method, seed=7) == found


def test_bootstrap_of_these_scores():
    """As scipy 1.17.1 gave it, for where scipy is not installed."""
    assert bootstrap(SCORES, seed=7) == pytest.approx((0.5756756756756756, 0.8165954383066524), abs=1e-6)
    assert bootstrap([0.2, 0.4, 0.9]) is not None


def test_no_false_certainty():
    assert bootstrap([]) is None and bootstrap([1.0]) is None
    assert bootstrap([1.0] * 50) is None  # not (1, 1)
    assert bootstrap([1.0] * 50, method="percentile") is None
    with pytest.raises(ValueError, match="expected BCa or percentile"):
        bootstrap([0, 1], method="bca")


def test_an_interval_covers():
    """Of 200 samples of a known mean, about 95% of the intervals hold it."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap(random.beta(2, 1, 60), resamples=500)
        held += low <= 2 / 3 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_kappa_is_that_of_scikit_learn():
    assert kappa(OURS, THEIRS) == pytest.approx(KAPPA, abs=1e-6)
    assert kappa(OURS, THEIRS, weights="quadratic") == pytest.approx(WEIGHTED, abs=1e-6)
    metrics = pytest.importorskip("sklearn.metrics", reason="the values above are its own")
    assert kappa(OURS, THEIRS) == pytest.approx(metrics.cohen_kappa_score(OURS, THEIRS), abs=1e-6)


def test_kappa_by_hand():
    # Cohen's own kind of table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5
    ours, theirs = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert kappa(ours, theirs) == pytest.approx(0.4, abs=1e-12)
    assert kappa([1, 2, 3], [1, 2, 3]) == 1 and kappa([0, 1], [1, 0]) == -1
    assert kappa([2, 2], [2, 2]) is None and kappa([], []) is None
    # a value that neither gave still lies between two others
    assert kappa([0, 5, 0, 4], [0, 5, 4, 4], weights="quadratic", labels=range(6)) == pytest.approx(1 - 16 / 39.5)
    with pytest.raises(ValueError, match="as many of both"):
        kappa([1], [1, 2])


def test_spearman_is_that_of_scipy():
    assert spearman(OURS, THEIRS) == pytest.approx(0.7649441297082007, abs=1e-6)
    stats = pytest.importorskip("scipy.stats")
    assert spearman(OURS, THEIRS) == pytest.approx(stats.spearmanr(OURS, THEIRS).statistic, abs=1e-6)
    assert ranks(OURS).tolist() == stats.rankdata(OURS).tolist()


def test_spearman_by_hand():
    assert ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]
    assert spearman([1, 2, 3], [1, 10, 100]) == pytest.approx(1) and spearman([1, 2], [2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1], [1]) is None


def test_bradley_terry_is_that_of_choix_and_of_the_textbook():
    strength = bradley_terry(WINS)
    assert strength == pytest.approx(CHOIX, abs=1e-6)
    assert strength - strength[-1] == pytest.approx(AGRESTI, abs=0.005)  # two digits are printed
    many = bradley_terry(np.stack([WINS, WINS.T]))  # several at once
    assert many[0] == pytest.approx(strength) and many[1] == pytest.approx(-strength)


def test_two_models_in_closed_form():
    """Won 30, lost 10: odds of 3 to 1 are 400 log10(3) points."""
    comparisons = [Comparison(str(k), "a", "b", float(k < 30)) for k in range(40)]
    rated = elo(comparisons, prior=0)
    assert rated["a"].elo - rated["b"].elo == pytest.approx(400 * math.log10(3), abs=1e-6)
    assert rated["a"].elo + rated["b"].elo == pytest.approx(2000)
    ties = elo([Comparison("1", "a", "b", 0.5)] * 4, prior=0)  # a tie is half a win for each
    assert ties["a"].elo == pytest.approx(1000, abs=1e-9)


def test_elo_of_comparisons():
    comparisons, item = [], 0
    for i, one in enumerate(TEAMS):
        for j, other in enumerate(TEAMS):
            for _ in range(WINS[i, j]):  # told from either side
                item += 1
                comparisons.append(
                    Comparison(str(item), one, other, 1.0) if item % 2 else Comparison(str(item), other, one, 0.0)
                )
    exact = elo(comparisons, prior=0)
    assert list(exact) == TEAMS  # best first
    scale = 400 / math.log(10)
    assert [exact[name].elo for name in TEAMS] == pytest.approx([1000 + scale * one for one in CHOIX], abs=1e-6)
    rated = elo(comparisons)
    for name, one in rated.items():
        assert one.interval[0] < one.elo < one.interval[1] and one.comparisons == 78
        assert abs(one.elo - exact[name].elo) < 4  # one imagined tie beside 78 comparisons
    assert elo(comparisons) == rated and elo(comparisons, seed=1) != rated
    pair = wins_of(comparisons)[("Boston", "Milwaukee")]
    assert (sum(map(sum, pair.values())), len(pair)) == (6, 13)


def test_the_bootstrap_of_elo_is_wider_when_judgements_share_items():
    """Ten raters of one item are no ten items."""
    random = np.random.default_rng(2)
    won = random.random(40) < 0.7
    apart = [Comparison(f"{k}-{r}", "a", "b", float(won[k])) for k in range(40) for r in range(10)]
    shared = [Comparison(str(k), "a", "b", float(won[k])) for k in range(40) for r in range(10)]
    width = {name: np.diff(elo(given)["a"].interval)[0] for name, given in (("apart", apart), ("shared", shared))}
    assert width["shared"] > 2 * width["apart"]


def test_ratings_that_cannot_be():
    won_all = [Comparison(str(k), "a", "b", 1.0) for k in range(5)]
    with pytest.raises(DuoGenError, match="no finite ratings"):
        elo(won_all, prior=0)
    rated = elo(won_all)  # with the imagined tie: finite, and the better one first
    assert list(rated) == ["a", "b"] and rated["a"].elo < 1400
    with pytest.raises(DuoGenError, match="'a' and 'c' were never compared"):
        elo([*won_all, Comparison("1", "c", "d", 1.0)])
    with pytest.raises(DuoGenError, match="with itself"):
        elo([Comparison("1", "a", "a", 1.0)])
    assert elo([]) == {}


def test_win_rate():
    rate, interval = win_rate({str(k): [one] for k, one in enumerate([1, 1, 0.5, 0, 1, 1, 0.5, 1])})
    assert rate == 0.75 and interval[0] < 0.75 < interval[1]
    assert win_rate({"1": [1], "2": [1]}) == (1.0, None)
    assert win_rate({"1": [1, 0]}) == (0.5, None) and win_rate({"1": [1, 0], "2": [0, 1]}) == (0.5, None)


def test_the_interval_of_a_win_rate_is_wider_when_judgements_share_items():
    """Ten raters of one item are no ten items."""
    won = np.random.default_rng(2).random(40) < 0.7
    apart = {f"{k}-{r}": [float(won[k])] for k in range(40) for r in range(10)}
    shared = {str(k): [float(won[k])] * 10 for k in range(40)}
    (rate, narrow), (same, wide) = win_rate(apart), win_rate(shared)
    assert rate == same and np.diff(wide)[0] > 2 * np.diff(narrow)[0]


def test_very_many_comparisons_have_ratings():
    """The rounding of a large sum is no sign that there is no maximum."""
    for count in (100_000, 400_000):
        strength = bradley_terry(np.array([[0, count + 0.5], [0.5, 0]]))
        assert strength[0] - strength[1] == pytest.approx(math.log((count + 0.5) / 0.5), abs=1e-6)


def test_a_model_that_never_lost_has_no_certain_elo():
    rated = elo([Comparison(str(k), "a", "b", 1.0) for k in range(40)])
    assert rated["a"].interval is None and rated["b"].interval is None


def test_resampled():
    drawn = resampled(7, 50)
    assert drawn.shape == (50, 7) and (drawn.sum(axis=1) == 7).all()
