"""Before spending more: what a plan can show, and the chance that more seeds or items bring a verdict."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from harness.intervals import Difference, Spread, t_quantile

QUANTILES = (np.arange(4) + 0.5) / 4
"""Of the true variance between seeds, at which a chance is worked out."""
MOST_SEEDS = 30
"""Beyond this a plan is called too close to call: the cheaper arm is the answer."""


@dataclass(frozen=True)
class Noise:
    """How noisy an evaluation is, assumed before any run or taken from a pilot. Rates are of 0/1 scores."""

    seed_sd: float = 0.007
    """Standard deviation between seeds of the true score, in units of the score."""
    churn: float = 0.15
    """Share of items on which two seeds of one arm disagree."""
    across: float = 0.22
    """Share of items on which runs of two arms disagree."""

    def difference(self, seeds: int, items: int) -> Difference:
        """What a study with this noise would find if the arms were equal."""
        churn = self.churn / 2  # two draws of a 0/1 score with variance e disagree with probability 2 e
        arm = Spread(seeds, self.seed_sd**2 + churn / items, churn)
        across = max(self.across - self.churn, 0.0)
        return Difference(0.0, arm, arm, items, items, (across + 2 * churn / seeds) / items)


def decidable_gap(
    noise: Difference, seeds: int, items: int | None = None, alpha: float = 0.05, chance: float = 0.8
) -> float:
    """How far from the margin the truth must lie for a verdict with this chance, in units of the score.

    Infinite for one seed, which never brings a verdict.
    """
    if seeds < 2:
        return math.inf
    variance, df = noise.with_more(seeds, items)
    return (t_quantile(1 - alpha / 2, df) + t_quantile(chance, df)) * float(np.sqrt(variance))


def chance_of_verdict(
    found: Difference,
    margin: float,
    seeds: int,
    items: int | None = None,
    alpha: float = 0.05,
    *,
    equivalence: bool = True,
) -> float:
    """The chance that `seeds` per arm on `items` items bring any verdict at the margin, given what is known now.

    Three things are not known yet: the true variance between seeds (inverse chi-square around what was found, with
    twice the degrees of freedom, as one far from it is unlikely beforehand), how far the difference will move
    (`Difference.moves`), and how lucky it was so far: it goes back towards 0 by what James and Stein (1961) have for
    one difference. `benchmarks/verdict_errors.py` holds such chances against what came (G7): over all scenarios they
    are right within 0.03; up to 0.2 too high where seeds scatter as much as arms truly differ, too low where far less.
    """
    if seeds < 2:
        return 0.0
    df = 2 * found.moves(10 * seeds)[1]  # of the two arms' seeds alone
    factors = df / (2 * special.gammaincinv(df / 2, QUANTILES))
    return float(np.mean([_chance(_noisier(found, f), margin, seeds, items, alpha, equivalence) for f in factors]))


def _noisier(found: Difference, factor: float) -> Difference:
    a, b = (replace(x, seed_variance=max(factor * x.seed_variance, x.churn / found.items)) for x in (found.a, found.b))
    return replace(found, a=a, b=b)


def _chance(found: Difference, margin: float, seeds: int, items: int | None, alpha: float, equivalence: bool) -> float:
    """The chance if the variances are as they are in `found`."""
    variance, df = found.with_more(seeds, items)
    half = t_quantile(1 - alpha / 2, df) * float(np.sqrt(variance))
    moves = found.moves(seeds, items)[0]
    back = moves / max(found.value**2, found.variance) if moves > 0 else 0.0
    expected = found.value * (1 - back)
    regions = [(margin + half, np.inf), (-np.inf, -margin - half)]
    if equivalence and margin > half:
        regions.append((half - margin, margin - half))
    if moves == 0:
        return float(any(low <= expected <= high for low, high in regions))
    ends = (np.array(regions) - expected) / np.sqrt(moves * (1 - back))
    below, above = special.ndtr(ends).T
    return float((above - below).sum())


@dataclass(frozen=True)
class Plan:
    """What would settle an open question."""

    seeds: int
    items: int
    chance: float


def settle(found: Difference, margin: float, alpha: float = 0.05, chance: float = 0.8) -> Plan | None:
    """The fewest seeds on the same items that bring a verdict with this chance, else the fewest items at 5 seeds; None
    when neither does within reason: the arms are too close to call, take the cheaper one.

    Models that no chance had a part in have one run each: only items can settle them.
    """
    runs = max(found.a.seeds, found.b.seeds)
    for seeds in range(runs + 1, MOST_SEEDS + 1) if runs > 1 else ():
        reached = chance_of_verdict(found, margin, seeds, alpha=alpha)
        if reached >= chance:
            return Plan(seeds, found.items, reached)
    for factor in (2, 5, 10, 20, 50):
        items = found.items * factor
        seeds = max(5, runs)
        reached = chance_of_verdict(found, margin, seeds, items, alpha)
        if reached >= chance:
            return Plan(seeds if runs > 1 else 1, items, reached)
    return None
