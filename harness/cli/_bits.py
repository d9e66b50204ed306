"""What a study shows about bit-widths, as text of 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from harness.bits import DIVERGENCES, Bits, Question, Ways, Width, to_settle
from harness.cli._table import table
from harness.compare import Verdict
from harness.speed import Figures, Median
from harness.summary import LOSS
from harness.units import duration, size

COLUMNS = 80

KINDS = {"kl_unquantized": "KL", "kl_merged": "KL\nmerged", "kl_requantized": "KL re-\nquantized"}
"""What the divergences of `DIVERGENCES` are called in a column."""


def render(found: Bits) -> str:
    """Every question with its table, its sentences and what would settle it; then speeds and what limits it all."""
    lines = []
    for question in found.questions:
        lines += [question.title, *_tables(question), "", *_said(question, found.study), "", ""]
    lines += _ways(found.ways)
    if found.speeds:
        lines += ["How fast the base answers", _speeds(found.speeds).rstrip(), "", ""]
    lines.append("values: mean ± half of the 95 % interval over seeds, for a base over items")
    lines += [line for note in found.notes for line in _wrapped(f"note: {note}")]
    return "\n".join(lines)


def brief(found: Bits) -> str:
    """The answers alone."""
    return "\n".join(f"{q.title}: {q.findings[0].sentence}" for q in found.questions)


def _tables(question: Question) -> Iterator[str]:
    first = question.findings[0].measure.name
    head = ["stored as", "bits", *(["test\nloss"] if first != LOSS else []), first]
    head += [f"minus {question.reference}", "verdict"]
    yield table(head, [_quality(question, w) for w in question.widths], COLUMNS).rstrip()
    if any(w.odd for w in question.widths):
        yield ""
    for width in question.widths:
        for odd in width.odd:
            yield from _wrapped(f"odd: {width.name} does {odd}, which theory does not expect")
    some = [k for k in DIVERGENCES if any(k in w.divergence for w in question.widths)]
    trained = question.kind == "trained"
    head = ["stored as", *(KINDS[k] for k in some), "in memory", "on disk"]
    head += ["train\npeak", "train\ntime"] if trained else []
    yield table(head, [_sizes(w, some, trained) for w in question.widths], COLUMNS).rstrip()


def _quality(question: Question, width: Width) -> list[str]:
    finding = question.findings[0]
    verdicts = finding.comparison.verdicts if finding.comparison else []
    verdict = next((v for v in verdicts if v.arm == width.name), None)
    bounds = verdict.interval if verdict else None
    first = finding.measure.name
    return [
        width.name,
        "-" if width.bits_stored is None else f"{width.bits_stored:.4g}",
        *([] if first == LOSS else [_score(width, LOSS)]),
        _score(width, first, interval=True),
        "-" if bounds is None else f"{bounds.difference:+.3f} ± {(bounds.high - bounds.low) / 2:.3f}",
        _verdict(question, width, verdict),
    ]


def _verdict(question: Question, width: Width, verdict: Verdict | None) -> str:
    if width.name == question.reference:
        word = "reference" if question.kind == "trained" else "the widest"
    elif verdict is not None:
        word = verdict.label
    else:
        word = ", ".join(width.lost) or "not run"
    return f"{word}, odd" if width.odd else word


def _score(width: Width, measure: str, *, interval: bool = False) -> str:
    value = width.scores.get(measure)
    if value is None:
        return "-"
    if not interval or value.low is None or value.high is None:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} ± {(value.high - value.low) / 2:.3f}"


def _sizes(width: Width, divergences: Sequence[str], trained: bool) -> list[str]:
    cells = [width.name, *(_nats(width.divergence.get(k)) for k in divergences)]
    cells += [size(width.stored_bytes), size(width.disk_bytes)]
    if trained:
        cells += [size(width.train_peak_bytes), "-" if width.train_seconds is None else duration(width.train_seconds)]
    return cells


def _nats(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0e}" if 0 < value < 1e-3 else f"{max(value, 0.0):.4f}"  # rounding leaves some below 0


def _said(question: Question, study: str) -> Iterator[str]:
    for finding in question.findings:
        yield from _wrapped(finding.sentence)
        for line in to_settle(question, finding, study):
            yield from _wrapped(line)
    for reason in question.skipped:
        yield from _wrapped(f"not judged on {reason}")


def _ways(ways: Sequence[Ways]) -> Iterator[str]:
    apart = [w for w in ways if w.interval.low > 0 or w.interval.high < 0]
    for way in apart:
        bounds = way.interval
        difference = f"{bounds.difference:+.3f} [{bounds.low:+.3f}, {bounds.high:+.3f}]"
        yield from _wrapped(f"{way.arm} at {way.name}: merged minus adapter {difference}")
    if len(apart) < len(ways):
        where = "the other bit-widths" if apart else "any bit-width"
        yield f"merged and adapter are not shown to differ at {where}"
    if ways:
        yield from ["", ""]


def _speeds(speeds: Sequence[Figures]) -> str:
    priced = any(f.cost_per_thousand is not None for f in speeds)
    head = ["stored as", "batch", "prompt", "prefill\ntokens per s", "decode\ntokens per s", "first\ntoken"]
    rows = []
    for f in speeds:
        row = [f.served, str(f.batch), str(f.context)]
        row += [_rate(f.prefill_tokens_per_second, f.prefill_ratio), _rate(f.decode_tokens_per_second, f.decode_ratio)]
        row += [f"{1000 * f.first_token_seconds.value:.3g} ms"]
        rows.append(row + ([f"{f.cost_per_thousand:.3g}"] if f.cost_per_thousand is not None else []))
    return table([*head, *(["cost of\n1000"] if priced else [])], rows, COLUMNS)


def _rate(rate: Median | None, ratio: Median | None) -> str:
    if rate is None:
        return "-"
    return f"{rate.value:,.0f}" + (f" ({ratio.value:.2f} x)" if ratio else "")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False)
