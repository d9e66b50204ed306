"""The answer about bit-widths: for each question the lowest one that holds against the widest, by the usual verdict.

    base     the base as it is, its weights stored at each bit-width of `serve.at`
    trained  arms of one method, each trained on a base stored at another bit-width
    served   an arm's confirmed runs, stored at each bit-width of `serve.at` after training, in one of two ways

What is noise differs. Nothing is drawn in storing a base, so its items are the unit and the claim is about this base.
Arms are trained each by itself: seeds and items, as in every comparison of arms. A served model is seed by seed the
same model stored in several ways, so the difference of each seed is the unit, over the same items.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError

from harness import plugins, serving
from harness.compare import Comparison, Interval, Runs, compare, refuse
from harness.errors import PluginError, SpecError
from harness.intervals import fixed
from harness.power import settle
from harness.record import Record, outcomes
from harness.spec import Arm, Dtype, Scalar, Served, StudySpec
from harness.speed import Figures, figures
from harness.store import StudyStore
from harness.summary import (
    LOSS,
    Evidence,
    Measured,
    different_versions,
    findings,
    gather,
    over_seeds,
    peak_bytes,
    score_name,
    summarise,
)

Kind = Literal["base", "trained", "served"]
Answer = Literal["shown", "widest", "open"]
"""A narrower bit-width is shown to hold; every narrower one is shown to be worse; neither."""

RETENTION = "retention"
KL = "kl_unquantized"
DIVERGENCES = (KL, "kl_merged", "kl_requantized")
ASKED = {
    "base": "The base, stored at each bit-width",
    "trained": "{subject} trained on each bit-width",
    "merged": "{subject} served at each bit-width, merged and then stored",
    "adapter": "{subject} served at each bit-width, its adapter beside the stored base",
}
"""Questions by kind, or by how an arm is served."""
MANY = 3
"""More bit-widths than this of one method, and a study says at its end what they show."""


@dataclass(frozen=True)
class Measure:
    """What bit-widths are compared on."""

    name: str
    parts: list[tuple[str, str]]
    """Task and metric of what is pooled; every item counts the same."""
    higher_is_better: bool
    margin: float
    """0 where none was declared in this unit: better and worse can be shown then, equivalent cannot."""


@dataclass(frozen=True)
class Width:
    """One bit-width within a question. What is not measured is None."""

    name: str
    """As the study calls it: a key of `serve.at`, or an arm."""
    quantization: str
    params: dict[str, Scalar]
    bits_stored: float | None
    """Bits per quantized weight with scales and zeros; None where its plugin is not installed here."""
    runs: int
    lost: dict[str, int]
    """Runs that did not end well, by status."""
    scores: dict[str, Measured]
    """By measure: over items for the base, over seeds else."""
    divergence: dict[str, float]
    """Nats per token, by kind of KL."""
    stored_bytes: int | None
    disk_bytes: int | None
    train_peak_bytes: int | None
    train_seconds: float | None
    odd: list[str]
    """On which measures it does better than which wider one of its family, beyond the interval: not expected."""


@dataclass(frozen=True)
class Needed:
    """What would settle an open bit-width."""

    name: str
    seeds: int
    items: int
    chance: float
    hours: float


@dataclass(frozen=True)
class Finding:
    """What is shown on one measure."""

    measure: Measure
    comparison: Comparison | None
    """None before the widest is measured."""
    answer: Answer
    lowest: str | None
    """The lowest bit-width that holds; the widest itself where every narrower one is worse."""
    sentence: str
    needed: list[Needed]
    too_close: list[str]
    """For which no reasonable number of runs brings a verdict."""


@dataclass(frozen=True)
class Question:
    kind: Kind
    subject: str | None
    """The method that is trained, or the arm that is served."""
    way: str | None
    """How it is served: `merged` and then stored, or its `adapter` beside the stored base."""
    reference: str
    """What the others are compared with."""
    widths: list[Width]
    """The widest first."""
    findings: list[Finding]
    """The first one is the answer."""
    skipped: list[str]
    """Measures on which nothing can be lost, and why."""

    @property
    def title(self) -> str:
        return ASKED[self.way or self.kind].format(subject=self.subject)

    @property
    def answer(self) -> Answer:
        return self.findings[0].answer

    @property
    def lowest(self) -> str | None:
        return self.findings[0].lowest


@dataclass(frozen=True)
class Ways:
    """An arm at one bit-width: merged and then stored, minus its adapter beside the stored base."""

    arm: str
    name: str
    interval: Interval


@dataclass(frozen=True)
class Bits:
    study: str
    metric: str
    margin: float
    questions: list[Question]
    ways: list[Ways]
    speeds: list[Figures]
    """How fast the base answers, shape by shape; beside the widest."""
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        whole = asdict(self)
        for said, question in zip(whole["questions"], self.questions, strict=True):
            said |= {"answer": question.answer, "lowest": question.lowest}
        return whole


@dataclass(frozen=True)
class _Case:
    """A question before it is answered: which runs belong to which bit-width, and how they may be compared."""

    kind: Kind
    subject: str | None
    way: str | None
    reference: str
    stored: dict[str, Served]
    """How weights are stored, by bit-width, the widest first."""
    runs: dict[str, list[Record]]
    lost: dict[str, list[Record]]
    pairing: Runs
    alpha: float
    refusal: str | None
    before: list[Record]
    """The runs that trained what is served."""


def answer(store: StudyStore, evidence: Evidence | None = None, caveats: list[str] | None = None) -> Bits:
    """What a study shows about bit-widths.

    Args:
        evidence: on the study's own metric, where it was read before, with the caveats of its summary.

    Raises:
        SpecError: it asks nothing about them.
    """
    evidence = evidence or gather(store)
    spec = evidence.spec
    if not asks(spec):
        raise SpecError(
            f"{spec.name} asks nothing about bit-widths: it has no serve.at, and no method on several quantizations",
            f"harness show {spec.name}",
        )
    examples = store.table("examples")
    cases = [*_base(evidence), *_trained(evidence), *_served(evidence)]
    return Bits(
        study=spec.name,
        metric=evidence.metric,
        margin=spec.objective.margin,
        questions=[_question(case, evidence, examples) for case in cases],
        ways=_ways([c for c in cases if c.kind == "served"], evidence, examples),
        speeds=_speeds(evidence),
        notes=summarise(store, evidence).caveats if caveats is None else caveats,
    )


def to_settle(question: Question, finding: Finding, study: str) -> list[str]:
    """What would settle the bit-widths that a finding leaves open, a sentence each."""
    base, lines = question.kind == "base", []
    for n in finding.needed:
        runs = f"{n.items} items" if base else f"{n.seeds} seeds on {n.items} items"
        lines.append(f"to settle {n.name}: {runs}, {n.hours:.2f} h ({n.chance:.0%})")
    if finding.needed:
        more = "more items (controls.evaluate, controls.data)" if base else "fresh confirm.seeds"
        lines.append(f"run them as a study of its own: name={study}-next and {more}")
    if finding.too_close:
        lines.append(f"{', '.join(finding.too_close)}: too close to call with a sensible number of runs")
    return lines


def asks(spec: StudySpec, more_than: int = 1) -> bool:
    """Whether a study is about bit-widths: it stores models in several ways, or trains a method on more of them."""
    return bool(spec.serve.at) or any(len(arms) > more_than for arms in _grids(spec))


def bits_stored(served: Served, compute: Dtype) -> float | None:
    """Bits per quantized weight with scales and zeros; None where the plugin is not installed here."""
    try:
        plugin = plugins.quantization(served.quantization)
        return plugin.bits_stored(plugin.params.model_validate(served.params), compute)
    except (PluginError, ValidationError):
        return None


def _base(evidence: Evidence) -> Iterator[_Case]:
    """The base at each bit-width."""
    spec = evidence.spec
    if not spec.serve.at or not spec.serve.base:
        return
    some = [r for r in _stored_as_now(evidence) if r.trial.served is not None and r.trial.served.way == "base"]
    yield _stored_case("base", None, None, some, evidence, "one", spec.objective.alpha, None, [])


def _served(evidence: Evidence) -> Iterator[_Case]:
    """Each served arm in each way, of its judged runs alone."""
    records = [r for r in _stored_as_now(evidence) if r.trial.served is not None and r.trial.served.of is not None]
    for arm in serving.served_arms(evidence.spec) if evidence.spec.serve.at else ():
        trained = [r for r in evidence.runs if r.trial.arm == arm]
        judged = {r.trial_id for r in trained}
        for way in evidence.spec.serve.ways:
            some = [r for r in records if (s := r.trial.served) is not None and s.way == way and s.of in judged]
            yield _stored_case("served", arm, way, some, evidence, "shared", evidence.alpha, evidence.early, trained)


def _stored_as_now(evidence: Evidence) -> list[Record]:
    """What was run after training, stored as the study file says now."""
    at = evidence.spec.serve.at
    return [
        r
        for r in outcomes(evidence.records)
        if (s := r.trial.served) is not None and at.get(s.name) == Served(quantization=s.quantization, params=s.params)
    ]


def _stored_case(
    kind: Kind,
    subject: str | None,
    way: str | None,
    records: Sequence[Record],
    evidence: Evidence,
    pairing: Runs,
    alpha: float,
    refusal: str | None,
    before: list[Record],
) -> _Case:
    at = evidence.spec.serve.at
    named = {name: [r for r in records if r.trial.served is not None and r.trial.served.name == name] for name in at}
    done = {name: [r for r in some if r.status == "done"] for name, some in named.items()}
    lost = {name: [r for r in some if r.status != "done"] for name, some in named.items()}
    return _Case(
        kind, subject, way, next(iter(at)), _by_bits(at, evidence.spec), done, lost, pairing, alpha,
        refusal or different_versions([r for some in done.values() for r in some]), before,
    )  # fmt: skip


def _trained(evidence: Evidence) -> Iterator[_Case]:
    """Each method that is trained on several quantizations, its other parameters being the same."""
    spec = evidence.spec
    for arms in _grids(spec):
        runs = {name: [r for r in evidence.runs if r.trial.arm == name] for name in arms}
        stored = {name: _stored(spec.arms[name], runs[name]) for name in arms}
        stored = _by_bits(stored, spec)
        lost = {name: [r for r in evidence.failed if r.trial.arm == name] for name in arms}
        reference = spec.baseline if spec.baseline in arms else next(iter(stored))
        method = spec.arms[reference].method
        yield _Case("trained", method, None, reference, stored, runs, lost, "own", evidence.alpha, evidence.refusal, [])


def _grids(spec: StudySpec) -> list[list[str]]:
    """Arms that differ in their quantization alone, and in what was tuned."""
    groups: dict[Any, list[str]] = {}
    for name, arm in spec.arms.items():
        groups.setdefault(_trained_as(arm), []).append(name)
    several = (g for g in groups.values() if len({_key(_stored(spec.arms[n], [])) for n in g}) > 1)
    return list(several)


def _trained_as(arm: Arm) -> Any:
    """The method with its parameters, defaults included; which of them are tuned, but not how far."""
    try:
        params = plugins.split_params(arm.method, arm.quantization, arm.params)[0].model_dump()
    except (PluginError, SpecError):  # of a package that is not here
        params = {k: v for k, v in arm.params.items() if k != "learning_rate"}
    given = {k: repr(v) for k, v in params.items() if k not in arm.search}
    return arm.method, tuple(sorted(given.items())), tuple(sorted(set(arm.search) & set(params)))


def _stored(arm: Arm, runs: Sequence[Record]) -> Served:
    """How an arm's base is stored; parameters that were searched are those that tuning chose."""
    params = runs[0].trial.params if runs else arm.params
    try:
        own = plugins.quantization(arm.quantization).params.model_fields
    except PluginError:
        own = {}
    return Served(quantization=arm.quantization, params={k: v for k, v in params.items() if k in own})


