"""`harness show`: what a study found, or which studies there are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from harness.record import Record
    from harness.store import Store


@click.command(short_help="Show what a study found, or list the studies.")
@click.argument("study", required=False)
@click.option("--runs", is_flag=True, help="Every run instead of one row per arm.")
@store_option
@json_option
def command(study: str | None, runs: bool, store: Path, as_json: bool) -> None:
    """Show what STUDY found: a table per arm and one sentence. Without STUDY list the studies of the store."""
    import json

    from harness.cli._table import render, table
    from harness.store import Store
    from harness.summary import summarise

    results = Store(store)
    if study is None:
        listing = [_listed(results, name) for name in results.studies()]
        if as_json:
            click.echo(json.dumps(listing, indent=2))
        elif not listing:
            click.echo(f"no studies in {store}; make one: harness study tiny-methods --store {store}")
        else:
            columns = ["study", "runs", "question"]
            click.echo(table(columns, [["" if row[c] is None else str(row[c]) for c in columns] for row in listing]))
            for row in listing:
                if row["origin"]:
                    click.echo(f"note: {row['study']} holds results of {row['origin']}, made elsewhere")
        return
    one = results.study(study)
    if runs:
        rows = _runs(one.records())
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            click.echo(table(list(rows[0]) if rows else ["run"], [[str(v) for v in row.values()] for row in rows]))
        return
    summary = summarise(one)
    click.echo(json.dumps(summary.as_json(), indent=2) if as_json else render(summary))


def _listed(store: "Store", name: str) -> dict[str, object]:
    from harness.errors import HarnessError

    one = store.study(name)
    try:
        spec = one.spec()
        origin = spec.origin.tool if spec.origin else None
        return {"study": name, "runs": len(one.records()), "question": spec.question, "origin": origin}
    except HarnessError as error:  # the others are shown all the same
        return {"study": name, "runs": None, "question": f"cannot be read: {error.message}", "origin": None}


def _runs(records: "Sequence[Record]") -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for record in records:
        loss = record.score("validation_loss")
        rate = record.trial.params.get("learning_rate")
        rows.append(
            {
                "run": record.trial_id,
                "arm": record.trial.arm,
                "phase": record.phase,
                "seed": record.trial.seed,
                "learning rate": "" if rate is None else f"{float(rate):.3g}",
                "micro batch": record.trial.training.per_pass,
                "status": record.status.replace("_", " "),
                "attempt": record.attempt,
                "validation loss": "" if loss is None else round(loss, 4),
                "seconds": round(record.seconds, 1),
                "detail": record.detail or "",
            }
        )
    return rows
