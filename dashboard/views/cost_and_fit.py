"""What runs need and cost, forecast beside measured: memory by component, cards that hold them, hours and money."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import pandas as pd

from harness import budget, plugins
from harness.charts import Chart
from harness.decision import Decision
from harness.errors import HarnessError
from harness.forecast import processors
from harness.forecast.processors import Processor
from harness.planning import HEADROOM, Forecaster, fits
from harness.record import NO_ROOM, Fit, Forecast, Interval, Record, TensorBytes
from harness.scoring import Error, ForecastScore, pairs_of, unscorable
from harness.spec import StudySpec
from harness.summary import Evidence, peak_bytes
from harness.trial import Trial
from harness.units import GIB, byte_scale, duration, energy, money, percent, size, time_scale
from harness.wording import PHASES, STATUSES
from harness.words import capital, count, listed

Basis = Literal["measured", "forecast"]
Kind = Literal["memory", "time"]
KINDS: tuple[Kind, ...] = ("memory", "time")

COMPONENTS = (
    "weights", "adapter", "optimizer", "gradients", "activations and temporaries", "allocator and context",
    "not told apart",
)  # fmt: skip
MANY = 20
"""Of more configurations than this those with the most memory are drawn."""
COLUMNS = 6
"""Configurations that have a column of their own in the table of cards, unless others are picked."""
BASE = "the base"
"""What is not trained, as if it were a configuration."""
ROW = 44
"""Pixels of the two bars of a configuration."""
AROUND = 150
"""Pixels of legend and axis."""
NEAR = 0.6
"""Of a limit: from here on the words after a bar would cross its line."""

FITS: dict[Fit, str] = {"yes": "fits", "likely": "likely", "uncertain": "uncertain", "no": "no"}
HOLDS = frozenset({"yes", "likely"})

OF_MEMORY = ("process", "reserved", "allocated")
"""Kinds of memory that are drawn against their forecast: the first that a run measured."""
MOST = 300
"""Runs that are drawn against their forecast; of more, each second or third and so on."""
FEW = 10
"""Runs below which coverage is no share: of an interval of 90 % one in ten is to lie outside."""
INSIDE, OUTSIDE = "inside the 90 % interval", "outside it"

SPENT = (PHASES["search"], PHASES["confirm"], "evaluation alone", "did not end well")
"""What runs went into: the base and what is served are evaluated without training."""


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


@dataclass(frozen=True)
class Place:
    """A configuration on a card."""

    fits: Fit
    needed_bytes: int
    """Of the whole process as forecast, or the peak as measured."""
    micro_batch: int | None
    """At which it would run; None where that is not known."""
    smaller: bool
    """It is smaller than the study's own."""


@dataclass(frozen=True)
class Holding:
    """A configuration on every card of the table."""

    arm: str
    basis: Basis | None
    """None where nothing is known; `why` says the reason."""
    places: dict[str, Place]
    """By card."""
    why: str


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


def holdings(spec: StudySpec, records: Sequence[Record], cards: Sequence[Processor]) -> list[Holding]:
    """Every configuration on every card: as forecast, else by what was measured on a GPU, else not at all."""
    try:
        forecaster: Forecaster | None = Forecaster(spec, cards[0], records)
        reason = ""
    except HarnessError as error:
        forecaster, reason = None, error.message
    return [_holding(spec, arm, records, cards, forecaster, reason) for arm in spec.arms]


def cards_of(limit: int | None) -> list[Processor]:
    """The table of GPUs by memory, the user's own limit as a card of that size first."""
    known = sorted(map(processors.find, processors.known()), key=lambda c: (c.memory_bytes or 0, c.name))
    if limit is None or not is_card(limit):
        return known
    own = processors.nameless(limit / GIB).model_copy(update={"name": limit_name(limit)})
    return [own, *known]


def is_card(limit: int) -> bool:
    """Whether there are cards of about that size."""
    return GIB <= limit <= 2000 * GIB


def limit_name(limit: int) -> str:
    return f"Your limit: {limit / GIB:g} GiB"


def cards_table(
    some: Sequence[Holding], cards: Sequence[Processor], rates: Mapping[str, float | None], which: str
) -> pd.DataFrame:
    """A row a card, a column a configuration. `which`: all of them, where some fit, or where each fits."""
    rows = []
    for card in cards:
        places = [p for h in some if (p := h.places.get(card.name)) is not None]
        held = [p.fits in HOLDS for p in places]
        if (which == WHERE[1] and not any(held)) or (which == WHERE[2] and not (held and all(held))):
            continue
        rate = rates.get(card.name)
        rows.append(
            {
                "Card": card.name,
                "Memory": size(card.memory_bytes),
                "Per hour": money(rate, "$"),
                **{f"{h.arm} ({h.basis or 'not known'})": _cell(h.places.get(card.name)) for h in some},
            }
        )
    return pd.DataFrame(rows)


