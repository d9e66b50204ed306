"""Peak memory of a training run: the largest of its phases, each the sum of its components.

A sum over all phases would be 10 to 60 % too high; leaving out the logits 30 to 50 % too low for large vocabularies.
"""

import math

from harness.forecast import activations, litgpt, torchtune
from harness.forecast.losses import loss_bytes
from harness.forecast.optimizers import kept
from harness.forecast.setup import BYTES, Pass, Setup
from harness.record import Interval
from harness.spec import Dtype, Value

LAYER_COPIES = 12
"""16-bit copies of a hidden state alive in the backward of one layer: norms (input, fp32 copy, normalised, output),
their gradients, the residual's gradient and the inputs of the linear layers."""
MASK = 1
"""Bytes per element of a dropout mask."""


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
    known one by one, follow the closed forms below with the profile of their software.
    """
    step = one_step(setup)
    shape = setup.architecture
    gradients = gradient_bytes(setup)
    steady = weights(setup) | {"optimizer": 0 if setup.profile.peaks_first else optimizer_states(setup)}
    before = setup.accumulation > 1 or not setup.full
    kept_whole = {"gradients": gradients} if before and not setup.profile.peaks_first else {}
    extra = unsharded(setup) | {"attention mask": mask(setup)}
    held = {"logits": logit_width(setup) * shape.vocabulary * setup.tokens} if setup.profile.holds_logits else {}
    of_backward = steady | extra
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
    reserved = _reserved(setup, phases, card, context)
    return Memory(phases=phases, reserved=reserved, process=_process(setup, reserved, context))


def one_step(setup: Setup) -> Pass:
    """One forward and backward pass, as the software of the run does it."""
    if setup.profile.software == "litgpt":
        return litgpt.step(setup)
    if setup.profile.software == "torchtune":
        return torchtune.step(setup)
    return counted(setup) if is_counted(setup) else closed_form(setup)


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


def closed_form(setup: Setup) -> Pass:
    """One pass by component, from the formulas that published runs bear out."""
    layer = layer_bytes(setup)
    return Pass(saved=saved_bytes(setup), loss=logits(setup), layer=layer, end=layer)


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


def saved_bytes(setup: Setup) -> int:
    """Activations that wait for the backward pass when it begins, logits not counted."""
    shape = setup.architecture
    checkpoint = setup.tokens * shape.hidden * activation_width(setup)
    if setup.checkpointing == "offloaded":
        return 2 * checkpoint
    if setup.checkpointing:
        return shape.layers * checkpoint
    return shape.layers * kept_bytes(setup) + checkpoint


def kept_bytes(setup: Setup) -> int:
    """What one layer keeps for its backward pass where nothing is recomputed."""
    shape, width = setup.architecture, activation_width(setup)
    hidden, attention, keys, mlp = _widths(setup)
    norm = (4 + 2 * width) * hidden if setup.full else 4 * hidden
    projections = 2 * width * (attention + keys)
    inner = (4 if setup.full else 3) * width * mlp if shape.gated else (2 if setup.full else 1) * width * mlp
    per_token = shape.norms * norm + projections + inner + adapter_copies(setup)
    if setup.profile.keeps_quantized_input and setup.quantized:
        per_token += width * (2 * hidden + attention + mlp)
    return round(setup.tokens * per_token) + scores(setup, kept=True)


def layer_bytes(setup: Setup) -> int:
    """What the backward pass of one layer needs at once: its recomputed activations and their gradients."""
    if not setup.checkpointing:
        return round(setup.tokens * 4 * BYTES[setup.compute] * setup.architecture.hidden)
    width = activation_width(setup)
    hidden, attention, keys, mlp = _widths(setup)
    inner = 3 * mlp if setup.architecture.gated else 2 * mlp
    adapters = adapter_copies(setup)
    whole = width * (LAYER_COPIES * hidden + 3 * attention + keys + inner) + adapters
    if setup.full:
        whole += LAYER_COPIES * hidden
    if setup.sharding == "fsdp" and not setup.full:
        whole *= 2  # activations within a layer are fp32 there
    # what the MLP kept is gone when the backward pass comes to the attention of the layer
    of_attention = width * (4 * hidden + 3 * attention) + adapters
    return max(
        round(setup.tokens * whole) + scores(setup, kept=True),
        round(setup.tokens * of_attention) + scores(setup, kept=False),
    )


def residual(setup: Setup) -> Dtype:
    """Dtype of the residual stream.

    torch.autocast computes LayerNorm in fp32, and bitsandbytes' layers answer in the dtype they are given: together
    they make the stream fp32.
    """
    if setup.profile.residual is not None:
        return setup.profile.residual
    answers_in_kind = setup.quantization in {"nf4", "fp4", "int8"}
    if setup.architecture.norm == "layer" and setup.profile.autocast and setup.quantized and answers_in_kind:
        return "fp32"
    return setup.compute


def activation_width(setup: Setup) -> int:
    """Bytes per value of what layers hand to each other."""
    return BYTES[residual(setup)]


def logit_width(setup: Setup) -> int:
    """Bytes per logit as the head gives it."""
    return BYTES[setup.compute] if setup.profile.autocast else activation_width(setup)


def adapter_copies(setup: Setup) -> float:
    """Bytes per token that the adapters of one layer keep of their inputs."""
    if setup.adapter is None:
        return 0.0
    dropped = bool(setup.adapter.dropout)
    width = BYTES[setup.adapter_dtype]
    if setup.profile.autocast or setup.profile.fused_layer or setup.sharding == "fsdp":
        copy = BYTES[setup.compute]
    elif width == activation_width(setup):  # no copy is needed, but dropout makes one
        copy = BYTES[setup.compute] if dropped else 0
    else:
        copy = width
    return (copy + MASK * dropped) * sum(one.inputs for one in setup.targets)


def logits(setup: Setup) -> int:
    shape = setup.architecture
    wide = activation_width(setup) == 4
    states = (16 if shape.norm == "layer" else 4) if wide else 6
    return loss_bytes(
        setup.loss,
        setup.tokens,
        shape.hidden,
        shape.vocabulary,
        width=logit_width(setup),
        head_trained=setup.full,
        logit_bytes=setup.profile.logit_bytes,
        state_bytes=states if setup.loss == "full" or wide else None,
    )


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


def _widths(setup: Setup) -> tuple[int, int, int, int]:
    """Hidden, query, key and MLP widths that one token meets in a layer."""
    shape = setup.architecture
    return (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.intermediate * shape.experts_used,
    )


def mask(setup: Setup) -> int:
    """The mask that eager attention adds to its scores; the fused kernels know causality without one."""
    return activation_width(setup) * setup.micro_batch * setup.length**2 if setup.attention == "eager" else 0


def scores(setup: Setup, *, kept: bool) -> int:
    """Attention scores of one layer, which only eager attention writes down.

    Kept for backward: the softmax in fp32 and, in 16 bits, its copy. In backward also their gradients and the scaled
    scores: 7 copies of 16 bits, or 4 of 32 (traced by hand through transformers' `eager_attention_forward`).
    """
    if setup.attention != "eager":
        return 0
    each = setup.micro_batch * setup.architecture.heads * setup.length**2
    if activation_width(setup) == 4:
        return (4 if kept else 16) * each
    return (6 if kept else 14) * each


def needed(setup: Setup, found: Memory, context: int) -> float:
    """Bytes that a card must have: the peak, the context, and what the allocator cannot help losing."""
    return found.allocated * _allocator(setup).needs + context + LOST


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


def _allocator(setup: Setup) -> Allocator:
    if setup.profile.expandable_segments:
        return EXPANDABLE
    return VARIED if setup.padded else FIXED


def _reserved(setup: Setup, phases: tuple[Phase, ...], card: int | None, context: int) -> Interval:
    """Held by the allocator. Where a card has room nothing makes it give blocks back, so it holds more than needed."""
    peak = max(phases, key=lambda phase: phase.total)
    share = _allocator(setup)
    blocks = max(phase.components.get(name, 0) for phase in phases for name in ("logits and loss", "one layer"))
    if peak.name == "optimizer step" or setup.sharding == "fsdp":  # what the backward pass used is still held
        blocks += phases[0].components["activations"]
    low, mid, high = (peak.total + each * blocks for each in (share.low, share.mid, share.high))
    high += 2 * phases[0].components.get("unsharded weights", 0)
    if card is not None:
        most = max(peak.total, USABLE * card - context)
        low, mid, high = min(low, max(peak.total, 0.96 * most)), min(mid, most), min(high, most)
    return Interval(low=low, mid=mid, high=max(high, peak.total * 1.02))


def _process(setup: Setup, reserved: Interval, context: int) -> Interval:
    """What the driver counts: the allocator's memory, the context and what libraries take for themselves."""
    shared = NCCL if setup.devices > 1 else 0
    return Interval(
        low=reserved.low + 0.8 * context,
        mid=reserved.mid + context + LOST / 2 + shared,
        high=reserved.high + context + 2 * LOST + 3 * shared,
    )
