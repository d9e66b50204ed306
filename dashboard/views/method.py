"""Can I trust this: what is measured, how verdicts are made, what was declared, and what the runs were made with."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dashboard.views.banner import Banner
from dashboard.views.settings import value as setting
from harness import __version__, metrics
from harness.compare import Comparison
from harness.decision import Decision
from harness.environment import described
from harness.protocol import Declaration, declare
from harness.record import OBJECTIVE, Record
from harness.spec import AUTO, StudySpec
from harness.store import StudyStore
from harness.summary import Evidence, peak_bytes, score_name
from harness.trial import ZERO_SHOT
from harness.units import money, percent
from harness.wording import ROLES, difference
from harness.words import capital, count

DECLARED = {
    "level": "What is claimed of",
    "metric": "Metric",
    "margin": "Margin",
    "baseline": "Compared with",
    "alpha": "Alpha, two-sided, all looks together",
    "looks": "Looked at after seeds per arm",
    "trials": "Tuning trials per arm",
    "tunings": "Independent tunings per arm",
    "worse_than_base_fails": "A run worse than the untrained base fails",
}
"""What is declared, by its key, as a reader sees it."""


@dataclass(frozen=True)
class Rule:
    """One rule of the verdict, and what it comes to in this study."""

    name: str
    rule: str
    here: str


@dataclass(frozen=True)
class Tables:
    """What takes a pass over all records, made once for a study and its limits."""

    banner: Banner
    definitions: pd.DataFrame
    hashes: pd.DataFrame
    tasks: pd.DataFrame
    versions: pd.DataFrame
    machines: pd.DataFrame
    limits: list[str]
    citation: str


def tables(evidence: Evidence, decision: Decision, store: StudyStore, declared: Declaration | None) -> Tables:
    return Tables(
        banner=banner(evidence, declared),
        definitions=definitions(evidence, decision),
        hashes=hashes(evidence, store, declared),
        tasks=tasks(evidence, decision),
        versions=versions(evidence.records),
        machines=machines(evidence.records),
        limits=limits(evidence),
        citation=citation(evidence, declared),
    )


def banner(evidence: Evidence, declared: Declaration | None) -> Banner:
    """Whether the numbers may be trusted, in one sentence."""
    origin = evidence.spec.origin
    made = _made_with(evidence.records)
    if origin:
        note = f" {_sentence(origin.note)}" if origin.note else ""
        sentence = f"{origin.tool} made these results elsewhere, and nothing was declared to harness before; {made}."
        return Banner("Made elsewhere", ":material/public:", "gray", sentence, [f"{_why(evidence)}{note}".strip()])
    if not evidence.records:
        return Banner("No run yet", ":material/hourglass_empty:", "orange", f"{_declared(declared)}; no run yet.", [])
    details = [_sentence(line) for line in evidence.changed]
    if evidence.refusal:
        details.append(_why(evidence))
    looks = ("Declared and unchanged", ":material/verified:", "green")
    if evidence.changed:
        looks = ("Exploratory", ":material/explore:", "orange")
    elif declared is None:
        looks = ("Not declared", ":material/help:", "orange")
    elif evidence.refusal:
        looks = ("No verdict yet", ":material/hourglass_top:", "orange")
    changed = "changed since" if evidence.changed else "unchanged since"
    first = f"{_declared(declared)} and {changed}" if declared else _declared(declared)
    return Banner(*looks, f"{first}; {made}.", details)


def _declared(declared: Declaration | None) -> str:
    if declared is None:
        return "This study is older than declarations"
    return f"Declared before the first run, on {declared.declared_at:%Y-%m-%d %H:%M} UTC"


def _why(evidence: Evidence) -> str:
    return f"There is no verdict: {evidence.refusal}." if evidence.refusal else ""


def _sentence(text: str) -> str:
    return capital(text).rstrip(".") + "."


def _made_with(records: Sequence[Record]) -> str:
    """`41 runs with one version of every library on one machine`."""
    runs = count(len(records), "run")
    differing = [name for name, found in packages(records).items() if len(found) > 1]
    versions = f"several versions of {', '.join(differing)}" if differing else "one version of every library"
    if not packages(records):
        versions = "versions that were not kept"
    machines = len(machines_of(records))
    return f"{runs} with {versions} on {'one kind' if machines == 1 else f'{machines} kinds'} of machine"


def packages(records: Iterable[Record]) -> dict[str, Counter[str]]:
    """How many runs were made with each version of a package."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        for name, version in record.environment.get("packages", {}).items():
            if version is not None:
                found.setdefault(str(name), Counter())[str(version)] += 1
    return dict(sorted(found.items()))


