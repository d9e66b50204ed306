"""The decision as the first page shows it."""

from dataclasses import dataclass

import pandas as pd

from harness import charts
from harness.decision import Decision, limits_said
from harness.summary import Evidence
from harness.units import duration, money, size


@dataclass(frozen=True)
class Verdict:
    """The banner."""

    badge: str
    icon: str
    color: str
    sentence: str
    baseline_sentence: str


@dataclass(frozen=True)
class Figure:
    """One number of the chosen configuration, and what it is against the baseline."""

    name: str
    value: str
    delta: str | None
    color: str
    """`off` paints it grey: the interval covers zero, or there is none."""
    help: str


def verdict(decision: Decision) -> Verdict:
    found = decision.recommendation
    badge, icon, color = {
        "shown": ("Shown", ":material/check_circle:", "green"),
        "default": ("Not shown", ":material/help:", "orange"),
        "none": ("No configuration fits", ":material/block:", "red"),
    }[found.answer]
    return Verdict(badge, icon, color, found.sentence, found.full_sentence)


def caption(evidence: Evidence, decision: Decision) -> str:
    """Study, what is compared and how, and how old it is."""
    at = f"{decision.as_of:%Y-%m-%d %H:%M} UTC" if decision.as_of else "no run yet"
    parts = [
        decision.study + (f" (results of {decision.origin})" if decision.origin else ""),
        f"{decision.metric.replace('/', ' ')} at a margin of {margin(decision)}",
        f"limits: {limits_said(decision.limits, decision.currency)}",
        f"{len(evidence.records)} runs, the latest of {at}",
    ]
    return " · ".join(parts)


def margin(decision: Decision) -> str:
    scaled = charts.scaled(decision.margin, decision)
    return f"{scaled:g} points" if decision.percent else f"{scaled:g}"


def figures(decision: Decision) -> list[Figure]:
    """Quality, memory, time and cost of the chosen configuration; empty where none is chosen."""
    chosen = decision.chosen
    if chosen is None:
        return []
    row = next(r for r in decision.rows if r.arm == chosen.arm)
    own = chosen.arm == decision.baseline
    against = f"against {decision.baseline}"
    return [
        Figure(
            f"Quality of {chosen.arm}",
            charts.quality(row, decision).split(" [")[0],
            "the baseline itself" if own else f"{charts.difference(chosen.difference, decision)} {against}",
            _quality_color(decision),
            f"{charts.quality_title(decision)}, mean over {row.seeds} seeds: {charts.quality(row, decision)}. "
            "Grey: the interval of the difference covers zero.",
        ),
        Figure(
            "Peak memory",
            size(chosen.peak_bytes),
            None if own else _times(chosen.peak_bytes, chosen.baseline_peak_bytes, against, "less", "more"),
            _cost_color(chosen.peak_bytes, chosen.baseline_peak_bytes),
            "Of a training step: what the allocator held on a GPU, tensors by kind on a CPU.",
        ),
        Figure(
            "Time of a run",
            "-" if chosen.seconds is None else duration(chosen.seconds),
            None if own else _times(chosen.seconds, chosen.baseline_seconds, against, "less", "more"),
            _cost_color(chosen.seconds, chosen.baseline_seconds),
            "Wall clock of a whole run, evaluation included.",
        ),
        Figure(
            "Cost of a run",
            cost(chosen.cost, decision),
            None if own else _times(chosen.cost, chosen.baseline_cost, against, "less", "more"),
            _cost_color(chosen.cost, chosen.baseline_cost),
            "Hours of a run over the share of runs that succeed, times the price of an hour where there is one.",
        ),
    ]


def reading(decision: Decision) -> str:
    """How to read the ranked chart."""
    band = f", the band the margin of {margin(decision)} around it" if decision.margin else ""
    return (
        f"Points are means, lines 95 % intervals of each one by itself. The dashed line is {decision.baseline}{band}. "
        "Lines that overlap do not mean that two are alike: the verdict compares them item by item."
    )


def table(decision: Decision) -> pd.DataFrame:
    """Every configuration with its figures, as text with units."""
    return pd.DataFrame(
        [
            {
                "Configuration": row.arm,
                "Standing": row.standing + (f": {row.why}" if row.why else ""),
                charts.quality_title(decision): charts.quality(row, decision),
                f"Difference to {decision.baseline}": (
                    "" if row.arm == decision.baseline else charts.difference(row.difference, decision)
                ),
                "Verdict": "baseline" if row.arm == decision.baseline else (row.label or "not enough data"),
                "Peak memory": size(row.peak_bytes),
                "Time of a run": "-" if row.seconds is None else duration(row.seconds),
                "Cost of a run": cost(row.cost, decision),
                "Chance to be best": "-" if row.best_probability is None else f"{row.best_probability:.0%}",
            }
            for row in decision.rows
        ]
    )


def cost(value: float | None, decision: Decision) -> str:
    if value is None:
        return "-"
    return money(value, decision.currency) if decision.per_hour is not None else f"{value:.3g} h"


def _quality_color(decision: Decision) -> str:
    interval = decision.chosen.difference if decision.chosen else None
    if interval is None or interval.low <= 0 <= interval.high:
        return "off"
    return "normal" if decision.higher_is_better else "inverse"


def _cost_color(value: float | None, baseline: float | None) -> str:
    if value is None or not baseline or abs(value / baseline - 1) < 0.01:
        return "off"
    return "inverse"


def _times(value: float | None, baseline: float | None, against: str, less: str, more: str) -> str | None:
    """How much less or more than the baseline, in percent."""
    if value is None or not baseline:
        return None
    share = value / baseline - 1
    if abs(share) < 0.01:
        return f"the same {against}"
    return f"{'-' if share < 0 else '+'}{abs(share):.0%} {against}"
