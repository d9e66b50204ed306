"""What a run is computed on: a GPU by name from a table that can be edited, or this machine's CPU."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, ValidationError

from harness import environment
from harness.errors import SpecError, did_you_mean
from harness.spec import Section, Value, read_yaml

GIB = 2**30
TABLE = Path(__file__).with_name("processors.yaml")
MAKERS = frozenset({"nvidia", "amd", "geforce", "tesla", "instinct", "corporation"})
PLAIN_EFFICIENCY = 0.7
"""The same as `efficiency` without tensor cores, whose power limits do not bind."""
NAMELESS_SPREAD = 0.7
"""Cards of one size differ up to four times in speed."""
USABLE = 0.98
"""Share of the memory that is sold which PyTorch may use, on cards that are not in the table (in it: 0.92 to 0.99)."""


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
    efficiency: float = 0.75
    """Share of `flops` that large matrix products keep up over minutes: power limits are in it."""
    attention: float = 0.75
    """Share of the rate of large products that flash attention reaches over forward and backward."""
    launch: float = 16e-6
    """Seconds that the host needs per operation."""
    per_hour: float | None = None
    """Rental price in US dollars; what a study's own `prices.per_hour` overrides it."""
    context_bytes: int = 500_000_000
    """What a CUDA context takes before the first tensor."""
    link: float = 25e9
    """Bytes per second to the host."""
    fabric: float = 25e9
    """Bytes per second to a neighbour GPU."""
    spread: float = 0.0
    """What its rates may be wrong by before a run on it was measured: half-width of the 90 % interval of their log."""
    doubts: tuple[str, ...] = ()
    """Why its times or its memory are uncertain, in words."""

    def rate(self, dtype: str) -> float:
        """Operations per second that large products keep up in a dtype; one that the card lacks runs as fp32."""
        if dtype == "fp32" or dtype not in self.flops:
            return self.flops["fp32"] * max(self.efficiency, PLAIN_EFFICIENCY)
        return self.flops[dtype] * self.efficiency


class Card(Section):
    """A GPU as the table and a user's own file describe it, in the units of data sheets."""

    name: str
    aliases: tuple[str, ...] = ()
    memory_gib: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    tflops: dict[Literal["fp32", "tf32", "bf16", "fp16", "int8", "fp8"], PositiveFloat]
    efficiency: float = Field(0.75, gt=0, le=1)
    attention: float = Field(0.75, gt=0, le=1)
    per_hour: float | None = Field(None, ge=0)
    context_gb: float = Field(0.5, ge=0)
    link_gb_s: float = Field(25, gt=0)
    fabric_gb_s: float = Field(25, gt=0)
    launch_us: float = Field(16, gt=0)
    typical_of: tuple[float, ...] = ()

    def processor(self) -> Processor:
        if "fp32" not in self.tflops:
            raise SpecError(f"{self.name}: tflops lacks fp32", "write its dense rates, such as {fp32: 19.5, bf16: 312}")
        return Processor(
            name=self.name,
            kind="cuda",
            memory_bytes=round(self.memory_gib * GIB),
            bandwidth=self.bandwidth_gb_s * 1e9,
            flops={dtype: rate * 1e12 for dtype, rate in self.tflops.items()},
            efficiency=self.efficiency,
            attention=self.attention,
            launch=self.launch_us * 1e-6,
            per_hour=self.per_hour,
            context_bytes=round(self.context_gb * 1e9),
            link=self.link_gb_s * 1e9,
            fabric=self.fabric_gb_s * 1e9,
        )


CPU = Processor(
    name="cpu",
    kind="cpu",
    memory_bytes=None,
    bandwidth=30e9,
    flops={"fp32": 120e9},
    efficiency=0.75,
    launch=10e-6,
    context_bytes=0,
    spread=0.8,
    doubts=("rates of a CPU differ several times between machines; one measured trial settles them",),
)
"""One core, which is what a trial gets (`launchers/local.py`): as a server with AVX-512 ran the embedded model."""


def find(name: str) -> Processor:
    """The processor of that name: `RTX 4090`, `rtx4090`, `H100`, `A100-80GB`, `cpu`, or a size such as `24 GB`.

    What a driver prints (`NVIDIA A100-SXM4-80GB`) is such a name. So is the path of a YAML file with the keys of one
    entry of `processors.yaml`.

    Raises:
        SpecError: no such GPU; names the nearest.
    """
    if name.strip().lower() == "cpu":
        return CPU
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name)).processor()
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb|gib|g)", name.strip().lower()):
        return nameless(float(size[1]))
    if re.fullmatch(r"\d+(?:\.\d+)?", name.strip()) and _key(name) not in _by_key():
        raise SpecError(f"no GPU {name!r}", f"a card of that size is '{name.strip()} GB'")
    found = _by_key().get(_key(name))
    if found is None:
        raise SpecError(
            f"no GPU {name!r}; {did_you_mean(name, known())}",
            "or give its size, such as '24 GB', or a YAML file with the keys of an entry of forecast/processors.yaml",
        )
    return found.processor()


def known() -> list[str]:
    """The names of the table, one per card."""
    return [card.name for card in _table()]


def nameless(gigabytes: float) -> Processor:
    """A card of which only the size is known, at the rates of a typical card of that size."""
    if not 1 <= gigabytes <= 2000:
        raise SpecError(f"{gigabytes:g} GB is not the size of a GPU", "write it such as '24 GB'")
    typical = min(
        ((max(gigabytes / size, size / gigabytes), card) for card in _table() for size in card.typical_of),
        key=lambda pair: pair[0],
    )[1].processor()
    return typical.model_copy(
        update={
            "name": f"{gigabytes:g} GB",
            "memory_bytes": round(gigabytes * GIB * USABLE),
            "per_hour": None,
            "spread": NAMELESS_SPREAD,
            "doubts": (f"only the size is known: times are those of a {typical.name}",),
        }
    )


def here() -> Processor:
    """This machine's GPU as the driver names it, or its CPU. Imports no torch."""
    gpus = environment.gpus()
    return CPU if not gpus else reported(str(gpus[0]["name"]), int(gpus[0]["memory_bytes"]))


def reported(name: str, memory_bytes: int) -> Processor:
    """The card that a driver reports. One that is not in the table, or is a slice of it, keeps its own size."""
    card = _by_key().get(_key(name))
    found = card.processor() if card else None
    if found and found.memory_bytes and memory_bytes > 0.9 * found.memory_bytes:
        return found
    size = nameless(memory_bytes / GIB)
    return size.model_copy(update={"name": name})


@cache
def _table() -> tuple[Card, ...]:
    return tuple(_card(entry, str(TABLE)) for entry in read_yaml(TABLE))


@cache
def _by_key() -> Mapping[str, Card]:
    return {key: card for card in _table() for key in _keys(card)}


def _keys(card: Card) -> Iterator[str]:
    for name in (card.name, *card.aliases):
        yield _key(name)


def _key(name: str) -> str:
    """A name without what people and drivers add or leave out: maker, spaces, dashes, case."""
    words = re.findall(r"[a-z]+|\d+", name.lower())
    return "".join(word for word in words if word not in MAKERS).removeprefix("rtx")


def _read(path: Path) -> Card:
    raw = read_yaml(path)
    if isinstance(raw, list) and len(raw) == 1:
        raw = raw[0]
    return _card(raw, str(path))


def _card(raw: object, place: str) -> Card:
    try:
        return Card.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        nearest = f"; {did_you_mean(key, Card.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise SpecError(f"{place}: {key or 'entry'}: {first['msg']}{nearest}") from error
