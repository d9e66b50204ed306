"""Peak memory of a training run: the largest of its phases, each the sum of its components.

A sum over all phases would be 10 to 60 % too high; leaving out the logits 30 to 50 % too low for large vocabularies.
"""

import math

from harness.forecast import activations, allocator, closed_form, litgpt, torchtune
from harness.forecast.optimizers import kept
from harness.forecast.setup import BYTES, Pass, Setup
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
    """Memory of a run on a card of `card` bytes (None: unlimited) whose CUDA context takes `context` bytes.

    A run of this project's own stack is counted tensor by tensor (`activations.py`); others, whose operations are not
    known one by one, follow closed forms with the profile of their software.
    """
    step = one_step(setup)
    gradients = gradient_bytes(setup)
    steady = weights(setup) | {"optimizer": 0 if setup.profile.peaks_first else optimizer_states(setup)}
    before = setup.accumulation > 1 or not setup.full
    kept_whole = {"gradients": gradients} if before and not setup.profile.peaks_first else {}
    held = {"logits": closed_form.held_logits(setup)} if setup.profile.holds_logits else {}
    of_backward = steady | unsharded(setup)
    phases = (
        Phase(
            name="start of backward",
            components=of_backward | kept_whole | {"activations": step.saved, "logits and loss": step.loss},
        ),
        Phase(
            name="backward of a layer",
            components=of_backward | kept_whole | held | {"activations": step.saved, "one layer": step.layer},
        ),
        Phase(
            name="end of backward",
            components=of_backward | held | {"gradients": gradients, "one layer": step.end},
        ),
        Phase(
            name="optimizer step",
            components=steady | {"gradients": gradients, "optimizer's copies": optimizer_copies(setup)},
        ),
    )
    held_by_allocator = _reserved(setup, phases, card, context)
    return Memory(
        phases=phases, reserved=held_by_allocator, process=allocator.process(setup, held_by_allocator, context)
    )


def one_step(setup: Setup) -> Pass:
    """One forward and backward pass, as the software of the run does it."""
    if setup.profile.software == "litgpt":
        return litgpt.step(setup)
    if setup.profile.software == "torchtune":
        return torchtune.step(setup)
    return counted(setup) if is_counted(setup) else closed_form.step(setup)


def is_counted(setup: Setup) -> bool:
    """Whether `activations.py` knows every operation of the run."""
    plain = setup.architecture.experts == 1 and setup.checkpointing != "offloaded"
    return setup.profile.software == "harness" and plain and setup.sharding in {"none", "ddp"}


def counted(setup: Setup) -> Pass:
    """One pass of this project's own stack on a GPU, tensor by tensor."""
    saved = sum(activations.retained(setup, "cuda").values())
    peak = activations.step_peak(setup, "cuda")
    return Pass(
        saved=saved,
        loss=activations.logits(setup, "cuda"),
        layer=activations.layer_peak(setup, "cuda") - saved,
        end=max(0, peak - max(saved, activations.gradients(setup))),
    )


def trained_width(setup: Setup) -> int:
    """Bytes per trained weight."""
    if not setup.full:
        return BYTES[setup.adapter_dtype]
    upcast = setup.sharding == "fsdp" and setup.profile.shards_upcast
    return 4 if upcast else round(setup.weight_bits / 8)


def weights(setup: Setup) -> dict[str, int]:
    """Bytes of the base and of what is added to it, as they stay on one device."""
    shape = setup.architecture
    linears, rest = shape.linear_parameters, shape.embedding_parameters + shape.small_parameters
    if setup.quantized:
        width, rest_width = setup.weight_bits / 8, float(BYTES[setup.profile.rest or setup.compute])
        if setup.profile.quantizes_head:
            head = shape.vocabulary * shape.hidden
            rest, linears = rest - head, linears + head
    else:
        width = rest_width = trained_width(setup) if setup.full else setup.weight_bits / 8
    linear, other = linears * width, rest * rest_width
    share = _share(setup, "weights")
    parts = {"linear layers": round(linear / share), "embeddings, head, norms": round(other / share)}
    if setup.adapter is not None:
        parts["adapters"] = round(setup.adapter_parameters * trained_width(setup) / share)
    return parts


def optimizer_states(setup: Setup) -> int:
    return round(setup.trainable * kept(setup.optimizer).bytes_kept(trained_width(setup)) / _share(setup, "states"))


def optimizer_copies(setup: Setup) -> int:
    """Temporary copies while a step is taken."""
    if setup.profile.optimizer_in_backward:
        return 0
    copies = kept(setup.optimizer).temporary * trained_width(setup)
    return round(setup.trainable * copies / _share(setup, "states"))


def gradient_bytes(setup: Setup) -> int:
    if setup.profile.optimizer_in_backward:
        return 0  # those of one layer at a time, within its backward pass
    return round(setup.trainable * trained_width(setup) / _share(setup, "gradients"))


def unsharded(setup: Setup) -> dict[str, int]:
    """Whole weights that a rank of FSDP or ZeRO-3 holds for a moment: the root's and those of one or a few layers."""
    if setup.sharding not in {"fsdp", "zero3"}:
        return {}
    shape = setup.architecture
    width = BYTES[setup.compute]
    layer = setup.weight_bits / 8 if setup.quantized else width
    root = shape.embedding_parameters
    if setup.profile.software == "torchtune":  # it wraps the embedding and the head apart
        root = shape.vocabulary * shape.hidden
    layers = max(setup.profile.unsharded_layers, 2) if setup.full else setup.profile.unsharded_layers
    return {"unsharded weights": round(width * root + layers * layer * shape.linear_parameters / shape.layers)}


def _share(setup: Setup, what: str) -> float:
    """Over how many devices a part is split; infinitely many where it lives in the host's memory."""
    if setup.offload:
        return math.inf
    split = {
        "fsdp": ("weights", "gradients", "states"),
        "zero3": ("weights", "gradients", "states"),
        "zero2": ("gradients", "states"),
        "zero1": ("states",),
    }
    return setup.devices if what in split.get(setup.sharding, ()) else 1.0


def needed(setup: Setup, found: Memory, context: int) -> float:
    """Bytes that a card must have for a run to succeed at all."""
    return allocator.needed(setup, found.allocated, context)


def _reserved(setup: Setup, phases: tuple[Phase, ...], card: int | None, context: int) -> Interval:
    peak = max(phases, key=lambda phase: phase.total)
    blocks = max(phase.components.get(name, 0) for phase in phases for name in ("logits and loss", "one layer"))
    if peak.name == "optimizer step" or setup.sharding == "fsdp":  # what the backward pass used is still held
        blocks += phases[0].components["activations"]
    most = None if card is None else round(allocator.USABLE * card - context)
    return allocator.reserved(setup, peak.total, blocks, phases[0].components.get("unsharded weights", 0), most)
