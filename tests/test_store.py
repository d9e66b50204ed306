"""Results on disk: what was written is read back, and half-written or foreign files are not taken for results."""

import json
import math
import os
import shutil
import sys
import threading
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeRecord, MakeSpec
from stores import ARMS, generate

from harness.errors import StoreError
from harness.record import SCHEMA_VERSION, Example, Record, Status
from harness.spec import load_study
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


# one file per table instead of one per run


def same_tables(one: StudyStore, other: StudyStore) -> None:
    for table in TABLES:
        pd.testing.assert_frame_equal(one.table(table), other.table(table))


def parquet_files(store: StudyStore) -> dict[str, list[str]]:
    return {table: sorted(p.name for p in (store.folder / table).glob("*.parquet")) for table in TABLES}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[StudyStore, str], StudyStore]:
    def copy(store: StudyStore, name: str) -> StudyStore:
        return StudyStore(shutil.copytree(store.folder, tmp_path / "copies" / name))

    return copy


def test_a_compacted_study_reads_as_before(tmp_path: Path, copied: Callable[[StudyStore, str], StudyStore]) -> None:
    store = generate(tmp_path, "s", 60, arms={"lora": ARMS["lora"]}, items=20, tuning_items=5)
    before = copied(store, "before")
    files = len(parquet_files(store)["trials"])
    assert files > len(before.records()) == 60  # some runs have a first attempt that was killed
    done = store.compact()
    assert (done.runs, done.files, done.left) == (files, files * len(TABLES), [])
    assert parquet_files(store) == {table: ["all-1.parquet"] for table in TABLES}
    assert store.records() == before.records()
    same_tables(store, before)
    for table in TABLES:  # every attempt is still there
        assert len(pd.read_parquet(store.folder / table)) == len(pd.read_parquet(before.folder / table))
    assert store.compact().files == 0
    assert parquet_files(store)["trials"] == ["all-1.parquet"]


def test_some_trials_and_columns_are_read_without_the_rest(
    tmp_path: Path, copied: Callable[[StudyStore, str], StudyStore]
) -> None:
    store = generate(tmp_path, "s", 60, items=20, tuning_items=5)
    records = store.records()
    ids = {records[0].trial_id, records[30].trial_id, records[-1].trial_id, "of no run"}
    compacted = copied(store, "compacted")
    compacted.compact()
    for one in (store, compacted):
        for table in TABLES:
            whole = one.table(table)
            some = whole[whole["trial_id"].isin(ids)].reset_index(drop=True)
            pd.testing.assert_frame_equal(one.table(table, trials=ids), some)
            if len(some):
                pd.testing.assert_frame_equal(
                    one.table(table, trials=ids, columns=["seed", "arm"]), some[["seed", "arm"]]
                )
        assert list(one.table("examples", trials=[], columns=["arm", "score"]).columns) == ["arm", "score"]


def test_runs_after_a_compaction_count_and_are_merged_by_the_next(store: StudyStore, make_record: MakeRecord) -> None:
    first, killed = make_record(), make_record(trial={"seed": 5}, status="killed", **BARE)
    store.write(first)
    store.write(killed)
    store.compact()
    again, third = make_record(trial={"seed": 5}, attempt=2), make_record(trial={"seed": 6})
    for record in (again, third):
        store.write(record)
    wanted = {r.trial_id: without_lists(r) for r in (first, again, third)}
    assert {r.trial_id: r for r in store.records()} == wanted
    assert Counter(store.table("steps")["trial_id"]) == dict.fromkeys(wanted, 3)
    assert store.compact().runs == 2
    assert parquet_files(store)["steps"] == ["all-2.parquet"]
    assert {r.trial_id: r for r in store.records()} == wanted
    assert Counter(store.table("steps")["trial_id"]) == dict.fromkeys(wanted, 3)


def test_what_a_cut_off_run_left_is_not_merged(store: StudyStore, make_record: MakeRecord) -> None:
    # else its next attempt, which has the same number, would find its place taken
    store.write(make_record())
    cut = make_record(trial={"seed": 5})
    store.write(cut)
    (store.folder / "trials" / f"{cut.trial_id}-1.parquet").unlink()
    store.compact()
    assert set(parquet_files(store)["scores"]) == {f"{cut.trial_id}-1.parquet", "all-1.parquet"}
    assert len(store.table("scores")) == 1
    whole = make_record(trial={"seed": 5}, scores=[])
    store.write(whole)
    assert {r.trial_id: len(r.scores) for r in store.records()} == {make_record().trial_id: 1, whole.trial_id: 0}


WATCHED: list[Callable[[], None]] = []
"""What to do before a file is renamed or removed."""


