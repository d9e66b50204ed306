"""`harness recommend`: which configuration to use under the user's limits, and whether the dear one is worth it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, limit_options, only, store_option

if TYPE_CHECKING:
    from harness.recommend import Candidate, Limits, Recommendation
    from harness.summary import Summary


@click.command(short_help="Say which configuration to use under your limits.")
@click.argument("study", required=False)
@limit_options
@store_option
@json_option
def command(study: str | None, limits: "Limits", store: Path, as_json: bool) -> int:
    """Say which configuration of STUDY to use under your limits, and whether the baseline is worth its cost.

    Ends with 5 when the evidence does not show it; the cheapest that fits is named then.
    """
    import json

    from harness.recommend import decide
    from harness.store import Store
    from harness.summary import gather, summarise

    results = Store(store)
    one = results.study(study or only(results.studies(), store))
    evidence = gather(one, limits.metric)
    summary = summarise(one, evidence)
    found = decide(evidence, summary, limits)
    if as_json:
        click.echo(json.dumps({"study": one.folder.name, **found.as_json()}, indent=2))
    else:
        click.echo(_text(found, summary, evidence.spec.prices.currency))
    return 0 if found.answer == "shown" else 5


def _text(found: "Recommendation", summary: "Summary", currency: str) -> str:
    from harness.cli._table import table
    from harness.decision import to_settle

    lines = [found.sentence, found.full_sentence, *found.details]
    if found.exploratory:
        lines.append("Exploratory: decided after the study began, so its error rate is not the promised one.")
    lines.append("")
    head = [
        "arm",
        "fits",
        summary.metric,
        "95% interval",
        "peak memory",
        "cost of a run",
        "P(best)",
        "P(on front)",
        "within margin",
    ]
    lines.append(table(head, [_row(c) for c in found.candidates]))
    lines += [f"to settle {line}" for line in to_settle(found, summary, currency)]
    if summary.comparison and any(s.against == summary.comparison.baseline for s in found.settling):
        lines.append(f"run them: harness next {summary.study} --run")
    lines.append(found.naive)
    lines += [f"note: {c}" for c in summary.caveats]
    return "\n".join(lines)


def _row(c: "Candidate") -> list[str]:
    from harness.units import size

    def number(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else f"{value:{form}}"

    return [
        c.arm,
        c.feasible + (f": {c.why}" if c.why else ""),
        number(c.quality),
        "-" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}",
        size(c.peak_bytes),
        number(c.run_cost, ".4g"),
        number(c.best_probability, ".2f"),
        number(c.front_probability, ".2f"),
        "shown" if c.within_margin else "not shown",
    ]
