"""What a run is computed on: a GPU by name from a table that can be edited, or this machine's CPU."""

from harness.spec import Value


class Processor(Value):
    """One GPU, or the CPU cores of one trial."""

    name: str
    kind: str
    """`cuda` or `cpu`."""
    memory_bytes: int | None
    """Of the card; None where memory is not the question (a CPU)."""
    bandwidth: float
    """Bytes per second between memory and cores."""
    flops: dict[str, float]
    """Dense operations per second by dtype: fp32, tf32, bf16, fp16, int8, fp8."""
    per_hour: float | None = None
    """Rental price in US dollars; what a study's own `prices.per_hour` overrides."""
    context_bytes: int = 500_000_000
    """What a CUDA context takes before the first tensor."""
    link: float = 25e9
    """Bytes per second to the host."""
    fabric: float = 25e9
    """Bytes per second to a neighbour GPU."""


def find(name: str) -> Processor:
    """The processor of that name: `RTX 4090`, `rtx4090`, `H100`, `A100-80GB`, `cpu`, or a size such as `24 GB`.

    Raises:
        SpecError: no such GPU; names the nearest.
    """
    raise NotImplementedError


def here() -> Processor:
    """This machine's GPU as the driver names it, or its CPU. Imports no torch."""
    raise NotImplementedError
