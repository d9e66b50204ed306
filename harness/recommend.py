"""From verdicts and limits to the configuration to use, what it costs, and what would settle an open question.

Limits come first. Among the arms that keep them the cheapest one *shown* to be within the margin of every other is
recommended; where none is shown the default action is the cheapest that may be the best one, with the quality that
this is expected to lose.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from harness.compare import Comparison, Refused, Verdict
from harness.power import decidable_gap, settle
from harness.ranking import (
    best_probability,
    best_set,
    draws,
    expected_regret,
    front_probability,
    upper_bound,
    within_margin,
)
from harness.record import NO_ROOM, outcomes
from harness.spec import Prices, StudySpec
from harness.store import StudyStore
from harness.summary import ArmRow, Evidence, Summary, gather, summarise
from harness.units import amount

Feasible = Literal["yes", "no", "unknown"]
Worth = Literal["yes", "no", "not shown"]

FEW = 4
"""Arms that are named one by one."""

SPARE = 1.05
"""A run's peak times this must fit: the same batch does not always land on the same fragments."""


@dataclass(frozen=True)
class Limits:
    """What the user has. None: no limit."""

    memory_bytes: int | None = None
    hours: float | None = None
    """For one run of the chosen configuration, upper prediction bound."""
    money: float | None = None
    """For one run, failures priced in."""
    quality: float | None = None
    """Least score, in units of the metric: the lower bound of the arm's mean must reach it (upper for a loss)."""
    margin: float | None = None
    """Instead of the study's; then the answer is exploratory."""
    metric: str | None = None
    """Instead of the study's; then the answer is exploratory, and the margin is 0 unless one is given."""
    per_hour: float | None = None
    """Price of an hour, instead of the study's."""


@dataclass(frozen=True)
class Candidate:
    """An arm under the limits."""

    arm: str
    feasible: Feasible
    why: str | None
    """Which limit it breaks, or what is not known."""
    quality: float | None
    low: float | None
    high: float | None
    peak_bytes: int | None
    run_hours: float | None
    """Upper prediction bound of one run."""
    run_cost: float | None
    """Hours of one run over the share of runs that succeed, in money where there is a price, else in hours."""
    spent_hours: float
    """What finding it took here: tuning, confirmation and failures."""
    within_margin: bool
    may_be_best: bool
    best_probability: float | None
    front_probability: float | None
    expected_regret: float | None


@dataclass(frozen=True)
class Settling:
    """Runs that would settle one arm against another."""

    arm: str
    against: str
    """The baseline, or where that is beyond the limits the arm to use."""
    seeds: int
    items: int
    chance: float
    runs: int
    """Confirmation runs to add, both arms together."""
    hours: float
    cost: float | None


@dataclass(frozen=True)
class Recommendation:
    answer: Literal["shown", "default", "none"]
    arm: str | None
    sentence: str
    """One for a manager."""
    full_sentence: str
    """The baseline against the best that fits."""
    worth: Worth
    """Whether the baseline is worth it: its gain over the best that fits is shown, excluded, or neither."""
    details: list[str]
    candidates: list[Candidate]
    settling: list[Settling]
    too_close: list[str]
    """Arms for which no reasonable number of runs brings a verdict."""
    naive: str
    """What comparing means would have recommended."""
    decidable_gap: float | None
    """How far from the margin a difference must lie to be shown with a chance of 80 % at the planned seeds."""
    exploratory: bool

    @property
    def unfinished(self) -> bool:
        """Nothing was confirmed yet, so that nothing can be said to break a limit."""
        return self.answer == "none" and all(c.feasible == "unknown" for c in self.candidates)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def recommend(store: StudyStore, limits: Limits) -> Recommendation:
    """What to use under the limits, from a study's results.

    Raises:
        SpecError: no run was scored on the metric that is named.
    """
    evidence = gather(store, limits.metric)
    return decide(evidence, summarise(store, evidence), limits)


