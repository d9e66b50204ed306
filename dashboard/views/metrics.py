"""How a metric reads: its name, its unit, one score and one difference."""

from harness.units import is_share


def unit(metric: str) -> str:
    """What a difference is counted in."""
    if is_share(metric):
        return "percent points"
    loss = metric.endswith("_loss") or metric.partition("/")[0].startswith("kl_")
    return "nats per token" if loss else f"units of {plain(metric)}"


def plain(metric: str) -> str:
    """A metric's name as it is read."""
    return metric.replace("/", " ").replace("_", " ") if metric.endswith("_loss") else metric.replace("/", " ")


def scaled(value: float, metric: str) -> float:
    return value * 100 if is_share(metric) else value


def number(value: float, metric: str) -> str:
    """A difference with its unit: `-8.4 points`, `+0.036 nats`."""
    if is_share(metric):
        return f"{_percent(value):+.1f} points"
    return _rounded(value, "+") + (" nats" if unit(metric) == "nats per token" else "")


def score(value: float, metric: str) -> str:
    """One score with its unit: `89.4 %`, `0.083 nats`."""
    if is_share(metric):
        return f"{100 * value:.1f} %"
    return _rounded(value) + (" nats" if unit(metric) == "nats per token" else "")


def bounds(low: float, high: float, metric: str, sign: str = "") -> str:
    """An interval in the unit of the number before it: `[87.9, 90.9]`."""
    if is_share(metric):
        return f"[{_percent(low):{sign}.1f}, {_percent(high):{sign}.1f}]"
    return f"[{_rounded(low, sign)}, {_rounded(high, sign)}]"


def _percent(value: float) -> float:
    """A share in percent as it is shown, where there is no -0.0."""
    return round(100 * value, 1) + 0.0


def _rounded(value: float, sign: str = "") -> str:
    """Three decimals, or two digits of what is smaller: a divergence of 0.00002 is not 0.000."""
    return f"{value:{sign}.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:{sign}.2g}"
