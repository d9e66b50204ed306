"""Results on disk: what was written is read back, and half-written or foreign files are not taken for results."""

import json
import math
import shutil
import typing
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeRecord, MakeSpec

from harness.errors import StoreError
from harness.record import SCHEMA_VERSION, Example, Record, Status
from harness.store import SCHEMA_KEY, SCHEMAS, TABLES, Store, StudyStore

FORECAST: dict[str, typing.Any] = {
    "allocated_bytes": {"low": 690, "mid": 700, "high": 710},
    "peak_phase": "optimizer step",
    "components": {"weights": 400, "states": 300},
    "device": "cpu",
    "fits": "yes",
    "seconds": {"low": 5, "mid": 7.5, "high": 9},
    "doubts": ["a model of another kind"],
}

SPEED: dict[str, typing.Any] = {
    "served": "nf4", "batch": 2, "context": 8, "new_tokens": 3, "prefill_seconds": [0.5, 0.25],
    "decode_seconds": [1.0, 2.0], "token_seconds": [0.5, 0.5], "stored_bytes": 7,
}  # fmt: skip

BARE: dict[str, typing.Any] = {"train": None, "memory": None, "steps": [], "scores": [], "stages": []}
STATUSES = typing.get_args(Status)


@pytest.fixture
def store(tmp_path: Path, make_spec: MakeSpec) -> StudyStore:
    return Store(tmp_path).open(make_spec())


def without_lists(record: Record) -> Record:
    """What `records` reads back: examples and steps are tables to be read when they are needed."""
    return record.model_copy(update={"examples": [], "steps": []})


def test_a_record_is_read_back_as_it_was_written(store: StudyStore, make_record: MakeRecord) -> None:
    examples = [Example(task="recall", metric="exact_match", example_id="0-ab", score=1.0, prediction="x", target="x")]
    record = make_record(examples=examples, forecast=FORECAST, adapter_path="adapters/x", trial={"number": 3})
    store.write(record)
    assert store.records() == [without_lists(record)]
    kept = store.table("examples").drop(columns=["trial_id", "attempt", "arm", "phase", "seed"])
    assert [Example.model_validate(row) for row in kept.to_dict("records")] == examples
    assert list(store.table("steps")["loss"]) == [s.loss for s in record.steps]


def test_a_served_model_and_its_speeds_are_read_back(store: StudyStore, make_record: MakeRecord) -> None:
    served = {"name": "four", "quantization": "nf4", "way": "merged", "of": "abc"}
    speeds = [SPEED, {**SPEED, "context": 16, "energy_joules": 2.5, "token_seconds": []}]
    record = make_record(
        trial={"phase": "serve", "arm": "lora@four/merged", "served": served},
        speeds=speeds,
        stored_bytes=9,
        disk_bytes=8,
    )
    store.write(record)
    store.write(make_record())
    read = {r.trial_id: r for r in store.records()}
    assert read[record.trial_id] == without_lists(record)
    rows = store.table("trials").set_index("trial_id")
    assert {k: rows.loc[record.trial_id, f"served_{k}"] for k in served} == served
    assert rows.loc[record.trial_id, ["stored_bytes", "disk_bytes"]].tolist() == [9, 8]
    assert rows.drop(record.trial_id)[["served_name", "served_way", "stored_bytes"]].isna().all(axis=None)
    assert [list(v) for v in store.table("speeds")["prefill_seconds"]] == [[0.5, 0.25]] * 2


def test_results_of_schema_2_are_read(store: StudyStore, make_record: MakeRecord) -> None:
    # from before anything was run after training: fewer columns, no table of speeds, trials that know of neither
    old, new = make_record(schema_version=2), make_record(trial={"seed": 5}, stored_bytes=9)
    store.write(old)
    path = store.folder / "trials" / f"{old.trial_id}-1.parquet"
    table = pq.read_table(path)
    trial = {k: v for k, v in json.loads(table["trial"][0].as_py()).items() if k not in {"served", "timed"}}
    added = {"stored_bytes", "disk_bytes", "reference_seconds", *(c for c in table.column_names if "served_" in c)}
    table = table.drop_columns([c for c in table.column_names if c in added])
    table = table.set_column(table.column_names.index("trial"), "trial", pa.array([json.dumps(trial)]))
    pq.write_table(table.replace_schema_metadata({SCHEMA_KEY: b"2"}), path)
    shutil.rmtree(store.folder / "speeds")
    assert store.records() == [without_lists(old)]
    store.write(new)
    assert {r.trial_id: r for r in store.records()} == {r.trial_id: without_lists(r) for r in (old, new)}


