"""How quantities read: bytes, seconds, money and shares, with their units."""

GIB = 1 << 30
SIZES = (("GiB", GIB), ("MiB", 1 << 20))
TIMES = ((3600.0, "h"), (60.0, "min"))

SHARES = frozenset({"exact_match", "acc", "acc_norm", "accuracy", "f1"})
"""Metrics that are shares of right answers: shown in percent."""


def is_share(metric: str) -> bool:
    """Whether a metric, with its task or without, is a share; lm-eval's filter in brackets says nothing."""
    return metric.rpartition("/")[2].partition("[")[0] in SHARES


def size(value: int | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "-"
    scale, unit = byte_scale(value)
    return f"{value / scale:.1f} {unit}"


def byte_scale(most: float) -> tuple[int, str]:
    """The unit in which byte counts up to `most` read well: its bytes and its name."""
    return next(((scale, unit) for unit, scale in SIZES if most >= scale), (1024, "KiB"))


def duration(seconds: float | None) -> str:
    """Seconds as `45 s`, `12 min` or `3 h 20 min`."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_scale(most: float) -> tuple[float, str]:
    """The unit in which times up to `most` seconds read well: its seconds and its name."""
    return next(((scale, unit) for scale, unit in TIMES if most >= 2 * scale), (1.0, "s"))


def money(value: float | None, currency: str) -> str:
    """An amount with its currency: `$0.0012`, `$1.40`, `12.5 EUR`; a symbol of one character stands in front."""
    if value is None:
        return "-"
    amount = f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
    return f"{currency}{amount}" if len(currency) == 1 else f"{amount} {currency}"


def amount(hours_or_money: float, per_hour: float | None, currency: str) -> str:
    """A cost: money where an hour has a price, else the hours that it takes."""
    return duration(3600 * hours_or_money) if per_hour is None else money(hours_or_money, currency)


def percent(share: float | None, digits: int = 0, sign: str = "") -> str:
    """A share of one: `84 %`, `89.4 %`."""
    return "-" if share is None else f"{100 * share:{sign}.{digits}f} %"


def energy(joules: float | None) -> str:
    """Joules in watt-hours."""
    if joules is None:
        return "-"
    hours = joules / 3600
    return f"{hours / 1000:.2f} kWh" if hours >= 1000 else f"{hours:.3g} Wh"
