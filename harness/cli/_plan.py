"""A plan and a score of forecasts as text."""

import shlex
import textwrap
from collections.abc import Iterable, Sequence

from harness.budget import ArmPlan, Plan
from harness.cli._bars import Pen, bars
from harness.planning import times
from harness.record import Forecast, Interval
from harness.scoring import Error, ForecastScore

GIB, MIB = 1 << 30, 1 << 20
WIDEST = 120


def render(plan: Plan, command: str, width: int, pen: Pen, probed: bool = False) -> str:
    """The table per arm, what does not fit, what the plan can show, the bars and what to run next."""
    width = min(width, WIDEST)
    lines = [*_wrap(_heading(plan), width), "", *_table(plan), ""]
    for note in [*_notes(plan), _detectable(plan), *_basis(plan)]:
        lines += _wrap(note, width)
    lines += ["", f"Memory at the peak, {_unit_name(plan)}:", *_bars(plan, width, pen), ""]
    last = f"Start:\n{command}" if probed else f"Nothing was loaded. Start:\n{command}"
    return "\n".join([*lines, *_wrap(last, width)])


def render_score(score: ForecastScore, store: str, width: int) -> str:
    """A row per kind of memory and per stage; what could not be scored, with the reason."""
    head = ["", "n", "MAPE", "median", "p95", "worst", "in 90 %"]
    lines = [f"{score.records} records in {store}", ""]
    for title, errors in (("memory", score.memory), ("time", score.time)):
        if errors:
            lines += [*grid([[title, *head[1:]], *(_error_row(e) for e in errors)]), ""]
    share = score.fits_share
    said = "none given" if share is None else f"{100 * share:.0f} % right of {score.fits_right + score.fits_wrong}"
    lines.append(f"fits or not: {said}" + (f"; {score.fits_open} uncertain" if score.fits_open else ""))
    if score.short_stages:
        lines.append(f"stages under a second, not scored: {score.short_stages}")
    if score.unscored:
        reasons = "; ".join(f"{n} {reason}" for reason, n in score.unscored.items())
        lines += _wrap(f"not scored: {reasons}", width)
    lines += _wrap(
        "errors: forecast over measured, minus one; MAPE, p95 and worst of absolute errors, median signed", width
    )
    return "\n".join(lines)


