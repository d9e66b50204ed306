"""Planning: what a study can show before it runs, and the chance that more of it brings a verdict."""

import math

import numpy as np
import pytest

from harness.intervals import Difference, Spread, difference
from harness.power import MOST_SEEDS, Noise, chance_of_verdict, decidable_gap, settle
from harness.selfcheck import Simulator, World, power


@pytest.mark.parametrize(
    ("seed_sd", "seeds", "items", "points"),
    # the table of decidable gaps in the protocol: accuracy 0.5, 80 % chance, 2.5 % per side
    [(0.003, 3, 200, 8.4), (0.007, 5, 1000, 3.5), (0.007, 8, 2000, 2.3), (0.015, 3, 500, 6.6), (0.015, 8, 10000, 2.4)],
)
def test_the_decidable_gap_is_the_one_of_the_protocol(seed_sd: float, seeds: int, items: int, points: float) -> None:
    gap = decidable_gap(Noise(seed_sd=seed_sd).difference(seeds, items), seeds)
    assert 100 * gap == pytest.approx(points, abs=0.06)


def test_a_plan_does_not_depend_on_the_one_it_is_worked_out_from() -> None:
    noise = Noise()
    assert decidable_gap(noise.difference(3, 500), 5, 1000) == pytest.approx(
        decidable_gap(noise.difference(5, 1000), 5), rel=1e-9
    )


def test_simulated_studies_at_the_decidable_gap_are_decided_as_often_as_promised() -> None:
    gap = decidable_gap(Noise().difference(5, 500), 5)
    decided = power(World(items=500, difference=0.01 + gap), 5, 0.01, 1000)
    assert decided == pytest.approx(0.8, abs=0.04)  # standard error 0.013


def test_items_alone_give_the_power_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.stats.power")
    certain = Spread(2, 0.0, 0.0)  # nothing varies between seeds: a paired t test over the items
    for items, sd in ((30, 0.5), (200, 1.0), (2000, 2.0)):
        gap = decidable_gap(Difference(0.0, certain, certain, items, items, sd**2 / items), 2)
        reached = api.TTestPower().power(gap / sd, items, 0.05, alternative="two-sided")
        assert reached == pytest.approx(0.8, abs=0.005)  # ours is the usual approximation of the noncentral t


def test_seeds_alone_give_the_power_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.stats.power")
    for seeds in (5, 8, 20):
        arm = Spread(seeds, 1.0, 0.0)  # items without any noise: Welch's test over seeds
        gap = decidable_gap(Difference(0.0, arm, arm, 100, 100, 0.0), seeds)
        reached = api.TTestIndPower().power(gap, seeds, 0.05, ratio=1, alternative="two-sided")
        assert reached == pytest.approx(0.8, abs=0.02)


def test_one_seed_decides_nothing() -> None:
    found = Noise().difference(3, 500)
    assert decidable_gap(found, 1) == math.inf
    assert chance_of_verdict(found, 0.01, 1) == 0.0


def known(value: float, seeds: int = 3, items: int = 1000) -> Difference:
    noise = Noise().difference(seeds, items)
    return Difference(value, noise.a, noise.b, items, items, noise.item_variance)


def test_the_chance_of_a_verdict_grows_with_the_distance_from_the_margin() -> None:
    chances = [chance_of_verdict(known(value), 0.01, 8) for value in (0.0, 0.02, 0.04, 0.06, 0.1)]
    assert chances == sorted(chances)
    assert chances[0] < 0.01
    assert chances[-1] > 0.99


def test_the_chance_is_the_same_on_either_side() -> None:
    assert chance_of_verdict(known(0.04), 0.01, 8) == pytest.approx(chance_of_verdict(known(-0.04), 0.01, 8))


def test_equivalence_counts_where_the_margin_is_wide_enough() -> None:
    wide = chance_of_verdict(known(0.0, items=20000), 0.05, 8)
    assert wide > 0.99
    assert chance_of_verdict(known(0.0, items=20000), 0.05, 8, equivalence=False) < 0.01


def test_what_would_settle_is_seeds_else_items_else_nothing() -> None:
    seeds = settle(known(0.04), 0.01)
    assert seeds is not None
    assert seeds.items == 1000
    assert 3 < seeds.seeds <= MOST_SEEDS
    assert seeds.chance >= 0.8
    fewer = chance_of_verdict(known(0.04), 0.01, seeds.seeds - 1)
    assert fewer < 0.8
    steady = Noise(seed_sd=0.003).difference(3, 1000)
    items = settle(Difference(0.034, steady.a, steady.b, 1000, 1000, steady.item_variance), 0.01)
    assert items is not None
    assert items.items > 1000
    assert settle(known(0.01), 0.01) is None  # exactly at the margin: too close to call


def test_the_predicted_movement_is_what_more_seeds_do() -> None:
    # the difference found with 8 seeds minus that with the first 3 of them: its variance is `moves`, churn counted once
    simulator = Simulator(World(items=500, seed_sd=(0.015, 0.015)), 0)
    a, b = simulator.draw(300, 8)
    some = [difference(x[:3], y[:3]) for x, y in zip(a, b, strict=True)]
    moved = [difference(x, y).value - s.value for x, y, s in zip(a, b, some, strict=True)]
    predicted = np.mean([s.moves(8)[0] for s in some])
    assert np.var(moved) == pytest.approx(predicted, rel=0.25)  # standard error of a variance of 300: 8 %
