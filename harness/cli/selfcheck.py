"""`harness selfcheck`: whether the program keeps what it promises, measured on this machine."""

import click

from harness.cli._options import json_option


@click.group(short_help="Measure whether the program's statistics keep their promise.")
def command() -> None:
    """Measure whether the program keeps what it promises."""


@command.command()
@click.option("--reps", type=click.IntRange(min=20), default=2000, show_default=True, help="Studies per scenario.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the simulation.")
@json_option
def stats(reps: int, seed: int, as_json: bool) -> int:
    """Simulate studies whose truth is known and count how often the verdict errs, naive rules beside.

    Ends with 1 when a goal is missed.
    """
    import dataclasses
    import json
    import time

    from harness.cli._goals import render
    from harness.goals import goals

    began = time.perf_counter()

    def progress(what: str) -> None:
        click.echo(f"{time.perf_counter() - began:5.0f} s  {what}", err=True)

    found = list(goals(reps, progress, seed))
    progress("done")
    missed = [g for g in found if not g.met]
    if as_json:
        rows = [{**dataclasses.asdict(g), "met": g.met} for g in found]
        click.echo(json.dumps({"goals": rows, "reps": reps, "seed": seed, "missed": len(missed)}, indent=2))
    else:
        click.echo(render(found))
        click.echo(f"{len(found) - len(missed)} of {len(found)} figures met")
    return 1 if missed else 0
