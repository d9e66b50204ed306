"""The machine in words."""

from typing import Any

import pytest

from harness.environment import described

L40S = {"name": "NVIDIA L40S", "driver": "570.1"}
A10 = {"name": "NVIDIA A10"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "not known"),
        ({"cpu": "EPYC"}, "EPYC"),
        ({"cpu": "EPYC", "cores": 8, "gpus": []}, "EPYC, 8 cores"),
        ({"gpus": [A10]}, "NVIDIA A10"),
        ({"gpus": [{**A10, "memory_bytes": 24 << 30, "driver": "550"}]}, "NVIDIA A10 (24.0 GiB, driver 550)"),
        ({"gpus": [L40S, L40S], "cpu": "EPYC", "cores": 8}, "2 x NVIDIA L40S (driver 570.1); EPYC, 8 cores"),
        # one name times the number of GPUs would say that there are three of the first kind
        ({"gpus": [L40S, A10, A10]}, "NVIDIA L40S (driver 570.1); 2 x NVIDIA A10"),
    ],
)
def test_hardware_is_counted_by_its_kind(environment: dict[str, Any], said: str) -> None:
    assert described(environment) == said
