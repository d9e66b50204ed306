"""Results on disk: one small parquet file per trial and table, written once.

    <store>/<study>/study.yaml                    the question, every default spelled out
    <store>/<study>/declared.json                 what was declared before the first run
    <store>/<study>/{trials,scores,examples,steps,stages,speeds}/<trial>-<attempt>.parquet, or all-<n>.parquet
    <store>/<study>/adapters/<trial>/             PEFT folders of confirmed runs
    <store>/<study>/models/<trial>/               whole models of methods without an adapter, first seed only
    <store>/<study>/{logs,wandb,data}/            logs of trials, offline W&B runs, tokenized rows
    <store>/<study>/search.journal, pins.json     Optuna's trials; the hashes of model and data at the start

A file of a run is written once, under a temporary name, and renamed; the row in `trials` comes last, so rows of other
tables without it belong to a run that was cut off and are not read. `harness compact` merges the files (`tables.py`).
Each table reads with plain pandas (`pd.read_parquet("results/x/trials")`) or DuckDB.
"""

import gc
import json
import os
import threading
import types
import typing
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_core import from_json

from harness import tables
from harness.errors import HarnessError, StoreError, did_you_mean
from harness.protocol import Declaration, declare
from harness.record import (
    BOUNDS,
    FORECAST_INTERVALS,
    SCHEMA_VERSION,
    Example,
    Record,
    Score,
    Speed,
    Stage,
    StageName,
    Step,
    TensorBytes,
    Training,
)
from harness.spec import StudySpec, Value, digest, dump_study, load_study
from harness.tables import SCHEMA_KEY as SCHEMA_KEY
from harness.tables import Run, Unreadable

TABLES = ("trials", "scores", "examples", "steps", "stages", "speeds")
LOCK = ".lock"
"""In the folder of a study: held by the command that runs it."""
LISTS = TABLES[1:]
"""The tables that are lists of a record."""
SERVED = ("name", "quantization", "way", "of")
"""What the table `trials` tells of what was served."""
RECORD_LISTS: dict[str, type[Value]] = {"scores": Score, "stages": Stage, "speeds": Speed}
"""The lists that `records` reads; the others are tables to be read when they are needed."""
REPEATED = ("environment", "data")
"""JSON that is the same in most records of a study."""
JSON_COLUMNS = ("params", "resolved", "environment", "data", "forecast", "trial")


