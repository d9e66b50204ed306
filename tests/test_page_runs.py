"""The page of all runs and of each in detail: what it shows of made-up runs, checkable by eye."""

from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from conftest import MakeRecord, Open
from stores import ARMS, generate

from harness import reproduce
from harness.record import Forecast, Interval, Record, Stage, Status, TensorBytes
from harness.store import StudyStore
from harness.summary import gather

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from streamlit.material_icon_names import ALL_MATERIAL_ICONS  # after the check that it is there

from dashboard import shared
from dashboard.views import runs

ALL: dict[str, list[str]] = {"status": [], "arm": [], "phase": []}
MIB = 1 << 20


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """45 runs: the base, 24 tuning runs of which some end badly, and 5 confirmed runs of each of four arms."""
    return generate(tmp_path_factory.mktemp("store"), "lab", 47, items=20)


def tensors(**changes: int) -> TensorBytes:
    """Of 100 MiB at the peak."""
    sizes = {"weights": 60, "adapter": 10, "gradients": 5, "optimizer": 10, "step_peak": 20} | changes
    return TensorBytes(**{k: v * MIB for k, v in sizes.items()})


def forecast(**changes: Any) -> Forecast:
    about = Interval(low=1, mid=2, high=3)
    fields: dict[str, Any] = {
        "allocated_bytes": about, "peak_phase": "backward", "device": "cpu", "fits": "yes",
        "seconds": Interval(low=20, mid=30, high=40),
    }  # fmt: skip
    return Forecast(**fields | changes)


# the table


def test_every_status_has_words_a_sign_and_an_icon_that_exists() -> None:
    assert set(runs.LOOKS) == set(get_args(Status))
    assert len({look.sign for look in runs.LOOKS.values()}) == len(runs.LOOKS)  # told apart without their colour
    for look in runs.LOOKS.values():
        assert look.icon.removeprefix(":material/").rstrip(":") in ALL_MATERIAL_ICONS


def test_the_latest_run_comes_first_and_numbers_are_in_the_unit_of_their_title(study: StudyStore) -> None:
    evidence = gather(study)
    records = runs.found(evidence, ALL)
    table = runs.table(records, evidence)
    assert len(table) == 47
    assert records[0].started_at == max(r.started_at for r in records)
    first = records[0]
    assert first.memory is not None
    assert first.memory.peak is not None
    assert table.loc[0, "Peak memory"] == pytest.approx(first.memory.peak / MIB)
    assert table.loc[0, "Score"] == pytest.approx(100 * (first.score(evidence.metric) or 0))
    assert runs.titles(records, evidence)["Peak memory"] == "Peak memory (MiB)"
    assert runs.titles(records, evidence)["Score"] == "Score, one seed (%)"


def test_runs_are_filtered_by_status_arm_and_phase(study: StudyStore) -> None:
    evidence = gather(study)
    lost = runs.found(evidence, ALL | {"status": ["out_of_memory"]})
    assert {r.status for r in lost} == {"out_of_memory"}
    confirmed = runs.found(evidence, ALL | {"arm": ["lora"], "phase": ["confirm"]})
    assert len(confirmed) == 5
    assert runs.counted(confirmed, evidence) == "5 of 47 runs: 5 done."
    known = runs.known(evidence)
    assert known["arm"] == [*ARMS, "zero-shot"]
    assert known["status"][:2] == ["done", "out_of_memory"]


def test_two_confirmed_runs_of_two_arms_can_be_compared(make_record: MakeRecord) -> None:
    lora, full = make_record(), make_record(trial={"arm": "full"})
    assert runs.comparable([lora, full]) == ("lora", "full")
    assert runs.comparable([lora, make_record(trial={"seed": 102})]) is None  # one arm
    assert runs.comparable([lora, make_record(trial={"arm": "full", "phase": "search"})]) is None
    assert runs.comparable([lora]) is None


def test_a_run_is_found_by_the_start_of_its_id_that_no_other_shares(study: StudyStore) -> None:
    evidence = gather(study)
    wanted = evidence.records[3]
    assert runs.find(evidence, wanted.trial_id) == wanted
    assert runs.find(evidence, f" {wanted.trial_id[:11].upper()} ") == wanted
    assert runs.find(evidence, "") is None
    assert runs.find(evidence, "not a run") is None


# one run


def test_want_of_memory_is_said_to_be_a_result(make_record: MakeRecord) -> None:
    record = make_record(status="out_of_memory", detail="no room")
    assert (runs.why(record) or "").startswith("Out of memory: no room. This is a result of the configuration")
    assert runs.why(make_record()) is None
    assert runs.why(make_record(status="failed", detail="a bug")) == "Failed: a bug."


def test_stages_follow_one_another(make_record: MakeRecord) -> None:
    record = make_record(stages=[Stage(stage="load", seconds=0.5), Stage(stage="train", seconds=12)])
    frame = runs.stages_frame(record)
    assert list(zip(frame["from"], frame["to"], frame["time"], strict=True)) == [
        (0.0, 0.5, "0.5 s"), (0.5, 12.5, "12 s"),
    ]  # fmt: skip
    assert list(runs.stages_table(record).columns) == ["Stage", "Time"]  # nothing else was measured or forecast


