"""What a study found: one row per arm, the comparison with the baseline, and one honest sentence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pandas as pd
from scipy import stats

from harness.compare import Comparison, Verdict, compare, look_alpha, refuse
from harness.errors import SpecError, did_you_mean
from harness.intervals import mean_interval
from harness.protocol import Declaration, changes, declare
from harness.record import NO_ROOM, OBJECTIVE, Record, Score, confirmations, outcomes
from harness.spec import AUTO, StudySpec
from harness.store import StudyStore
from harness.tasks import task_name, tasks_of
from harness.trial import ZERO_SHOT
from harness.words import count, listed

LOSS = "test_loss"

MANY = 4
"""More arms than this of which nothing can be said for one reason are counted, not named."""

ENDED = {"does_not_fit": "not run: forecast not to fit into memory"}
"""What is said of a status where its name does not read well."""


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
    others: dict[str, float]
    """Mean score on the target tasks that are not compared."""
    retention: dict[str, float]
    """Mean score of each retention task."""
    learning_rate: float | None
    """The one that tuning chose."""
    at_edge: bool
    """The chosen learning rate is the lowest or highest that was tried: a better one may lie beyond."""
    micro_batch: str
    """Sequences per forward pass of the judged runs: smaller than the controls' where there was no room for those."""
    peak_bytes: int | None
    """Highest memory of a training step: tensors by kind, or what CUDA's allocator held."""
    train_seconds: float | None
    tokens_per_second: float | None
    energy_joules: float | None
    search_trials: int
    search_seconds: float
    run_seconds: list[float]
    """Wall clock of every judged run."""
    spent_seconds: float
    """Of all trials of the arm: tuning, confirmation, failures."""
    failed: int
    """Confirmation runs that failed by the declared rule."""
    failure_rate: tuple[float, float, float] | None
    """Share of failed runs with its 95 % interval (Clopper-Pearson)."""
    statuses: dict[str, int]
    """Trials by status, over search and confirmation."""


@dataclass(frozen=True)
class Summary:
    study: str
    question: str
    metric: str
    higher_is_better: bool
    margin: float
    level: str
    """Whether verdicts are about the tuned configurations or about the methods."""
    zero_shot: dict[str, float]
    majority: float | None
    arms: list[ArmRow]
    comparison: Comparison | None
    loss: Comparison | None
    """The same comparison on held-out loss per example."""
    pairs: list[Verdict]
    """Every other two arms against each other."""
    sentence: str
    caveats: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What a verdict may rest on, and why it may not."""

    spec: StudySpec
    records: list[Record]
    metric: str
    higher_is_better: bool
    zero_shot: Record | None
    runs: list[Record]
    """Judged runs of the declared look, failed ones left out."""
    failed: list[Record]
    """Confirmation runs that failed: counted and priced, never averaged in."""
    seeds: int
    """Of the look: confirmed seeds per arm."""
    alpha: float
    """Of the look: all looks together err at most the declared alpha."""
    refusal: str | None
    """Why no number would mean anything."""
    early: str | None
    """The part of that which is about the number of seeds alone."""
    elsewhere: str | None
    """The part of that which is about results of another program, without the outcomes of single items."""
    changed: list[str]
    """What was decided after the study began."""
    scores: pd.DataFrame
    """Per item, seed and arm on the primary metric."""
    chosen: bool
    """The metric was named by whoever asks, and is not the study's."""

    @property
    def margin(self) -> float:
        """The study's own is in units of its own metric; none was declared for another one."""
        return 0.0 if self.chosen else self.spec.objective.margin

    def against(self, baseline: str, arms: Sequence[str], margin: float | None = None) -> Comparison | None:
        """Arms against one of them, in the order given; None before the baseline has any score."""
        if self.elsewhere:
            return self._unjudged(self.metric, baseline, arms, self.higher_is_better, margin)
        return self._compared(self.scores, baseline, arms, self.higher_is_better, margin)

    def on(
        self, metric: str, baseline: str, arms: Sequence[str], store: StudyStore, *, higher_is_better: bool
    ) -> Comparison | None:
        """The same on another metric, at no margin."""
        if self.elsewhere:
            return self._unjudged(metric, baseline, arms, higher_is_better, 0.0)
        return self._compared(judged_scores(store, self.runs, metric), baseline, arms, higher_is_better, 0.0)

    def _unjudged(
        self, metric: str, baseline: str, arms: Sequence[str], better: bool, margin: float | None
    ) -> Comparison | None:
        """The arms that have a score, with the reason why nothing can be said of them."""
        items = {r.trial.arm: s.items for r in self.runs for s in r.scores if metric in (s.task, score_name(s))}
        if baseline not in items:
            return None
        used = self.spec.objective.margin if margin is None else margin
        verdicts = [
            Verdict(a, baseline, "not enough data", None, self.seeds, items[a], self.elsewhere)
            for a in arms
            if a != baseline and a in items
        ]
        return Comparison(baseline, used, self.alpha, better, verdicts)

    def _compared(
        self, scores: pd.DataFrame, baseline: str, arms: Sequence[str], better: bool, margin: float | None
    ) -> Comparison | None:
        if baseline not in set(scores["arm"]):
            return None
        order = {name: i for i, name in enumerate(arms)}
        kept = scores[scores["arm"].isin(order)].sort_values("arm", key=lambda a: a.map(order), kind="stable")
        used = self.margin if margin is None else margin
        found = compare(kept, baseline, used, self.alpha, higher_is_better=better)
        return refuse(found, self.refusal) if self.refusal else found


