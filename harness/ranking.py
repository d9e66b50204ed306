"""Several arms at once: which may be best, which lie on the front of cost and quality, what a wrong choice costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.compare import Refused, clusters_of, grouped, matched, tables_of
from harness.intervals import Difference, Matrix, difference, is_binary, spread, t_quantile

Draws = NDArray[np.float64]
Pairs = Mapping[tuple[str, str], Difference]
"""First arm minus second; two arms that cannot be compared are not in it."""


def best_set(scores: pd.DataFrame, alpha: float = 0.05, *, higher_is_better: bool = True) -> list[str]:
    """The arms that are not ruled out as the best one: no other is shown to be better.

    Each arm is held against all k - 1 others at alpha / (k - 1), two-sided, so the true best is among them with
    probability 1 - alpha / 2 at least. Arms that cannot be compared stay in.
    """
    names, pairs = pairs_of(scores)
    return not_ruled_out(names, pairs, alpha, higher_is_better=higher_is_better)


def within_margin(
    scores: pd.DataFrame, margin: float, alpha: float = 0.05, *, higher_is_better: bool = True
) -> dict[str, bool]:
    """For each arm whether it is shown to be at most `margin` worse than every other one.

    For one arm all must hold, so having several others needs no adjustment (intersection-union test). But several arms
    may be claimed wrongly, k - 1 at most: each is tested at alpha / (k - 1), one-sided, or at alpha / 2 where that is
    less, so that any is wrong with probability alpha at most. Without this, 8 % were in simulations with 4 arms.
    """
    names, pairs = pairs_of(scores)
    return shown_within(names, pairs, margin, alpha, higher_is_better=higher_is_better)


def pairs_of(scores: pd.DataFrame) -> tuple[list[str], Pairs]:
    """The arms, and the difference of every two that can be compared."""
    tables, clusters = tables_of(scores), clusters_of(scores)
    names, pairs = list(tables), {}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            try:
                y, z, items = matched(tables[one], tables[other], (one, other))
                groups = grouped(items, clusters)
            except Refused:
                continue
            pairs[one, other] = difference(y, z, groups)
            pairs[other, one] = pairs[one, other].mirrored()
    return names, pairs


def not_ruled_out(names: Sequence[str], pairs: Pairs, alpha: float, *, higher_is_better: bool = True) -> list[str]:
    """`best_set` from differences."""
    share = alpha / max(len(names) - 1, 1)

    def beaten(pair: Difference) -> bool:
        low, high = pair.bounds(share)
        return high < 0 if higher_is_better else low > 0

    return [a for a in names if not any((a, b) in pairs and beaten(pairs[a, b]) for b in names if b != a)]


def shown_within(
    names: Sequence[str], pairs: Pairs, margin: float, alpha: float, *, higher_is_better: bool = True
) -> dict[str, bool]:
    """`within_margin` from differences."""

    two_sided = min(alpha, 2 * alpha / max(len(names) - 1, 1))

    def within(pair: Difference) -> bool:
        low, high = pair.bounds(two_sided)
        return (low if higher_is_better else -high) > -margin

    return {a: all((a, b) in pairs and within(pairs[a, b]) for b in names if b != a) for a in names}


def draws(scores: pd.DataFrame, count: int = 4000, seed: int = 0) -> tuple[list[str], Draws]:
    """Plausible true mean scores of all arms, one column each: normal, items shared by the arms.

    Returns:
        The arms and an array of `count` x arms. Normal rather than t, which overstates regret by far
        with few degrees of freedom; verdicts use t.

    Raises:
        Refused: an arm has one seed, or items do not match.
    """
    tables = tables_of(scores)
    names = list(tables)
    first = tables[names[0]]
    arrays: list[Matrix] = []
    items: list[str] = []
    for name in names:
        y, _, items = matched(tables[name], first, (name, names[0]))
        arrays.append(y)
    return names, plausible(arrays, grouped(items, clusters_of(scores)), count, seed)


def plausible(arrays: Sequence[Matrix], groups: Sequence[str] | None = None, count: int = 4000, seed: int = 0) -> Draws:
    """`draws` from one array of seeds x items per arm, over the same items."""
    means = np.array([y.mean() for y in arrays])
    n = arrays[0].shape[1]
    deviations = np.stack([y.mean(0) - y.mean() for y in arrays])
    clusters = n
    if groups is not None:
        labels = np.unique(np.asarray(groups), return_inverse=True)[1]
        clusters = int(labels.max()) + 1
        deviations = np.stack([np.bincount(labels, weights=d) for d in deviations])
    covariance = deviations @ deviations.T * clusters / (clusters - 1) / n**2
    # of half an item won and half lost, so that the difference of two arms has the floor of `harness.intervals`
    floor = 0.5 * clusters / (clusters - 1) / n**2 if all(is_binary(y) for y in arrays) else 0.0
    for i, y in enumerate(arrays):
        known = spread(y)
        covariance[i, i] += floor + max(known.seed_variance - known.churn / n, 0.0) / known.seeds
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(means, covariance, size=count, method="eigh")


def best_probability(drawn: Draws, *, higher_is_better: bool = True) -> Draws:
    """Probability of each arm to be the best."""
    best = drawn.argmax(1) if higher_is_better else drawn.argmin(1)
    return np.bincount(best, minlength=drawn.shape[1]) / len(drawn)


def front_probability(drawn: Draws, costs: Sequence[float], *, higher_is_better: bool = True) -> Draws:
    """Probability of each arm to lie on the front: no arm that costs no more is better.

    Costs are taken as known: memory is deterministic, and money follows from it and from time.
    """
    quality = drawn if higher_is_better else -drawn
    cost = np.asarray(costs, dtype=float)
    on_front = np.ones(drawn.shape[1])
    for i in range(drawn.shape[1]):
        rivals = [j for j in range(drawn.shape[1]) if j != i and cost[j] <= cost[i]]
        if rivals:
            on_front[i] = float((quality[:, rivals].max(1) <= quality[:, i]).mean())
    return on_front


def expected_regret(drawn: Draws, *, higher_is_better: bool = True) -> Draws:
    """How much quality is expected to be lost by taking each arm instead of the best one."""
    quality = drawn if higher_is_better else -drawn
    regret: Draws = (quality.max(1, keepdims=True) - quality).mean(0)
    return regret


def upper_bound(values: Sequence[float], alpha: float = 0.05) -> float | None:
    """Upper prediction bound of one more run's time: mean + t sd sqrt(1 + 1/n), one-sided; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    return float(np.mean(values)) + t_quantile(1 - alpha, n - 1) * float(np.std(values, ddof=1)) * float(
        np.sqrt(1 + 1 / n)
    )
