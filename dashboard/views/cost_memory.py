"""Memory of a training step by component, measured beside forecast."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import pandas as pd

from harness.charts import Chart
from harness.record import NO_ROOM, Forecast, Record, TensorBytes
from harness.summary import Evidence, peak_bytes
from harness.units import GIB, byte_scale, size
from harness.wording import STATUSES
from harness.words import capital

Basis = Literal["measured", "forecast"]
COMPONENTS = (
    "weights", "adapter", "optimizer", "gradients", "activations and temporaries", "allocator and context",
    "not told apart",
)  # fmt: skip
MANY = 20
"""Of more configurations than this those with the most memory are drawn."""
ROW = 44
"""Pixels of the two bars of a configuration."""
AROUND = 150
"""Pixels of legend and axis."""
NEAR = 0.6
"""Of a limit: from here on the words after a bar would cross its line."""


@dataclass(frozen=True)
class Need:
    """Memory of one training step of a configuration, as measured or as forecast."""

    arm: str
    basis: Basis
    parts: dict[str, int]
    """Bytes by component."""
    low: float | None
    high: float | None
    """Bytes: bounds of a forecast's 90 % interval."""
    note: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def needs(evidence: Evidence) -> list[Need]:
    """Of every configuration the run with the highest peak, measured and forecast, in the study's order."""
    found = []
    for arm in evidence.spec.arms:
        mine = [r for r in evidence.records if r.trial.arm == arm and r.phase in {"search", "confirm"}]
        judged = [r for r in evidence.runs if r.trial.arm == arm] or [r for r in mine if r.status == "done"]
        peaked = [r for r in judged if peak_bytes(r)]
        run = max(peaked, key=lambda r: peak_bytes(r) or 0, default=None)
        if run is not None:
            found.append(_measured(run))
        expected = run if run is not None and run.forecast else next((r for r in reversed(mine) if r.forecast), None)
        if expected is not None and expected.forecast is not None:
            note = "" if run is not None else _ended(mine)
            found.append(_forecast(arm, expected.forecast, note))
    return [n for n in found if n.total]


def largest(some: Sequence[Need], most: int | None) -> list[Need]:
    """Those of the configurations with the most memory, by it where they are many, else in the study's order."""
    arms = list(dict.fromkeys(n.arm for n in sorted(some, key=lambda n: -n.total)))
    if len(arms) <= MANY:
        return list(some)
    kept = {arm: place for place, arm in enumerate(arms if most is None else arms[:most])}
    return sorted((n for n in some if n.arm in kept), key=lambda n: kept[n.arm])


def memory_chart(some: Sequence[Need], limit: int | None) -> Chart | None:
    """Two bars a configuration, stacked by component: measured in full colour, forecast lighter and with its interval.

    None where nothing was measured or forecast.
    """
    if not some:
        return None
    unit, name = byte_scale(max(n.total for n in some))
    order = list(dict.fromkeys(n.arm for n in some))
    rows = [
        {"arm": n.arm, "basis": n.basis, "component": c, "size": b / unit, "said": size(b),
         "place": COMPONENTS.index(c)}
        for n in some for c, b in n.parts.items() if b
    ]  # fmt: skip
    widest = max(max(n.total, n.high or 0) for n in some) / unit
    line = None if limit is None or limit / unit > 2 * widest else limit / unit
    ends = [
        {
            "arm": n.arm,
            "basis": n.basis,
            "end": _beyond(max(n.total, n.high or 0) / unit, line),
            "low": _over(n.low, unit),
            "high": _over(n.high, unit),
            "said": f"{n.basis} {size(n.total)}" + (f", {n.note}" if n.basis == "forecast" and n.note else ""),
        }
        for n in some
    ]
    top = max(widest, line or 0) * 1.6  # room for the words
    bases = [b for b in ("measured", "forecast") if any(n.basis == b for n in some)]
    y = alt.Y("arm:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=150, grid=False))
    offset = alt.YOffset("basis:N", sort=bases, scale=alt.Scale(domain=bases, paddingInner=0.15))
    x = alt.Scale(domain=[0, top], nice=False)
    present = [c for c in COMPONENTS if any(r["component"] == c for r in rows)]
    bars = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            y=y, yOffset=offset, x=alt.X("size:Q", title=f"Memory of a training step ({name})", scale=x, stack="zero"),
            color=alt.Color(
                "component:N", scale=alt.Scale(domain=list(COMPONENTS)),
                legend=alt.Legend(title=None, orient="top", columns=2, values=present, labelLimit=220),
            ),
            order=alt.Order("place:Q"),
            opacity=alt.condition("datum.basis == 'forecast'", alt.value(0.45), alt.value(1)),
            tooltip=[
                alt.Tooltip("arm:N", title="Configuration"), alt.Tooltip("basis:N", title="From"),
                alt.Tooltip("component:N", title="Component"), alt.Tooltip("said:N", title="Size"),
            ],
        )
    )  # fmt: skip
    whole = alt.Chart(pd.DataFrame(ends)).encode(y=y, yOffset=offset)
    spread = whole.mark_rule(strokeWidth=2, color="gray").encode(x=alt.X("low:Q", scale=x), x2="high:Q")
    words = whole.mark_text(align="left", dx=6, color="gray", fontSize=11).encode(x="end:Q", text="said:N")
    layers: list[Any] = [bars, spread, words]
    if line is not None:
        rule = alt.Chart(pd.DataFrame([{"limit": line}]))
        layers.append(rule.mark_rule(strokeDash=[6, 4], strokeWidth=2, color="gray").encode(x="limit:Q"))
    return alt.layer(*layers).properties(height=AROUND + ROW * len(order) * (1 + len(bases)) / 3)


