"""The charts of bit-widths: quality, sizes, divergence and speed."""

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from dashboard.views.bits import BACKENDS, KINDS, Point, divergence, rate_said
from harness.bits import Bits, Question
from harness.charts import Chart
from harness.units import byte_scale, size

SHAPES = ("square", "diamond", "circle", "triangle-up", "cross", "triangle-down")
"""By backend, in the same order."""
LEAST_KL = 1e-5
"""Nats per token; what is below is drawn here, for a logarithm has no zero."""
LEVEL = 6
"""Bit-widths of which there is room for the bits below each name; names of more are slanted."""
NAMES = "stored as, with bits per weight"


def quality_chart(
    some: Sequence[Point], named: str, reference: str | None, margin: float, lowest: str | None
) -> Chart | None:
    """A measure against bit-widths; the reference as a line, the margin as a band, the lowest that holds marked.

    None before anything was scored.
    """
    own = next((p.value for p in some if p.name == reference), None)
    return _chart(some, named, own, margin, lowest)


def difference_chart(some: Sequence[Point], named: str, margin: float, lowest: str | None) -> Chart | None:
    """Differences from the reference: one whose whole line lies within the band is equivalent."""
    return _chart(some, named, 0.0, margin, lowest)


def sizes_chart(question: Question) -> Chart | None:
    """The model's weights in memory as bars, with their bytes; None before anything was measured."""
    known = {w.name: w.stored_bytes for w in question.widths if w.stored_bytes is not None}
    return _bars(question, known, "Weights in memory")


def peaks_chart(question: Question) -> Chart | None:
    """The peak of a training step as bars; None where nothing was trained on these bit-widths."""
    known = {w.name: w.train_peak_bytes for w in question.widths if w.train_peak_bytes is not None}
    return _bars(question, known, "Peak of a training step")


def divergence_chart(question: Question) -> Chart | None:
    """KL of each kind against bit-widths, on a log scale; None where none was measured."""
    rows: list[dict[str, Any]] = [
        {"label": _label(w.name, w.bits_stored, question.widths), "stored as": w.name, "kl": max(v, LEAST_KL),
         "exact": divergence(v, k), "kind": KINDS[k]}
        for w in question.widths for k, v in w.divergence.items()
    ]  # fmt: skip
    if not rows:
        return None
    order = [_label(w.name, w.bits_stored, question.widths) for w in question.widths]
    legend = alt.Legend(
        title=None, orient="top", columns=1, labelLimit=300, values=[*dict.fromkeys(r["kind"] for r in rows)]
    )
    kinds = list(KINDS.values())
    chart: Chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_point(size=90, filled=True, opacity=1)
        .encode(
            x=alt.X("label:N", sort=order, title=NAMES, scale=alt.Scale(domain=order), axis=_names_axis(len(order))),
            y=alt.Y(
                "kl:Q", title="KL (nats per token), log scale", scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".0e", tickCount=5),
            ),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds), legend=legend),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds), legend=legend),
            tooltip=[
                alt.Tooltip("stored as:N", title="Stored as"),
                alt.Tooltip("kind:N", title="Kind"),
                alt.Tooltip("exact:N", title="Nats per token"),
            ],
        )
        .properties(height=320)
    )  # fmt: skip
    return chart


def speed_chart(found: Bits, shape: tuple[int, int], phase: Literal["prefill", "decode"]) -> Chart | None:
    """Tokens per second by bit-width at one shape, with how many times as fast as the widest; None if not timed."""
    rows: list[dict[str, Any]] = []
    for f in (f for f in found.speeds if (f.batch, f.context) == shape):
        rate, ratio = (
            (f.prefill_tokens_per_second, f.prefill_ratio) if phase == "prefill" else
            (f.decode_tokens_per_second, f.decode_ratio)
        )  # fmt: skip
        if rate is not None:
            rows.append(
                {"stored as": f.served, "rate": rate.value, "low": rate.low, "high": rate.high,
                 "ratio": "" if ratio is None else f"{ratio.value:.2f} x", "said": rate_said(rate, ratio)}
            )  # fmt: skip
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    what = "Prompt read" if phase == "prefill" else "Answer written"
    top = max(r["high"] or r["rate"] for r in rows) * 1.12
    x = alt.X("stored as:N", sort=list(frame["stored as"]), title=None, axis=_names_axis(len(frame)))
    tips = [alt.Tooltip("stored as:N", title="Stored as"), alt.Tooltip("said:N", title="Tokens per second")]
    base = alt.Chart(frame).encode(x=x)
    bars = base.mark_bar(opacity=0.5).encode(
        y=alt.Y("rate:Q", title=f"{what} (tokens/s)", scale=alt.Scale(domain=[0, top])), tooltip=tips
    )
    lines = base.mark_rule(strokeWidth=2, color="gray").encode(y="low:Q", y2="high:Q", tooltip=tips)
    words = (
        base.mark_text(dy=-8, color="gray", fontSize=11)
        .encode(y="end:Q", text="ratio:N")
        .transform_calculate(end="isValid(datum.high) ? datum.high : datum.rate")
    )
    return alt.layer(bars, lines, words).properties(height=280)


