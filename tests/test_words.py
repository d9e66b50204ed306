"""Numbers and words as they are read: quantities with their units, scores, differences, lists and counts."""

import pytest

from harness import metrics
from harness.environment import described
from harness.units import GIB, amount, byte_scale, duration, energy, money, percent, size, time_scale
from harness.words import capital, count, listed, seeds


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (size(3 << 30), "3.0 GiB"),
        (size(512), "0.5 KiB"),
        (duration(89), "89 s"),
        (duration(5400), "1 h 30 min"),
        (duration(None), "-"),
        (money(1.4, "$"), "$1.40"),
        (money(0.5, "$"), "$0.50"),
        (money(0.00123, "$"), "$0.0012"),
        (money(12.5, "EUR"), "12.50 EUR"),
        (money(None, "$"), "-"),
        (amount(0.5, 2.0, "$"), "$0.50"),
        (amount(0.5, None, "$"), "30 min"),
        (energy(3600), "1 Wh"),
        (energy(7.2e6), "2.00 kWh"),
        (percent(0.84), "84 %"),
        (percent(-0.125, 1, "+"), "-12.5 %"),
        (percent(None), "-"),
    ],
)
def test_quantities_read_with_their_units(said: str, wanted: str) -> None:
    assert said == wanted


def test_an_axis_has_the_unit_of_its_largest_value() -> None:
    assert byte_scale(3 * GIB) == (GIB, "GiB")
    assert byte_scale(5) == (1024, "KiB")
    assert [time_scale(seconds)[1] for seconds in (119, 120, 7199, 7200)] == ["s", "min", "min", "h"]


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("gsm8k/exact_match[strict-match]", -0.084, "-8.4 points"),
        ("tiny_facts/acc", -0.0001, "+0.0 points"),  # not -0.0
        ("test_loss", 0.0364, "+0.0364 nats"),
        ("test_loss", 1.23456, "+1.235 nats"),
        ("kl_merged/kl", 0.00002, "+2.00e-05 nats"),  # not +0.000
        ("wiki/perplexity", 12.3456, "+12.346"),
    ],
)
def test_a_difference_has_its_unit(metric: str, value: float, said: str) -> None:
    assert metrics.difference(value, metric) == said


def test_a_score_has_its_interval_or_says_that_it_is_of_one_seed() -> None:
    assert metrics.mean(0.894, 0.879, 0.909, "sums/acc") == "89.4 % [87.9, 90.9]"
    assert metrics.mean(0.0834, None, None, "test_loss") == "0.0834 nats (one seed)"
    assert metrics.change(-0.084, -0.131, -0.038, "sums/acc") == "-8.4 points [-13.1, -3.8]"
    assert metrics.score(None, "sums/acc") == "not scored"
    assert (metrics.margin(0.02, "sums/acc"), metrics.margin(0.01, "test_loss")) == ("2 points", "0.01 nats")


def test_an_axis_names_the_metric_its_unit_and_which_way_is_better() -> None:
    assert metrics.title("tiny_sums/exact_match") == "tiny sums exact match (%)"
    assert metrics.title("test_loss", higher_is_better=False) == "test loss (nats per token), lower is better"
    assert metrics.title("wiki/perplexity", higher_is_better=False) == "wiki perplexity, lower is better"


def test_of_many_the_first_are_listed() -> None:
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefgh"), 6) == "a, b, c, d, e, f and 2 more"


def test_counts_and_capitals() -> None:
    assert [count(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert [seeds(n) for n in (1, 5)] == ["one seed", "5 seeds"]
    assert capital("lora, then QLoRA") == "Lora, then QLoRA"


def test_hardware_is_said_with_different_gpus_apart() -> None:
    a100, t4 = {"name": "A100", "memory_bytes": 80 * GIB, "driver": "550"}, {"name": "T4"}
    assert described({"gpus": [a100, a100, t4], "cpu": "EPYC", "cores": 64}) == (
        "2 x A100 (80.0 GiB, driver 550); T4; EPYC, 64 cores"
    )
    assert described({}) == "not known"
