"""Paired statistics: from scores per arm, seed and item to one verdict per arm, with an interval behind it.

The interval adds the variance over seeds and the variance over items (crossed design), so that neither more items nor
more seeds alone can make a difference look certain. With y[a, s, i] the score of arm a, seed s (of S), item i (of n),
d[i] the difference of the arms' seed means on item i and D its mean:

    s2[a]  = variance over seeds of the seed means
    e[a]   = residual mean square of the seeds x items table
    v[a]   = max(s2[a], e[a] / n)                     two lucky equal seeds cannot look certain
    V_item = (sum (d - D)^2 + 1) / ((n - 1) n)        half an item won and half lost; only for 0/1 scores
    V      = v[A] / S[A] + v[B] / S[B] + V_item
    df     = Welch-Satterthwaite over the three terms
    D -+ t(1 - alpha/2, df) sqrt(V)

Adding rather than subtracting the overlap of the two is conservative on purpose: real seed distributions are skewed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Label = Literal["better", "worse", "equivalent", "not shown", "not enough data"]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A difference with its confidence bounds, in units of the score."""

    difference: float
    low: float
    high: float
    seed_share: float
    """Share of the variance that comes from seeds; the rest comes from items."""


@dataclass(frozen=True)
class Verdict:
    """One arm against the baseline. `difference` is arm minus baseline in the metric's own direction and unit."""

    arm: str
    baseline: str
    label: Label
    interval: Interval | None
    seeds: int
    items: int
    reason: str | None = None
    """Why there is no interval."""


@dataclass(frozen=True)
class Comparison:
    baseline: str
    margin: float
    alpha: float
    verdicts: list[Verdict]

    def __getitem__(self, arm: str) -> Verdict:
        return next(v for v in self.verdicts if v.arm == arm)


def compare(
    scores: pd.DataFrame, baseline: str, margin: float = 0.0, alpha: float = 0.05, *, higher_is_better: bool = True
) -> Comparison:
    """Compare every arm with the baseline.

    Args:
        scores: one row per arm, seed and item: columns `arm`, `seed`, `example_id`, `score`.
        margin: differences up to this size do not matter, in units of the score.
        alpha: 1 minus the coverage of the interval (two-sided).
        higher_is_better: False for a loss; the labels turn round, the differences do not.

    Raises:
        ValueError: a column is missing, the baseline has no scores, or a row occurs twice.
    """
    missing = {"arm", "seed", "example_id", "score"} - set(scores.columns)
    if missing:
        raise ValueError(f"scores lacks the column {sorted(missing)[0]!r}")
    if baseline not in set(scores["arm"]):
        raise ValueError(f"no scores of the baseline {baseline!r}")
    tables = {arm: _table(part) for arm, part in scores.groupby("arm", sort=False)}
    verdicts = [
        _verdict(str(arm), table, baseline, tables[baseline], margin, alpha, higher_is_better)
        for arm, table in tables.items()
        if arm != baseline
    ]
    return Comparison(baseline, margin, alpha, verdicts)


def interval(a: Matrix, b: Matrix, alpha: float = 0.05) -> Interval:
    """The interval of mean(a) - mean(b) for two tables of seeds x items over the same items, two seeds or more each."""
    n = a.shape[1]
    d = a.mean(0) - b.mean(0)
    difference = float(d.mean())
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    v_item = (float(((d - difference) ** 2).sum()) + (1.0 if binary else 0.0)) / ((n - 1) * n)
    parts = [(_seed_variance(y) / y.shape[0], y.shape[0] - 1) for y in (a, b)] + [(v_item, n - 1)]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Interval(difference, difference, difference, 0.0)
    df = variance**2 / sum(v**2 / f for v, f in parts)
    half = float(stats.t.ppf(1 - alpha / 2, df)) * float(np.sqrt(variance))
    return Interval(difference, difference - half, difference + half, (variance - v_item) / variance)


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float, float] | None:
    """Mean of one value per seed with its t interval; None for fewer than two seeds."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(1 - alpha / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def label_of(bounds: Interval, margin: float, higher_is_better: bool = True) -> Label:
    """What an interval shows at a margin."""
    low, high = (bounds.low, bounds.high) if higher_is_better else (-bounds.high, -bounds.low)
    if low > margin:
        return "better"
    if high < -margin:
        return "worse"
    if margin > 0 and -margin <= low and high <= margin:
        return "equivalent"
    return "not shown"


def _verdict(
    arm: str, a: pd.DataFrame, baseline: str, b: pd.DataFrame, margin: float, alpha: float, higher_is_better: bool
) -> Verdict:
    seeds = min(len(a), len(b))

    def refuse(reason: str) -> Verdict:
        return Verdict(arm, baseline, "not enough data", None, seeds, a.shape[1], reason)

    if set(a.columns) != set(b.columns):
        return refuse(f"its items are not those of {baseline}")
    a, b = a[sorted(a.columns)], b[sorted(a.columns)]
    if a.isna().any().any() or b.isna().any().any():
        return refuse("a seed lacks some items")
    if seeds < 2:
        return refuse(f"one seed of {arm if len(a) < 2 else baseline}: noise between runs is unknown")
    if a.shape[1] < 2:
        return refuse("a single item")
    bounds = interval(a.to_numpy(float), b.to_numpy(float), alpha)
    return Verdict(arm, baseline, label_of(bounds, margin, higher_is_better), bounds, seeds, a.shape[1])


def _table(scores: pd.DataFrame) -> pd.DataFrame:
    """Seeds in rows, items in columns."""
    if scores.duplicated(["seed", "example_id"]).any():
        raise ValueError(f"arm {scores['arm'].iloc[0]!r} has two scores for the same seed and item")
    return scores.pivot(index="seed", columns="example_id", values="score")


def _seed_variance(y: Matrix) -> float:
    """Variance over seeds of the seed means, at least what item churn alone would give."""
    seeds, items = y.shape
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    churn = float((residual**2).sum()) / ((seeds - 1) * (items - 1))
    return max(float(y.mean(1).var(ddof=1)), churn / items)
