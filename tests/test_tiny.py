"""The embedded tasks and the studies of bit-widths that are shipped."""

import json

import pytest

from harness import tiny
from harness.cli._presets import find_study
from harness.spec import load_study


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tiny.DATA / name).read_text().splitlines()]


def test_sorting_six_asks_for_six_digits_that_no_training_row_shows() -> None:
    trained = (tiny.DATA / "train.jsonl").read_text()
    items = rows("tiny_sort_six.jsonl")
    assert len({item["question"] for item in items}) == 300
    for item in items:
        shown = item["question"].removeprefix("Sort ").removesuffix(" upwards.")
        assert len(shown.split()) == 6
        assert item["answer"].split() == sorted(shown.split())
        assert shown not in trained


@pytest.mark.parametrize("name", ["tiny-bits", "llama2-7b-bits"])
def test_the_axis_of_a_shipped_study_of_bit_widths_differs_in_bits_alone(name: str) -> None:
    spec = load_study(find_study(name))
    arms = [arm.params for arm in spec.arms.values() if arm.quantization.startswith("hqq")]
    served = {key: s.params for key, s in spec.serve.at.items() if s.quantization.startswith("hqq")}
    assert len(arms) >= 3
    assert all(params == arms[0] for params in arms)
    assert list(served) == ["hqq8", "hqq4", "hqq3", "hqq2"]
    assert {params["group_size"] for params in served.values()} == {arms[0]["group_size"]}