def _key(served: Served) -> Any:
    return served.quantization, tuple(sorted(served.params.items()))


def _by_bits(stored: Mapping[str, Served], spec: StudySpec) -> dict[str, Served]:
    """The widest first; what is not known here comes last."""
    compute = spec.controls.train.compute_dtype
    return dict(sorted(stored.items(), key=lambda item: -(bits_stored(item[1], compute) or 0.0)))


def _question(case: _Case, evidence: Evidence, examples: pd.DataFrame) -> Question:
    measures, skipped = _measures(case, evidence)
    bits = {name: bits_stored(s, evidence.spec.controls.train.compute_dtype) for name, s in case.stored.items()}
    odd = _odd(case, [*measures, Measure(KL, [(KL, "kl")], False, 0.0)], examples)
    shown = list({m.name: m for m in (Measure(LOSS, [_parts(LOSS)], False, 0.0), *measures)}.values())
    return Question(
        kind=case.kind,
        subject=case.subject,
        way=case.way,
        reference=case.reference,
        widths=[_width(case, name, bits[name], shown, odd.get(name, []), examples) for name in case.stored],
        findings=[_finding(case, m, bits, evidence, examples) for m in measures],
        skipped=skipped,
    )


def _measures(case: _Case, evidence: Evidence) -> tuple[list[Measure], list[str]]:
    """What a question is judged on, the answer first, and what it cannot be judged on.

    A base is also held to what it can do before training, for what it is to learn it may not do at all.
    """
    metric, better, margin = evidence.metric, evidence.higher_is_better, evidence.spec.objective.margin
    main = Measure(metric, [_parts(metric)], better, margin)
    loss = [Measure(LOSS, [_parts(LOSS)], False, 0.0)] if metric != LOSS else []
    if case.kind != "base":
        return [main, *loss], []
    sample = next(iter(case.runs[case.reference]), None)
    kept = {s.task: s.metric for s in reversed(sample.scores if sample else []) if s.role == "retention"}
    same_unit = margin if better else 0.0
    retained = [Measure(RETENTION, sorted(kept.items()), True, same_unit)] if kept else []
    at = _at_floor(sample, main)
    if at is None:
        return [main, *retained, *loss], []
    skipped = [f"{metric}: {case.reference} is at {at:.3g}, no more than the margin above a guess"]
    if not retained:
        return loss, skipped
    return retained, [*skipped, f"{LOSS}: the base has not learned such rows, and what blurs it may lower its loss"]


