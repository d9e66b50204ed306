"""How quantities read: bytes, seconds, money and shares, with their units."""

GIB = 1 << 30

SHARES = frozenset({"exact_match", "acc", "acc_norm", "accuracy", "f1"})
"""Metrics that are shares of right answers: shown in percent."""


def is_share(metric: str) -> bool:
    """Whether a metric, with its task or without, is a share; lm-eval's filter in brackets says nothing."""
    return metric.rpartition("/")[2].partition("[")[0] in SHARES


def size(value: int | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "-"
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value / 1024:.1f} KiB"


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def money(value: float | None, currency: str) -> str:
    """An amount with its currency: `$0.0012`, `$1.40`, `12.5 EUR`; a symbol of one character stands in front."""
    if value is None:
        return "-"
    amount = f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"
    return f"{currency}{amount}" if len(currency) == 1 else f"{amount} {currency}"


def energy(joules: float | None) -> str:
    """Joules in watt-hours."""
    if joules is None:
        return "-"
    hours = joules / 3600
    return f"{hours / 1000:.2f} kWh" if hours >= 1000 else f"{hours:.3g} Wh"
