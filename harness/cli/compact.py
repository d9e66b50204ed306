"""`harness compact`: merge the files of a study's runs, so that they read many times faster."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, store_option
from harness.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.store import Compacted, Store, StudyStore

MANY = 200
"""A study with more runs in files of their own is compacted when its command ends."""


@dataclass(frozen=True)
class Done:
    """What became of a study's files."""

    study: str
    did: "Compacted"
    bytes_before: int
    bytes_after: int


@click.command(short_help="Merge the files of a study's runs, so that they read faster.")
@click.argument("study", required=False)
@store_option
@json_option
def command(study: str | None, store: Path, as_json: bool) -> None:
    """Merge the files of the runs of STUDY, or of every study, into one file per table.

    Nothing is lost, and the tables read as before. A study that is running is refused. `harness study` does this by
    itself at its end when a study has more than 200 runs.
    """
    import json

    from harness.store import Store

    results = Store(store)
    done = [compact(results.study(study))] if study else list(_all(results))
    for one in done:
        for left in one.did.left:
            click.echo(f"warning: left as it is: {left.path}: {left.reason}", err=True)
    if as_json:
        click.echo(json.dumps([_values(one) for one in done], indent=2))
        return
    for one in done:
        click.echo(_line(one))
    if not done:
        click.echo(f"no studies in {store}")


def _all(store: "Store") -> "Iterator[Done]":
    """Every study that is not running."""
    from harness.errors import StoreError

    for name in store.studies():
        try:
            yield compact(store.study(name))
        except StoreError as error:
            click.echo(f"warning: {name} is left as it is: {error.message}", err=True)


def compact(study: "StudyStore") -> Done:
    """Compact a study that no command is running.

    Raises:
        StoreError: one is.
    """
    with study.alone():
        before = _size(study)
        did = study.compact()
        return Done(study.folder.name, did, before, _size(study))


def compact_if_long(study: "StudyStore") -> Done | None:
    """What `harness study` does at its end."""
    return compact(study) if study.files() > MANY else None


def _size(study: "StudyStore") -> int:
    from harness.store import TABLES

    return sum(p.stat().st_size for table in TABLES for p in (study.folder / table).glob("*.parquet"))


def _line(done: Done) -> str:
    if not done.did.files:
        return f"{done.study}: nothing to merge"
    sizes = f"{done.bytes_before / 2**20:.1f} MiB -> {done.bytes_after / 2**20:.1f} MiB"
    return f"{done.study}: {count(done.did.runs, 'run')} merged, {done.did.files:,} files into one per table, {sizes}"


def _values(done: Done) -> dict[str, object]:
    return {
        "study": done.study,
        "runs": done.did.runs,
        "files": done.did.files,
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "left": [{"path": str(u.path), "reason": u.reason} for u in done.did.left],
    }
