"""What a study found: one row per arm, the comparison with the baseline, and one honest sentence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from harness.compare import Comparison, Verdict, compare, mean_interval
from harness.record import Record, Score, judged
from harness.spec import AUTO, StudySpec
from harness.store import StudyStore
from harness.trial import ZERO_SHOT

LOSS = "test_loss"


@dataclass(frozen=True)
class Measured:
    """A value over seeds: mean and 95 % t interval, which needs two seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class ArmRow:
    """One arm as it stands. Values are over its confirmed runs; None where there is none yet."""

    arm: str
    method: str
    quantization: str
    score: Measured | None
    loss: Measured | None
    retention: dict[str, float]
    """Mean score of each retention task."""
    learning_rate: float | None
    """The one that tuning chose."""
    at_edge: bool
    """The chosen learning rate is the lowest or highest that was tried: a better one may lie beyond."""
    peak_bytes: int | None
    """Highest memory of a training step: tensors by kind, or what CUDA's allocator held."""
    train_seconds: float | None
    tokens_per_second: float | None
    energy_joules: float | None
    search_trials: int
    search_seconds: float
    statuses: dict[str, int]
    """Trials by status, over search and confirmation."""


@dataclass(frozen=True)
class Summary:
    study: str
    question: str
    metric: str
    higher_is_better: bool
    margin: float
    zero_shot: dict[str, float]
    majority: float | None
    arms: list[ArmRow]
    comparison: Comparison | None
    pairs: list[Verdict]
    """Every other two arms against each other."""
    sentence: str
    caveats: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(store: StudyStore) -> Summary:
    """Read a study's results and say what they show."""
    spec = store.spec()
    records = [r for r in store.records() if r.question_id == spec.question_id]
    metric = primary_metric(spec, records)
    sample = next((s for r in records for s in r.scores if _name(s) == metric), None)
    better = sample.higher_is_better if sample else metric != LOSS
    scores = judged_scores(store, judged(records), metric)
    comparison = _against(scores, spec.baseline, spec, better)
    others = [name for name in spec.arms if name != spec.baseline]
    pairs = [
        v
        for i, name in enumerate(others)
        if (c := _against(scores[scores["arm"].isin(others[i:])], name, spec, better))
        for v in c.verdicts
    ]
    arms = [_row(spec, name, records, metric) for name in spec.arms]
    zero = next((r for r in records if r.trial.arm == ZERO_SHOT and r.status == "done"), None)
    return Summary(
        study=spec.name,
        question=spec.question,
        metric=metric,
        higher_is_better=better,
        margin=spec.objective.margin,
        zero_shot={_name(s): s.value for s in zero.scores} if zero else {},
        majority=next((s.majority for s in zero.scores if _name(s) == metric), None) if zero else None,
        arms=arms,
        comparison=comparison,
        pairs=pairs,
        sentence=sentence(spec.baseline, metric, comparison, better),
        caveats=caveats(spec, arms, records),
    )


def primary_metric(spec: StudySpec, records: Sequence[Record]) -> str:
    """The metric that is compared: the named one, else the first target task's first metric, else held-out loss."""
    if spec.objective.metric != AUTO:
        return spec.objective.metric
    asked = (r for r in records if r.phase != "search" and r.status == "done")
    targets = [_name(s) for r in asked for s in r.scores if s.role == "target"]
    order = spec.controls.evaluate.tasks
    if order != AUTO:
        targets.sort(key=lambda name: next((i for i, t in enumerate(order) if name.split("/")[0] in t), len(order)))
    return targets[0] if targets else LOSS


def judged_scores(store: StudyStore, runs: Sequence[Record], metric: str) -> pd.DataFrame:
    """Per-item scores of the runs that are judged, as `compare` takes them."""
    task, _, name = metric.partition("/")
    ids = {r.trial_id for r in runs}
    examples = store.table("examples")
    if not len(examples):
        return pd.DataFrame(columns=["arm", "seed", "example_id", "score"])
    wanted = examples["trial_id"].isin(ids) & (examples["task"] == task)
    if name:
        wanted &= examples["metric"] == name
    return examples.loc[wanted, ["arm", "seed", "example_id", "score"]]


def sentence(baseline: str, metric: str, comparison: Comparison | None, higher_is_better: bool) -> str:
    """What the evidence shows about the baseline against the others, and nothing more."""
    if comparison is None or not comparison.verdicts:
        return f"Not enough data: {baseline} and another arm both need confirmed runs before anything can be compared."
    parts = []
    for words in ("worse than", "better than", "equivalent to"):
        some = [v for v in comparison.verdicts if v.label == words.split()[0]]
        if some:
            parts.append(f"{_listed(some)} {_is(some)} shown to be {words} {baseline}")
    unshown = [v for v in comparison.verdicts if v.label == "not shown"]
    for words in ("worse", "better"):
        leaning = [v for v in unshown if _leans(v, words, higher_is_better)]
        if leaning:
            parts.append(
                f"{_listed(leaning)} {_is(leaning)} {words} than {baseline}, but not shown to be so by more than "
                f"the margin of {comparison.margin:g}"
            )
    apart = [v for v in unshown if not any(_leans(v, w, higher_is_better) for w in ("worse", "better"))]
    if apart:
        parts.append(f"{_listed(apart)} cannot be told apart from {baseline}: not enough data")
    refused = [v for v in comparison.verdicts if v.label == "not enough data"]
    parts += [f"nothing can be said of {v.arm}: {v.reason}" for v in refused]
    items = max(v.items for v in comparison.verdicts)
    seeds = min(v.seeds for v in comparison.verdicts)
    text = "; ".join(parts)
    return f"On {metric} over {items} items and {seeds} seeds, {text}."


