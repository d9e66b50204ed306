"""Charts of a decision, the same on the page and in the report.

Colours are left to the theme that draws them, so that they fit light and dark; what a colour says, a shape says too.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import pandas as pd

from harness.decision import Decision, Row
from harness.trade_offs import TradeOff
from harness.wording import cost_text, cost_unit, over, quality, quality_title, scaled

# Okabe and Ito (2008): told apart with every common colour blindness. Brighter ones where the page is dark.
LIGHT = ["#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#CC79A7", "#E69F00", "#56B4E9", "#5B4FA8"]
DARK = ["#56B4E9", "#E69F00", "#34C79B", "#9A9A9A", "#E39CC6", "#F0E442", "#3D8FD1", "#A79BEF"]

ROLES = ("to use", "baseline", "fits", "over a limit", "out of memory", "not known")
SHAPES = ("diamond", "square", "circle", "triangle-down", "cross", "triangle-up")
"""By role, in the same order."""

ROW_HEIGHT = 26
"""Pixels of one line of a ranked chart: labels of smaller ones are left out."""

Chart = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.VConcatChart | alt.FacetChart


def role(row: Row, decision: Decision) -> str:
    """What a configuration is on the chart."""
    if decision.chosen and row.arm == decision.chosen.arm:
        return "to use"
    if row.standing == "fits":
        return "baseline" if row.arm == decision.baseline else "fits"
    return row.standing


def roles_in(frame: pd.DataFrame) -> list[str]:
    """The roles that occur, in their fixed order."""
    return [r for r in ROLES if r in set(frame["role"])]


def by_role(frame: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of points by role, with one legend for both. Colours keep their place in the theme's list."""
    present = roles_in(frame)
    legend = alt.Legend(title=None, orient="top", symbolStrokeWidth=2, values=present, columns=3)
    shapes = alt.Scale(domain=list(ROLES), range=list(SHAPES))
    return (
        alt.Color("role:N", scale=alt.Scale(domain=list(ROLES)), legend=legend),
        alt.Shape("role:N", scale=shapes, legend=legend),
    )


def ranked_frame(decision: Decision, most: int | None = None) -> pd.DataFrame:
    """What the ranked chart draws: configurations that were scored, the best first; with `most` the best of them, the
    baseline and the one to use."""
    kept = {decision.baseline, decision.chosen.arm if decision.chosen else decision.baseline}
    scored = [row for row in decision.rows if row.quality is not None]
    rows = [row for i, row in enumerate(scored) if most is None or i < most or row.arm in kept]
    return pd.DataFrame(
        [
            {
                "configuration": row.arm,
                "quality": scaled(row.quality, decision),
                "low": scaled(row.low, decision),
                "high": scaled(row.high, decision),
                "interval over": over(row),
                "role": role(row, decision),
            }
            for row in rows
        ],
        columns=["configuration", "quality", "low", "high", "interval over", "role"],
    )


def ranked(decision: Decision, most: int | None = None, label_limit: int = 190) -> Chart | None:
    """Every configuration with its interval, the best on top; the baseline's mean and the margin around it.

    Names are cut at `label_limit` pixels.

    None before anything was scored.
    """
    frame = ranked_frame(decision, most)
    if frame.empty:
        return None
    order = list(frame["configuration"])
    title = quality_title(decision)
    color, shape = by_role(frame)
    y = alt.Y(
        "configuration:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=label_limit, grid=False)
    )
    x = alt.X("quality:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    tips = [
        alt.Tooltip("configuration:N", title="Configuration"),
        alt.Tooltip("quality:Q", title=title, format=".3~f"),
        alt.Tooltip("low:Q", title="95 % interval, from", format=".3~f"),
        alt.Tooltip("high:Q", title="to", format=".3~f"),
        alt.Tooltip("interval over:N", title="Interval over"),
        alt.Tooltip("role:N", title="Standing"),
    ]
    base = alt.Chart(frame)
    bars = base.mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q", color=color,
        strokeDash=alt.condition("datum['interval over'] == 'items, one seed'", alt.value([4, 3]), alt.value([1, 0])),
        tooltip=tips,
    )  # fmt: skip
    larger = alt.condition("datum.role == 'to use'", alt.value(220), alt.value(110))
    points = base.mark_point(filled=True, opacity=1).encode(
        y=y, x=x, color=color, shape=shape, size=larger, tooltip=tips
    )
    layers: list[Any] = [*_reference(decision, frame), bars, points]
    return alt.layer(*layers).properties(
        height=alt.Step(ROW_HEIGHT), padding={"left": 4, "top": 4, "right": 14, "bottom": 4}
    )


