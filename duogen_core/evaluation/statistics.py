"""What a number of an evaluation is worth: intervals, agreement of two judges, ratings from comparisons.

    bootstrap(values)                     [n] numbers -> the 95% interval of their mean, BCa or percentile
    kappa(ours, theirs)                   two judges on the same answers: Cohen's kappa, plain or quadratic weighted
    spearman(ours, theirs)                the correlation of their ranks, ties shared
    clustered(groups)                     values that belong together, by group -> the 95% interval of their mean
    win_rate(outcomes)                    1 won, 0.5 tie, 0 lost, by item -> share, with its interval
    bradley_terry(wins)                   wins[..., i, j], how often i beat j (a tie: half a win for each) -> strengths
    elo(comparisons)                      comparisons of models on items -> a rating each, with its interval

Everything is plain numpy, seeded, and equal to the libraries to 1e-6 (the tests): scipy.stats for the bootstrap and
the ranks, scikit-learn for kappa, choix for Bradley-Terry. Together that is fewer lines than a dependency is worth.
Sources: Efron (1987), BCa; Cohen (1960, 1968); Bradley and Terry (1952).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from duogen_core.errors import DuoGenError

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK = 4 << 20  # numbers that are resampled at once: memory does not grow with the number of answers
NORMAL = NormalDist()
Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., n] -> [...]


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Statistic = mean,
    *,
    method: str = "BCa",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Returns the bootstrap interval of a statistic of values [n].

    method: "BCa" (corrected for bias and skew) or "percentile". None where resampling says nothing: of fewer than two
    values, and of values that are all the same, which would give an interval of no width and false certainty.
    """
    if method not in ("BCa", "percentile"):
        raise ValueError(f"The method {method!r} is not known; expected BCa or percentile.")
    data = np.asarray(values, np.float64)
    n = len(data)
    if n < 2 or (data == data[0]).all():
        return None
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    found = np.concatenate(
        [
            statistic(data[random.integers(0, n, (min(rows, resamples - start), n))])
            for start in range(0, resamples, rows)
        ]
    )
    alpha = (1 - confidence) / 2
    ends = (alpha, 1 - alpha)
    if method == "BCa":
        ends = _bca(data, statistic, found, ends)
        if ends is None:
            return None
    low, high = np.percentile(found, [100 * end for end in ends])
    return float(low), float(high)


def _bca(data: np.ndarray, statistic: Statistic, found: np.ndarray, ends: Interval) -> Interval | None:
    """The shares of the resampled values at which the corrected interval ends."""
    whole = statistic(data)
    below = ((found < whole).sum() + (found <= whole).sum()) / (2 * len(found))
    if not 0 < below < 1:
        return None
    bias = NORMAL.inv_cdf(below)
    # The jackknife: the statistic without each value in turn tells how fast its error changes.
    without = np.array([statistic(np.delete(data, i)) for i in range(len(data))]) if statistic is not mean else (
        (data.sum() - data) / (len(data) - 1)
    )  # fmt: skip
    influence = without.mean() - without
    spread = (influence**2).sum()
    if spread == 0:
        return None
    acceleration = (influence**3).sum() / (6 * spread**1.5)

    def moved(end: float) -> float:
        z = bias + NORMAL.inv_cdf(end)
        return NORMAL.cdf(bias + z / (1 - acceleration * z))

    return moved(ends[0]), moved(ends[1])


