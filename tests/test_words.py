"""Scores, differences, lists and counts as they are read."""

import pytest

from harness import metrics
from harness.words import capital, count, listed, seeds


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
