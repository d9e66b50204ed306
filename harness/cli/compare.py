"""`harness compare A B`: two arms against each other, item by item."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from harness.compare import Verdict
    from harness.record import Record
    from harness.spec import StudySpec
    from harness.store import StudyStore
    from harness.summary import ArmRow


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

    from harness.store import Store

    if a == b:
        raise click.UsageError(f"{a} against itself: name two different arms")
    results = Store(store)
    one = results.study(study or _only(results.studies(), store))
    spec = one.spec()
    for arm in (a, b):
        _known(arm, spec, one.folder)
    found = _found(one, a, b, margin)
    click.echo(json.dumps(found, indent=2) if as_json else _text(found, a, b))
    return 0 if found["metrics"] and found["metrics"][0]["verdict"] in {"better", "worse", "equivalent"} else 5


def _only(studies: list[str], store: Path) -> str:
    from harness.errors import StoreError

    if len(studies) == 1:
        return studies[0]
    known = ", ".join(studies) or "none"
    raise StoreError(f"which study? {store} holds: {known}", "name it with --study")


def _known(arm: str, spec: "StudySpec", folder: Path) -> None:
    from harness.errors import SpecError, did_you_mean

    if arm not in spec.arms:
        raise SpecError(f"no arm {arm!r} in {folder.name}; {did_you_mean(arm, spec.arms)}")


def _found(one: "StudyStore", a: str, b: str, margin: float | None) -> dict[str, Any]:
    from harness.summary import LOSS, gather, judged_scores, summarise

    evidence = gather(one)
    spec = evidence.spec
    rows = {r.arm: r for r in summarise(one).arms}
    scores = {
        s.task if s.role == "loss" else f"{s.task}/{s.metric}": s
        for r in evidence.runs
        if r.trial.arm in {a, b}
        for s in r.scores
    }
    order = [n for n in dict.fromkeys([evidence.metric, LOSS, *sorted(scores)]) if n in scores]
    metrics = []
    for name in order:
        better = scores[name].higher_is_better
        first = name == evidence.metric
        found = (
            evidence.against(b, [a, b], margin) if first else evidence.on(name, b, [a, b], one, higher_is_better=better)
        )
        if name != "validation_loss" and found is not None and found.verdicts:
            metric = _metric(judged_scores(one, evidence.runs, name), name, found[a], better)
            if evidence.elsewhere:  # no outcomes per item to take means of
                metric["means"] = _means(evidence.runs, name, (a, b))
            metrics.append(metric)
    return {
        "study": spec.name,
        "a": a,
        "b": b,
        "margin": spec.objective.margin if margin is None else margin,
        "exploratory": bool(evidence.changed) or (margin is not None and margin != spec.objective.margin),
        "metrics": metrics,
        "cost": {name: _cost(rows[name]) for name in (a, b)},
        "differs_in": _differences(spec, rows, a, b),
    }


def _means(runs: "Sequence[Record]", metric: str, arms: tuple[str, str]) -> dict[str, float]:
    from harness.summary import over_seeds

    found = {arm: over_seeds([r for r in runs if r.trial.arm == arm], metric) for arm in arms}
    return {arm: score.mean for arm, score in found.items() if score}


def _metric(scores: "pd.DataFrame", name: str, verdict: "Verdict", better: bool) -> dict[str, Any]:
    a, b = verdict.arm, verdict.baseline
    means = scores.groupby("arm")["score"].mean()
    seeds = scores.pivot_table(index="seed", columns="arm", values="score").reindex(columns=[a, b]).dropna()
    bounds = verdict.interval
    return {
        "metric": name,
        "higher_is_better": better,
        "means": {arm: float(means[arm]) for arm in (a, b) if arm in means.index},
        "difference": bounds.difference if bounds else None,
        "low": bounds.low if bounds else None,
        "high": bounds.high if bounds else None,
        "verdict": verdict.label,
        "reason": verdict.reason,
        "naive": verdict.naive,
        "seeds": verdict.seeds,
        "items": verdict.items,
        "per_seed": {str(s): float(v) for s, v in (seeds[a] - seeds[b]).items()},
        "flips": _flips(scores[scores["arm"].isin([a, b])], a, b),
    }


def _flips(scores: "pd.DataFrame", a: str, b: str) -> dict[str, float] | None:
    """Shares of seed and item pairs that both, one or none got right; None for scores that are not 0 or 1."""
    if scores.empty or not scores["score"].isin([0, 1]).all():
        return None
    wide = scores.pivot_table(index=["seed", "example_id"], columns="arm", values="score").dropna()
    right_a, right_b = wide[a] == 1, wide[b] == 1
    return {
        "both right": float((right_a & right_b).mean()),
        f"only {a}": float((right_a & ~right_b).mean()),
        f"only {b}": float((~right_a & right_b).mean()),
        "both wrong": float((~right_a & ~right_b).mean()),
    }


def _cost(row: "ArmRow") -> dict[str, Any]:
    return {
        "peak_bytes": row.peak_bytes,
        "train_seconds": row.train_seconds,
        "tokens_per_second": row.tokens_per_second,
        "search_trials": row.search_trials,
        "search_seconds": row.search_seconds,
    }


def _differences(spec: "StudySpec", rows: "dict[str, ArmRow]", a: str, b: str) -> dict[str, list[Any]]:
    """Settings that are not the same in both arms; everything under controls is, but for how a batch is split."""
    left, right = (
        {
            "method": spec.arms[name].method,
            "quantization": spec.arms[name].quantization,
            **spec.arms[name].params,
            "learning_rate": rows[name].learning_rate,
            "micro_batch": rows[name].micro_batch,
        }
        for name in (a, b)
    )
    return {k: [left.get(k), right.get(k)] for k in {**left, **right} if left.get(k) != right.get(k)}


def _text(found: dict[str, Any], a: str, b: str) -> str:
    from harness.units import duration, size

    if not found["metrics"]:
        return f"Not enough data: {a} and {b} both need confirmed runs. Go on with: harness study {found['study']}"
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
