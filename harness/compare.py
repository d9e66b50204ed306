"""From scores per arm, seed and item to one verdict per arm, with an interval behind it.

A verdict is a claim about the true difference at a margin: better (above it), worse (below minus it), equivalent
(within it both ways) or not shown. Its p value is the smallest alpha at which the interval of `harness.intervals` makes
the claim; with several arms these are adjusted by Holm's method (1979). Each side errs at most alpha / 2 on paper, and
less than alpha in the simulations of `harness selfcheck stats`, skewed seeds included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from harness.intervals import Difference, Matrix, difference, fixed, paired

Label = Literal["better", "worse", "equivalent", "not shown", "not enough data"]

Runs = Literal["own", "shared", "one"]
"""How the runs of two arms belong together. `own`: each was trained by itself, its seeds are the noise of its runs.
`shared`: seed by seed both are the same model, stored in two ways. `one`: a model each that no chance had a part in."""

LOOKS: dict[tuple[float, tuple[int, ...]], float] = {
    (0.05, (3, 5)): 0.0226,
    (0.05, (3, 8)): 0.0216,
    (0.05, (3, 5, 8)): 0.0158,
    (0.05, (3, 5, 8, 12)): 0.0128,
    (0.05, (3, 5, 8, 12, 20)): 0.0104,
    (0.10, (3, 5)): 0.0532,
    (0.10, (3, 8)): 0.0495,
    (0.10, (3, 5, 8)): 0.0382,
    (0.10, (3, 5, 8, 12)): 0.0305,
    (0.10, (3, 5, 8, 12, 20)): 0.0249,
}
"""Two-sided alpha of each look so that all of them together err at most alpha, half of it to each side.

Calibrated on pure seed noise with the ratio of the arms' standard deviations that is worst, 6 or 7 (a million studies
each); noise of items only lowers the error. Some are below alpha / looks: at 3 seeds Welch's test errs up to 0.03 to a
side at a nominal 0.025. `benchmarks/verdict_errors.py` checks the default."""


class Refused(ValueError):
    """A comparison that would give a number with no meaning."""


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
    """One arm against the baseline. Differences are arm minus baseline in the metric's own direction and unit."""

    arm: str
    baseline: str
    label: Label
    interval: Interval | None
    seeds: int
    items: int
    reason: str | None = None
    """Why there is no interval."""
    claim: Label | None = None
    """The claim that came nearest to being shown."""
    p: float | None = None
    """Smallest two-sided alpha at which that claim is shown, looked at alone."""
    p_adjusted: float | None = None
    """The same when all arms are looked at (Holm); the label is shown when this is at most alpha."""
    naive: Label | None = None
    """What comparing means would have said, which errs in up to half of all cases at the margin."""
    noise: Difference | None = None
    """The variances behind the interval, for planning."""


@dataclass(frozen=True)
class Comparison:
    baseline: str
    margin: float
    alpha: float
    """Two-sided, of this look."""
    higher_is_better: bool
    verdicts: list[Verdict]

    def __getitem__(self, arm: str) -> Verdict:
        return next(v for v in self.verdicts if v.arm == arm)


def compare(
    scores: pd.DataFrame,
    baseline: str,
    margin: float = 0.0,
    alpha: float = 0.05,
    *,
    higher_is_better: bool = True,
    runs: Runs = "own",
) -> Comparison:
    """Compare every arm with the baseline.

    Args:
        scores: one row per arm, seed and item: columns `arm`, `seed`, `example_id`, `score`, and `cluster_id` where
            items belong together (questions on one passage, wordings of one fact).
        margin: differences up to this size do not matter, in units of the score.
        alpha: 1 minus the coverage of the intervals (two-sided), so each side errs at most half of it.
        higher_is_better: False for a loss; the labels turn round, the differences do not.
        runs: how an arm's runs belong to those of the baseline.

    Raises:
        ValueError: a column is missing, the baseline has no scores, a row occurs twice, or the margin is negative.
    """
    if not margin >= 0:
        raise ValueError(f"the margin {margin} is negative")
    tables = tables_of(scores)
    if baseline not in tables:
        raise ValueError(f"no scores of the baseline {baseline!r}")
    clusters = clusters_of(scores)
    sign = 1.0 if higher_is_better else -1.0
    looked = [
        _look(arm, table, baseline, tables[baseline], clusters, margin, alpha, sign, runs)
        for arm, table in tables.items()
        if arm != baseline
    ]
    adjusted = holm([v.p for v in looked if v.p is not None])
    verdicts = [v if v.p is None else _settled(v, adjusted.pop(0), alpha) for v in looked]
    return Comparison(baseline, margin, alpha, higher_is_better, verdicts)


def look_alpha(alpha: float, looks: Sequence[int]) -> float:
    """The two-sided alpha of each of several declared looks (numbers of seeds): together they err at most alpha.

    From `LOOKS` where the plan is in it, else split evenly (Bonferroni).
    """
    plan = tuple(sorted(set(looks)))
    if len(plan) <= 1:
        return alpha
    return LOOKS.get((alpha, plan), alpha / len(plan))


def refuse(comparison: Comparison, reason: str) -> Comparison:
    """The same arms with every number taken away and the reason in its place."""
    verdicts = [
        Verdict(v.arm, v.baseline, "not enough data", None, v.seeds, v.items, reason) for v in comparison.verdicts
    ]
    return replace(comparison, verdicts=verdicts)


