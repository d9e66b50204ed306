"""Published speeds as seconds per optimizer step of a setup on a processor, or why a row says too little for that."""

import re
from dataclasses import dataclass

from _published import LossRow, Row, publisher, setup_of

from harness.errors import HarnessError
from harness.forecast import processors
from harness.forecast.processors import Processor
from harness.forecast.setup import Setup


@dataclass(frozen=True)
class TimeRow:
    """A measured speed in the forecast's own terms."""

    setup: Setup
    processor: Processor
    seconds_per_step: float
    source: str
    """The publisher: the unit that is weighted equally."""
    stack: tuple[str, ...]
    """What shares one calibration row: a publisher's table, its software settings, GPU, method and sharding."""


def time_of(row: Row) -> TimeRow | str:
    """The measured time of a row, or why it cannot be forecast.

    Software as the sources state it: torch.compile fuses what surrounds products; llm-foundry's benchmark script runs
    the first flash attention, in Triton (`--attn_impl`, default `triton`, in its submit_benchmarks.py).
    """
    if row["tokens_per_s"] is None and row["time_h"] is None:
        return "no time was measured"
    setup = setup_of(row)
    if isinstance(setup, LossRow):
        return "a loss kernel alone"
    if isinstance(setup, str):
        return setup
    reason = _unforecastable(row, setup)
    if reason:
        return reason
    processor = processor_of(row)
    if isinstance(processor, str):
        return processor
    profile = setup.profile.model_copy(update={"fused_layer": setup.profile.fused_layer or _compiled(row),
                                               "flash": 1 if "llm-foundry" in str(row["source"]) else 2})  # fmt: skip
    setup = setup.model_copy(update={"profile": profile})
    seconds = setup.tokens * setup.accumulation / _tokens_per_second_of_a_device(row, setup)
    return TimeRow(setup, processor, seconds, publisher(row), stack_of(row, setup))


def stack_of(row: Row, setup: Setup) -> tuple[str, ...]:
    """What one calibration row stands for; neither the model nor the sizes of a run are in it."""
    table = re.sub(r"#\d+$", "", str(row["source"]))
    return (table, _software(row), str(row["gpu"]), str(row["method"]), setup.sharding)


def processor_of(row: Row) -> Processor | str:
    """The GPU of a row; a variant that is not in the table counts as its family."""
    name = str(row["gpu"])
    if "/" in name:
        return "one of several GPUs, not stated which"
    for attempt in (name, re.split(r" ?\(", name)[0], name.split("-")[0]):
        try:
            return processors.find(attempt)
        except HarnessError:
            continue
    return f"the GPU is not in the table: {name}"


def _unforecastable(row: Row, setup: Setup) -> str | None:
    notes, precision = str(row["notes"] or ""), str(row["precision"] or "").lower()
    if "fp8" in precision or "float8" in precision or "float8" in notes:
        return "fp8 products, which the harness does not run"
    if re.search(r"\bTP[2-9]", str(row["sharding"])):
        return "tensor parallelism, which the harness does not run"
    if setup.padded:
        return "lengths of the batches are not stated"
    if row["tokens_per_s"] is None or "incl. eval" in notes:
        return "time of a whole run, evaluation within"
    return None


def _tokens_per_second_of_a_device(row: Row, setup: Setup) -> float:
    """The table has tokens per device in most sources, and over all of them in some.

    torchtune's README does not say which: 70B LoRA at 3,497 tokens/s on each of eight A100 would be five times what the
    card can compute, so they are totals.
    """
    notes = str(row["notes"] or "")
    total = "total tokens/s" in notes or "x n_gpus" in notes or "torchtune" in str(row["source"])
    return float(row["tokens_per_s"]) / (setup.devices if total else 1)


def _software(row: Row) -> str:
    notes = str(row["notes"] or "")
    found = re.search(r"framework_config=([^;]*)", notes)
    return found[1] if found else "compiled" if _compiled(row) else ""


def _compiled(row: Row) -> bool:
    """torchtune's table of flags adds one flag a row: what follows `compile` has it."""
    notes = str(row["notes"] or "").lower()
    flags = "Optimization flags" in str(row["source"]) and not notes.startswith(("baseline", "+packed"))
    return "compile" in notes or flags
