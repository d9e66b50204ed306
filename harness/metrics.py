"""How a metric reads: its name, its unit, one score, one difference, and what they are over."""

from harness.units import is_share


def unit(metric: str) -> str:
    """What a difference is counted in."""
    if is_share(metric):
        return "percent points"
    return "nats per token" if _is_loss(metric) else f"units of {plain(metric)}"


def counted_in(metric: str) -> str:
    """The same in a word, as it follows a number; empty for a metric of no known unit."""
    return "points" if is_share(metric) else "nats" if _is_loss(metric) else ""


def plain(metric: str) -> str:
    """A metric's name as it is read."""
    return metric.replace("/", " ").replace("_", " ")


def title(metric: str, *, higher_is_better: bool = True, name: str | None = None) -> str:
    """A metric as an axis is named: what it is, its unit, and which way is better. `name` stands in for its own."""
    shown = " (%)" if is_share(metric) else " (nats per token)" if _is_loss(metric) else ""
    return f"{name or plain(metric)}{shown}{'' if higher_is_better else ', lower is better'}"


def scale(metric: str) -> int:
    """Shown value of a score of one: shares are shown in percent."""
    return 100 if is_share(metric) else 1


def scaled(value: float | None, metric: str) -> float | None:
    """A score or difference as it is drawn."""
    return None if value is None else value * scale(metric)


def number(value: float, metric: str, sign: str = "") -> str:
    """Without its unit. Three digits at least, but of percents: a loss of 0.00002 is not 0.000."""
    if is_share(metric):
        return f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # no -0.0
    return f"{value:{sign}.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:{sign}#.3g}"


def score(value: float | None, metric: str, none: str = "not scored") -> str:
    """One score with its unit: `89.4 %`, `0.0834 nats`."""
    if value is None:
        return none
    return f"{number(value, metric)} {'%' if is_share(metric) else counted_in(metric)}".rstrip()


def difference(value: float, metric: str) -> str:
    """One difference with its unit: `-8.4 points`, `+0.0360 nats`."""
    return f"{number(value, metric, '+')} {counted_in(metric)}".rstrip()


def margin(value: float, metric: str) -> str:
    """`2 points`, `0.01 nats`."""
    return f"{value * scale(metric):g} {counted_in(metric)}".rstrip()


def bounds(low: float, high: float, metric: str, sign: str = "") -> str:
    """An interval in the unit of the number before it: `[87.9, 90.9]`."""
    return f"[{number(low, metric, sign)}, {number(high, metric, sign)}]"


def spread(low: float | None, high: float | None, metric: str) -> str:
    """What stands after a mean: its interval, or that it is of one seed."""
    return "(one seed)" if low is None or high is None else bounds(low, high, metric)


def mean(value: float, low: float | None, high: float | None, metric: str) -> str:
    """`89.4 % [87.9, 90.9]`, `0.683 nats (one seed)`."""
    return f"{score(value, metric)} {spread(low, high, metric)}"


def change(value: float, low: float, high: float, metric: str) -> str:
    """`-8.4 points [-13.1, -3.8]`."""
    return f"{difference(value, metric)} {bounds(low, high, metric, '+')}"


def _is_loss(metric: str) -> bool:
    return metric.endswith("_loss") or metric.partition("/")[0].startswith("kl_")
