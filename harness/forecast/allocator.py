"""From live tensors to what runs out: PyTorch's caching allocator, the CUDA context and what libraries take."""

from harness.forecast.setup import Setup
from harness.record import Interval
from harness.spec import Value


class Allocator(Value):
    """What PyTorch's caching allocator holds beyond live tensors, in shares of the blocks that come and go."""

    low: float
    mid: float
    high: float
    needs: float
    """Share of the live peak without which a run fails, on a card that leaves no more."""


FIXED = Allocator(low=0.04, mid=0.45, high=1.2, needs=1.05)
"""Segments of fixed size, batches of one length: freed blocks wait for a request of that size. From 200 runs."""
VARIED = Allocator(low=0.15, mid=1.7, high=3.9, needs=1.05)
"""The same with batches of many lengths: every length leaves blocks of its own behind."""
EXPANDABLE = Allocator(low=0.0, mid=0.08, high=0.4, needs=1.02)
"""Expandable segments grow in place: torchtune#1185 saw 34 % less reserved memory for the same run."""
LOST = 300_000_000
"""Bytes outside torch's allocator: libraries' handles and kernels loaded after the context (0.1 to 0.5 GB)."""
NCCL = 400_000_000
"""Bytes of NCCL's buffers per device (0.3 to 1 GB)."""
USABLE = 0.985
"""Share of a card that the driver hands out before a run fails."""


def allocator(setup: Setup) -> Allocator:
    if setup.profile.expandable_segments:
        return EXPANDABLE
    return VARIED if setup.padded else FIXED


def needed(setup: Setup, allocated: int, context: int) -> float:
    """Bytes that a card must have: the peak, the context, and what the allocator cannot help losing."""
    return allocated * allocator(setup).needs + context + LOST


def reserved(setup: Setup, peak: int, blocks: int, gathered: int, most: int | None) -> Interval:
    """Held by the allocator: the live peak, and shares of the `blocks` that come and go.

    Where a card has room nothing makes it give blocks back, so it holds more than needed; never more than `most`.
    `gathered`: whole weights that a shard holds for a moment.
    """
    share = allocator(setup)
    low, mid, high = (peak + each * blocks for each in (share.low, share.mid, share.high))
    high += 2 * gathered
    if most is not None:
        most = max(peak, most)
        low, mid, high = min(low, max(peak, 0.96 * most)), min(mid, most), min(high, most)
    return Interval(low=low, mid=mid, high=max(high, peak * 1.02))


def process(setup: Setup, held: Interval, context: int) -> Interval:
    """What the driver counts: the allocator's memory, the context and what libraries take for themselves."""
    shared = NCCL if setup.devices > 1 else 0
    return Interval(
        low=held.low + 0.8 * context,
        mid=held.mid + context + LOST / 2 + shared,
        high=held.high + context + 2 * LOST + 3 * shared,
    )
