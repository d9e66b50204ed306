"""The decision as one artefact: what the page, the report and `decision.json` say under the user's limits.

Everything in it comes from `recommend`, so its sentences are those of `harness recommend` word for word; added are the
rows that are drawn, what the chosen configuration costs against the baseline, and how to make it again.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from harness import __version__, reproduce
from harness.compare import Comparison, Interval, Label
from harness.recommend import Candidate, Limits, Recommendation, decide
from harness.record import NO_ROOM, Record
from harness.spec import Scalar
from harness.store import StudyStore
from harness.summary import ArmRow, Evidence, Summary, score_name
from harness.units import GIB, SHARES, money

Standing = Literal["fits", "over a limit", "out of memory", "not known"]
"""How a configuration stands: within the limits, beyond one, without room for a single run, or not to be judged."""

COUNTED = SHARES - {"f1"}
"""Shares that count items, so that items alone have a binomial interval."""

Spread = Literal["seeds", "items", "none"]

DIGITS = range(6, 18)
"""Significant ones of a limit as it is written: 17 tell any two numbers apart."""


@dataclass(frozen=True)
class Row:
    """One configuration as it is drawn and listed."""

    arm: str
    method: str
    quantization: str
    standing: Standing
    why: str | None
    quality: float | None
    """Mean over seeds, in units of the metric."""
    low: float | None
    high: float | None
    spread: Spread
    """Whether the bounds are over seeds (95 %, t), over items of one seed (95 %, Wilson 1927), or not known."""
    seeds: int
    peak_bytes: int | None
    seconds: float | None
    """Of one run, mean."""
    hours: float | None
    """Of one run, upper prediction bound."""
    cost: float | None
    """Of one run that succeeds: money where there is a price, else hours."""
    energy_joules: float | None
    """Of the training of one run."""
    spent_seconds: float
    """What finding it took here: tuning, confirmation and failures."""
    difference: Interval | None
    """To the baseline, in units of the metric; None where nothing could be compared."""
    label: Label | None
    within_margin: bool
    may_be_best: bool
    best_probability: float | None
    front_probability: float | None


@dataclass(frozen=True)
class Chosen:
    """The configuration to use, and how to make it again. What it scored and costs is in its row."""

    arm: str
    trial_id: str
    method: str
    quantization: str
    params: dict[str, Scalar]
    micro_batch: int
    adapter: str | None
    """Folder of the adapter or model, relative to the study's folder."""
    command: str | None
    """Makes the run again; None for results that were made elsewhere."""


@dataclass(frozen=True)
class Decision:
    """What a study says under the user's limits."""

    study: str
    question: str
    origin: str | None
    """Who made the results, where that was not this program."""
    as_of: datetime | None
    """Start of the latest run."""
    metric: str
    higher_is_better: bool
    margin: float
    limits: Limits
    baseline: str
    per_hour: float | None
    currency: str
    recommendation: Recommendation
    rows: list[Row]
    """The best mean first; those without any last."""
    chosen: Chosen | None
    zero_shot: float | None
    """The base before training, on the same metric."""
    told_apart: str
    """How many cannot be told apart, as a sentence."""
    to_settle: list[str]
    """What would settle what is open, a sentence each."""
    next_command: str | None
    held_back: list[str]
    """What a reader has to know before trusting it."""
    comparison: Comparison | None
    """With the baseline, at the margin; the rows have its intervals, so that no file does."""

    def row(self, arm: str) -> Row:
        """One configuration, which a study has by this name."""
        return next(row for row in self.rows if row.arm == arm)

    def as_json(self) -> dict[str, Any]:
        """The file `decision.json`; its schema is in docs/dashboard.md."""
        plain = asdict(self)
        del plain["comparison"]
        plain["as_of"] = self.as_of.isoformat() if self.as_of else None
        return {"schema": 1, "harness": __version__, **plain}