def _reference(decision: Decision, frame: pd.DataFrame) -> list[alt.Chart]:
    """The baseline's mean as a line, with the margin as a band on both sides of it."""
    own = frame.loc[frame["configuration"] == decision.baseline, "quality"]
    if own.empty:
        return []
    mean, margin = float(own.iloc[0]), scaled(decision.margin, decision) or 0.0
    place = pd.DataFrame([{"from": mean - margin, "to": mean + margin, "mean": mean}])
    band = alt.Chart(place).mark_rect(opacity=0.12, color="gray").encode(x="from:Q", x2="to:Q")
    line = alt.Chart(place).mark_rule(strokeDash=[6, 4], color="gray").encode(x="mean:Q")
    return [*([band] if margin else []), line]


def ranked_alt(decision: Decision) -> str:
    """The ranked chart in a sentence, for whoever cannot see it."""
    scored = [r for r in decision.rows if r.quality is not None]
    if not scored:
        return "No configuration has a score yet."
    best = scored[0]
    return (
        f"{len(scored)} configurations ranked by {quality_title(decision)}: {best.arm} has the best mean, "
        f"{quality(best, decision)}. {decision.told_apart}"
    )


PICKED = "picked"
"""The selection of points on the trade-off chart, by configuration."""

LOG_FROM = 20
"""Costs that span more than this factor are drawn on a logarithmic axis."""
NAMED = 8
"""Points that are named on the chart itself."""
CROWDED = 20
"""From so many points on, intervals of those behind the front are drawn fainter."""


def trade_off_frame(found: TradeOff, decision: Decision) -> pd.DataFrame:
    """What the trade-off chart draws, in shown units."""
    unit = cost_unit(found, decision).scale
    by_arm = {row.arm: row for row in decision.rows}
    return pd.DataFrame(
        [
            {
                "configuration": p.arm,
                "cost": p.cost * unit,
                "cost low": None if p.cost_low is None else p.cost_low * unit,
                "cost high": None if p.cost_high is None else p.cost_high * unit,
                "costs": cost_text(p.cost, found.axis, decision),
                "quality": scaled(p.quality, decision),
                "low": scaled(p.low, decision),
                "high": scaled(p.high, decision),
                "interval over": over(p),
                "role": role(by_arm[p.arm], decision),
                "place": p.place,
            }
            for p in found.points
        ]
    )


def trade_off(found: TradeOff, decision: Decision, *, height: int = 400, pickable: bool = False) -> Chart | None:
    """Quality against a cost: intervals, the front where it is shown, the limit, and what found no room at the edge.

    None where nothing was scored with a known cost.
    """
    frame = trade_off_frame(found, decision)
    if frame.empty:
        return None
    plane = _plane(frame, found, decision)
    edge = _edge(found, plane)
    color, shape = by_role(pd.concat([frame, edge]))
    x, y = plane.x("cost"), plane.y("quality")
    tips = [
        alt.Tooltip("configuration:N", title="Configuration"),
        alt.Tooltip("quality:Q", title=quality_title(decision), format=".3~f"),
        alt.Tooltip("low:Q", title="95 % interval, from", format=".3~f"),
        alt.Tooltip("high:Q", title="to", format=".3~f"),
        alt.Tooltip("interval over:N", title="Interval over"),
        alt.Tooltip("costs:N", title=plane.title.partition(" (")[0]),
        alt.Tooltip("role:N", title="Standing"),
        alt.Tooltip("place:N", title="By means"),
    ]
    base = alt.Chart(frame)
    faint = 0.25 if len(frame) > CROWDED else 0.4
    clear = alt.condition("datum.place == 'on the front'", alt.value(0.9), alt.value(faint))
    dashed = alt.condition("datum['interval over'] == 'items, one seed'", alt.value([4, 3]), alt.value([1, 0]))
    upright = base.mark_rule(strokeWidth=2).encode(
        x=x, y=plane.y("low"), y2="high:Q", color=color, strokeDash=dashed, opacity=clear,
        tooltip=tips,
    )  # fmt: skip
    layers: list[Any] = [*_marks_of_limit(plane), *_joins(found, plane, decision), upright]
    if frame["cost high"].notna().any():
        layers.append(
            base.mark_rule(strokeWidth=1.5).encode(
                x=plane.x("cost low"), x2="cost high:Q", y=y, color=color, opacity=clear, tooltip=tips
            )
        )
    fill = alt.Fill("role:N", scale=alt.Scale(domain=list(ROLES)), legend=None)
    points = base.mark_point(size=110, strokeWidth=2, filled=False).encode(
        x=x, y=y, color=color, shape=shape, fill=fill, tooltip=tips,
        fillOpacity=alt.condition("datum.place == 'on the front'", alt.value(1), alt.value(0)),
        strokeOpacity=alt.condition("datum.place == 'shown to be behind'", alt.value(0.45), alt.value(1)),
    )  # fmt: skip
    if pickable:
        one = alt.selection_point(PICKED, fields=["configuration"])
        larger = alt.condition(one, alt.value(260), alt.value(110), empty=False)
        points = points.encode(size=larger).add_params(one)
    layers.append(points)
    layers += [*_names(frame, plane), *_at_the_edge(edge, plane, color, shape)]
    return alt.layer(*layers).properties(height=height, padding={"left": 4, "top": 4, "right": 14, "bottom": 4})


