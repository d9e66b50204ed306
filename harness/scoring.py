"""How good the forecasts of finished runs were: error and interval coverage of memory and time, and verdicts of fit."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from harness.record import Interval, Record, StageName
from harness.spec import Value

MEMORY = ("tensors", "allocated", "reserved", "process")
"""Kinds of memory: a run's own accounting of one step, live tensors, the allocator's, and the driver's view."""
STAGES: tuple[StageName, ...] = ("load", "adapt", "train", "evaluate", "save", "reference")
TIME = (*STAGES, "all stages")
SHORTEST = 1.0
"""Seconds below which a stage is not scored: shares of a blink say nothing."""


class Error(Value):
    """Forecasts of one quantity against what was measured; errors are shares of the measured value."""

    quantity: str
    n: int
    mape: float
    """Mean absolute error."""
    median: float
    """Of the signed errors: above zero where forecasts are too high."""
    p95: float
    """Of the absolute errors, as are all below."""
    worst: float
    coverage: float | None
    """Share of measured values inside the 90 % interval; None where no interval was given."""


class ForecastScore(Value):
    """Every record of a store that carries a forecast, scored or counted with the reason."""

    records: int
    memory: tuple[Error, ...]
    time: tuple[Error, ...]
    fits_right: int
    fits_wrong: int
    fits_open: int
    """Forecast `uncertain`: a verdict was not given."""
    short_stages: int
    """Stages that took less than a second, which are not scored."""
    unscored: dict[str, int]
    """Records of which nothing could be compared, by reason."""

    @property
    def fits_share(self) -> float | None:
        given = self.fits_right + self.fits_wrong
        return self.fits_right / given if given else None


def score(records: Iterable[Record]) -> ForecastScore:
    """Hold forecasts against measurements; records without a forecast are counted, never dropped."""
    some = list(records)
    pairs: dict[str, list[tuple[float, Interval, bool]]] = {}
    unscored: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for record in some:
        reason = unscorable(record)
        verdicts[verdict(record)] += 1
        if reason:
            unscored[reason] += 1
            continue
        for quantity, measured, forecast, bounded in pairs_of(record):
            pairs.setdefault(quantity, []).append((measured, forecast, bounded))
    return ForecastScore(
        records=len(some),
        memory=tuple(_error(kind, pairs[kind]) for kind in MEMORY if kind in pairs),
        time=tuple(_error(stage, pairs[stage]) for stage in TIME if stage in pairs),
        fits_right=verdicts["right"],
        fits_wrong=verdicts["wrong"],
        fits_open=verdicts["open"],
        short_stages=sum(s.seconds < SHORTEST for r in some if unscorable(r) is None for s in r.stages),
        unscored=dict(unscored),
    )


def unscorable(record: Record) -> str | None:
    """Why a record's memory and time cannot be compared with its forecast; None where they can."""
    if record.forecast is None:
        return "no forecast"
    if record.status == "done":
        return None
    if record.status == "does_not_fit":
        return "not run: forecast not to fit"
    return f"{record.status.replace('_', ' ')}: no whole measurement"


def verdict(record: Record) -> str:
    """`right` or `wrong` by how the run ended, `open` where the forecast was uncertain, `none` where nothing shows it.

    A run that was not made because it was forecast not to fit shows nothing about that forecast.
    """
    if record.forecast is None or record.status not in {"done", "out_of_memory"}:
        return "none"
    if record.forecast.fits == "uncertain":
        return "open"
    fitted = record.status == "done"
    return "right" if fitted == (record.forecast.fits != "no") else "wrong"


def pairs_of(record: Record) -> Iterator[tuple[str, float, Interval, bool]]:
    """Of a record that can be scored: quantity, measured, forecast, and whether the forecast had bounds."""
    forecast = record.forecast
    assert forecast is not None
    own = record.memory.peak if record.memory else None
    expected = forecast.tensors.peak if forecast.tensors else None
    if own and expected:
        yield "tensors", own, Interval(low=expected, mid=expected, high=expected), False
    for kind, interval in (
        ("allocated", forecast.allocated_bytes),
        ("reserved", forecast.reserved_bytes),
        ("process", forecast.process_bytes),
    ):
        measured = _peak(record, kind)
        if interval is not None and measured:
            yield kind, measured, interval, True
    for stage in record.stages:
        if stage.stage in forecast.stage_seconds and stage.seconds >= SHORTEST:
            yield stage.stage, stage.seconds, forecast.stage_seconds[stage.stage], True
    yield "all stages", record.seconds, forecast.seconds, True


def _peak(record: Record, kind: str) -> int | None:
    """The highest of a kind over the stages; on a CPU the tensors' own accounting stands for what is allocated."""
    column = {"allocated": "allocated_peak_bytes", "reserved": "reserved_peak_bytes", "process": "device_peak_bytes"}
    values = [v for s in record.stages if (v := getattr(s, column[kind])) is not None]
    if not values and kind == "allocated" and record.memory:
        return record.memory.peak
    return max(values, default=None)


def _error(quantity: str, pairs: Sequence[tuple[float, Interval, bool]]) -> Error:
    signed = np.array([interval.mid / measured - 1 for measured, interval, _ in pairs])
    inside = [interval.low <= measured <= interval.high for measured, interval, bounded in pairs if bounded]
    absolute = np.abs(signed)
    return Error(
        quantity=quantity,
        n=len(pairs),
        mape=float(absolute.mean()),
        median=float(np.median(signed)),
        p95=float(np.quantile(absolute, 0.95)),
        worst=float(absolute.max()),
        coverage=sum(inside) / len(inside) if inside else None,
    )
