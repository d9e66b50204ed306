"""Quantities in words and on axes, with their units."""

import pytest

from harness.units import GIB, amount, byte_scale, duration, energy, money, percent, size, time_scale


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (size(3 << 30), "3.0 GiB"),
        (size(512), "0.5 KiB"),
        (duration(89), "89 s"),
        (duration(5400), "1 h 30 min"),
        (duration(None), "-"),
        (money(1.4, "$"), "$1.40"),
        (money(0.5, "$"), "$0.50"),
        (money(0.00123, "$"), "$0.0012"),
        (money(12.5, "EUR"), "12.50 EUR"),
        (money(None, "$"), "-"),
        (amount(0.5, 2.0, "$"), "$0.50"),
        (amount(0.5, None, "$"), "30 min"),
        (energy(3600), "1 Wh"),
        (energy(7.2e6), "2.00 kWh"),
        (percent(0.84), "84 %"),
        (percent(-0.125, 1, "+"), "-12.5 %"),
        (percent(None), "-"),
    ],
)
def test_quantities_read_with_their_units(said: str, wanted: str) -> None:
    assert said == wanted


def test_an_axis_has_the_unit_of_its_largest_value() -> None:
    assert byte_scale(3 * GIB) == (GIB, "GiB")
    assert byte_scale(5) == (1024, "KiB")
    assert [time_scale(seconds)[1] for seconds in (119, 120, 7199, 7200)] == ["s", "min", "min", "h"]
