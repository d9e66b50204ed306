"""Several arms at once: the best is among those kept, one that is recommended is good enough, chances are chances."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.compare import Refused
from harness.intervals import difference
from harness.ranking import (
    best_probability,
    best_set,
    draws,
    expected_regret,
    front_probability,
    pairs_of,
    upper_bound,
    within_margin,
)


def frame(**arms: Any) -> pd.DataFrame:
    """Scores of every arm as rows of seeds and columns of items."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "example_id": f"i{item:03}", "score": score}
            for arm, table in arms.items()
            for seed, row in enumerate(table)
            for item, score in enumerate(row)
        ]
    )


def answers(rate: float, seed: int, seeds: int = 3, items: int = 300) -> Any:
    return (np.random.default_rng(seed).random((seeds, items)) < rate).astype(float)


def test_an_arm_that_is_shown_to_be_beaten_is_not_among_the_best() -> None:
    scores = frame(good=answers(0.9, 0), near=answers(0.89, 1), bad=answers(0.5, 2))
    assert best_set(scores) == ["good", "near"]
    assert best_set(scores, higher_is_better=False) == ["bad"]


def test_an_arm_that_cannot_be_compared_stays_among_the_best_and_is_not_recommended() -> None:
    scores = frame(good=answers(0.9, 0), one=answers(0.1, 1, seeds=1))
    assert best_set(scores) == ["good", "one"]
    assert within_margin(scores, 0.5) == {"good": False, "one": False}


def test_an_arm_is_within_the_margin_when_all_intervals_say_so() -> None:
    scores = frame(good=answers(0.9, 0), near=answers(0.89, 1), bad=answers(0.5, 2))
    assert within_margin(scores, 0.15) == {"good": True, "near": True, "bad": False}
    assert within_margin(scores, 0.01) == {"good": False, "near": False, "bad": False}
    assert within_margin(scores, 0.15, higher_is_better=False) == {"good": False, "near": False, "bad": True}


def test_more_arms_ask_for_more_evidence_before_one_is_recommended() -> None:
    # with k arms up to k - 1 can be claimed wrongly: above three the level of each pair falls
    a, b = answers(0.9, 0), answers(0.89, 1)
    pair = difference(b, a)
    at_five, at_two = pair.bounds(2 * 0.05 / 4)[0], pair.bounds(0.05)[0]
    margin = -(at_five + at_two) / 2  # between the two bounds
    others = {f"bad{i}": answers(0.2, 5 + i) for i in range(3)}
    assert within_margin(frame(a=a, b=b), margin)["b"]
    assert not within_margin(frame(a=a, b=b, **others), margin)["b"]


def test_items_that_belong_together_widen_every_comparison() -> None:
    rng = np.random.default_rng(0)
    passages = rng.normal(0, 1, (2, 12)).repeat(10, axis=1)
    scores = frame(a=passages[0] + rng.normal(0, 0.1, (3, 120)), b=passages[1] + rng.normal(0, 0.1, (3, 120)))
    labelled = scores.assign(cluster_id=scores["example_id"].str[1:].astype(int) // 10)
    _, apart = pairs_of(scores)
    _, together = pairs_of(labelled)
    assert together["a", "b"].clusters == 12
    assert together["a", "b"].item_variance > 3 * apart["a", "b"].item_variance
    assert draws(labelled)[1].std(0).min() > 1.5 * draws(scores)[1].std(0).max()


def test_drawn_differences_have_the_variance_of_the_interval_with_noise_counted_once() -> None:
    a, b = answers(0.6, 0, 5), answers(0.5, 1, 5)
    names, drawn = draws(frame(a=a, b=b), count=40000)
    pair = difference(a, b)
    once = pair.variance - sum(x.churn / a.shape[1] / x.seeds for x in (pair.a, pair.b))
    assert names == ["a", "b"]
    assert drawn.mean(0) == pytest.approx([a.mean(), b.mean()], abs=1e-3)
    assert np.var(drawn[:, 0] - drawn[:, 1]) == pytest.approx(once, rel=0.03)


def test_two_arms_with_the_same_answers_are_as_likely_to_be_best() -> None:
    y = answers(0.7, 0)
    probability = best_probability(draws(frame(a=y, b=y), count=20000)[1])
    assert probability == pytest.approx([0.5, 0.5], abs=0.02)


def test_arms_that_do_not_match_are_not_drawn() -> None:
    with pytest.raises(Refused, match="one seed of b"):
        draws(frame(a=answers(0.5, 0), b=answers(0.5, 1, seeds=1)))


def test_probabilities_and_regret_of_three_draws() -> None:
    drawn = np.array([[0.5, 0.6, 0.7], [0.8, 0.6, 0.7], [0.5, 0.9, 0.7]])
    assert best_probability(drawn) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert best_probability(drawn, higher_is_better=False) == pytest.approx([2 / 3, 1 / 3, 0])
    # losses of the arms in each draw: (.2, .1, 0), (0, .2, .1), (.4, 0, .2)
    assert expected_regret(drawn) == pytest.approx([0.2, 0.1, 0.1])
    # the cheapest is always on the front; the second where it beats the first, the third where it beats both
    assert front_probability(drawn, [1, 2, 3]) == pytest.approx([1, 2 / 3, 1 / 3])


def test_the_upper_bound_of_a_time_is_a_prediction() -> None:
    # mean 2, standard deviation 1, t(0.95, 2) = 2.920: 2 + 2.920 sqrt(1 + 1/3)
    assert upper_bound([1, 2, 3]) == pytest.approx(2 + 2.91999 * (4 / 3) ** 0.5, abs=1e-4)
    assert upper_bound([1]) is None