def test_the_main_figures_of_a_forecast_are_columns(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record(forecast=FORECAST))
    row = store.table("trials").to_dict("records")[0]
    assert [row[f"forecast_allocated_bytes_{b}"] for b in ("low", "mid", "high")] == [690, 700, 710]
    assert [row[f"forecast_seconds_{b}"] for b in ("low", "mid", "high")] == [5, 7.5, 9]
    assert (row["forecast_fits"], row["forecast_device"]) == ("yes", "cpu")
    assert pd.isna(row["forecast_process_bytes_mid"])  # there is none on a CPU


def test_results_of_schema_1_are_read(store: StudyStore, make_record: MakeRecord) -> None:
    # without the columns of the forecast, and with trials that know no micro-batch
    old, new = make_record(schema_version=1), make_record(forecast=FORECAST, trial={"seed": 5})
    store.write(old)
    path = store.folder / "trials" / f"{old.trial_id}-1.parquet"
    table = pq.read_table(path)
    trial = {k: v for k, v in json.loads(table["trial"][0].as_py()).items() if k != "micro_batch"}
    table = table.drop_columns([c for c in table.column_names if c.startswith("forecast_")])
    table = table.set_column(table.column_names.index("trial"), "trial", pa.array([json.dumps(trial)]))
    pq.write_table(table.replace_schema_metadata({SCHEMA_KEY: b"1"}), path)
    assert store.records() == [without_lists(old)]
    store.write(new)
    assert {r.trial_id: r for r in store.records()} == {r.trial_id: without_lists(r) for r in (old, new)}


def test_a_score_that_is_not_a_number_does_not_make_the_study_unreadable(
    store: StudyStore, make_record: MakeRecord
) -> None:
    score = {"task": "t", "metric": "m", "value": math.nan, "items": 1, "role": "target", "higher_is_better": True}
    store.write(make_record(scores=[score]))
    (read,) = store.records()
    assert math.isnan(read.scores[0].value)
    assert read.scores[0].majority is None


@pytest.mark.parametrize("status", STATUSES)
def test_every_way_of_ending_is_kept(store: StudyStore, make_record: MakeRecord, status: Status) -> None:
    # with as little as a process leaves that died at once, beside a run that has everything
    bare = make_record(status=status, detail="why", trial={"seed": 5}, resolved={}, environment={}, data={}, **BARE)
    whole = make_record()
    store.write(whole)
    store.write(bare)
    assert {r.trial_id: r for r in store.records()} == {whole.trial_id: without_lists(whole), bare.trial_id: bare}


def test_the_latest_attempt_is_the_one_that_counts(store: StudyStore, make_record: MakeRecord) -> None:
    last = make_record(attempt=10)  # 10 comes after 9 by number and before it by name
    for record in (make_record(attempt=9, status="killed", detail="SIGKILL"), last):
        store.write(record)
    assert store.records() == [without_lists(last)]
    assert set(store.table("scores")["attempt"]) == {10}


def test_what_a_cut_off_run_left_is_not_read(store: StudyStore, make_record: MakeRecord) -> None:
    whole, cut = make_record(), make_record(trial={"seed": 5})
    store.write(whole)
    store.write(cut)
    (store.folder / "trials" / f"{cut.trial_id}-1.parquet").unlink()  # the row that is written last
    assert [r.trial_id for r in store.records()] == [whole.trial_id]
    assert set(store.table("scores")["trial_id"]) == {whole.trial_id}
    # nor do the lists of a second attempt count before it has its row
    again = make_record(attempt=2, scores=[])
    store.write(again)
    (store.folder / "trials" / f"{again.trial_id}-2.parquet").unlink()
    assert [r.attempt for r in store.records()] == [1]
    assert len(store.records()[0].scores) == 1


def test_an_unfinished_file_is_not_read(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    (store.folder / "trials" / ".x-1.parquet.ab.tmp").write_bytes(b"half")
    assert len(store.records()) == 1
    assert len(pd.read_parquet(store.folder / "trials")) == 1


def test_records_come_in_the_order_in_which_they_began(store: StudyStore, make_record: MakeRecord) -> None:
    began = [make_record(trial={"seed": s}, started_at=f"2026-01-0{day}T00:00:00Z") for s, day in ((1, 3), (2, 1))]
    for record in began:
        store.write(record)
    assert [r.trial.seed for r in store.records()] == [2, 1]


def test_results_of_a_newer_version_are_refused(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    path = store.folder / "trials" / f"{record.trial_id}-1.parquet"
    newer = {SCHEMA_KEY: str(SCHEMA_VERSION + 1).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(newer), path)
    with pytest.raises(StoreError, match=f"written in schema {SCHEMA_VERSION + 1}") as caught:
        store.records()
    assert path.name in str(caught.value)
    assert "upgrade" in (caught.value.remedy or "")


def test_a_broken_file_is_named(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    (store.folder / "scores" / f"{record.trial_id}-1.parquet").write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=rf"scores/{record.trial_id}-1\.parquet: not a results file"):
        store.records()


def test_another_question_under_the_same_name_is_refused(tmp_path: Path, make_spec: MakeSpec) -> None:
    store = Store(tmp_path)
    store.open(make_spec())
    other = make_spec(controls={"model": {"id": "tiny"}, "data": {"path": "tiny", "test_rows": 7}})
    with pytest.raises(StoreError, match=r"controls\.data\.test_rows was 200 and is 7"):
        store.open(other)
    store.open(make_spec(search={"trials": 9}))  # more trials are the same question
    assert store.study("s").spec().search.trials == 9


def test_an_unknown_study_is_answered_with_the_nearest(tmp_path: Path, make_spec: MakeSpec) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="it is empty"):
        store.study("tiny")
    store.open(make_spec(name="tiny-methods"))
    assert store.studies() == ["tiny-methods"]
    with pytest.raises(StoreError, match="did you mean tiny-methods"):
        store.study("tiny-metods")


@pytest.fixture
def uneven(store: StudyStore, make_record: MakeRecord) -> StudyStore:
    """A run with everything, one with nothing and one whose optional columns are all null, in files of their own."""
    example = Example(task="t", metric="m", example_id="0", score=1.0)
    store.write(make_record(examples=[example.model_copy(update={"prediction": "x", "target": "y"})]))
    store.write(make_record(trial={"seed": 5}, status="killed", detail="SIGKILL", **BARE))
    bare_stage, bare_step = {"stage": "load", "seconds": 1.0}, {"step": 1, "loss": 1, "learning_rate": 0, "seconds": 1}
    full_stage = {**bare_stage, "rss_peak_bytes": 5, "energy_joules": 2.0}
    score = {"task": "t", "metric": "m", "value": 1, "items": 1, "role": "target", "higher_is_better": True}
    store.write(
        make_record(trial={"seed": 6}, examples=[example], stages=[bare_stage], steps=[bare_step], scores=[score])
    )
    store.write(
        make_record(
            trial={"seed": 7}, stages=[full_stage], scores=[{**score, "majority": 0.5}], speeds=[SPEED], disk_bytes=3
        )
    )
    store.write(make_record(trial={"seed": 8}, speeds=[{**SPEED, "decode_peak_bytes": 5, "token_seconds": []}]))
    return store


@pytest.mark.parametrize("table", TABLES)
def test_a_folder_reads_as_one_table_with_plain_pandas(uneven: StudyStore, table: str) -> None:
    frame = pd.read_parquet(uneven.folder / table)
    assert list(frame.columns) == SCHEMAS[table].names
    assert len(frame) == sum(len(pd.read_parquet(p)) for p in (uneven.folder / table).glob("*.parquet"))
    assert len(frame)


@pytest.mark.parametrize("table", TABLES)
def test_a_folder_reads_as_one_table_with_duckdb(uneven: StudyStore, table: str) -> None:
    rows = duckdb.connect().execute(f"select * from '{uneven.folder}/{table}/*.parquet'").df()
    assert list(rows.columns) == SCHEMAS[table].names
    assert len(rows) == len(pd.read_parquet(uneven.folder / table))


def test_every_file_of_a_table_has_the_same_columns(uneven: StudyStore) -> None:
    for table in TABLES:
        schemas = [pq.read_schema(path) for path in (uneven.folder / table).glob("*.parquet")]
        assert all(schema.equals(SCHEMAS[table]) for schema in schemas)


def test_an_empty_store_has_empty_tables(store: StudyStore) -> None:
    assert store.records() == []
    assert all(len(store.table(table)) == 0 for table in TABLES)