def gather(store: StudyStore, metric: str | None = None) -> Evidence:
    """Read a study's results and decide what of them may be judged now.

    Args:
        metric: judge this one instead of the study's own: what comes of it is exploratory.

    Raises:
        SpecError: no confirmed run was scored on it.
    """
    spec = store.spec()
    declared = store.declared() or declare(spec)
    question = spec.question_id
    records = [r for r in store.records() if r.question_id == question]
    own = primary_metric(spec, records)
    metric = metric or own
    if metric != own and metric not in (known := metrics(records)):
        raise SpecError(f"no run of {spec.name} was scored on {metric!r}; {did_you_mean(metric, [own, *known])}")
    sample = next((s for r in records for s in r.scores if score_name(s) == metric), None)
    stored = spec.arms[spec.baseline].quantization
    bases = [r for r in records if r.trial.arm == ZERO_SHOT and r.status == "done" and r.trial.quantization == stored]
    zero = bases[-1] if bases else None
    confirmed = confirmations(records)
    failed = [r for r in confirmed if is_failed(r, zero, declared.worse_than_base_fails)]
    counts = {arm: sum(r.trial.arm == arm for r in confirmed) for arm in spec.arms}
    tried = [c for arm, c in counts.items() if c or any(r.trial.arm == arm and r.status == "done" for r in records)]
    reached = min(tried, default=0)
    seeds = max((look for look in declared.looks if look <= reached), default=reached)
    at_look = set(spec.confirm.seeds[:seeds])
    runs = [r for r in confirmed if r not in failed and r.trial.seed in at_look]
    scores = judged_scores(store, runs, metric)
    elsewhere = _made_elsewhere(spec, reached, scores)
    return Evidence(
        spec=spec,
        records=records,
        metric=metric,
        higher_is_better=sample.higher_is_better if sample else metric != LOSS,
        zero_shot=zero,
        runs=runs,
        failed=failed,
        seeds=seeds,
        alpha=look_alpha(declared.alpha, declared.looks),
        refusal=elsewhere
        or _undeclared(declared, reached)
        or _unequal_tuning(spec, records)
        or different_versions(runs),
        early=_undeclared(declared, reached),
        elsewhere=elsewhere,
        changed=[*changes(declared, spec), *([f"metric was {own} and is {metric}"] if metric != own else [])],
        scores=scores,
        chosen=metric != own,
    )


def metrics(records: Sequence[Record]) -> list[str]:
    """What confirmed runs were scored on, but for the loss that tuning saw."""
    named = dict.fromkeys(score_name(s) for r in records if r.phase == "confirm" for s in r.scores)
    return [name for name in named if name != OBJECTIVE]


def settled(evidence: Evidence) -> bool:
    """Whether every arm has a verdict at the declared look that has been reached."""
    found = evidence.against(evidence.spec.baseline, list(evidence.spec.arms))
    open_ = {"not shown", "not enough data"}
    return found is not None and bool(found.verdicts) and not any(v.label in open_ for v in found.verdicts)