def decide(
    evidence: Evidence, summary: Summary, limits: Limits, comparison: Comparison | None = None
) -> Recommendation:
    """The same from what was gathered, for several limits in turn.

    Args:
        comparison: of all arms with the baseline at the margin of the limits, where it was made before.
    """
    spec = _priced(evidence.spec, limits.per_hour)
    evidence = replace(evidence, spec=spec)
    margin = evidence.margin if limits.margin is None else limits.margin
    candidates = _candidates(evidence, summary, limits, margin)
    fitting = [c for c in candidates if c.feasible == "yes" and c.quality is not None]
    comparison = comparison or evidence.against(spec.baseline, list(spec.arms), margin)
    verdicts = comparison.verdicts if comparison else []
    better = evidence.higher_is_better
    chosen, answer = _choose(fitting, evidence.refusal, margin, better)
    if len(candidates) == 1 and answer == "shown":
        answer = "default"  # nothing was compared
    against = (
        verdicts
        if chosen is None or _feasible(candidates, spec.baseline)
        else _others(evidence, fitting, chosen, margin)
    )
    open_ = [v for v in against if v.label == "not shown" and _feasible(candidates, v.arm)]
    settling, too_close = _what_settles(open_, evidence, summary, margin, spec.prices)
    noise = [v.noise for v in verdicts if v.noise]
    worth, full_sentence = _baseline_sentence(spec.baseline, candidates, verdicts, better, margin)
    return Recommendation(
        answer=answer,
        arm=chosen.arm if chosen else None,
        sentence=_sentence(chosen, answer, fitting, candidates, evidence, margin),
        full_sentence=full_sentence,
        worth=worth,
        details=[] if evidence.refusal else _details(chosen, candidates, spec.baseline, spec.prices, better),
        candidates=candidates,
        settling=settling,
        too_close=too_close,
        naive=_naive(fitting, margin, better),
        decidable_gap=max(decidable_gap(n, evidence.seeds, alpha=evidence.alpha) for n in noise) if noise else None,
        exploratory=bool(evidence.changed) or (limits.margin is not None and limits.margin != evidence.margin),
    )


def _priced(spec: StudySpec, per_hour: float | None) -> StudySpec:
    if per_hour is None:
        return spec
    return spec.model_copy(update={"prices": spec.prices.model_copy(update={"per_hour": per_hour})})


def break_even(cost_difference: float, quality_difference: float) -> float | None:
    """The value of 0.01 of the metric at which a dearer and better arm pays; None where it is not better."""
    return cost_difference / (quality_difference * 100) if quality_difference > 0 else None


def _candidates(evidence: Evidence, summary: Summary, limits: Limits, margin: float) -> list[Candidate]:
    """Every arm under the limits. How they compare is said of those that keep them: the others are no choice."""
    better, scores = evidence.higher_is_better, evidence.scores
    costs = {row.arm: _run_cost(row, evidence.spec.prices) for row in summary.arms}
    judged = [_candidate(row, evidence, limits, costs[row.arm]) for row in summary.arms]
    fitting = scores[scores["arm"].isin([c.arm for c in judged if c.feasible == "yes"])]
    if evidence.refusal or not len(fitting):
        return judged
    close = within_margin(fitting, margin, evidence.alpha, higher_is_better=better)
    may_be = best_set(fitting, evidence.alpha, higher_is_better=better)
    chances: dict[str, tuple[float, float, float]] = {}
    try:
        names, drawn = draws(fitting)
        front = front_probability(drawn, [costs[n] or 0.0 for n in names], higher_is_better=better)
        best = best_probability(drawn, higher_is_better=better)
        regret = expected_regret(drawn, higher_is_better=better)
        chances = {n: (float(best[i]), float(front[i]), float(regret[i])) for i, n in enumerate(names)}
    except Refused:
        pass
    return [
        replace(
            c,
            within_margin=close.get(c.arm, False),
            may_be_best=c.arm in may_be,
            best_probability=chances[c.arm][0] if c.arm in chances else None,
            front_probability=chances[c.arm][1] if c.arm in chances else None,
            expected_regret=chances[c.arm][2] if c.arm in chances else None,
        )
        for c in judged
    ]


