"""How good the forecast is, against a table of measurements.

    python benchmarks/forecast_accuracy.py measurements.csv [--rows] [--json FILE]

The table has one row per measured run: source, model, method, base_bits, optimizer, lora_rank, lora_targets,
micro_batch, grad_accum, seq_len, grad_checkpointing, attention, packing, precision, n_gpus, sharding, gpu, peak_mem_gb,
mem_kind, tokens_per_s, time_h, notes, peak_mem_alt_gb, mem_alt_kind, loss_kernel, quality. Sources weigh the same,
however many rows they have. A row that cannot be forecast is counted with its reason.
"""

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from _published import LossRow, Row, context_of, publisher, setup_of
from _published_time import TimeRow, time_of

from harness.errors import HarnessError
from harness.forecast import processors, time
from harness.forecast.memory import Memory, memory, needed

FIT = ("a100_80gb.csv", "t4-sweep", "resource-tables", "cross_entropy", "Optimization flags")
"""Parts of the names of the sources whose rows the constants were found on; every other source is a check."""

BAND = 0.05
"""Share of a card's memory around its size in which a verdict is not judged: no forecast is that sharp."""

KINDS = {
    "allocated": "allocated",
    "active (allocated)": "allocated",
    "reserved": "reserved",
    "reserved (max over train AND eval)": "reserved",
    "nvidia-smi": "process",
    "unknown": "unknown",
}


@dataclass(frozen=True)
class Point:
    """One measured number and its forecast."""

    row: str
    source: str
    family: str
    method: str
    quality: str
    kind: str
    measured: float
    forecast: float
    inside: bool | None = None
    """Whether the measured value lies in the 90 % interval."""

    @property
    def error(self) -> float:
        return self.forecast / self.measured - 1


@dataclass(frozen=True)
class Verdict:
    """Whether a run fitted its card, and what the forecast says."""

    row: str
    source: str
    fitted: bool
    share: float
    """What is needed over what the card has."""

    @property
    def judged(self) -> bool:
        return abs(self.share - 1) > BAND

    @property
    def right(self) -> bool:
        return (self.share <= 1) == self.fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = read(arguments.table)
    points, verdicts, reasons = memory_points(rows)
    cold, warm, time_reasons = time_points(rows)
    if arguments.rows:
        print_rows(points + cold)
    figures: dict[str, Any] = {}
    print(f"{len(rows)} rows of {len({publisher(r) for r in rows})} sources")
    for family in ("fit", "check"):
        print(f"\nMemory, {family} rows")
        figures[f"memory {family}"] = table([p for p in points if p.family == family])
    print("\nMemory, all rows")
    figures["memory"] = table(points)
    print("\nSeconds per step, cold")
    figures["time cold"] = table(cold)
    print("\nSeconds per step, one calibration row per stack")
    figures["time calibrated"] = table(warm)
    print("\nNot forecast")
    for what, why in (("memory", reasons), ("time", time_reasons)):
        for reason, count in why.most_common():
            print(f"  {what}: {count:4} {reason}")
    figures["not forecast"] = {"memory": dict(reasons), "time": dict(time_reasons)}
    print("\nFits the card or not")
    figures["verdicts"] = verdict_table(verdicts)
    print("\nIn short, every source weighing the same")
    figures["in short"] = in_short(points, cold, warm)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def print_rows(points: Iterable[Point]) -> None:
    for point in points:
        inside = "" if point.inside is None else "inside" if point.inside else "OUTSIDE"
        print(
            f"{point.row} {point.kind:10} {point.method:8} {point.forecast:10.4g} {point.measured:10.4g} "
            f"{point.error:+7.1%} {inside}"
        )


