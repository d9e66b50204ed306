"""How long the parts of a run take: operations over rates, never less than launching them.

The work of a micro-batch is counted, not fitted: products by their shapes, elementwise operations by the bytes that
they move, launches by their number. What a card does of it in a second is its data sheet's rate times a share that
kernels reach. Those shares are the constants below, the same for every model. The published measurements that settled
them are read by `benchmarks/forecast_accuracy.py`.
"""

import math
from collections.abc import Iterable

from harness.forecast.architecture import Architecture, Linear
from harness.forecast.optimizers import kept
from harness.forecast.processors import Processor
from harness.forecast.setup import BYTES, Loss, Setup
from harness.record import Interval
from harness.spec import Dtype, Value

MEMORY_SHARE = 0.8
"""Of the bandwidth, what streaming kernels reach."""
MASKED_SHARE = 0.6
"""Of flash attention's rate, what SDPA's kernel reaches with a mask; it also computes the masked half."""
FIRST_FLASH = 0.5
"""Rate of the first generation of flash attention over that of the second."""
RMS = 18.0
"""Reads and writes of an unfused RMSNorm: cast up, square, mean, multiply, cast down, weight."""
EAGER_BYTES = 26
"""Bytes moved per score and pass by unfused attention: scale, mask, softmax in fp32, casts, dropout."""
DORA_BYTES = 14
"""Bytes moved per weight to build the merged weight and its norm: the product, the sum, the squares."""
LOGIT_BYTES: dict[Loss, float] = {"full": 30, "triton": 10, "liger": 10, "chunked": 22, "cut": 0}
"""Bytes moved per logit: the copies that memory counts (`losses.py`), each written and read."""
EVALUATION_LOGIT_BYTES = 12
"""The same for the loss alone."""
DEQUANTIZE_BYTES = {"nf4": 9.0, "fp4": 9.0, "int8": 8.0, "gptq": 18.0, "hqq": 16.0, "awq": 16.0, "torchao": 8.0}
"""Bytes of bandwidth that rebuilding one weight is worth: nf4 and gptq from measurements, the others between them. Here
and below a name stands for all bit-widths of its family."""
DEQUANTIZE_OTHERS = 16.0
ROUND_BYTES = 8
"""Bytes per input and output of a layer that LLM.int8() moves to round and to scale back; no measurement settled it."""

OPERATIONS_BACKWARD = 1.7
"""Launches of a layer's backward pass over those of its forward pass."""
STEP_SECONDS = 0.01
"""Host time of an optimizer step beside the micro-batches: the trainer, clipping, logging."""
FOREACH = 4
"""Reads and writes of a copy of the weights that an optimizer makes while it steps: torch's `foreach`."""
HOST_BANDWIDTH = 20e9
"""Bytes per second and process at which the host updates weights that live in its memory."""
RESERVE = 2e9
"""Bytes of a card that paged optimizer state cannot have: activations, context."""

SHARP = 2.5
"""How fully launching and computing overlap: the exponent of the norm between a sum (1) and a maximum (infinity)."""
SHARED = 1.3
"""The same for communication, which takes cores and bandwidth from what it runs beside."""
NODE = 8
"""GPUs of one machine; beyond that devices talk at `BETWEEN_NODES` bytes per second and GPU (200 Gb/s)."""
BETWEEN_NODES = 24e9

DISK = 1.5e9
"""Bytes per second from a warm disk to the device, safetensors."""
QUANTIZE = {"nf4": 1.5e9, "fp4": 1.5e9, "int8": 2e9, "torchao": 2e9, "hqq": 2e8, "gptq": 1.2e7}
"""Weights per second that are quantized while a model is loaded; others come quantized. hqq from 70 billion in five
minutes (its authors), gptq from 175 billion in four hours (arXiv:2210.17323), both on an A100."""
QUANTIZE_ON_CPU = {"hqq": 4e6}
"""The same where a CPU is far off it: the embedded model on one core of 2021."""
START_CUDA, START_CPU = 3.0, 0.3
"""Seconds before the first byte is read: the device, the model's classes."""
LOAD_SPREAD = 1.0
"""Half-width of the 90 % interval of the log of loading seconds: a cold disk is several times slower."""