def before_a_change(event: str, _: object) -> None:
    if event in {"os.rename", "os.remove"}:
        for look in WATCHED:
            look()


@contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Python's own audit hook, which cannot be taken away again: it calls what is watched now."""
    if not hasattr(watching, "hooked"):
        sys.addaudithook(before_a_change)
        watching.hooked = True  # type: ignore[attr-defined]
    WATCHED.append(look)
    try:
        yield
    finally:
        WATCHED.remove(look)


def test_a_compaction_that_is_killed_at_any_step_loses_and_doubles_nothing(
    uneven: StudyStore, make_record: MakeRecord, copied: Callable[[StudyStore, str], StudyStore]
) -> None:
    uneven.compact()  # so that there is a merged file already
    for record in (make_record(trial={"seed": 9}), make_record(attempt=2)):
        uneven.write(record)
    before = copied(uneven, "before")
    states: list[StudyStore] = []

    def snapshot() -> None:
        WATCHED.clear()  # copying is no step
        states.append(copied(uneven, f"step-{len(states)}"))
        WATCHED.append(snapshot)

    with watching(snapshot):
        uneven.compact()
    # six merged files get their names; two runs and the merged file of before go from each table
    assert len(states) == 6 + 6 * 3
    assert any(list((s.folder / "trials").glob(".*.tmp")) for s in states), "a file is written before it has its name"
    for state in [*states, uneven]:
        assert state.records() == before.records()
        same_tables(state, before)
        documented = pd.read_parquet(state.folder / "trials")
        documented = documented.loc[documented.groupby("trial_id")["attempt"].idxmax()]
        scores = pd.read_parquet(state.folder / "scores").drop_duplicates()
        scores = scores.merge(documented[["trial_id", "attempt"]])
        assert (len(documented), len(scores)) == (len(before.records()), len(before.table("scores")))
        state.compact()
        assert [len(names) for names in parquet_files(state).values()] == [1] * len(TABLES)
        assert state.records() == before.records()
        same_tables(state, before)


def test_who_reads_while_files_are_merged_finds_every_run_once(tmp_path: Path) -> None:
    store = generate(tmp_path, "s", 60, items=5, tuning_items=5)
    ids = sorted(r.trial_id for r in store.records())
    found: list[list[str]] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            found.append(sorted(r.trial_id for r in StudyStore(store.folder).records()))

    reader = threading.Thread(target=read)
    reader.start()
    store.compact()
    ended.set()
    reader.join()
    assert found
    assert all(some == ids for some in found)


def test_a_compacted_study_reads_with_plain_pandas_and_duckdb(uneven: StudyStore) -> None:
    uneven.compact()
    for table in TABLES:
        frame = pd.read_parquet(uneven.folder / table)
        rows = duckdb.connect().execute(f"select * from '{uneven.folder}/{table}/*.parquet'").df()
        assert list(frame.columns) == list(rows.columns) == SCHEMAS[table].names
        assert len(frame) == len(rows) > 0


def test_results_of_an_older_schema_are_merged_with_those_of_this_one(
    store: StudyStore, make_record: MakeRecord
) -> None:
    old, new = make_record(schema_version=1), make_record(trial={"seed": 5}, disk_bytes=9)
    store.write(old)
    path = store.folder / "trials" / f"{old.trial_id}-1.parquet"
    table = pq.read_table(path)
    table = table.drop_columns([c for c in table.column_names if c.startswith("forecast_") or "disk" in c])
    pq.write_table(table.replace_schema_metadata({SCHEMA_KEY: b"1"}), path)
    store.write(new)
    store.compact()
    assert {r.trial_id: r for r in store.records()} == {r.trial_id: without_lists(r) for r in (old, new)}
    assert pq.read_schema(store.folder / "trials" / "all-1.parquet").equals(SCHEMAS["trials"])