WHERE = ("All cards", "Where one fits", "Where each fits")
"""Which cards are listed."""


def arms_table(
    some: Sequence[Holding], cards: Sequence[Processor], rates: Mapping[str, float | None], limit: int | None
) -> pd.DataFrame:
    """A row a configuration: the smallest and the cheapest card that hold it."""
    known = [c for c in cards if limit is None or c.name != limit_name(limit)]
    rows = []
    for h in some:
        holding = [c for c in known if (p := h.places.get(c.name)) is not None and p.fits in HOLDS]
        smallest = min(holding, key=lambda c: c.memory_bytes or 0, default=None)
        priced = [c for c in holding if rates.get(c.name) is not None]
        cheapest = min(priced, key=lambda c: rates[c.name] or 0.0, default=None)
        rows.append(
            {
                "Configuration": h.arm,
                "From": h.basis or f"not forecast here: {h.why}",
                **(
                    {limit_name(limit): _cell(h.places.get(limit_name(limit)))}
                    if limit is not None and is_card(limit)
                    else {}
                ),
                "Smallest card that holds it": _on(smallest, h),
                "Cheapest card that holds it": _on(cheapest, h, None if cheapest is None else rates[cheapest.name]),
            }
        )
    return pd.DataFrame(rows)


def rates_table() -> pd.DataFrame:
    """Dollars per hour of every card, to be edited."""
    return pd.DataFrame(
        [
            {"Card": c.name, "Memory (GiB)": (c.memory_bytes or 0) / GIB, "Price per hour ($)": c.per_hour}
            for c in cards_of(None)
        ]
    )


def rates_of(edited: pd.DataFrame) -> dict[str, float | None]:
    prices = edited["Price per hour ($)"]
    return {
        str(name): None if price is None or math.isnan(price) else float(price)
        for name, price in zip(edited["Card"], prices, strict=True)
    }


def plan_table(plan: budget.Plan, rate: float | None) -> pd.DataFrame:
    """A study on one card before it runs: everything in it is a forecast."""
    return pd.DataFrame([_plan_row(arm, rate) for arm in plan.arms])


def plan_said(plan: budget.Plan, rate: float | None) -> str:
    """What the whole study would take, in a sentence."""
    if not plan.runs:
        return f"Forecast: nothing of this study fits {plan.processor.name}."
    spent = "" if rate is None else f" and {_money(plan.seconds, rate)}"
    return (
        f"Forecast: the whole study, {plan.runs} runs one after another on one {plan.processor.name}, takes "
        f"{_span(plan.seconds)}{spent}. Times rest on "
        f"{'the table of cards alone' if plan.calibration == 'cold' else plan.calibration}."
    )


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
    if evidence.elsewhere:
        told += " What tuning took before is not known of results made elsewhere."
    return told


def figures(
    evidence: Evidence, some: Sequence[Need], frame: pd.DataFrame, decision: Decision
) -> list[tuple[str, str, str, str]]:
    """Name, value, what it is about, and help, of what the page comes to."""
    found = []
    if len(frame):
        seconds = float(frame["seconds"].sum())
        cost = "" if decision.per_hour is None else f"{money(seconds / 3600 * decision.per_hour, decision.currency)}, "
        found.append(
            (
                "Spent here",
                duration(seconds),
                f"{cost}{count(len(evidence.records), 'run')}, measured",
                "All runs, failures too.",
            )
        )
    measured = [n for n in some if n.basis == "measured"]
    if measured:
        top, least = max(measured, key=lambda n: n.total), min(measured, key=lambda n: n.total)
        found.append(("Most memory", size(top.total), f"{top.arm}, measured", "Peak of a training step."))
        if least.arm != top.arm:
            found.append(("Least memory", size(least.total), f"{least.arm}, measured", "Peak of a training step."))
    pairs = calibration_frame(evidence.records, "memory")
    if len(pairs):
        held = int((pairs["inside"] == INSIDE).sum())
        words = "Runs whose measured peak of memory lies inside the 90 % interval of the forecast made before."
        found.append(("Memory as forecast", f"{held} of {len(pairs)}", "runs inside the 90 % interval", words))
    return found


def unforecast(some: Sequence[Holding]) -> str | None:
    """Which configurations are not forecast here, and why, in a sentence."""
    missing = [h for h in some if h.basis != "forecast"]
    if not missing:
        return None
    reasons = Counter(h.why for h in missing)
    why = reasons.most_common(1)[0][0] if len(reasons) == 1 else "methods or settings that are none of this program's"
    names = listed([h.arm for h in missing]) if len(missing) <= COLUMNS else f"{len(missing)} configurations"
    by = " What was measured of them stands in." if any(h.basis for h in missing) else ""
    return f"Not forecast here: {names} ({why}).{by}"


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