class Store:
    """A folder of studies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def studies(self) -> list[str]:
        """Folders with a study file, whether or not it can be read."""
        return sorted(p.parent.name for p in self.root.glob("*/study.yaml"))

    def problems(self) -> dict[str, HarnessError]:
        """What is wrong with folders that hold results and no study, or a study file that cannot be read."""
        found: dict[str, HarnessError] = {}
        for name in sorted({p.parent.name for p in self.root.glob("*/trials")} | set(self.studies())):
            try:
                self.study(name).spec()
            except HarnessError as error:
                found[name] = error
            except (OSError, ValueError) as error:
                found[name] = StoreError(f"{self.root / name / 'study.yaml'}: {error}", "mend it, or move it away")
        return found

    def study(self, name: str, *, lenient: bool = False) -> "StudyStore":
        """Raises StoreError when the store holds no such study; `lenient` as in `StudyStore`."""
        if not (self.root / name / "study.yaml").is_file():
            known = self.studies()
            hint = did_you_mean(name, known) if known else "it is empty"
            raise StoreError(f"no study {name!r} in {self.root}; {hint}", f"harness study {name} --store {self.root}")
        return StudyStore(self.root / name, lenient=lenient)

    def open(self, spec: StudySpec) -> "StudyStore":
        """The study's folder, made if need be.

        Raises:
            StoreError: the folder holds results of another question under this name.
        """
        folder = self.root / spec.name
        path = folder / "study.yaml"
        if path.is_file():
            known = load_study(path)
            if known.question_id != spec.question_id:
                own = f"--name {spec.name}-2" if spec.origin else f"name={spec.name}-2"
                raise StoreError(
                    f"{folder} holds another question under this name: {_first_difference(known, spec)}",
                    f"give this one its own: {own}, or keep it apart with --store",
                )
        for table in TABLES:
            (folder / table).mkdir(parents=True, exist_ok=True)
        declared = folder / "declared.json"
        if not declared.is_file() and spec.origin is None:  # elsewhere nothing was declared that is known here
            _write_text(declared, declare(spec).model_dump_json(indent=2) + "\n")
        _write_text(path, dump_study(spec))
        return StudyStore(folder)


@dataclass(frozen=True)
class Compacted:
    """What `StudyStore.compact` did."""

    runs: int
    """Runs whose files were merged."""
    files: int
    """Files of theirs, in all tables."""
    left: list[Unreadable]
    """Files that could not be read and stay."""


class StudyStore:
    """The results of one study.

    Args:
        lenient: pass over files that cannot be read; `unreadable` says which. Else the first raises StoreError.
    """

    def __init__(self, folder: Path, *, lenient: bool = False) -> None:
        self.folder = folder
        self._reader = tables.Reader(SCHEMAS, lenient=lenient)
        self._read: tuple[int, list[Record]] | None = None
        """What `records` found, and the state of the folder in which it did."""
        self._reading = threading.RLock()
        """Threads that share this object read one after another: what one has read the next one takes."""

    def spec(self) -> StudySpec:
        return load_study(self.folder / "study.yaml")

    def declared(self) -> Declaration | None:
        """What was declared before the first run; None for a study older than declarations."""
        path = self.folder / "declared.json"
        return Declaration.model_validate_json(path.read_text()) if path.is_file() else None

    def pins(self) -> dict[str, str]:
        """The digests of model and data that the study began with."""
        path = self.folder / "pins.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def pin(self, pins: dict[str, str]) -> None:
        _write_text(self.folder / "pins.json", json.dumps(pins))

    def write(self, record: Record) -> None:
        """Add a record. Its row in `trials` comes last and makes the others count."""
        name = f"{record.trial_id}-{record.attempt}.parquet"
        for table, rows in reversed(rows_of(record).items()):
            (self.folder / table).mkdir(exist_ok=True)  # a table that the study is older than
            tables.write(self.folder / table / name, pa.Table.from_pylist(rows, schema=SCHEMAS[table]))

    def records(self) -> list[Record]:
        """The latest attempt of every trial, without examples and steps, oldest first.

        Raises:
            StoreError: a file was written by a newer version of this program, or is not parquet.
        """
        with self._reading:
            stamp = self._stamp()
            if self._read is None or self._read[0] != stamp:
                self._reader.noted = {}  # not cleared: another thread may be going through it
                with _no_garbage():
                    self._read = stamp, self._records()
            return list(self._read[1])

    def _records(self) -> list[Record]:
        runs = self._latest()
        trials = self._reader.read(self.folder / "trials", runs, ROW_COLUMNS)
        lists = {table: self._by_run(table, model, runs) for table, model in RECORD_LISTS.items()}
        found: list[Record] = []
        for row in trials.take(_by_start(trials)).to_pylist():
            run = row["trial_id"], row["attempt"]
            try:
                of_run = {table: rows.get(run, []) for table, rows in lists.items()}
                found.append(_record(row, of_run, found[-1] if found else None))
            except (ValidationError, ValueError) as error:
                path = self.folder / "trials" / f"{run[0]}-{run[1]}.parquet"
                reason = f"not a record: {str(error).splitlines()[0]}"
                self._reader.note(Unreadable(path, reason, "move it out of the store; its trial runs again"))
        return found

    def _latest(self) -> set[Run]:
        return tables.latest(self._reader.runs(self.folder / "trials"))

    def _by_run(self, table: str, model: type[Value], runs: Collection[Run]) -> dict[Run, list[dict[str, Any]]]:
        """A table's rows as fields of the model, by run."""
        whole = self._reader.read(self.folder / table, runs, ["trial_id", "attempt", *model.model_fields])
        measured = {k for k, f in model.model_fields.items() if not f.is_required()}
        grouped: dict[Run, list[dict[str, Any]]] = {}
        for row in whole.to_pylist():
            run = row.pop("trial_id"), row.pop("attempt")
            # NaN means none where a field may be missing, and NaN where it must be there
            grouped.setdefault(run, []).append({k: None if k in measured and v != v else v for k, v in row.items()})
        return grouped

    def table(
        self, table: str, *, columns: Sequence[str] | None = None, trials: Collection[str] | None = None
    ) -> pd.DataFrame:
        """One table over all trials or some, latest attempts only; all columns or some.

        Raises:
            StoreError: a file was written by a newer version of this program, or is not parquet.
        """
        runs = self._latest()
        if trials is not None:
            wanted = set(trials)
            runs = {run for run in runs if run[0] in wanted}
        own = [] if table != "trials" or columns is None or "started_at" in columns else ["started_at"]
        whole = self._reader.read(self.folder / table, runs, None if columns is None else [*columns, *own])
        if not whole.num_rows:
            return pd.DataFrame(columns=["trial_id", "attempt"] if columns is None else list(columns))
        if table == "trials":
            whole = whole.take(_by_start(whole)).drop_columns(own)
        frame: pd.DataFrame = whole.to_pandas()
        return frame

    def files(self) -> int:
        """How many runs have files of their own: those that are not merged yet."""
        return len(tables.look(self.folder / "trials").singles)

    def version(self) -> str:
        """What changes when, and only when, results are added or the study file changes: to be asked every few seconds.

        Names of files alone: a run's file is written once. Merging files changes nothing.
        """
        study = self.folder / "study.yaml"
        runs = " ".join(sorted(f"{trial}-{attempt}" for trial, attempt in self._reader.runs(self.folder / "trials")))
        return digest([runs, study.read_bytes().hex() if study.is_file() else None])

    def unreadable(self) -> list[Unreadable]:
        """The files that a lenient reader has passed over, those of `records` at least."""
        if not self._reader.lenient:
            return StudyStore(self.folder, lenient=True).unreadable()
        with self._reading:
            self.records()
            noted = dict(self._reader.noted)
        return [noted[path] for path in sorted(noted) if path.exists()]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the study's lock, which the command that runs it has while it does.

        Raises:
            StoreError: another command has it.
        """
        lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"another command is running study {self.folder.name} in {self.folder}", "wait for it, or stop it first"
            ) from error
        with lock:
            yield

    def compact(self) -> Compacted:
        """Merge the runs' own files into one file per table, which reads many times faster.

        Nothing is lost whenever it is cut off, and who reads meanwhile finds every run once. Files that cannot be read
        and rows of runs that were cut off stay as they are. The caller sees to it that no study is running here.

        Raises:
            StoreError: a merged file cannot be read.
        """
        runs = self._reader.runs(self.folder / "trials")
        merged: dict[str, int] = {}
        spent: list[Path] = []
        left: list[Unreadable] = []
        for table in (*LISTS, "trials"):  # as in `write`: what makes the others count comes last
            (self.folder / table).mkdir(exist_ok=True)
            merged[table], done, unread = tables.merge(self.folder / table, SCHEMAS[table], runs)
            spent += done
            left += unread
        for path in spent:
            path.unlink(missing_ok=True)
        return Compacted(merged["trials"], sum(merged.values()), left)

    def _stamp(self) -> int:
        """What changes when a file of a run comes, goes or is replaced."""
        try:
            with os.scandir(self.folder / "trials") as entries:
                return hash(frozenset((e.name, e.stat().st_mtime_ns) for e in entries if e.name.endswith(".parquet")))
        except FileNotFoundError:
            return 0


def _by_start(trials: pa.Table) -> pa.Array:
    return pc.sort_indices(trials, [("started_at", "ascending")])


def rows_of(record: Record) -> dict[str, list[dict[str, Any]]]:
    """A record as rows of the six tables, each with what identifies it."""
    trial = record.trial
    key = {
        "trial_id": record.trial_id,
        "attempt": record.attempt,
        "arm": trial.arm,
        "phase": trial.phase,
        "seed": trial.seed,
    }
    plain = record.model_dump(exclude={"train", "memory", *LISTS, "trial"})
    row: dict[str, Any] = {
        **key,
        "study": trial.study,
        "method": trial.method,
        "quantization": trial.quantization,
        "learning_rate": _number(trial.params.get("learning_rate")),
        "params": trial.params,
        "tuning": trial.tuning,
        "number": trial.number,
        **({f"served_{k}": getattr(trial.served, k) for k in SERVED} if trial.served else {}),
        **{k: v for k, v in plain.items() if k not in key},
        **{f"{s.stage}_seconds": s.seconds for s in record.stages},
        **({f"train_{k}": v for k, v in record.train.model_dump().items()} if record.train else {}),
        **({f"{k}_bytes": v for k, v in record.memory.model_dump().items()} if record.memory else {}),
        "peak_bytes": record.memory.peak if record.memory else None,
        **(record.forecast.columns if record.forecast else {}),
        "trial": trial.model_dump(mode="json"),
    }
    row = {k: json.dumps(v, sort_keys=True) if k in JSON_COLUMNS else v for k, v in row.items()}
    return {
        "trials": [row],
        "scores": [{**key, **s.model_dump()} for s in record.scores],
        "examples": [{**key, **e.model_dump()} for e in record.examples],
        "steps": [{**key, **s.model_dump()} for s in record.steps],
        "stages": [{**key, **s.model_dump()} for s in record.stages],
        "speeds": [{**key, **s.model_dump()} for s in record.speeds],
    }


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Without the search for unused cycles, which would go through all records again and again while they are made:
    10,000 take less than half the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _record(row: dict[str, Any], lists: dict[str, list[Any]], like: Record | None) -> Record:
    """A row of `trials` with its lists, back as a record; it shares the controls with one that has the same."""
    row = {k: None if _missing(v) else v for k, v in row.items()}
    fields = {k: v for k, v in row.items() if k in Record.model_fields and k not in JSON_COLUMNS}
    fields |= {k: _shared(row[k]) for k in REPEATED if row[k]}
    fields |= {k: from_json(row[k], cache_strings="keys") for k in ("trial", "resolved", "forecast") if row[k]}
    trial = fields.get("trial") or {}
    if like is not None and trial.get("controls") == like.trial.controls.model_dump(mode="json"):
        trial["controls"] = like.trial.controls
    if row["train_steps"] is not None:
        fields["train"] = {k: row[f"train_{k}"] for k in Training.model_fields}
    if row["weights_bytes"] is not None:
        fields["memory"] = {k: row[f"{k}_bytes"] for k in TensorBytes.model_fields}
    return Record.model_validate({**fields, **lists})


@lru_cache(maxsize=256)
def _shared(text: str) -> Any:
    """What a text of JSON says, once for all records that have the same."""
    return from_json(text)


def _missing(value: Any) -> bool:
    return value is None or value != value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _arrow_type(annotation: Any) -> pa.DataType:
    """The column type of a record's field; None makes a column nullable, what is not plain is kept as JSON text."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if annotation is datetime:
        return pa.timestamp("us", tz="UTC")
    if typing.get_origin(annotation) is list:
        return pa.list_(_arrow_type(typing.get_args(annotation)[0]))
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(annotation, pa.string())