def summarise(store: StudyStore, evidence: Evidence | None = None) -> Summary:
    """Read a study's results, or take what was read of them, and say what they show."""
    evidence = evidence or gather(store)
    spec, records, metric = evidence.spec, evidence.records, evidence.metric
    comparison = evidence.against(spec.baseline, list(spec.arms))
    others = [name for name in spec.arms if name != spec.baseline]
    pairs = [v for i, n in enumerate(others) if (c := evidence.against(n, others[i:])) for v in c.verdicts]
    arms = [_row(spec, name, evidence) for name in spec.arms]
    zero = evidence.zero_shot
    return Summary(
        study=spec.name,
        question=spec.question,
        metric=metric,
        higher_is_better=evidence.higher_is_better,
        margin=evidence.margin,
        level=spec.objective.level,
        zero_shot={score_name(s): s.value for s in zero.scores} if zero else {},
        majority=next((s.majority for s in zero.scores if score_name(s) == metric), None) if zero else None,
        arms=arms,
        comparison=comparison,
        loss=None
        if metric == LOSS
        else evidence.on(LOSS, spec.baseline, list(spec.arms), store, higher_is_better=False),
        pairs=pairs,
        sentence=sentence(spec.baseline, metric, comparison, evidence.higher_is_better, spec.objective.level),
        caveats=caveats(evidence, arms, records),
    )


def is_failed(record: Record, zero: Record | None, worse_than_base_fails: bool) -> bool:
    """The declared failure rule: a run that ended badly, or whose test loss is above the untrained base's."""
    if record.status != "done":
        return True
    loss, before = record.score(LOSS), zero.score(LOSS) if zero else None
    return worse_than_base_fails and loss is not None and before is not None and loss > before


def _made_elsewhere(spec: StudySpec, seeds: int, scores: pd.DataFrame) -> str | None:
    """Why results of another program may not be compared; None where they have the outcome of every item."""
    if spec.origin is None or len(scores):
        return None
    few = "one seed per arm and " if seeds <= 1 else ""
    return f"{spec.origin.tool}'s results have {few}no outcomes per question"


def _undeclared(declared: Declaration, reached: int) -> str | None:
    """Why this number of seeds may not be looked at."""
    looks = ", ".join(map(str, declared.looks))
    if reached in declared.looks:
        return None
    if reached < max(declared.looks):
        return f"{count(reached, 'confirmed seed')} per arm; the verdict is looked at after {looks}, as declared"
    return f"a look at {reached} seeds was not declared (declared: {looks}), so its error rate is unknown"


def _unequal_tuning(spec: StudySpec, records: Sequence[Record]) -> str | None:
    tuned = [r for r in outcomes(records) if r.phase == "search"]
    spent = {arm: sum(r.trial.arm == arm for r in tuned) for arm in spec.arms}
    if len(set(spent.values())) > 1:
        return "tuning budgets differ: " + ", ".join(f"{arm} {n}" for arm, n in spent.items())
    return None


def different_versions(runs: Sequence[Record]) -> str | None:
    """Why runs of several versions of the libraries may not be compared; None where they are of one."""
    versions = {tuple(sorted(r.environment.get("packages", {}).items())) for r in runs}
    if len(versions) <= 1:
        return None
    differing = sorted({name for pairs in versions for name, _ in set(pairs) - set.intersection(*map(set, versions))})
    return f"runs were made with different versions of {', '.join(differing)}"


def primary_metric(spec: StudySpec, records: Sequence[Record]) -> str:
    """The metric that is compared: the named one, else the first target task's first metric, else held-out loss."""
    if spec.objective.metric != AUTO:
        return spec.objective.metric
    asked = (r for r in records if r.phase != "search" and r.status == "done")
    targets = [score_name(s) for r in asked for s in r.scores if s.role == "target"]
    order = [task_name(t) for t in tasks_of(spec.controls)]

    def place(name: str) -> int:
        task = name.split("/")[0]
        return next((i for i, t in enumerate(order) if task == t or task.startswith(f"{t}_")), len(order))

    targets.sort(key=place)
    return targets[0] if targets else LOSS


def judged_scores(store: StudyStore, runs: Sequence[Record], metric: str) -> pd.DataFrame:
    """Per-item scores of the runs that are judged, as `compare` takes them."""
    task, _, name = metric.partition("/")
    ids = {r.trial_id for r in runs}
    columns = ["arm", "seed", "example_id", "score"]
    examples = store.table("examples", columns=[*columns, "task", "metric"], trials=ids)
    wanted = examples["task"] == task
    if name:
        wanted &= examples["metric"] == name
    return examples.loc[wanted, columns]