def make(store: StudyStore, evidence: Evidence, summary: Summary, limits: Limits) -> Decision:
    """Decide from what was gathered, for several limits in turn."""
    spec = evidence.spec
    margin = evidence.margin if limits.margin is None else limits.margin
    comparison = evidence.against(spec.baseline, list(spec.arms), margin)
    found = decide(evidence, summary, limits, comparison)
    by_arm = {row.arm: row for row in summary.arms}
    rows = [_row(c, by_arm[c.arm], evidence, comparison) for c in found.candidates]
    sign = -1 if evidence.higher_is_better else 1
    return Decision(
        study=store.folder.name,
        question=spec.question,
        origin=spec.origin.tool if spec.origin else None,
        as_of=max((r.started_at for r in evidence.records), default=None),
        metric=evidence.metric,
        higher_is_better=evidence.higher_is_better,
        margin=margin,
        limits=limits,
        baseline=spec.baseline,
        per_hour=spec.prices.per_hour if limits.per_hour is None else limits.per_hour,
        currency=spec.prices.currency,
        recommendation=found,
        rows=sorted(rows, key=lambda r: (r.quality is None, sign * (r.quality or 0.0))),
        chosen=_chosen(found, evidence, store.folder),
        zero_shot=summary.zero_shot.get(evidence.metric),
        told_apart=told_apart(comparison, spec.baseline),
        to_settle=[*_before_any_verdict(evidence, found), *to_settle(found, summary, spec.prices.currency)],
        next_command=_next_command(store, evidence, found),
        held_back=[*(["Exploratory: decided after the study began."] if found.exploratory else []), *summary.caveats],
        comparison=comparison,
    )


def limits_said(limits: Limits, currency: str) -> str:
    """The limits in words, for captions."""
    said = [
        *([f"{limits.memory_bytes / GIB:g} GiB of GPU memory"] if limits.memory_bytes is not None else []),
        *([f"{limits.hours:g} h per run"] if limits.hours is not None else []),
        *([f"{money(limits.money, currency)} per run"] if limits.money is not None else []),
        *([f"quality of at least {limits.quality:g}"] if limits.quality is not None else []),
    ]
    return ", ".join(said) or "no limits"


def limits_written(limits: Limits) -> dict[str, str]:
    """The limits that are set, by the name of their option; what is read from the text is the same limit again."""
    written = {
        "vram": None if limits.memory_bytes is None else _gibibytes(limits.memory_bytes),
        "hours": _shortest(limits.hours),
        "money": _shortest(limits.money),
        "quality": _shortest(limits.quality),
        "margin": _shortest(limits.margin),
        "metric": limits.metric,
        "per-hour": _shortest(limits.per_hour),
    }
    return {name: text for name, text in written.items() if text is not None}


def flags(limits: Limits) -> list[str]:
    """The same limits as options of `harness recommend` and `harness report`."""
    return [word for name, text in limits_written(limits).items() for word in (f"--{name}", text)]


def _shortest(value: float | None) -> str | None:
    """`24`, `0.0123456789`: as many digits as it takes to read the same number again."""
    if value is None:
        return None
    return next(text for digits in DIGITS if float(text := f"{value:.{digits}g}") == value)


def _gibibytes(bytes_: int) -> str:
    """As many digits as it takes to read the same bytes again."""
    return next(text for digits in DIGITS if int(float(text := f"{bytes_ / GIB:.{digits}g}") * GIB) == bytes_)


def told_apart(comparison: Comparison | None, baseline: str) -> str:
    """`2 of the 3 others cannot be told apart from full.`: at intervals that hold for all of them together."""
    verdicts = comparison.verdicts if comparison else []
    if not verdicts or comparison is None:
        return "There is nothing to tell apart yet."
    compared = [v.noise.bounds(comparison.alpha / len(verdicts)) for v in verdicts if v.noise]
    alike = sum(low <= 0 <= high for low, high in compared)
    left = len(verdicts) - len(compared)
    if len(verdicts) == 1:
        word = "cannot be compared with" if left else "cannot be told apart from" if alike else "can be told apart from"
        return f"{verdicts[0].arm} {word} {baseline}."
    others = f"of the {len(verdicts)} others"
    if not compared:
        return f"None {others} can be compared with {baseline}."
    if alike == 0:
        said = f"{'Each' if not left else len(compared)} {others} can be told apart from {baseline}"
    else:
        said = f"{alike} {others} cannot be told apart from {baseline}"
    return said + (f"; {left} cannot be compared." if left else ".")


def _before_any_verdict(evidence: Evidence, found: Recommendation) -> list[str]:
    """What has to be there before anything can be shown, where nothing can be yet."""
    if evidence.elsewhere:
        both = " and ".join(dict.fromkeys([*([found.arm] if found.arm else []), evidence.spec.baseline]))
        return [
            f"Results made elsewhere cannot be added to. A study of {both} on several seeds would show which is better."
        ]
    return [f"Nothing is judged yet: {evidence.refusal}."] if evidence.refusal else []