def machines_of(records: Iterable[Record]) -> Counter[str]:
    """How many runs were made on each kind of machine."""
    return Counter(described(r.environment) for r in records)


def definitions(evidence: Evidence, decision: Decision) -> pd.DataFrame:
    """What each number of the other pages is, and how many runs have it."""
    records = [r for r in evidence.records if r.status == "done"]
    trained = [r for r in records if r.train is not None]
    foreign = evidence.spec.origin
    rows = [
        (
            "Quality",
            f"{metrics.plain(decision.metric)}: mean over its items, then over seeds. Intervals are 95 %.",
            _share(records, lambda r: r.score(decision.metric) is not None),
        ),
        (
            "Held-out loss",
            "Mean over rows of the mean negative log-likelihood per answer token, in nats per token: every row counts "
            "the same, whatever its length. Tuning sees the validation rows, confirmed runs the test rows.",
            _share(records, lambda r: any(s.role == "loss" for s in r.scores)),
        ),
        ("Peak memory", _memory(records, foreign.tool if foreign else None), _share(trained, _has_peak)),
        (
            "Tokens per second",
            "Real tokens, padding not counted, over the time of the optimizer steps alone. The first 3 steps are left "
            "out, or half of the steps when there are fewer than 6."
            if not foreign
            else f"As {foreign.tool} counts them.",
            _share(trained, lambda r: r.train is not None and r.train.tokens_per_second is not None),
        ),
        (
            "Time of a run",
            "Wall clock of the whole run, evaluation included, without the start of its process. The device is "
            "synchronized before and after a stage and after every optimizer step."
            if not foreign
            else f"Wall clock of the whole run, as {foreign.tool} has it.",
            _share(records, lambda r: True),
        ),
        (
            "Training time",
            "The optimizer steps alone, without setting the trainer up and measuring one step's memory."
            if not foreign
            else f"The steps of training, as {foreign.tool} has them.",
            _share(trained, lambda r: True),
        ),
        (
            "Cost of a run",
            "Hours of a run over the share of its runs that succeed, times the price of an hour"
            + (
                f": {money(decision.per_hour, decision.currency)}."
                if decision.per_hour is not None
                else ". No price is set, so costs are in hours."
            ),
            _share(records, lambda r: True),
        ),
        (
            "Energy",
            "Of the whole board while training, other processes included, by the driver's counter.",
            _share(trained, lambda r: any(s.energy_joules for s in r.stages)),
        ),
        (
            "Forecast",
            "What a run was expected to need, made before it ran and kept beside what was measured.",
            _share(records, lambda r: r.forecast is not None),
        ),
    ]
    return pd.DataFrame(rows, columns=["Number", "What it is", "Runs that have it"])


def _memory(records: Sequence[Record], tool: str | None) -> str:
    if tool:
        return f"The highest that the allocator reserved in the run, as {tool} has it."
    if any(s.reserved_peak_bytes for r in records for s in r.stages):
        return (
            "The most that PyTorch's allocator held (reserved) while training; what earlier stages had held is given "
            "back before. The highest over an arm's confirmed runs."
        )
    return (
        "A sum of tensors: base, adapter and optimizer counted exactly, and one forward and backward pass on the "
        "longest rows measured by the profiler. Temporaries of the optimizer's step are not in it. The highest over "
        "an arm's confirmed runs."
    )


def _has_peak(record: Record) -> bool:
    return peak_bytes(record) is not None


def _share(records: Sequence[Record], has: Callable[[Record], bool]) -> str:
    count = sum(map(has, records))
    return f"{count} of {len(records)}" if count else "none"


