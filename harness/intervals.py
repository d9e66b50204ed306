"""The variance of a difference between two arms over seeds and items, and what it would be with more of either.

With y[a, s, i] the score of arm a, seed s (of S) and item i (of n), d[i] the difference of the arms' seed means on
item i and D its mean:

    s2[a]  = variance over seeds of the seed means
    e[a]   = residual mean square of the seeds x items table (churn: what two seeds of one arm disagree on)
    v[a]   = max(s2[a], e[a] / n)                     two lucky equal seeds cannot look certain
    V_item = (sum (d - D)^2 + 1) / ((n - 1) n)        half an item won and half lost; only for 0/1 scores
    V      = v[A] / S[A] + v[B] / S[B] + V_item
    df     = Welch-Satterthwaite over the three terms
    D -+ t(1 - alpha/2, df) sqrt(V)

With clusters of items (a passage with several questions) the sum runs over clusters: G/(G-1) [sum_g (sum over g of
(d - D))^2 + 1] / n^2, and the term has G - 1 degrees of freedom. Adding the variances rather than subtracting their
overlap is conservative on purpose: real seed distributions are skewed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """What one arm's table of seeds x items says about its noise."""

    seeds: int
    seed_variance: float
    """Variance of a seed's mean score, at least what churn alone gives."""
    churn: float
    """Variance of one item's score between seeds of the arm."""


@dataclass(frozen=True)
class Difference:
    """Mean difference of two arms over the same items, with the variance it comes with."""

    value: float
    a: Spread
    b: Spread
    items: int
    clusters: int
    item_variance: float
    """Variance of the difference from which items were drawn."""

    @property
    def variance(self) -> float:
        return sum(v for v, _ in self._terms())

    @property
    def df(self) -> float:
        return _welch(self._terms())

    @property
    def seed_share(self) -> float:
        """Share of the variance that comes from seeds."""
        return (self.variance - self.item_variance) / self.variance if self.variance > 0 else 0.0

    def mirrored(self) -> "Difference":
        """Second arm minus first."""
        return replace(self, value=-self.value, a=self.b, b=self.a)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """The two-sided interval that covers the true difference with probability 1 - alpha."""
        half = self.half_width(alpha)
        return self.value - half, self.value + half

    def half_width(self, alpha: float) -> float:
        return t_quantile(1 - alpha / 2, self.df) * float(np.sqrt(self.variance))

    def p_above(self, bound: float) -> float:
        """One-sided p value of the claim that the true difference exceeds `bound`."""
        return self._tail(self.value - bound)

    def p_below(self, bound: float) -> float:
        return self._tail(bound - self.value)

    def with_more(self, seeds: int, items: int | None = None) -> tuple[float, float]:
        """Variance and degrees of freedom with `seeds` per arm (two or more) on `items` items like these.

        u[a] = max(v[a] - e[a]/n, 0) and sd2 = max(n V_item - e[A]/S[A] - e[B]/S[B], 0) are the parts that are left when
        churn is taken out; V = sum_a (u[a] + e[a]/n') / S' + (sd2 + (e[A] + e[B]) / S') / n'.
        """
        more = items or self.items
        churn = self.a.churn + self.b.churn
        arms = [((self._apart(x) + x.churn / more) / seeds, seeds - 1) for x in (self.a, self.b)]
        clusters = max(2, round(self.clusters * more / self.items))
        terms = [*arms, ((self._across() + churn / seeds) / more, clusters - 1)]
        return sum(v for v, _ in terms), _welch(terms)

    def moves(self, seeds: int, items: int | None = None) -> tuple[float, float]:
        """Variance and degrees of freedom of how far the difference itself moves when runs and items are added.

        What is lost of sum_a (u[a] + e[a]/n) / S + sd2 / n; churn counts once here, for nothing is to be conservative.
        """
        more = items or self.items
        terms = []
        for x in (self.a, self.b):
            now, then = x.seed_variance / x.seeds, (self._apart(x) + x.churn / more) / seeds
            terms.append((max(now - then, 0.0), x.seeds - 1))
        terms.append((max(self._across() * (1 / self.items - 1 / more), 0.0), self.clusters - 1))
        return sum(v for v, _ in terms), _welch(terms)

    def _apart(self, arm: Spread) -> float:
        """u: the variance between an arm's seeds that more items do not take away."""
        return max(arm.seed_variance - arm.churn / self.items, 0.0)

    def _across(self) -> float:
        """sd2: the variance between items that more seeds do not take away."""
        return max(self.items * self.item_variance - sum(x.churn / x.seeds for x in (self.a, self.b)), 0.0)

    def _terms(self) -> list[tuple[float, int]]:
        arms = [(x.seed_variance / x.seeds, x.seeds - 1) for x in (self.a, self.b)]
        return [*arms, (self.item_variance, self.clusters - 1)]

    def _tail(self, distance: float) -> float:
        if self.variance == 0:
            return 0.0 if distance > 0 else 1.0
        return float(special.stdtr(self.df, -distance / np.sqrt(self.variance)))


