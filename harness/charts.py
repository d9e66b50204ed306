"""Charts of a decision, the same on the page and in the report.

Colours are left to the theme that draws them, so that they fit light and dark; what a colour says, a shape says too.
"""

from typing import Any

import altair as alt
import pandas as pd

from harness.decision import Decision, Row

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


def quality_title(decision: Decision) -> str:
    """The metric as an axis is named: what it is, its unit, and which way is better."""
    unit = " (%)" if decision.percent else ""
    better = "" if decision.higher_is_better else ", lower is better"
    return f"{decision.metric.replace('/', ' ')}{unit}{better}"


def scaled(value: float | None, decision: Decision) -> float | None:
    """A score in the unit that is shown."""
    return None if value is None else value * (100 if decision.percent else 1)


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
                "interval over": {"seeds": f"{row.seeds} seeds", "items": "items, one seed", "none": "one seed"}[
                    row.spread
                ],
                "role": role(row, decision),
            }
            for row in rows
        ],
        columns=["configuration", "quality", "low", "high", "interval over", "role"],
    )


def ranked(decision: Decision, most: int | None = None) -> Chart | None:
    """Every configuration with its interval, the best on top; the baseline's mean and the margin around it.

    None before anything was scored.
    """
    frame = ranked_frame(decision, most)
    if frame.empty:
        return None
    order = list(frame["configuration"])
    title = quality_title(decision)
    color, shape = by_role(frame)
    y = alt.Y("configuration:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=190, grid=False))
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


def difference(interval: Any, decision: Decision) -> str:
    """A difference of scores with its interval: `-8.4 points [-13.1, -3.8]`."""
    if interval is None:
        return "not known"
    scale, digits, unit = (100, 1, " points") if decision.percent else (1, 3, "")
    low, high = interval.low * scale, interval.high * scale
    return f"{interval.difference * scale:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"