def test_memory_is_measured_beside_forecast_and_its_parts_add_up(make_record: MakeRecord) -> None:
    record = make_record(memory=tensors(), forecast=forecast(tensors=tensors(step_peak=30)))
    wide = runs.memory_frame(record).pivot_table(index="kind", columns="which", values="bytes") / MIB
    assert wide.loc["Peak (their sum)"].to_dict() == {"measured": 100, "forecast": 110}
    parts = wide.drop(index="Peak (their sum)")
    assert parts.sum().to_dict() == {"measured": 100, "forecast": 110}
    assert "measured 100.0 MiB, forecast 110.0 MiB" in runs.memory_said(record)


def test_a_run_without_memory_has_a_reason_in_place_of_a_chart(make_record: MakeRecord) -> None:
    base = make_record(trial={"method": "none", "phase": "baseline"}, memory=None)
    assert runs.memory_chart(base) is None
    assert runs.no_memory(base).startswith("Nothing is trained")
    assert runs.no_steps(base) == "The base is not trained, so there is no curve."
    assert runs.no_steps(make_record(status="does_not_fit")).startswith("It was not run")


def test_a_long_curve_is_thinned_and_says_so() -> None:
    steps = pd.DataFrame(
        {"step": range(1, 4001), "loss": 1.0, "learning_rate": None, "seconds": 1.0}  # no rate was logged
    )
    frame = runs.steps_frame(steps)
    assert list(frame["step"][:3]) == [1, 4, 7]
    assert runs.thinned(steps, frame) == "1,334 of 4,000 steps are drawn."
    assert len(runs.curves(frame)) == 1
    assert runs.curves(runs.steps_frame(steps.iloc[:0])) == []


def test_settings_that_are_the_default_are_left_out(study: StudyStore) -> None:
    record = next(r for r in gather(study).runs if r.trial.arm == "qlora-nf4")
    table = runs.settings_table(record).set_index("Setting")
    assert table.loc["Quantization", "Value"] == "nf4"
    assert table.loc["Train: max length"].to_list() == ["128", "1024"]
    assert "Train: optimizer" not in table.index


def test_a_score_says_that_it_is_of_one_seed(make_record: MakeRecord) -> None:
    table = runs.scores_table(make_record())
    assert len(table)
    assert table["Value"].str.endswith("(one seed)").all()


def test_the_end_of_a_log_is_shown_and_a_missing_one_said(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record(log_path="logs/x.log")
    assert runs.log_tail(record, tmp_path) == (None, "The log logs/x.log is not there any more.")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").write_text("\n".join(f"line {i}" for i in range(100)))
    tail, words = runs.log_tail(record, tmp_path)
    assert tail is not None
    assert (tail.splitlines()[0], tail.splitlines()[-1]) == ("line 40", "line 99")
    assert words == "The last 60 lines of logs/x.log"
    (tmp_path.parent / "secret.log").write_text("not of this study")
    assert runs.log_tail(make_record(log_path="../secret.log"), tmp_path)[0] is None
    assert runs.log_tail(make_record(log_path=None), tmp_path)[1] == "No log was kept of this run."


def test_a_run_that_was_sent_to_wandb_has_its_address(make_record: MakeRecord, tmp_path: Path) -> None:
    record: Record = make_record()
    run = f"{record.trial_id}-1"
    assert runs.wandb(record, tmp_path, {})[1].startswith("No W&B run")
    folder = tmp_path / "wandb" / f"offline-run-20260101_000000-{run}"
    folder.mkdir(parents=True)
    assert runs.wandb(record, tmp_path, {})[1].startswith("Its W&B run is on disk")
    (folder / f"run-{run}.wandb.synced").touch()
    assert runs.wandb(record, tmp_path, {})[0] is None  # whose it is, the server alone knows
    page, _ = runs.wandb(record, tmp_path, {"WANDB_ENTITY": "ana", "WANDB_BASE_URL": "http://wandb.local"})
    assert page == f"http://wandb.local/ana/tiny-methods/runs/{run}"


# the page


def test_a_link_opens_a_run_with_the_command_that_makes_it_again(study: StudyStore, opened: Open) -> None:
    evidence = gather(study)
    record = evidence.runs[0]
    at = opened(study.folder.parent, "runs", run=record.trial_id)
    assert not at.exception
    assert shared.plain(runs.began(record)) in [c.value for c in at.caption]
    command = reproduce.command(record, evidence.spec, study.folder / "study.yaml")
    assert command in [c.value for c in at.code]
    assert {m.label for m in at.metric} >= {"Time", "Peak memory", "Throughput (tokens/s)"}


def test_runs_that_ended_badly_open_too(study: StudyStore, opened: Open) -> None:
    evidence = gather(study)
    at = opened(study.folder.parent, "runs")
    for status in runs.known(evidence)["status"]:
        record = next(r for r in evidence.records if r.status == status)
        at.text_input(key="run").set_value(record.trial_id).run()
        assert not at.exception
        assert shared.plain(runs.began(record)) in [c.value for c in at.caption]


def test_a_filter_of_another_study_is_forgotten(study: StudyStore, opened: Open) -> None:
    at = opened(study.folder.parent, "runs", runs_arm=["lora", "of another study"])
    assert not at.exception
    assert at.multiselect(key="runs_arm").value == ["lora"]


def test_a_run_that_is_not_there_is_said(study: StudyStore, opened: Open) -> None:
    at = opened(study.folder.parent, "runs", run="zzz")
    assert not at.exception
    assert "lab has no run zzz, or several that begin so." in [t.value for t in at.text]