def _candidate(row: ArmRow, evidence: Evidence, limits: Limits, cost: float | None) -> Candidate:
    hours = upper_bound([s / 3600 for s in row.run_seconds])
    feasible, why = _within_limits(row, evidence, limits, hours, cost)
    score = row.score
    return Candidate(
        arm=row.arm,
        feasible=feasible,
        why=why,
        quality=score.mean if score else None,
        low=score.low if score else None,
        high=score.high if score else None,
        peak_bytes=row.peak_bytes,
        run_hours=hours,
        run_cost=cost,
        spent_hours=row.spent_seconds / 3600,
        within_margin=False,
        may_be_best=False,
        best_probability=None,
        front_probability=None,
        expected_regret=None,
    )


def _within_limits(
    row: ArmRow, evidence: Evidence, limits: Limits, hours: float | None, cost: float | None
) -> tuple[Feasible, str | None]:
    """Whether an arm keeps every limit, and which it breaks or cannot be judged by."""
    if row.score is None:
        ends = [r.status for r in outcomes(evidence.records) if r.trial.arm == row.arm]
        if not ends or any(status not in NO_ROOM for status in ends):
            return "unknown", "no confirmed run"
        return "no", "out of memory" if "out_of_memory" in ends else "forecast not to fit"
    priced = evidence.spec.prices.per_hour is not None
    checks: list[tuple[str, float | None, float | None]] = [
        ("memory", row.peak_bytes * SPARE if row.peak_bytes else None, limits.memory_bytes),
        ("hours", hours, limits.hours),
        ("money", cost if priced else None, limits.money),
    ]
    for name, value, limit in checks:
        if limit is not None and value is None:
            return "unknown", _unknown(name, row, priced=priced)
        if limit is not None and value is not None and value > limit:
            return "no", f"{name} over the limit"
    if limits.quality is not None:
        reached = row.score.low if evidence.higher_is_better else row.score.high
        if reached is None:
            return "unknown", "one seed: no bound of its quality"
        if (reached < limits.quality) if evidence.higher_is_better else (reached > limits.quality):
            return "no", "quality not shown to reach the limit"
    return "yes", None


def _unknown(name: str, row: ArmRow, *, priced: bool) -> str:
    """Why an arm cannot be held against a limit."""
    if name == "money" and not priced:
        return "no price per hour"
    return "one run: no bound of its time" if name == "hours" and len(row.run_seconds) == 1 else f"{name} not measured"


def _choose(
    fitting: Sequence[Candidate], refusal: str | None, margin: float, better: bool
) -> tuple[Candidate | None, Any]:
    """The cheapest that is shown to be close; else the cheapest that may be the best one; else what means say."""
    by_cost = sorted(fitting, key=_price)
    if not by_cost:
        return None, "none"
    shown = [c for c in by_cost if c.within_margin and not refusal]
    if shown:
        return shown[0], "shown"
    open_ = [c for c in by_cost if c.may_be_best]
    return (open_[0] if _comparable(fitting) and open_ else _by_means(fitting, margin, better)), "default"


def _comparable(fitting: Sequence[Candidate]) -> bool:
    """Whether the noise between them is known, so that some may be ruled out."""
    return any(c.best_probability is not None for c in fitting)


def _price(candidate: Candidate) -> tuple[float, int]:
    """Cheaper first; what costs the same within a tenth is ordered by memory."""
    cost = candidate.run_cost if candidate.run_cost is not None else np.inf
    rounded = round(float(np.log(cost)) / 0.1) if 0 < cost < np.inf else np.inf
    return (float(rounded), candidate.peak_bytes or 0)


