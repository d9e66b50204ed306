"""`harness import TOOL PATH`: results of another program as a study in the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from harness.cli._import import Added
    from harness.interfaces import Imported


@click.command(short_help="Take in results of another program, as a study of their own.")
@click.argument("tool")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the study.  [default: after the tool and the data]")
@store_option
@json_option
def command(tool: str, path: Path, name: str | None, store: Path, as_json: bool) -> None:
    """Read the results of TOOL (peft) in PATH, a folder or a file, into a study of their own, to show and compare.

    Nothing is computed again. The same results are not written twice, and new ones are added to those that are there.
    """
    import json

    from harness import plugins
    from harness.cli._import import add
    from harness.store import Store

    found = plugins.importer(tool).read(path)
    added = add(Store(store), found, name)
    if as_json:
        click.echo(json.dumps(_as_json(found, added), indent=2))
        return
    for file, reason in found.skipped.items():
        click.echo(f"skipped: {file} {reason}", err=True)
    click.echo(_text(found, added))
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo(f"more: harness show {added.spec.name}", err=True)


def _as_json(found: "Imported", added: "Added") -> dict[str, Any]:
    origin = added.spec.origin
    return {
        "study": added.spec.name,
        "origin": origin.model_dump() if origin else None,
        "results": len(found.records),
        "new": len(added.new),
        "skipped": found.skipped,
        "notes": found.notes,
    }


def _text(found: "Imported", added: "Added") -> str:
    """What was found and what became of it."""
    origin, records = added.spec.origin, found.records
    seeds = sorted({sum(r.trial.arm == arm for r in records) for arm in {r.trial.arm for r in records}})
    each = (
        f"{seeds[0]} seed{'s' if seeds[0] != 1 else ''} each" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    )
    items = {f"{s.task} n={s.items}" for r in records for s in r.scores if s.role == "target"}
    gpus = {str(g.get("name")) for r in records for g in r.environment.get("gpus", [])}
    ended: dict[str, int] = {}
    for record in records:
        if record.status != "done":
            ended[record.status] = ended.get(record.status, 0) + 1
    said = [each, *sorted(items), *sorted(gpus), *(f"{n} {s.replace('_', ' ')}" for s, n in ended.items())]
    plural = "s" if len(records) != 1 else ""
    return (
        f"{len(records)} result{plural} of {origin.tool if origin else '?'}: {', '.join(said)}; "
        f"{len(found.skipped)} skipped\n"
        f"study {added.spec.name}: {len(added.new)} new, {added.known} there already"
    )
