"""A study that is killed at any moment goes on with the same command: the same runs, none twice, none lost."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest

from harness.record import Record
from harness.search import open_storage
from harness.store import Store, StudyStore
from harness.trackers.wandb import missing, runs, stale

pytestmark = pytest.mark.slow

SMALL = [
    "name=small",
    "controls.train.max_steps=4",
    "controls.evaluate.limit=8",
    "search.trials=3",
    "confirm.seeds=[101, 102]",
]
RUNS = 1 + 4 * 3 + 4 * 2


def start(store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness.cli", "study", "tiny-methods", *SMALL, "--store", str(store)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(store: Path) -> StudyStore:
    assert start(store).wait(timeout=600) == 0
    return Store(store).study("small")


def wait_for(store: Path, runs_done: int) -> None:
    deadline = time.monotonic() + 300
    while len(list((store / "small" / "trials").glob("*.parquet"))) < runs_done:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trial_processes(driver: int) -> list[psutil.Process]:
    """The processes that the warm server has forked for trials."""
    servers = psutil.Process(driver).children()
    return [p for s in servers for p in s.children() if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    return {r.trial_id: r for r in finish(tmp_path_factory.mktemp("undisturbed")).records()}


def assert_complete(store: StudyStore, undisturbed: dict[str, Record]) -> None:
    """Same runs and the same scores as without any interruption; the two views agree with the store."""
    records = store.records()
    assert len(records) == RUNS
    assert {r.trial_id for r in records} == set(undisturbed)
    assert all(r.status == "done" for r in records)
    assert all(r.forecast is not None for r in records)
    for record in records:
        assert record.score("validation_loss") == undisturbed[record.trial_id].score("validation_loss")
    assert missing(store, store.folder / "wandb") == []
    assert stale(store, store.folder / "wandb") == []
    storage = open_storage(store.folder / "search.journal")
    told = Counter(
        t.user_attrs["trial_id"]
        for s in optuna.get_all_study_summaries(storage)
        for t in optuna.load_study(study_name=s.study_name, storage=storage).trials
        if t.state == optuna.trial.TrialState.COMPLETE
    )
    assert told == Counter(r.trial_id for r in records if r.phase == "search")


@pytest.mark.parametrize("runs_done", [0, 5, 16], ids=["before the first run ends", "in tuning", "in confirmation"])
def test_a_killed_driver_goes_on_as_if_nothing_had_happened(
    runs_done: int, tmp_path: Path, undisturbed: dict[str, Record]
) -> None:
    driver = start(tmp_path)
    wait_for(tmp_path, runs_done)
    if runs_done == 0:
        time.sleep(8)
    children = trial_processes(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], "a trial outlived its driver"
    assert_complete(finish(tmp_path), undisturbed)


def test_a_killed_trial_is_run_again_and_both_attempts_are_kept(tmp_path: Path, undisturbed: dict[str, Record]) -> None:
    driver = start(tmp_path)
    killed = 0
    for runs_done in (2, 8, 15):
        wait_for(tmp_path, runs_done)
        victims = trial_processes(driver.pid)
        if victims:
            victims[-1].kill()  # the oldest has just written its record
            killed += 1
        time.sleep(2)
    assert driver.wait(timeout=600) == 0
    assert killed == 3
    store = Store(tmp_path).study("small")
    assert_complete(store, undisturbed)
    attempts = Counter(r.attempt for r in store.records())
    # a process that is killed after its record was written has lost nothing, and is not run again
    first = [pd.read_parquet(p)["status"][0] for p in (store.folder / "trials").glob("*-1.parquet")]
    assert 1 <= first.count("killed") <= killed
    assert attempts[2] == first.count("killed"), "each killed run was done again as its second attempt"
    assert len(list((store.folder / "trials").glob("*-1.parquet"))) == RUNS
    published = {name for name, _ in runs(store.folder / "wandb")}
    assert len(published) == RUNS, "W&B's view shows the attempt that counts"


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path, undisturbed: dict[str, Record]) -> None:
    driver = start(tmp_path)
    wait_for(tmp_path, 4)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=30) == 130
    assert_complete(finish(tmp_path), undisturbed)
