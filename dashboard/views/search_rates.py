"""Which learning rate each tuning found, and what other parameters explain of the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dashboard.views.settings import said as setting
from harness import metrics
from harness.record import OBJECTIVE, Record
from harness.spec import StudySpec
from harness.words import seeds

RATE = "learning_rate"
LEAST_TRIALS, LEAST_VARYING = 8, 2
"""Completed trials and varying parameters from which importances are computed."""
PER_GROUP, MOST_GROUPS = 4, 5
"""Trials in a group of values of a parameter at least, and groups at most."""


@dataclass(frozen=True)
class Chosen:
    """The learning rate that a tuning found best, and what its confirmed runs made of it."""

    series: str
    rate: float
    loss: float
    lowest: float
    highest: float
    """Of the learning rates whose trials were completed."""
    rates: int
    edge: bool
    confirmed: list[float]
    """Validation losses of the confirmed runs."""


def loss_of(record: Record) -> float:
    """NaN for a trial without a score: it is no zero, and no number at all."""
    loss = record.score(OBJECTIVE) if record.status == "done" else None
    return math.nan if loss is None or not math.isfinite(loss) else loss


def varying(ends: Sequence[Record], arm: str) -> pd.DataFrame:
    """The parameters that took more than one value over the completed trials of a configuration, and their loss."""
    rows = [{**r.trial.params, "loss": loss} for r in ends if r.trial.arm == arm and (loss := loss_of(r)) == loss]
    frame = pd.DataFrame(rows)
    kept = [c for c in frame.columns if c != "loss" and frame[c].dropna().nunique() > 1]
    return frame[[*kept, "loss"]] if rows else pd.DataFrame(columns=["loss"])


def chosen(spec: StudySpec, frame: pd.DataFrame, confirmed: Sequence[Record]) -> list[Chosen]:
    """Of each tuning the learning rate with the lowest validation loss.

    It lies at the edge when it is the lowest or highest of all that were completed and more than one was searched.
    """
    found = []
    for (arm, k, series), mine in frame.groupby(["arm", "tuning", "series"], sort=False):
        done = mine[mine["loss"].notna() & mine["rate"].notna()]
        if done.empty:
            continue
        losses, tried_rates = done["loss"].to_numpy(dtype=float), done["rate"].to_numpy(dtype=float)
        at = int(losses.argmin())
        rate, rates = float(tried_rates[at]), sorted(set(tried_rates.tolist()))
        runs = [r for r in confirmed if r.trial.arm == arm and r.trial.tuning == k]
        found.append(
            Chosen(
                series=str(series),
                rate=rate,
                loss=float(losses[at]),
                lowest=rates[0],
                highest=rates[-1],
                rates=len(rates),
                edge=RATE in spec.arms[str(arm)].search and len(rates) > 1 and rate in (rates[0], rates[-1]),
                confirmed=[loss for r in runs if (loss := loss_of(r)) == loss],
            )
        )
    order = {name: i for i, name in enumerate(spec.arms)}
    return sorted(found, key=lambda c: order[c.series.partition(", tuning ")[0]])


def rates_alt(found: Sequence[Chosen]) -> str:
    said = [f"{c.series} {c.rate:.3g}{' (at the edge)' if c.edge else ''}" for c in found]
    return f"Best learning rates: {', '.join(said)}." if said else "No learning rate was completed."


def rates_table(found: Sequence[Chosen]) -> pd.DataFrame:
    """The chosen learning rates in words."""
    return pd.DataFrame(
        [
            {
                "Configuration": c.series,
                "Best learning rate": f"{c.rate:.3g}",
                "Tried": f"{c.rates}, from {c.lowest:.3g} to {c.highest:.3g}" if c.rates > 1 else "this one only",
                "At the edge": "yes" if c.edge else "no",
                "Loss in tuning": f"{metrics.score(c.loss, OBJECTIVE)} (one seed)",
                "Loss of confirmed runs": _spread(c.confirmed),
            }
            for c in found
        ]
    )


def _spread(losses: Sequence[float]) -> str:
    if not losses:
        return "none yet"
    mean, low, high = (metrics.score(float(v), OBJECTIVE) for v in (np.mean(losses), min(losses), max(losses)))
    return f"{mean} (one seed)" if len(losses) == 1 else f"{mean}, from {low} to {high} ({seeds(len(losses))})"


def is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def importance(frame: pd.DataFrame) -> pd.DataFrame | None:
    """How much of the loss each parameter explains by itself; None where there is too little to say it.

    The correlation ratio of the loss's ranks over groups of the parameter's values, with Kelley's correction
    (epsilon squared; Kelley 1935, PNAS 21, 554): 1 when the groups explain everything, around 0 for a parameter that
    does nothing. Ranks, so that one diverging loss does not decide; groups, since a loss over learning rates is a
    valley, to which a correlation is blind. What two parameters do together is not in it.
    """
    names = [c for c in frame.columns if c != "loss"]
    if missing(frame):
        return None
    ranks = frame["loss"].rank()
    shares = {name: _explained(ranks, frame[name]) for name in names}
    table = pd.DataFrame({"Parameter": [setting(n) for n in names], "Share": [shares[n] for n in names]})
    return table.sort_values("Share", ascending=False, ignore_index=True)


def missing(frame: pd.DataFrame) -> str | None:
    """What importances lack, in words; None when nothing."""
    trials, names = len(frame), len(frame.columns) - 1
    if names < LEAST_VARYING:
        return f"Importances need {LEAST_VARYING} parameters that vary, and {'one does' if names else 'none does'}."
    if trials < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} completed trials of a configuration; here are {trials}."
    return None


def _explained(ranks: pd.Series, values: pd.Series) -> float:
    groups = _groups(values)
    n, k = len(ranks), groups.nunique()
    total = float(((ranks - ranks.mean()) ** 2).sum())
    if k < 2 or n <= k or total == 0:
        return 0.0
    within = float(((ranks - ranks.groupby(groups).transform("mean")) ** 2).sum())
    return max(0.0, 1 - (within / (n - k)) / (total / (n - 1)))


def _groups(values: pd.Series) -> pd.Series:
    """Equal values together; numbers of many values in groups of neighbours, of equal size."""
    most = min(MOST_GROUPS, len(values) // PER_GROUP)
    if not is_number(values) or values.nunique() <= most:
        return values.astype(str)
    return pd.Series(np.floor((values.rank(method="average") - 0.5) / len(values) * most), index=values.index)
