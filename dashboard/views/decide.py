"""The decision as the first page shows it."""

from dataclasses import dataclass

import pandas as pd

from dashboard.views.banner import Banner
from harness import metrics, plugins
from harness.compare import Interval
from harness.configuration import of_arm
from harness.decision import Decision, Row
from harness.summary import Evidence
from harness.units import duration, money, percent, size
from harness.wording import configuration_cells, quality, quality_title, spread
from harness.words import seeds

MANY = 20
"""Of more configurations than this the best ones are drawn, with the baseline and the one to use."""

LONG = 15
"""Characters of a name that does not fit under a figure."""

SETTLED = "Nothing is open that more runs would settle."

ALIKE = 0.01
"""Costs that differ by less are called the same."""


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


def verdict(decision: Decision) -> list[Banner]:
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
    if found.unfinished:
        use = ("Not finished", ":material/hourglass_top:", "orange")
    return [Banner(*worth, found.full_sentence), Banner(*use, found.sentence, list(found.details))]


def figures(decision: Decision) -> list[Figure]:
    """Quality, memory, time and cost of the chosen configuration; empty where none is chosen."""
    chosen = decision.chosen
    if chosen is None:
        return []
    row, base = decision.row(chosen.arm), decision.row(decision.baseline)
    own = chosen.arm == decision.baseline
    against = f"against {decision.baseline if len(decision.baseline) < LONG else 'the baseline'}"
    apart = None if own else row.difference
    return [
        Figure(
            f"Quality of {chosen.arm}",
            metrics.score(row.quality, decision.metric),
            None if apart is None else _change(apart, decision.metric),
            spread(row, decision) if apart is None else metrics.counted_in(decision.metric) or against,
            _quality_color(decision),
            f"{quality_title(decision)}: {quality(row, decision)}, {_mean(row.seeds)}. Below: the "
            f"difference from {decision.baseline} with its 95 % interval, grey where that covers zero.",
        ),
        Figure(
            "Peak memory",
            size(row.peak_bytes),
            *_against(row.peak_bytes, base.peak_bytes, None if own else against),
            "Of a training step: what the allocator held on a GPU, tensors by kind on a CPU.",
        ),
        Figure(
            "Time of a run",
            duration(row.seconds),
            *_against(row.seconds, base.seconds, None if own else against),
            "Wall clock of a whole run, evaluation included, mean over seeds.",
        ),
        *_money(decision, row, base, None if own else against),
    ]


def _money(decision: Decision, row: Row, base: Row, against: str | None) -> list[Figure]:
    """What a run costs where there is a price, else the time that finding the configuration took, if that is known."""
    if decision.per_hour is None and decision.origin:
        return []
    if decision.per_hour is None:
        words = "Tuning, confirmation and failures of this configuration here. A price per hour turns it into money."
        return [Figure("Finding it took", duration(row.spent_seconds), None, "tuning included", "off", words)]
    words = "Hours of a run over the share of runs that succeed, times the price of an hour."
    compared = _against(row.cost, base.cost, against)
    return [Figure("Cost of a run", money(row.cost, decision.currency), *compared, words)]


def table(decision: Decision) -> pd.DataFrame:
    """Every configuration with its figures, as text with units."""
    return pd.DataFrame([configuration_cells(row, decision) for row in decision.rows])


def exported(evidence: Evidence, decision: Decision) -> list[tuple[str, str, str]]:
    """The chosen configuration as files for other programs: name, what it is, content. Every exporter that there is."""
    if decision.chosen is None:
        return []
    configuration = of_arm(evidence, decision.chosen.arm)
    if configuration is None:
        return []
    exporters = [plugins.exporter(name) for name in plugins.names("exporters")]
    return [(path, e.about, text) for e in exporters for path, text in e.files(configuration).items()]


def _change(apart: Interval, metric: str) -> str:
    """Without its unit, for which there is room beside it alone."""
    return f"{metrics.number(apart.difference, metric, '+')} {metrics.bounds(apart.low, apart.high, metric, '+')}"


def _mean(count: int) -> str:
    return seeds(count) if count == 1 else f"mean over {seeds(count)}"


def _quality_color(decision: Decision) -> str:
    interval = decision.row(decision.chosen.arm).difference if decision.chosen else None
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
    return percent(share, sign="+"), against, "inverse"