def in_short(points: Sequence[Point], cold: Sequence[Point], warm: Sequence[Point]) -> dict[str, Any]:
    """The figures that the forecast is held to."""
    exact = [p for p in points if p.kind == "allocated" and p.quality == "A"]
    held = [p for p in points if p.kind in {"reserved", "process"}]
    chosen = {
        "allocated (A), fit rows": [p for p in exact if p.family == "fit"],
        "allocated (A), check rows": [p for p in exact if p.family == "check"],
        "allocated (A)": exact,
        "reserved and process": held,
        "time, cold": cold,
        "time, one calibration row per stack": warm,
    }
    found = {name: errors(some) for name, some in chosen.items() if some}
    for name, line in found.items():
        inside = "" if line["inside"] is None else f", {line['inside']:.1%} inside the 90 % interval"
        print(
            f"  {name:38}n {line['n']:4}, sources {line['sources']}: MAPE {line['mape']:.2%}, "
            f"median {line['median']:.2%}, p95 {line['p95']:.2%}, worst {line['worst']:.1%}{inside}"
        )
    return found


def read(path: Path) -> list[Row]:
    """The rows of a table, empty cells as None."""
    frame = pd.read_csv(path).astype(object)
    return list(frame.where(frame.notna(), None).to_dict("records"))  # type: ignore[arg-type]  # keys are column names


def memory_points(rows: Iterable[Row]) -> tuple[list[Point], list[Verdict], Counter[str]]:
    points: list[Point] = []
    verdicts: list[Verdict] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        measured = [(row["mem_kind"], row["peak_mem_gb"]), (row["mem_alt_kind"], row["peak_mem_alt_gb"])]
        devices = float(row["n_gpus"] or 1) if "summed over GPUs" in str(row["notes"]) else 1.0
        measured = [(k, float(v) / devices) for k, v in measured if v is not None and k in KINDS]
        if not measured and row["quality"] != "OOM":
            continue  # a row about time
        setup = setup_of(row)
        if isinstance(setup, str):
            reasons[setup] += 1
            continue
        if isinstance(setup, LossRow):
            points += [_point(row, KINDS[k], v, setup.bytes / 1e9, None) for k, v in measured]
            continue
        card, context = card_of(row), context_of(row)
        found = memory(setup, card, context)
        known = row["quality"] == "OOM" or any(KINDS[k] in {"reserved", "process"} for k, _ in measured)
        if known and card is not None:
            share = needed(setup, found, context) / card
            verdicts.append(Verdict(str(row["row_id"]), publisher(row), row["quality"] != "OOM", share))
        if row["quality"] != "OOM":
            points += [_memory_point(row, KINDS[k], v, found) for k, v in measured]
    return points, verdicts, reasons


def time_points(rows: Iterable[Row]) -> tuple[list[Point], list[Point], Counter[str]]:
    """Forecasts of seconds per step from the table of processors alone, and calibrated.

    Calibrated: every row of a stack serves once as the one calibration row, and the others are forecast with it.
    """
    reasons: Counter[str] = Counter()
    stacks: defaultdict[tuple[str, ...], list[tuple[Row, TimeRow]]] = defaultdict(list)
    for row in rows:
        found = time_of(row)
        if isinstance(found, str):
            if row["tokens_per_s"] is not None or row["time_h"] is not None:
                reasons[found] += 1
        else:
            stacks[found.stack].append((row, found))
    cold, warm = [], []
    for members in stacks.values():
        for row, one in members:
            cold.append(_time_point(row, one, time.COLD))
        for known in range(len(members)):
            taught = members[known][1]
            rates = time.calibrated([(taught.setup, taught.processor, taught.seconds_per_step)], "one row")
            warm += [_time_point(row, one, rates) for i, (row, one) in enumerate(members) if i != known]
    return cold, warm, reasons


def _time_point(row: Row, one: TimeRow, rates: time.Rates) -> Point:
    interval = time.step(one.setup, one.processor, rates)
    inside = interval.low <= one.seconds_per_step <= interval.high
    return Point(
        str(row["row_id"]), one.source, _family(row), str(row["method"]), one.source, "time", one.seconds_per_step,
        interval.mid, inside,
    )  # fmt: skip