def sentence(
    baseline: str, metric: str, comparison: Comparison | None, higher_is_better: bool, level: str = "configurations"
) -> str:
    """What the evidence shows about the baseline against the others, and nothing more."""
    if comparison is None or not comparison.verdicts:
        return f"Not enough data: {baseline} and another arm both need confirmed runs before anything can be compared."
    items = max(v.items for v in comparison.verdicts)
    seeds = min(v.seeds for v in comparison.verdicts)
    unit = "independent tunings" if level == "methods" else "seed" if seeds == 1 else "seeds"
    return f"On {metric} over {items} items and {seeds} {unit}, {findings(baseline, comparison, higher_is_better)}."


def findings(baseline: str, comparison: Comparison, higher_is_better: bool) -> str:
    """What is shown of each arm, and what is not, as the middle of a sentence."""
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
    for reason in dict.fromkeys(v.reason for v in refused):
        arms = [v.arm for v in refused if v.reason == reason]
        who = f"{len(arms)} arms" if len(arms) > MANY else listed(arms)
        parts.append(f"nothing can be said of {who}: {reason}")
    return "; ".join(parts)


def caveats(evidence: Evidence, arms: Sequence[ArmRow], records: Sequence[Record]) -> list[str]:
    """What a reader has to know before trusting the table."""
    found = []
    origin = evidence.spec.origin
    if origin is not None:
        where = f" ({origin.url})" if origin.url else ""
        found.append(f"results of {origin.tool}, made elsewhere{where}" + (f"; {origin.note}" if origin.note else ""))
    if evidence.changed:
        found.append(f"exploratory, decided after the study began: {'; '.join(evidence.changed)}")
    if any(r.resolved.get("random_weights") for r in records):
        found.append("the base has random weights: time and memory are real, scores mean nothing")
    edge = [a.arm for a in arms if a.at_edge]
    if edge:
        found.append(
            f"best learning rate at the edge of what was tried: {', '.join(edge)}; a better one may lie beyond"
        )
    # a run that is yet to go on at a smaller micro-batch stands where it was left
    standing = {r.trial.configuration: r for some in (records, outcomes(records)) for r in some}
    lost = Counter((r.trial.arm, r.status) for r in standing.values() if r.status != "done")
    found += [
        f"{arm}: {count(runs, 'run')} {ENDED.get(status, status.replace('_', ' '))}"
        for (arm, status), runs in lost.items()
    ]
    found += [f"{arm}: {words}; the effective batch is the same" for arm, words in _smaller_batches(records).items()]
    worse = Counter(r.trial.arm for r in evidence.failed if r.status == "done")
    found += [
        f"{arm}: {n} of its runs ended worse than the untrained base, not averaged in" for arm, n in worse.items()
    ]
    return found


def _smaller_batches(records: Sequence[Record]) -> dict[str, str]:
    """By arm: at which micro-batch it was run where its own found no room."""
    words = {}
    for arm in dict.fromkeys(r.trial.arm for r in records):
        mine = [r for r in records if r.trial.arm == arm]
        without = [r for r in mine if r.status in NO_ROOM and r.goes_on]
        used = sorted({r.trial.training.per_pass for r in mine if r.status == "done" and r.trial.micro_batch})
        if without and used:
            measured = any(r.status == "out_of_memory" for r in without)
            most = max(r.trial.training.per_pass for r in without)
            reason = "was out of memory" if measured else "was forecast not to fit"
            words[arm] = f"run at micro_batch {', '.join(map(str, used))} since {most} {reason}"
    return words


def _row(spec: StudySpec, name: str, evidence: Evidence) -> ArmRow:
    arm, metric = spec.arms[name], evidence.metric
    mine = [r for r in evidence.records if r.trial.arm == name]
    search = [r for r in mine if r.phase == "search"]
    runs = [r for r in evidence.runs if r.trial.arm == name]
    failed = sum(r.trial.arm == name for r in evidence.failed)
    chosen = runs[0].trial.params.get("learning_rate") if runs else None
    rates = sorted({float(r.trial.params["learning_rate"]) for r in search if r.status == "done"})
    tried = "learning_rate" in arm.search and len(rates) > 1
    return ArmRow(
        arm=name,
        method=arm.method,
        quantization=arm.quantization,
        score=over_seeds(runs, metric),
        loss=over_seeds(runs, LOSS),
        others={k: v for k, v in _means(runs, "target").items() if k != metric},
        retention=_means(runs, "retention"),
        learning_rate=float(chosen) if chosen is not None else None,
        at_edge=tried and chosen is not None and float(chosen) in (rates[0], rates[-1]),
        micro_batch=", ".join(map(str, sorted({r.trial.training.per_pass for r in runs}))),
        peak_bytes=max((p for r in runs if (p := peak_bytes(r)) is not None), default=None),
        train_seconds=_mean([r.train.loop_seconds for r in runs if r.train]),
        tokens_per_second=_mean([r.train.tokens_per_second for r in runs if r.train and r.train.tokens_per_second]),
        energy_joules=_mean(
            [s.energy_joules for r in runs for s in r.stages if s.stage == "train" and s.energy_joules]
        ),
        search_trials=len(outcomes(search)),
        search_seconds=sum(r.seconds for r in search),
        run_seconds=[r.seconds for r in runs],
        spent_seconds=sum(r.seconds for r in mine),
        failed=failed,
        failure_rate=failure_rate(failed, failed + len(runs)),
        statuses=dict(Counter(r.status for r in mine)),
    )


