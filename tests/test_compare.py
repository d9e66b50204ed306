"""Verdicts: what is not known is not claimed, and several arms or looks do not make it likelier to be wrong."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from harness.compare import LOOKS, claims, compare, holm, look_alpha, unplanned_alpha
from harness.intervals import Difference, Matrix, Spread, difference
from harness.selfcheck import Simulator, World


def frame(**arms: Any) -> pd.DataFrame:
    """Scores of every arm as rows of seeds and columns of items."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "example_id": f"i{item}", "score": score}
            for arm, table in arms.items()
            for seed, row in enumerate(table)
            for item, score in enumerate(row)
        ]
    )


def test_one_seed_is_not_enough_data() -> None:
    found = compare(frame(base=[[1, 0, 1], [1, 1, 0]], lora=[[0, 0, 1]]), "base")["lora"]
    assert (found.label, found.interval, found.seeds) == ("not enough data", None, 1)
    assert found.reason == "one seed of lora: noise between runs is unknown"
    assert compare(frame(base=[[1, 0]], lora=[[0, 1], [1, 1]]), "base")["lora"].reason == (
        "one seed of base: noise between runs is unknown"
    )


def test_arms_asked_other_items_are_not_compared() -> None:
    scores = frame(base=[[1, 0, 1], [1, 1, 0]], lora=[[1, 0, 1], [0, 0, 1]])
    scores.loc[(scores["arm"] == "lora") & (scores["example_id"] == "i2"), "example_id"] = "other"
    assert compare(scores, "base")["lora"].reason == "its items are not those of base"


def test_a_seed_that_lacks_an_item_is_not_compared() -> None:
    scores = frame(base=[[1, 0, 1], [1, 1, 0]], lora=[[1, 0, 1], [0, 0, 1]])
    gone = (scores["arm"] == "lora") & (scores["example_id"] == "i2") & (scores["seed"] == 1)
    assert compare(scores[~gone], "base")["lora"].reason == "a seed of lora lacks some items"


def test_a_single_item_is_not_compared() -> None:
    assert compare(frame(base=[[1], [0]], lora=[[1], [1]]), "base")["lora"].reason == "a single item"


def test_scores_that_make_no_sense_are_refused() -> None:
    scores = frame(base=[[1, 0]], lora=[[1, 1]])
    with pytest.raises(ValueError, match="two scores for the same seed and item"):
        compare(pd.concat([scores, scores]), "base")
    with pytest.raises(ValueError, match="no scores of the baseline 'full'"):
        compare(scores, "full")
    with pytest.raises(ValueError, match="lacks the column 'score'"):
        compare(scores.drop(columns="score"), "base")


def test_what_has_no_meaning_as_a_number_is_not_made_one() -> None:
    scores = frame(base=[[0.5, 0.1], [0.4, 0.2]], lora=[[0.5, math.inf], [0.4, 0.2]])
    assert compare(scores, "base")["lora"].reason == "a score of lora is infinite"
    together = frame(base=[[1, 0], [1, 1]], lora=[[1, 0], [0, 1]]).assign(cluster_id="passage")
    assert compare(together, "base")["lora"].reason == "all items are in one cluster"
    assert compare(together, "base")["lora"].interval is None
    with pytest.raises(ValueError, match=r"the margin -0\.1 is negative"):
        compare(together, "base", margin=-0.1)


def found(value: float, error: float) -> Difference:
    """A difference whose interval is value -+ 2.0 error: 61 items alone, t(0.975, 60) = 2.0003."""
    certain = Spread(2, 0.0, 0.0)
    return Difference(value, certain, certain, 61, 61, error**2)