def rules(evidence: Evidence, declared: Declaration | None, comparison: Comparison | None) -> list[Rule]:
    """How a verdict is made, each rule with the values of this study."""
    spec = evidence.spec
    promised = declared or declare(spec)
    seeds = ", ".join(map(str, spec.confirm.seeds))
    others = len(spec.arms) - 1
    found = [
        Rule(
            "Tuned alike",
            "Every arm has the same number of trials, those that went wrong included. They see validation rows only.",
            f"{count(promised.trials, 'trial')} per arm"
            + (f" and each of {promised.tunings} tunings" if promised.tunings > 1 else "")
            + f", with seed {spec.search.seed}.",
        ),
        Rule(
            "Judged on fresh seeds",
            "The best configuration of an arm is run again on seeds that tuning never saw, the same for every arm. "
            "Only these runs are compared, on the same items.",
            f"Seeds {seeds}; {_items(comparison)}.",
        ),
        Rule(
            "An interval from seeds and items",
            "The variance of a difference is that over the seeds of both arms plus that over the items, so neither "
            "alone can make it look certain: V = v(A)/S(A) + v(B)/S(B) + V(items), and the interval is the difference "
            "± t √V, with Welch-Satterthwaite degrees of freedom.",
            _worked(comparison, evidence.alpha),
        ),
        Rule(
            "A margin",
            "Better: the whole interval lies above the margin. Worse: below its negative. Equivalent: within both. "
            "Else not shown. Not enough data: there is no interval.",
            f"{promised.margin:g} in units of the metric"
            + (", so nothing can be shown to be equivalent." if promised.margin == 0 else "."),
        ),
        Rule(
            "Looked at when declared",
            "Verdicts are given at the declared numbers of seeds only. Several looks share one alpha, so each has a "
            "smaller one.",
            f"After {' and '.join(map(str, promised.looks))} seeds; alpha {promised.alpha:g} in all, "
            f"{evidence.alpha:g} at a look. Now at {evidence.seeds} seeds.",
        ),
        Rule(
            "Several arms",
            "The p values are adjusted by Holm's method: the smallest is multiplied by the number of arms, the next by "
            "one less, and none falls below the one before. The intervals printed are not adjusted.",
            f"{count(others, 'arm')} against {promised.baseline}: "
            + (f"the smallest p is multiplied by {others}." if others > 1 else "nothing to adjust."),
        ),
        Rule(
            "Failures are counted",
            "A run that diverged, ran out of memory, was killed"
            + (", or ended worse than the untrained base" if promised.worse_than_base_fails else "")
            + " is not averaged in. It is counted with an exact interval (Clopper and Pearson 1934), and priced.",
            f"{len(evidence.failed)} failed, {len(evidence.runs)} judged.",
        ),
        Rule(
            "What is claimed",
            "About methods: each independent tuning is one unit."
            if promised.level == "methods"
            else "About these tuned configurations, not about methods in general: seeds of one tuned winner say "
            "nothing about how the next tuning would end.",
            f"One model, one data set: {spec.controls.model.id} on {spec.controls.data.path}.",
        ),
    ]
    if spec.origin is None:
        return found
    tool = spec.origin.tool
    elsewhere = {
        "Tuned alike": f"{tool} does not say how much each arm was tuned.",
        "Judged on fresh seeds": f"Seed {seeds}; {_items(comparison)}. Whether tuning used them is not known.",
        "Looked at when declared": "Nothing was declared.",
        "What is claimed": "Nothing: there is no verdict.",
    }
    return [Rule(r.name, r.rule, elsewhere.get(r.name, r.here)) for r in found]


def _items(comparison: Comparison | None) -> str:
    items = {v.items for v in comparison.verdicts if v.items} if comparison else set()
    if not items:
        return "no items compared yet"
    return f"{min(items)} items" if len(items) == 1 else f"{min(items)} to {max(items)} items"


def _worked(comparison: Comparison | None, alpha: float) -> str:
    """The interval of the first arm that has one, term by term."""
    verdict = next((v for v in comparison.verdicts if v.noise is not None), None) if comparison else None
    if verdict is None or verdict.noise is None:
        return "No interval yet."
    noise = verdict.noise
    first, second = noise.a.seed_variance / noise.a.seeds, noise.b.seed_variance / noise.b.seeds
    low, high = noise.bounds(alpha)
    t = noise.half_width(alpha) / math.sqrt(noise.variance) if noise.variance > 0 else 0.0
    return (
        f"{verdict.arm} against {verdict.baseline}: V = {first:.3g} + {second:.3g} + {noise.item_variance:.3g} = "
        f"{noise.variance:.3g}; {noise.value:+.4f} ± {t:.3f} x {math.sqrt(noise.variance):.4f} is "
        f"[{low:+.4f}, {high:+.4f}], with {noise.df:.1f} degrees of freedom."
    )


def verdicts(comparison: Comparison | None, decision: Decision) -> pd.DataFrame:
    """Every arm against the baseline, with what the label rests on."""
    found = comparison.verdicts if comparison else []
    return pd.DataFrame(
        [
            {
                "Configuration": v.arm,
                "Verdict": v.label,
                f"Difference to {v.baseline}": difference(v.interval, decision) if v.interval else "no interval",
                "Nearest claim": v.claim or "-",
                "p": _p(v.p),
                "p by Holm": _p(v.p_adjusted),
                "Alpha of the look": f"{comparison.alpha:g}" if comparison else "-",
                "Seeds": v.seeds,
                "Items": v.items,
                "Share of seeds in the variance": percent(v.interval.seed_share if v.interval else None),
                "Why not": v.reason or "-",
            }
            for v in found
        ]
    )