def _at_floor(sample: Record | None, measure: Measure) -> float | None:
    """The base's score where it could lose no more than the margin, for a guess would have the rest too."""
    score = next((s for s in sample.scores if score_name(s) == measure.name), None) if sample else None
    if score is None or score.role == "loss" or not score.higher_is_better:
        return None
    return score.value if score.value - (score.majority or 0.0) <= measure.margin else None


def _parts(metric: str) -> tuple[str, str]:
    task, _, name = metric.partition("/")
    return task, name or "loss"


def _scores(case: _Case, measure: Measure, examples: pd.DataFrame) -> pd.DataFrame:
    """Per item, seed and bit-width, as `compare` takes them."""
    columns = ["arm", "seed", "example_id", "score"]
    if not len(examples):
        return pd.DataFrame(columns=columns)
    names = {r.trial_id: name for name in case.stored for r in case.runs[name]}
    order = list(case.stored)
    found = examples[examples["trial_id"].isin(names)]
    found = pd.concat([found[(found["task"] == task) & (found["metric"] == m)] for task, m in measure.parts])
    found["arm"] = found["trial_id"].map(names)
    found["example_id"] = found["task"] + "/" + found["example_id"]  # two tasks may count their items alike
    return found[columns].sort_values("arm", key=lambda a: a.map(order.index), kind="stable")


