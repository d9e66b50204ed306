"""How long the parts of a run take: operations over rates, never less than launching them."""

from collections.abc import Iterable

from harness.forecast.processors import Processor
from harness.forecast.setup import Setup
from harness.record import Interval
from harness.spec import Value


class Rates(Value):
    """What measured runs taught about times; the default is what the table of processors alone gives."""

    source: str = "cold"
    factor: float = 1.0
    """Measured over forecast seconds."""
    spread: float = 0.45
    """Half-width of the 90 % interval of log seconds."""


COLD = Rates()


def step(setup: Setup, processor: Processor, rates: Rates = COLD) -> Interval:
    """Seconds of one optimizer step: all its micro-batches, communication and the optimizer."""
    raise NotImplementedError


def step_parts(setup: Setup, processor: Processor) -> dict[str, float]:
    """Seconds of one optimizer step by part, cold: compute, launches, dequantization, optimizer, communication."""
    raise NotImplementedError


def forward(setup: Setup, processor: Processor, batch: int, length: int, rates: Rates = COLD) -> Interval:
    """Seconds of one forward pass without gradients, for evaluation."""
    raise NotImplementedError


def load(setup: Setup, processor: Processor, rates: Rates = COLD) -> Interval:
    """Seconds to read the weights and store them quantized."""
    raise NotImplementedError


def calibrated(rows: Iterable[tuple[Setup, Processor, float]], source: str) -> Rates:
    """Rates from measured seconds per optimizer step of runs of one software stack."""
    raise NotImplementedError
