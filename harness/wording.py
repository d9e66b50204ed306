"""A decision in words: scores, differences, costs, standings, and how to read a chart."""

from dataclasses import dataclass

from harness import metrics
from harness.compare import Interval
from harness.decision import Decision, Row, limits_said
from harness.record import Status
from harness.summary import Evidence
from harness.trade_offs import Axis, Point, TradeOff
from harness.trial import Phase
from harness.units import byte_scale, duration, energy, money, percent, size, time_scale
from harness.words import count, listed, seeds

FEW = 6
"""Configurations that are named one by one."""

STATUSES: dict[Status, str] = {
    "done": "done",
    "out_of_memory": "out of memory",
    "does_not_fit": "does not fit",
    "diverged": "diverged",
    "pruned": "stopped early",
    "timed_out": "timed out",
    "killed": "killed",
    "failed": "failed",
}
"""How a run ended, in the order in which tables and legends name it."""

PHASES: dict[Phase, str] = {
    "baseline": "base before training",
    "search": "tuning",
    "confirm": "confirmation",
    "serve": "served after training",
    "speed": "speed of answers",
}
"""What a run was for, in the order of a study."""

ROLES = {"target": "what training should teach", "retention": "what it should not forget", "loss": "held-out rows"}
"""What a score is asked for."""


def about(evidence: Evidence, decision: Decision) -> list[str]:
    """Study, how old it is, what it is judged by and under which limits: a part each."""
    runs = count(len(evidence.records), "run")
    return [
        f"study {decision.study}" + (f", results of {decision.origin}" if decision.origin else ""),
        f"{runs}, the latest began {decision.as_of:%Y-%m-%d %H:%M} UTC" if decision.as_of else "no run yet",
        f"{metrics.plain(decision.metric)} at a margin of {metrics.margin(decision.margin, decision.metric)}",
        f"limits: {limits_said(decision.limits, decision.currency)}",
    ]


def quality_title(decision: Decision) -> str:
    """The metric as an axis is named: what it is, its unit, and which way is better."""
    return metrics.title(decision.metric, higher_is_better=decision.higher_is_better)


def scaled(value: float | None, decision: Decision) -> float | None:
    """A score in the unit that is shown."""
    return metrics.scaled(value, decision.metric)


def quality(row: Row, decision: Decision) -> str:
    """A score with its interval: `89.4 % [87.9, 90.9]`, or the words that say why there is none."""
    return " ".join(filter(None, [metrics.score(row.quality, decision.metric), spread(row, decision)]))


def spread(row: Row, decision: Decision) -> str:
    """What stands after a score: `[87.9, 90.9]`, `(one seed)`; nothing where there is no score."""
    if row.quality is None:
        return ""
    items = " (one seed, items alone)" if row.spread == "items" else ""
    return metrics.spread(row.low, row.high, decision.metric) + items


def over(found: Row | Point) -> str:
    """What an interval is over."""
    return {"seeds": seeds(found.seeds), "items": "items, one seed", "none": "one seed"}[found.spread]


def difference(interval: Interval | None, decision: Decision) -> str:
    """A difference of scores with its interval: `-8.4 points [-13.1, -3.8]`."""
    if interval is None:
        return "not known"
    return metrics.change(interval.difference, interval.low, interval.high, decision.metric)


def standing(row: Row) -> str:
    """How a configuration stands; beyond a limit, which one."""
    return row.why if row.standing == "over a limit" and row.why else row.standing


def configuration_cells(row: Row, decision: Decision) -> dict[str, str]:
    """A configuration with its figures, as text with units, by the title of the column."""
    own = row.arm == decision.baseline
    return {
        "Configuration": row.arm,
        "Standing": standing(row),
        quality_title(decision): quality(row, decision),
        f"Difference to {decision.baseline}": "" if own else difference(row.difference, decision),
        "Verdict": "baseline" if own else (row.label or "not enough data"),
        "Peak memory": size(row.peak_bytes),
        "Time of a run": duration(row.seconds),
        **({"Cost of a run": money(row.cost, decision.currency)} if decision.per_hour is not None else {}),
        "Chance to be best": percent(row.best_probability),
    }


def ranked_reading(decision: Decision) -> str:
    """How to read the ranked chart."""
    scored = [row for row in decision.rows if row.quality is not None]
    said = ["Points are means, lines 95 % intervals of each one by itself."]
    if any(row.spread == "items" for row in scored):
        said.append("Dashed: one seed, over its items alone, without the noise between runs.")
    if any(row.spread == "seeds" for row in scored):
        said.append("Lines that overlap do not mean that two are alike: the verdict compares them item by item.")
    if any(row.arm == decision.baseline for row in scored):
        margin = metrics.margin(decision.margin, decision.metric)
        band = f", the band the margin of {margin} around it" if decision.margin else ""
        said.append(f"The upright line is {decision.baseline}{band}.")
    return " ".join(said)