def _chart(some: Sequence[Point], named: str, line: float | None, margin: float, lowest: str | None) -> Chart | None:
    if not any(p.value is not None for p in some):
        return None
    labels = {p.name: _label(p.name, p.bits, some) for p in some}
    order = list(labels.values())
    frame = pd.DataFrame([{**vars(p), "label": labels[p.name]} for p in some])
    scored, missing = frame[frame["value"].notna()], frame[frame["value"].isna()]
    present = [b for b in BACKENDS if b in set(frame["backend"])]
    legend = alt.Legend(title=None, orient="top", values=present, columns=3)
    color = alt.Color("backend:N", scale=alt.Scale(domain=list(BACKENDS)), legend=legend)
    shape = alt.Shape("backend:N", scale=alt.Scale(domain=list(BACKENDS), range=list(SHAPES)), legend=legend)
    x = alt.X("label:N", sort=order, title=NAMES, scale=alt.Scale(domain=order), axis=_names_axis(len(order)))
    y = alt.Scale(zero=False, nice=True)
    tips = [
        alt.Tooltip("name:N", title="Stored as"),
        alt.Tooltip("bits:Q", title="Bits per weight", format=".4~g"),
        alt.Tooltip("value:Q", title=named, format=".3~f"),
        alt.Tooltip("low:Q", title="95 % interval, from", format=".3~f"),
        alt.Tooltip("high:Q", title="to", format=".3~f"),
        alt.Tooltip("said:N", title="Verdict"),
    ]
    base = alt.Chart(scored)
    layers: list[Any] = _reference(line, margin)
    layers.append(
        base.mark_rule(strokeWidth=2).encode(
            x=x, y=alt.Y("low:Q", title=named, scale=y), y2="high:Q", color=color, tooltip=tips
        )
    )
    layers.append(
        base.mark_point(size=110, filled=True, opacity=1).encode(
            x=x, y=alt.Y("value:Q", title=named, scale=y), color=color, shape=shape, tooltip=tips
        )
    )
    if lowest in set(scored["name"]):
        ring = alt.Chart(scored[scored["name"] == lowest])
        layers.append(ring.mark_point(size=520, strokeWidth=2, color="gray").encode(x=x, y="value:Q", tooltip=tips))
    if len(missing):
        words = alt.Chart(missing).mark_text(angle=270, align="right", color="gray", fontSize=11)
        layers.append(words.encode(x=x, y=alt.value(6), text="said:N"))
    return alt.layer(*layers).properties(height=360)


def _reference(line: float | None, margin: float) -> list[alt.Chart]:
    if line is None:
        return []
    place = pd.DataFrame([{"from": line - margin, "to": line + margin, "mean": line}])
    band = alt.Chart(place).mark_rect(opacity=0.12, color="gray").encode(y="from:Q", y2="to:Q")
    rule = alt.Chart(place).mark_rule(strokeDash=[6, 4], color="gray").encode(y="mean:Q")
    return [*([band] if margin else []), rule]


def _bars(question: Question, known: dict[str, int], named: str) -> Chart | None:
    if not known:
        return None
    unit, name = byte_scale(max(known.values()))
    order = [w.name for w in question.widths]
    frame = pd.DataFrame(
        [{"stored as": n, "size": b / unit, "said": size(b), "lowest": n == question.lowest} for n, b in known.items()]
    )
    tips = [alt.Tooltip("stored as:N", title="Stored as"), alt.Tooltip("said:N", title=named)]
    y = alt.Y("stored as:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False))
    x = alt.X("size:Q", title=f"{named} ({name})", scale=alt.Scale(domain=[0, float(frame["size"].max()) * 1.25]))
    base = alt.Chart(frame).encode(y=y, x=x, tooltip=tips)
    bars = base.mark_bar(height={"band": 0.6})
    words = base.mark_text(align="left", dx=5, color="gray").encode(text="said:N")
    return alt.layer(bars, words).properties(height=alt.Step(30))


def _label(name: str, bits: float | None, others: Sequence[Any]) -> str:
    """A bit-width as an axis names it: `nf4|4.13`, the bits on a line of their own where there is room."""
    if len(others) > LEVEL or bits is None:
        return name
    return f"{name}|{bits:.3g}"


def _names_axis(count: int) -> alt.Axis:
    return alt.Axis(
        labelExpr="split(datum.label, '|')", labelAngle=0 if count <= LEVEL else -40, labelOverlap=False,
        labelLimit=140, grid=False,
    )  # fmt: skip
