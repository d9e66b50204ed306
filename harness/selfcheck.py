"""Simulated studies with a known truth: how often the verdict errs, beside the rules that people use.

Scores are 0/1 from a probit model: item i is solved by seed s of arm a when

    m[a] + D[i] + A[a, i] + U[a, s] + C[a, s, i] > 0

with normal terms whose variances add up to 1 and are set from rates that can be observed: accuracy, the share of items
on which two seeds of one arm disagree (churn), on which two arms disagree (across), and the deviation between seeds.
The true difference is put exactly on the margin, where each definite verdict is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from harness.intervals import Difference, Spread
from harness.power import MOST_SEEDS, chance_of_verdict, settle
from harness.ranking import best_probability, front_probability, not_ruled_out, plausible, shown_within

Array = NDArray[np.float64]

MARGIN = 0.01
ALPHA = 0.05
SEEDS = (2, 3, 5, 8)
KINDS = ((0.5, 0.15, 0.22), (0.85, 0.10, 0.14))
"""Accuracy, churn, and disagreement across arms of the grid."""
BATCH = 100
"""Studies simulated at once."""
Plan = int | tuple[int, int]
"""Seeds of both arms, or of each."""


@dataclass(frozen=True)
class World:
    """One scenario. Standard deviations and rates in units of accuracy, 0 to 1."""

    accuracy: float = 0.5
    churn: float = 0.15
    across: float = 0.22
    seed_sd: tuple[float, float] = (0.007, 0.007)
    """Of arm a and of arm b."""
    items: int = 1000
    difference: float = MARGIN
    """True mean of a minus b."""
    collapse: tuple[float, float] = (0.0, 0.0)
    """Probability and size of a run that goes wrong, in both arms; part of an arm's true mean."""
    cluster: int = 1
    """Items that share their difficulty and their preference for an arm."""

    def __str__(self) -> str:
        return f"acc {self.accuracy} churn {self.churn} sd {self.seed_sd} n {self.items}"


def grid() -> list[World]:
    """The 24 scenarios of the promise: two accuracies, three seed deviations, four test sizes."""
    return [
        World(accuracy, churn, across, (sd, sd), items)
        for (accuracy, churn, across), sd, items in product(KINDS, (0.003, 0.007, 0.015), (200, 500, 1000, 2000))
    ]


def stress() -> dict[str, tuple[World, tuple[Plan, ...]]]:
    """Scenarios outside the grid, each with its numbers of seeds."""
    return {
        "seed deviation 2.0 against 0.3 points": (World(seed_sd=(0.02, 0.003)), (*SEEDS, (2, 8), (8, 2))),
        "seed deviation 0.3 against 2.0 points": (World(seed_sd=(0.003, 0.02)), (*SEEDS, (2, 8), (8, 2))),
        "5 % of runs lose 10 points": (World(collapse=(0.05, 0.10)), SEEDS),
        "churn 5 %": (World(churn=0.05, across=0.08), SEEDS),
        "churn 30 %": (World(churn=0.30, across=0.34), SEEDS),
        "8000 items": (World(items=8000), SEEDS),
        "clusters of 5 items, labelled": (World(cluster=5), SEEDS),
        "ceiling: accuracy 0.985, 300 items": (
            World(accuracy=0.985, churn=0.008, across=0.012, items=300, difference=0.005),
            SEEDS,
        ),
    }