def memory_alt(some: Sequence[Need]) -> str:
    said = [f"{n.arm} {n.basis} {size(n.total)}" for n in some]
    return f"Memory of a training step by component: {', '.join(said)}."


def memory_reading(some: Sequence[Need], limit: int | None) -> str:
    """What is drawn, and what the limit is to it."""
    words = [
        "Of each configuration the run with the highest peak. Measured in full colour, forecast lighter, made before "
        "the run; a line is its 90 % interval."
    ]
    if any("gradients" in n.parts for n in some):
        words.append("Gradients are counted whole, activations and temporaries are what a step takes beyond them.")
    if any("not told apart" in n.parts for n in some):
        words.append("Where only the whole was measured, it is not told apart.")
    if limit is not None:
        words.append(f"The dashed line is your limit of {limit / GIB:g} GiB, where it is within reach.")
    return " ".join(words)


def memory_table(some: Sequence[Need]) -> pd.DataFrame:
    """The same as figures."""
    present = [c for c in COMPONENTS if any(n.parts.get(c) for n in some)]
    return pd.DataFrame(
        [
            {
                "Configuration": n.arm,
                "From": n.basis,
                "In all": size(n.total),
                "90 % interval": _bounds(n),
                **{capital(c): size(n.parts[c]) if n.parts.get(c) else "-" for c in present},
                "Note": n.note,
            }
            for n in some
        ]
    )  # fmt: skip


def _measured(run: Record) -> Need:
    stages = [s for s in run.stages if s.stage == "train"]
    driver = max((s.device_peak_bytes for s in stages if s.device_peak_bytes), default=None)
    held = driver or max((s.reserved_peak_bytes for s in stages if s.reserved_peak_bytes), default=None)
    note = f"at {run.trial.training.per_pass} per pass" if run.trial.micro_batch else ""
    if run.memory is None or run.memory.peak is None:
        return Need(run.trial.arm, "measured", {"not told apart": held or peak_bytes(run) or 0}, None, None, note)
    return Need(run.trial.arm, "measured", _with_held(_by_kind(run.memory), held), None, None, note)


def _forecast(arm: str, forecast: Forecast, note: str) -> Need:
    whole = forecast.process_bytes or forecast.reserved_bytes
    if forecast.tensors is not None and forecast.tensors.peak is not None:
        parts = _by_kind(forecast.tensors)
    elif forecast.components:
        parts = _named(forecast.components)
    else:
        parts = {"not told apart": round(forecast.allocated_bytes.mid)}
    parts = _with_held(parts, None if whole is None else round(whole.mid))
    total = sum(parts.values())
    bounds = whole or forecast.allocated_bytes
    told = abs(bounds.mid - total) <= 0.02 * total  # the peak may lie in another phase than a step, evaluation for one
    return Need(arm, "forecast", parts, bounds.low if told else None, bounds.high if told else None, note)


def _by_kind(tensors: TensorBytes) -> dict[str, int]:
    step = tensors.step_peak or 0
    gradients = min(tensors.gradients, step)
    return {
        "weights": tensors.weights, "adapter": tensors.adapter, "optimizer": tensors.optimizer,
        "gradients": gradients, "activations and temporaries": step - gradients,
    }  # fmt: skip


def _named(components: Mapping[str, int]) -> dict[str, int]:
    """Components of a forecast under the names of this page."""
    parts: dict[str, int] = {}
    for name, taken in components.items():
        known = name if name in COMPONENTS else "activations and temporaries"
        parts[known] = parts.get(known, 0) + taken
    return parts


def _with_held(parts: dict[str, int], held: int | None) -> dict[str, int]:
    more = 0 if held is None else held - sum(parts.values())
    return {**parts, "allocator and context": more} if more > 0 else parts


def _bounds(need: Need) -> str:
    if need.low is None or need.high is None:
        return "-"
    return f"[{size(round(need.low))}, {size(round(need.high))}]"


def _ended(mine: Sequence[Record]) -> str:
    """Why nothing was measured."""
    ends = Counter(r.status for r in mine)
    if not ends:
        return "not run"
    return STATUSES["out_of_memory"] if set(ends) <= NO_ROOM else STATUSES[ends.most_common(1)[0][0]]


def _beyond(end: float, line: float | None) -> float:
    """Where the words after a bar begin: past the line of the limit, which would run through them."""
    return line if line is not None and NEAR * line < end < line else end


def _over(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit
