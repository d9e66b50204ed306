"""What the statistics promise, measured by simulation: goals G1 to G11, each met or not, naive rules beside."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from harness.compare import compare, look_alpha, unplanned_alpha
from harness.selfcheck import (
    ALPHA,
    KINDS,
    MARGIN,
    SEEDS,
    Errors,
    Plan,
    Tuning,
    World,
    choices,
    errors,
    forecasts,
    grid_errors,
    largest_gap,
    looks_error,
    method_errors,
    power,
    probability_gaps,
    seed_noise_looks,
    stress,
)

Unit = Literal["%", "", "s"]

NAIVE = ("higher mean wins", "best seed of each", "items of one seed", "items, seeds averaged", "seeds only (Welch)")
LOOKS = (3, 5, 8)
UNPLANNED = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Goal:
    """One figure and what it should be. Shares are from 0 to 1."""

    number: str
    measure: str
    figure: float
    goal: float
    at_most: bool = True
    """Whether the figure should be at most the goal, else at least."""
    unit: Unit = "%"
    naive: dict[str, float] = field(default_factory=dict)
    """The same figure of rules that people use."""
    where: str = ""
    """Where the figure is at its worst, or what it was made with."""

    @property
    def met(self) -> bool:
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal


Progress = Callable[[str], None]


def goals(studies: int, progress: Progress, seed: int = 0, rules: tuple[str, ...] = NAIVE) -> Iterator[Goal]:
    """All goals that need no results, in turn. `studies` are simulated in every cell of the grid; fewer elsewhere."""
    half, tenth = max(studies // 2, 20), max(studies // 10, 20)
    progress(f"G1, G4: 24 scenarios x {len(SEEDS)} numbers of seeds x {studies} studies")
    yield from _grid(studies, rules, seed)
    progress(f"G2: {len(stress())} stress scenarios")
    yield _stress(half, rules, seed)
    progress("G5: looks")
    yield from _looks(half, seed)
    progress("G6: power")
    yield _power(studies, seed)
    progress("G7: predicted chances of a verdict")
    yield from _forecasts(half, seed)
    progress("G8: claims about methods")
    yield _methods(half, seed)
    progress("G9: the best set, recommendations, probabilities")
    yield from _choices(half, seed)
    progress("G10: refusals")
    yield _refusals(tenth, seed)
    progress("G11: time of a verdict")
    yield Goal("G11", "time of a verdict, 10 arms x 8 seeds x 2000 items", verdict_seconds(), 0.2, unit="s")


def _grid(studies: int, rules: tuple[str, ...], seed: int) -> list[Goal]:
    found = [(w, plan, rule, e) for w, plan, rule, e in grid_errors(studies, (*rules, "ours"), seed)]
    ours = [(w, plan, e) for w, plan, rule, e in found if rule == "ours"]
    made = []
    for name, side in (("better", _better), ("not better", _not_better)):
        world, plan, worst = max(ours, key=lambda row: side(row[2]))
        naive = {r: max(side(e) for _, _, rule, e in found if rule == r) for r in rules}
        where = f"{world}, {plan} seeds; mean {np.mean([side(e) for *_, e in ours]):.1%}"
        measure = f'false "{name}" at the margin, worst of the grid'
        made.append(Goal("G1", measure, side(worst), 0.03, naive=naive, where=where))
    world, plan, least = min(ours, key=lambda row: row[2].coverage)
    intervals = [r for r in rules if r not in ("higher mean wins", "best seed of each")]
    naive = {r: min(e.coverage for _, _, rule, e in found if rule == r) for r in intervals}
    where = f"{world}, {plan} seeds; mean {np.mean([e.coverage for *_, e in ours]):.1%}"
    measure = "coverage of the 95 % interval, least of the grid"
    made.append(Goal("G4", measure, least.coverage, 0.945, at_most=False, naive=naive, where=where))
    return made


def _stress(studies: int, rules: tuple[str, ...], seed: int) -> Goal:
    worst, where = 0.0, ""
    naive = dict.fromkeys((*rules, "unlabelled"), 0.0)
    for i, (name, (world, plans)) in enumerate(stress().items()):
        tried = (*rules, "unlabelled", "ours") if world.cluster > 1 else (*rules, "ours")
        for (plan, rule), found in errors(world, studies, plans, tried, seed=seed * 1000 + 100 + i).items():
            if rule != "ours":
                naive[rule] = max(naive[rule], found.worse_side)
            elif found.worse_side > worst:
                worst, where = found.worse_side, f"{name}, {_seeds(plan)} seeds"
    naive["ours without labels of clusters"] = naive.pop("unlabelled")
    return Goal("G2", "the same on stress scenarios, worst side", worst, 0.05, naive=naive, where=where)


def _looks(studies: int, seed: int) -> list[Goal]:
    each = look_alpha(ALPHA, LOOKS)
    plans = (
        (f"looks {LOOKS} at {each / 2:.2%} a side", LOOKS, [each] * len(LOOKS)),
        ("5 unplanned looks, the k-th at alpha / k(k+1)", UNPLANNED, [unplanned_alpha(ALPHA, k + 1) for k in range(5)]),
    )
    made = []
    for name, looks, alphas in plans:
        items, seeds = _total_of_looks(looks, alphas, studies, seed)
        naive = {"every look at 5 %": max(_total_of_looks(looks, [ALPHA] * len(looks), studies, seed))}
        where = f"{items:.1%} on scenarios of the grid; {seeds:.1%} if seeds were all the noise, at the worst ratio"
        made.append(Goal("G5", f"total error, both sides, {name}", max(items, seeds), 0.05, naive=naive, where=where))
    return made


def _total_of_looks(looks: tuple[int, ...], alphas: list[float], studies: int, seed: int) -> tuple[float, float]:
    """Errors to both sides together: worst of some scenarios of the grid, and worst of pure seed noise."""
    worlds = [World(*kind, (sd, sd), 2000) for kind in KINDS for sd in (0.003, 0.015)]
    return (
        max(sum(looks_error(world, looks, alphas, studies, seed * 1000 + 200)) for world in worlds),
        max(sum(seed_noise_looks(looks, alphas, 100 * studies, ratio, seed)) for ratio in (1, 7, 100)),
    )


def _power(studies: int, seed: int) -> Goal:
    world = World(difference=MARGIN + 0.035)
    found = power(world, 5, MARGIN, studies, seed=seed * 1000 + 300)
    return Goal("G6", "verdicts at 3.5 points beyond the margin, 5 seeds, 1000 items", found, 0.78, at_most=False)


def _forecasts(studies: int, seed: int) -> list[Goal]:
    made = [
        forecasts(World(seed_sd=(sd, sd), items=items), MARGIN, studies, seed=seed * 1000 + 400 + i)
        for i, (sd, items) in enumerate(((0.003, 1000), (0.007, 1000), (0.015, 1000), (0.007, 2000)))
    ]
    chance, came = np.concatenate([f.chance for f in made]), np.concatenate([f.came for f in made])
    promised, kept = sum(f.promised for f in made), sum(f.kept for f in made)
    each = float(np.nanmax([0.0, *(largest_gap(f.chance, f.came) for f in made)]))
    gap = largest_gap(chance, came)
    cases = f"{len(chance)} predictions; largest in a bin of 50 or more of any one scenario {each:.2f}"
    share = kept / promised if promised else float("nan")
    offered = f"offered in {promised} of {sum(f.open for f in made)} open studies"
    return [
        Goal("G7", "predicted against realised chance of a verdict, largest gap", gap, 0.15, unit="", where=cases),
        Goal("G7", '"80 % with N seeds" that brought a verdict', share, 0.7, at_most=False, where=offered),
    ]


def _methods(studies: int, seed: int) -> Goal:
    tunings = Tuning(cost=0.03), Tuning(cost=0.12)
    cases = [(World(items=items), repeats) for items in (1000, 4000) for repeats in (3, 5)]
    found = {(w.items, k): method_errors(w, tunings, k, 1, studies, seed * 1000 + 500).worse_side for w, k in cases}
    single = max(
        method_errors(World(items=items), tunings, 1, 8, studies, seed * 1000 + 510).worse_side
        for items in (1000, 4000)
    )
    return Goal(
        "G8",
        "claims about methods from 3 independent tunings, worst side",
        max(e for (_, k), e in found.items() if k == 3),
        0.05,
        naive={"8 seeds of one tuned winner": single},
        where=f"one arm 4 times harder to tune; 5 tunings {max(e for (_, k), e in found.items() if k == 5):.1%}",
    )


def _choices(studies: int, seed: int) -> list[Goal]:
    equal = choices(World(), 0.0, MARGIN, 5, studies, seed=seed * 1000 + 600)
    apart = [
        choices(World(items=items), gap, gap, seeds, studies, seed=seed * 1000 + 601)
        for items, gap, seeds in ((1000, 0.03, 3), (1000, 0.03, 8), (4000, 0.02, 5))
    ]
    gaps = [
        probability_gaps(World(seed_sd=(sd, sd)), seeds, studies, seed=seed * 1000 + 602)
        for sd, seeds in ((0.007, 3), (0.007, 5), (0.015, 5))
    ]
    covered, wrong = min(c.covered for c in (equal, *apart)), max(c.wrong for c in apart)
    best = {"the highest mean is the best": min(c.naive_best for c in apart)}
    cheap = {"cheapest within the margin by means": max(c.naive_wrong for c in apart)}
    where = "3 cheaper arms, all exactly at the margin"
    return [
        Goal("G9", "best set holds the best of 4 arms", covered, 0.95, at_most=False, naive=best),
        Goal("G9", "recommended arm is not within the margin", wrong, 0.05, naive=cheap, where=where),
        Goal("G9", "P(best) against how often it was, largest gap", max(g[0] for g in gaps), 0.12, unit=""),
        Goal("G9", "P(on the front) against how often it was, largest gap", max(g[1] for g in gaps), 0.12, unit=""),
    ]


def _refusals(studies: int, seed: int) -> Goal:
    """What `compare` itself has to refuse; undeclared looks, versions and tuning on the test split need a study."""
    rng = np.random.default_rng(seed)
    right = 0
    for i in range(studies):
        whole = _frame(rng, arms=2, seeds=3, items=20)
        other = whole["arm"] == "arm-1"
        broken = (
            whole[~(other & (whole["seed"] > 0))],  # one seed
            whole[~(other & (whole["example_id"] == "item-7"))],  # an item less
            whole[~(other & (whole["example_id"] == "item-7") & (whole["seed"] == 1))],  # an item less in one run
        )[i % 3]
        refused = compare(broken, "arm-0", MARGIN)["arm-1"]
        shown = compare(whole, "arm-0", MARGIN)["arm-1"]
        right += (
            refused.interval is None and refused.reason is not None and refused.p is None and shown.naive is not None
        )
    return Goal("G10", "one seed and unmatched items refused, naive verdict beside ours", right / studies, 1.0, False)


def verdict_seconds(repeats: int = 3) -> float:
    """Least time of `compare` on a table of 10 arms x 8 seeds x 2000 items."""
    scores = _frame(np.random.default_rng(0), arms=10, seeds=8, items=2000)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        compare(scores, "arm-0", MARGIN)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _frame(rng: np.random.Generator, arms: int, seeds: int, items: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": np.repeat([f"arm-{i}" for i in range(arms)], seeds * items),
            "seed": np.tile(np.repeat(np.arange(seeds), items), arms),
            "example_id": np.tile([f"item-{i}" for i in range(items)], arms * seeds),
            "score": (rng.random(arms * seeds * items) < 0.5).astype(float),
        }
    )


def _better(found: Errors) -> float:
    return found.better


def _not_better(found: Errors) -> float:
    return found.not_better


def _seeds(plan: Plan) -> str:
    return str(plan) if isinstance(plan, int) else f"{plan[0]} and {plan[1]}"
