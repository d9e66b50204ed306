"""Down to which bit-width the model holds, as the page shows it: `harness bits` in tables and charts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dashboard.views.banner import Banner
from harness import metrics
from harness.bits import DIVERGENCES, RETENTION, Bits, Finding, Measure, Question, Width, bits_stored, to_settle
from harness.compare import Interval
from harness.spec import Served
from harness.speed import Median
from harness.summary import LOSS, Evidence, Measured, Summary
from harness.units import duration, energy, is_share, money, size
from harness.words import capital, count

BACKENDS = ("unquantized", "bitsandbytes", "hqq", "gptq", "torchao", "other")
OF_BITSANDBYTES = frozenset({"nf4", "fp4", "int8"})
KINDS = {
    "kl_unquantized": "from the unquantized model",
    "kl_merged": "from its exact merge",
    "kl_requantized": "merged and quantized again",
}
"""The divergences of `DIVERGENCES`: what KL in nats per token is taken from, or of."""
ANSWERS: dict[str, tuple[str, str, str]] = {
    "shown": ("Shown to hold", ":material/check_circle:", "green"),
    "widest": ("Every narrower one is worse", ":material/cancel:", "blue"),
    "open": ("Open", ":material/help:", "orange"),
}
"""Badge, icon and colour by answer."""


@dataclass(frozen=True)
class Point:
    """A bit-width on a chart, in the units of its measure."""

    name: str
    bits: float | None
    backend: str
    value: float | None
    low: float | None
    high: float | None
    said: str
    """Its verdict, or why there is no value."""


def nothing_asked(evidence: Evidence) -> str:
    """What a study that is not about bit-widths says on this page."""
    stored = dict.fromkeys(arm.quantization for arm in evidence.spec.arms.values())
    return (
        f"{evidence.spec.name} asks nothing about bit-widths: it stores models in one way each ({', '.join(stored)}), "
        "and trains no method on several of them with all else the same. A study that does:"
    )


def caption(evidence: Evidence, found: Bits) -> str:
    """What the answers rest on."""
    margin = f"a margin of {metrics.margin(found.margin, found.metric)}" if found.margin else "no margin"
    completed = count(sum(r.status == "done" for r in evidence.records), "completed run")
    declared = "as the study declares it, whatever the side bar says"
    return f"{found.study} · {metrics.plain(found.metric)} at {margin}, {declared} · {completed}"


def answer(question: Question) -> Banner:
    """The sentences of `harness bits`, word for word."""
    first, *others = question.findings
    beside = [*(f.sentence for f in others), *(f"Not judged on {reason}" for reason in question.skipped)]
    return Banner(*ANSWERS[question.answer], first.sentence, [*beside, *_odd(question)])


def answers(found: Bits) -> pd.DataFrame:
    """Every question with its answer."""
    return pd.DataFrame(
        [
            {
                "Question": q.title,
                "Answer": ANSWERS[q.answer][0],
                "Lowest that holds": _lowest(q),
                "Its weights": _saving(q),
                "Judged on": measure_name(q.findings[0].measure.name),
            }
            for q in found.questions
        ]
    )


def measures(question: Question) -> list[str]:
    """What can be drawn of a question, the measure that answers it first."""
    scored = (name for w in question.widths for name in w.scores)
    return list(dict.fromkeys([*(f.measure.name for f in question.findings), *scored]))


def measure_name(measure: str) -> str:
    return "retention (what the base can do)" if measure == RETENTION else metrics.plain(measure)


def title(measure: str, question: Question | None = None) -> str:
    """A measure as an axis is named."""
    found = _finding(question, measure) if question else None
    better = found.measure.higher_is_better if found else measure != LOSS
    return metrics.title(_read_as(measure, found), higher_is_better=better, name=measure_name(measure))


def difference_title(measure: str, question: Question) -> str:
    """The axis of differences from the reference."""
    return f"Difference from {question.reference} ({metrics.unit(_read_as(measure, _finding(question, measure)))})"


def percent(measure: str, finding: Finding | None = None) -> bool:
    """Whether a measure is a share, shown in percent."""
    names = [m for _, m in finding.measure.parts] if finding else [measure.partition("/")[2]]
    return all(map(is_share, names))


def _read_as(measure: str, finding: Finding | None) -> str:
    """A metric that reads like a measure, which can be a mean over several tasks."""
    return "accuracy" if percent(measure, finding) else measure


def points(question: Question, measure: str) -> list[Point]:
    """What is drawn of a question on one measure, the widest first."""
    metric = _read_as(measure, _finding(question, measure))
    found = []
    for w in question.widths:
        score = w.scores.get(measure)
        value, low, high = (score.mean, score.low, score.high) if score else (None, None, None)
        found.append(
            Point(
                w.name, w.bits_stored, backend(w.quantization), metrics.scaled(value, metric),
                metrics.scaled(low, metric), metrics.scaled(high, metric), verdict(question, w, measure),
            )
        )  # fmt: skip
    return found


def differences(question: Question, measure: str) -> list[Point]:
    """The paired differences from the reference that the verdicts rest on; empty where nothing could be compared."""
    finding = _finding(question, measure)
    if finding is None or finding.comparison is None or not finding.comparison.verdicts:
        return []
    metric = _read_as(measure, finding)
    found = []
    for w in question.widths:
        bounds = _interval(finding, w.name)
        value, low, high = (bounds.difference, bounds.low, bounds.high) if bounds else (None, None, None)
        if w.name == question.reference:
            value = 0.0
        found.append(
            Point(
                w.name, w.bits_stored, backend(w.quantization), metrics.scaled(value, metric),
                metrics.scaled(low, metric), metrics.scaled(high, metric), verdict(question, w, measure),
            )
        )  # fmt: skip
    return found


def verdict(question: Question, width: Width, measure: str | None = None) -> str:
    """How a bit-width stands, in words."""
    if width.name == question.reference:
        return "the reference"
    finding = question.findings[0] if measure is None else _finding(question, measure)
    found = finding.comparison if finding else None
    label = next((v.label for v in found.verdicts if v.arm == width.name), None) if found else None
    if label is not None:
        return f"{label}, odd" if width.odd else str(label)
    if width.runs == 0:
        return ", ".join(width.lost) or "not run"
    return "not judged on this"


def chart_alt(question: Question, measure: str, some: Sequence[Point]) -> str:
    """A chart in a sentence."""
    unit = " %" if percent(measure, _finding(question, measure)) else ""
    scored = [f"{p.name} {p.value:.3g}{unit}" for p in some if p.value is not None]
    return f"{question.title}: {title(measure, question)}. {', '.join(scored)}. {question.findings[0].sentence}"


def reading(question: Question, margin: float) -> str:
    """How to read the two charts."""
    over = "items" if question.kind == "base" else "seeds"
    band = " The band is the margin: within it lies what does not matter." if margin else ""
    return (
        f"First chart: means with 95 % intervals over {over}, the dashed line is {question.reference}. Second: paired "
        f"differences from it with the intervals that the verdicts rest on.{band} The ring marks the lowest that holds."
    )


def table(question: Question) -> pd.DataFrame:
    """Quality at every bit-width with its verdict."""
    finding = question.findings[0]
    first = finding.measure.name
    metric = _read_as(first, finding)
    return pd.DataFrame(
        [
            {
                "Stored as": w.name,
                "Bits per weight": _bits(w.bits_stored),
                capital(title(first, question)): _mean(w.scores.get(first), metric),
                f"Difference from {question.reference}": _difference(_interval(finding, w.name), metric),
                "Verdict": verdict(question, w),
                **({"Test loss": _mean(w.scores.get(LOSS), LOSS)} if first != LOSS else {}),
                "Runs": f"{w.runs} done" + "".join(f", {n} {why}" for why, n in w.lost.items()),
            }
            for w in question.widths
        ]
    )


def settling(question: Question, study: str) -> list[str]:
    """What would settle the question, in the words of `harness bits`."""
    lines = [line for f in question.findings for line in to_settle(question, f, study)]
    if lines:
        return [capital(line) if line.startswith(("to settle", "run them")) else line for line in lines]
    if question.answer == "open":
        return ["It is open, and it cannot be said yet how many runs would settle it."]
    return ["Nothing is open here that more runs would settle."]


def _odd(question: Question) -> list[str]:
    return [f"{w.name} does {why}, which theory does not expect." for w in question.widths for why in w.odd]


def sizes(question: Question) -> pd.DataFrame:
    """What every bit-width takes and how far it is from the unquantized model."""
    kinds = [k for k in DIVERGENCES if any(k in w.divergence for w in question.widths)]
    trained = question.kind == "trained"
    return pd.DataFrame(
        [
            {
                "Stored as": w.name,
                "Bits per weight": _bits(w.bits_stored),
                "In memory": size(w.stored_bytes),
                "On disk": size(w.disk_bytes),
                **(
                    {
                        "Peak of a training step": size(w.train_peak_bytes),
                        "Training time": duration(w.train_seconds),
                    }
                    if trained
                    else {}
                ),
                **{f"KL {KINDS[k]} (nats per token)": divergence(w.divergence.get(k), k) for k in kinds},
            }
            for w in question.widths
        ]
    )


def ways(found: Bits, subject: str | None) -> list[str]:
    """Merged and then stored against the adapter beside the stored base, of one arm, in words."""
    mine = [w for w in found.ways if w.arm == subject]
    apart = [w for w in mine if w.interval.low > 0 or w.interval.high < 0]
    lines = [f"At {w.name}, merged minus adapter: {_difference(w.interval, found.metric)}." for w in apart]
    if mine and len(apart) < len(mine):
        where = "the other bit-widths" if apart else "any bit-width"
        lines.append(f"Merged and adapter are not shown to differ at {where}.")
    return lines


def shapes(found: Bits) -> list[tuple[int, int]]:
    """Batch and prompt length of what was timed."""
    return list(dict.fromkeys((f.batch, f.context) for f in found.speeds))


def shape_name(shape: tuple[int, int]) -> str:
    batch, context = shape
    return f"{batch} {'prompt' if batch == 1 else 'prompts'} of {context} tokens at a time"


def speeds(found: Bits, currency: str) -> pd.DataFrame:
    """Everything that was timed."""
    priced = any(f.cost_per_thousand is not None for f in found.speeds)
    metered = any(f.joules_per_thousand is not None for f in found.speeds)
    return pd.DataFrame(
        [
            {
                "Stored as": f.served,
                "Batch": shape_name((f.batch, f.context)),
                "Prompt (tokens/s)": rate_said(f.prefill_tokens_per_second, f.prefill_ratio),
                "Answer (tokens/s)": rate_said(f.decode_tokens_per_second, f.decode_ratio),
                "First token": f"{1000 * f.first_token_seconds.value:.3g} ms",
                **({"1,000 answers": money(f.cost_per_thousand, currency)} if priced else {}),
                **({"Energy of 1,000 answers": energy(f.joules_per_thousand)} if metered else {}),
            }
            for f in found.speeds
        ]
    )


def speed_alt(found: Bits, shape: tuple[int, int]) -> str:
    said = [f"{f.served} {rate_said(f.decode_tokens_per_second, f.decode_ratio)}" for f in found.speeds
            if (f.batch, f.context) == shape]  # fmt: skip
    return f"Tokens per second of answers with {shape_name(shape)}: {', '.join(said)}."


def by_arm(evidence: Evidence, summary: Summary) -> pd.DataFrame:
    """Quality and memory of every arm with how its base is stored, for a study that asks nothing about it."""
    dtype = evidence.spec.controls.train.compute_dtype
    return pd.DataFrame(
        [
            {
                "Configuration": row.arm,
                "Stored as": row.quantization,
                "Bits per weight": _bits(bits_stored(Served(quantization=row.quantization), dtype)),
                capital(metrics.plain(evidence.metric)): _mean(row.score, evidence.metric, none="not scored"),
                "Peak memory": size(row.peak_bytes),
            }
            for row in summary.arms
        ]
    )


def backend(quantization: str) -> str:
    """Which library stores the weights."""
    if quantization in OF_BITSANDBYTES:
        return "bitsandbytes"
    family = re.sub(r"(_fp)?\d+$", "", quantization)
    if family in {"fp", "bf"}:
        return "unquantized"
    return family if family in BACKENDS else "other"


def _finding(question: Question, measure: str) -> Finding | None:
    return next((f for f in question.findings if f.measure.name == measure), None)


def _interval(finding: Finding, name: str) -> Interval | None:
    found = finding.comparison
    return next((v.interval for v in found.verdicts if v.arm == name), None) if found else None


def margin_of(measure: Measure) -> float:
    """A measure's margin in the units that are drawn."""
    return measure.margin * (100 if all(is_share(m) for _, m in measure.parts) else 1)


def _lowest(question: Question) -> str:
    width = next((w for w in question.widths if w.name == question.lowest), None)
    return "-" if width is None else f"{width.name} ({_bits(width.bits_stored)} bits)"


def _saving(question: Question) -> str:
    """Of the weights, at the lowest that holds, against the reference."""
    by_name = {w.name: w.stored_bytes for w in question.widths}
    here, there = by_name.get(question.lowest or ""), by_name.get(question.reference)
    if not here or not there:
        return "-"
    return size(here) if here == there else f"{size(here)} instead of {size(there)}"


def _mean(found: Measured | None, metric: str, none: str = "-") -> str:
    return none if found is None else metrics.mean(found.mean, found.low, found.high, metric)


def _difference(bounds: Interval | None, metric: str) -> str:
    return "-" if bounds is None else metrics.change(bounds.difference, bounds.low, bounds.high, metric)


def rate_said(rate: Median | None, ratio: Median | None) -> str:
    if rate is None:
        return "-"
    return f"{rate.value:,.0f}" + (f" ({ratio.value:.2f} x)" if ratio else "")


def divergence(value: float | None, kind: str) -> str:
    return "-" if value is None else metrics.number(max(value, 0.0), kind)  # rounding leaves some below 0


def _bits(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
