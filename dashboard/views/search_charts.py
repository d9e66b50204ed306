"""The charts of the search: history, learning rates, slices, parallel coordinates, importances."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboard.views.search_rates import Chosen, is_number
from dashboard.views.settings import said, value
from harness.charts import Chart
from harness.record import Status
from harness.spec import StudySpec
from harness.units import percent
from harness.wording import STATUSES

LETTERS: dict[Status, str] = {
    "out_of_memory": "M",
    "does_not_fit": "N",
    "diverged": "D",
    "pruned": "P",
    "timed_out": "T",
    "killed": "K",
    "failed": "F",
}
SIGNS = {STATUSES[status]: letter for status, letter in LETTERS.items()}
"""Letters that stand for trials without a score, by how they ended."""

SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left", "cross"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 2], [3, 1], [1, 3]]
"""As many as there are series that one chart can tell apart."""

LOG_FROM = 20
"""A loss whose largest value is so many times the smallest is drawn on a logarithmic scale."""
CONNECTED = 40
"""Learning rates of a configuration up to which they are joined by a line."""
DECADES = 3
"""Powers of ten up to which a logarithmic axis has ticks between them."""
MANY = 500
"""Points from which they are drawn small and pale."""
DRAWN = 2000
"""Trials that a chart draws at most: those that were better than all before, and evenly many of the others."""
LINES = 200
"""Trials that parallel coordinates draw: the ones with the lowest loss."""


def thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """The trials to draw. Of very many each n-th is kept, with every one that was better than all before it.

    Each n-th by how it ended: failures that come at regular intervals would else all stay or all go.
    """
    every = math.ceil(len(frame) / DRAWN)
    if every <= 1:
        return frame
    return frame[_turns(frame) | (frame.groupby(["series", "ended"]).cumcount() % every == 0)]


def _turns(frame: pd.DataFrame) -> pd.Series:
    """Where the line of the lowest loss so far begins, falls or ends."""
    by_series = frame.groupby("series")
    falls = frame["best"].ne(by_series["best"].shift()) & frame["best"].notna()
    return falls | (by_series["number"].transform("max") == frame["number"])


def history(frame: pd.DataFrame, order: Sequence[str]) -> Chart:
    """Validation loss over the trials of each tuning, and the lowest so far as a step line."""
    done = frame[frame["loss"].notna()]
    steps = frame[frame["best"].notna() & _turns(frame)]
    x = alt.X("number:Q", title="Tuning trial", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False))
    tips = _tips()
    color, shape, dash = _by_series(order)
    y = _loss_axis("loss", done["loss"])
    line = (
        alt.Chart(steps)
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(x=x, y=_loss_axis("best", done["loss"]), color=color, strokeDash=dash)
    )
    points = _points(done).encode(x=x, y=y, color=color, shape=shape, tooltip=tips)
    return _with_lost([line, points], frame, x, color, tips)


def rates(frame: pd.DataFrame, found: Sequence[Chosen], order: Sequence[str], scattered: Collection[str] = ()) -> Chart:
    """Validation loss against the learning rate; the chosen one marked, with the spread of its confirmed runs.

    Trials of an arm are joined by a line, unless they are many or the arm is `scattered`: other parameters vary too.
    """
    done = frame[frame["loss"].notna() & (frame["rate"] > 0)]
    x = alt.X(
        "rate:Q",
        title="Learning rate",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=log_axis(done["rate"]),
    )
    color, shape, dash = _by_series(order)
    few = (done.groupby("series")["rate"].transform("nunique") <= CONNECTED) & ~done["arm"].isin(scattered)
    line = (
        alt.Chart(done[few].sort_values(["series", "rate"]))
        .mark_line(strokeWidth=1.5, opacity=0.8)
        .encode(x=x, y=_loss_axis("loss", done["loss"]), color=color, strokeDash=dash)
    )
    tips = _tips()
    points = _points(done).encode(x=x, y=_loss_axis("loss", done["loss"]), color=color, shape=shape, tooltip=tips)
    spots = pd.DataFrame(
        [
            {
                "series": c.series, "rate": c.rate, "loss": c.loss, "flag": "edge" if c.edge else "",
                "low": min(c.confirmed, default=math.nan), "high": max(c.confirmed, default=math.nan),
            }
            for c in found
            if c.series in order and c.rate > 0
        ],
        columns=["series", "rate", "loss", "flag", "low", "high"],
    )  # fmt: skip
    ring = (
        alt.Chart(spots)
        .mark_point(shape="circle", size=320, filled=False, strokeWidth=2, opacity=1)
        .encode(x=x, y=_loss_axis("loss", done["loss"]), color=color, tooltip=[*tips[:1], *tips[2:4]])
    )
    spread = (
        alt.Chart(spots[spots["low"].notna()])
        .mark_errorbar(ticks=True, thickness=2)
        .encode(x=x, y=_loss_axis("low", done["loss"]), y2="high:Q", color=color)
    )
    flag = (
        alt.Chart(spots[spots["flag"] != ""])
        .mark_text(dy=-18, fontWeight="bold")
        .encode(x=x, y=_loss_axis("loss", done["loss"]), text="flag:N", color=color)
    )
    return _with_lost([line, spread, points, ring, flag], frame[frame["rate"] > 0], x, color, tips)


def _with_lost(layers: list[Any], frame: pd.DataFrame, x: alt.X, color: alt.Color, tips: list[alt.Tooltip]) -> Chart:
    """Layers with the trials that left no score as letters at the upper edge, by how they ended."""
    lost = frame[frame["loss"].isna()]
    if len(lost):
        marks = alt.Chart(lost.assign(sign=lost["ended"].map(SIGNS))).mark_text(fontSize=11, fontWeight="bold")
        layers.append(
            marks.encode(x=x, y=alt.value(7), text="sign:N", color=color, tooltip=[tips[0], tips[1], *tips[3:]])
        )
    return alt.layer(*layers).properties(height=380)


def signs(frame: pd.DataFrame) -> str:
    """What the letters at the upper edge mean; empty where there are none."""
    present = set(frame.loc[frame["loss"].isna(), "ended"])
    known = [f"{sign} {name}" for name, sign in SIGNS.items() if name in present]
    return f"Letters at the upper edge are trials without a score: {', '.join(known)}." if known else ""


def left_out(frame: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """What the charts do not show; empty where they show everything."""
    if len(drawn) == len(frame):
        return ""
    return f"Drawn are {len(drawn)} of {len(frame)} trials, every best one among them."


def _points(done: pd.DataFrame) -> alt.Chart:
    """Hollow, so that points on one another are seen; many are small dots."""
    if len(done) > MANY:
        return alt.Chart(done).mark_point(filled=True, size=14, opacity=0.35)
    return alt.Chart(done).mark_point(filled=False, size=70, strokeWidth=2, opacity=0.9)


def _by_series(order: Sequence[str]) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, shape and dash of a tuning, with one legend for all three."""
    domain = list(order)
    legend = alt.Legend(title=None, orient="top", columns=2, symbolStrokeWidth=2, labelLimit=170)
    n = max(len(domain), 1)
    return (
        alt.Color("series:N", scale=alt.Scale(domain=domain), legend=legend),
        alt.Shape("series:N", scale=alt.Scale(domain=domain, range=(SHAPES * n)[:n]), legend=legend),
        alt.StrokeDash("series:N", scale=alt.Scale(domain=domain, range=(DASHES * n)[:n]), legend=None),
    )


