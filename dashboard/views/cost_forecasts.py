"""Forecasts beside what was measured."""

import math
from collections.abc import Sequence
from typing import Literal

import altair as alt
import pandas as pd

from harness.charts import Chart
from harness.record import Record
from harness.scoring import Error, ForecastScore, pairs_of, unscorable
from harness.units import byte_scale, percent, time_scale
from harness.wording import PHASES
from harness.words import count

Kind = Literal["memory", "time"]
KINDS: tuple[Kind, ...] = ("memory", "time")
OF_MEMORY = ("process", "reserved", "allocated")
"""Kinds of memory that are drawn against their forecast: the first that a run measured."""
MOST = 300
"""Runs that are drawn against their forecast; of more, each second or third and so on."""
FEW = 10
"""Runs below which coverage is no share: of an interval of 90 % one in ten is to lie outside."""
INSIDE, OUTSIDE = "inside the 90 % interval", "outside it"


def calibration_frame(records: Sequence[Record], of: Kind) -> pd.DataFrame:
    """A row per run: what was measured, what was forecast with its bounds, and whether it lies between them."""
    rows = []
    for r in records:
        if unscorable(r) is not None:
            continue
        known = {q: (measured, forecast) for q, measured, forecast, bounded in pairs_of(r) if bounded}
        wanted = next((q for q in OF_MEMORY if q in known), None) if of == "memory" else "all stages"
        if wanted not in known:
            continue
        measured, forecast = known[wanted]
        inside = forecast.low <= measured <= forecast.high
        rows.append(
            {
                "configuration": r.trial.arm,
                "phase": PHASES[r.phase],
                "trial": r.trial_id,
                "measured": float(measured),
                "forecast": forecast.mid,
                "low": forecast.low,
                "high": forecast.high,
                "inside": INSIDE if inside else OUTSIDE,
            }
        )
    return pd.DataFrame(rows)


def calibration_chart(frame: pd.DataFrame, of: Kind) -> Chart | None:
    """Measured against forecast on log axes; on the diagonal a forecast is right. None without a pair."""
    frame = frame[(frame["measured"] > 0) & (frame["low"] > 0)] if len(frame) else frame
    if frame.empty:
        return None
    frame = frame.iloc[:: math.ceil(len(frame) / MOST)]
    most = float(frame["measured"].max())
    scale, unit = byte_scale(most) if of == "memory" else time_scale(most)
    columns = ["measured", "forecast", "low", "high"]
    drawn = frame.assign(**{c: frame[c] / scale for c in columns})
    ends = [float(drawn[columns].min().min()) * 0.8, float(drawn[columns].max().max()) * 1.25]
    axes = alt.Scale(type="log", domain=ends, nice=False)
    ticks = alt.Axis(tickCount=5, format="~g")
    x = alt.X("forecast:Q", scale=axes, axis=ticks, title=f"Forecast ({unit})")
    y = alt.Y("measured:Q", scale=axes, axis=ticks, title=f"Measured ({unit})")
    color, shape = (
        alt.Color("inside:N", scale=alt.Scale(domain=[INSIDE, OUTSIDE]), legend=alt.Legend(title=None, orient="top")),
        alt.Shape("inside:N", scale=alt.Scale(domain=[INSIDE, OUTSIDE], range=["circle", "triangle-up"])),
    )
    tips = [
        alt.Tooltip("configuration:N", title="Configuration"), alt.Tooltip("phase:N", title="Phase"),
        alt.Tooltip("measured:Q", title=f"Measured ({unit})", format=".3~g"),
        alt.Tooltip("forecast:Q", title=f"Forecast ({unit})", format=".3~g"),
        alt.Tooltip("low:Q", title="Its 90 % interval, from", format=".3~g"),
        alt.Tooltip("high:Q", title="to", format=".3~g"), alt.Tooltip("trial:N", title="Trial"),
    ]  # fmt: skip
    base = alt.Chart(drawn)
    diagonal = alt.Chart(pd.DataFrame({"forecast": ends, "measured": ends})).mark_line(
        strokeDash=[6, 4], color="gray", strokeWidth=1.5
    )
    spread = base.mark_rule(opacity=0.25).encode(x=alt.X("low:Q", scale=axes), x2="high:Q", y=y, color=color)
    dots = base.mark_point(size=60, filled=True, opacity=0.85).encode(x=x, y=y, color=color, shape=shape, tooltip=tips)
    return alt.layer(diagonal.encode(x=x, y=y), spread, dots).properties(height=360)


def coverage(frame: pd.DataFrame, of: Kind) -> str:
    """How many measured values their intervals held, in words."""
    if frame.empty:
        return f"No run has both a forecast of its {of} and a measurement."
    held, n = int((frame["inside"] == INSIDE).sum()), len(frame)
    off = (frame["forecast"] / frame["measured"] - 1).abs().median()
    what = "peak of memory" if of == "memory" else "time of a whole run"
    every = math.ceil(n / MOST)
    told = f"The 90 % interval of the forecast held the measured {what} in {held} of {count(n, 'run')}"
    if n < FEW:
        return f"{told}: too few to judge it by."
    return (
        f"{told} ({percent(held / n)}, where 90 % would be right). Half of the forecasts were within {percent(off, 1)} "
        f"of what was measured.{f' One run in {every} is drawn.' if every > 1 else ''}"
    )


def score_table(score: ForecastScore) -> pd.DataFrame:
    """Error and coverage by kind of memory and by stage: the figures of `harness plan --score`."""
    return pd.DataFrame(
        [_score_row(kind, e) for kind, some in (("memory", score.memory), ("time", score.time)) for e in some]
    )


def score_said(score: ForecastScore) -> str:
    """Verdicts of fit, and what was left out with the reason."""
    given = score.fits_right + score.fits_wrong
    parts = [f"Fits or not: {score.fits_right} of {given} verdicts right" if given else "Fits or not: none given"]
    parts[0] += f", {score.fits_open} uncertain." if score.fits_open else "."
    if score.short_stages:
        parts.append(f"{score.short_stages} stages under a second are not scored.")
    if score.unscored:
        parts.append("Not scored: " + "; ".join(f"{n} {reason}" for reason, n in score.unscored.items()) + ".")
    return " ".join(parts)


def _score_row(kind: str, error: Error) -> dict[str, str]:
    return {
        "Forecast of": f"{kind}, {error.quantity}",
        "Runs": str(error.n),
        "Mean absolute error": percent(error.mape, 1),
        "Median error": percent(error.median, 1, "+"),
        "95 % are within": percent(error.p95, 1),
        "Worst": percent(error.worst, 1),
        "Inside the 90 % interval": "no interval" if error.coverage is None else percent(error.coverage),
    }