def _compared(case: _Case, measure: Measure, scores: pd.DataFrame, baseline: str | None = None) -> Comparison | None:
    against = baseline or case.reference
    if against not in set(scores["arm"]):
        return None
    found = compare(
        scores, against, measure.margin, case.alpha, higher_is_better=measure.higher_is_better, runs=case.pairing
    )
    return refuse(found, case.refusal) if case.refusal else found


def _finding(
    case: _Case, measure: Measure, bits: Mapping[str, float | None], evidence: Evidence, examples: pd.DataFrame
) -> Finding:
    found = _compared(case, measure, _scores(case, measure, examples))
    if found is None or not found.verdicts:
        missing = case.reference if found is None else "another bit-width"
        text = f"Not enough data: {missing} is not measured yet."
        return Finding(measure, found, "open", None, text, [], [])
    widest = bits[case.reference] or 0.0
    narrower = [v for v in found.verdicts if (b := bits[v.arm]) is not None and b < widest]
    holding = [v.arm for v in narrower if v.label in {"equivalent", "better"}]
    lowest = min(holding, key=lambda name: bits[name] or 0.0, default=None)
    kind: Answer = "shown" if lowest else "open"
    if narrower and all(v.label == "worse" for v in narrower) and len(found.verdicts) == len(case.stored) - 1:
        lowest, kind = case.reference, "widest"
    plans = {v.arm: settle(v.noise, measure.margin, case.alpha) for v in narrower if v.label == "not shown" and v.noise}
    if not measure.margin:
        plans = {}  # at no margin it is a remark, not a question that was asked
    return Finding(
        measure=measure,
        comparison=found,
        answer=kind,
        lowest=lowest,
        sentence=_sentence(case, found, measure, kind, lowest, bits, evidence.spec.objective.level),
        needed=[
            Needed(n, p.seeds, p.items, p.chance, _hours(case, n, p.seeds, p.items, found))
            for n, p in plans.items()
            if p
        ],
        too_close=[name for name, plan in plans.items() if plan is None],
    )