def grid(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows in columns two spaces apart, the first `left` of them aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _heading(plan: Plan) -> str:
    processor = plan.processor
    facts = []
    if processor.memory_bytes is not None:
        facts.append(f"{processor.memory_bytes / GIB:.1f} GiB")
    facts.append("no price per hour" if plan.per_hour is None else f"{plan.per_hour:.2f} {plan.currency}/h")
    name = "CPU core" if processor.kind == "cpu" else processor.name
    if processor.name.endswith(" GB"):  # only a size was given
        name = f"GPU of {processor.name}"
    return f"{plan.study} on one {name} ({', '.join(facts)})"


def _table(plan: Plan) -> list[str]:
    hours, name = _time_unit(plan)
    money = plan.currency if plan.cost is not None else ""
    head = ["arm", "base", "fits", "runs", f"peak {_unit_name(plan)} [90 %]", f"{name} [90 %]", money]
    rows = [_arm_row(plan, arm, hours) for arm in plan.arms]
    base = _cells(plan, plan.baseline, plan.baseline.seconds, hours)
    rows.append(["zero-shot", "", plan.baseline.fits, "1", *base])
    if plan.served is not None:
        cells = _cells(plan, plan.served.largest, plan.served.seconds, hours)
        rows.append(["served", "", plan.served.largest.fits, str(plan.served.runs), *cells])
    spent = _bounds(plan.seconds, hours, _digits(plan.seconds.high / hours)) if plan.runs else "-"
    rows.append(["total", "", "", str(plan.runs), "", spent, _money(plan.cost) if plan.runs else "-"])
    return grid([_without_money(row, plan) for row in [head, *rows]], left=3)


def _arm_row(plan: Plan, arm: ArmPlan, hours: float) -> list[str]:
    fits = arm.confirm.fits + (f" at {arm.micro_batch}" if arm.refused else "")
    first = [arm.arm, arm.quantization, fits, f"{arm.trials}+{arm.seeds}"]
    return [*first, *_cells(plan, arm.confirm, arm.seconds, hours)]


def _cells(plan: Plan, forecast: Forecast, seconds: Interval, hours: float) -> list[str]:
    """Memory, time and money."""
    memory = forecast.process_bytes or forecast.allocated_bytes
    unit = _unit(plan)
    digits = _digits(memory.high / unit)
    shown = _bounds(memory, unit, digits)
    if forecast.fits == "no":
        return [shown, "-", "-"]
    cost = None if plan.per_hour is None else times(seconds, plan.per_hour / 3600)
    return [shown, _bounds(seconds, hours, _digits(seconds.high / hours)), _money(cost)]


def _without_money(row: list[str], plan: Plan) -> list[str]:
    return row if plan.cost is not None else row[:-1]


def _notes(plan: Plan) -> Iterable[str]:
    for arm in plan.arms:
        if arm.refused is not None:
            yield (
                f"{arm.arm} does not fit as it is ({_need(arm.refused)}): the study records that and goes on at "
                f"micro-batch {arm.micro_batch}, with as many rows per step."
            )
        if arm.confirm.fits == "no":
            yield f"{arm.arm} does not fit: its runs are recorded as such and not made. {_nearest(arm)}"
        elif arm.confirm.fits == "uncertain":
            yield f"{arm.arm} may not fit: whether it does is seen when it runs. {_nearest(arm)}"
    mended = [a.nearest for a in plan.arms if a.nearest]
    if any(override.startswith("controls.") for nearest in mended for override in nearest.overrides):
        yield "What stands under controls holds for every arm, so that arms stay comparable."
    lost = [arm.arm for arm in plan.arms if arm.confirm.fits == "no"]
    left = [arm.arm for arm in plan.arms if arm.confirm.fits != "no"]
    if plan.compared_with in lost and left:
        yield (
            f"The other arms are compared with {plan.compared_with}. To compare them among themselves:"
            f"\narms.{plan.compared_with}=null objective.baseline={left[0]}"
        )


def _nearest(arm: ArmPlan) -> str:
    nearest = arm.nearest
    if nearest is not None:
        return f"The nearest that fits, {_need(nearest.forecast)}:\n{shlex.join(nearest.overrides)}"
    elsewhere = f"; {arm.cheapest_card} holds it as it is" if arm.cheapest_card else ""
    return f"No smaller batch, checkpointing, fewer bits or shorter rows make it fit{elsewhere}."


def _need(forecast: Forecast) -> str:
    return f"{(forecast.process_bytes or forecast.allocated_bytes).mid / GIB:.1f} GiB"


def _detectable(plan: Plan) -> str:
    found = plan.detectable
    size = f"{found.seeds} seeds" + (f" x {found.items} items" if found.items else "")
    if found.difference is None:
        return f"The smallest difference on {found.metric} that {size} can show: {found.basis}."
    shown = f"{100 * found.difference:.1f} points" if found.items else f"{found.difference:.3g}"
    points = 100 * found.margin
    own = f"{points:g} point{'' if points == 1 else 's'}" if found.items else f"{found.margin:g}"
    margin = f", margin of {own} included" if found.margin else ""
    return f"This plan can show a difference of {shown} on {found.metric} ({size}, 80 % power{margin}), {found.basis}."


def _basis(plan: Plan) -> Iterable[str]:
    rows = plan.rows
    yield (
        f"Rows: {rows['train']:,} to train on, {float(rows['mean_tokens']):.0f} tokens on average, {rows['longest']} "
        f"at most ({rows['source']})."
    )
    cold = "by the table of processors alone; runs in the store would sharpen them"
    yield f"Times: {cold if plan.calibration == 'cold' else f'sharpened by {plan.calibration}'}."
    if plan.processor.kind == "cpu":
        yield "They are of one run after another; harness study makes one on each core at a time."
    base = (
        f", and about {plan.download_bytes / GIB:.1f} GiB for the base, to be downloaded" if plan.download_bytes else ""
    )
    kept = plan.disk_bytes
    size = f"{kept / GIB:.1f} GiB" if kept >= GIB / 10 else f"{kept / MIB:.0f} MiB"
    yield f"Disk: {size} for adapters and kept models{base}."
    for doubt in plan.doubts:
        yield f"note: {doubt}"


def _bars(plan: Plan, width: int, pen: Pen) -> list[str]:
    rows = {}
    for arm in plan.arms:
        forecast = arm.confirm
        rows[arm.arm] = {name: float(value) for name, value in forecast.components.items()}
        if forecast.process_bytes is not None:
            held = forecast.process_bytes.mid - sum(forecast.components.values())
            rows[arm.arm]["allocator and context"] = max(held, 0.0)
    return bars(rows, plan.processor.memory_bytes, _unit(plan), width, pen)


def _unit(plan: Plan) -> int:
    forecasts = [arm.confirm for arm in plan.arms]
    return GIB if max((f.process_bytes or f.allocated_bytes).mid for f in forecasts) >= GIB else MIB


def _unit_name(plan: Plan) -> str:
    return "GiB" if _unit(plan) == GIB else "MiB"


def _time_unit(plan: Plan) -> tuple[float, str]:
    return (3600.0, "hours") if plan.seconds.mid >= 3600 else (60.0, "minutes")


def _bounds(interval: Interval, unit: float, digits: int) -> str:
    return f"{interval.mid / unit:.{digits}f} [{interval.low / unit:.{digits}f}-{interval.high / unit:.{digits}f}]"


def _digits(value: float) -> int:
    """Decimals of an interval whose upper end has this value: three figures or so."""
    return 0 if value >= 100 else 1 if value >= 1 else 2


def _money(cost: Interval | None) -> str:
    if cost is None:
        return "-"
    return f"{cost.mid:,.0f}" if cost.mid >= 100 else f"{cost.mid:.2f}"


def _error_row(error: Error) -> list[str]:
    covered = "-" if error.coverage is None else f"{100 * error.coverage:.0f} %"
    shares = [f"{100 * v:.1f} %" for v in (error.mape, error.p95, error.worst)]
    return [error.quantity, str(error.n), shares[0], f"{100 * error.median:+.1f} %", *shares[1:], covered]


def _wrap(text: str, width: int) -> list[str]:
    """A paragraph at this width. What stands after a line break is to be copied: it goes on the same line if it has
    room there, else on a line of its own, however long."""
    sentence, _, copied = text.partition("\n")
    lines = textwrap.wrap(sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    if copied and len(lines[-1]) + 1 + len(copied) <= width:
        return [*lines[:-1], f"{lines[-1]} {copied}"]
    return [*lines, f"    {copied}"] if copied else lines


def unicode_fits(encoding: str | None) -> bool:
    """Whether a stream of this encoding can write the bars' characters."""
    try:
        "█░▓▚▒·│".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
