"""Quality against one cost: which configurations lie on the front, and which neighbours on it can be told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from harness.compare import Refused
from harness.decision import Decision, Row, Spread, Standing
from harness.intervals import Difference
from harness.ranking import draws, front_probability
from harness.recommend import SPARE
from harness.summary import Evidence, Summary

Axis = Literal["memory", "time", "cost", "energy"]
AXES: tuple[Axis, ...] = ("memory", "time", "cost", "energy")

Place = Literal["on the front", "behind the front", "shown to be behind"]
"""On the front by means; behind it by means; or one that costs no more is shown to be better."""


@dataclass(frozen=True)
class Point:
    """A configuration with its quality, in units of the metric, and its cost: bytes, seconds, money or joules."""

    arm: str
    cost: float
    cost_low: float | None
    """Of the time, the shortest run."""
    cost_high: float | None
    """Of the time, the upper prediction bound of one more run: what a limit is held against."""
    quality: float
    low: float | None
    high: float | None
    spread: Spread
    seeds: int
    standing: Standing
    place: Place
    front_probability: float | None


@dataclass(frozen=True)
class TradeOff:
    """What quality costs along one axis."""

    axis: Axis
    points: list[Point]
    """Scored and with a known cost, the cheapest first."""
    joined: list[tuple[str, str]]
    """Neighbours on the front whose difference is shown, all of them together at the alpha of the look."""
    limit: float | None
    """From where on a configuration is over the user's limit, in the unit of the axis."""
    no_room: list[str]
    """Out of memory, or forecast not to fit: nothing to draw but that."""
    unplaced: list[str]
    """Scored, without a known cost."""
    alpha: float
    """Two-sided, of the look."""
    refusal: str | None
    """Why no difference may be claimed."""

    @property
    def front(self) -> list[Point]:
        return [p for p in self.points if p.place == "on the front"]


def axes(decision: Decision) -> list[Axis]:
    """The costs that are known of any scored configuration. Money needs a price per hour."""
    return [
        a for a in AXES if any(r.quality is not None and cost_of(r, a, decision) is not None for r in decision.rows)
    ]


def cost_of(row: Row, axis: Axis, decision: Decision) -> float | None:
    """What one run costs along an axis."""
    priced = row.cost if decision.per_hour is not None else None
    known: dict[Axis, float | None] = {
        "memory": row.peak_bytes,
        "time": row.seconds,
        "cost": priced,
        "energy": row.energy_joules,
    }
    return known[axis]


def limit_of(axis: Axis, decision: Decision) -> float | None:
    """Where the user's limit of an axis begins to bind: a peak needs 5 % to spare."""
    limits = decision.limits
    known: dict[Axis, float | None] = {
        "memory": None if limits.memory_bytes is None else limits.memory_bytes / SPARE,
        "time": None if limits.hours is None else limits.hours * 3600,
        "cost": limits.money,
        "energy": None,
    }
    return known[axis]


def along(axis: Axis, evidence: Evidence, summary: Summary, decision: Decision) -> TradeOff:
    """The configurations along one axis. All that were scored, whatever the limits: these are drawn beside them."""
    costs = {r.arm: cost_of(r, axis, decision) for r in decision.rows if r.quality is not None}
    placed = {arm: cost for arm, cost in costs.items() if cost is not None}
    rows = sorted((r for r in decision.rows if r.arm in placed), key=lambda r: (placed[r.arm], -_good(r, decision)))
    pairs = differences(summary)
    on_front = front(rows, decision)
    chances = _chances(placed, evidence)
    shortest = {row.arm: min(row.run_seconds) for row in summary.arms if len(row.run_seconds) > 1}
    points = [
        Point(
            arm=row.arm,
            cost=placed[row.arm],
            cost_low=shortest.get(row.arm) if axis == "time" and row.hours is not None else None,
            cost_high=row.hours * 3600 if axis == "time" and row.hours is not None else None,
            quality=row.quality or 0.0,
            low=row.low,
            high=row.high,
            spread=row.spread,
            seeds=row.seeds,
            standing=row.standing,
            place=_place(row, rows, placed, on_front, pairs, evidence),
            front_probability=chances.get(row.arm),
        )
        for row in rows
    ]
    share = _share(len(rows), evidence.alpha)
    return TradeOff(
        axis=axis,
        points=points,
        joined=[(a, b) for a, b in pairwise(on_front) if apart(pairs.get((a, b)), share)],
        limit=limit_of(axis, decision),
        no_room=[r.arm for r in decision.rows if r.standing == "out of memory"],
        unplaced=[arm for arm, cost in costs.items() if cost is None],
        alpha=evidence.alpha,
        refusal=evidence.refusal,
    )


def differences(summary: Summary) -> Mapping[tuple[str, str], Difference]:
    """First arm minus second, of every two that may be compared."""
    verdicts = [*(summary.comparison.verdicts if summary.comparison else []), *summary.pairs]
    known = {(v.arm, v.baseline): v.noise for v in verdicts if v.noise}
    return known | {(b, a): found.mirrored() for (a, b), found in known.items()}


def front(rows: Sequence[Row], decision: Decision) -> list[str]:
    """Of configurations ordered by cost, those whose mean no cheaper one reaches."""
    found: list[str] = []
    best = float("-inf")
    for row in rows:
        if _good(row, decision) > best:
            best = _good(row, decision)
            found.append(row.arm)
    return found


def apart(pair: Difference | None, alpha: float) -> bool:
    """Whether a difference is shown not to be zero."""
    if pair is None:
        return False
    low, high = pair.bounds(alpha)
    return low > 0 or high < 0


def _share(arms: int, alpha: float) -> float:
    """The alpha of one pair so that all that is drawn as shown errs at most alpha together (Bonferroni).

    Over every two arms, not only over those that are neighbours on the front: which these are is seen in the same
    scores, and the best of many equal arms would be picked for its luck.
    """
    return alpha / max(arms * (arms - 1) / 2, 1)


def _good(row: Row, decision: Decision) -> float:
    """Quality with more being better."""
    return (row.quality or 0.0) * (1 if decision.higher_is_better else -1)


def _place(
    row: Row,
    rows: Sequence[Row],
    costs: Mapping[str, float],
    on_front: Sequence[str],
    pairs: Mapping[tuple[str, str], Difference],
    evidence: Evidence,
) -> Place:
    """Whether one that costs no more is shown to be better."""
    if row.arm in on_front:
        return "on the front"
    share = _share(len(rows), evidence.alpha)
    sign = 1 if evidence.higher_is_better else -1
    for other in rows:
        pair = pairs.get((other.arm, row.arm))
        if pair is not None and costs[other.arm] <= costs[row.arm] and sign * pair.value > 0 and apart(pair, share):
            return "shown to be behind"
    return "behind the front"


def _chances(costs: Mapping[str, float], evidence: Evidence) -> dict[str, float]:
    """The probability of each to lie on the front, its cost taken as known; empty where noise is not known."""
    scores = evidence.scores[evidence.scores["arm"].isin(costs)]
    if evidence.refusal or not len(scores):
        return {}
    try:
        names, drawn = draws(scores)
    except Refused:
        return {}
    found = front_probability(drawn, [costs[n] for n in names], higher_is_better=evidence.higher_is_better)
    return {name: float(found[i]) for i, name in enumerate(names)}