def _run_cost(row: ArmRow, prices: Prices) -> float | None:
    """One successful run: its hours over the share of runs that succeed, times the price where there is one."""
    if not row.run_seconds:
        return None
    hours = float(np.mean(row.run_seconds)) / 3600
    succeeding = 1 - (row.failure_rate[0] if row.failure_rate else 0.0)
    return hours / succeeding * (prices.per_hour if prices.per_hour is not None else 1.0)


def _what_settles(
    verdicts: Sequence[Verdict], evidence: Evidence, summary: Summary, margin: float, prices: Prices
) -> tuple[list[Settling], list[str]]:
    rows = {row.arm: row for row in summary.arms}
    settling, too_close = [], []
    for verdict in verdicts:
        assert verdict.noise is not None
        plan = settle(verdict.noise, margin, evidence.alpha)
        if plan is None:
            too_close.append(verdict.arm)
            continue
        arms = (verdict.arm, verdict.baseline)
        runs = {a: max(plan.seeds - len(rows[a].run_seconds), 0) for a in arms}
        grown = plan.items / verdict.items
        hours = sum(n * float(np.mean(rows[a].run_seconds)) / 3600 for a, n in runs.items() if rows[a].run_seconds)
        cost = hours * prices.per_hour if prices.per_hour is not None else None
        runs_added, time = sum(runs.values()), hours * max(grown, 1.0)
        settling.append(
            Settling(
                arm=verdict.arm,
                against=verdict.baseline,
                seeds=plan.seeds,
                items=plan.items,
                chance=plan.chance,
                runs=runs_added,
                hours=time,
                cost=cost,
            )
        )
    return sorted(settling, key=lambda s: s.hours), too_close


def _others(evidence: Evidence, fitting: Sequence[Candidate], chosen: Candidate, margin: float) -> list[Verdict]:
    """The configurations within the limits against the one to use, where the baseline is not among them."""
    found = evidence.against(chosen.arm, [c.arm for c in fitting], margin)
    return found.verdicts if found else []


def _feasible(candidates: Sequence[Candidate], arm: str) -> bool:
    return any(c.arm == arm and c.feasible != "no" for c in candidates)


def _sentence(
    chosen: Candidate | None,
    answer: str,
    fitting: Sequence[Candidate],
    candidates: Sequence[Candidate],
    evidence: Evidence,
    margin: float,
) -> str:
    if chosen is None:
        if all(c.feasible == "unknown" for c in candidates):
            return f"Nothing is judged yet ({_reasons(candidates)})."
        return f"No configuration keeps the limits ({_reasons(candidates)})."
    if len(candidates) == 1:
        return f"Use {chosen.arm}: the study has no other configuration to compare it with."
    unit = f"{margin:g} of {evidence.metric}"
    if evidence.refusal or not _comparable(fitting):
        why = evidence.refusal or "the noise between runs is not known"
        close = f"the cheapest whose mean is within {unit} of the best mean, noise ignored"
        return f"Nothing is shown yet ({why}); until then use {chosen.arm}: {close}."
    if answer == "shown":
        if len(fitting) == 1 and len(candidates) > 1:
            return f"Use {chosen.arm}: it is the only configuration within the limits."
        return f"Use {chosen.arm}: it is the cheapest configuration shown to be within {unit} of every other one."
    lost = f", expected to lose {chosen.expected_regret:.3f} against it" if chosen.expected_regret is not None else ""
    return (
        f"Not shown which configuration is within {unit} of the best; use {chosen.arm}, "
        f"the cheapest that may be the best{lost}."
    )


