"""What is shown of measured speeds, by hand: medians with intervals, paired ratios, percentiles, cost and energy."""

from typing import Any

import pytest

from harness.record import Speed
from harness.speed import (
    Latency,
    Median,
    cost_per_thousand,
    figures,
    joules_per_thousand,
    latency,
    median,
    percentile,
    ratio,
    tokens_per_second,
)


def a_speed(**changes: Any) -> Speed:
    """Two prompts of 100 tokens, answers of 11: read in 0.5 s, written in 2 s, five times over."""
    fields: dict[str, Any] = {
        "served": "nf4", "batch": 2, "context": 100, "new_tokens": 11, "prefill_seconds": [0.5] * 5,
        "decode_seconds": [2.0] * 5, "token_seconds": [0.2] * 50, "stored_bytes": 1000,
    }  # fmt: skip
    return Speed.model_validate(fields | changes)


def test_tokens_per_second_count_the_whole_batch() -> None:
    assert tokens_per_second(a_speed(), "prefill") == Median(400, 400, 400)  # 2 x 100 tokens in 0.5 s
    # the first of the 11 tokens comes out of the prompt: 2 x 10 tokens in 2 s
    assert tokens_per_second(a_speed(), "decode") == Median(10, 10, 10)


def test_an_answer_of_one_token_has_no_decode_speed() -> None:
    short = a_speed(new_tokens=1, decode_seconds=[0.0] * 5, token_seconds=[])
    assert tokens_per_second(short, "decode") is None
    assert ratio(short, short, "decode") is None
    assert latency(short) == Latency(None, None, None)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (1, Median(1, None, None)),
        (4, Median(2.5, None, None)),  # smallest to largest hold the median with 1 - 2/16 = 0.875
        (5, Median(3, 1, 5)),  # 1 - 2/32 = 0.9375
        (7, Median(4, 1, 7)),  # from the second on: 1 - 2 x 8/128 = 0.875
        (8, Median(4.5, 2, 7)),  # 1 - 2 x 9/256 = 0.930
        (10, Median(5.5, 2, 9)),  # 1 - 2 x 11/1024 = 0.979; from the third on 1 - 2 x 56/1024 = 0.891
    ],
)
def test_the_interval_of_a_median_is_that_of_the_order_statistics(rounds: int, expected: Median) -> None:
    assert median([float(v) for v in range(rounds, 0, -1)]) == expected


def test_a_ratio_is_made_within_rounds() -> None:
    # the machine gets slower: 1, 2, ... 5 times; nf4 takes twice as long as fp16 throughout
    slowing = a_speed(decode_seconds=[2.0, 4.0, 6.0, 8.0, 10.0])
    reference = a_speed(served="fp16", decode_seconds=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert ratio(slowing, reference, "decode") == Median(0.5, 0.5, 0.5)  # as exact as the machine is not
    assert ratio(reference, slowing, "decode") == Median(2, 2, 2)


@pytest.mark.parametrize("other", [{"batch": 1}, {"context": 50}, {"new_tokens": 5}, {"prefill_seconds": [0.5] * 4}])
def test_what_was_not_asked_the_same_is_not_paired(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio(a_speed(), a_speed(**other), "prefill")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    hundred = [float(v) for v in range(100, 0, -1)]
    assert [percentile(hundred, p) for p in (50, 95, 99)] == [50, 95, 99]
    assert percentile([3.0, 1.0], 50) == 1


def test_a_percentile_beyond_the_data_is_not_told() -> None:
    ninety_nine = [float(v) for v in range(99)]
    assert percentile(ninety_nine, 99) is None  # the largest of 99 values may be any high percentile
    assert percentile(ninety_nine, 95) is not None
    assert percentile([1.0] * 19, 95) is None


def test_cost_and_energy_are_of_a_thousand_answers() -> None:
    # 2.5 s for 2 answers are 1250 s for 1,000; at 7.2 an hour, 0.002 a second
    assert cost_per_thousand(a_speed(), 7.2) == pytest.approx(2.5)
    assert joules_per_thousand(a_speed(energy_joules=300)) == 150_000
    assert joules_per_thousand(a_speed()) is None


def test_the_figures_hold_each_against_the_reference_at_its_own_shape() -> None:
    speeds = [
        a_speed(served="fp16", prefill_seconds=[0.25] * 5),
        a_speed(served="fp16", batch=8, prefill_seconds=[0.125] * 5),
        a_speed(),
        a_speed(context=50),  # the reference failed there
    ]
    found = figures(speeds, reference="fp16", per_hour=7.2)
    assert [(f.served, f.batch, f.context) for f in found] == [
        ("fp16", 2, 100), ("fp16", 8, 100), ("nf4", 2, 100), ("nf4", 2, 50),
    ]  # fmt: skip
    assert [f.prefill_ratio and f.prefill_ratio.value for f in found] == [1, 1, 0.5, None]
    assert found[2].cost_per_thousand == pytest.approx(2.5)
    assert found[2].first_token_seconds == Median(0.5, 0.5, 0.5)
    assert found[2].token_latency == Latency(0.2, 0.2, None)  # of 50 tokens
    without = figures(speeds)
    assert {(f.prefill_ratio, f.decode_ratio, f.cost_per_thousand) for f in without} == {(None, None, None)}
