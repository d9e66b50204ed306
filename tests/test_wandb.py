"""Weights & Biases as a copy of the store: written whole, with nothing private in it, and made again from the store."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import MakeRecord

from harness import connection
from harness.cli.sync import command, send
from harness.errors import NotReady
from harness.interfaces import Job
from harness.record import Record
from harness.spec import Arm, Controls, DataSource, ModelSource, StudySpec
from harness.store import Store, StudyStore
from harness.trackers import wandb as tracker

pytest.importorskip("wandb")
from wandb_file import read_run
from wandb_server import WandbServer

SECRET = "5ec2e7" * 8


@pytest.fixture(autouse=True)
def _no_service_left() -> Iterator[None]:
    yield
    tracker._end_service()


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    controls = Controls(model=ModelSource(id="tiny"), data=DataSource(path="tiny"))
    arm = Arm(method="lora", quantization="fp32", params={"learning_rate": 0.002})
    return Store(tmp_path).open(StudySpec(name="tiny-methods", controls=controls, arms={"lora": arm}))


def job(record: Record, folder: Path) -> Job:
    return Job(trial=record.trial, question_id=record.question_id, attempt=record.attempt, folder=folder)


def track(record: Record, folder: Path, **settings: str) -> Path:
    """A whole run the way a worker does it; the run's folder."""
    plugin = tracker.plugin(folder=str(folder), **settings)  # type: ignore[call-arg]  # a Protocol names no arguments
    plugin.start(job(record, folder))
    for step in record.steps:
        plugin.step(step)
    plugin.finish(record)
    return dict(tracker.runs(folder))[tracker.run_id(record.trial, record.attempt)]


def test_an_offline_run_holds_what_the_record_holds(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    run = read_run(track(record, tmp_path, mode="offline"))
    assert run.head.run_id == f"{record.trial_id}-1"
    assert run.head.project == run.head.run_group == "tiny-methods"
    assert run.head.job_type == "lora"
    assert run.head.display_name == f"lora-s101-confirm-{record.trial_id[:6]}"
    assert sorted(run.head.tags) == ["confirm", "fp32", "lora"]
    expected = {"study": "tiny-methods", "arm": "lora", "job_type": "lora", "seed": 101, "phase": "confirm"}
    expected |= {"trial_id": record.trial_id, "status": "done", "data_digest": "d0", "model_digest": "m0"}
    expected |= {"resolved": record.resolved, "environment": record.environment, "data": record.data}
    assert {k: run.config[k] for k in expected} == expected
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.rows]
    assert rows == [step.model_dump(exclude={"step"}, exclude_none=True) for step in record.steps]
    assert [row["_step"] for row in run.rows] == [1, 2, 3]
    assert run.summary["status"] == "done"
    assert run.summary["recall/exact_match"] == 0.75
    assert run.summary["trial_seconds"] == 7.5
    assert run.summary["load_seconds"] == 1.0
    assert run.summary["train_tokens_per_second"] == 150.0
    assert {k: run.summary[f"{k}_bytes"] for k in ("weights", "optimizer", "peak")} == {
        "weights": 400,
        "optimizer": 80,
        "peak": 720,  # 400 + 40 + 80 + 200
    }
    assert run.exit_code == 0


def test_a_run_holds_what_was_forecast_beside_what_was_measured(make_record: MakeRecord, tmp_path: Path) -> None:
    bounds = {"low": 690, "mid": 700, "high": 710}
    forecast = {
        "allocated_bytes": bounds, "peak_phase": "optimizer step", "device": "cpu", "fits": "yes",
        "seconds": {"low": 5, "mid": 7, "high": 9},
    }  # fmt: skip
    run = read_run(track(make_record(forecast=forecast), tmp_path, mode="offline"))
    assert run.config["forecast"]["allocated_bytes"] == bounds
    assert (run.summary["forecast_allocated_bytes_mid"], run.summary["peak_bytes"]) == (700, 720)
    assert (run.summary["forecast_seconds_mid"], run.summary["trial_seconds"]) == (7, 7.5)
    assert run.summary["forecast_fits"] == "yes"
    assert "forecast_process_bytes_mid" not in run.summary