BETWEEN_STACKS = 0.2
"""Standard deviation of the log of measured over forecast seconds from one software stack to another: 0.15 on the
published rows that the constants were found on, more on a source that was left out."""
WITHIN_STACK = 0.07
"""The same between the runs of one stack: 0.062 on those rows."""
PRIOR_ROWS = 3
"""Rows that `WITHIN_STACK` counts as when a stack's own scatter is estimated."""
NINETY = 1.645
"""Standard deviations on either side that hold nine in ten."""


class Rates(Value):
    """What measured runs taught about times; the default is what the table of processors alone gives."""

    source: str = "cold"
    factor: float = 1.0
    """Measured over forecast seconds."""
    spread: float = 0.35
    """Half-width of the 90 % interval of log seconds."""


COLD = Rates()


def step(setup: Setup, processor: Processor, rates: Rates = COLD) -> Interval:
    """Seconds of one optimizer step: all its micro-batches, communication and the optimizer."""
    return _interval(sum(step_parts(setup, processor).values()), processor, rates)


def step_parts(setup: Setup, processor: Processor) -> dict[str, float]:
    """Seconds of one optimizer step by part, cold; their sum is the middle of `step`.

    Parts: products, attention, elementwise, adapters, head (with the loss), dequantization, launches, communication,
    offload, optimizer. What overlaps is counted once: `launches`, `communication` and `offload` are what they add.
    """
    work = _layers(setup, processor) | _head(setup, processor)
    work |= {"dequantization": _dequantization(setup, processor)}
    busy = sum(work.values())
    slowest = _overlapped(busy, _launches(setup) * processor.launch, SHARP)
    gathered = _overlapped(slowest, _micro_communication(setup, processor), SHARED)
    streamed = _overlapped(gathered, _micro_offload(setup, processor), SHARED)
    micro = work | {"launches": slowest - busy, "communication": gathered - slowest, "offload": streamed - gathered}
    parts = {name: seconds * setup.accumulation for name, seconds in micro.items()}
    parts["optimizer"] = _optimizer(setup, processor) + STEP_SECONDS
    parts["communication"] += _step_communication(setup, processor)
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def forward(setup: Setup, processor: Processor, batch: int, length: int, rates: Rates = COLD) -> Interval:
    """Seconds of one forward pass without gradients, for evaluation."""
    once = setup.model_copy(update={"micro_batch": batch, "length": length, "checkpointing": False})
    work = _layers(once, processor, training=False) | _head(once, processor, training=False)
    busy = sum(work.values()) + _dequantization(once, processor, training=False)
    launches = _launches(once, training=False) * processor.launch
    return _interval(_overlapped(busy, launches, SHARP), processor, rates)


def _of(table: dict[str, float], quantization: str, others: float) -> float:
    """What a table says of a quantization, or of the family that its name begins with."""
    return next((value for family, value in table.items() if quantization.startswith(family)), others)


def load(setup: Setup, processor: Processor, rates: Rates = COLD) -> Interval:
    """Seconds to read the weights and store them quantized. Disks differ most of all: the interval is wide."""
    stored = BYTES[setup.compute] if setup.quantized else setup.weight_bits / 8
    read = setup.architecture.parameters * stored / min(DISK, processor.link)
    rate = _of(QUANTIZE if processor.kind == "cuda" else QUANTIZE | QUANTIZE_ON_CPU, setup.quantization, 0.0)
    quantize = setup.architecture.linear_parameters / rate if setup.quantized and rate else 0.0
    start = START_CUDA if processor.kind == "cuda" else START_CPU
    # what a stack's steps taught says nothing about disks
    return _interval(read + quantize + start, processor, Rates(source=rates.source, spread=LOAD_SPREAD))


