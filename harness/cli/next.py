"""`harness next`: the runs that would settle what a study leaves open."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, only, store_option

if TYPE_CHECKING:
    from harness.recommend import Recommendation
    from harness.spec import StudySpec


@click.command(short_help="Say what to run to settle an open question, or run it.")
@click.argument("study", required=False)
@click.option("--run", is_flag=True, help="Run it now.")
@store_option
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, run: bool, store: Path, as_json: bool) -> int:
    """Say what to run to settle what STUDY leaves open, with hours and money; with --run, run it.

    Declared looks that are left come first. After the last one the question is asked again by a study of its own with
    its number of seeds declared: more seeds for a study that has been looked at would not keep its error rate.
    """
    import json

    from harness import reproduce
    from harness.recommend import Limits, recommend
    from harness.store import Store
    from harness.summary import gather

    results = Store(store)
    one = results.study(study or only(results.studies(), store))
    evidence = gather(one)
    spec = evidence.spec
    found = recommend(one, Limits())
    left = [look for look in spec.confirm.planned_looks if look > evidence.seeds]
    overrides = [] if left else _again(spec, found)
    path = one.folder / "study.yaml"
    line = reproduce.study(one, *overrides)
    answer = {
        "study": spec.name,
        "open": [s.arm for s in found.settling],
        "too_close": found.too_close,
        "settling": found.as_json()["settling"],
        "declared_looks_left": left,
        "command": line if left or overrides else None,
    }
    if as_json and not run:
        click.echo(json.dumps(answer, indent=2))
    elif not run:
        click.echo(_text(found, left, line if left or overrides else None, evidence.elsewhere))
    if not run:
        return 0
    if not left and not overrides:
        click.echo("nothing to run: no open question that runs would settle", err=True)
        return 5
    from harness.cli.study import command as run_study

    return int(ctx.invoke(run_study, study=str(path), overrides=tuple(overrides), store=store, as_json=as_json) or 0)


def _again(spec: "StudySpec", found: "Recommendation") -> list[str]:
    """The overrides of a study of its own that would settle the open arms: fresh seeds, as many as it takes."""
    if not found.settling:
        return []
    seeds = max(s.seeds for s in found.settling)
    first = max(*spec.confirm.seeds, spec.search.seed + spec.search.tunings) + 1
    fresh = list(range(first, first + seeds))
    open_ = {spec.baseline, *(s.arm for s in found.settling)}
    overrides = [f"name={spec.name}-next", f"confirm.seeds={fresh}", "confirm.looks=null"]
    if spec.objective.level == "methods":
        overrides.append(f"search.tunings={seeds}")
    return overrides + [f"arms.{arm}=null" for arm in spec.arms if arm not in open_]


def _text(found: "Recommendation", left: list[int], line: str | None, elsewhere: str | None) -> str:
    lines = [
        f"{s.arm}: {s.seeds} seeds per arm on {s.items} items bring a verdict with a chance of {s.chance:.0%}: "
        f"{s.runs} more runs, {s.hours:.2f} h" + (f", {s.cost:.2f} in money" if s.cost is not None else "")
        for s in found.settling
    ]
    lines += [f"{arm}: too close to call; no sensible number of runs would settle it" for arm in found.too_close]
    if found.decidable_gap is not None:
        lines.append(
            f"shown with a chance of 80% at the seeds of now: a difference {found.decidable_gap:.3f} beyond the margin"
        )
    if left:
        lines.append(f"declared looks left: {', '.join(map(str, left))} seeds")
    if elsewhere and not line:
        lines.append(f"nothing to run here: {elsewhere}")
    else:
        lines.append(f"run: {line}" if line else "nothing is open that more runs would settle")
    return "\n".join(lines)