def _p(value: float | None) -> str:
    return "-" if value is None else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


def margin_note(decision: Decision, evidence: Evidence) -> str | None:
    """Where the side bar asks for another margin than the study's own."""
    if decision.margin == evidence.margin:
        return None
    asked, own = (metrics.margin(m, decision.metric) for m in (decision.margin, evidence.margin))
    return f"At the margin of the side bar, {asked}; the study's own is {own}."


def declaration(declared: Declaration | None, spec: StudySpec) -> pd.DataFrame:
    """What was declared before the first run, and what the study file says now."""
    before, now = (declared or declare(spec)).model_dump(), declare(spec).model_dump()
    return pd.DataFrame(
        [
            {
                "Declared": words,
                "Before the first run": _value(before[key]) if declared else "not declared",
                "Now": _value(now[key]),
                "Changed": "yes" if declared and before[key] != now[key] else "no" if declared else "-",
            }
            for key, words in DECLARED.items()
        ]
    )


def _value(value: Any) -> str:
    return "first task of the data (auto)" if value == AUTO else setting(value)


def hashes(evidence: Evidence, store: StudyStore, declared: Declaration | None) -> pd.DataFrame:
    """What the study is about, to the byte."""
    spec, pins = evidence.spec, store.pins()
    records = evidence.records
    tokenized = {str(r.data["digest"]) for r in records if "digest" in r.data}
    rows = [
        ("Base model", spec.controls.model.id, _one({r.trial.model_digest for r in records}, pins.get("model"))),
        ("Data", spec.controls.data.path, _one({r.trial.data_digest for r in records}, pins.get("data"))),
        (
            "Tokenized rows",
            _split(records, spec),
            _one(tokenized, None),
        ),
        ("Question", "controls and arms of the study file", spec.question_id),
        ("Declaration", "margin, looks, budgets, failure rule", declared.hash if declared else "not declared"),
    ]
    return pd.DataFrame(rows, columns=["What", "Which", "Hash or commit"])


def _one(found: set[str], pinned: str | None) -> str:
    """The hash of all runs; several are named, and an empty study has what was pinned."""
    kept = found - {"unknown"} or ({pinned} if pinned else set())
    return ", ".join(sorted(kept)) if kept else "not known"


def _split(records: Sequence[Record], spec: StudySpec) -> str:
    data = spec.controls.data
    found = next((r.data["rows"] for r in reversed(records) if "rows" in r.data), None)
    if found:
        rows = ", ".join(f"{found[name]} {name}" for name in ("train", "validation", "test") if name in found)
        return f"{rows}; split by prompt with seed {data.split_seed}"
    return f"{data.validation_rows} validation and {data.test_rows} test rows asked for"


def versions(records: Sequence[Record]) -> pd.DataFrame:
    """Packages of the runs: one version each, or those that differ with their number of runs."""
    rows = [
        {"Package": name, "Version": _versions(found), "Runs": sum(found.values()), "Differs": _yes(len(found) > 1)}
        for name, found in packages(records).items()
    ]
    return pd.DataFrame(rows, columns=["Package", "Version", "Runs", "Differs"])


