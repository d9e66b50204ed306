"""Was the search fair, and is it finished: what each configuration was given, what came of it, what is left."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dashboard.views.banner import Banner
from dashboard.views.search_rates import RATE, Chosen, chosen, loss_of, varying
from harness import metrics, serving
from harness.record import OBJECTIVE, Record, Status, confirmations, outcomes
from harness.spec import StudySpec
from harness.summary import Evidence, settled
from harness.trial import Phase
from harness.units import duration
from harness.wording import PHASES, STATUSES
from harness.words import capital, count, listed

SERIES = 8
"""Series that one chart can tell apart."""


@dataclass(frozen=True)
class Account:
    """What one configuration, or one phase that belongs to none, has used. Every run of the log is in one account."""

    name: str
    tuned: int
    """Tuning trials that have ended, however; a run that goes on at a smaller micro-batch has not."""
    tuning_planned: int
    confirmed: int
    confirmed_planned: int
    statuses: dict[Status, int]
    """Runs of the log by how they ended, tries at a larger micro-batch included."""
    tuning_seconds: float
    confirm_seconds: float
    other_seconds: float

    @property
    def runs(self) -> int:
        return sum(self.statuses.values())

    @property
    def seconds(self) -> float:
        return self.tuning_seconds + self.confirm_seconds + self.other_seconds


@dataclass(frozen=True)
class Progress:
    """How far one phase of the study is."""

    phase: Phase
    done: int
    planned: int
    seconds: float

    @property
    def left(self) -> int:
        return max(self.planned - self.done, 0)


@dataclass(frozen=True)
class Tuning:
    """Everything that the page shows, from one pass over the records."""

    accounts: list[Account]
    """Of the configurations."""
    others: list[Account]
    progress: list[Progress]
    """Empty where nobody knows what was planned."""
    tried: pd.DataFrame
    """The tuning trials: arm, series, number, loss, best, ended, rate, id."""
    params: dict[str, pd.DataFrame]
    """Of each configuration: parameters that vary over its tuning trials, and `loss`."""
    chosen: list[Chosen]


def tuning(evidence: Evidence) -> Tuning:
    """Read the trial log once."""
    spec, records = evidence.spec, evidence.records
    ends = [r for r in outcomes(records) if r.phase == "search"]
    confirmed = confirmations(records)
    frame = tried(ends, several=spec.search.tunings > 1)
    return Tuning(
        accounts=[_account(spec, name, records, ends, confirmed) for name in spec.arms],
        others=_others(spec, records),
        progress=[] if _foreign(spec) else progress(spec, records, ends, confirmed, stopped=stopped(evidence)),
        tried=frame,
        params={name: varying(ends, name) for name in spec.arms},
        chosen=chosen(spec, frame, confirmed),
    )


def _account(
    spec: StudySpec, name: str, records: Sequence[Record], ends: Sequence[Record], confirmed: Sequence[Record]
) -> Account:
    mine = [r for r in records if r.trial.arm == name and r.phase in {"search", "confirm"}]
    known = not _foreign(spec)
    return Account(
        name=name,
        tuned=sum(r.trial.arm == name for r in ends),
        tuning_planned=spec.search.trials * spec.search.tunings if known else 0,
        confirmed=sum(r.trial.arm == name for r in confirmed),
        confirmed_planned=len(spec.confirm.seeds) if known else 0,
        statuses=_counted(mine),
        tuning_seconds=sum(r.seconds for r in mine if r.phase == "search"),
        confirm_seconds=sum(r.seconds for r in mine if r.phase == "confirm"),
        other_seconds=0.0,
    )


def _others(spec: StudySpec, records: Sequence[Record]) -> list[Account]:
    """What belongs to no configuration: the base, and what is run after training."""
    rest: dict[str, list[Record]] = {}
    for record in records:
        if record.phase in {"search", "confirm"} and record.trial.arm in spec.arms:
            continue
        name = capital(PHASES[record.phase])
        rest.setdefault(name if record.phase not in {"search", "confirm"} else record.trial.arm, []).append(record)
    return [
        Account(name, 0, 0, 0, 0, _counted(some), 0.0, 0.0, sum(r.seconds for r in some)) for name, some in rest.items()
    ]


def _counted(records: Iterable[Record]) -> dict[Status, int]:
    found = Counter(r.status for r in records)
    return {status: found[status] for status in STATUSES if found[status]}


def _foreign(spec: StudySpec) -> bool:
    """Whether another program made the results, whose plan nobody here knows."""
    return spec.origin is not None


def stopped(evidence: Evidence) -> bool:
    """Whether the study has ended at a declared look before the last one, since every configuration has its verdict."""
    return evidence.seeds < len(evidence.spec.confirm.seeds) and not evidence.early and settled(evidence)


def progress(
    spec: StudySpec, records: Sequence[Record], ends: Sequence[Record], confirmed: Sequence[Record], *, stopped: bool
) -> list[Progress]:
    """Ended of planned, phase by phase. A run that was killed from outside runs again, so it has not ended.

    A configuration none of whose tuning trials was completed has no confirmed runs, and a confirmed run that is not
    done is not served: neither is planned any more. Nor is a later seed once an early look has settled everything.
    """
    arms, search = len(spec.arms), spec.search
    tuned = Counter((r.trial.arm, r.trial.tuning) for r in ends)
    completed = {(r.trial.arm, r.trial.tuning) for r in ends if r.status == "done"}
    hopeless = {arm for (arm, k), n in tuned.items() if n >= search.trials and (arm, k) not in completed}
    settled = [r for r in confirmed if r.status != "killed"]
    confirmable = len(settled) if stopped else (arms - len(hopeless)) * len(spec.confirm.seeds)
    planned: dict[Phase, int] = {
        "baseline": 1,
        "search": arms * search.trials * search.tunings,
        "confirm": confirmable,
        **_served_planned(spec, settled, hopeless, stopped=stopped),
    }
    judged = {r.trial_id for r in settled if r.status == "done"}
    done: dict[Phase, int] = {
        "baseline": _ended(r for r in records if r.phase == "baseline"),
        "search": _ended(ends),
        "confirm": len(settled),
        "serve": _ended(r for r in records if r.phase == "serve" and _counts(spec, r, judged)),
        "speed": _ended(r for r in records if r.phase == "speed"),
    }
    seconds = {phase: sum(r.seconds for r in records if r.phase == phase) for phase in PHASES}
    return [
        Progress(phase, min(done[phase], planned[phase]), planned[phase], seconds[phase])
        for phase in PHASES
        if planned.get(phase)
    ]


def _ended(records: Iterable[Record]) -> int:
    return sum(r.status != "killed" for r in records)


def _served_planned(
    spec: StudySpec, settled: Sequence[Record], hopeless: set[str], *, stopped: bool
) -> dict[Phase, int]:
    planned = serving.planned(spec)
    if not planned:
        return {}
    ways, lost = len(spec.serve.at) * len(spec.serve.ways), 0
    for arm in serving.served_arms(spec):
        mine = [r for r in settled if r.trial.arm == arm]
        never = len(spec.confirm.seeds) - len(mine) if stopped or arm in hopeless else 0
        lost += never + sum(r.status != "done" for r in mine)
    return {**planned, "serve": planned["serve"] - lost * ways}


def _counts(spec: StudySpec, record: Record, judged: set[str]) -> bool:
    """Whether what was served is still asked for: a study that was tuned further has served other runs before."""
    served = record.trial.served
    return served is not None and served.name in spec.serve.at and (served.of is None or served.of in judged)


def tried(ends: Sequence[Record], *, several: bool) -> pd.DataFrame:
    """The tuning trials in their order, with the lowest loss so far; a trial without a score has none."""
    rows = [
        {
            "arm": r.trial.arm,
            "series": f"{r.trial.arm}, tuning {r.trial.tuning + 1}" if several else r.trial.arm,
            "tuning": r.trial.tuning,
            "number": math.nan if r.trial.number is None else r.trial.number + 1,
            "loss": loss_of(r),
            "ended": STATUSES[r.status],
            "rate": float(r.trial.params.get(RATE, math.nan)),
            "id": r.trial_id,
        }
        for r in ends
    ]
    frame = pd.DataFrame(rows, columns=["arm", "series", "tuning", "number", "loss", "ended", "rate", "id"])
    frame = frame.astype(dict.fromkeys(["number", "loss", "rate"], float))
    frame = frame.sort_values(["arm", "tuning", "number"], kind="stable", ignore_index=True)
    frame["number"] = frame["number"].fillna(frame.groupby("series").cumcount() + 1)
    frame["best"] = frame.groupby("series")["loss"].cummin().groupby(frame["series"]).ffill()
    return frame


def banner(evidence: Evidence, found: Tuning) -> Banner:
    """Fair and finished, in one sentence."""
    spec = evidence.spec
    if _foreign(spec):
        return Banner(
            "Not known",
            ":material/help:",
            "gray",
            "How much each configuration was tuned is not known: these results were made elsewhere, one run each.",
            ["An arm that was tuned more than another can look better for that alone."],
        )
    if not found.tried.shape[0]:
        trials = spec.search.trials * spec.search.tunings
        each = count(trials, "tuning trial")
        given = f"{len(spec.arms)} configurations with {each} each are planned"
        return Banner("Not begun", ":material/hourglass_empty:", "orange", f"Nothing was tuned yet: {given}.", [])
    equal, left = len({a.tuned for a in found.accounts}) == 1, sum(p.left for p in found.progress)
    tuned_out = all(p.left == 0 for p in found.progress if p.phase == "search")
    sentence = "; ".join([_budgets(spec, found, equal=equal), _left(found, left), _edges(spec, found)])
    if left and not tuned_out:
        looks = ("Not finished", ":material/hourglass_top:", "orange")
    elif not equal:
        looks = ("Unequal budgets", ":material/warning:", "red")
    elif left:
        looks = ("Tuned alike, not finished", ":material/hourglass_top:", "orange")
    elif not found.chosen:
        looks = ("Nothing came of it", ":material/block:", "red")
    elif any(c.edge for c in found.chosen):
        looks = ("Tuned alike, one end open", ":material/warning:", "orange")
    else:
        looks = ("Fair and finished", ":material/check_circle:", "green")
    return Banner(*looks, f"{sentence}.", _details(found, equal=equal))


def _budgets(spec: StudySpec, found: Tuning, *, equal: bool) -> str:
    counts = ", ".join(f"{a.name} {a.tuned}" for a in found.accounts)
    planned = spec.search.trials * spec.search.tunings
    if not equal:
        return f"Budgets differ so far ({counts} of {planned} tuning trials)"
    spent = found.accounts[0].tuned
    part = "" if spent == planned else f" of {planned}"
    trials = f"{spent}{part} tuning trials" if part else count(spent, "tuning trial")
    if len(found.accounts) == 1:
        return f"The one configuration has had {trials}"
    return f"Every configuration has had the same budget, {trials}"


def _left(found: Tuning, left: int) -> str:
    planned = sum(p.planned for p in found.progress)
    if not left:
        return "nothing is left to run"
    return f"{left} of {planned} planned runs {'is' if left == 1 else 'are'} left to run"


def _edges(spec: StudySpec, found: Tuning) -> str:
    edges = [c.series for c in found.chosen if c.edge]
    if not found.chosen:
        return "no tuning trial was completed"
    if edges:
        return f"the best learning rate lies at the edge of what was tried for {listed(edges)}"
    if not any(RATE in arm.search for arm in spec.arms.values()):
        return "learning rates were given in the study file, not searched"
    return "no best learning rate lies at the edge of what was tried"


def _details(found: Tuning, *, equal: bool) -> list[str]:
    lost = Counter(found.tried["ended"])
    said = [f"{lost[words]} {words}" for status, words in STATUSES.items() if status != "done" and lost[words]]
    details = []
    if not equal:
        details.append(
            "There is no verdict on unequal budgets: an arm that was tuned more can look better for that alone."
        )
    if said:
        details.append(f"Of the tuning trials {listed(said)}. Each counts as a trial of its budget.")
    if any(c.edge for c in found.chosen):
        details.append("Beyond an edge a better learning rate may lie: more trials look there first.")
    return details


def left(found: Tuning) -> int:
    """Planned runs that have not ended; 0 where nothing is known of a plan."""
    return sum(p.left for p in found.progress)


def ledger(found: Tuning) -> pd.DataFrame:
    """What each configuration was given, and the sum over everything in the trial log."""
    rows = [*found.accounts, *found.others]
    present = [status for status in STATUSES if any(a.statuses.get(status) for a in rows)]
    shown = [*rows, _total(rows)]
    return pd.DataFrame(
        [
            {
                "Configuration": a.name,
                "Tuning trials": _of(a.tuned, a.tuning_planned),
                "Confirmed runs": _of(a.confirmed, a.confirmed_planned),
                "Time tuning": duration(a.tuning_seconds or None),
                "Time confirming": duration(a.confirm_seconds or None),
                "Time in all": duration(a.seconds or None),
                "Runs in the log": a.runs,
                **{capital(STATUSES[status]): a.statuses.get(status, 0) for status in present},
            }
            for a in shown
        ]
    )


def _total(rows: Sequence[Account]) -> Account:
    return Account(
        name="All",
        tuned=sum(a.tuned for a in rows),
        tuning_planned=sum(a.tuning_planned for a in rows),
        confirmed=sum(a.confirmed for a in rows),
        confirmed_planned=sum(a.confirmed_planned for a in rows),
        statuses={s: n for s in STATUSES if (n := sum(a.statuses.get(s, 0) for a in rows))},
        tuning_seconds=sum(a.tuning_seconds for a in rows),
        confirm_seconds=sum(a.confirm_seconds for a in rows),
        other_seconds=sum(a.other_seconds for a in rows),
    )


def _of(done: int, planned: int) -> str:
    return f"{done} of {planned}" if planned else (str(done) if done else "-")


def progress_table(found: Tuning) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Phase": capital(PHASES[p.phase]),
                "Done": f"{p.done} of {p.planned}",
                "Share done": 100 * p.done / p.planned,
                "Left": p.left,
                "Time spent": duration(p.seconds or None),
            }
            for p in found.progress
        ]
    )


def series_of(found: Tuning) -> list[str]:
    """The tunings that were begun, in the order of the study file."""
    order = {a.name: i for i, a in enumerate(found.accounts)}
    pairs = found.tried[["arm", "tuning", "series"]].drop_duplicates()
    places = pairs.assign(place=pairs["arm"].map(order)).sort_values(["place", "tuning"])
    return list(places["series"])


def history_alt(frame: pd.DataFrame) -> str:
    """What the history shows, in a sentence."""
    ends = frame.groupby("series", sort=False)["best"].last().dropna()
    if ends.empty:
        return "No tuning trial has a validation loss."
    late = [s for s in ends.index if _found_late(frame[frame["series"] == s])]
    low = ends.idxmin()
    said = f"{low} has the lowest validation loss, {metrics.score(ends.min(), OBJECTIVE)} per token"
    tail = f"the best of {listed(late)} came in the last quarter of the trials" if late else "no best came late"
    return f"{said}; {tail}."


def _found_late(mine: pd.DataFrame) -> bool:
    """Whether the best trial is among the last quarter: then more trials may find a better one."""
    at, losses = mine["number"].to_numpy(dtype=float), mine["loss"].to_numpy(dtype=float)
    return len(at) >= 4 and bool(at[int(np.nanargmin(losses))] > 0.75 * at.max())


def others_of(found: Tuning) -> list[str]:
    """Configurations in which more than the learning rate was varied."""
    return [name for name, frame in found.params.items() if set(frame.columns) - {"loss", RATE}]
