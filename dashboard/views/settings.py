"""How settings read: nested ones under one name each, and their values as text."""

from collections.abc import Mapping
from typing import Any

from harness.words import capital


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def said(name: str) -> str:
    """A setting's name as it is read: `train.max_length` is `Train: max length`."""
    return capital(name.replace(".", ": ").replace("_", " "))


def value(some: Any) -> str:
    """A setting as text."""
    if some is None or some == "":
        return "-"
    if isinstance(some, bool):
        return "yes" if some else "no"
    if isinstance(some, list):
        return ", ".join(map(str, some)) or "-"
    return f"{some:.6g}" if isinstance(some, float) else str(some)