def caveats(spec: StudySpec, arms: Sequence[ArmRow], records: Sequence[Record]) -> list[str]:
    """What a reader has to know before trusting the table."""
    found = []
    if any(r.resolved.get("random_weights") for r in records):
        found.append("the base has random weights: time and memory are real, scores mean nothing")
    edge = [a.arm for a in arms if a.at_edge]
    if edge:
        found.append(
            f"best learning rate at the edge of what was tried: {', '.join(edge)}; a better one may lie beyond"
        )
    budgets = {a.search_trials for a in arms}
    if len(budgets) > 1:
        found.append("tuning budgets differ: " + ", ".join(f"{a.arm} {a.search_trials}" for a in arms))
    lost = Counter((r.trial.arm, r.status) for r in records if r.status != "done")
    found += [
        f"{arm}: {count} run{'s' if count > 1 else ''} {status.replace('_', ' ')}"
        for (arm, status), count in lost.items()
    ]
    versions = {tuple(sorted(r.environment.get("packages", {}).items())) for r in records if r.environment}
    if len(versions) > 1:
        found.append("runs were made with different package versions, which moves scores")
    return found


def _against(scores: pd.DataFrame, baseline: str, spec: StudySpec, higher_is_better: bool) -> Comparison | None:
    """The arms of `scores` against one of them, in the order of the study file."""
    if baseline not in set(scores["arm"]):
        return None
    order = {name: i for i, name in enumerate(spec.arms)}
    ordered = scores.sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
    return compare(ordered, baseline, spec.objective.margin, higher_is_better=higher_is_better)


def _row(spec: StudySpec, name: str, records: Sequence[Record], metric: str) -> ArmRow:
    arm = spec.arms[name]
    mine = [r for r in records if r.trial.arm == name]
    search = [r for r in mine if r.phase == "search"]
    runs = judged(mine)
    chosen = runs[0].trial.params.get("learning_rate") if runs else None
    rates = sorted({float(r.trial.params["learning_rate"]) for r in search if r.status == "done"})
    tried = "learning_rate" in arm.search and len(rates) > 1
    return ArmRow(
        arm=name,
        method=arm.method,
        quantization=arm.quantization,
        score=_measured(runs, metric),
        loss=_measured(runs, LOSS),
        retention=_retention(runs),
        learning_rate=float(chosen) if chosen is not None else None,
        at_edge=tried and chosen is not None and float(chosen) in (rates[0], rates[-1]),
        peak_bytes=max((p for r in runs if (p := peak_bytes(r)) is not None), default=None),
        train_seconds=_mean([r.train.loop_seconds for r in runs if r.train]),
        tokens_per_second=_mean([r.train.tokens_per_second for r in runs if r.train and r.train.tokens_per_second]),
        energy_joules=_mean(
            [s.energy_joules for r in runs for s in r.stages if s.stage == "train" and s.energy_joules]
        ),
        search_trials=len(search),
        search_seconds=sum(r.seconds for r in search),
        statuses=dict(Counter(r.status for r in mine)),
    )


def peak_bytes(record: Record) -> int | None:
    """Memory that training needed: CUDA's reserved peak where there is one, else the sum of tensors by kind."""
    reserved = [s.reserved_peak_bytes for s in record.stages if s.stage == "train" and s.reserved_peak_bytes]
    if reserved:
        return max(reserved)
    return record.memory.peak if record.memory else None


def _measured(records: Sequence[Record], metric: str) -> Measured | None:
    values = [v for r in records if (v := r.score(metric)) is not None]
    if not values:
        return None
    bounds = mean_interval(values)
    low, high = bounds[1:] if bounds else (None, None)
    return Measured(sum(values) / len(values), low, high, len(values))


def _retention(records: Sequence[Record]) -> dict[str, float]:
    names = dict.fromkeys(_name(s) for r in records for s in r.scores if s.role == "retention")
    return {n: m for n in names if (m := _mean([v for r in records if (v := r.score(n)) is not None])) is not None}


def _name(score: Score) -> str:
    return score.task if score.role == "loss" else f"{score.task}/{score.metric}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _difference(verdict: Verdict) -> str:
    bounds = verdict.interval
    return f"{bounds.difference:+.3f} [{bounds.low:+.3f}, {bounds.high:+.3f}]" if bounds else ""


def _listed(verdicts: Sequence[Verdict]) -> str:
    words = [f"{v.arm} ({_difference(v)})" for v in verdicts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _leans(verdict: Verdict, words: str, higher_is_better: bool) -> bool:
    """Whether the interval leaves out zero, though not the whole margin, on the worse or the better side."""
    bounds = verdict.interval
    assert bounds is not None
    below, above = bounds.high < 0, bounds.low > 0
    return (below if higher_is_better else above) if words == "worse" else (above if higher_is_better else below)


def _is(some: Sequence[Any]) -> str:
    return "is" if len(some) == 1 else "are"