class Simulator:
    """Draws studies of one world."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.rng = np.random.default_rng(seed)
        middle = stats.norm.ppf(world.accuracy + world.collapse[0] * world.collapse[1])
        slope = stats.norm.pdf(middle)
        self.seed = tuple(sd / slope for sd in world.seed_sd)
        shared = _correlation(middle, world.across)
        both = _correlation(middle, world.churn)
        self.item, self.own, self.noise = np.sqrt([shared, max(both - shared, 0.0), 1 - both])

    def draw(self, studies: int, seeds: int) -> tuple[Array, Array]:
        """Two arrays of studies x seeds x items."""
        w = self.world
        chance, size = w.collapse
        levels = []
        for accuracy in (w.accuracy + w.difference, w.accuracy):
            # so that the mean over runs, collapsed ones too, is the accuracy
            level = np.full((studies, 1), accuracy)
            if chance:
                level = level + size * (chance - (self.rng.random((studies, seeds)) < chance))
            levels.append(level)
        a, b = self.arms(levels, seeds)
        return a, b

    def arms(self, levels: Sequence[Array], seeds: int) -> list[Array]:
        """Scores of arms with these true accuracies, one array of studies x (seeds or 1) per arm.

        Arms after the first have the seed deviation of arm b.
        """
        w = self.world
        groups = -(-w.items // w.cluster)
        studies = len(levels[0])
        item = self._spread(self._normal(studies, 1, groups) * self.item)
        scores = []
        for arm, level in enumerate(levels):
            sd = self.seed[min(arm, 1)]
            # the seed's effect adds to the variance of 1: rescale so that the mean accuracy stays what it should be
            luck = special.ndtri(level)[:, :, None] * np.sqrt(1 + sd**2) + self._normal(studies, seeds, 1) * sd
            own = self._spread(self._normal(studies, 1, groups) * self.own)
            noise = self._normal(studies, seeds, w.items) * self.noise
            scores.append((luck.astype(np.float32) + (item + own) + noise > 0).astype(np.float64))
        return scores

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def _spread(self, per_group: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(per_group, self.world.cluster, axis=2)[:, :, : self.world.items]


@dataclass(frozen=True)
class Parts:
    """The terms of `harness.intervals` for many studies at once; a test holds the two against each other."""

    value: Array
    arms: tuple[Array, Array]
    """v[a] of either arm."""
    churn: tuple[Array, Array]
    item: Array
    seeds: tuple[int, int]
    items: int
    clusters: int

    @property
    def variance(self) -> Array:
        return np.asarray(sum(self._arms()) + self.item)

    @property
    def df(self) -> Array:
        below = sum(v**2 / (s - 1) for v, s in zip(self._arms(), self.seeds, strict=True))
        return np.asarray(self.variance**2 / (below + self.item**2 / (self.clusters - 1)))

    def bounds(self, alpha: float) -> tuple[Array, Array]:
        half = special.stdtrit(self.df, 1 - alpha / 2) * np.sqrt(self.variance)
        return self.value - half, self.value + half

    def _arms(self) -> list[Array]:
        return [v / s for v, s in zip(self.arms, self.seeds, strict=True)]

    def differences(self) -> Iterator[Difference]:
        """Study by study, as `harness.intervals` has it."""
        for i in range(len(self.value)):
            one, other = (
                Spread(s, float(v[i]), float(e[i])) for s, v, e in zip(self.seeds, self.arms, self.churn, strict=True)
            )
            yield Difference(float(self.value[i]), one, other, self.items, self.clusters, float(self.item[i]))


def parts(a: Array, b: Array, cluster: int = 1, half_item: float = 1.0) -> Parts:
    """Terms of the interval, studies x seeds x items for each arm; for scores other than 0/1 `half_item` is 0."""
    n = a.shape[2]
    (va, ea), (vb, eb) = _spreads(a), _spreads(b)
    d = a.mean(1) - b.mean(1)
    value = d.mean(1)
    deviation = d - value[:, None]
    if cluster == 1:
        groups = n
        item = ((deviation**2).sum(1) + half_item) / ((n - 1) * n)
    else:
        edges = np.arange(0, n, cluster)
        groups = len(edges)
        sums = np.add.reduceat(deviation, edges, axis=1)
        item = groups / (groups - 1) * ((sums**2).sum(1) + half_item) / n**2
    return Parts(value, (va, vb), (ea, eb), item, (a.shape[1], b.shape[1]), n, groups)


Rule = Callable[[Array, Array, float], tuple[Array, Array]]
"""Bounds of a rule for many studies; a verdict is a bound beyond the margin."""


def crossed(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """Ours: seed and item variance added; clusters need `parts` itself."""
    return parts(a, b).bounds(alpha)


def means(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """Whoever has the higher mean wins."""
    d = a.mean((1, 2)) - b.mean((1, 2))
    return d, d


def best_seed(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """Whoever has the better best run wins."""
    d = a.mean(2).max(1) - b.mean(2).max(1)
    return d, d


def one_seed_items(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """A paired t interval over the items of one run each (as McNemar's test)."""
    return _t_interval(a[:, 0] - b[:, 0], alpha)


def averaged_items(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """A paired t interval over items, seeds averaged away."""
    return _t_interval(a.mean(1) - b.mean(1), alpha)


def seeds_only(a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """Welch's t interval over the seeds' means, items taken as given."""
    x, y = a.mean(2), b.mean(2)
    vx, vy = x.var(1, ddof=1) / x.shape[1], y.var(1, ddof=1) / y.shape[1]
    total = np.maximum(vx + vy, 1e-12)
    df = total**2 / np.maximum(vx**2 / (x.shape[1] - 1) + vy**2 / (y.shape[1] - 1), 1e-24)
    half = special.stdtrit(df, 1 - alpha / 2) * np.sqrt(total)
    d = x.mean(1) - y.mean(1)
    return d - half, d + half


RULES: dict[str, Rule] = {
    "higher mean wins": means,
    "best seed of each": best_seed,
    "items of one seed": one_seed_items,
    "items, seeds averaged": averaged_items,
    "seeds only (Welch)": seeds_only,
    "unlabelled": crossed,
    "ours": crossed,
}


@dataclass(frozen=True)
class Errors:
    """Shares of simulated studies, the truth being on the margin."""

    better: float
    """Wrongly called better by more than the margin."""
    not_better: float
    """Wrongly called not better by more than the margin."""
    coverage: float
    """Intervals that held the truth."""

    @property
    def worse_side(self) -> float:
        return max(self.better, self.not_better)


class Tally:
    """Counts of a rule's errors over batches of studies."""

    def __init__(self) -> None:
        self.above = self.below = self.studies = 0

    def add(self, low: Array, high: Array, truth: float) -> None:
        self.above += int((low > truth).sum())
        self.below += int((high < truth).sum())
        self.studies += len(low)

    def errors(self) -> Errors:
        above, below = self.above / self.studies, self.below / self.studies
        return Errors(above, below, 1 - above - below)


def errors(
    world: World,
    studies: int,
    plans: Sequence[Plan] = SEEDS,
    rules: Sequence[str] = ("ours",),
    alpha: float = ALPHA,
    seed: int = 0,
) -> dict[tuple[Plan, str], Errors]:
    """How often each rule errs with each number of seeds, on studies whose true difference is the margin.

    Fewer seeds are the first of the same runs.
    """
    simulator = Simulator(world, seed)
    tallies = {(plan, rule): Tally() for plan in plans for rule in rules}
    most = max(max(_both(plan)) for plan in plans)
    for count in _batches(studies):
        a, b = simulator.draw(count, most)
        for (plan, rule), tally in tallies.items():
            one, other = _both(plan)
            x, y = a[:, :one], b[:, :other]
            bounds = parts(x, y, world.cluster).bounds(alpha) if rule == "ours" else RULES[rule](x, y, alpha)
            tally.add(*bounds, world.difference)
    return {key: tally.errors() for key, tally in tallies.items()}


def grid_errors(
    studies: int, rules: Sequence[str] = ("ours",), seed: int = 0
) -> Iterator[tuple[World, Plan, str, Errors]]:
    """Every world of the grid with every number of seeds."""
    for i, world in enumerate(grid()):
        for (plan, rule), found in errors(world, studies, SEEDS, rules, seed=seed * 1000 + i).items():
            yield world, plan, rule, found


def looks_error(
    world: World, looks: Sequence[int], alphas: Sequence[float], studies: int, seed: int = 0
) -> tuple[float, float]:
    """Errors to either side (better, not better) of stopping at the first look that shows something."""
    simulator = Simulator(world, seed)
    stops = Stops(world.difference)
    for count in _batches(studies):
        a, b = simulator.draw(count, max(looks))
        stops.add(
            parts(a[:, :s], b[:, :s], world.cluster).bounds(alpha) for s, alpha in zip(looks, alphas, strict=True)
        )
    return stops.shares()


class Stops:
    """Counts the errors of studies that stop at the first look which shows something."""

    def __init__(self, truth: float) -> None:
        self.truth = truth
        self.above = self.below = self.studies = 0

    def add(self, looks: Iterable[tuple[Array, Array]]) -> None:
        open_: NDArray[np.bool_] | None = None
        for low, high in looks:
            if open_ is None:
                open_ = np.ones(len(low), dtype=bool)
                self.studies += len(low)
            above, below = low > self.truth, high < self.truth
            self.above += int((open_ & above).sum())
            self.below += int((open_ & below).sum())
            open_ &= ~(above | below)

    def shares(self) -> tuple[float, float]:
        return self.above / self.studies, self.below / self.studies


def seed_noise_looks(
    looks: Sequence[int], alphas: Sequence[float], studies: int, ratio: float = 10.0, seed: int = 0
) -> tuple[float, float]:
    """`looks_error` where seeds are all the noise there is and the arms' deviations differ by `ratio`."""
    rng = np.random.default_rng(seed)
    runs = [rng.standard_normal((studies, max(looks))) * sd for sd in (1.0, 1 / ratio)]
    nothing = np.zeros(studies)

    def look(s: int) -> Parts:
        x, y = (r[:, :s] for r in runs)
        spreads = x.var(1, ddof=1), y.var(1, ddof=1)
        return Parts(x.mean(1) - y.mean(1), spreads, (nothing, nothing), nothing, (s, s), 2, 2)

    stops = Stops(0.0)
    stops.add(look(s).bounds(alpha) for s, alpha in zip(looks, alphas, strict=True))
    return stops.shares()


def power(world: World, seeds: int, margin: float, studies: int, alpha: float = ALPHA, seed: int = 0) -> float:
    """Share of studies with any verdict at the margin."""
    simulator = Simulator(world, seed)
    decided = 0
    for count in _batches(studies):
        low, high = parts(*simulator.draw(count, seeds)).bounds(alpha)
        decided += int(((low > margin) | (high < margin)).sum())
    return decided / studies


@dataclass(frozen=True)
class Tuning:
    """How well one tuning run does: trials at random learning rates, the best by a noisy score is taken."""

    trials: int = 8
    cost: float = 0.03
    """Loss of accuracy one decade from the best learning rate; it grows with the square of the distance."""
    noise: float = 0.015
    """Standard deviation of a trial's validation score."""

    def shortfalls(self, rng: np.random.Generator, *shape: int) -> Array:
        """How far below its best the configuration of each tuning run lies, in units of accuracy."""
        true = -self.cost * rng.uniform(-1, 1, (*shape, self.trials)) ** 2
        seen = true + rng.normal(0, self.noise, true.shape)
        return -np.take_along_axis(true, seen.argmax(-1)[..., None], -1)[..., 0]


def method_errors(
    world: World, tunings: tuple[Tuning, Tuning], repeats: int, fresh: int, studies: int, seed: int = 0
) -> Errors:
    """How often we err about *methods* whose true difference, over all tuning runs, is the margin.

    Args:
        repeats: independent tunings per arm; each one's winner is run on `fresh` seeds of its own. With one tuning, the
            seeds are the units, which is the mistake.
    """
    simulator = Simulator(world, seed)
    rng = np.random.default_rng([seed, 1])
    expected = [float(t.shortfalls(rng, 200_000).mean()) for t in tunings]
    tally = Tally()
    for count in _batches(studies):
        levels = []
        for tuning, mean, shift in zip(tunings, expected, (world.difference, 0.0), strict=True):
            shortfall = tuning.shortfalls(rng, count, repeats)
            levels.append(np.repeat(world.accuracy + shift + mean - shortfall, fresh, axis=1))
        a, b = simulator.arms(levels, repeats * fresh)
        if repeats > 1:
            a, b = (y.reshape(count, repeats, fresh, -1).mean(2) for y in (a, b))
        tally.add(*parts(a, b).bounds(ALPHA), world.difference)
    return tally.errors()


@dataclass(frozen=True)
class Forecasts:
    """Predicted chances of a verdict, and whether there was one."""

    chance: Array
    came: NDArray[np.bool_]
    promised: int
    """Open studies that were told "80 % with N seeds"."""
    kept: int
    """Of these, with a verdict at N."""
    open: int


def forecasts(world: World, margin: float, studies: int, spread: float = 0.02, seed: int = 0) -> Forecasts:
    """Studies with normal true differences, looked at with 3 seeds and carried on to as many as were asked for."""
    simulator = Simulator(world, seed)
    rng = np.random.default_rng([seed, 2])
    chance: list[float] = []
    came: list[bool] = []
    promised = kept = unsettled = 0
    for count in _batches(studies):
        levels = world.accuracy + rng.normal(0, spread, (count, 1))
        a, b = simulator.arms([levels, np.full((count, 1), world.accuracy)], MOST_SEEDS)
        settled = {s: _any_verdict(parts(a[:, :s], b[:, :s]), margin) for s in (3, 5, 8)}
        for i, found in enumerate(parts(a[:, :3], b[:, :3]).differences()):
            if settled[3][i]:
                continue
            unsettled += 1
            for s in (5, 8):
                chance.append(chance_of_verdict(found, margin, s))
                came.append(bool(settled[s][i]))
            plan = settle(found, margin)
            if plan is not None and plan.items == world.items:
                promised += 1
                then = parts(a[i : i + 1, : plan.seeds], b[i : i + 1, : plan.seeds])
                kept += bool(_any_verdict(then, margin)[0])
    return Forecasts(np.array(chance), np.array(came), promised, kept, unsettled)


def largest_gap(predicted: Array, came: NDArray[np.bool_], bins: int = 10, least: int = 50) -> float:
    """Largest distance of a bin's mean prediction from how often it came true, over bins of `least` cases or more."""
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [
        abs(float(predicted[which == i].mean() - came[which == i].mean()))
        for i in range(bins)
        if (which == i).sum() >= least
    ]
    return max(gaps, default=float("nan"))


@dataclass(frozen=True)
class Choices:
    """Shares of studies of several arms, the last of which is truly best and the first the cheapest."""

    covered: float
    """The best arm is in the best set."""
    wrong: float
    """The recommended arm, the cheapest shown to be within the margin, is not within it."""
    naive_best: float
    """The arm with the highest mean is the best one."""
    naive_wrong: float
    """The cheapest arm within the margin by means is not within it."""


def choices(world: World, gap: float, margin: float, seeds: int, studies: int, arms: int = 4, seed: int = 0) -> Choices:
    """Which arm is taken where all but the last truly lie `gap` below it. A gap of the margin is not within it."""
    simulator = Simulator(world, seed)
    names = [str(i) for i in range(arms)]
    covered = wrong = naive_best = naive_wrong = 0
    for count in _batches(studies):
        levels = [np.full((count, 1), world.accuracy - gap * (i < arms - 1)) for i in range(arms)]
        scores = simulator.arms(levels, seeds)
        by_pair = {(i, j): list(parts(scores[i], scores[j]).differences()) for i, j in combinations(range(arms), 2)}
        for k in range(count):
            pairs = {(names[i], names[j]): found[k] for (i, j), found in by_pair.items()}
            pairs |= {(names[j], names[i]): found[k].mirrored() for (i, j), found in by_pair.items()}
            covered += names[-1] in not_ruled_out(names, pairs, ALPHA)
            shown = shown_within(names, pairs, margin, ALPHA)
            taken = next((name for name in names if shown[name]), names[-1])
            wrong += taken != names[-1] and gap >= margin
            means = [float(y[k].mean()) for y in scores]
            naive_best += int(np.argmax(means)) == arms - 1
            near = next(i for i, mean in enumerate(means) if mean >= max(means) - margin)
            naive_wrong += near != arms - 1 and gap >= margin
    return Choices(covered / studies, wrong / studies, naive_best / studies, naive_wrong / studies)


def probability_gaps(
    world: World, seeds: int, studies: int, arms: int = 4, spread: float = 0.015, seed: int = 0
) -> tuple[float, float]:
    """Largest gaps of the probabilities to be best and to lie on the front, over arms with normal true accuracies."""
    simulator = Simulator(world, seed)
    rng = np.random.default_rng([seed, 3])
    best: tuple[list[float], list[bool]] = ([], [])
    front: tuple[list[float], list[bool]] = ([], [])
    costs = range(arms)
    for count in _batches(studies):
        truth = world.accuracy + rng.normal(0, spread, (count, arms))
        scores = simulator.arms([truth[:, i : i + 1] for i in range(arms)], seeds)
        for k in range(count):
            drawn = plausible([y[k] for y in scores], count=1000, seed=k)
            best[0].extend(best_probability(drawn))
            best[1].extend(truth[k] == truth[k].max())
            front[0].extend(front_probability(drawn, costs)[1:])  # the cheapest arm always lies on it
            front[1].extend((truth[k] >= np.maximum.accumulate(truth[k]))[1:])
    gaps = [largest_gap(np.array(p), np.array(t)) for p, t in (best, front)]
    return gaps[0], gaps[1]


def _any_verdict(found: Parts, margin: float) -> NDArray[np.bool_]:
    low, high = found.bounds(ALPHA)
    return np.asarray((low > margin) | (high < -margin) | ((low > -margin) & (high < margin)))


def _both(plan: Plan) -> tuple[int, int]:
    return (plan, plan) if isinstance(plan, int) else plan


def _spreads(y: Array) -> tuple[Array, Array]:
    _, seeds, n = y.shape
    by_seed, by_item, whole = y.mean(2), y.mean(1), y.mean((1, 2))
    residual = (
        (y**2).sum((1, 2)) - seeds * (by_item**2).sum(1) - n * (by_seed**2).sum(1) + seeds * n * whole**2
    )  # of the two-way table, by sums of squares
    churn = np.maximum(residual, 0.0) / ((seeds - 1) * (n - 1))
    return np.maximum(by_seed.var(1, ddof=1), churn / n), churn


def _t_interval(d: Array, alpha: float) -> tuple[Array, Array]:
    half = stats.t.ppf(1 - alpha / 2, d.shape[1] - 1) * d.std(1, ddof=1) / np.sqrt(d.shape[1])
    return d.mean(1) - half, d.mean(1) + half


def _correlation(threshold: float, disagree: float) -> float:
    """Correlation of two latent scores whose signs against the threshold differ with this probability."""
    p = stats.norm.cdf(threshold)

    def excess(rho: float) -> float:
        both = stats.multivariate_normal.cdf([threshold, threshold], cov=[[1, rho], [rho, 1]])
        return float(2 * (p - both) - disagree)

    return float(optimize.brentq(excess, 1e-6, 1 - 1e-9))


def _batches(studies: int) -> Iterator[int]:
    for start in range(0, studies, BATCH):
        yield min(BATCH, studies - start)
