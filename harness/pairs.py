"""Two arms of a study against each other: item by item, seed by seed, what they cost and what they differ in.

What the command `harness compare` prints and the dashboard's page shows comes from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from harness.compare import Comparison, Label, Verdict
from harness.record import OBJECTIVE, Record, Score
from harness.spec import StudySpec
from harness.store import StudyStore
from harness.summary import LOSS, ArmRow, Evidence, Summary, judged_scores, over_seeds, score_name, sentence

SHOWN: frozenset[str] = frozenset({"better", "worse", "equivalent"})
"""Verdicts that claim something."""

BOTH_RIGHT, BOTH_WRONG = "both right", "both wrong"


@dataclass(frozen=True)
class Metric:
    """Two arms on one metric. Differences are A minus B, in units of the metric."""

    metric: str
    higher_is_better: bool
    means: dict[str, float]
    difference: float | None
    low: float | None
    high: float | None
    verdict: Label
    reason: str | None
    """Why there is no interval."""
    naive: Label | None
    """What comparing means alone would say."""
    seeds: int
    items: int
    per_seed: dict[str, float]
    """The difference of each seed that both have."""
    flips: dict[str, float] | None
    """Shares of seed and item pairs that both, one or none got right; None for scores that are not 0 or 1."""


@dataclass(frozen=True)
class Cost:
    """What an arm took."""

    peak_bytes: int | None
    train_seconds: float | None
    tokens_per_second: float | None
    search_trials: int
    search_seconds: float


@dataclass(frozen=True)
class Pair:
    """Arm A against arm B."""

    study: str
    a: str
    b: str
    margin: float
    exploratory: bool
    metrics: list[Metric]
    """The study's own first, then the held-out loss, then the others by name; empty before both have confirmed runs."""
    cost: dict[str, Cost]
    differs_in: dict[str, list[Any]]
    """By setting, its value in A and in B; None where an arm has no such setting."""
    sentence: str
    """What is shown on the first metric, in words."""

    @property
    def shown(self) -> bool:
        """Whether the first metric shows which is better, or that neither is."""
        return bool(self.metrics) and self.metrics[0].verdict in SHOWN

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        del plain["sentence"]
        return plain


def make(store: StudyStore, evidence: Evidence, summary: Summary, a: str, b: str, margin: float | None = None) -> Pair:
    """Compare arm A with arm B on everything that both were scored on.

    Args:
        margin: differences of the first metric up to this do not matter; None takes the study's own.
    """
    spec = evidence.spec
    rows = {r.arm: r for r in summary.arms}
    scores = _scored(evidence.runs, {a, b})
    order = [n for n in dict.fromkeys([evidence.metric, LOSS, *sorted(scores)]) if n in scores and n != OBJECTIVE]
    metrics: list[Metric] = []
    first: Comparison | None = None
    for name in order:
        better = scores[name].higher_is_better
        own = name == evidence.metric
        found = (
            evidence.against(b, [a, b], margin) if own else evidence.on(name, b, [a, b], store, higher_is_better=better)
        )
        if found is not None and found.verdicts:
            first = found if own else first
            metrics.append(_metric(store, evidence.runs, name, found[a], better))
    return Pair(
        study=spec.name,
        a=a,
        b=b,
        margin=evidence.margin if margin is None else margin,
        exploratory=bool(evidence.changed) or (margin is not None and margin != evidence.margin),
        metrics=metrics,
        cost={name: _cost(rows[name]) for name in (a, b)},
        differs_in=differences(spec, rows, a, b),
        sentence=sentence(b, evidence.metric, first, evidence.higher_is_better, spec.objective.level),
    )