@pytest.mark.parametrize(
    ("low", "high", "margin", "label"),
    [
        (0.03, 0.09, 0.02, "better"),
        (0.01, 0.09, 0.02, None),  # better than nothing, but perhaps by less than what matters
        (0.019, 0.09, 0.02, None),
        (-0.09, -0.03, 0.02, "worse"),
        (-0.019, 0.019, 0.02, "equivalent"),
        (-0.021, 0.019, 0.02, None),
        (0.01, 0.09, 0.0, "better"),
        (0.0, 0.0, 0.0, None),  # without a margin nothing is equivalent
    ],
)
def test_a_claim_is_shown_at_alpha_when_the_interval_makes_it(
    low: float, high: float, margin: float, label: str | None
) -> None:
    some = found((low + high) / 2, (high - low) / 2 / float(stats.t.ppf(0.975, 60)))
    assert some.bounds(0.05) == pytest.approx((low, high))
    assert [claim for claim, p in claims(some, margin).items() if p <= 0.05] == ([label] if label else [])


def test_a_higher_loss_is_worse() -> None:
    assert min(claims(found(0.06, 0.01), 0.02, sign=-1.0).items(), key=lambda c: c[1])[0] == "worse"
    base, lora = [[1.0, 1.1, 0.9], [1.01, 1.09, 0.9]], [[2.0, 2.1, 1.9], [2.01, 2.09, 1.9]]
    shown = compare(frame(base=base, lora=lora), "base", higher_is_better=False)["lora"]
    assert (shown.label, shown.naive) == ("worse", "worse")
    assert shown.interval is not None
    assert shown.interval.difference == pytest.approx(1.0)  # lora minus base, in the loss's own direction


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 20):
        for _ in range(20):
            p = rng.random(count) ** 3
            p[rng.integers(count)] = p[0]  # ties
            assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_several_arms_are_held_to_more_than_one() -> None:
    # d[i] is 0.14 -+ 0.24 on 9 items of every seed: D = 0.14, V_item = 9 x 0.24^2 / (8 x 9), about 0.085^2, t = 1.65
    # against 2.31 for one arm; scaled so that alone it is shown and among three it is not
    rng = np.random.default_rng(0)
    base = np.tile(rng.normal(0.5, 0.1, 60), (3, 1))
    better = base + 0.03 + 0.1 * np.tile(rng.normal(0, 1, 60) - 0.05, (3, 1))
    alone = compare(frame(base=base, one=better), "base")["one"]
    assert alone.p is not None
    assert alone.p_adjusted == alone.p
    several = compare(frame(base=base, one=better, two=base + 0.001 * better, three=base), "base", 0.0)
    assert several["one"].p == pytest.approx(alone.p)
    everyone = [v.p for v in several.verdicts if v.p is not None]
    assert [v.p_adjusted for v in several.verdicts] == pytest.approx(holm(everyone))
    for verdict in several.verdicts:
        assert (verdict.label != "not shown") == (verdict.p_adjusted is not None and verdict.p_adjusted <= 0.05)


def test_items_of_a_cluster_count_less() -> None:
    rng = np.random.default_rng(0)
    per_passage = rng.normal(0, 1, (2, 10)).repeat(5, axis=1)
    scores = frame(base=np.tile(per_passage[0], (2, 1)), lora=np.tile(per_passage[1], (2, 1)))
    apart = compare(scores, "base")["lora"].interval
    passages = scores["example_id"].str[1:].astype(int) // 5
    together = compare(scores.assign(cluster_id=passages), "base")["lora"].interval
    some = scores.assign(cluster_id=passages.where(passages > 4))  # items without a cluster stand alone
    half = compare(some, "base")["lora"].interval
    assert apart is not None
    assert together is not None
    assert half is not None
    assert together.high - together.low > half.high - half.low > apart.high - apart.low