def test_results_without_a_schema_are_read_as_the_oldest(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    for table in TABLES:
        path = store.folder / table / f"{record.trial_id}-1.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert store.records() == [without_lists(record)]


def test_a_file_that_cannot_be_read_is_left_by_a_compaction(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    store.write(make_record(trial={"seed": 5}))
    broken = store.folder / "steps" / f"{record.trial_id}-1.parquet"
    broken.write_bytes(b"")
    (left,) = store.compact().left
    assert left.path == broken
    assert set(parquet_files(store)["steps"]) == {broken.name, "all-1.parquet"}
    assert parquet_files(store)["trials"] == ["all-1.parquet"]
    assert len(store.records()) == 2


def test_a_merged_file_that_cannot_be_read_is_not_replaced(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    store.compact()
    merged = store.folder / "trials" / "all-1.parquet"
    merged.write_bytes(merged.read_bytes()[:-9])
    store.write(make_record(trial={"seed": 5}))
    with pytest.raises(StoreError, match=r"trials/all-1\.parquet: not a results file"):
        store.compact()
    assert merged.is_file()


# a page that asks again and again


def test_the_version_changes_with_every_result_and_with_nothing_else(
    store: StudyStore, make_record: MakeRecord, tmp_path: Path, make_spec: MakeSpec
) -> None:
    seen = [store.version()]
    store.write(make_record())
    seen.append(store.version())
    store.write(make_record(attempt=2))
    seen.append(store.version())
    Store(tmp_path).open(make_spec(search={"trials": 9}))
    seen.append(store.version())
    assert len(set(seen)) == 4
    same = StudyStore(store.folder)
    assert same.version() == seen[-1]
    same.records()
    (store.folder / "trials" / ".x-1.parquet.ab.tmp").write_bytes(b"half")
    Store(tmp_path).open(make_spec(search={"trials": 9}))  # writes the same study file again
    store.compact()
    assert store.version() == seen[-1]


def test_records_are_read_again_when_there_are_more(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    first = store.records()
    first.clear()  # what is handed out is the caller's own
    assert len(store.records()) == 1
    store.write(make_record(trial={"seed": 5}))
    assert len(store.records()) == 2


def test_the_ids_of_a_changed_trial_are_its_own(make_record: MakeRecord) -> None:
    # they are kept once they were found, and a copy must not take over those of the original
    trial = make_record().trial
    ids = trial.id, trial.configuration
    smaller = trial.at(2)
    assert smaller.id != ids[0]
    assert smaller.configuration == ids[1] == trial.id
    assert type(trial).model_validate(trial.model_dump()).id == ids[0]
    assert trial.model_copy(update={"seed": 7}).id not in {ids[0], smaller.id}


# what cannot be read


def spoil(store: StudyStore, record: Record, table: str, content: bytes | None) -> Path:
    """Replace a run's file: by other bytes, or by what a newer version would write."""
    path = store.folder / table / f"{record.trial_id}-{record.attempt}.parquet"
    if content is None:
        newer = {SCHEMA_KEY: str(SCHEMA_VERSION + 1).encode()}
        pq.write_table(pq.read_table(path).replace_schema_metadata(newer), path)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a results file"), (b"PAR1 and no end", "not a results file"), (None, "written in schema")],
    ids=["empty", "cut off", "newer"],
)
@pytest.mark.parametrize("table", ["trials", "scores"])
def test_a_lenient_reader_goes_on_without_a_file_and_names_it(
    store: StudyStore, make_record: MakeRecord, table: str, content: bytes | None, reason: str
) -> None:
    whole, spoilt = make_record(), make_record(trial={"seed": 5})
    for record in (whole, spoilt):
        store.write(record)
    path = spoil(store, spoilt, table, content)
    with pytest.raises(StoreError, match=reason):
        store.records()
    lenient = StudyStore(store.folder, lenient=True)
    left = [without_lists(whole)]
    if table == "scores":  # what else there is of the run stays
        left.append(without_lists(spoilt).model_copy(update={"scores": []}))
    assert sorted(lenient.records(), key=lambda r: r.trial.seed, reverse=True) == left
    for reader in (lenient, store):
        (problem,) = reader.unreadable()
        assert problem.path == path
        assert reason in problem.reason
    path.unlink()
    assert lenient.unreadable() == []


def test_a_row_that_is_no_record_is_named(store: StudyStore, make_record: MakeRecord) -> None:
    whole, spoilt = make_record(), make_record(trial={"seed": 5})
    for record in (whole, spoilt):
        store.write(record)
    path = store.folder / "trials" / f"{spoilt.trial_id}-1.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("trial")
    pq.write_table(table.set_column(place, "trial", pa.array(['{"arm": "lora"}'])), path)
    with pytest.raises(StoreError, match=rf"{path.name}: not a record"):
        store.records()
    assert StudyStore(store.folder, lenient=True).records() == [without_lists(whole)]
    assert [u.path for u in store.unreadable()] == [path]


def test_a_file_of_another_name_is_not_taken_for_a_run(store: StudyStore, make_record: MakeRecord) -> None:
    store.write(make_record())
    pd.DataFrame({"x": [1]}).to_parquet(store.folder / "trials" / "mine.parquet")
    with pytest.raises(StoreError, match=r"trials/mine\.parquet: not a results file: its name"):
        store.records()
    assert len(StudyStore(store.folder, lenient=True).records()) == 1


def test_a_table_that_is_missing_is_empty(store: StudyStore, make_record: MakeRecord) -> None:
    record = make_record()
    store.write(record)
    for table in ("scores", "speeds", "steps"):
        shutil.rmtree(store.folder / table)
    assert store.records() == [without_lists(record).model_copy(update={"scores": []})]
    assert len(store.table("steps")) == 0
    assert store.unreadable() == []
    shutil.rmtree(store.folder / "trials")  # then the lists belong to no run
    assert store.records() == []
    assert len(store.table("stages")) == 0
    assert StudyStore(store.folder / "nowhere").records() == []


def test_a_study_that_cannot_be_read_hides_no_other(tmp_path: Path, make_spec: MakeSpec) -> None:
    store = Store(tmp_path)
    for name in ("broken", "cut", "good", "without"):
        store.open(make_spec(name=name))
    (tmp_path / "broken" / "study.yaml").write_text("arms: [", encoding="utf-8")
    (tmp_path / "cut" / "study.yaml").write_bytes(b"")
    (tmp_path / "without" / "study.yaml").unlink()
    (tmp_path / "not-a-study").mkdir()
    assert store.studies() == ["broken", "cut", "good"]
    problems = store.problems()
    assert sorted(problems) == ["broken", "cut", "without"]
    assert "no study 'without'" in problems["without"].message
    assert all(str(tmp_path / name / "study.yaml") in problems[name].message for name in ("broken", "cut"))


# the made-up studies that other tests use


@pytest.mark.parametrize("trials", [0, 1, 3, 25, 60])
def test_a_made_up_study_has_as_many_trials_as_asked_for_and_is_the_same_each_time(trials: int, tmp_path: Path) -> None:
    one, other = (generate(tmp_path / place, "s", trials, items=10) for place in ("one", "other"))
    records = one.records()
    assert len(records) == trials
    assert records == other.records()
    same_tables(one, other)
    assert {r.trial_id for r in records} == {r.trial.id for r in records}
    assert load_study(one.folder / "study.yaml").question_id == one.spec().question_id
    assert all(r.question_id == one.spec().question_id for r in records)


def test_a_made_up_study_is_the_same_written_run_by_run_or_at_once(tmp_path: Path) -> None:
    one, other = (generate(tmp_path / str(c), "s", 60, items=10, compacted=c) for c in (False, True))
    assert parquet_files(other) == {table: ["all-1.parquet"] for table in TABLES}
    assert one.records() == other.records()
    same_tables(one, other)


def test_a_made_up_study_can_be_judged(tmp_path: Path) -> None:
    phases = Counter(r.phase for r in generate(tmp_path, "s", 60, items=10).records())
    assert phases == {"baseline": 1, "search": 39, "confirm": 20}


@pytest.mark.parametrize("status", ["out_of_memory", "does_not_fit"])
def test_a_made_up_study_can_be_of_runs_without_room(status: Status, tmp_path: Path) -> None:
    records = generate(tmp_path, "s", 60, kinds=(status,)).records()
    assert len(records) == 60
    assert {r.status for r in records} == {status}
    assert not any(r.scores for r in records)


def test_a_made_up_study_on_a_gpu_has_what_only_a_gpu_has(tmp_path: Path) -> None:
    store = generate(tmp_path, "s", 60, items=10, flavour="cuda")
    run = next(r for r in store.records() if r.phase == "confirm")
    training = next(s for s in run.stages if s.stage == "train")
    assert training.allocated_peak_bytes is not None
    assert training.reserved_peak_bytes is not None
    assert training.device_peak_bytes is not None
    assert training.allocated_peak_bytes < training.reserved_peak_bytes < training.device_peak_bytes < 24 * 2**30
    assert training.energy_joules is not None
    assert run.forecast is not None
    assert run.environment["gpus"][0]["name"] == run.forecast.device
    assert store.spec().prices.per_hour is not None


def test_threads_that_share_a_store_each_learn_what_was_left_out(store: StudyStore, make_record: MakeRecord) -> None:
    for seed in range(20):
        store.write(make_record({"seed": seed}))
    broken = sorted((store.folder / "trials").glob("*.parquet"))[:10]
    for path in broken:
        path.write_bytes(b"PAR1")
    shared = StudyStore(store.folder, lenient=True)

    def ask(times: int) -> list[list[Path]]:
        seen = []
        for at in range(times):
            os.utime(broken[0], (at, at))  # what was read is out of date
            seen.append([problem.path for problem in shared.unreadable()])
        return seen

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, 8) for _ in range(4)]
        for thread in asked:
            assert thread.result() == [broken] * 8