def _family(row: Row) -> str:
    return "fit" if any(part in str(row["source"]) for part in FIT) else "check"


def card_of(row: Row) -> int | None:
    """Bytes of the row's card; None where it is not named."""
    if row["gpu"] is None:
        return None
    try:
        return processors.find(str(row["gpu"])).memory_bytes
    except HarnessError:
        return None


def _memory_point(row: Row, kind: str, measured: float, found: Memory) -> Point:
    if kind == "allocated":
        return _point(row, kind, measured, found.allocated / 1e9, None)
    interval = found.reserved if kind == "reserved" else found.process
    inside = interval.low <= measured * 1e9 <= interval.high
    return _point(row, kind, measured, interval.mid / 1e9, inside)


def _point(row: Row, kind: str, measured: float, forecast: float, inside: bool | None) -> Point:
    return Point(
        str(row["row_id"]), publisher(row), _family(row), str(row["method"]), str(row["quality"]), kind, measured,
        forecast, inside,
    )  # fmt: skip


def table(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Print and return the errors by kind and quality (times: by source), and by method within."""
    head = ("sources", "n", "MAPE", "median", "p95", "worst", "in 90 %")
    print(f"  {'kind':32}{'method':16}" + "".join(f"{name:>9}" for name in head))
    lines = []
    for group in (lambda p: (f"{p.kind} ({p.quality})", ""), lambda p: (f"{p.kind} ({p.quality})", p.method)):
        for key, some in sorted(grouped(points, group).items()):
            lines.append({"kind": key[0], "method": key[1] or "all"} | errors(some))
    for line in sorted(lines, key=lambda x: (x["kind"], x["method"] != "all", x["method"])):
        numbers = "".join(f"{line[name]:9.2%}" for name in ("mape", "median", "p95", "worst"))
        inside = "" if line["inside"] is None else f"{line['inside']:9.1%}"
        print(f"  {line['kind']:32}{line['method']:16}{line['sources']:9}{line['n']:9}{numbers}{inside}")
    return lines


def errors(points: Sequence[Point]) -> dict[str, Any]:
    """Errors with every source weighing the same."""
    sources = Counter(p.source for p in points)
    weighted = sorted((abs(p.error), 1 / sources[p.source] / len(sources)) for p in points)
    judged = [p for p in points if p.inside is not None]
    per_source = Counter(p.source for p in judged)
    inside = sum(bool(p.inside) / per_source[p.source] for p in judged) / len(per_source) if judged else None
    return {
        "sources": len(sources),
        "n": len(points),
        "mape": sum(e * w for e, w in weighted),
        "median": quantile(weighted, 0.5),
        "p95": quantile(weighted, 0.95),
        "worst": weighted[-1][0],
        "inside": inside,
    }


def quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """The smallest value that at least `share` of the weight does not exceed."""
    total = 0.0
    for value, weight in weighted:
        total += weight
        if total >= share - 1e-9:
            return value
    return weighted[-1][0]


def verdict_table(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    judged = [v for v in verdicts if v.judged]
    right = [v for v in judged if v.right]
    fitted = sum(v.fitted for v in judged)
    rate = len(right) / len(judged) if judged else math.nan
    print(
        f"  {len(right)} of {len(judged)} right ({rate:.1%}): {fitted} that fitted, {len(judged) - fitted} that did "
        f"not; {len(verdicts) - len(judged)} within {BAND:.0%} of the card are not judged"
    )
    for wrong in (v for v in judged if not v.right):
        print(
            f"  wrong: {wrong.row} {'fitted' if wrong.fitted else 'did not fit'}, needs {wrong.share:.0%} of the card"
        )
    return {"n": len(judged), "right": rate, "not judged": len(verdicts) - len(judged)}


def grouped(points: Iterable[Point], key: Callable[[Point], tuple[str, str]]) -> dict[tuple[str, str], list[Point]]:
    found: defaultdict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        found[key(point)].append(point)
    return found


if __name__ == "__main__":
    sys.exit(main())
