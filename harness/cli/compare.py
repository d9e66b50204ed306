"""`harness compare A B`: two arms against each other, item by item."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli._options import json_option, only, store_option

if TYPE_CHECKING:
    from harness.spec import StudySpec


@click.command(short_help="Compare two arms of a study.")
@click.argument("a")
@click.argument("b")
@click.option("--study", help="Name of the study.  [default: the only one in the store]")
@click.option(
    "--margin", type=click.FloatRange(0), help="Differences up to this do not matter.  [default: the study's]"
)
@store_option
@json_option
def command(a: str, b: str, study: str | None, margin: float | None, store: Path, as_json: bool) -> int:
    """Compare arm A with arm B of a study: paired differences over the same items and fresh seeds, and what they cost.

    Ends with 5 when the study's metric does not show which is better.
    """
    import json

    from harness import pairs, reproduce
    from harness.store import Store
    from harness.summary import gather, summarise

    if a == b:
        raise click.UsageError(f"{a} against itself: name two different arms")
    results = Store(store)
    one = results.study(study or only(results.studies(), store))
    spec = one.spec()
    for arm in (a, b):
        _known(arm, spec, one.folder)
    evidence = gather(one)
    pair = pairs.make(one, evidence, summarise(one, evidence), a, b, margin)
    click.echo(json.dumps(pair.as_json(), indent=2) if as_json else _text(pair.as_json(), a, b, reproduce.study(one)))
    return 0 if pair.shown else 5


def _known(arm: str, spec: "StudySpec", folder: Path) -> None:
    from harness.errors import SpecError, did_you_mean

    if arm not in spec.arms:
        raise SpecError(f"no arm {arm!r} in {folder.name}; {did_you_mean(arm, spec.arms)}")


def _text(found: dict[str, Any], a: str, b: str, go_on: str) -> str:
    from harness.units import duration, size

    if not found["metrics"]:
        return f"Not enough data: {a} and {b} both need confirmed runs. Go on with: {go_on}"
    lines = []
    for m in found["metrics"]:
        means = "   ".join(f"{arm} {value:.3f}" for arm, value in m["means"].items())
        if m["low"] is None:
            lines.append(f"{m['metric']:<28} {means}   {m['verdict']}: {m['reason']}")
            continue
        lines.append(
            f"{m['metric']:<28} {means}   difference {m['difference']:+.3f}   "
            f"interval [{m['low']:+.3f}, {m['high']:+.3f}]   {m['items']} items x {m['seeds']} seeds   {m['verdict']}"
        )
        if m is found["metrics"][0]:
            lines.append(f"  naive       comparing means alone would say: {m['naive']}")
            lines.append("  per seed    " + "  ".join(f"{v:+.3f}" for v in m["per_seed"].values()))
            if m["flips"]:
                lines.append("  outcomes    " + "  ".join(f"{k} {v:.1%}" for k, v in m["flips"].items()))
    cost = found["cost"]
    lines.append(f"peak memory   {size(cost[a]['peak_bytes'])} | {size(cost[b]['peak_bytes'])}")
    times = [cost[x]["train_seconds"] for x in (a, b)]
    if all(times):
        lines.append(f"train time    {duration(times[0])} | {duration(times[1])}   {times[0] / times[1]:.2f} x")
    lines.append(
        "differs in    " + ", ".join(f"{k} {_or_none(x)} | {_or_none(y)}" for k, (x, y) in found["differs_in"].items())
    )
    if found["exploratory"]:
        lines.append("exploratory: decided after the study began, so its error rate is not the promised one")
    if any(cost[x]["search_trials"] for x in (a, b)):
        lines.append(f"tuned with    {cost[a]['search_trials']} | {cost[b]['search_trials']} trials")
    return "\n".join(lines)


def _or_none(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
