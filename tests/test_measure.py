"""The instruments: every stage is kept with its time and peaks, the one that failed too."""

import sys
import time

import pytest

from harness.measure import Stages, reset_rss_peak, rss_peak

MIB = 1 << 20


class Meter:
    """A device whose counters are set by hand."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.joules = 100.0

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def reset_peaks(self) -> None:
        self.calls.append("reset")

    def peaks(self) -> dict[str, int | None]:
        self.calls.append("peaks")
        return {"allocated_peak_bytes": 7, "reserved_peak_bytes": 8, "device_peak_bytes": None}

    def energy_joules(self) -> float | None:
        return self.joules


def test_a_stage_is_timed_and_its_peaks_and_energy_are_read() -> None:
    meter = Meter()
    stages = Stages(meter)
    with stages.stage("load"):
        meter.joules += 5
        time.sleep(0.02)
    (stage,) = stages.done
    assert (stage.stage, stage.allocated_peak_bytes, stage.reserved_peak_bytes) == ("load", 7, 8)
    assert stage.device_peak_bytes is None
    assert stage.energy_joules == 5
    assert 0.02 <= stage.seconds < 1
    # work still queued before counts for no stage, work queued inside it counts for this one
    assert meter.calls == ["synchronize", "reset", "synchronize", "peaks"]


def test_a_stage_that_fails_is_kept_and_its_error_passed_on() -> None:
    stages = Stages(Meter())
    with stages.stage("load"):
        pass
    with pytest.raises(MemoryError), stages.stage("train"):
        raise MemoryError
    assert [s.stage for s in stages.done] == ["load", "train"]
    assert stages.current == "train"
    assert stages.done[1].allocated_peak_bytes == 7


def test_energy_that_cannot_be_read_is_none_not_zero() -> None:
    meter = Meter()
    meter.joules = None  # type: ignore[assignment]  # a GPU without a counter
    stages = Stages(meter)
    with stages.stage("load"):
        pass
    assert stages.done[0].energy_joules is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells the resident set")
def test_the_resident_peak_is_of_its_own_stage() -> None:
    stages = Stages(Meter())
    with stages.stage("load"):
        block = bytearray(b"x" * (64 * MIB))
        del block
    with stages.stage("train"):
        pass
    load, train = (s.rss_peak_bytes for s in stages.done)
    assert load is not None
    assert train is not None
    assert load - train > 50 * MIB  # had the peak not been reset, the second stage would show the first one's
    reset_rss_peak()
    assert (rss_peak() or 0) > 0
