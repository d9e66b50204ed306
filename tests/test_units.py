"""Numbers in words, with their units."""

import pytest

from harness.units import duration, energy, money, size


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (size(3 << 30), "3.0 GiB"),
        (duration(89), "89 s"),
        (duration(5400), "1 h 30 min"),
        (money(1.4, "$"), "$1.40"),
        (money(0.00123, "$"), "$0.0012"),
        (money(12.5, "EUR"), "12.50 EUR"),
        (money(None, "$"), "-"),
        (energy(3600), "1 Wh"),
        (energy(7.2e6), "2.00 kWh"),
    ],
)
def test_quantities_read_with_their_units(said: str, wanted: str) -> None:
    assert said == wanted