def failure_rate(failed: int, runs: int) -> tuple[float, float, float] | None:
    """Share of failures with the exact 95 % interval (Clopper and Pearson 1934); None without runs."""
    if runs == 0:
        return None
    bounds = stats.binomtest(failed, runs).proportion_ci(0.95)
    return failed / runs, float(bounds.low), float(bounds.high)


def peak_bytes(record: Record) -> int | None:
    """Memory that training needed: CUDA's reserved peak where there is one, else the sum of tensors by kind."""
    reserved = [s.reserved_peak_bytes for s in record.stages if s.stage == "train" and s.reserved_peak_bytes]
    if reserved:
        return max(reserved)
    return record.memory.peak if record.memory else None


def forecast_bytes(record: Record) -> int | None:
    """What `peak_bytes` was expected to be; None without a forecast of that kind of memory."""
    forecast = record.forecast
    if forecast is None:
        return None
    if forecast.device == "cpu":
        return forecast.tensors.peak if forecast.tensors else round(forecast.allocated_bytes.mid)
    return round(forecast.reserved_bytes.mid) if forecast.reserved_bytes else None


@dataclass(frozen=True)
class ForecastError:
    """How far forecasts were from what was measured: the median of |measured - forecast| / measured."""

    runs: int
    time: float | None
    memory: float | None


def forecast_error(records: Sequence[Record]) -> ForecastError:
    """The errors over completed runs that have a forecast."""
    done = [r for r in records if r.status == "done" and r.forecast is not None]
    seconds = [(r.seconds, r.forecast.seconds.mid) for r in done if r.forecast is not None]
    sizes = [(peak_bytes(r), forecast_bytes(r)) for r in done]
    return ForecastError(len(done), _relative(seconds), _relative([(m, f) for m, f in sizes if m and f]))


def _relative(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Median of the relative distance between measured and forecast."""
    return median(abs(m - f) / m for m, f in pairs if m > 0) if any(m > 0 for m, _ in pairs) else None


def over_seeds(records: Sequence[Record], metric: str) -> Measured | None:
    """A score's mean over runs with its interval; None where none has it."""
    values = [v for r in records if (v := r.score(metric)) is not None]
    if not values:
        return None
    bounds = mean_interval(values)
    low, high = bounds[1:] if bounds else (None, None)
    return Measured(sum(values) / len(values), low, high, len(values))


def _means(records: Sequence[Record], role: str) -> dict[str, float]:
    """Mean over runs of every score of a role, the first metric of a task only."""
    names: dict[str, str] = {}
    for record in records:
        for score in record.scores:
            if score.role == role:
                names.setdefault(score.task, score_name(score))
    wanted = names.values()
    return {n: m for n in wanted if (m := _mean([v for r in records if (v := r.score(n)) is not None])) is not None}


def score_name(score: Score) -> str:
    """What a score is called: `task/metric`, or the loss."""
    return score.task if score.role == "loss" else f"{score.task}/{score.metric}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _difference(verdict: Verdict) -> str:
    bounds = verdict.interval
    return f"{bounds.difference:+.3f} [{bounds.low:+.3f}, {bounds.high:+.3f}]" if bounds else ""


def _listed(verdicts: Sequence[Verdict]) -> str:
    return listed([f"{v.arm} ({_difference(v)})" for v in verdicts])


def _leans(verdict: Verdict, words: str, higher_is_better: bool) -> bool:
    """Whether the interval leaves out zero, though not the whole margin, on the worse or the better side."""
    bounds = verdict.interval
    assert bounds is not None
    below, above = bounds.high < 0, bounds.low > 0
    return (below if higher_is_better else above) if words == "worse" else (above if higher_is_better else below)


def _is(some: Sequence[Any]) -> str:
    return "is" if len(some) == 1 else "are"