def difference(a: Matrix, b: Matrix, clusters: Sequence[object] | None = None) -> Difference:
    """The difference of two tables of seeds x items over the same items: two seeds, items and clusters or more.

    Args:
        clusters: a label per item; items with the same label are not independent. None: every item on its own.
    """
    d = a.mean(0) - b.mean(0)
    groups, item_variance = _over_items(d, clusters, is_binary(a) and is_binary(b))
    return Difference(float(d.mean()), spread(a), spread(b), len(d), groups, item_variance)


def paired(a: Matrix, b: Matrix, clusters: Sequence[object] | None = None) -> Difference:
    """The same where seed by seed both are the same model, stored in two ways: what varies between seeds alike in both
    cancels, and how the difference itself varies between seeds is the noise of the runs."""
    seeds = len(a)
    groups, item_variance = _over_items((a - b).mean(0), clusters, is_binary(a) and is_binary(b))
    return Difference(float((a - b).mean()), spread(a - b), Spread(seeds, 0.0, 0.0), a.shape[1], groups, item_variance)


def fixed(a: Matrix, b: Matrix, clusters: Sequence[object] | None = None) -> Difference:
    """The same of two models that no chance had a part in, one row each: the items are all that could be others."""
    certain = Spread(1, 0.0, 0.0)
    groups, item_variance = _over_items((a - b).mean(0), clusters, is_binary(a) and is_binary(b))
    return Difference(float((a - b).mean()), certain, certain, a.shape[1], groups, item_variance)


def _over_items(d: Matrix, clusters: Sequence[object] | None, binary: bool) -> tuple[int, float]:
    """How many items or clusters of them are independent, and the variance of the mean of `d` over them."""
    n, value = len(d), float(d.mean())
    half_item = 1.0 if binary else 0.0
    if clusters is None or len(set(clusters)) == n:
        return n, (float(((d - value) ** 2).sum()) + half_item) / ((n - 1) * n)
    labels = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1]
    groups = int(labels.max()) + 1
    sums = np.bincount(labels, weights=d - value)
    return groups, groups / (groups - 1) * (float((sums**2).sum()) + half_item) / n**2


def is_binary(y: Matrix) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def spread(y: Matrix) -> Spread:
    seeds, items = y.shape
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    churn = float((residual**2).sum()) / ((seeds - 1) * (items - 1))
    return Spread(seeds, max(float(y.mean(1).var(ddof=1)), churn / items), churn)


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float, float] | None:
    """Mean of one value per seed with its t interval; None for fewer than two seeds."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
    half = t_quantile(1 - alpha / 2, len(values) - 1) * error
    return mean, mean - half, mean + half


def t_quantile(p: float, df: float) -> float:
    return float(special.stdtrit(df, p))


def _welch(terms: Sequence[tuple[float, int]]) -> float:
    total = sum(v for v, _ in terms)
    below = sum(v**2 / f for v, f in terms if v > 0)
    return total**2 / below if below > 0 else 1.0
