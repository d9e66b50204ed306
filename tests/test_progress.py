"""What is said of a study while it runs: one line per run, what it was forecast to need, and the time that is left."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRecord, MakeSpec

from harness.cli._progress import Clock, PlainLines, beside, outcome
from harness.cli.study import _memory_lines
from harness.record import Interval, Stage
from harness.summary import ForecastError, forecast_error

GIB = 1 << 30


def a_forecast(seconds: float = 6.0, **changes: Any) -> dict[str, Any]:
    bounds = {"low": 9 * GIB, "mid": 9.4 * GIB, "high": 11 * GIB}
    return {
        "allocated_bytes": bounds, "reserved_bytes": bounds, "peak_phase": "optimizer step", "device": "H200",
        "device_bytes": 140 * GIB, "fits": "yes", "seconds": {"low": 1, "mid": seconds, "high": 9}, **changes,
    }  # fmt: skip


def on_a_gpu(reserved: float) -> dict[str, Any]:
    return {"stages": [Stage(stage="train", seconds=3, reserved_peak_bytes=round(reserved * GIB))]}


def test_the_peak_of_a_run_is_said_beside_what_was_predicted(make_record: MakeRecord) -> None:
    record = make_record(forecast=a_forecast(), **on_a_gpu(9.8))
    assert outcome(record) == (
        f"done   {record.trial_id}  lora confirm seed 101 lr 0.002: recall 0.750  peak 9.8 GiB (predicted 9.4)  8 s"
    )
    # on a CPU: the sum of tensors, 400 + 40 + 80 + 200 bytes
    tensors = {"weights": 400, "adapter": 40, "gradients": 40, "optimizer": 80, "step_peak": 300}
    assert "peak 0.7 KiB (predicted 0.8)" in outcome(make_record(forecast=a_forecast(device="cpu", tensors=tensors)))
    assert "peak 0.7 KiB  8 s" in outcome(make_record())


@pytest.mark.parametrize(
    ("measured", "predicted", "shown"),
    [
        (9.8, 9.4, "9.8 GiB (predicted 9.4)"),
        (1.0, 0.5, "1.0 GiB (predicted 512.0 MiB)"),
        (1.0, None, "1.0 GiB"),
    ],
)
def test_a_unit_is_given_once(measured: float, predicted: float | None, shown: str) -> None:
    assert beside(round(measured * GIB), None if predicted is None else round(predicted * GIB)) == shown


def test_out_of_memory_says_what_was_predicted_and_what_comes_next(make_record: MakeRecord) -> None:
    record = make_record(status="out_of_memory", detail="CUDA out of memory", forecast=a_forecast(), **on_a_gpu(9.8))
    assert outcome(record).splitlines() == [
        f"OUT OF MEMORY  {record.trial_id}  lora confirm seed 101 lr 0.002: CUDA out of memory [kept as a result]",
        "       predicted 9.4 GiB; lora goes on at micro_batch 8, batch 16; nothing to do",
    ]
    last = make_record(status="out_of_memory", detail="CUDA out of memory", trial={"micro_batch": 1})
    assert len(outcome(last).splitlines()) == 1


def test_the_time_left_is_the_forecasts_until_there_are_measured_runs(
    make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    # one run of the base, two arms with two search trials and two seeds each
    clock = Clock(make_spec(), slots=1)
    assert clock.seconds_left() is None
    clock.expected = {"search": 10, "confirm": 20}
    assert clock.seconds_left() == 20 + 4 * 10 + 4 * 20  # the base counts as the longest
    clock.add(make_record(trial={"phase": "search"}, seconds=4))
    assert clock.seconds_left() == 20 + 3 * 4 + 4 * 20


def test_a_run_that_goes_on_is_still_to_come(make_spec: MakeSpec, make_record: MakeRecord) -> None:
    clock = Clock(make_spec(), slots=1)
    clock.expected = {"search": 10, "confirm": 10}
    clock.add(make_record(trial={"phase": "search"}, status="out_of_memory", seconds=1))
    assert clock.seconds_left() == 90
    clock.add(make_record(trial={"phase": "search", "micro_batch": 1}, status="does_not_fit", seconds=0))
    assert clock.seconds_left() == 80  # one run less, and no run takes no time


def test_a_log_begins_with_the_forecast(make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines(Clock(make_spec(), slots=2))
    lines.begin(9, [], {"search": 60, "confirm": 60})
    lines.warned("no forecast for lora")
    assert capsys.readouterr().err == "9 runs, about 4 min left by the forecast\nwarning: no forecast for lora\n"


def test_the_error_of_the_forecasts_is_the_median_over_completed_runs(make_record: MakeRecord) -> None:
    # 7.5 s each: 20 %, 4 % and 60 % off; 9.4 GiB against 10, 9.4 and 8
    runs = [
        make_record(trial={"seed": i}, forecast=a_forecast(seconds), **on_a_gpu(peak))
        for i, (seconds, peak) in enumerate([(9.0, 10), (7.2, 9.4), (3.0, 8)])
    ]
    unlike = make_record(trial={"seed": 9}, status="out_of_memory", forecast=a_forecast(100.0))
    found = forecast_error([*runs, unlike, make_record(trial={"seed": 10})])
    assert found == ForecastError(3, pytest.approx(0.2), pytest.approx(0.06, rel=1e-6))
    assert forecast_error([make_record()]) == ForecastError(0, None, None)


def test_an_interval_of_a_forecast_is_kept_as_columns(make_record: MakeRecord) -> None:
    forecast = make_record(forecast=a_forecast()).forecast
    assert forecast is not None
    assert forecast.seconds == Interval(low=1, mid=6, high=9)
    assert forecast.columns["forecast_seconds_mid"] == 6
    assert forecast.columns["forecast_process_bytes_mid"] is None
    assert forecast.columns["forecast_fits"] == "yes"


def test_a_study_ends_with_the_error_of_its_forecasts_and_with_what_was_not_run(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    done = make_record(forecast=a_forecast(9.0), **on_a_gpu(10))
    without_room = {"status": "does_not_fit", "detail": "needs 130 GiB, H200 has 120", "forecast": a_forecast()}
    refused = [make_record(trial={"arm": "full", "micro_batch": n}, **without_room) for n in (2, 1)]
    assert list(_memory_lines([done, *refused], tmp_path)) == [
        "forecast: time 20 %, memory 6 % off at the median (1 done); more: harness plan --score",
        "1 run does not fit: full; the first: needs 130 GiB, H200 has 120",
        f"run it anyway with --run-anyway, or see what would fit: harness plan {tmp_path / 'study.yaml'}",
    ]
    assert list(_memory_lines([make_record()], tmp_path)) == []