def calibrated(rows: Iterable[tuple[Setup, Processor, float]], source: str) -> Rates:
    """Rates from measured seconds per optimizer step of runs of one software stack on one kind of processor.

    The factor is the mean of the logs, drawn to 1 as far as few rows among noisy ones deserve; the interval holds the
    stack's own scatter and what the factor may still be wrong by.
    """
    known = [(math.log(seconds / sum(step_parts(setup, one).values())), one.spread) for setup, one, seconds in rows]
    if not known:
        return COLD
    count = len(known)
    mean = sum(log for log, _ in known) / count
    scatter = sum((log - mean) ** 2 for log, _ in known)
    within = (PRIOR_ROWS * WITHIN_STACK**2 + scatter) / (PRIOR_ROWS + count - 1)
    between = BETWEEN_STACKS**2 + max(spread / NINETY for _, spread in known) ** 2
    trust = between / (between + within / count)
    return Rates(
        source=source, factor=math.exp(trust * mean), spread=NINETY * math.sqrt(within + between * (1 - trust))
    )


def _interval(seconds: float, processor: Processor, rates: Rates) -> Interval:
    spread = math.hypot(rates.spread, processor.spread) if rates.source == COLD.source else rates.spread
    mid, wide = seconds * rates.factor, math.exp(spread)
    return Interval(low=mid / wide, mid=mid, high=mid * wide)


def _overlapped(one: float, other: float, sharp: float) -> float:
    """Seconds of two things that run side by side: more than the longer one, less than both in turn."""
    longer = max(one, other)
    return longer and longer * ((one / longer) ** sharp + (other / longer) ** sharp) ** (1 / sharp)


def _passes(setup: Setup, training: bool) -> int:
    """Forward passes through the layers: checkpointing does them again."""
    return 2 if training and setup.checkpointing else 1


def _product(one: Linear, setup: Setup, processor: Processor, dtype: Dtype) -> float:
    """Seconds of one product of a micro-batch with a layer's weights: operations, and the bytes that go in and out."""
    rows = setup.tokens * _used(one, setup)
    moved = BYTES[dtype] * (min(one.copies, rows) * one.inputs * one.outputs + rows * (one.inputs + one.outputs))
    operations = 2 * rows * one.inputs * one.outputs
    return operations / processor.rate(dtype) + _moved(moved, processor)


def _used(one: Linear, setup: Setup) -> int:
    """How many copies of a layer a token goes through: its experts."""
    return min(one.copies, setup.architecture.experts_used) if one.copies > 1 else 1


def _moved(count: float, processor: Processor) -> float:
    return count / (processor.bandwidth * MEMORY_SHARE)


def _layers(setup: Setup, processor: Processor, training: bool = True) -> dict[str, float]:
    """Seconds of the decoder layers of one micro-batch."""
    passes = _passes(setup, training)
    architecture = setup.architecture
    products = sum(_product(one, setup, processor, setup.compute) for one in architecture.linears)
    # backward: the gradient of the input, and of the weights where they are trained
    total = products * (passes + training * (2 if setup.full else 1))
    bytes_each = _elementwise_bytes(setup) * setup.tokens * (passes + 2 * training)
    parts = {
        "products": total,
        "attention": _attention(setup, processor, passes, training),
        "elementwise": _moved(bytes_each, processor),
        "adapters": _adapters(setup, processor, passes, training),
    }
    return {name: seconds * architecture.layers for name, seconds in parts.items()}


def _attention(setup: Setup, processor: Processor, passes: int, training: bool) -> float:
    """Seconds of one layer's attention."""
    architecture, length = setup.architecture, setup.length
    width = architecture.heads * architecture.head_dim
    # flash attention casts to 16 bits; the other kernels compute in what they are given
    dtype = setup.compute if setup.attention == "flash" else _stream(setup)
    rate = processor.rate(dtype)
    if setup.attention == "eager":
        scores = setup.micro_batch * architecture.heads * length**2
        products = 4 * scores * architecture.head_dim / rate
        return (products + _moved(EAGER_BYTES * scores, processor)) * (passes + 2 * training)
    window = min(length, architecture.window or length)
    seen: float = window * (1 - window / (2 * length))
    share = processor.attention
    if setup.attention == "sdpa" and setup.padded:
        seen, share = length, share * MASKED_SHARE
    elif setup.profile.flash == 1:
        share *= FIRST_FLASH
    operations = 4 * seen * width * setup.tokens
    return operations * (passes + 2.5 * training) / (rate * share)


