"""Paired statistics: the interval is the one in the docstring, and what is not known is not claimed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from harness.compare import Interval, Matrix, compare, interval, label_of, mean_interval


def frame(**arms: list[list[float]]) -> pd.DataFrame:
    """Scores of every arm as rows of seeds and columns of items."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "example_id": f"i{item}", "score": score}
            for arm, table in arms.items()
            for seed, row in enumerate(table)
            for item, score in enumerate(row)
        ]
    )


def test_the_interval_is_the_one_worked_out_by_hand() -> None:
    a = np.array([[3.0, 5.0], [4.0, 8.0]])  # seeds in rows, items in columns
    b = np.array([[1.0, 2.0], [2.0, 5.0]])
    # difference of seed means per item: (3.5 - 1.5, 6.5 - 3.5) = (2, 3), mean 2.5
    # V_item = (0.25 + 0.25) / (1 * 2) = 0.25, not 0/1 scores, so nothing is added; df 1
    # a: seed means 4 and 6, variance 2; residuals +-0.5, four of them, e = 1 / (1 * 1) = 1, e / n = 0.5; v = 2
    # b: seed means 1.5 and 3.5, variance 2; residuals +-0.5, e / n = 0.5; v = 2
    # V = 2/2 + 2/2 + 0.25 = 2.25; df = 2.25^2 / (1 + 1 + 0.0625) = 5.0625 / 2.0625
    half = float(stats.t.ppf(0.975, 5.0625 / 2.0625)) * 1.5
    found = interval(a, b)
    assert found.difference == pytest.approx(2.5)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert found.seed_share == pytest.approx(2 / 2.25)


def test_two_lucky_equal_seeds_do_not_look_certain() -> None:
    # the seed means are equal (variance 0), but items flip between the seeds: churn alone gives e / n
    a = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    # residuals +-0.5 on two items of two seeds: sum of squares 1, e = 1 / (1 * 2), e / n = 1/6
    # against a constant arm (variance 0): item means 0.5 each, d constant, V_item = 0 (a score of 0.5 is not 0/1)
    found = interval(a, np.full((2, 3), 0.5))
    half = float(stats.t.ppf(0.975, 1)) * (1 / 6 / 2) ** 0.5  # V = (1/6) / 2, df 1
    assert (found.low, found.high) == pytest.approx((-half, half))


def test_arms_with_the_same_right_answers_still_have_an_interval() -> None:
    # everything is 0/1 and nothing differs: half an item won and half lost, V = 1 / ((n - 1) n) = 1 / 90 for n = 10
    y = np.tile([1.0, 0.0], (3, 5))
    found = interval(y, y)
    half = float(stats.t.ppf(0.975, 9)) * (1 / 90) ** 0.5
    assert (found.difference, found.high) == pytest.approx((0, half))
    assert found.low == pytest.approx(-half)


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
    assert compare(scores[~gone], "base")["lora"].reason == "a seed lacks some items"


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


@pytest.mark.parametrize(
    ("low", "high", "margin", "label"),
    [
        (0.03, 0.09, 0.02, "better"),
        (0.01, 0.09, 0.02, "not shown"),  # better than nothing, but perhaps by less than what matters
        (0.02, 0.09, 0.02, "not shown"),  # at the margin is not above it
        (-0.09, -0.03, 0.02, "worse"),
        (-0.02, 0.02, 0.02, "equivalent"),
        (-0.021, 0.02, 0.02, "not shown"),
        (0.01, 0.09, 0.0, "better"),
        (0.0, 0.0, 0.0, "not shown"),  # without a margin nothing is equivalent
    ],
)
def test_what_an_interval_shows_at_a_margin(low: float, high: float, margin: float, label: str) -> None:
    assert label_of(Interval((low + high) / 2, low, high, 0.5), margin) == label


def test_a_higher_loss_is_worse() -> None:
    assert label_of(Interval(0.06, 0.03, 0.09, 0.5), 0.02, higher_is_better=False) == "worse"
    assert label_of(Interval(-0.06, -0.09, -0.03, 0.5), 0.02, higher_is_better=False) == "better"
    base, lora = [[1.0, 1.1, 0.9], [1.01, 1.09, 0.9]], [[2.0, 2.1, 1.9], [2.01, 2.09, 1.9]]
    found = compare(frame(base=base, lora=lora), "base", higher_is_better=False)["lora"]
    assert found.label == "worse"
    assert found.interval is not None
    assert found.interval.difference == pytest.approx(1.0)  # lora minus base, in the loss's own direction


def test_the_order_of_rows_does_not_matter() -> None:
    scores = frame(base=[[1, 0, 1], [1, 1, 0]], lora=[[1, 0, 0], [0, 0, 1]])
    shuffled = scores.sample(frac=1, random_state=0)
    assert compare(scores, "base")["lora"].interval == compare(shuffled, "base")["lora"].interval


def test_a_mean_over_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) is None
    found = mean_interval([1.0, 3.0])  # mean 2, standard error 1, t(0.975, 1) = 12.706
    assert found == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-3)


tables = arrays(float, (3, 4), elements=st.floats(-4, 4, width=16))


@given(tables, tables)
@settings(deadline=None)
def test_swapping_the_arms_mirrors_the_interval(a: Matrix, b: Matrix) -> None:
    one, other = interval(a, b), interval(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.low <= one.difference <= one.high


@given(tables, tables, st.floats(-8, 8), st.floats(0.1, 8))
@settings(deadline=None)
def test_another_unit_gives_the_same_interval_in_that_unit(a: Matrix, b: Matrix, shift: float, scale: float) -> None:
    # 0/1 scores are apart: for them alone the item variance has a floor, which knows their unit
    a, b = a + 8, b + 8
    one, other = interval(a, b), interval(a * scale + 16 + shift, b * scale + 16 + shift)
    assert (other.low, other.high) == pytest.approx((one.low * scale, one.high * scale), abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_difference_at_the_margin_is_rarely_called_one(seeds: int) -> None:
    # arms that differ by exactly the margin: "better" and "equivalent" are both wrong. Each may happen in 2.5 % of
    # studies at most, 5 % together; 400 studies, items of differing difficulty, runs of differing luck
    draw = np.random.default_rng(0)
    margin, items, studies = 0.05, 100, 400

    def arm(difficulty: Matrix, shift: float) -> Matrix:
        luck = draw.normal(0, 0.03, (seeds, 1))
        return (draw.random((seeds, items)) < np.clip(difficulty + luck + shift, 0, 1)).astype(float)

    wrong = 0
    for _ in range(studies):
        difficulty = draw.beta(2, 2, items) * 0.8 + 0.05  # so that a shift by the margin stays below 1
        found = interval(arm(difficulty, margin), arm(difficulty, 0.0))
        wrong += label_of(found, margin) in {"better", "worse", "equivalent"}
    assert wrong / studies <= 0.05


def test_a_large_difference_is_found() -> None:
    draw = np.random.default_rng(0)
    found = interval((draw.random((3, 200)) < 0.8).astype(float), (draw.random((3, 200)) < 0.5).astype(float))
    assert label_of(found, 0.02) == "better"