def answers(store: StudyStore, evidence: Evidence, metric: str, a: str, b: str) -> pd.DataFrame:
    """What both arms answered, a row per item and seed: `example_id`, `seed`, `target`, and of each arm the outcome and
    the answer (`score_a`, `answer_a`, `score_b`, `answer_b`). Empty where no outcome of an item was kept."""
    columns = ["example_id", "seed", "target", "score_a", "answer_a", "score_b", "answer_b"]
    task, _, name = metric.partition("/")
    sides = []
    for arm in (a, b):
        ids = [r.trial_id for r in evidence.runs if r.trial.arm == arm]
        rows = store.table("examples", trials=ids)
        if not len(rows):
            return pd.DataFrame(columns=columns)
        kept = rows[(rows["task"] == task) & (rows["metric"] == name)]
        sides.append(kept[["example_id", "seed", "target", "score", "prediction"]])
    left, right = (side.rename(columns={"prediction": "answer"}) for side in sides)
    both = left.merge(right.drop(columns="target"), on=["example_id", "seed"], suffixes=("_a", "_b"))
    return both[columns].reset_index(drop=True)


def settings(spec: StudySpec, row: ArmRow) -> dict[str, Any]:
    """What an arm was run with; everything under controls is the same for all, but for how a batch is split."""
    arm = spec.arms[row.arm]
    return {
        "method": arm.method,
        "quantization": arm.quantization,
        **arm.params,
        "learning_rate": row.learning_rate,
        "micro_batch": row.micro_batch,
    }


def differences(spec: StudySpec, rows: Mapping[str, ArmRow], a: str, b: str) -> dict[str, list[Any]]:
    """Settings that are not the same in both arms."""
    left, right = settings(spec, rows[a]), settings(spec, rows[b])
    return {k: [left.get(k), right.get(k)] for k in {**left, **right} if left.get(k) != right.get(k)}


def _scored(runs: Sequence[Record], arms: set[str]) -> dict[str, Score]:
    return {score_name(s): s for r in runs if r.trial.arm in arms for s in r.scores}


def _metric(store: StudyStore, runs: Sequence[Record], name: str, verdict: Verdict, better: bool) -> Metric:
    a, b = verdict.arm, verdict.baseline
    scores = judged_scores(store, [r for r in runs if r.trial.arm in {a, b}], name)
    seeds = scores.pivot_table(index="seed", columns="arm", values="score").reindex(columns=[a, b]).dropna()
    bounds = verdict.interval
    return Metric(
        metric=name,
        higher_is_better=better,
        means=_means(scores, runs, name, (a, b)),
        difference=bounds.difference if bounds else None,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
        verdict=verdict.label,
        reason=verdict.reason,
        naive=verdict.naive,
        seeds=verdict.seeds,
        items=verdict.items,
        per_seed={str(s): float(v) for s, v in (seeds[a] - seeds[b]).items()},
        flips=flips(scores, a, b),
    )


def _means(scores: pd.DataFrame, runs: Sequence[Record], name: str, arms: tuple[str, str]) -> dict[str, float]:
    """Over items and seeds; results that were made elsewhere have no outcomes per item to take means of."""
    if scores.empty:
        found = {arm: over_seeds([r for r in runs if r.trial.arm == arm], name) for arm in arms}
        return {arm: score.mean for arm, score in found.items() if score}
    means = scores.groupby("arm")["score"].mean()
    return {arm: float(means[arm]) for arm in arms if arm in means.index}


def flips(scores: pd.DataFrame, a: str, b: str) -> dict[str, float] | None:
    """Shares of seed and item pairs that both, one or none got right; None for scores that are not 0 or 1."""
    if scores.empty or not scores["score"].isin([0, 1]).all():
        return None
    wide = scores.pivot_table(index=["seed", "example_id"], columns="arm", values="score")
    wide = wide.reindex(columns=[a, b]).dropna()
    if wide.empty:
        return None
    right_a, right_b = wide[a] == 1, wide[b] == 1
    return {
        BOTH_RIGHT: float((right_a & right_b).mean()),
        f"only {a}": float((right_a & ~right_b).mean()),
        f"only {b}": float((~right_a & right_b).mean()),
        BOTH_WRONG: float((~right_a & ~right_b).mean()),
    }


def _cost(row: ArmRow) -> Cost:
    return Cost(row.peak_bytes, row.train_seconds, row.tokens_per_second, row.search_trials, row.search_seconds)