def _reasons(candidates: Sequence[Candidate]) -> str:
    """Why none fits: reason by reason, arms that share one counted where they are many."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for candidate in candidates:
        if candidate.why:
            by_reason[candidate.why].append(candidate.arm)
    return "; ".join(
        f"{', '.join(arms) if len(arms) <= FEW else f'{len(arms)} configurations'}: {why}"
        for why, arms in by_reason.items()
    )


def _baseline_sentence(
    baseline: str, candidates: Sequence[Candidate], verdicts: Sequence[Verdict], better: bool, margin: float
) -> tuple[Worth, str]:
    """The baseline (full fine-tuning, as a rule) against the best other arm that keeps the limits."""
    others = [c for c in candidates if c.arm != baseline and c.feasible == "yes" and c.quality is not None]
    own = next((c for c in candidates if c.arm == baseline), None)
    if not others or own is None:
        said = f"Whether {baseline} is worth it cannot be said: no other configuration fits and was confirmed."
        return "not shown", said
    best = max(others, key=lambda c: (c.quality or 0.0) * (1 if better else -1))
    verdict = next((v for v in verdicts if v.arm == best.arm), None)
    if verdict is None or verdict.interval is None:
        why = f" ({verdict.reason})" if verdict and verdict.reason else ""
        return "not shown", f"Not shown whether {baseline} is worth it against {best.arm}, the best that fits{why}."
    low, high = -verdict.interval.high, -verdict.interval.low
    shown = f"{baseline} minus {best.arm} = {-verdict.interval.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    gain_low, gain_high = (low, high) if better else (-high, -low)
    if gain_low > margin:
        said = f"{baseline} is worth it by the margin of {margin:g}: {shown}, {best.arm} being the best that fits."
        return "yes", said
    if gain_high < margin:
        said = (
            f"{baseline} is not worth it: {shown}; a gain of {margin:g} is excluded; {best.arm} is the best that fits."
        )
        return "no", said
    return "not shown", (
        f"Not shown that {baseline} is worth it: {shown}; a gain of {margin:g} over {best.arm}, the best that fits, is "
        "neither shown nor excluded."
    )


def _details(
    chosen: Candidate | None, candidates: Sequence[Candidate], baseline: str, prices: Prices, better: bool
) -> list[str]:
    own = next((c for c in candidates if c.arm == baseline), None)
    if chosen is None or own is None or own.quality is None or chosen.quality is None:
        return []
    if chosen.arm == baseline:
        scored = [c for c in candidates if c.feasible == "yes" and c.quality is not None]
        cheapest = len(scored) > 1 and min(scored, key=_price).arm == baseline
        return [f"{baseline} is not the dear one here: no other configuration costs less per run"] if cheapest else []
    gain = (own.quality - chosen.quality) * (1 if better else -1)
    said = partial(amount, per_hour=prices.per_hour, currency=prices.currency)
    lines = []
    if own.run_cost is not None and chosen.run_cost is not None:
        dearer = own.run_cost - chosen.run_cost
        worth = break_even(dearer, gain)
        if dearer > 0 and worth is not None:
            more, least = said(dearer), said(worth)
            text = f"{baseline} costs {more} more per run and pays when 0.01 is worth over {least}"
            if prices.value_per_point is not None and prices.per_hour is not None:
                pays = "it pays" if prices.value_per_point > worth else "it does not"
                text += f" (you say {prices.value_per_point:g}: {pays})"
            lines.append(text)
        elif dearer <= 0:
            lines.append(f"{baseline} costs no more per run than {chosen.arm} here ({said(-dearer)} less)")
    return lines


def _by_means(fitting: Sequence[Candidate], margin: float, better: bool) -> Candidate:
    """The cheapest arm whose mean is within the margin of the best mean, noise ignored."""
    sign = 1 if better else -1
    best = max((c.quality or 0.0) * sign for c in fitting)
    return min((c for c in fitting if (c.quality or 0.0) * sign >= best - margin), key=_price)


def _naive(fitting: Sequence[Candidate], margin: float, better: bool) -> str:
    if not fitting:
        return "nothing fits"
    return f"comparing means would pick {_by_means(fitting, margin, better).arm}, as if nothing were noise"
