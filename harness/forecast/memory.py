"""Peak memory of a training run: the largest of its phases, each the sum of its components."""

from harness.forecast.setup import Setup
from harness.record import Interval
from harness.spec import Value


class Phase(Value):
    """One moment of a run that may hold the peak."""

    name: str
    """`load`, `start of backward`, `backward of a layer`, `optimizer step` or `evaluation`."""
    components: dict[str, int]
    """Bytes by component."""

    @property
    def total(self) -> int:
        return sum(self.components.values())


class Memory(Value):
    """What a run needs on one device, in bytes."""

    phases: tuple[Phase, ...]
    reserved: Interval
    process: Interval

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def allocated(self) -> int:
        return self.peak.total


def memory(setup: Setup, card: int | None = None, context: int = 500_000_000) -> Memory:
    """Memory of a run on a card of `card` bytes (None: unlimited) whose CUDA context takes `context` bytes."""
    raise NotImplementedError