def _sentence(
    case: _Case,
    found: Comparison,
    measure: Measure,
    kind: Answer,
    lowest: str | None,
    bits: Mapping[str, float | None],
    level: str,
) -> str:
    if case.refusal:
        return f"Nothing is shown yet: {case.refusal}."
    unit = "independent tunings" if level == "methods" else "seeds"
    over = f"{max(v.items for v in found.verdicts)} items"
    over += "" if case.pairing == "one" else f" and {min(v.seeds for v in found.verdicts)} {unit}"
    if not measure.margin:
        return f"On {measure.name} over {over}, for which no margin is declared, {_apart(case, found)}."
    if kind == "shown" and lowest is not None:
        head = _holding(found, lowest, bits) + f" of {measure.name}"
    elif kind == "widest":
        head = f"Every bit-width below {case.reference} is shown to be worse by more than {measure.margin:g}"
        head += f" of {measure.name}"
    else:
        head = f"No bit-width below {case.reference} is shown to be equivalent to it within {measure.margin:g}"
        head += f" of {measure.name}"
    about = " This is about this base: only its items were drawn." if case.pairing == "one" else ""
    return f"{head}. Over {over}, {findings(case.reference, found, measure.higher_is_better)}.{about}"


def _holding(found: Comparison, lowest: str, bits: Mapping[str, float | None]) -> str:
    """That the lowest one holds, and which of the wider ones are not shown to."""
    label, margin, widest = found[lowest].label, found.margin, found[lowest].baseline
    words = f"equivalent to {widest} within {margin:g}"
    if label == "better":
        words = f"better than {widest} by more than {margin:g}"
    wider = [v for v in found.verdicts if (bits[v.arm] or 0) > (bits[lowest] or 0)]
    doubtful = [v.arm for v in wider if v.label not in {"equivalent", "better"}]
    but = f" (though of the wider ones {', '.join(doubtful)} {_is(doubtful)} not)" if doubtful else ""
    return f"{lowest} is the lowest bit-width ({bits[lowest]:.3g} bits stored) shown{but} to be {words}"


def _apart(case: _Case, found: Comparison) -> str:
    """What is shown to be better or worse, where nothing can be shown to be equivalent."""
    parts = []
    for label in ("worse", "better"):
        some = [v for v in found.verdicts if v.label == label and v.interval]
        named = [f"{v.arm} ({v.interval.difference:+.3f})" for v in some if v.interval]
        if named:
            parts.append(f"{', '.join(named)} {_is(named)} shown to be {label} than {case.reference}")
    return "; ".join(parts) or f"nothing is shown to be better or worse than {case.reference}"


def _is(some: Sequence[object]) -> str:
    return "is" if len(some) == 1 else "are"


def _hours(case: _Case, name: str, seeds: int, items: int, found: Comparison) -> float:
    """Of the runs that would settle a bit-width: on more items all are made again, else only what is added."""
    now = found[name]
    each = sum(fmean(r.seconds for r in some) for some in (case.runs[name], case.runs[case.reference]) if some)
    each += fmean(r.seconds for r in case.before) if case.before else 0.0
    again = items > now.items
    return each * (seeds if again else max(seeds - now.seeds, 0)) * items / now.items / 3600


