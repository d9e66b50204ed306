"""Which card holds which configuration at what price, and what the whole study would take on one."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dashboard.views.cost_memory import Basis
from harness import budget, plugins
from harness.errors import HarnessError
from harness.forecast import processors
from harness.forecast.processors import Processor
from harness.planning import HEADROOM, Forecaster, fits
from harness.record import Fit, Interval, Record
from harness.spec import StudySpec
from harness.trial import Trial
from harness.units import GIB, duration, money, size
from harness.words import listed

COLUMNS = 6
"""Configurations that have a column of their own in the table of cards, unless others are picked."""
FITS: dict[Fit, str] = {"yes": "fits", "likely": "likely", "uncertain": "uncertain", "no": "no"}
HOLDS = frozenset({"yes", "likely"})


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