def _columns(
    model: type[Value], prefix: str = "", suffix: str = "", without: Iterable[str] = ()
) -> list[tuple[str, pa.DataType]]:
    return [
        (f"{prefix}{name}{suffix}", _arrow_type(field.annotation))
        for name, field in model.model_fields.items()
        if name not in set(without)
    ]


def _schemas() -> dict[str, pa.Schema]:
    """Every table's columns, the same in every file, so that a folder reads as one table."""
    key = [
        ("trial_id", pa.string()),
        ("attempt", pa.int64()),
        ("arm", pa.string()),
        ("phase", pa.string()),
        ("seed", pa.int64()),
    ]
    own = {"trial_id", "attempt", "trial", "train", "memory", *LISTS}
    trials = [
        *key,
        *[(n, pa.string()) for n in ("study", "method", "quantization")],
        ("learning_rate", pa.float64()),
        ("params", pa.string()),
        ("tuning", pa.int64()),
        ("number", pa.int64()),
        *[(f"served_{name}", pa.string()) for name in SERVED],
        *_columns(Record, without=own),
        *[(f"{stage}_seconds", pa.float64()) for stage in typing.get_args(StageName)],
        *_columns(Training, prefix="train_"),
        *_columns(TensorBytes, suffix="_bytes"),
        ("peak_bytes", pa.int64()),
        *[(f"forecast_{figure}_{bound}", pa.float64()) for figure in FORECAST_INTERVALS for bound in BOUNDS],
        *[(f"forecast_{name}", pa.string()) for name in ("fits", "device")],
        ("trial", pa.string()),
    ]
    rows: dict[str, type[Value]] = {
        "scores": Score, "examples": Example, "steps": Step, "stages": Stage, "speeds": Speed,
    }  # fmt: skip
    metadata = {SCHEMA_KEY: str(SCHEMA_VERSION).encode()}
    return {
        "trials": pa.schema(trials, metadata=metadata),
        **{table: pa.schema([*key, *_columns(model)], metadata=metadata) for table, model in rows.items()},
    }


SCHEMAS = _schemas()
ROW_COLUMNS = [
    "trial_id",
    "attempt",
    *(c for c in Record.model_fields if c in SCHEMAS["trials"].names and c not in {"trial_id", "attempt"}),
    *(f"train_{name}" for name in Training.model_fields),
    *(f"{name}_bytes" for name in TensorBytes.model_fields),
]
"""Those of the table `trials` that a record is made of; the others say the same again, for people."""


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _first_difference(a: StudySpec, b: StudySpec) -> str:
    left, right = _flat(a.model_dump()), _flat(b.model_dump())
    parts = ("controls.", "arms.") if b.origin is None else ("controls.", "origin.tool")  # see StudySpec.question_id
    for key in sorted(set(left) | set(right)):
        if key.startswith(parts) and left.get(key) != right.get(key):
            return f"{key} was {left.get(key)!r} and is {right.get(key)!r}"
    return "the order of its arms"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}{name}.").items()}