def test_steps_carry_the_time_of_the_training_not_of_the_writing(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()  # load and adapt took 1.5 s, the first step ended 1 s later
    run = read_run(track(record, tmp_path, mode="offline"))
    assert run.rows[0]["_timestamp"] == pytest.approx(record.started_at.timestamp() + 2.5)


def test_out_of_memory_is_a_run_with_its_status(make_record: MakeRecord, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"train": None, "memory": None, "steps": [], "scores": [], "stages": []}
    record = make_record(status="out_of_memory", detail="CUDA out of memory", **bare)
    run = read_run(track(record, tmp_path, mode="offline"))
    assert run.exit_code == 1
    assert run.rows == []
    assert run.summary["status"] == "out_of_memory"
    assert not [key for key in run.summary if "/" in key or key.startswith("train_")]


def test_a_loss_that_is_not_a_number_is_kept(make_record: MakeRecord, tmp_path: Path) -> None:
    steps = [{"step": 1, "loss": float("nan"), "learning_rate": 0.1, "seconds": 1.0}]
    run = read_run(track(make_record(status="diverged", steps=steps), tmp_path, mode="offline"))
    assert str(run.rows[0]["loss"]).lower() == "nan"


def test_a_run_written_twice_is_one_run(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    track(record, tmp_path, mode="offline")
    again = tracker.publish(record, record.steps, tmp_path)
    assert [path for _, path in tracker.runs(tmp_path)] == [again]
    assert list(tmp_path.iterdir()) == [again]
    assert read_run(again).head.run_id == tracker.run_id(record.trial, record.attempt)


def test_project_and_entity_can_be_given(make_record: MakeRecord, tmp_path: Path) -> None:
    run = read_run(track(make_record(), tmp_path, mode="offline", project="p", entity="team"))
    assert (run.head.project, run.head.entity, run.head.run_group) == ("p", "team", "tiny-methods")


def test_nothing_private_and_nothing_from_the_environment_is_written(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = {"WANDB_API_KEY": SECRET, "WANDB_USERNAME": "u5er-name", "WANDB_USER_EMAIL": "u5er@mail", "USER": "l0gin"}
    others = {
        "WANDB_HOST": "h0st-name",
        "WANDB_NOTES": "n0tes-text",
        "WANDB_TAGS": "t4g-text",
        "WANDB_NAME": "n4me-text",
    }
    others |= {
        "WANDB_SWEEP_ID": "5weep",
        "WANDB_RUN_ID": "an0ther-run",
        "WANDB_PROJECT": "pr0ject",
        "WANDB_ENTITY": "ent1ty",
    }
    for name, value in {**private, **others, "WANDB_MODE": "online", "WANDB_RUN_GROUP": "gr0up"}.items():
        monkeypatch.setenv(name, value)
    folder = track(make_record(), tmp_path, mode="offline")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    words = [*private.values(), *others.values(), "gr0up", str(tmp_path), os.getcwd()]
    assert [word for word in words if word.encode() in written] == []
    # as a whole word: a host called `vm` is found within the client's random identifiers now and then
    assert not re.search(rb"(?<![0-9A-Za-z])%b(?![0-9A-Za-z])" % re.escape(socket.gethostname()).encode(), written)
    assert read_run(folder).head.host == ""
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".wandb"]


def test_offline_nothing_is_written_before_the_end(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    plugin = tracker.Wandb(mode="offline", folder=str(tmp_path / "wandb"))
    plugin.start(job(record, tmp_path))
    plugin.step(record.steps[0])
    assert not (tmp_path / "wandb").exists()


def test_a_server_that_does_not_answer_does_not_end_the_trial(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing: the worst kind of network
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        with caplog.at_level(logging.WARNING):
            folder = track(make_record(), tmp_path, mode="online", timeout_seconds="1")
    assert folder.name.startswith("offline-run-")
    assert list(tmp_path.iterdir()) == [folder]
    assert len(read_run(folder).rows) == 3
    assert [r.levelname for r in caplog.records if r.name == tracker.__name__] == ["WARNING"]


def test_an_online_run_is_streamed_and_counts_as_sent(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", SECRET[:40])
        folder = track(make_record(), tmp_path, mode="online", timeout_seconds="10")
    assert [row["loss"] for row in server.rows] == [2.0, 1.0, 0.5]
    assert folder.name.startswith("run-")
    assert tracker.unsent(tmp_path) == []
    assert not any(SECRET[:40].encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_server_lost_during_the_run_leaves_the_whole_run_on_disk(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", SECRET[:40])
        plugin = tracker.Wandb(mode="online", folder=str(tmp_path), timeout_seconds="1")
        plugin.start(job(record, tmp_path))
        assert plugin.run is not None
        server.lost.set()
        plugin.step(record.steps[0])
        plugin.finish(record)
    ((_, folder),) = tracker.runs(tmp_path)
    assert folder.name.startswith("offline-run-")
    assert list(tmp_path.iterdir()) == [folder]
    assert len(read_run(folder).rows) == 3


def test_sent_again_a_run_overwrites_itself(
    store: StudyStore,
    make_record: MakeRecord,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    # a client that resumes asks for the state of the run on the server (RunResumeStatus) and appends to its rows
    store.write(make_record())
    with WandbServer() as server:
        environment = {"WANDB_API_KEY": SECRET[:40], "WANDB_BASE_URL": server.url, "WANDB_RESUME": "allow"}
        first = sync("--store", str(store.folder.parent), **environment)
        (path,) = tracker.runs(store.folder / "wandb")
        for mark in path[1].glob("*.synced"):
            mark.unlink()
        again = sync("--store", str(store.folder.parent), **environment)
    assert [first.exit_code, again.exit_code] == [0, 0]
    assert "1 run sent" in first.stderr
    assert "RunResumeStatus" not in server.asked
    assert [row["_step"] for row in server.rows] == [1, 2, 3]
    assert tracker.unsent(store.folder / "wandb") == []
    assert list(here.iterdir()) == []  # the client keeps its logs in the current folder unless told otherwise


def test_online_without_a_key_falls_back_without_asking(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    began = time.monotonic()
    folder = track(make_record(), tmp_path, mode="online")
    assert folder.name.startswith("offline-run-")
    assert time.monotonic() - began < 10


def test_the_client_is_imported_when_asked_for_and_starts_nothing() -> None:
    code = (
        "import sys, threading; from harness.trackers import wandb; before = 'wandb' in sys.modules; wandb.preload();"
        "print(before, 'wandb.sdk.launch.inputs.internal' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "1"]


def test_the_server_probed_is_the_one_the_client_uses() -> None:
    from wandb.sdk.lib.urls import DEFAULT_BASE_URL

    assert DEFAULT_BASE_URL == connection.DEFAULT_URL


@pytest.mark.parametrize(
    "server", ["", "https://api.wandb.ai", "http://localhost:8080", "https://api.wandb.example", "https://api.x.org"]
)
def test_a_run_that_was_sent_has_the_address_that_the_client_gives_it(server: str) -> None:
    import wandb

    settings = wandb.Settings(
        entity="ana", project="my study", run_id="abc-1", base_url=server or connection.DEFAULT_URL
    )
    environment = {"WANDB_ENTITY": "ana", **({"WANDB_BASE_URL": server} if server else {})}
    assert connection.run_page(environment, "my study", "abc-1") == settings.run_url
    assert connection.run_page({}, "my study", "abc-1") is None


def no_probe(host: str, port: int) -> bool:
    raise AssertionError("probed without a key")


def test_without_a_key_it_is_offline_and_nothing_is_probed(tmp_path: Path) -> None:
    assert connection.resolve_mode("auto", {"HOME": str(tmp_path)}, no_probe) == "offline"


@pytest.mark.parametrize("requested", ["online", "offline", "off"])
def test_what_is_asked_for_is_not_second_guessed(requested: connection.Mode) -> None:
    assert connection.resolve_mode(requested, {}, no_probe) == requested


def test_with_a_key_it_is_online_when_the_server_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment = {"WANDB_API_KEY": SECRET, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        assert connection.resolve_mode("auto", environment, connection.answers) == "online"
    assert connection.resolve_mode("auto", environment, connection.answers) == "offline"


@pytest.mark.parametrize(
    ("machine", "base_url", "found"),
    [
        ("api.wandb.ai", "", True),  # what older clients stored for the cloud
        ("api.forge.coreweave.com", "", True),
        ("api.wandb.ai", "https://wandb.example", False),  # a key for another server
        ("wandb.example", "https://wandb.example", True),
    ],
)
def test_a_key_in_netrc_counts_for_its_host(tmp_path: Path, machine: str, base_url: str, found: bool) -> None:
    (tmp_path / ".netrc").write_text(f"machine {machine}\n  login user\n  password {SECRET}\n")
    assert connection.has_key({"HOME": str(tmp_path), "WANDB_BASE_URL": base_url}) is found


@pytest.mark.parametrize("proxy", ["http://proxy.example:3128", "proxy.example:3128"])
def test_behind_a_proxy_the_proxy_is_probed(proxy: str) -> None:
    assert connection.endpoint({"https_proxy": proxy}) == ("proxy.example", 3128)


def test_a_record_without_a_run_is_missing_and_a_run_without_a_record_is_stale(
    store: StudyStore, make_record: MakeRecord
) -> None:
    folder = store.folder / "wandb"
    tracked, killed, unknown = (make_record({"seed": seed}) for seed in (101, 102, 103))
    store.write(tracked)
    store.write(killed)
    track(tracked, folder, mode="offline")
    stale = track(unknown, folder, mode="offline")
    assert tracker.missing(store, folder) == [killed.trial_id]
    assert tracker.stale(store, folder) == [stale]


def test_the_run_of_an_earlier_attempt_is_not_stale(store: StudyStore, make_record: MakeRecord) -> None:
    folder = store.folder / "wandb"
    first, second = make_record(status="killed"), make_record(attempt=2)
    store.write(first)
    track(first, folder, mode="offline")
    store.write(second)
    assert tracker.stale(store, folder) == []
    assert tracker.missing(store, folder) == [second.trial_id]


def test_a_run_cut_off_while_it_was_written_is_missing(store: StudyStore, make_record: MakeRecord) -> None:
    folder = store.folder / "wandb"
    record = make_record()
    store.write(record)
    run = tracker.run_id(record.trial, 1)
    cut = folder / f".{run}.x/wandb/offline-run-20260102_030405-{run}"  # what a kill -9 leaves
    cut.mkdir(parents=True)
    (cut / f"run-{run}.wandb").write_bytes(b":W&B\xbe\xe1\x00")
    assert tracker.missing(store, folder) == [record.trial_id]
    made = tracker.publish_missing(store, folder)
    assert tracker.missing(store, folder) == []
    assert list(folder.iterdir()) == made


def test_a_run_made_from_the_store_equals_the_one_of_the_trial(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    (made,) = tracker.publish_missing(store, store.folder / "wandb")
    tracked = read_run(track(record, store.folder / "other", mode="offline"))
    rebuilt = read_run(made)
    assert rebuilt.config == tracked.config
    assert [visible(row) for row in rebuilt.rows] == [visible(row) for row in tracked.rows]
    assert visible(rebuilt.summary) == visible(tracked.summary)


def visible(values: dict[str, Any]) -> dict[str, Any]:
    """Without the client's own clock."""
    return {k: v for k, v in values.items() if k not in {"_runtime", "_wandb.runtime"}}


def sync(*arguments: str, **environment: str) -> Any:
    names = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE")
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    clean = {**dict.fromkeys((*names, *proxies)), "NETRC": "/nowhere"}
    return CliRunner().invoke(command, list(arguments), env=clean | environment)


def test_a_dry_run_lists_and_writes_nothing(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    result = sync("--store", str(store.folder.parent), "--dry-run", "--json")
    assert json.loads(result.stdout)["studies"]["tiny-methods"]["unwritten"] == [record.trial_id]
    assert not (store.folder / "wandb").exists()


def test_runs_are_handed_over_in_groups() -> None:
    calls = []

    def client(paths: Sequence[Path]) -> str:
        calls.append(len(paths))
        return ""

    send([Path(str(n)) for n in range(120)], client)
    assert calls == [50, 50, 20]


def test_without_a_key_sync_completes_the_copy_and_says_how_to_log_in(
    store: StudyStore, make_record: MakeRecord
) -> None:
    store.write(make_record())
    result = sync("--store", str(store.folder.parent))
    assert isinstance(result.exception, NotReady)
    assert result.exception.message.startswith("1 run waiting")
    assert result.exception.remedy == "wandb login"
    assert len(tracker.unsent(store.folder / "wandb")) == 1


def test_with_a_server_that_does_not_answer_sync_says_so(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"http://127.0.0.1:{port}"  # closed again
    result = sync("tiny-methods", "--store", str(store.folder.parent), WANDB_API_KEY=SECRET, WANDB_BASE_URL=address)
    assert isinstance(result.exception, NotReady)
    assert "does not answer" in result.exception.message


def test_what_was_sent_is_not_sent_again(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    (path,) = tracker.publish_missing(store, store.folder / "wandb")
    next(path.glob("*.wandb")).with_suffix(".wandb.synced").touch()  # the mark that `wandb sync` leaves
    result = sync("--store", str(store.folder.parent))
    assert result.exit_code == 0
    assert "0 runs sent" in result.stderr
