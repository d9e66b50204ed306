"""A study's summary as text."""

import io
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.summary import LOSS, ArmRow, Measured, Summary
from harness.units import duration, size

COSTS = ("chosen lr", "peak memory", "train time", "tokens/s", "runs")

WIDTH = 170
"""Columns of a table that does not go to a terminal."""


def render(summary: Summary) -> str:
    """The table per arm, the sentence and what limits it."""
    losses = [] if summary.metric == LOSS else [LOSS]
    head = ["arm", "base", summary.metric, *losses, *_retained(summary), *COSTS]
    rows = [_cells(row, summary, bool(losses)) for row in summary.arms]
    if summary.zero_shot:
        scores = [_plain(summary.zero_shot.get(name)) for name in (summary.metric, *losses, *_retained(summary))]
        rows.append(["zero-shot", "", *scores, *[""] * len(COSTS)])
    lines = [table(head, rows)]
    if summary.majority is not None:
        lines.append(f"always the most frequent answer: {summary.metric} {summary.majority:.3f}")
    lines.append("values: mean over fresh seeds ± half of the 95 % interval over seeds")
    if any(row.search_trials for row in summary.arms):
        ledger = "; ".join(f"{r.arm} {r.search_trials} runs in {duration(r.search_seconds)}" for r in summary.arms)
        lines.append(f"tuning ledger: {ledger}")
    lines += ["", summary.sentence]
    lines += _pairs(summary)
    lines += [f"note: {c}" for c in summary.caveats]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """A plain table, as wide as asked for, else as the terminal needs or `WIDTH` where there is none."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        grid.add_column(
            name.replace("/", "/\n"), justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0
        )
    for row in rows:
        grid.add_row(*row)
    terminal = Console()
    width = width or (terminal.width if terminal.is_terminal else WIDTH)
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(grid)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _cells(row: ArmRow, summary: Summary, loss: bool) -> list[str]:
    rate = "-" if row.learning_rate is None else f"{row.learning_rate:.3g}" + (" (edge)" if row.at_edge else "")
    return [
        row.arm,
        row.quantization,
        _measured(row.score),
        *([_measured(row.loss)] if loss else []),
        *[_plain({**row.others, **row.retention}.get(name)) for name in _retained(summary)],
        rate,
        size(row.peak_bytes),
        "-" if row.train_seconds is None else duration(row.train_seconds),
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in row.statuses.items()) or "none yet",
    ]


def _pairs(summary: Summary) -> list[str]:
    """What is shown, or not, between arms of which none is the baseline."""
    said: dict[str, list[str]] = {}
    for v in summary.pairs:
        if v.label in {"better", "worse"}:
            said.setdefault(f"Shown to be {v.label}", []).append(f"{v.arm} than {v.baseline}")
        elif v.label == "equivalent":
            said.setdefault("Equivalent", []).append(f"{v.arm} and {v.baseline}")
        elif v.label == "not shown" and v.interval is not None:
            apart = v.interval.low > 0 or v.interval.high < 0
            words = "Different, but not shown to be so by more than the margin" if apart else "Not shown to differ"
            said.setdefault(words, []).append(f"{v.arm} and {v.baseline}")
    return [f"{words}: {'; '.join(pairs)}." for words, pairs in said.items()]


def _retained(summary: Summary) -> list[str]:
    """The columns beside the compared metric: other target tasks, then what was retained."""
    others = [name for row in summary.arms for name in row.others]
    return list(dict.fromkeys([*others, *(name for row in summary.arms for name in row.retention)]))


def _measured(value: Measured | None) -> str:
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.mean:.3f} (one seed)"
    return f"{value.mean:.3f} ± {(value.high - value.low) / 2:.3f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