def resampled(count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Returns [resamples, count]: how often each of `count` things is drawn, for statistics of sums of them."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=resamples)


def clustered(groups: Iterable[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Returns the interval of the mean of all values, whole groups drawn anew: what is said of one thing by many, or
    of many samples of it, stands together. Where every group has one value this is `bootstrap`."""
    groups = list(groups)
    values = [value for group in groups for value in group]
    if len(groups) == len(values):
        return bootstrap(values, resamples=resamples, seed=seed)
    if len(groups) < 2 or len(set(values)) < 2:
        return None
    sums, counts = (np.array([found(group) for group in groups], float) for found in (sum, len))
    drawn = resampled(len(groups), resamples, seed)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return (float(low), float(high)) if low < high else None


# ------------------------------------------------------------ two judges on the same answers


def kappa(
    ours: Sequence[Hashable],
    theirs: Sequence[Hashable],
    *,
    weights: str | None = None,
    labels: Sequence[Hashable] | None = None,
) -> float | None:
    """Cohen's kappa: 1 agrees always, 0 as often as chance would. weights: None or "quadratic".

    labels: the whole scale in its order; by default those that occur. None where both say one thing only: then chance
    would agree as well.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} labels; expected as many of both.")
    if weights not in (None, "quadratic"):
        raise ValueError(f"The weights {weights!r} are not known; expected None or quadratic.")
    labels = sorted({*ours, *theirs}) if labels is None else list(labels)
    number = {label: k for k, label in enumerate(labels)}
    seen = np.zeros((len(labels), len(labels)))
    for one, other in zip(ours, theirs):
        seen[number[one], number[other]] += 1
    if not len(ours):
        return None
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / len(ours)
    apart = np.subtract.outer(np.arange(len(labels)), np.arange(len(labels)))
    cost = apart**2 if weights else (apart != 0)
    by_chance = (cost * expected).sum()
    return None if by_chance == 0 else float(1 - (cost * seen).sum() / by_chance)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Spearman's correlation; None of fewer than two pairs, or where one side says the same of all."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values; expected as many of both.")
    if len(ours) < 2:
        return None
    one, other = (ranks(side) - (len(ours) + 1) / 2 for side in (ours, theirs))
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return None if scale == 0 else float((one * other).sum() / scale)


# ------------------------------------------------------------ comparisons


@dataclass(frozen=True)
class Comparison:
    """Somebody saw two models' answers to an item. outcome: 1 the first is better, 0 the second, 0.5 neither."""

    item: str
    first: str
    second: str
    outcome: float


@dataclass(frozen=True)
class Rating:
    elo: float
    interval: Interval | None
    comparisons: int


def win_rate(outcomes: Mapping[str, Sequence[float]], **how) -> tuple[float, Interval | None]:
    """The mean of outcomes by item (a tie is half a win), and its interval, items drawn anew."""
    return float(np.mean([one for each in outcomes.values() for one in each])), clustered(outcomes.values(), **how)


SCALE, MIDDLE = 400 / np.log(10), 1000.0  # Elo: 400 points are odds of 10 to 1; the mean of all models is 1000
ROUNDS, NEAR = 200, 1e-9  # a step of Newton's; the error after it is about its square
DIVERGED = 50.0
NO_WIDTH = 1e-3  # points


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """wins [..., m, m] -> the maximum-likelihood log-strengths [..., m], whose mean is 0.

    Model i beats j with probability 1 / (1 + exp(strength[j] - strength[i])). There is a finite maximum only if every
    model beat some other in each way of parting them in two groups (Ford, 1957): a DuoGenError otherwise.
    """
    wins = np.asarray(wins, np.float64)
    wins = wins * (1 - np.eye(wins.shape[-1]))
    games = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strength = np.zeros(won.shape)
    if wins.shape[-1] < 2:
        return strength
    for _ in range(ROUNDS):  # Newton; the likelihood is concave
        chance = 1 / (1 + np.exp(np.swapaxes(strength[..., None], -1, -2) - strength[..., None]))
        slope = won - (games * chance).sum(axis=-1)
        weight = games * chance * (1 - chance)
        # The curvature says nothing of adding a constant to all; + 1 keeps that direction where it is.
        curve = np.eye(won.shape[-1]) * weight.sum(axis=-1)[..., None] - weight + 1.0
        try:
            step = np.linalg.solve(curve, slope[..., None])[..., 0].clip(-1, 1)
        except np.linalg.LinAlgError:
            break
        strength = strength + step
        if np.abs(strength).max() > DIVERGED:
            break
        if np.abs(step).max() < NEAR:  # nearer than that, the rounding of large sums moves it for ever
            return strength - strength.mean(axis=-1, keepdims=True)
    raise DuoGenError(
        "These comparisons give no finite ratings: some model won or lost all of its comparisons, or was never "
        "compared with the others."
    )


def elo(
    comparisons: Iterable[Comparison], *, prior: float = 1.0, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Rating]:
    """Rates models by all their comparisons at once (Bradley-Terry, so their order does not matter), best first.

    prior: imagined ties of each model with all the others, of which those count that it was compared with: one that won
    all of few comparisons gets no infinite rating. The interval is that of 95%, items drawn anew: what is said of one
    item stands together. None where all draws are the same, as of a model that never lost.
    """
    comparisons = list(comparisons)
    models = sorted({name for one in comparisons for name in (one.first, one.second)})
    items = sorted({one.item for one in comparisons})
    if not comparisons:
        return {}
    number, place = ({name: k for k, name in enumerate(names)} for names in (models, items))
    wins = np.zeros((len(items), len(models), len(models)))
    for one in comparisons:
        if one.first == one.second:
            raise DuoGenError(f"The model {one.first[:80]!r} is compared with itself.")
        wins[place[one.item], number[one.first], number[one.second]] += one.outcome
        wins[place[one.item], number[one.second], number[one.first]] += 1 - one.outcome
    total = wins.sum(axis=0)
    met = (total + total.T) > 0
    _check_connected(met, models)
    imagined = prior / 2 * met / max(len(models) - 1, 1)
    strength = bradley_terry(total + imagined)
    ends: list[Interval | None] = [None] * len(models)
    if len(items) > 1 and prior > 0:
        drawn = resampled(len(items), resamples, seed) @ wins.reshape(len(items), -1)
        many = bradley_terry(drawn.reshape(-1, len(models), len(models)) + imagined)
        low, high = np.percentile(many * SCALE + MIDDLE, [2.5, 97.5], axis=0)
        # Of models that never lost, or never won, every draw is the same: no width, and false certainty.
        ends = [(float(one), float(other)) if other - one > NO_WIDTH else None for one, other in zip(low, high)]
    counts = (total + total.T).sum(axis=1)
    found = {
        name: Rating(float(strength[k] * SCALE + MIDDLE), ends[k], round(counts[k])) for k, name in enumerate(models)
    }
    return dict(sorted(found.items(), key=lambda entry: -entry[1].elo))


def _check_connected(met: np.ndarray, models: Sequence[str]) -> None:
    reached, new = {0}, [0]
    while new:
        new = [int(k) for k in np.flatnonzero(met[new].any(axis=0)) if k not in reached]
        reached.update(new)
    if len(reached) < len(models):
        apart = next(name for k, name in enumerate(models) if k not in reached)
        raise DuoGenError(
            f"{models[0][:80]!r} and {apart[:80]!r} were never compared, not even through other models, so no rating "
            "holds for both; rate them apart, or add comparisons."
        )


def wins_of(comparisons: Iterable[Comparison]) -> Mapping[tuple[str, str], dict[str, list[float]]]:
    """The outcomes by item of every two models that met, from the side of the one whose name comes first."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in comparisons:
        pair = (one.first, one.second)
        turned = pair[0] > pair[1]
        of = found.setdefault((pair[1], pair[0]) if turned else pair, {})
        of.setdefault(one.item, []).append(1 - one.outcome if turned else one.outcome)
    return dict(sorted(found.items()))
