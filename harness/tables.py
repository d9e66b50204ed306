"""The parquet files of one table of a study: one for each run, and one into which many of them were merged.

    <table>/<trial>-<attempt>.parquet      written once, when the run ends
    <table>/all-<n>.parquet                made of them by `merge`; the one with the highest n counts

At any instant, and after an end at any instant, a reader finds every run exactly once: a merged file is complete before
it gets its name, says in its metadata which runs it has, and only then do their own files go. A reader takes the newest
merged file and the runs that it does not have, and begins again when another merged file came while it was reading.
"""

import os
import uuid
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.errors import StoreError
from harness.record import SCHEMA_VERSION

SCHEMA_KEY = b"harness_schema_version"
RUNS_KEY = b"harness_runs"
"""In the metadata of a merged file: the names of the files that were merged, without their ending."""

MERGED = "all"
ENDING = ".parquet"
ROWS_PER_GROUP = 4096
"""Of a merged file. Its rows are sorted by trial, so that one trial's are read without the rest."""
THREADS = 4
AT_ONCE = 32
"""From so many files on it is worth reading them in several threads."""
TRIES = 20
"""How often a reader begins again because files were merged while it was reading."""

Run = tuple[str, int]
"""Trial and attempt."""
T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    """A file that is passed over."""

    path: Path
    reason: str
    remedy: str

    @property
    def error(self) -> StoreError:
        return StoreError(f"{self.path}: {self.reason}", self.remedy)


@dataclass(frozen=True)
class Files:
    """The files of a table at some instant."""

    folder: Path
    merged: int | None
    """Number of the newest merged file."""
    older: list[int]
    singles: dict[Run, str]
    """Names of the files of runs, those that were merged already among them."""
    foreign: list[Path]
    """Parquet files whose names say nothing."""

    @property
    def merged_path(self) -> Path | None:
        return None if self.merged is None else self.folder / f"{MERGED}-{self.merged}{ENDING}"


def look(folder: Path) -> Files:
    """What is in the folder now; nothing where there is none."""
    singles: dict[Run, str] = {}
    merged, foreign = [], []
    for name in _names(folder):
        run, _, number = name.removesuffix(ENDING).rpartition("-")
        if not run or not number.isdecimal():
            foreign.append(folder / name)
        elif run == MERGED:
            merged.append(int(number))
        else:
            singles[run, int(number)] = name
    *older, newest = sorted(merged) if merged else [None]
    return Files(folder, newest, [n for n in older if n is not None], singles, sorted(foreign))


def _newest(folder: Path) -> int | None:
    """Number of the newest merged file."""
    start = f"{MERGED}-"
    numbers = [n.removesuffix(ENDING).removeprefix(start) for n in _names(folder) if n.startswith(start)]
    return max((int(n) for n in numbers if n.isdecimal()), default=None)


def _names(folder: Path) -> list[str]:
    try:
        return [n for n in os.listdir(folder) if n.endswith(ENDING) and n[0] not in "._"]
    except FileNotFoundError:
        return []


