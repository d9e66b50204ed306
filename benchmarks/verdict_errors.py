"""How often the verdict errs, beside the rules that people use: the full grid of goals G1 to G11.

    python benchmarks/verdict_errors.py [--reps 10000] [--pools results/tiny-seeds]

`harness selfcheck stats` is the same with fewer studies and without G3, which needs real runs: a study's folder with
100 confirmed seeds or more of each of two arms. Studies are drawn from these runs, with a margin at their
true difference.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from harness.cli._goals import render
from harness.compare import look_alpha, tables_of
from harness.goals import LOOKS, NAIVE, Goal, goals
from harness.intervals import is_binary
from harness.selfcheck import ALPHA, BATCH, RULES, SEEDS, Array, Errors, Stops, Tally, parts
from harness.store import StudyStore

LEAST_SEEDS = 100


@dataclass(frozen=True)
class Pool:
    """All runs of an arm on one metric, seeds x items."""

    arm: str
    metric: str
    scores: Array

    def __str__(self) -> str:
        means = self.scores.mean(1)
        return (
            f"{self.arm}, {self.metric}: {len(means)} seeds x {self.scores.shape[1]} items, mean {means.mean():.3f}, "
            f"deviation of seeds {means.std(ddof=1):.4f}, skewness {stats.skew(means):+.2f}, "
            f"lowest {means.min():.3f}, highest {means.max():.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=10_000, help="studies per scenario of the grid")
    parser.add_argument("--pools", type=Path, help="folder of a study with 100 seeds per arm or more")
    parser.add_argument("--least-seeds", type=int, default=LEAST_SEEDS, help="fewer seeds than this are no pool")
    parser.add_argument("--only-pools", action="store_true", help="G3 alone")
    options = parser.parse_args()
    began = time.perf_counter()

    def progress(what: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {what}", file=sys.stderr, flush=True)

    found = [] if options.only_pools else list(goals(options.reps, progress))
    pools = read_pools(options.pools, options.least_seeds) if options.pools else {}
    if pools:
        progress(f"G3: {sum(map(len, pools.values()))} pools of real runs")
        skewed = {metric: [*some, mixed(some[0], some[1], 40)] for metric, some in pools.items()}
        for pool in (p for some in skewed.values() for p in some):
            print(pool)
        found += real_goals(skewed, options.reps)
        collapsing = {metric: [some[0], mixed(some[0], some[1], 10)] for metric, some in pools.items()}
        worst = real_goals(collapsing, options.reps)[0]
        print(f"no goal: failed runs averaged in, {worst.where}: {worst.figure:.1%} (why they are counted instead)")
    else:
        print(f"G3 skipped: no two arms with {options.least_seeds} confirmed seeds in {options.pools or '--pools'}")
    progress("done")
    print(render(sorted(found, key=lambda goal: int(goal.number[1:]))))
    print(f"{sum(g.met for g in found)} of {len(found)} figures met, {options.reps} studies per scenario")
    sys.exit(any(not g.met for g in found))


def read_pools(folder: Path, least: int) -> dict[str, list[Pool]]:
    """The pools of a stored study by metric, the better arm first, where two arms or more have enough seeds."""
    if not (folder / "examples").is_dir():
        return {}
    examples = StudyStore(folder).table("examples")
    if not len(examples):
        return {}
    confirmed = examples[examples["phase"] == "confirm"]
    pools = {}
    for (task, metric), rows in confirmed.groupby(["task", "metric"], sort=True):
        some = [Pool(arm, f"{task}/{metric}", _complete(table)) for arm, table in tables_of(rows).items()]
        enough = [p for p in some if len(p.scores) >= least]
        if len(enough) >= 2:
            pools[f"{task}/{metric}"] = sorted(enough, key=lambda p: float(p.scores.mean()), reverse=metric != "loss")
    return pools


def mixed(a: Pool, b: Pool, one_in: int) -> Pool:
    """A skewed pool of real runs: arm a, where one run in so many went wrong and is one of arm b."""
    wrong = max(1, len(a.scores) // one_in)
    return Pool(
        f"{a.arm} with 1 in {one_in} of {b.arm}", a.metric, np.concatenate([a.scores[wrong:], b.scores[:wrong]])
    )


def real_goals(pools: dict[str, list[Pool]], studies: int) -> list[Goal]:
    """G3: errors on studies drawn from real runs, and the same with declared looks."""
    found: list[tuple[str, str, Errors]] = []
    stopped: list[tuple[str, float]] = []
    draw = np.random.default_rng(0)
    for metric, arms in pools.items():
        for a, b in combinations(arms, 2):
            for resampled in (False, True):
                what = f"{metric}, {a.arm} against {b.arm}, {'items drawn too' if resampled else 'all items'}"
                by_rule, both_sides = pool_errors(a.scores, b.scores, studies, resampled, draw)
                found += [(f"{what}, {seeds} seeds", rule, e) for (seeds, rule), e in by_rule.items()]
                stopped.append((what, both_sides))
    where, _, worst = max((row for row in found if row[1] == "ours"), key=lambda row: row[2].worse_side)
    naive = {rule: max(e.worse_side for _, r, e in found if r == rule) for rule in NAIVE}
    what, most = max(stopped, key=lambda row: row[1])
    return [
        Goal("G3", "the same on pools of real runs, worst side", worst.worse_side, 0.06, naive=naive, where=where),
        Goal("G3", f"total error on them with looks {LOOKS}, both sides", most, 0.06, where=what),
    ]


def pool_errors(
    a: Array, b: Array, studies: int, resampled: bool, rng: np.random.Generator
) -> tuple[dict[tuple[int, str], Errors], float]:
    """Errors per number of seeds and rule, and of looks to both sides, on studies drawn from two pools.

    Seeds are drawn without replacement; items are all of them, or as many drawn with replacement. The truth is the
    difference of the pools' means, and the margin is the truth.
    """
    truth = float(a.mean() - b.mean())
    half_item = 1.0 if is_binary(a) and is_binary(b) else 0.0
    tallies = {(s, rule): Tally() for s in SEEDS for rule in (*NAIVE, "ours")}
    stops = Stops(truth)
    each = look_alpha(ALPHA, LOOKS)
    for x, y in _drawn(a, b, studies, resampled, rng):
        for (s, rule), tally in tallies.items():
            some = x[:, :s], y[:, :s]
            bounds = parts(*some, 1, half_item).bounds(ALPHA) if rule == "ours" else RULES[rule](*some, ALPHA)
            tally.add(*bounds, truth)
        stops.add(parts(x[:, :s], y[:, :s], 1, half_item).bounds(each) for s in LOOKS)
    return {key: tally.errors() for key, tally in tallies.items()}, sum(stops.shares())


def _drawn(
    a: Array, b: Array, studies: int, resampled: bool, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    most, items = max(SEEDS), a.shape[1]
    for start in range(0, studies, BATCH):
        count = min(BATCH, studies - start)
        which: NDArray[np.int64] = np.tile(np.arange(items), (count, 1))
        if resampled:
            which = rng.integers(items, size=(count, items))
        runs = [rng.random((count, len(pool))).argsort(1)[:, :most] for pool in (a, b)]
        x, y = (pool[r[:, :, None], which[:, None, :]] for pool, r in zip((a, b), runs, strict=True))
        yield x, y


def _complete(table: pd.DataFrame) -> Array:
    return table.dropna().to_numpy(float)


if __name__ == "__main__":
    main()
