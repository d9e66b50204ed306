"""The numbers of a decision in words: scores, differences and costs with their units, and how to read a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.compare import Interval
from harness.decision import Decision, Row
from harness.trade_offs import Axis, TradeOff
from harness.units import GIB, duration, energy, money, size

FEW = 6
"""Configurations that are named one by one."""


def quality_title(decision: Decision) -> str:
    """The metric as an axis is named: what it is, its unit, and which way is better."""
    unit = " (%)" if decision.percent else ""
    better = "" if decision.higher_is_better else ", lower is better"
    return f"{decision.metric.replace('/', ' ')}{unit}{better}"


def scaled(value: float | None, decision: Decision) -> float | None:
    """A score in the unit that is shown."""
    return None if value is None else value * (100 if decision.percent else 1)


def quality(row: Row, decision: Decision) -> str:
    """A score with its interval: `89.4 % [87.9, 90.9]`, or the words that say why there is none."""
    if row.quality is None:
        return "not scored"
    digits, unit = (1, " %") if decision.percent else (3, "")
    mean = f"{scaled(row.quality, decision):.{digits}f}{unit}"
    if row.low is None or row.high is None:
        return f"{mean} (one seed)"
    bounds = f"[{scaled(row.low, decision):.{digits}f}, {scaled(row.high, decision):.{digits}f}]"
    return f"{mean} {bounds}" + (" (one seed, items alone)" if row.spread == "items" else "")


def difference(interval: Interval | None, decision: Decision) -> str:
    """A difference of scores with its interval: `-8.4 points [-13.1, -3.8]`."""
    if interval is None:
        return "not known"
    scale, digits, unit = (100, 1, " points") if decision.percent else (1, 3, "")
    low, high = interval.low * scale, interval.high * scale
    return f"{interval.difference * scale:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def margin(decision: Decision) -> str:
    """`2 points`, or in units of the metric."""
    shown = scaled(decision.margin, decision)
    return f"{shown:g} points" if decision.percent else f"{shown:g}"


def run_time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def named(some: Sequence[str]) -> str:
    """`a, b and c`; of many the first ones and how many more."""
    if len(some) > FEW:
        return f"{', '.join(some[:FEW])} and {len(some) - FEW} more"
    return " and ".join(filter(None, [", ".join(some[:-1]), *some[-1:]]))


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
        name, bytes_ = ("GiB", GIB) if most >= GIB else ("MiB", 1 << 20)
        return Unit(f"Peak memory of a training step ({name})", 1 / bytes_)
    if found.axis == "time":
        units = [(3600.0, "h"), (60.0, "min"), (1.0, "s")]
        seconds, name = next((u for u in units if most >= 2 * u[0]), units[-1])
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
    said = [f"On the front by their means, the cheapest first: {named(front)}."]
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
    over = {
        frozenset({"seeds"}): "Upright lines are 95 % intervals over seeds.",
        frozenset({"items"}): "Each has one seed; dashed upright lines are 95 % intervals over items alone.",
        frozenset({"none"}): "Each has one seed and no interval.",
    }
    if spreads:
        mixed = "Upright lines are 95 % intervals over seeds; dashed ones, of one seed, over items alone."
        said.append(over.get(frozenset(spreads), mixed))
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
        said.append(f"{many} no score, since no run found room (marks at the right edge): {named(found.no_room)}.")
    if found.unplaced:
        said.append(f"Scored, but not drawn since this cost is not known: {named(found.unplaced)}.")
    return said