def _holding(
    spec: StudySpec, arm: str, records: Sequence[Record], cards: Sequence[Processor], forecaster: Forecaster | None,
    reason: str,
) -> Holding:  # fmt: skip
    if forecaster is not None:
        try:
            own = spec.arms[arm]
            plugins.split_params(own.method, own.quantization, budget.largest(own))
            trial = budget.trial_of(spec, arm, "confirm", spec.confirm.seeds[0])
            return Holding(arm, "forecast", {c.name: _placed(forecaster, trial, c) for c in cards}, "")
        except HarnessError as error:
            reason = error.message.partition(";")[0]
    peaks = [p for r in records if r.trial.arm == arm and r.status == "done" and (p := _reserved(r)) is not None]
    if not peaks:
        return Holding(arm, None, {}, reason)
    return Holding(arm, "measured", {c.name: _measured_on(max(peaks), c) for c in cards}, reason)


def _placed(forecaster: Forecaster, trial: Trial, card: Processor) -> Place:
    """On a card at the study's own micro-batch, or at the first half of it that may fit; at its own where none does."""
    tries = [trial]
    while (half := tries[-1].training.smaller) is not None:
        tries.append(trial.at(half))
    own, least = forecaster.memory(trial, card), forecaster.memory(tries[-1], card)
    if fits(card, own) != "no" or fits(card, least) == "no":
        return Place(fits(card, own), round(own.process.mid), trial.training.per_pass, False)
    for tried in tries[1:-1]:
        needed = forecaster.memory(tried, card)
        if fits(card, needed) != "no":
            return Place(fits(card, needed), round(needed.process.mid), tried.training.per_pass, True)
    return Place(fits(card, least), round(least.process.mid), tries[-1].training.per_pass, True)


def _measured_on(peak: int, card: Processor) -> Place:
    room = HEADROOM * (card.memory_bytes or 0)
    return Place("yes" if peak <= room else "no", peak, None, False)


def _reserved(record: Record) -> int | None:
    held = [s.device_peak_bytes or s.reserved_peak_bytes for s in record.stages]
    return max((b for b in held if b), default=None)


def _cell(place: Place | None) -> str:
    if place is None:
        return "not known"
    at = f" at {place.micro_batch} per pass" if place.smaller else ""
    return f"{FITS[place.fits]}{at}, {size(place.needed_bytes)}"


def _on(card: Processor | None, holding: Holding, rate: float | None = None) -> str:
    if card is None:
        return "none of the table" if holding.basis else "-"
    place = holding.places[card.name]
    words = [size(card.memory_bytes), *([f"{money(rate, '$')} per hour"] if rate is not None else [])]
    words += [f"at {place.micro_batch} per pass"] if place.smaller else []
    return f"{card.name} ({', '.join(words)})"


def _plan_row(arm: budget.ArmPlan, rate: float | None) -> dict[str, str]:
    memory = arm.confirm.process_bytes or arm.confirm.allocated_bytes
    ran = arm.confirm.fits != "no"
    return {
        "Configuration": arm.arm,
        "Fits (forecast)": FITS[arm.confirm.fits],
        "Sequences per pass": f"{arm.micro_batch}" + (", made smaller to fit" if arm.refused else ""),
        "Memory (forecast, 90 %)": f"{size(round(memory.mid))} [{size(round(memory.low))}, {size(round(memory.high))}]",
        "Runs": f"{arm.trials} tuning, {arm.seeds} confirmed",
        "Time of all its runs (forecast, 90 %)": _span(arm.seconds) if ran else "not run",
        **({"Money (forecast, 90 %)": _money(arm.seconds, rate) if ran else "-"} if rate is not None else {}),
        "What would make it fit": " ".join(arm.nearest.overrides) if arm.nearest else "" if ran else "nothing known",
    }


def _span(seconds: Interval) -> str:
    return f"{duration(seconds.mid)} [{duration(seconds.low)}, {duration(seconds.high)}]"


def _money(seconds: Interval, rate: float) -> str:
    low, mid, high = (money(s / 3600 * rate, "$") for s in (seconds.low, seconds.mid, seconds.high))
    return f"{mid} [{low}, {high}]"


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


def _beyond(end: float, line: float | None) -> float:
    """Where the words after a bar begin: past the line of the limit, which would run through them."""
    return line if line is not None and NEAR * line < end < line else end


def _over(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _sum(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.sum()) if len(known) else None
