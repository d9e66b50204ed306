"""`harness plan --probe`: a few steps of every arm, kept as records that sharpen the plan."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeSpec
from test_cli import ends_with

from harness.interfaces import Event, Job
from harness.probe import STEPS, first, probe, probed
from harness.record import Fit, Forecast, Interval, Record
from harness.spec import Arm
from harness.store import Store, StudyStore
from harness.trial import Trial

ONE = Interval(low=1, mid=1, high=1)


class Launch:
    """A launcher that writes a finished record."""

    slots = 1

    def __init__(self, make: Callable[..., Record]) -> None:
        self.make, self.jobs = make, list[Job]()

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Record:
        self.jobs.append(job)
        record = self.make(job.trial).model_copy(update={"question_id": job.question_id, "forecast": job.forecast})
        StudyStore(job.folder).write(record)
        return record

    def stop(self) -> None: ...


class Expect:
    """A forecaster that says of every trial whether it fits."""

    def __init__(self, fits: Fit = "yes") -> None:
        self.fits = fits

    def trial(self, trial: Trial) -> Forecast:
        fits: Fit = self.fits if trial.arm == "full" else "yes"
        return Forecast(allocated_bytes=ONE, peak_phase="backward", device="cpu", fits=fits, seconds=ONE)


@pytest.fixture
def make(make_record: Callable[..., Record]) -> Callable[[Trial], Record]:
    return lambda trial: make_record().model_copy(update={"trial": trial, "trial_id": trial.id})


def test_every_arm_is_probed_once(make_spec: MakeSpec, make: Callable[[Trial], Record], tmp_path: Path) -> None:
    spec, store, launcher = make_spec(), Store(tmp_path), Launch(make)
    told: list[str] = []
    again: list[str] = []
    probe(spec, store, launcher, Expect(), lambda arm, _: told.append(arm))  # type: ignore[arg-type]
    probe(spec, store, launcher, Expect(), lambda arm, _: again.append(arm))  # type: ignore[arg-type]
    assert told == list(spec.arms) and not again
    assert {job.trial.controls.train.max_steps for job in launcher.jobs} == {STEPS}
    assert {job.trial.phase for job in launcher.jobs} == {"search"}
    assert store.studies() == [f"{spec.name}-probe"]


def test_an_arm_that_does_not_fit_is_not_tried(
    make_spec: MakeSpec, make: Callable[[Trial], Record], tmp_path: Path
) -> None:
    spec, launcher = make_spec(), Launch(make)
    left_out: list[str] = []
    probe(
        spec, Store(tmp_path), launcher, Expect("no"),  # type: ignore[arg-type]
        lambda arm, record: left_out.append(arm) if record is None else None,
    )  # fmt: skip
    assert left_out == ["full"]
    assert "full" not in {job.trial.arm for job in launcher.jobs}


def test_a_probe_asks_no_tasks_and_is_another_question_than_its_study(make_spec: MakeSpec) -> None:
    small = probed(make_spec())
    assert small.controls.evaluate.tasks == small.controls.evaluate.retention == []
    assert small.question_id != make_spec().question_id
    assert probed(make_spec()).question_id == small.question_id


def test_searched_parameters_are_probed_where_the_search_begins() -> None:
    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    arm = Arm.model_validate(
        {"method": "lora", "quantization": "bf16", "params": {"alpha": 4},
         "search": {"learning_rate": rate | {"start": [1e-3]}, "rank": {"choices": [8, 16]}}}
    )  # fmt: skip
    assert first(arm) == {"alpha": 4, "learning_rate": 1e-3, "rank": 8}
    arm = Arm.model_validate({"method": "full", "quantization": "bf16", "search": {"learning_rate": rate}})
    assert first(arm) == {"learning_rate": 1e-4}


def test_a_card_that_is_only_named_cannot_be_probed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("plan", "tiny-methods", "--probe", "--gpu", "H100") == 2
    assert "--probe measures this machine" in capsys.readouterr().err
