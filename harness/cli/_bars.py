"""Bars stacked by component, with a legend: what memory is taken by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

COLOURS = ("blue", "cyan", "green", "yellow", "magenta", "red", "white")
FILLS = "█░▓▚▒=·"
"""Where colour is off, each component has its own."""
PLAIN_FILLS = "#-%+o=."
"""Where the terminal cannot write the others."""
OTHER = "other"


@dataclass(frozen=True)
class Pen:
    """How parts of a bar are told apart."""

    colour: bool
    unicode: bool = True

    def fill(self, number: int, cells: int) -> str:
        number = min(number, len(FILLS) - 1)
        if self.colour:
            return click.style(("█" if self.unicode else "#") * cells, fg=COLOURS[number]) if cells else ""
        return (FILLS if self.unicode else PLAIN_FILLS)[number] * cells

    @property
    def mark(self) -> str:
        return "│" if self.unicode else "|"


def bars(rows: Mapping[str, Mapping[str, float]], limit: float | None, unit: float, width: int, pen: Pen) -> list[str]:
    """One bar per row, all on one scale, with `limit` marked; values are shown in multiples of `unit`.

    Parts that would not fill half a cell anywhere are shown together as `other`.
    """
    name_width = max(len(name) for name in rows)
    space = width - name_width - len("  ") - len("  9999.9")
    highest = max([sum(parts.values()) for parts in rows.values()] + ([limit] if limit else []))
    scale = (space - 1) / highest
    order = _order(rows, 0.5 / scale)
    lines = []
    for name, parts in rows.items():
        grouped = _grouped(parts, order)
        lines.append(
            f"{name:<{name_width}}  {_bar(grouped, order, scale, limit, space, pen)}  {_total(parts, unit):>6}"
        )
    legend = [f"{pen.fill(i, 1)} {name}" for i, name in enumerate(order)]
    if limit:
        legend.append(f"{pen.mark} card {limit / unit:.1f}")
    return [*lines, *_wrapped(legend, width, name_width + 2)]


def cells(values: Sequence[float], scale: float) -> list[int]:
    """Whole cells for each value that add up to the cells of the sum: the largest remainders are rounded up."""
    exact = [value * scale for value in values]
    whole = [int(x) for x in exact]
    left = round(sum(exact)) - sum(whole)
    for i in sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[: max(left, 0)]:
        whole[i] += 1
    return whole


def _bar(
    parts: Mapping[str, float], order: Sequence[str], scale: float, limit: float | None, space: int, pen: Pen
) -> str:
    counts = cells([parts.get(name, 0.0) for name in order], scale)
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    marked = round(limit * scale) if limit else -1
    text = ""
    start = 0
    row: list[int | None] = [*numbers[:space], *[None] * (space - len(numbers))]
    while start < space:
        if start == marked:
            text += pen.mark
            start += 1
            continue
        end = start
        while end < space and row[end] == row[start] and end != marked:
            end += 1
        number = row[start]
        text += " " * (end - start) if number is None else pen.fill(number, end - start)
        start = end
    return text


def _order(rows: Mapping[str, Mapping[str, float]], least: float) -> list[str]:
    """Components in one order for all rows, by their distance from a row's end; those that are small everywhere come
    last, together."""
    largest: dict[str, float] = {}
    from_end: dict[str, int] = {}
    for parts in rows.values():
        for i, (name, value) in enumerate(parts.items()):
            largest[name] = max(value, largest.get(name, 0.0))
            from_end[name] = max(len(parts) - i, from_end.get(name, 0))
    by_size = sorted(largest, key=lambda name: -largest[name])
    kept = {name for name in by_size[: len(FILLS) - 1] if largest[name] >= least}
    order = sorted(kept, key=lambda name: (-from_end[name], list(largest).index(name)))
    return order if len(order) == len(largest) else [*order, OTHER]


def _grouped(parts: Mapping[str, float], order: Sequence[str]) -> dict[str, float]:
    grouped = {name: value for name, value in parts.items() if name in order}
    rest = sum(value for name, value in parts.items() if name not in order)
    return grouped | ({OTHER: grouped.get(OTHER, 0.0) + rest} if rest else {})


def _total(parts: Mapping[str, float], unit: float) -> str:
    return f"{sum(parts.values()) / unit:.1f}"


def _wrapped(words: Sequence[str], width: int, indent: int) -> list[str]:
    lines, line = [], ""
    for word in words:
        longer = f"{line}  {word}" if line else word
        if len(click.unstyle(longer)) > width - indent and line:
            lines.append(line)
            line = word
        else:
            line = longer
    return [" " * indent + one for one in [*lines, line]]