def _stream(setup: Setup) -> Dtype:
    """What layers hand on: fp32 under PEFT's preparation for k-bit training, where they return what they are given."""
    return setup.profile.residual or setup.compute


def _elementwise_bytes(setup: Setup) -> float:
    """Bytes that one token moves in one layer's forward pass outside of products and attention."""
    one = setup.architecture
    fused = setup.profile.fused_layer
    stream = BYTES[_stream(setup)]
    queries_keys = (one.heads + one.kv_heads) * one.head_dim
    # unfused RMSNorm: cast up, square, mean, multiply, cast down, weight; nn.LayerNorm is one kernel
    norm = (2 if fused or one.norm == "layer" else RMS) * stream
    rotary = 0 if one.positions else (2 if fused else 10) * stream
    inner = one.intermediate * one.experts_used
    activation = (3 if fused else 5) * inner * stream if one.gated else 2 * inner * stream
    return one.norms * norm * one.hidden + rotary * queries_keys + activation + 6 * one.hidden * stream


def _adapters(setup: Setup, processor: Processor, passes: int, training: bool) -> float:
    """Seconds of one layer's adapters: thin products, so that moving their input and output is what counts."""
    if setup.adapter is None:
        return 0.0
    exact = setup.adapter_dtype == "fp32" and not setup.profile.autocast
    here = 4 if exact else BYTES[setup.compute]
    rate = processor.rate("fp32" if exact else setup.compute)
    fused, dropout = setup.profile.fused_layer, setup.adapter.dropout > 0
    seconds = 0.0
    for one in setup.targets:
        rows = setup.tokens * _used(one, setup)
        moved = rows * here * (one.inputs * (1 + 2.5 * dropout + exact * 1.5) + one.outputs * (2 if fused else 6))
        products = 2 * rows * setup.adapter.rank * (one.inputs + one.outputs)
        # the gradients of its weights and of its input are two products each
        seconds += products * (passes + 2 * training) / rate + _moved(moved, processor) * (passes + 2 * training)
        if setup.adapter.dora:
            merged = 2 * setup.adapter.rank * one.inputs * one.outputs
            norm = merged / rate + _moved(DORA_BYTES * one.inputs * one.outputs, processor)
            seconds += norm * one.copies * (passes + training)
    return seconds


def _head(setup: Setup, processor: Processor, training: bool = True) -> dict[str, float]:
    """Seconds of the head and the loss of one micro-batch."""
    one = setup.architecture
    dtype = (setup.profile.rest if setup.quantized else None) or setup.compute
    product = _product(Linear(name="head", inputs=one.hidden, outputs=one.vocabulary), setup, processor, dtype)
    # the gradient of its input, of its weights where they are trained, and the logits again where they are not kept
    times = 1 + training * (1 + setup.full + (setup.loss == "cut"))
    moved = setup.tokens * one.vocabulary * (LOGIT_BYTES[setup.loss] if training else EVALUATION_LOGIT_BYTES)
    return {"head": product * times + _moved(moved, processor)}


def _dequantization(setup: Setup, processor: Processor, training: bool = True) -> float:
    """Seconds to rebuild the weights of one micro-batch, or to cast them where they are kept in another dtype."""
    passes = _passes(setup, training) + training
    one = setup.architecture
    if setup.quantized:
        moved = one.linear_parameters * _of(DEQUANTIZE_BYTES, setup.quantization, DEQUANTIZE_OTHERS) * passes
        if setup.quantization == "int8":
            ends = sum(_used(part, setup) * (part.inputs + part.outputs) for part in one.linears) * one.layers
            moved += ROUND_BYTES * ends * setup.tokens * _passes(setup, training)
        return _moved(moved, processor)
    if setup.weight_bits / 8 > BYTES[setup.compute]:
        cast = setup.weight_bits / 8 + BYTES[setup.compute]
        return _moved(one.parameters * cast, processor) * _passes(setup, training)
    return 0.0