def _versions(found: Counter[str]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{version} ({count(n, 'run')})" for version, n in found.most_common())


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def machines(records: Sequence[Record]) -> pd.DataFrame:
    """Hardware and system, and the commits of this program, by number of runs."""
    facts: dict[str, Counter[str]] = {
        "Hardware": machines_of(records),
        "System": Counter(str(r.environment["system"]) for r in records if r.environment.get("system")),
        "Python": Counter(str(r.environment["python"]) for r in records if r.environment.get("python")),
        "harness": Counter(str(r.environment["harness"]) for r in records if r.environment.get("harness")),
        "Commit of harness": Counter(str(r.environment["commit"]) for r in records if r.environment.get("commit")),
        "Schema of the record": Counter(str(r.schema_version) for r in records),
    }
    rows = [
        {"What": name, "Which": value, "Runs": count}
        for name, found in facts.items()
        for value, count in found.most_common()
    ]
    return pd.DataFrame(rows, columns=["What", "Which", "Runs"])


def tasks(evidence: Evidence, decision: Decision) -> pd.DataFrame:
    """What runs are asked: items, metric, and what the base and a guess reach."""
    zero = evidence.zero_shot
    found: dict[str, tuple[Record, Any]] = {}
    for record in evidence.records:
        for score in record.scores:
            found.setdefault(score_name(score), (record, score))
    rows = []
    for name, (_, score) in found.items():
        before = next((s.value for s in zero.scores if score_name(s) == name), None) if zero else None
        items = {s.items for r in evidence.records for s in r.scores if score_name(s) == name}
        rows.append(
            {
                "Task": metrics.plain(score.task) if score.role == "loss" else score.task,
                "Metric": "nats per token" if score.role == "loss" else score.metric,
                "Asked for": "tuning" if score.task == OBJECTIVE else ROLES[score.role],
                "Judged by": _yes(name == decision.metric),
                "Items": str(min(items)) if len(items) == 1 else f"{min(items)} to {max(items)}",
                "Better": "higher" if score.higher_is_better else "lower",
                "Base before training": "-" if before is None else f"{metrics.score(before, name)} (one run)",
                "Most frequent answer": metrics.score(score.majority, name, none="-"),
            }
        )
    return pd.DataFrame(rows)


def limits(evidence: Evidence) -> list[str]:
    """What these numbers do not say. Those of the method in general come last."""
    spec, origin = evidence.spec, evidence.spec.origin
    said = []
    if origin:
        said += [
            f"Made by {origin.tool}: what it does not publish is left empty, nothing is computed again.",
            *([_sentence(origin.note)] if origin.note else []),
            "Without the outcome of every question there is no paired comparison, and with one seed the noise between "
            "runs is not known.",
        ]
    if any(r.resolved.get("random_weights") for r in evidence.records):
        said.append("The base has random weights: time and memory are real, scores mean nothing.")
    if spec.controls.model.id == "tiny":
        said.append("The embedded model is small: what holds for it need not hold for a model of billions of weights.")
    cpu = any(r.resolved.get("device") == "cpu" for r in evidence.records)
    if cpu:
        said.append(
            "On a CPU several runs share the machine, one thread each: times compare within this study, made with one "
            "number of workers, and peaks are a sum of tensors. Compare peaks within one device only."
        )
    if cpu and any(a.quantization == "int8" for a in spec.arms.values()):
        said.append(
            "On a CPU, int8 training multiplies with dequantized weights while evaluation also quantizes activations."
        )
    if any(a.quantization == "bf16" for a in spec.arms.values()) and spec.controls.train.compute_dtype == "fp32":
        said.append("A bf16 base with compute_dtype fp32 still computes in bfloat16.")
    if any(r.schema_version < 3 for r in evidence.records):
        said.append("Some runs are of an older schema: what it did not keep is shown as missing, never as zero.")
    if not origin:
        said.append(
            "The learning rate is tuned for each arm, other settings are shared: an arm may be better off with others."
        )
    said.append("Intervals are for this model, this data and these items. They say nothing about other ones.")
    return said


def citation(evidence: Evidence, declared: Declaration | None) -> str:
    """What to write beside a number of this study, so that a reader finds what it rests on."""
    spec, origin, records = evidence.spec, evidence.spec.origin, evidence.records
    when = f"{max(r.started_at for r in records):%Y-%m-%d}" if records else "no run yet"
    if origin:
        parts = [origin.tool, origin.url, origin.revision, origin.licence, f"read with harness {__version__}"]
        return f"{spec.name}: {', '.join(p for p in parts if p)}; {len(records)} runs until {when}."
    made = Counter(str(r.environment.get("harness")) for r in records if r.environment.get("harness"))
    version = ", ".join(made) or __version__
    commits = sorted({str(r.environment["commit"]) for r in records if r.environment.get("commit")})
    declared_as = f"declaration {declared.hash}" if declared else "not declared"
    commit = f" (commit{'s' if len(commits) > 1 else ''} {', '.join(commits)})" if commits else ""
    return (
        f"{spec.name}: question {spec.question_id}, {declared_as}, {len(records)} runs until {when}, "
        f"harness {version}{commit}; {spec.controls.model.id} on {spec.controls.data.path}."
    )


def zero_note(evidence: Evidence) -> str:
    """What the column of the base means."""
    asked = "Most frequent answer: what always giving the most frequent right answer would score."
    if evidence.zero_shot is None:
        return f"The base before training ({ZERO_SHOT}) was not asked. {asked}"
    stored = evidence.zero_shot.trial.quantization
    return f"Base before training: the base in {stored}, asked the same. {asked}"
