"""Quality against what it costs, as the page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness import charts
from harness.decision import Decision
from harness.trade_offs import Axis, TradeOff
from harness.units import percent
from harness.wording import cost_text, quality, quality_title, standing

AXES: dict[Axis, str] = {"memory": "Memory", "time": "Time", "cost": "Cost", "energy": "Energy"}
"""What each axis is called, in the address of the page too: there it is the words that are shown that count."""

COLUMNS: dict[Axis, str] = {
    "memory": "Peak memory",
    "time": "Time of a run",
    "cost": "Cost of a run",
    "energy": "Energy of training",
}

UNKNOWN: dict[Axis, str] = {
    "memory": "memory (not measured)",
    "time": "time (no run has ended)",
    "cost": "cost (set a price per hour under Limits)",
    "energy": "energy (not measured; NVIDIA GPUs count it)",
}


def left_out(known: Sequence[Axis]) -> str | None:
    """Why an axis cannot be chosen."""
    missing = [words for axis, words in UNKNOWN.items() if axis not in known]
    return f"Not to choose from: {', '.join(missing)}." if missing else None


def no_room(decision: Decision) -> bool:
    """Whether no configuration found room for a single run."""
    return bool(decision.rows) and all(r.standing == "out of memory" for r in decision.rows)


def unscored(decision: Decision) -> str:
    """What is said in place of the chart."""
    if no_room(decision):
        return (
            "No configuration found room for a single run, so there is no quality to hold against a cost. What would "
            "fit which card is on the page Cost and fit."
        )
    return "No configuration has a score yet."


def table(found: TradeOff, decision: Decision) -> pd.DataFrame:
    """Every configuration along the axis, the cheapest first; then those that cannot be placed on it."""
    by_arm = {row.arm: row for row in decision.rows}
    points = {p.arm: p for p in found.points}
    order = [*points, *(row.arm for row in decision.rows if row.arm not in points)]
    return pd.DataFrame(
        [
            {
                "Configuration": arm,
                COLUMNS[found.axis]: cost_text(points[arm].cost, found.axis, decision) if arm in points else "-",
                quality_title(decision): quality(by_arm[arm], decision),
                "By means": points[arm].place if arm in points else "-",
                "Chance to be on the front": percent(points[arm].front_probability) if arm in points else "-",
                "Standing": standing(by_arm[arm]),
            }
            for arm in order
        ]
    )


def picked(rows: Sequence[int], shown: pd.DataFrame, selection: Mapping[str, Any]) -> list[str]:
    """The configurations that were picked, in the table or on the chart."""
    from_chart = [str(point.get("configuration")) for point in selection.get(charts.PICKED, [])]
    arms = list(shown["Configuration"])
    from_table = [arms[i] for i in rows if i < len(arms)]
    return [arm for arm in dict.fromkeys([*from_table, *from_chart]) if arm in arms]


def picking(arms: Sequence[str], found: TradeOff) -> str:
    """What to do to compare two."""
    scored = {p.arm for p in found.points} | set(found.unplaced)
    lost = [a for a in arms if a not in scored]
    if lost:
        return f"{lost[0]} has no score, so there is nothing to compare."
    if len(arms) == 1:
        return f"{arms[0]} is picked. Pick one more to compare the two."
    if len(arms) > 2:
        return f"{len(arms)} are picked. Two can be compared at a time."
    return "Pick two configurations, in the table or on the chart (hold Shift), to compare them."