def _launches(setup: Setup, training: bool = True) -> float:
    """Operations that the host launches for one micro-batch."""
    one = setup.architecture
    fused = setup.profile.fused_layer
    small = one.norms * (1 if fused or one.norm == "layer" else 6) + (0 if one.positions else 2 if fused else 12)
    products = sum(min(part.copies, setup.tokens) for part in one.linears)
    attention = 9 if setup.attention == "eager" else 3
    adapters = len(setup.targets) * (3 if fused else 8)
    quantized = 4 * products if setup.quantized else 0
    layer = small + products + attention + adapters + quantized + (1 if fused else 3) + 8
    return one.layers * layer * (_passes(setup, training) + OPERATIONS_BACKWARD * training) + 60


def _trained_bytes(setup: Setup) -> float:
    if setup.full:
        upcast = setup.sharding == "fsdp" and setup.profile.shards_upcast
        return setup.trainable * (4 if upcast else setup.weight_bits / 8)
    return setup.trainable * BYTES[setup.adapter_dtype]


def _optimizer(setup: Setup, processor: Processor) -> float:
    """Seconds of the optimizer: it reads and writes weights and state, and reads gradients twice to clip them."""
    shards = setup.devices if setup.sharding in {"fsdp", "zero1", "zero2", "zero3"} else 1
    trained = _trained_bytes(setup)
    width = trained / setup.trainable if setup.trainable else 0.0
    known = kept(setup.optimizer)
    state = (known.states * width + known.fixed) * setup.trainable
    moved = (4 * trained + 2 * state + FOREACH * known.temporary * trained) / shards
    if setup.offload:
        return moved / HOST_BANDWIDTH
    if known.paged and processor.memory_bytes:
        resident = _weight_bytes(setup) + state + RESERVE
        evicted = min(state, max(0.0, resident - processor.memory_bytes))
        return _moved(moved, processor) + 2 * evicted / processor.link
    return _moved(moved, processor)


def _fabric(setup: Setup, processor: Processor) -> float:
    return processor.fabric if setup.devices <= NODE else min(processor.fabric, BETWEEN_NODES)


def _weight_bytes(setup: Setup) -> float:
    """Bytes of the weights as they travel between devices."""
    one: Architecture = setup.architecture
    if not setup.quantized:
        return one.parameters * min(setup.weight_bits / 8, BYTES[setup.compute])
    return one.linear_parameters * setup.weight_bits / 8 + one.embedding_parameters * BYTES[setup.compute]


def _micro_communication(setup: Setup, processor: Processor) -> float:
    """Seconds that the devices talk during one micro-batch."""
    if setup.devices == 1 or setup.sharding in {"none", "ddp", "zero1"}:
        return 0.0
    share = (setup.devices - 1) / setup.devices
    gradients = setup.trainable * (BYTES[setup.compute] if setup.full else BYTES[setup.adapter_dtype])
    gathers = 0 if setup.sharding == "zero2" else 2 * _weight_bytes(setup)
    return (gathers + gradients) * share / _fabric(setup, processor)


def _step_communication(setup: Setup, processor: Processor) -> float:
    """Seconds that the devices talk once per optimizer step."""
    if setup.devices == 1 or setup.sharding not in {"ddp", "zero1", "zero2"}:
        return 0.0
    share = (setup.devices - 1) / setup.devices
    return (1 if setup.sharding == "zero2" else 2) * _trained_bytes(setup) * share / _fabric(setup, processor)


def _micro_offload(setup: Setup, processor: Processor) -> float:
    """Seconds on the link to the host during one micro-batch."""
    one = setup.architecture
    checkpoints = 2 * one.layers * setup.tokens * one.hidden * BYTES[setup.compute]
    seconds = checkpoints / processor.link if setup.checkpointing == "offloaded" else 0.0
    if setup.offload:
        shards = setup.devices if setup.sharding in {"fsdp", "zero3"} else 1
        seconds += 2 * _weight_bytes(setup) / shards / processor.link
    return seconds