class Reader:
    """Reads the files of tables. It stops at the first that it cannot read, or passes it over and notes it."""

    def __init__(self, schemas: Mapping[str, pa.Schema], *, lenient: bool) -> None:
        self.schemas = schemas
        self.lenient = lenient
        self.noted: dict[Path, Unreadable] = {}

    def note(self, problem: Unreadable) -> None:
        """Raises StoreError unless lenient."""
        if not self.lenient:
            raise problem.error
        self.noted[problem.path] = problem

    def runs(self, folder: Path) -> set[Run]:
        """Every run that has a file in the folder, or is in a merged one."""
        return _undisturbed(folder, self._runs)

    def _runs(self, files: Files) -> set[Run]:
        return {*files.singles, *self._within(files)}

    def _within(self, files: Files) -> frozenset[Run]:
        """The runs of the newest merged file."""
        if files.merged_path is None:
            return frozenset()
        try:
            return runs_of(files.merged_path)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self.note(_broken(files.merged_path, error))
            return frozenset()

    def read(self, folder: Path, wanted: Collection[Run], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the wanted runs, ordered by trial, in the columns of the newest schema."""
        wanted = wanted if isinstance(wanted, set | frozenset) else set(wanted)
        return _undisturbed(folder, lambda files: self._read(files, wanted, columns))

    def _read(self, files: Files, wanted: Collection[Run], columns: Sequence[str] | None) -> pa.Table:
        schema = self.schemas[files.folder.name]
        if columns is not None:
            schema = pa.schema([schema.field(c) for c in columns], metadata=schema.metadata)
        within = self._within(files)
        for path in files.foreign:
            self.note(_broken(path, "its name is not TRIAL-ATTEMPT"))
        singles = [
            files.folder / name for run, name in sorted(files.singles.items()) if run in wanted and run not in within
        ]
        found = [t for t in _map(lambda p: self._file(p, schema), singles) if t is not None]
        merged = self._merged(files, within, wanted, schema) if within else None
        both = [t for t in (merged, *found) if t is not None and t.num_rows]
        if not both:
            return schema.empty_table()
        whole = pa.concat_tables(both)
        return _by_trial(whole) if merged is not None and found and "trial_id" in schema.names else whole

    def _merged(
        self, files: Files, within: frozenset[Run], wanted: Collection[Run], schema: pa.Schema
    ) -> pa.Table | None:
        """The wanted rows of the merged file."""
        assert files.merged_path is not None
        mine = within & set(wanted)
        if not mine:
            return None
        key = pa.schema([self.schemas[files.folder.name].field(c) for c in ("trial_id", "attempt")])
        more = pa.schema([*schema, *(f for f in key if f.name not in schema.names)])
        trials = sorted({trial for trial, _ in mine})
        table = self._file(files.merged_path, more, None if len(mine) == len(within) else trials)
        if table is None:
            return None
        return _of(table, mine, within - mine).select(schema.names)

    def _file(self, path: Path, schema: pa.Schema, trials: Sequence[str] | None = None) -> pa.Table | None:
        """A file's rows in the columns of the schema, of some trials or of all; None where it cannot be read."""
        try:
            file = pq.ParquetFile(path, memory_map=True)
            version = int((file.schema_arrow.metadata or {}).get(SCHEMA_KEY, b"0"))
            if version > SCHEMA_VERSION:
                self.note(_newer(path, version))
                return None
            if not {"trial_id", "attempt"} <= set(file.schema_arrow.names):
                self.note(_broken(path, "it has no column trial_id or attempt"))
                return None
            groups = None if trials is None else _groups(file, trials)
            # threads read files, not columns
            table = (
                file.read(schema.names, use_threads=groups is None and file.metadata.num_rows > ROWS_PER_GROUP)
                if groups is None
                else file.read_row_groups(groups, schema.names)
            )
            return _conformed(table, schema)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self.note(_broken(path, error))
            return None


def _undisturbed(folder: Path, read: Callable[[Files], T]) -> T:
    """Read the folder as it stands, again when files were merged meanwhile: a listing made while files come and go may
    lack both a run's own file and the merged one."""
    for _ in range(TRIES):
        files = look(folder)
        try:
            found = read(files)
        except FileNotFoundError:
            continue
        if _newest(folder) == files.merged:
            return found
    raise StoreError(f"{folder}: its files are gone as soon as they are listed", "try again once nothing writes there")


@lru_cache(maxsize=64)
def _runs_of(path: Path, modified: int) -> frozenset[Run]:
    names = (pq.read_schema(path, memory_map=True).metadata or {})[RUNS_KEY].decode().split()
    return frozenset((trial, int(attempt)) for trial, _, attempt in (n.rpartition("-") for n in names))


def runs_of(path: Path) -> frozenset[Run]:
    """The runs that a merged file has."""
    try:
        return _runs_of(path, path.stat().st_mtime_ns)
    except KeyError as error:
        raise ValueError("it does not say which runs it has") from error


def latest(runs: Iterable[Run]) -> set[Run]:
    """The last attempt of each trial."""
    found: dict[str, Run] = {}
    for run in runs:
        known = found.get(run[0])
        if known is None or known[1] < run[1]:
            found[run[0]] = run
    return set(found.values())


def _map(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterable[T]:
    if len(paths) < AT_ONCE:
        return [read(p) for p in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, paths, chunksize=AT_ONCE))


def _groups(file: pq.ParquetFile, trials: Sequence[str]) -> list[int]:
    """The row groups that can hold rows of the trials, which are sorted, by the bounds that the file keeps."""
    place = file.schema_arrow.names.index("trial_id")
    found = []
    for i in range(file.metadata.num_row_groups):
        bounds = file.metadata.row_group(i).column(place).statistics
        if bounds is None or not bounds.has_min_max:
            found.append(i)
            continue
        first = bisect_left(trials, bounds.min)
        if first < len(trials) and trials[first] <= bounds.max:
            found.append(i)
    return found


def _of(table: pa.Table, wanted: Collection[Run], others: Collection[Run]) -> pa.Table:
    """The rows of the wanted runs, where the table has these and others."""
    if not others:
        return table
    few = wanted if len(wanted) < len(others) else others
    by_attempt: dict[int, list[str]] = {}
    for trial, attempt in few:
        by_attempt.setdefault(attempt, []).append(trial)
    masks = [
        pc.and_(pc.equal(table["attempt"], attempt), pc.is_in(table["trial_id"], pa.array(trials, pa.string())))
        for attempt, trials in by_attempt.items()
    ]
    mask = reduce(pc.or_, masks)
    return table.filter(mask if few is wanted else pc.invert(mask))


def _by_trial(table: pa.Table) -> pa.Table:
    """Sorted by trial; rows of a trial stay in their order."""
    return table.take(pc.sort_indices(table, [("trial_id", "ascending")]))


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the columns of the schema: what an older one lacks is null."""
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


def write(path: Path, table: pa.Table) -> None:
    """Under a temporary name first, so that a file is whole as soon as it can be found."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def write_merged(folder: Path, table: pa.Table, runs: Iterable[Run], number: int = 1) -> None:
    """Write the rows of runs as one file, which says which runs these are: some may have no rows."""
    names = " ".join(f"{trial}-{attempt}" for trial, attempt in sorted(runs))
    told = table.replace_schema_metadata({**(table.schema.metadata or {}), RUNS_KEY: names.encode()})
    path = folder / f"{MERGED}-{number}{ENDING}"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    pq.write_table(_by_trial(told), temporary, row_group_size=ROWS_PER_GROUP)
    _to_disk(temporary)  # the runs' own files go after this: it has to outlast a loss of power
    os.replace(temporary, path)
    _to_disk(folder)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def merge(folder: Path, schema: pa.Schema, runs: Collection[Run]) -> tuple[int, list[Path], list[Unreadable]]:
    """Merge the files of these runs and what was merged before into one file.

    Runs that are not named are left: cut off, and perhaps to be written again.

    Returns:
        How many files were merged, the files that are no longer needed, and those that could not be read and stay.

    Raises:
        StoreError: what was merged before cannot be read.
    """
    files = look(folder)
    strict, lenient = (Reader({folder.name: schema}, lenient=one) for one in (False, True))
    within = strict._within(files)
    spent = [folder / f"{MERGED}-{n}{ENDING}" for n in files.older]
    spent += [folder / name for run, name in files.singles.items() if run in within]
    new = {run: folder / name for run, name in sorted(files.singles.items()) if run in runs and run not in within}
    tables = dict(zip(new, _map(lambda path: lenient._file(path, schema), list(new.values())), strict=True))
    read = {run: table for run, table in tables.items() if table is not None}
    if read:
        parts = list(read.values())
        if files.merged_path is not None:
            before = strict._file(files.merged_path, schema)
            assert before is not None
            parts.insert(0, before)
            spent.append(files.merged_path)
        write_merged(folder, pa.concat_tables(parts), {*within, *read}, (files.merged or 0) + 1)
        spent += [new[run] for run in read]
    return len(read), spent, list(lenient.noted.values())


def _broken(path: Path, error: object) -> Unreadable:
    return Unreadable(path, f"not a results file: {error}", "move it out of the store; its trial runs again")


def _newer(path: Path, version: int) -> Unreadable:
    return Unreadable(
        path,
        f"written in schema {version}, this version reads up to {SCHEMA_VERSION}",
        "pip install --upgrade finetune-harness",
    )
