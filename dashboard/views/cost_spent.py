"""What a study took: hours, money and energy by what they went into."""

from typing import Any

import altair as alt
import pandas as pd

from dashboard.views.cost_memory import MANY
from harness.charts import Chart
from harness.decision import Decision
from harness.record import Record
from harness.summary import Evidence
from harness.units import duration, energy, money, time_scale
from harness.wording import PHASES
from harness.words import capital, count

BASE = "the base"
"""What is not trained, as if it were a configuration."""
SPENT = (PHASES["search"], PHASES["confirm"], "evaluation alone", "did not end well")
"""What runs went into: the base and what is served are evaluated without training."""


def spent_frame(evidence: Evidence) -> pd.DataFrame:
    """Seconds and joules of every configuration by what they went into, as measured."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for r in evidence.records:
        key = (_arm(r), _purpose(r))
        row = rows.setdefault(key, {"arm": key[0], "purpose": key[1], "runs": 0, "seconds": 0.0, "joules": None})
        row["runs"] += 1
        row["seconds"] += r.seconds
        joules = [s.energy_joules for s in r.stages if s.energy_joules is not None]
        if joules:
            row["joules"] = (row["joules"] or 0.0) + sum(joules)
    frame = pd.DataFrame(list(rows.values()), columns=["arm", "purpose", "runs", "seconds", "joules"])
    order = [*evidence.spec.arms, BASE]
    return frame.sort_values("arm", key=lambda a: a.map(lambda x: order.index(x) if x in order else len(order)))


def spent_chart(frame: pd.DataFrame, most: int | None) -> Chart | None:
    """Time by configuration, stacked by what it went into; None before any run."""
    if frame.empty or not frame["seconds"].sum():
        return None
    totals = frame.groupby("arm", sort=False)["seconds"].sum()
    order = list(totals.index) if len(totals) <= MANY else list(totals.nlargest(most or len(totals)).index)
    scale, unit = time_scale(float(totals.max()))
    some = frame[frame["arm"].isin(order)].assign(time=frame["seconds"] / scale)
    some = some.assign(
        said=[f"{count(n, 'run')}, {duration(s)}" for n, s in zip(some["runs"], some["seconds"], strict=True)],
        place=[SPENT.index(p) for p in some["purpose"]],
    )
    present = [p for p in SPENT if p in set(some["purpose"])]
    y = alt.Y("arm:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=190, grid=False))
    top = float(totals.max()) / scale * 1.25
    bars = alt.Chart(some).mark_bar(height={"band": 0.65}).encode(
        y=y, x=alt.X("time:Q", stack="zero", title=f"Time spent, measured ({unit})", scale=alt.Scale(domain=[0, top])),
        color=alt.Color(
            "purpose:N", scale=alt.Scale(domain=list(SPENT)),
            legend=alt.Legend(title=None, orient="top", columns=2, values=present),
        ),
        order=alt.Order("place:Q"),
        tooltip=[
            alt.Tooltip("arm:N", title="Configuration"), alt.Tooltip("purpose:N", title="Went into"),
            alt.Tooltip("said:N", title="Took"),
        ],
    )  # fmt: skip
    ends = pd.DataFrame([{"arm": arm, "end": totals[arm] / scale, "said": duration(totals[arm])} for arm in order])
    words = alt.Chart(ends).mark_text(align="left", dx=5, color="gray").encode(y=y, x="end:Q", text="said:N")
    return alt.layer(bars, words).properties(height=alt.Step(28))


def spent_table(frame: pd.DataFrame, decision: Decision) -> pd.DataFrame:
    """The same as figures, with money at the price of an hour and energy where it was measured."""
    rate = decision.per_hour
    metered = bool(frame["joules"].notna().any())
    present = [p for p in SPENT if p in set(frame["purpose"])]
    rows = []
    parts = [(str(arm), some) for arm, some in frame.groupby("arm", sort=False)]
    for arm, some in [*parts, ("in all", frame)] if len(parts) > 1 else parts:
        seconds = float(some["seconds"].sum())
        by = {p: (int(g["runs"].sum()), float(g["seconds"].sum())) for p, g in some.groupby("purpose")}
        rows.append(
            {
                "Configuration": arm,
                "Runs": str(int(some["runs"].sum())),
                "Time": duration(seconds),
                **({"Money": money(seconds / 3600 * rate, decision.currency)} if rate is not None else {}),
                **({"Energy": energy(_sum(some["joules"]))} if metered else {}),
                **{capital(p): f"{duration(by[p][1])}, {count(by[p][0], 'run')}" if p in by else "-" for p in present},
            }
        )
    return pd.DataFrame(rows)


def spent_said(evidence: Evidence, frame: pd.DataFrame, decision: Decision) -> str:
    """What the study took, in a sentence."""
    seconds, joules = float(frame["seconds"].sum()), _sum(frame["joules"])
    parts = [f"This study took {duration(seconds)} of runs, one after another"]
    if decision.per_hour is not None:
        price = money(decision.per_hour, decision.currency)
        parts.append(f"{money(seconds / 3600 * decision.per_hour, decision.currency)} at {price} per hour")
    if joules is not None:
        parts.append(f"{energy(joules)} of the GPU")
    told = ", ".join(parts) + ": measured, the start of processes not counted."
    if decision.per_hour is None:
        told += " A price per hour in the side bar turns it into money."
    if any(r.attempt > 1 for r in evidence.records):
        told += " A run that was started again counts once, at its latest attempt: what earlier ones took is not in it."
    if evidence.elsewhere:
        told += " What tuning took before is not known of results made elsewhere."
    return told


def _arm(record: Record) -> str:
    """Whom a run is counted to: what is served counts to the arm that was trained, what was not trained to the base."""
    served = record.trial.served
    if record.phase in {"baseline", "speed"} or (served is not None and served.of is None):
        return BASE
    return record.trial.arm.partition("@")[0] if served is not None else record.trial.arm


def _purpose(record: Record) -> str:
    if record.status != "done":
        return "did not end well"
    if record.phase in {"search", "confirm"}:
        return PHASES[record.phase]
    return "evaluation alone"


def _sum(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.sum()) if len(known) else None