def test_an_item_is_in_one_cluster() -> None:
    scores = frame(base=[[1, 0], [1, 1]], lora=[[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="an item belongs to two clusters"):
        compare(scores.assign(cluster_id=range(len(scores))), "base")


def test_looks_err_together_no_more_than_one() -> None:
    assert look_alpha(0.05, [5]) == 0.05
    assert look_alpha(0.05, [8, 3, 5, 3]) == LOOKS[0.05, (3, 5, 8)]
    assert look_alpha(0.05, [2, 4]) == 0.025  # not in the table: split evenly
    for (alpha, looks), each in LOOKS.items():
        assert alpha / len(looks) * 0.85 < each < alpha
    assert sum(unplanned_alpha(0.05, k) for k in range(1, 1000)) == pytest.approx(0.05, abs=1e-4)


def test_the_order_of_rows_does_not_matter() -> None:
    scores = frame(base=[[1, 0, 1], [1, 1, 0]], lora=[[1, 0, 0], [0, 0, 1]])
    shuffled = scores.sample(frac=1, random_state=0)
    assert compare(scores, "base")["lora"] == compare(shuffled, "base")["lora"]


tables = arrays(float, (3, 2, 5), elements=st.sampled_from([0.0, 1.0, 0.5]))


@given(tables, st.permutations(range(3)), st.permutations(range(5)), st.permutations([7, 8]), st.floats(0, 0.5))
@settings(deadline=None, max_examples=50)
def test_names_and_order_of_arms_items_and_seeds_do_not_change_a_verdict(
    values: Matrix, arms: list[int], items: list[int], seeds: list[int], margin: float
) -> None:
    def scored(order: list[int], items: list[int], seeds: list[int]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"arm": f"arm {a}", "seed": seeds[s], "example_id": items[i], "score": values[a, s, i]}
                for a in order
                for s in range(2)
                for i in range(5)
            ]
        )

    one = compare(scored([0, 1, 2], list(range(5)), [7, 8]), "arm 0", margin)
    other = compare(scored(arms, items, seeds), "arm 0", margin)
    for arm in ("arm 1", "arm 2"):
        assert (one[arm].label, one[arm].naive) == (other[arm].label, other[arm].naive)
        assert one[arm].p_adjusted == pytest.approx(other[arm].p_adjusted)


@given(tables, st.floats(0, 0.5))
@settings(deadline=None, max_examples=50)
def test_mirrored_scores_mirror_the_verdict(values: Matrix, margin: float) -> None:
    one = compare(frame(base=values[0], lora=values[1]), "base", margin)["lora"]
    other = compare(frame(base=1 - values[0], lora=1 - values[1]), "base", margin)["lora"]
    turned = compare(frame(base=1 - values[0], lora=1 - values[1]), "base", margin, higher_is_better=False)["lora"]
    assert other.label == {"better": "worse", "worse": "better"}.get(one.label, one.label)
    assert turned.label == one.label
    assert other.p == pytest.approx(one.p)


@given(tables, st.sampled_from([0.5, 2.0, 16.0]), st.sampled_from([2.0, 32.0]))
@settings(deadline=None, max_examples=50)
def test_another_unit_does_not_change_a_verdict(values: Matrix, scale: float, shift: float) -> None:
    values = values + 2  # no longer 0/1, whose unit is known
    one = compare(frame(base=values[0], lora=values[1]), "base", 0.25)["lora"]
    other = compare(frame(base=values[0] * scale + shift, lora=values[1] * scale + shift), "base", 0.25 * scale)["lora"]
    assert other.label == one.label
    assert other.p == pytest.approx(one.p)


def test_a_difference_at_the_margin_is_rarely_called_one_of_three() -> None:
    # all three arms differ from the baseline by exactly the margin: any label for any arm is an error (Holm)
    world = World(items=300, difference=0.0)
    simulator = Simulator(world, 5)
    wrong, studies = 0, 400
    levels = [np.full((studies, 1), 0.5 + d) for d in (0.0, 0.02, 0.02, -0.02)]
    scores = simulator.arms(levels, 3)
    for k in range(studies):
        by_claim = [claims(difference(y[k], scores[0][k]), 0.02) for y in scores[1:]]
        wrong += min(holm([min(c.values()) for c in by_claim])) <= 0.05
    assert wrong / studies <= 0.05


def test_a_large_difference_is_found() -> None:
    draw = np.random.default_rng(0)
    lora, base = ((draw.random((3, 200)) < p).astype(float) for p in (0.8, 0.5))
    assert compare(frame(base=base, lora=lora), "base", 0.02)["lora"].label == "better"