@dataclass(frozen=True)
class Unit:
    """How the values of a cost axis are drawn."""

    title: str
    scale: float
    """Shown value of one base unit."""


def cost_unit(found: TradeOff, decision: Decision) -> Unit:
    """The unit that keeps the numbers of an axis short."""
    most = max((p.cost for p in found.points), default=0.0)
    if found.axis == "memory":
        scale, name = byte_scale(most)
        return Unit(f"Peak memory of a training step ({name})", 1 / scale)
    if found.axis == "time":
        seconds, name = time_scale(most)
        return Unit(f"Time of a run, evaluation included ({name})", 1 / seconds)
    if found.axis == "cost":
        return Unit(f"Cost of a run that succeeds ({decision.currency})", 1.0)
    return Unit("Energy of training (kWh)", 1 / 3.6e6) if most >= 3.6e6 else Unit("Energy of training (Wh)", 1 / 3600)


def cost_text(value: float | None, axis: Axis, decision: Decision) -> str:
    """A cost in words: `23.1 GiB`, `12 min`, `$1.40`, `120 Wh`."""
    if value is None:
        return "-"
    if axis == "memory":
        return size(round(value))
    if axis == "time":
        return duration(value)
    return money(value, decision.currency) if axis == "cost" else energy(value)


def trade_off_findings(found: TradeOff) -> list[str]:
    """What a trade-off chart shows, a sentence each."""
    return [*_front(found), *_missing(found)]


def _front(found: TradeOff) -> list[str]:
    front = [p.arm for p in found.front]
    if not front:
        return []
    if len(front) == 1:
        return [f"{front[0]} alone lies on the front: no other has a better mean, and none as good costs less."]
    said = [f"On the front by their means, the cheapest first: {listed(front, FEW)}."]
    neighbours = len(front) - 1
    if found.refusal:
        return [*said, f"No neighbours on it are joined: {found.refusal}."]
    shown = len(found.joined)
    if not shown:
        return [*said, "No neighbours on it are joined, since they cannot be told apart."]
    sure = f"({(1 - found.alpha) * 100:.3g} % sure, all lines together)"
    if shown == neighbours:
        return [*said, f"Neighbours on it are shown to differ and joined by lines {sure}."]
    joined = f"{shown} of the {neighbours} pairs of neighbours on it {'is' if shown == 1 else 'are'} shown to differ"
    return [*said, f"{joined} and joined by a line {sure}; {neighbours - shown} cannot be told apart."]


def trade_off_reading(found: TradeOff, decision: Decision) -> list[str]:
    """How to read a trade-off chart, a sentence each."""
    said = []
    if len(found.front) < len(found.points):
        said.append("Hollow points lie behind the front by their means.")
    if any(p.place == "shown to be behind" for p in found.points):
        said.append("Faint: one that costs no more is shown to be better.")
    spreads = {p.spread for p in found.points}
    lines = {
        frozenset({"seeds"}): "Upright lines are 95 % intervals over seeds.",
        frozenset({"items"}): "Each has one seed; dashed upright lines are 95 % intervals over items alone.",
        frozenset({"none"}): "Each has one seed and no interval.",
    }
    if spreads:
        mixed = "Upright lines are 95 % intervals over seeds; dashed ones, of one seed, over items alone."
        said.append(lines.get(frozenset(spreads), mixed))
    if any(p.cost_high is not None for p in found.points):
        said.append(
            "Level lines reach from the shortest run to the longest that one more is expected to take (95 %), "
            "which the limit is held against."
        )
    if found.limit is not None:
        said.append(_limit(found, found.limit, decision))
    return said


def _limit(found: TradeOff, limit: float, decision: Decision) -> str:
    text = cost_text(limit, found.axis, decision)
    if found.axis == "memory":
        asked = decision.limits.memory_bytes
        return f"Dotted: {text}, which is the limit of {size(asked)} with 5 % to spare."
    return f"Dotted: the limit of {text}."


def _missing(found: TradeOff) -> list[str]:
    said = []
    if found.no_room:
        many = f"{len(found.no_room)} configurations have" if len(found.no_room) > 1 else "One configuration has"
        said.append(
            f"{many} no score, since no run found room (marks at the right edge): {listed(found.no_room, FEW)}."
        )
    if found.unplaced:
        said.append(f"Scored, but not drawn since this cost is not known: {listed(found.unplaced, FEW)}.")
    return said
