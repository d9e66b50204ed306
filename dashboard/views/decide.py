"""The decision as the first page shows it."""

from dataclasses import dataclass

import pandas as pd

from harness import charts, plugins
from harness.configuration import of_arm
from harness.decision import Decision, Row, limits_said
from harness.summary import Evidence
from harness.units import duration, money, size

MANY = 20
"""Of more configurations than this the best ones are drawn, with the baseline and the one to use."""

LONG = 15
"""Characters of a name that does not fit under a figure."""

SETTLED = "Nothing is open that more runs would settle."

ALIKE = 0.01
"""Costs that differ by less are called the same."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of the banner with what it comes to."""

    badge: str
    icon: str
    color: str
    text: str


@dataclass(frozen=True)
class Figure:
    """One number of the chosen configuration, and what it is against the baseline."""

    name: str
    value: str
    delta: str | None
    against: str | None
    color: str
    """`off` paints it grey: the interval covers zero, or there is none."""
    help: str


def verdict(decision: Decision) -> list[Sentence]:
    """Is the baseline worth it, and what to use: the sentences of `harness recommend`, word for word."""
    found = decision.recommendation
    worth = {
        "yes": ("Worth it", ":material/check_circle:", "green"),
        "no": ("Not worth it", ":material/cancel:", "blue"),
        "not shown": ("Not shown", ":material/help:", "orange"),
    }[found.worth]
    use = {
        "shown": ("Shown", ":material/check_circle:", "green"),
        "default": ("Until more is known", ":material/hourglass_top:", "orange"),
        "none": ("Nothing fits", ":material/block:", "red"),
    }[found.answer]
    return [Sentence(*worth, found.full_sentence), Sentence(*use, found.sentence)]


def caption(evidence: Evidence, decision: Decision) -> str:
    """The line above every page: study, how old it is, what it is judged by, and under which limits."""
    many = len(evidence.records)
    runs = f"{many} run{'' if many == 1 else 's'}"
    at = decision.as_of
    parts = [
        decision.study + (f" (results of {decision.origin})" if decision.origin else ""),
        f"{runs}, the latest began {at:%Y-%m-%d %H:%M} UTC" if at else "no run yet",
        f"{decision.metric.replace('/', ' ')} at a margin of {margin(decision)}",
        f"limits: {limits_said(decision.limits, decision.currency)}",
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
    against = f"against {decision.baseline if len(decision.baseline) < LONG else 'the baseline'}"
    unit = None if chosen.difference is None else f"points {against}" if decision.percent else against
    shown = charts.difference(chosen.difference, decision)
    return [
        Figure(
            f"Quality of {chosen.arm}",
            charts.quality(row, decision).split(" [")[0].split(" (")[0],
            None if own or chosen.difference is None else shown.replace(" points", ""),
            unit if not own and chosen.difference else charts.quality(row, decision).partition(" % ")[2] or None,
            _quality_color(decision),
            f"{charts.quality_title(decision)}: {charts.quality(row, decision)}, {_seeds(row.seeds)}. Below: the "
            "difference with its 95 % interval, grey where that covers zero.",
        ),
        Figure(
            "Peak memory",
            size(chosen.peak_bytes),
            *_against(chosen.peak_bytes, chosen.baseline_peak_bytes, None if own else against),
            "Of a training step: what the allocator held on a GPU, tensors by kind on a CPU.",
        ),
        Figure(
            "Time of a run",
            "-" if chosen.seconds is None else duration(chosen.seconds),
            *_against(chosen.seconds, chosen.baseline_seconds, None if own else against),
            "Wall clock of a whole run, evaluation included, mean over seeds.",
        ),
        _money(decision, row, None if own else against),
    ]


def _money(decision: Decision, row: Row, against: str | None) -> Figure:
    """What a run costs where there is a price, else the time that finding the configuration took."""
    chosen = decision.chosen
    assert chosen is not None
    if decision.per_hour is None:
        words = "Tuning, confirmation and failures of this configuration here. A price per hour turns it into money."
        included = "tuning not known" if decision.origin else "tuning included"
        return Figure("Finding it took", duration(row.spent_seconds), None, included, "off", words)
    words = "Hours of a run over the share of runs that succeed, times the price of an hour."
    compared = _against(chosen.cost, chosen.baseline_cost, against)
    return Figure("Cost of a run", money(row.cost, decision.currency), *compared, words)


def reading(decision: Decision) -> str:
    """How to read the ranked chart."""
    band = f", the band the margin of {margin(decision)} around it" if decision.margin else ""
    if any(row.spread == "items" for row in decision.rows):
        alone = "dashed where there is one seed: over its items alone, noise between runs is not in them"
    else:
        alone = "lines that overlap do not mean that two are alike, for the verdict compares them item by item"
    line = f"The upright line is {decision.baseline}{band}."
    return f"Points are means, lines 95 % intervals of each one by itself; {alone}. {line}"


def table(decision: Decision) -> pd.DataFrame:
    """Every configuration with its figures, as text with units."""
    return pd.DataFrame(
        [
            {
                "Configuration": row.arm,
                "Standing": row.why if row.standing == "over a limit" and row.why else row.standing,
                charts.quality_title(decision): charts.quality(row, decision),
                f"Difference to {decision.baseline}": (
                    "" if row.arm == decision.baseline else charts.difference(row.difference, decision)
                ),
                "Verdict": "baseline" if row.arm == decision.baseline else (row.label or "not enough data"),
                "Peak memory": size(row.peak_bytes),
                "Time of a run": "-" if row.seconds is None else duration(row.seconds),
                **({"Cost of a run": money(row.cost, decision.currency)} if decision.per_hour is not None else {}),
                "Chance to be best": "-" if row.best_probability is None else f"{row.best_probability:.0%}",
            }
            for row in decision.rows
        ]
    )


def exported(evidence: Evidence, decision: Decision) -> list[tuple[str, str, str]]:
    """The chosen configuration as files for other programs: name, what it is, content. Every exporter that there is."""
    if decision.chosen is None:
        return []
    configuration = of_arm(evidence, decision.chosen.arm)
    if configuration is None:
        return []
    exporters = [plugins.exporter(name) for name in plugins.names("exporters")]
    return [(path, e.about, text) for e in exporters for path, text in e.files(configuration).items()]


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean over {count} seeds"


def _quality_color(decision: Decision) -> str:
    interval = decision.chosen.difference if decision.chosen else None
    if interval is None or interval.low <= 0 <= interval.high:
        return "off"
    return "normal" if decision.higher_is_better else "inverse"


def _against(value: float | None, baseline: float | None, against: str | None) -> tuple[str | None, str | None, str]:
    """How much less or more than the baseline in percent, in which words, in which colour."""
    if value is None or not baseline or against is None:
        return None, None, "off"
    share = value / baseline - 1
    if abs(share) < ALIKE:
        return "the same", against, "off"
    return f"{share:+.0%}", against, "inverse"