def _tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="Configuration"),
        alt.Tooltip("number:Q", title="Tuning trial"),
        alt.Tooltip("loss:Q", title="Validation loss (nats per token)", format=".4~f"),
        alt.Tooltip("rate:Q", title="Learning rate", format=".3~g"),
        alt.Tooltip("ended:N", title="Ended"),
        alt.Tooltip("id:N", title="Trial"),
    ]


def _loss_axis(field: str, losses: pd.Series, title: str = "Validation loss (nats per token)") -> alt.Y:
    if is_wide(losses):
        scale = alt.Scale(type="log", padding=16, nice=False)
        return alt.Y(f"{field}:Q", title=f"{title}, log", scale=scale, axis=log_axis(losses))
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False, padding=16))


def log_axis(values: pd.Series) -> alt.Axis:
    """An axis with a tick at 1, 2 and 5 of every power of ten, or at the powers alone where that is too many."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    steps = (1, 2, 5) if high - low <= DECADES else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return alt.Axis(format="~g", values=ticks, labelOverlap=True)


def is_wide(losses: pd.Series) -> bool:
    """Whether losses need a logarithmic scale."""
    return len(losses) > 0 and losses.min() > 0 and bool(losses.max() / losses.min() > LOG_FROM)


def slices(frame: pd.DataFrame, spec: StudySpec, arm: str) -> list[tuple[str, Chart]]:
    """Validation loss against each parameter that varies, by its name."""
    return [(said(name), _slice(frame, name, spec, arm)) for name in frame.columns if name != "loss"]


def _slice(frame: pd.DataFrame, name: str, spec: StudySpec, arm: str) -> Chart:
    plain = pd.DataFrame({"value": frame[name], "loss": frame["loss"], "best": frame["loss"] == frame["loss"].min()})
    if is_number(frame[name]):
        log = _is_log(frame[name], spec, arm, name)
        scale = alt.Scale(type="log" if log else "linear", zero=False, padding=12, nice=False)
        axis = log_axis(frame[name]) if log else alt.Axis(format="~g", tickCount=5)
        x = alt.X("value:Q", title=said(name), scale=scale, axis=axis)
        tip = alt.Tooltip("value:Q", title=said(name), format=".3~g")
    else:
        plain["value"] = plain["value"].astype(str)
        x = alt.X("value:N", title=said(name), axis=alt.Axis(labelAngle=0))
        tip = alt.Tooltip("value:N", title=said(name))
    y = _loss_axis("loss", frame["loss"], "Loss (nats per token)")
    tips = [tip, alt.Tooltip("loss:Q", title="Validation loss (nats per token)", format=".4~f")]
    base = alt.Chart(plain).encode(x=x, y=y, tooltip=tips)
    many = len(plain) > MANY
    points = base.mark_point(filled=True, size=14 if many else 50, opacity=0.35 if many else 0.7)
    best = base.transform_filter("datum.best").mark_point(shape="diamond", size=240, strokeWidth=2.5, opacity=1)
    return alt.layer(points, best).properties(height=250)


def _is_log(values: pd.Series, spec: StudySpec, arm: str, name: str) -> bool:
    space = spec.arms[arm].search.get(name)
    return bool(space is not None and space.log and values.min() > 0)


def parallel(frame: pd.DataFrame, spec: StudySpec, arm: str) -> Chart:
    """Every completed trial as a line over its parameters and its loss; the best of all is thick."""
    kept = frame.nsmallest(LINES, "loss").reset_index(drop=True)
    names = [c for c in frame.columns if c != "loss"] + ["loss"]
    long: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for name in names:
        title = "Validation loss" if name == "loss" else said(name)
        places, marked = _places(kept[name], log=name != "loss" and _is_log(kept[name], spec, arm, name))
        texts = [value(v) for v in kept[name]]
        long += [
            {"trial": i, "axis": title, "place": place, "value": text, "loss": loss, "best": i == 0}
            for i, (place, text, loss) in enumerate(zip(places, texts, kept["loss"], strict=True))
        ]
        ends += [{"axis": title, "place": place, "label": text} for place, text in marked]
    order = [row["axis"] for row in long[:: len(kept)]]
    x = alt.X("axis:N", sort=order, title=None, scale=alt.Scale(type="point", padding=0.4), axis=_upright())
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-0.1, 1.1]))
    color = alt.Color(
        "loss:Q", title="Validation loss (nats per token)", scale=alt.Scale(reverse=True),
        legend=alt.Legend(orient="top", gradientLength=180, format="~g"),
    )  # fmt: skip
    tips = [
        alt.Tooltip("axis:N", title="Parameter"),
        alt.Tooltip("value:N", title="Value"),
        alt.Tooltip("loss:Q", title="Validation loss (nats per token)", format=".4~f"),
    ]
    lines = (
        alt.Chart(pd.DataFrame(long))
        .mark_line(point=alt.OverlayMarkDef(size=18))
        .encode(
            x=x, y=y, color=color, detail="trial:N", tooltip=tips,
            strokeWidth=alt.condition("datum.best", alt.value(4), alt.value(1.2)),
            opacity=alt.condition("datum.best", alt.value(1), alt.value(0.55)),
        )
    )  # fmt: skip
    return alt.layer(lines, *_ends(pd.DataFrame(ends), x, y)).properties(height=400)


def _ends(labels: pd.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """What stands at which place of an axis: below its lower end, above its upper one, beside what is between."""
    base = alt.Chart(labels).encode(x=x, y=y, text="label:N")
    return [
        base.transform_filter("datum.place == 0").mark_text(color="gray", fontSize=11, dy=12),
        base.transform_filter("datum.place == 1").mark_text(color="gray", fontSize=11, dy=-12),
        base.transform_filter("datum.place > 0 && datum.place < 1").mark_text(
            color="gray", fontSize=11, dx=7, align="left"
        ),
    ]


def _upright() -> alt.Axis:
    return alt.Axis(labelAngle=0, labelLimit=110, labelOverlap=False, grid=True, domain=False, ticks=False)


def _places(values: pd.Series, *, log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Values between 0 and 1 along an axis, and what stands at which place of it."""
    if is_number(values):
        plain = np.log(values.astype(float)) if log else values.astype(float)
        low, high = float(plain.min()), float(plain.max())
        places = [(float(v) - low) / (high - low) if high > low else 0.5 for v in plain]
        at_ends = [(0.0, value(values.min())), (1.0, value(values.max()))]
        return places, at_ends if high > low else [(0.5, value(values.min()))]
    kinds = sorted({str(v) for v in values})
    at = {kind: i / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for i, kind in enumerate(kinds)}
    return [at[str(v)] for v in values], [(place, kind) for kind, place in at.items()]


def importance_chart(table: pd.DataFrame) -> Chart:
    shown = table.assign(share=table["Share"] * 100, text=[percent(v) for v in table["Share"]])
    y = alt.Y("Parameter:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=160))
    x = alt.X("share:Q", title="Explained (%)", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))
    base = alt.Chart(shown).encode(y=y, x=x)
    words = base.mark_text(align="left", dx=5, color="gray").encode(text="text:N")
    return alt.layer(base.mark_bar(height=14), words).properties(height=alt.Step(28))
