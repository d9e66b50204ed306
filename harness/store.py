"""Results on disk: one small parquet file per trial and table, written once.

    <store>/<study>/study.yaml                    the question, every default spelled out
    <store>/<study>/declared.json                 what was declared before the first run
    <store>/<study>/{trials,scores,examples,steps,stages,speeds}/<trial>-<attempt>.parquet
    <store>/<study>/adapters/<trial>/             PEFT folders of confirmed runs
    <store>/<study>/models/<trial>/               whole models of methods without an adapter, first seed only
    <store>/<study>/{logs,wandb,data}/            logs of trials, offline W&B runs, tokenized rows
    <store>/<study>/search.journal, pins.json     Optuna's trials; the hashes of model and data at the start

Each table reads with plain pandas (`pd.read_parquet("results/x/trials")`) or DuckDB. A file is written under a
temporary name and renamed; the row in `trials` comes last, so rows of other tables without it belong to a run that was
cut off and are not read.
"""

import json
import os
import types
import typing
import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import StoreError, did_you_mean
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
from harness.spec import StudySpec, Value, dump_study, load_study

TABLES = ("trials", "scores", "examples", "steps", "stages", "speeds")
LISTS = TABLES[1:]
"""The tables that are lists of a record."""
SERVED = ("name", "quantization", "way", "of")
"""What the table `trials` tells of what was served."""
SCHEMA_KEY = b"harness_schema_version"
JSON_COLUMNS = ("params", "resolved", "environment", "data", "forecast", "trial")


class Store:
    """A folder of studies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def studies(self) -> list[str]:
        return sorted(p.parent.name for p in self.root.glob("*/study.yaml"))

    def study(self, name: str) -> "StudyStore":
        """Raises StoreError when the store holds no such study."""
        if not (self.root / name / "study.yaml").is_file():
            known = self.studies()
            hint = did_you_mean(name, known) if known else "it is empty"
            raise StoreError(f"no study {name!r} in {self.root}; {hint}", f"harness study {name} --store {self.root}")
        return StudyStore(self.root / name)

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


class StudyStore:
    """The results of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        for table, rows in reversed(_rows(record).items()):
            (self.folder / table).mkdir(exist_ok=True)  # a table that the study is older than
            _write_parquet(self.folder / table / name, rows, SCHEMAS[table])

    def records(self) -> list[Record]:
        """The latest attempt of every trial, without examples and steps, oldest first."""
        trials = self.table("trials")
        lists = [self._by_trial(table) for table in ("scores", "stages", "speeds")]
        return [_record(row, *(rows.get(row["trial_id"]) for rows in lists)) for row in _dicts(trials)]

    def _by_trial(self, table: str) -> dict[str, pd.DataFrame]:
        whole = self.table(table)
        return {str(trial): rows for trial, rows in whole.groupby("trial_id")} if len(whole) else {}

    def table(self, table: str) -> pd.DataFrame:
        """One table over all trials, latest attempts only.

        Raises:
            StoreError: a file was written by a newer version of this program, or is not parquet.
        """
        frames = [_read_parquet(path) for path in sorted((self.folder / table).glob("*.parquet"))]
        frames = [f for f in frames if len(f)]
        if not frames:
            return pd.DataFrame(columns=["trial_id", "attempt"])
        whole = pd.concat(frames, ignore_index=True)
        latest = self._latest_attempts() if table != "trials" else _latest(whole)
        kept = whole.merge(latest, on=["trial_id", "attempt"])
        return kept.sort_values("started_at", ignore_index=True) if table == "trials" else kept

    def _latest_attempts(self) -> pd.DataFrame:
        names = [p.stem.rsplit("-", 1) for p in (self.folder / "trials").glob("*.parquet")]
        return _latest(pd.DataFrame({"trial_id": [n[0] for n in names], "attempt": [int(n[1]) for n in names]}))


def _latest(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.groupby("trial_id")["attempt"].max().reset_index()


def _rows(record: Record) -> dict[str, list[dict[str, Any]]]:
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


def _record(
    row: dict[str, Any], scores: pd.DataFrame | None, stages: pd.DataFrame | None, speeds: pd.DataFrame | None
) -> Record:
    """A row of `trials` with its scores, stages and speeds, back as a record."""
    row = {k: None if _missing(v) else v for k, v in row.items()}
    fields: dict[str, Any] = {k: json.loads(row[k]) for k in JSON_COLUMNS if k != "params" and row.get(k)}
    fields["started_at"] = row["started_at"]
    for name in Record.model_fields:
        if name in row and name not in fields and name not in {"train", "memory"}:
            fields[name] = row[name]
    if row.get("train_steps") is not None:
        fields["train"] = {
            k.removeprefix("train_"): v for k, v in row.items() if k.startswith("train_") and k != "train_seconds"
        }
    if row.get("weights_bytes") is not None:
        fields["memory"] = {k: row[f"{k}_bytes"] for k in ("weights", "adapter", "gradients", "optimizer", "step_peak")}
    fields["scores"] = _values(scores, Score)
    fields["stages"] = _values(stages, Stage)
    fields["speeds"] = _values(speeds, Speed)
    return Record.model_validate(fields)


def _values(frame: pd.DataFrame | None, model: type[Value]) -> list[dict[str, Any]]:
    """Rows as fields of the model. NaN means none where a field may be missing, and NaN where it must be there."""
    if frame is None:
        return []
    fields = {k: f.is_required() for k, f in model.model_fields.items() if k in frame.columns}
    return [
        {k: None if _missing(row[k]) and not required else _plain(row[k]) for k, required in fields.items()}
        for row in _dicts(frame)
    ]


def _dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """A cell as JSON would have it: pandas reads a list as an array."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _missing(value: Any) -> bool:
    return value is None or value is pd.NaT or (isinstance(value, float) and value != value)


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


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"{path}: not a results file: {error}", "move it out of the store; its trial runs again"
        ) from error
    version = int((table.schema.metadata or {}).get(SCHEMA_KEY, b"0"))
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written in schema {version}, this version reads up to {SCHEMA_VERSION}",
            "pip install --upgrade finetune-harness",
        )
    return table.to_pandas()


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
