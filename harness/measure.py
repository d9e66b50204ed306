"""The instruments: a clock, memory peaks and energy for each stage of a trial.

Instruments that need the device's library are handed in as a `Device`, so that nothing here imports it.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from harness.record import Stage, StageName


class Device(Protocol):
    """The device a trial computes on, as far as measuring goes."""

    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""
        ...

    def reset_peaks(self) -> None: ...

    def peaks(self) -> dict[str, int | None]:
        """`allocated_peak_bytes`, `reserved_peak_bytes` and `device_peak_bytes` since the last reset."""
        ...

    def energy_joules(self) -> float | None:
        """A counter that only grows, or None."""
        ...


class Stages:
    """The stages of a trial so far, each with its own time and peaks."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.done: list[Stage] = []
        self.current: StageName | None = None

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Measure one stage. It is kept when it fails too: what was used until then is known."""
        self.current = name
        self.device.synchronize()
        self.device.reset_peaks()
        reset_rss_peak()
        energy = self.device.energy_joules()
        began = time.perf_counter()
        try:
            yield
            self.device.synchronize()
        finally:
            seconds = time.perf_counter() - began
            after = self.device.energy_joules()
            peaks = self.device.peaks()
            self.done.append(
                Stage(
                    stage=name,
                    seconds=seconds,
                    rss_peak_bytes=rss_peak(),
                    allocated_peak_bytes=peaks.get("allocated_peak_bytes"),
                    reserved_peak_bytes=peaks.get("reserved_peak_bytes"),
                    device_peak_bytes=peaks.get("device_peak_bytes"),
                    energy_joules=None if energy is None or after is None else after - energy,
                )
            )


def reset_rss_peak() -> None:
    """Let the kernel forget this process's highest resident set (Linux, proc(5): clear_refs); elsewhere do nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def rss_peak() -> int | None:
    """Highest resident set in bytes since the last reset, None where the kernel does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
