"""The figures that the page of costs comes to."""

from collections.abc import Sequence

import pandas as pd

from dashboard.views.cost_forecasts import INSIDE, calibration_frame
from dashboard.views.cost_memory import Need
from harness.decision import Decision
from harness.summary import Evidence
from harness.units import duration, money, size
from harness.words import count


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
                "All runs at their latest attempt, failures too.",
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
