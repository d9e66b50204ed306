"""The interval is the one in the docstring, and where it reduces to a known test it equals that test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from harness.compare import claims
from harness.intervals import Matrix, difference, mean_interval, spread

tables = arrays(float, (3, 4), elements=st.floats(-4, 4, width=16))


def test_the_interval_is_the_one_worked_out_by_hand() -> None:
    a = np.array([[3.0, 5.0], [4.0, 8.0]])  # seeds in rows, items in columns
    b = np.array([[1.0, 2.0], [2.0, 5.0]])
    # difference of seed means per item: (3.5 - 1.5, 6.5 - 3.5) = (2, 3), mean 2.5
    # V_item = (0.25 + 0.25) / (1 * 2) = 0.25, not 0/1 scores, so nothing is added; df 1
    # a: seed means 4 and 6, variance 2; residuals +-0.5, four of them, e = 1 / (1 * 1) = 1, e / n = 0.5; v = 2
    # b: seed means 1.5 and 3.5, variance 2; residuals +-0.5, e / n = 0.5; v = 2
    # V = 2/2 + 2/2 + 0.25 = 2.25; df = 2.25^2 / (1 + 1 + 0.0625) = 5.0625 / 2.0625
    half = float(stats.t.ppf(0.975, 5.0625 / 2.0625)) * 1.5
    found = difference(a, b)
    assert found.value == pytest.approx(2.5)
    assert found.bounds(0.05) == pytest.approx((2.5 - half, 2.5 + half))
    assert found.seed_share == pytest.approx(2 / 2.25)
    assert found.p_above(1.0) == pytest.approx(stats.t.sf(1.0, 5.0625 / 2.0625))  # (2.5 - 1) / 1.5
    assert found.p_below(1.0) == pytest.approx(1 - found.p_above(1.0))


def test_two_lucky_equal_seeds_do_not_look_certain() -> None:
    # the seed means are equal (variance 0), but items flip between the seeds: churn alone gives e / n
    a = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    # residuals +-0.5 on two items of two seeds: sum of squares 1, e = 1 / (1 * 2), e / n = 1/6
    # against a constant arm (variance 0): item means 0.5 each, d constant, V_item = 0 (a score of 0.5 is not 0/1)
    found = difference(a, np.full((2, 3), 0.5))
    half = float(stats.t.ppf(0.975, 1)) * (1 / 6 / 2) ** 0.5  # V = (1/6) / 2, df 1
    assert found.bounds(0.05) == pytest.approx((-half, half))


def test_arms_with_the_same_right_answers_still_have_an_interval() -> None:
    # everything is 0/1 and nothing differs: half an item won and half lost, V = 1 / ((n - 1) n) = 1 / 90 for n = 10
    y = np.tile([1.0, 0.0], (3, 5))
    found = difference(y, y)
    half = float(stats.t.ppf(0.975, 9)) * (1 / 90) ** 0.5
    assert found.value == 0
    assert found.bounds(0.05) == pytest.approx((-half, half))


def test_arms_may_have_different_numbers_of_seeds() -> None:
    a, b = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]), np.array([[0.0, 2.0], [2.0, 4.0]])
    # no residuals: seed means 2, 3, 4 (variance 1) and 1, 3 (variance 2); d constant, so V = 1/3 + 2/2
    found = difference(a, b)
    assert found.variance == pytest.approx(1 / 3 + 1)
    assert found.df == pytest.approx((4 / 3) ** 2 / ((1 / 3) ** 2 / 2 + 1))
    assert found.mirrored().bounds(0.05) == pytest.approx(difference(b, a).bounds(0.05))


def test_scores_that_never_vary_are_certain() -> None:
    found = difference(np.full((2, 3), 0.5), np.full((2, 3), 0.25))
    assert found.bounds(0.05) == (0.25, 0.25)
    assert (found.p_above(0.1), found.p_above(0.25), found.p_below(0.1)) == (0.0, 1.0, 1.0)


def test_items_without_noise_between_seeds_give_the_paired_tests_of_statsmodels() -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.normal(0.1, 1, 30), rng.normal(0, 1, 30)
        margin = float(rng.uniform(0.1, 1))
        # every seed gives the same scores: variances of seeds and churn are 0, the item term is the paired t test's
        found = difference(np.tile(x, (3, 1)), np.tile(y, (3, 1)))
        assert found.bounds(0.05) == pytest.approx(tuple(stats.ttest_rel(x, y).confidence_interval(0.95)))
        p, lower, upper = weightstats.ttost_paired(x, y, -margin, margin)
        ours = claims(found, margin)
        assert ours["equivalent"] == pytest.approx(min(1, 2 * p))
        assert found.p_above(-margin) == pytest.approx(lower[1])
        assert found.p_below(margin) == pytest.approx(upper[1])


def test_seeds_without_noise_between_items_give_the_welch_tests_of_statsmodels() -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(2)
    for _ in range(20):
        x, y = rng.normal(0.1, 1, 6), rng.normal(0, 2, 4)
        margin = float(rng.uniform(0.5, 3))
        # every item of a run has the same score: no churn, no item term; what is left is Welch's test over seeds
        found = difference(np.tile(x[:, None], 5), np.tile(y[:, None], 5))
        welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert found.bounds(0.05) == pytest.approx(tuple(welch))
        p = weightstats.ttost_ind(x, y, -margin, margin, usevar="unequal")[0]
        assert claims(found, margin)["equivalent"] == pytest.approx(min(1, 2 * p))


def test_clusters_give_the_clustered_error_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    for _ in range(10):
        labels = rng.integers(0, 12, 60)
        x, y = rng.normal(0, 1, 60), rng.normal(0, 1, 60) + rng.normal(0, 1, 12)[labels]
        found = difference(np.tile(x, (2, 1)), np.tile(y, (2, 1)), [f"passage {k}" for k in labels])
        # its small-sample factor G / (G - 1) * (N - 1) / (N - k) has k = 1 for a constant alone, so the second one is 1
        fit = api.OLS(x - y, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": labels, "df_correction": True})
        assert found.item_variance == pytest.approx(float(fit.cov_params()[0, 0]))
        assert found.clusters == len(set(labels))
        assert found.df == pytest.approx(found.clusters - 1)


def test_items_each_in_a_cluster_of_its_own_are_items_alone() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 3, 9)).round()
    assert difference(a, b, list("abcdefghi")) == difference(a, b)


def test_the_variance_with_as_much_as_there_is_is_the_variance() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random((2, 4, 300)) < 0.5).astype(float)
    found = difference(a, b)
    assert found.with_more(4)[0] == pytest.approx(found.variance)
    assert found.moves(4)[0] == pytest.approx(0, abs=1e-12)
    assert found.with_more(8)[0] < found.variance
    assert found.with_more(4, 3000)[0] < found.variance


def test_churn_is_the_variance_of_a_score_between_seeds() -> None:
    # items answered right with probability 0.2 or 0.8 by chance: p (1 - p) = 0.16 on every item
    rng = np.random.default_rng(6)
    rates = np.tile([0.2, 0.8], 5000)
    found = spread((rng.random((4, 10000)) < rates).astype(float))
    assert found.churn == pytest.approx(0.16, abs=0.005)


def test_a_mean_over_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) is None
    found = mean_interval([1.0, 3.0])  # mean 2, standard error 1, t(0.975, 1) = 12.706
    assert found == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-3)


@given(tables, tables)
@settings(deadline=None)
def test_swapping_the_arms_mirrors_the_interval(a: Matrix, b: Matrix) -> None:
    one, other = difference(a, b), difference(b, a)
    assert one.mirrored().bounds(0.05) == pytest.approx(other.bounds(0.05))
    low, high = one.bounds(0.05)
    assert low <= one.value <= high


@given(tables, tables, st.floats(-8, 8), st.floats(0.1, 8))
@settings(deadline=None)
def test_another_unit_gives_the_same_interval_in_that_unit(a: Matrix, b: Matrix, shift: float, scale: float) -> None:
    # 0/1 scores are apart: for them alone the item variance has a floor, which knows their unit
    a, b = a + 8, b + 8
    one, other = difference(a, b).bounds(0.05), difference(a * scale + 16 + shift, b * scale + 16 + shift).bounds(0.05)
    assert other == pytest.approx((one[0] * scale, one[1] * scale), abs=1e-6)


@given(tables, tables, st.permutations(range(3)), st.permutations(range(4)))
@settings(deadline=None)
def test_the_order_of_seeds_and_items_does_not_matter(a: Matrix, b: Matrix, seeds: list[int], items: list[int]) -> None:
    one, other = difference(a, b), difference(a[seeds][:, items], b[:, items])
    assert other.bounds(0.05) == pytest.approx(one.bounds(0.05), abs=1e-9)