def trade_off_alt(found: TradeOff, decision: Decision) -> str:
    """The trade-off chart in words."""
    if not found.points:
        return "No configuration has both a score and a known cost yet."
    names = ", ".join(f"{p.arm} ({cost_text(p.cost, found.axis, decision)})" for p in found.front)
    lost = f" Without room: {', '.join(found.no_room)}." if found.no_room else ""
    return (
        f"{quality_title(decision)} against {cost_unit(found, decision).title}: {len(found.points)} configurations. "
        f"On the front by their means, the cheapest first: {names}.{lost}"
    )


@dataclass(frozen=True)
class _Plane:
    """The two ranges of a trade-off chart, in shown units; with room at the right edge for what did not fit."""

    title: str
    y_title: str
    log: bool
    left: float
    right: float
    strip: float | None
    """Where the strip at the right edge begins."""
    bottom: float
    top: float
    limit: float | None

    def x(self, field: str) -> alt.X:
        """A field along the costs: every layer says the range, for the widest one would win."""
        scale = alt.Scale(type="log" if self.log else "linear", domain=[self.left, self.right], nice=False, zero=False)
        return alt.X(f"{field}:Q", title=self.title, scale=scale, axis=alt.Axis(tickCount=6))

    def y(self, field: str) -> alt.Y:
        return alt.Y(
            f"{field}:Q", title=self.y_title, scale=alt.Scale(domain=[self.bottom, self.top], nice=False, zero=False)
        )

    def share(self, cost: float) -> float:
        """How far from the left edge a cost lies, 0 to 1."""
        if self.log:
            return float(math.log(cost / self.left) / math.log(self.right / self.left))
        return (cost - self.left) / (self.right - self.left)

    def at(self, share: float) -> float:
        if self.log:
            return float(self.left * (self.right / self.left) ** share)
        return self.left + (self.right - self.left) * share


def _plane(frame: pd.DataFrame, found: TradeOff, decision: Decision) -> _Plane:
    unit = cost_unit(found, decision)
    costs = [float(v) for name in ("cost", "cost low", "cost high") for v in frame[name].dropna()]
    low, high = min(costs), max(costs)
    log = low > 0 and high / low > LOG_FROM
    limit = None if found.limit is None else found.limit * unit.scale
    drawn = limit is not None and _near(limit, low, high)
    if drawn and limit is not None:
        low, high = min(low, limit), max(high, limit)
    left, right = _padded(low, high, log)
    values = [float(v) for name in ("quality", "low", "high") for v in frame[name].dropna()]
    room = 0.06 * (max(values) - min(values) or abs(values[0]) or 1.0)
    bottom, top = min(values) - room, max(values) + 2 * room
    plane = _Plane(unit.title, quality_title(decision), log, left, right, None, bottom, top, limit if drawn else None)
    if not found.no_room:
        return plane
    return replace(plane, right=plane.at(1.08), strip=plane.at(1.01))


def _near(limit: float, low: float, high: float) -> bool:
    """Whether a limit can be drawn without squeezing the points into a corner."""
    span = (high - low) or high
    return low - 2 * span <= limit <= high + 2 * span


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        more = (high / low) ** 0.06
        return low / more, high * more
    room = 0.06 * ((high - low) or high or 1.0)
    return (low - room if low <= 0 or low > room else 0.0), high + room


def _marks_of_limit(plane: _Plane) -> list[alt.Chart]:
    if plane.limit is None:
        return []
    place = pd.DataFrame([{"limit": plane.limit}])
    return [alt.Chart(place).mark_rule(strokeDash=[2, 3], strokeWidth=2, color="gray").encode(x=plane.x("limit"))]


def _joins(found: TradeOff, plane: _Plane, decision: Decision) -> list[alt.Chart]:
    """The front, where neighbours on it are shown to differ."""
    if not found.joined:
        return []
    unit, by_arm = cost_unit(found, decision), {p.arm: p for p in found.points}
    lines = [
        {
            "from": by_arm[a].cost * unit.scale,
            "to": by_arm[b].cost * unit.scale,
            "quality": scaled(by_arm[a].quality, decision),
            "quality to": scaled(by_arm[b].quality, decision),
        }
        for a, b in found.joined
    ]
    return [
        alt.Chart(pd.DataFrame(lines))
        .mark_rule(strokeWidth=2, color="gray")
        .encode(x=plane.x("from"), x2="to:Q", y=plane.y("quality"), y2="quality to:Q")
    ]


