"""Trials as processes of their own: one that dies is a record, and none outlives its driver."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import plugins
from harness.interfaces import Event, Interrupted, Job, Launcher
from harness.launchers.local import server_variables
from harness.record import Forecast, Interval
from harness.spec import Controls
from harness.store import TABLES, StudyStore
from harness.trial import Trial

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """One launcher, so that its server imports the stack once."""
    one = plugins.launcher("local", workers=1)
    yield one
    one.stop()


@pytest.fixture
def make_job(model_folder: Path, tmp_path: Path) -> MakeJob:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": f" {i}"}) + "\n" for i in range(12)))

    def make(steps: int = 2, **changes: Any) -> Job:
        controls = Controls.model_validate(
            {
                "model": {"id": str(model_folder)},
                "data": {"path": str(rows), "validation_rows": 2, "test_rows": 3},
                "train": {"max_steps": steps, "batch": 2, "max_length": 64},
                "device": "cpu",
            }
        )
        trial = Trial(
            study="s", arm="lora", phase="search", seed=0, method="lora", quantization="fp32",
            params={"learning_rate": 1e-5}, controls=controls, model_digest="m", data_digest="d",
        )  # fmt: skip
        folder = tmp_path / "s"
        for table in TABLES:
            (folder / table).mkdir(parents=True, exist_ok=True)
        return Job(trial=trial, question_id="q", folder=folder).model_copy(update=changes)

    return make


def test_the_allocator_grows_its_segments_unless_the_user_has_set_it_up() -> None:
    assert server_variables({}, 1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert "PYTORCH_ALLOC_CONF" not in server_variables({name: "max_split_size_mb:64"}, 1)


def trial_process(job: Job) -> psutil.Process:
    """The process that writes the trial's log."""
    log = job.folder / "logs" / f"{job.trial.id}-{job.attempt}.log"
    for process in psutil.Process().children(recursive=True):
        if os.path.realpath(f"/proc/{process.pid}/fd/1") == str(log.resolve()):
            return process
    raise LookupError(log)


def at_step(number: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """Do something once the trial has come so far."""
    done = threading.Event()

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step >= number and not done.is_set():
            done.set()
            act()

    return on_event


def test_a_trial_runs_in_its_own_process_and_its_record_comes_back(launcher: Launcher, make_job: MakeJob) -> None:
    job = make_job()
    events: list[Event] = []
    record = launcher.run(job, events.append)
    assert (record.status, record.trial_id) == ("done", job.trial.id)
    assert [e.step for e in events if e.kind == "step"] == [1, 2]
    assert StudyStore(job.folder).records() == [record]
    assert (job.folder / (record.log_path or "")).is_file()
    assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()


def test_a_trial_that_is_killed_is_a_record_that_says_where(launcher: Launcher, make_job: MakeJob) -> None:
    job = make_job(steps=100_000)
    record = launcher.run(job, at_step(3, lambda: trial_process(job).kill()))
    assert record.status == "killed"
    assert record.detail is not None
    assert record.detail.startswith("SIGKILL in stage train at step ")
    assert "out-of-memory killer" in record.detail
    assert StudyStore(job.folder).records() == [record]
    # and the launcher goes on
    assert launcher.run(make_job(attempt=2), lambda event: None).status == "done"


def test_a_trial_that_takes_too_long_is_stopped(launcher: Launcher, make_job: MakeJob) -> None:
    bounds = Interval(low=1, mid=2, high=3)
    forecast = Forecast(allocated_bytes=bounds, peak_phase="load", device="cpu", fits="yes", seconds=bounds)
    job = make_job(steps=100_000, time_limit_seconds=3.0, forecast=forecast)
    record = launcher.run(job, lambda event: None)
    assert 3 <= record.seconds < 10
    assert record.status == "timed_out"
    assert record.detail is not None
    assert record.detail.startswith("stopped in stage ")
    assert record.detail.endswith("after limits.trial_minutes = 0.05")
    assert record.forecast == forecast  # kept whatever becomes of the trial
    assert StudyStore(job.folder).records() == [record]


def test_a_process_that_ends_without_a_record_is_a_failed_trial(launcher: Launcher, make_job: MakeJob) -> None:
    job = make_job(trackers={"no-such-tracker": {}})  # found out before the trial's own errors are caught
    record = launcher.run(job, lambda event: None)
    assert record.status == "failed"
    assert record.detail == "the process ended with exit code 1 in stage start; see its log"
    assert "no 'no-such-tracker' in harness.trackers" in (job.folder / (record.log_path or "")).read_text()
    assert StudyStore(job.folder).records() == [record]


def test_a_launcher_that_is_stopped_leaves_no_record_of_what_ran(make_job: MakeJob) -> None:
    launcher = plugins.launcher("local", workers=1)
    job = make_job(steps=100_000)
    with pytest.raises(Interrupted):
        launcher.run(job, at_step(1, launcher.stop))
    assert StudyStore(job.folder).records() == []
    with pytest.raises(Interrupted):
        launcher.run(job, lambda event: None)


DRIVER = """
import sys
from pathlib import Path
from harness import plugins
from harness.interfaces import Job
launcher = plugins.launcher("local", workers=1)
launcher.run(Job.model_validate_json(Path(sys.argv[1]).read_text()), lambda event: print(event.kind, flush=True))
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_trials_with_it(make_job: MakeJob, tmp_path: Path) -> None:
    # an orphan would hold the memory that the next command measures
    job = make_job(steps=1_000_000)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "job.json")], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert any(line.startswith("step") for line in driver.stdout)
    trial = trial_process(job)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs([trial], timeout=10)
    assert not trial.is_running()


def test_slots_are_the_gpus_or_the_workers() -> None:
    assert plugins.launcher("local", workers=3).slots == 3
    assert plugins.launcher("local", gpus=[0, 1, 2, 3]).slots == 4
    assert plugins.launcher("local").slots == os.cpu_count()