def unplanned_alpha(alpha: float, look: int) -> float:
    """The two-sided alpha of the k-th look where none was declared: alpha / (k (k + 1)), which adds up to alpha."""
    return alpha / (look * (look + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, highest)
    return [float(p) for p in adjusted]


def claims(found: Difference, margin: float, sign: float = 1.0) -> dict[Label, float]:
    """Two-sided p value of each claim: the smallest alpha at which the interval makes it."""
    above, below = found.p_above(margin), found.p_below(-margin)
    better, worse = (above, below) if sign > 0 else (below, above)
    p: dict[Label, float] = {"better": 2 * better, "worse": 2 * worse}
    if margin > 0:  # two one-sided tests (Schuirmann 1987)
        p["equivalent"] = 2 * max(found.p_above(-margin), found.p_below(margin))
    return {claim: min(1.0, value) for claim, value in p.items()}


def tables_of(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Seeds in rows and items in columns, by arm.

    Raises:
        ValueError: a column is missing or the same seed and item occurs twice.
    """
    missing = {"arm", "seed", "example_id", "score"} - set(scores.columns)
    if missing:
        raise ValueError(f"scores lacks the column {sorted(missing)[0]!r}")
    return {str(arm): _table(part) for arm, part in scores.groupby("arm", sort=False, observed=True)}


def clusters_of(scores: pd.DataFrame) -> dict[str, str] | None:
    """The cluster of every item, None where items stand alone."""
    if "cluster_id" not in scores.columns or scores["cluster_id"].isna().all():
        return None
    pairs = scores[["example_id", "cluster_id"]].drop_duplicates()
    if pairs["example_id"].duplicated().any():
        raise ValueError("an item belongs to two clusters, or is in one for some runs only")
    return {
        str(item): f"item {item}" if pd.isna(cluster) else f"cluster {cluster}"
        for item, cluster in zip(pairs["example_id"], pairs["cluster_id"], strict=True)
    }


def matched(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], runs: Runs = "own"
) -> tuple[Matrix, Matrix, list[str]]:
    """Two tables over the same items in the same order, and the items.

    Raises:
        Refused: what was measured does not allow a comparison; says why.
    """
    if not a.columns.equals(b.columns):  # sorted, both of them, by `tables_of`
        raise Refused(f"its items are not those of {names[1]}")
    y, z = a.to_numpy(float), b.to_numpy(float)
    for name, table in zip(names, (y, z), strict=True):
        if np.isnan(table).any():
            raise Refused(f"a seed of {name} lacks some items")
        if not np.isfinite(table).all():
            raise Refused(f"a score of {name} is infinite")
        if runs == "one" and len(table) > 1:
            raise Refused(f"{len(table)} runs of {name}, which no chance has a part in")
        if runs != "one" and len(table) < 2:
            raise Refused(f"one seed of {name}: noise between runs is unknown")
    if len(a.columns) < 2:
        raise Refused("a single item")
    if runs == "shared" and not a.index.equals(b.index):
        raise Refused(f"its seeds are not those of {names[1]}")
    return y, z, [str(item) for item in a.columns]


def grouped(items: Sequence[str], clusters: Mapping[str, str] | None) -> list[str] | None:
    """The cluster of each item in turn, None where items stand alone.

    Raises:
        Refused: all items are in one cluster.
    """
    if clusters is None:
        return None
    groups = [clusters[item] for item in items]
    if len(set(groups)) < 2:
        raise Refused("all items are in one cluster")
    return groups


def _look(
    arm: str,
    a: pd.DataFrame,
    baseline: str,
    b: pd.DataFrame,
    clusters: Mapping[str, str] | None,
    margin: float,
    alpha: float,
    sign: float,
    runs: Runs,
) -> Verdict:
    """One arm's interval and the claim nearest to being shown, not yet adjusted for the other arms."""
    seeds = min(len(a), len(b))
    naive = _naive(float(np.nanmean(a.to_numpy(float))) - float(np.nanmean(b.to_numpy(float))), margin, sign)
    try:
        y, z, items = matched(a, b, (arm, baseline), runs)
        groups = grouped(items, clusters)
    except Refused as refusal:
        return Verdict(arm, baseline, "not enough data", None, seeds, a.shape[1], str(refusal), naive=naive)
    found = {"own": difference, "shared": paired, "one": fixed}[runs](y, z, groups)
    p = claims(found, margin, sign)
    claim = min(p, key=lambda c: p[c])
    bounds = Interval(found.value, *found.bounds(alpha), found.seed_share)
    return Verdict(
        arm, baseline, "not shown", bounds, seeds, len(items), claim=claim, p=p[claim], naive=naive, noise=found
    )


def _settled(verdict: Verdict, p_adjusted: float, alpha: float) -> Verdict:
    shown = verdict.claim if p_adjusted <= alpha else None
    return replace(verdict, label=shown or "not shown", p_adjusted=p_adjusted)


def _naive(value: float, margin: float, sign: float) -> Label:
    """The verdict of whoever compares means."""
    if sign * value > margin:
        return "better"
    if sign * value < -margin:
        return "worse"
    return "equivalent"


def _table(scores: pd.DataFrame) -> pd.DataFrame:
    rows, seeds = pd.factorize(scores["seed"], sort=True)
    columns, items = pd.factorize(scores["example_id"], sort=True)
    places = rows * len(items) + columns
    if len(np.unique(places)) < len(places):
        raise ValueError(f"arm {scores['arm'].iloc[0]!r} has two scores for the same seed and item")
    cells = np.full(len(seeds) * len(items), np.nan)  # by hand: pandas' pivot takes several times as long
    cells[places] = scores["score"].to_numpy(float)
    table = cells.reshape(len(seeds), len(items))
    return pd.DataFrame(table, index=pd.Index(seeds, name="seed"), columns=pd.Index(items, name="example_id"))