def _width(
    case: _Case, name: str, bits: float | None, measures: Sequence[Measure], odd: list[str], examples: pd.DataFrame
) -> Width:
    runs, stored = case.runs[name], case.stored[name]
    lost: dict[str, int] = {}
    for record in case.lost[name]:
        why = "worse than the base" if record.status == "done" else record.status.replace("_", " ")
        lost[why] = lost.get(why, 0) + 1
    divergences = {k: [v for r in runs if (v := r.score(k)) is not None] for k in DIVERGENCES}
    trained = runs if case.kind == "trained" else []
    return Width(
        name=name,
        quantization=stored.quantization,
        params=stored.params,
        bits_stored=bits,
        runs=len(runs),
        lost=lost,
        scores={m.name: s for m in measures if (s := _measured(case, m, name, examples)) is not None},
        divergence={k: fmean(v) for k, v in divergences.items() if v},
        stored_bytes=max((r.stored_bytes for r in runs if r.stored_bytes is not None), default=None),
        disk_bytes=max((r.disk_bytes for r in runs if r.disk_bytes is not None), default=None),
        train_peak_bytes=max((p for r in trained if (p := peak_bytes(r)) is not None), default=None),
        train_seconds=fmean(times) if (times := [r.train.loop_seconds for r in trained if r.train]) else None,
        odd=odd,
    )


def _measured(case: _Case, measure: Measure, name: str, examples: pd.DataFrame) -> Measured | None:
    """Mean and interval: over items for a base, which has no seeds, and over seeds else."""
    if case.pairing != "one":
        return over_seeds(case.runs[name], measure.name)
    scores = _scores(replace(case, stored={name: case.stored[name]}), measure, examples)["score"].to_numpy(float)
    if len(scores) < 2:
        return None
    found = fixed(scores[None, :], 0 * scores[None, :])
    return Measured(found.value, *found.bounds(case.alpha), 1)


def _odd(case: _Case, measures: Sequence[Measure], examples: pd.DataFrame) -> dict[str, list[str]]:
    """Where a bit-width does better than a wider one of its family, beyond the interval of the two alone."""
    found: dict[str, list[str]] = {}
    pairs = [(n, w) for n in case.stored for w in case.stored if _wider(case.stored[w], case.stored[n])]
    for measure in measures if pairs and not case.refusal else ():
        scores = _scores(case, measure, examples)
        for name, wide in pairs:
            two = _compared(case, replace(measure, margin=0.0), scores[scores["arm"].isin([name, wide])], wide)
            if two is not None and any(v.label == "better" for v in two.verdicts):
                found.setdefault(name, []).append(f"better than {wide} on {measure.name}")
    return found


def _wider(a: Served, b: Served) -> bool:
    """Whether theory says that a is at least as good as b: one family, more bits in the codes, all else the same."""
    try:
        wide, narrow = (plugins.quantization(x.quantization) for x in (a, b))
        same = wide.params.model_validate(a.params).model_dump() == narrow.params.model_validate(b.params).model_dump()
    except (PluginError, ValidationError):
        return False
    return _family(a) == _family(b) and same and wide.bits > narrow.bits


def _family(served: Served) -> str:
    return re.sub(r"\d+$", "", served.quantization)


def _ways(cases: Sequence[_Case], evidence: Evidence, examples: pd.DataFrame) -> list[Ways]:
    """Merged and then stored against the adapter beside the stored base, at each bit-width where both were run."""
    metric = evidence.metric
    measure = Measure(metric, [_parts(metric)], evidence.higher_is_better, 0.0)
    found = []
    for arm in dict.fromkeys(c.subject for c in cases):
        by_way = {c.way: c for c in cases if c.subject == arm}
        if set(by_way) != {"merged", "adapter"} or arm is None:
            continue
        for name, stored in by_way["merged"].stored.items():
            runs = {way: case.runs[name] for way, case in by_way.items() if way is not None}
            both = replace(by_way["merged"], reference="adapter", stored=dict.fromkeys(runs, stored), runs=runs)
            compared = _compared(both, measure, _scores(both, measure, examples))
            found += [Ways(arm, name, v.interval) for v in (compared.verdicts if compared else []) if v.interval]
    return found


def _speeds(evidence: Evidence) -> list[Figures]:
    """Of the latest trial that timed the bit-widths as they are stored now."""
    spec = evidence.spec
    timed = [r for r in evidence.records if r.phase == "speed" and r.status == "done"]
    now = [r for r in timed if r.trial.timed is not None and r.trial.timed.at == spec.serve.at]
    if not now:
        return []
    order = list(spec.serve.at)
    some = sorted(now[-1].speeds, key=lambda s: (s.batch, s.context, order.index(s.served)))
    return figures(some, order[0], spec.prices.per_hour)