def _next_command(store: StudyStore, evidence: Evidence, found: Recommendation) -> str | None:
    """What to run next: the declared runs that are left, else what `harness next` would add."""
    if evidence.spec.origin is not None:
        return None
    if evidence.early or not evidence.runs:
        return reproduce.study(store)
    added = [s for s in found.settling if s.against == evidence.spec.baseline]
    return reproduce.settle(store) if added else None


def to_settle(found: Recommendation, summary: Summary, currency: str) -> list[str]:
    """What would settle each open arm, in the words of `harness recommend`."""
    verdicts = summary.comparison.verdicts if summary.comparison else []
    items, baseline = max((v.items for v in verdicts), default=0), summary.comparison and summary.comparison.baseline
    lines = []
    for s in found.settling:
        arm = s.arm if s.against == baseline else f"{s.arm} against {s.against}"
        more = f" and {s.items} items" if s.items > items else ""
        cost = f", {money(s.cost, currency)}" if s.cost is not None else ""
        runs = f"{s.seeds} seeds per arm{more}, {s.runs} more runs, {s.hours:.2f} h{cost}"
        lines.append(f"{arm}: {runs}; a chance of {s.chance:.0%}")
    close = "too close to call with a sensible number of runs"
    return lines + [f"{arm}: {close}" for arm in found.too_close]


def items_interval(score: float, items: int) -> tuple[float, float]:
    """95 % interval of a share of right answers over items alone (Wilson 1927): noise between runs is not in it."""
    bounds = stats.binomtest(round(score * items), items).proportion_ci(0.95, method="wilson")
    return float(bounds.low), float(bounds.high)


def _row(candidate: Candidate, row: ArmRow, evidence: Evidence, comparison: Comparison | None) -> Row:
    verdict = next((v for v in comparison.verdicts if v.arm == row.arm), None) if comparison else None
    low, high, spread = _bounds(row, evidence)
    return Row(
        arm=row.arm,
        method=row.method,
        quantization=row.quantization,
        standing=_standing(candidate, row),
        why=candidate.why,
        quality=candidate.quality,
        low=low,
        high=high,
        spread=spread,
        seeds=row.score.seeds if row.score else 0,
        peak_bytes=row.peak_bytes,
        seconds=sum(row.run_seconds) / len(row.run_seconds) if row.run_seconds else None,
        hours=candidate.run_hours,
        cost=candidate.run_cost,
        energy_joules=row.energy_joules,
        spent_seconds=row.spent_seconds,
        difference=verdict.interval if verdict else None,
        label=verdict.label if verdict else None,
        within_margin=candidate.within_margin,
        may_be_best=candidate.may_be_best,
        best_probability=candidate.best_probability,
        front_probability=candidate.front_probability,
    )


def _bounds(row: ArmRow, evidence: Evidence) -> tuple[float | None, float | None, Spread]:
    """Over seeds; of a single one over its items, where they are counted."""
    if row.score is None:
        return None, None, "none"
    if row.score.low is not None and row.score.high is not None:
        return row.score.low, row.score.high, "seeds"
    mine = (s for r in evidence.runs if r.trial.arm == row.arm for s in r.scores if score_name(s) == evidence.metric)
    score = next(mine, None)
    if score is None or score.metric.partition("[")[0] not in COUNTED or not 0 <= score.value <= 1:
        return None, None, "none"
    return *items_interval(score.value, score.items), "items"


def _standing(candidate: Candidate, row: ArmRow) -> Standing:
    if candidate.quality is None and any(status in NO_ROOM for status in row.statuses):
        return "out of memory"
    if candidate.feasible == "yes":
        return "fits"
    return "over a limit" if candidate.feasible == "no" else "not known"


def _chosen(found: Recommendation, evidence: Evidence, folder: Path) -> Chosen | None:
    run: Record | None = next((r for r in evidence.runs if r.trial.arm == found.arm), None)
    if run is None:
        return None
    return Chosen(
        arm=run.trial.arm,
        trial_id=run.trial_id,
        method=run.trial.method,
        quantization=run.trial.quantization,
        params=run.trial.params,
        micro_batch=run.trial.training.per_pass,
        adapter=run.adapter_path,
        command=reproduce.command(run, evidence.spec, folder / "study.yaml"),
    )