def _edge(found: TradeOff, plane: _Plane) -> pd.DataFrame:
    """What found no room: a mark each at the right edge, from the bottom upwards. Its height says nothing."""
    count = len(found.no_room)
    step = (plane.top - plane.bottom) * min(0.07, 0.7 / max(count, 1))
    return pd.DataFrame(
        [
            {
                "configuration": arm,
                "cost": plane.at(0.967),
                "quality": plane.bottom + step * (i + 0.7),
                "role": "out of memory",
                "place": "no score: there was no room for a run",
            }
            for i, arm in enumerate(found.no_room)
        ],
        columns=["configuration", "cost", "quality", "role", "place"],
    )


def _at_the_edge(edge: pd.DataFrame, plane: _Plane, color: alt.Color, shape: alt.Shape) -> list[alt.Chart]:
    if edge.empty or plane.strip is None:
        return []
    corner = pd.DataFrame([{"from": plane.strip, "to": plane.right, "mid": plane.at(0.967), "top": plane.top}])
    tips = [
        alt.Tooltip("configuration:N", title="Configuration"),
        alt.Tooltip("role:N", title="Standing"),
        alt.Tooltip("place:N", title="Quality"),
    ]
    return [
        alt.Chart(corner).mark_rect(color="gray", opacity=0.12).encode(x=plane.x("from"), x2="to:Q"),
        alt.Chart(corner)
        .mark_text(angle=270, align="right", dx=-6, color="gray", text="no room for a run")
        .encode(x=plane.x("mid"), y=plane.y("top")),
        alt.Chart(edge)
        .mark_point(size=80, filled=True, opacity=1)
        .encode(x=plane.x("cost"), y=plane.y("quality"), color=color, shape=shape, tooltip=tips),
    ]


def _names(frame: pd.DataFrame, plane: _Plane) -> list[alt.Chart]:
    """Names beside the points that matter most, where they hide nothing."""
    wanted = frame.assign(
        first=[r not in {"to use", "baseline"} for r in frame["role"]], off=frame["place"] != "on the front"
    ).sort_values(["first", "off"], kind="stable")
    few = len(frame) <= NAMED
    edge = NARROW * (1.0 if plane.strip is None else plane.share(plane.strip))
    spots = [
        (plane.share(float(c)) * NARROW, (plane.top - float(q)) / (plane.top - plane.bottom) * TALL)
        for c, q in zip(frame["cost"], frame["quality"], strict=True)
    ]
    taken: list[_Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    placed: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for i in wanted.index:
        row = frame.loc[i]
        if not few and row["role"] not in {"to use", "baseline"} and row["place"] != "on the front":
            continue
        name = _short(str(row["configuration"]))
        for right, down in SPOTS:
            box = _box(spots[int(i)], name, right, down)
            inside = box[0] >= 0 and box[2] <= edge and not any(_overlap(box, other) for other in taken)
            if inside and all(_apart(box, spots[int(i)]) < _apart(box, spot) for k, spot in enumerate(spots) if k != i):
                taken.append(box)
                at = {"cost": row["cost"], "quality": row["quality"], "name": name}
                placed.setdefault((right, down), []).append(at)
                break
    return [
        alt.Chart(pd.DataFrame(some))
        .mark_text(align="left" if right > 0 else "right", dx=8 * right, dy=10 * down, color="gray", fontSize=12)
        .encode(x=plane.x("cost"), y=plane.y("quality"), text="name:N")
        for (right, down), some in placed.items()
    ]


_Box = tuple[float, float, float, float]

SPOTS = ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, -2), (-1, -2), (1, 2), (-1, 2))
"""Where a name may stand, the best first: right or left of its point, and lines above it or below."""

NARROW, TALL = 300, 300
"""Pixels of the smallest plane that is drawn: names that hide nothing there hide nothing on a larger one."""


def _box(spot: tuple[float, float], name: str, right: int, down: int) -> _Box:
    """Where a name would stand; a letter is 7 pixels wide."""
    (x, y), width = spot, 7 * len(name)
    left = x + 8 if right > 0 else x - 8 - width
    return left, y + 10 * down - 6, left + width, y + 10 * down + 6


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _apart(box: _Box, spot: tuple[float, float]) -> float:
    """How far a point lies from a name: a name belongs to the nearest one."""
    (x, y), (left, top, right, bottom) = spot, box
    return math.hypot(max(left - x, x - right, 0.0), max(top - y, y - bottom, 0.0))


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
