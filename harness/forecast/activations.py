"""The tensors of one training step of this project's own stack, from configuration alone: counted, not fitted.

`Step` below goes through the forward and the backward pass of transformers 5's Llama family with PEFT's LoRA, bitsandbytes
and TRL's loss, operation by operation in the order of their source, on a tape of sizes (`tape.py`). The peak of a step
and what is kept for backward are then read off. `benchmarks/trace_activations.py` sets it against what is installed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from harness.forecast.architecture import Linear
from harness.forecast.setup import BYTES, Setup
from harness.forecast.tape import Leaf, Meter, Node, Tensor, record, run_backward
from harness.record import TensorBytes

Device = Literal["cpu", "cuda"]

BLOCK, NESTED_BLOCK = 64, 256
"""Weights per scale of bitsandbytes' 4-bit formats, and scales per scale of their own under double quantization."""
HEAD_COLUMNS, HEAD_ROWS = 32768, 4096
"""Tile of logits that TRL 1.16's fused head allocates, whatever the vocabulary (`trl/kernels/chunked_logprob.py`)."""
GENERATOR_STATE = {"cpu": 5056, "cuda": 16}
"""Bytes of the random generator's state that checkpointing keeps for every layer."""
ENOUGH_LAYERS = 5
"""Models deeper than this are extrapolated: every layer between the first two and the last two is like its neighbours."""


def weights(setup: Setup) -> int:
    """Bytes of the base as stored: codes, scales and tables, what stays unquantized, and the rotary frequencies."""
    one, rest = setup.architecture, _rest(setup)
    small = one.small_parameters + one.embedding_parameters
    if not setup.quantized:
        return round((one.linear_parameters + small) * setup.weight_bits / 8) + _rotary(setup)
    codes = one.layers * sum(each.copies * _stored(setup, each) for each in one.linears)
    return codes + small * rest + _rotary(setup)


def adapter(setup: Setup) -> int:
    """Bytes of the adapters."""
    return setup.adapter_parameters * BYTES[setup.adapter_dtype]


def gradients(setup: Setup) -> int:
    """Bytes of the gradients at the end of backward, each in its weight's dtype."""
    return setup.trainable * _trained_width(setup)


def optimizer(setup: Setup) -> int:
    """Bytes of AdamW's state: two moments in the weight's dtype and the number of the step per tensor."""
    return 2 * gradients(setup) + 4 * _trained_tensors(setup)


def retained(setup: Setup, device: Device = "cpu") -> dict[str, int]:
    """Bytes kept for backward over all layers when backward begins, by component, without the loss's own."""
    return {name: size for name, size in _step(setup, device).retained.items() if name != "loss" and size}


def layer_transient(setup: Setup, device: Device = "cpu") -> int:
    """What the backward of the last layer needs above what is kept when it begins: its temporaries, and under
    checkpointing the layer computed again."""
    found = _step(setup, device)
    return found.peaks["last layer"] - found.began["last layer"]


def logits(setup: Setup, device: Device = "cpu") -> int:
    """What head and loss need above what is kept for the layers, in forward or in backward."""
    found = _step(setup, device)
    return found.peaks["loss"] - sum(retained(setup, device).values())


def step_peak(setup: Setup, device: Device = "cpu") -> int:
    """Peak of one forward and backward pass above weights and optimizer state."""
    return max(_step(setup, device).peaks.values())


def tensors(setup: Setup) -> TensorBytes:
    """The accounting that a run on a CPU measures of itself."""
    return TensorBytes(
        weights=weights(setup),
        adapter=adapter(setup),
        gradients=gradients(setup),
        optimizer=optimizer(setup),
        step_peak=step_peak(setup),
    )


def _rest(setup: Setup) -> int:
    """Bytes of a weight that is not quantized."""
    if setup.quantized:
        return BYTES[setup.profile.rest or setup.compute]
    return round(setup.weight_bits / 8)


def _trained_width(setup: Setup) -> int:
    return _rest(setup) if setup.full else BYTES[setup.adapter_dtype]


def _rotary(setup: Setup) -> int:
    """`inv_freq` and the copy that dynamic scaling keeps: half a head each, fp32 whatever the model's dtype."""
    return 0 if setup.architecture.positions else 2 * 4 * (setup.architecture.head_dim // 2)


def _stored(setup: Setup, linear: Linear) -> int:
    """Bytes of one quantized layer as bitsandbytes keeps it."""
    weights = linear.inputs * linear.outputs
    if setup.quantization == "int8":
        return weights + 4 * linear.outputs
    if setup.quantization in {"nf4", "fp4"}:
        blocks = math.ceil(weights / BLOCK)
        codes = math.ceil(weights / 2) + 16 * 4  # half a byte each, and the table of 16 levels
        if not _nested(setup):
            return codes + 4 * blocks
        return codes + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + 256 * 4 + 4  # its own table, and the mean
    return round(weights * setup.weight_bits / 8)


def _nested(setup: Setup) -> bool:
    """Double quantization, told from the bits that are stored: 4.127 with it, 4.5 without."""
    return setup.weight_bits < 4 + 32 / BLOCK


def _trained_tensors(setup: Setup) -> int:
    one = setup.architecture
    if not setup.full:
        each = 2 + bool(setup.adapter and setup.adapter.dora)
        return one.layers * each * sum(target.copies for target in setup.targets)
    linears = sum(each.copies * (2 if each.bias else 1) for each in one.linears)
    norms = (one.layers * one.norms + 1) * (2 if one.norm_bias else 1)
    tables = (1 if one.tied else 2) + bool(one.positions) + one.head_bias
    return one.layers * (linears + (2 if one.qk_norm else 0)) + norms + tables


@dataclass(frozen=True)
class _Counted:
    """What one step holds, by phase and by component."""

    retained: dict[str, int]
    began: dict[str, int]
    peaks: dict[str, int]

    def further(self, other: "_Counted", layers: int) -> "_Counted":
        """Extrapolated by `layers` from `other`, which has one layer less."""

        def line(ours: dict[str, int], theirs: dict[str, int]) -> dict[str, int]:
            return {key: value + layers * (value - theirs.get(key, value)) for key, value in ours.items()}

        return _Counted(
            line(self.retained, other.retained), line(self.began, other.began), line(self.peaks, other.peaks)
        )


@lru_cache(maxsize=256)
def _step(setup: Setup, device: Device) -> _Counted:
    layers = setup.architecture.layers
    if layers <= ENOUGH_LAYERS:
        return Step(setup, device, layers).run()
    most = Step(setup, device, ENOUGH_LAYERS).run()
    return most.further(Step(setup, device, ENOUGH_LAYERS - 1).run(), layers - ENOUGH_LAYERS)


@dataclass(eq=False)
class Weight:
    """A matrix or vector of the model."""

    elements: int
    width: int
    leaf: Leaf | None = None
    """Where its gradient is collected; None where it is frozen."""
    cast: Tensor | None = None
    """Autocast keeps the cast of a trained weight until the forward pass ends."""


@dataclass(eq=False)
class _Projection:
    """One linear layer with the adapter beside it."""

    linear: Linear
    weight: Weight
    bias: Weight | None
    a: Weight | None
    b: Weight | None


@dataclass(eq=False)
class Step:
    """One forward and backward pass."""

    setup: Setup
    device: Device
    layers: int
    meter: Meter = field(default_factory=Meter)
    casts: list[Weight] = field(default_factory=list)

    def __post_init__(self) -> None:
        one = self.setup.architecture
        self.one = one
        self.tokens = self.setup.tokens
        self.batch, self.length = self.setup.micro_batch, self.setup.length
        self.base = _rest(self.setup)
        self.autocast = self.setup.profile.autocast and self.setup.compute != "fp32"
        self.embedding = self._weight(one.vocabulary * one.hidden)
        self.head = self.embedding if one.tied else self._weight(one.vocabulary * one.hidden)
        self.final_norm = self._weight(one.hidden)
        self.blocks = [self._block() for _ in range(self.layers)]

    def _weight(self, elements: int) -> Weight:
        return Weight(elements, self.base, Leaf() if self.setup.full else None)

    def _block(self) -> dict[str, "_Projection | Weight"]:
        found: dict[str, _Projection | Weight] = {
            each.name: self._projection(each) for each in self.one.linears
        }
        return found | {f"norm {n}": self._weight(self.one.hidden) for n in range(self.one.norms)}

    def _projection(self, each: Linear) -> _Projection:
        a = b = None
        if self.setup.adapter is not None and each in self.setup.targets:
            rank, width = self.setup.adapter.rank, BYTES[self.setup.adapter_dtype]
            a, b = Weight(rank * each.inputs, width, Leaf()), Weight(rank * each.outputs, width, Leaf())
        bias = self._weight(each.outputs) if each.bias else None
        return _Projection(each, self._weight(each.inputs * each.outputs), bias, a, b)

    # the course of a step

    def run(self) -> _Counted:
        meter = self.meter
        meter.enter("forward")
        root, kept = self._forward()
        meter.enter("loss")
        with meter.inside("gradients"):
            run_backward(root, meter.tensor(1, 4), self._on_node)
        return _Counted(kept, meter.began, meter.peaks)

    def _on_node(self, node: Node) -> None:
        if node.phase is not None and node.phase != self.meter.phase:
            self.meter.enter(node.phase)

    def _forward(self) -> tuple[Node, dict[str, int]]:
        meter = self.meter
        with meter.inside("embedding"):
            meter.phase = "embedding"
            hidden = self.embed()
            meter.phase = "forward"
        with meter.inside("positions"):
            mask, rotary = self.positions(hidden.width)
        for index, block in enumerate(self.blocks):
            meter.phase = self._layer_phase(index)
            call = self.checkpointed if self.setup.checkpointing else self.layer
            hidden = call(block, hidden, mask, rotary)
        del mask, rotary
        meter.enter("loss")
        with meter.inside("norms"):
            hidden = self.norm(hidden, self.final_norm)
        with meter.inside("loss"):
            loss = self.fused_head(hidden) if self.setup.loss == "chunked" else self.full_head(hidden)
        del hidden
        for weight in self.casts:
            weight.cast = None
        assert loss.node is not None
        return loss.node, dict(meter.held)

    def _layer_phase(self, index: int) -> str:
        """Layers that are alike share no name, so that each phase's peak is a straight line in the depth."""
        names = {0: "first layer", 1: "second layer", self.layers - 2: "last layer but one"}
        return "last layer" if index == self.layers - 1 else names.get(index, "layers between")

    def embed(self) -> Tensor:
        out = self.meter.tensor(self.tokens * self.one.hidden, self.embedding.width)
        if self.embedding.leaf is not None:
            table = self.embedding

            def backward(grad: Tensor) -> Sequence[Tensor]:
                return [grad.meter.tensor(table.elements, table.width)]

            out.node = Node([self.embedding.leaf], backward, self.meter.phase)
        elif self.setup.checkpointing:
            out.node = Leaf()  # enable_input_require_grads: it collects a gradient that nobody reads
            out.node.phase = self.meter.phase
        return out

    def positions(self, width: int) -> tuple[Tensor | None, Tensor]:
        """The mask, one byte a pair, and the table of cosines and sines."""
        mask = None
        windowed = self.one.window is not None and self.length >= self.one.window
        if self.setup.attention == "eager":
            mask = self.meter.tensor(self.batch * self.length**2, width)
        elif self.setup.attention == "sdpa" and (self.setup.padded or windowed):
            mask = self.meter.tensor(self.batch * self.length**2, 1)
        return mask, self.meter.tensor(2 * self.length * self.one.head_dim, width)

    def checkpointed(
        self, block: dict[str, "_Projection | Weight"], hidden: Tensor, mask: Tensor | None, rotary: Tensor
    ) -> Tensor:
        meter = self.meter
        with meter.without_recording():
            out = self.layer(block, hidden, mask, rotary)
        self.leave_autocast()
        with meter.inside("checkpoints"):
            state = meter.tensor(GENERATOR_STATE[self.device], 1)
        kept = hidden.kept()

        def backward(grad: Tensor) -> Sequence[Tensor]:
            nonlocal state
            start = Leaf()
            kept.node = start
            node = self.layer(block, kept, mask, rotary).node
            self.leave_autocast()
            kept.node = None
            assert node is not None
            run_backward(node, grad.kept())
            del state
            assert start.grad is not None
            return [start.grad]

        return record(out, [hidden], backward)

    def leave_autocast(self) -> None:
        """The cache of cast weights is emptied with the outermost region: after a recomputed layer, too."""
        for weight in self.casts:
            weight.cast = None
        self.casts.clear()

    def layer(
        self, block: dict[str, "_Projection | Weight"], hidden: Tensor, mask: Tensor | None, rotary: Tensor
    ) -> Tensor:
        """LlamaDecoderLayer."""
        meter = self.meter
        norms = [each for name, each in block.items() if isinstance(each, Weight)]
        with meter.inside("norms"):
            inner = self.norm(hidden, norms[0])
        with meter.inside("attention"):
            inner = self.attention(block, inner, mask, rotary)
            hidden = self.add(hidden, inner)
        with meter.inside("norms"):
            inner = self.norm(hidden, norms[1])
        with meter.inside("mlp"):
            inner = self.mlp(block, inner)
            return self.add(hidden, inner)

    def norm(self, x: Tensor, weight: Weight) -> Tensor:
        """LlamaRMSNorm: in fp32, then back in the input's dtype, then scaled."""
        width = x.width
        x = self.cast(x, 4)
        squared = self.square(x)
        root = self.rsqrt_mean(squared, x.elements // self.one.hidden)
        del squared
        normal = self.mul_rows(x, root)
        del x, root
        return self.scale(self.cast(normal, width), weight)

    def attention(
        self, block: dict[str, "_Projection | Weight"], x: Tensor, mask: Tensor | None, rotary: Tensor
    ) -> Tensor:
        query, key, value = (self.linear(block[name], x) for name in ("q_proj", "k_proj", "v_proj"))
        turned = self.rotate(query, rotary), self.rotate(key, rotary)
        query, key = turned
        del turned
        out = self.eager(query, key, value, mask) if mask and self.setup.attention == "eager" else (
            self.sdpa(query, key, value, mask)
        )
        return self.linear(block["o_proj"], out)

    def mlp(self, block: dict[str, "_Projection | Weight"], x: Tensor) -> Tensor:
        gate = self.silu(self.linear(block["gate_proj"], x))
        product = self.mul(gate, self.linear(block["up_proj"], x))
        del gate
        return self.linear(block["down_proj"], product)

    # operations

    def cast(self, x: Tensor, width: int) -> Tensor:
        """`x.to(dtype)`: the same tensor where it has that dtype."""
        if x.width == width:
            return x
        before = x.width
        return record(x.like(width), [x], lambda grad: [grad.like(before)])

    def square(self, x: Tensor) -> Tensor:
        kept = x.kept()

        def backward(grad: Tensor) -> Sequence[Tensor]:  # grad * (2 * x ** 1), every factor a tensor of its own
            power = kept.like(4)
            twice = power.like()
            out = twice.like()
            del power, twice
            return [out]

        return record(x.like(4), [x], backward)

    def rsqrt_mean(self, squared: Tensor, rows: int) -> Tensor:
        out = squared.meter.tensor(rows, 4)
        elements = squared.elements
        return record(out, [squared], lambda grad: [grad.meter.tensor(elements, 4)])

    def mul_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Multiply every row by its own number."""
        kept, factors = x.kept(), rows.kept()

        def backward(grad: Tensor) -> Sequence[Tensor]:
            whole, own = kept.like(), kept.like()
            per_row = grad.meter.tensor(factors.elements, 4)
            del whole
            return [own, per_row]

        return record(x.like(), [x, rows], backward)

    def scale(self, x: Tensor, weight: Weight) -> Tensor:
        """Multiply by one trained or frozen number per column."""
        width = max(x.width, weight.width)
        out = x.like(width)
        flows, before, kept = x.flows, x.width, x.kept() if weight.leaf else None

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            whole = grad.like() if kept else None
            own = grad.like() if flows else None
            mine = grad.meter.tensor(weight.elements, weight.width) if kept else None
            del whole
            return [own and self._narrow(own, before), mine]

        if out.meter.recording and (flows or weight.leaf):
            out.node = Node([x.node, weight.leaf], backward, self.meter.phase)
        return out

    def _narrow(self, grad: Tensor, width: int) -> Tensor:
        """A gradient is given in the dtype of what it belongs to."""
        return grad if grad.width == width else grad.like(width)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        widths = x.width, y.width

        def backward(grad: Tensor) -> Sequence[Tensor]:
            return [grad.kept() if grad.width == width else grad.like(width) for width in widths]

        return record(x.like(max(widths)), [x, y], backward)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = (y.kept() if x.flows else None), (x.kept() if y.flows else None)

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            return [grad.like() if each else None for each in (left, right)]

        return record(x.like(max(x.width, y.width)), [x, y], backward)

    def times(self, x: Tensor) -> Tensor:
        """Multiply by one number that is not trained."""
        return record(x.like(), [x], lambda grad: [grad.like()])

    def silu(self, x: Tensor) -> Tensor:
        kept = x.kept()

        def backward(grad: Tensor) -> Sequence[Tensor]:
            return [kept.like()]

        return record(x.like(), [x], backward)

    def matmul(self, x: Tensor, weight: Weight, outputs: int, bias: Weight | None = None) -> Tensor:
        """`F.linear` with a dense weight, cast for autocast."""
        rows = x.elements // (weight.elements // outputs)
        if self.autocast:
            x = self.cast(x, 2)
        matrix = self._cast_weight(weight)
        out = x.meter.tensor(rows * outputs, x.width)
        trained = weight.leaf is not None
        kept = x.kept() if trained else None
        against = matrix.kept() if matrix is not None and x.flows else None
        inputs, width, flows = x.elements, x.width, x.flows

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            mine = grad.meter.tensor(weight.elements, width) if kept else None
            own = grad.meter.tensor(inputs, width).viewed() if flows else None
            _ = against
            added = grad.meter.tensor(bias.elements, width) if bias and bias.leaf else None
            return [own, mine, added]

        if out.meter.recording and (flows or trained):
            through = matrix.node if matrix is not None else weight.leaf
            out.node = Node([x.node, through, bias.leaf if bias else None], backward, self.meter.phase)
        return out

    def _cast_weight(self, weight: Weight) -> Tensor | None:
        """What autocast multiplies with: a trained weight's cast is cached, a frozen one's made anew each time."""
        if not self.autocast or weight.width == 2:
            return None
        if weight.cast is not None:
            return weight.cast
        cast = self.meter.tensor(weight.elements, 2)
        if weight.leaf is not None:
            if self.meter.recording:
                cast.node = Node([weight.leaf], lambda grad: [grad.like(weight.width)], self.meter.phase)
            weight.cast = cast
            self.casts.append(weight)
        return cast

    def linear(self, projection: "_Projection | Weight", x: Tensor) -> Tensor:
        """A linear layer, with its adapter where it has one."""
        assert isinstance(projection, _Projection)
        if projection.a is None or projection.b is None:
            return self.base_layer(projection, x)
        out = self.base_layer(projection, x)
        if self.setup.quantization in {"nf4", "fp4"}:
            out = record(out.like(), [out], lambda grad: [grad.kept()])  # PEFT clones it
        with self.meter.inside("adapters"):
            return self.lora(projection.a, projection.b, x, out)

    def base_layer(self, projection: _Projection, x: Tensor) -> Tensor:
        if not self.setup.quantized:
            return self.matmul(x, projection.weight, projection.linear.outputs, projection.bias)
        return self.dequantized(projection, x)

    def dequantized(self, projection: _Projection, x: Tensor) -> Tensor:
        """bitsandbytes on a CPU: a dense copy of the weight, made in forward and again in backward."""
        elements, outputs = projection.weight.elements, projection.linear.outputs
        meter, width, inputs = self.meter, x.width, x.elements
        blocks = math.ceil(elements / BLOCK) if self.setup.quantization != "int8" and _nested(self.setup) else 0

        def dense() -> Tensor:
            scales = meter.tensor(blocks, 4)
            out = meter.tensor(elements, width)
            del scales
            return out

        meter.scratch(2 * 4 * blocks)
        scales = meter.tensor(blocks, 4)
        copy = dense()
        out = meter.tensor(inputs // projection.linear.inputs * outputs, width)
        del copy, scales

        def backward(grad: Tensor) -> Sequence[Tensor]:
            copy = dense()
            own = meter.tensor(inputs, width).viewed()
            del copy
            return [own]

        out = record(out, [x], backward)
        if out.node is not None and self.setup.quantization == "int8":
            out.node.context.append(x.kept())  # MatMul8bitFp keeps its input as an attribute
        return out

    def lora(self, a: Weight, b: Weight, x: Tensor, out: Tensor) -> Tensor:
        assert self.setup.adapter is not None
        rank, outputs = self.setup.adapter.rank, b.elements // self.setup.adapter.rank
        width = out.width
        x = self.cast(x, a.width)
        if self.setup.adapter.dropout:
            x = self.dropout(x)
        low = self.matmul(x, a, rank)
        del x
        high = self.matmul(low, b, outputs)
        del low
        high = self.times(high)
        if self.setup.quantized:
            high = self.cast(high, width)
        return self.cast(self.add(out, high), width)

    def dropout(self, x: Tensor) -> Tensor:
        """On a CPU the mask is a tensor in the input's dtype, on a GPU one of bytes."""
        noise = x.like(x.width if self.device == "cpu" else 1)
        kept = noise.kept() if x.flows else None

        def backward(grad: Tensor) -> Sequence[Tensor]:
            _ = kept
            return [grad.like()]

        return record(x.like(), [x], backward)

    def rotate(self, x: Tensor, rotary: Tensor) -> Tensor:
        """apply_rotary_pos_emb for queries or keys: (x * cos) + (rotate_half(x) * sin)."""
        width = max(x.width, rotary.width)
        first = x.like(width)
        half = x.meter.tensor(x.elements // 2, x.width)
        turned = x.like()
        del half
        second = x.like(width)
        del turned
        out = x.like(width)
        del first, second
        tables = rotary.kept()
        before = x.width

        def backward(grad: Tensor) -> Sequence[Tensor]:
            _ = tables
            second = grad.like(before)
            negated = grad.meter.tensor(grad.elements // 2, before)
            own = grad.like(before)  # the halves' gradients are padded with zeros
            del negated
            other = grad.like(before)
            del other, second
            first = grad.like(before)
            del first, grad
            return [own.like()]  # to the layout of the projection

        return record(out, [x], backward)

    def repeat(self, x: Tensor) -> Tensor:
        """repeat_kv."""
        groups = self.one.heads // self.one.kv_heads
        if groups == 1:
            return x
        elements, width = x.elements, x.width
        return record(
            x.meter.tensor(groups * elements, width), [x], lambda grad: [grad.meter.tensor(elements, grad.width)]
        )

    def sdpa(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            key, value = self.repeat(key), self.repeat(value)
        return self.flash(query, key, value, mask)

    def flash(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The CPU's flash kernel, with a mask turned from bytes into the queries' dtype for every layer."""
        meter = self.meter
        bias = None if mask is None else mask.like(query.width)
        out = query.like()
        sums = meter.tensor(self.batch * self.one.heads * self.length, 4)
        rows = 256 if self.length >= 768 else 64 if self.length >= 192 else 32
        columns = min(self.length, 512)
        rows = min(rows, self.length)
        meter.scratch(4 * (rows * columns + 2 * rows + rows * self.one.head_dim))
        kept = [one.kept() for one in (query, key, value, out, sums)] + ([bias.kept()] if bias else [])

        def backward(grad: Tensor) -> Sequence[Tensor]:
            grads = [one.like() for one in kept[:3]]
            meter.scratch(2 * 4 * rows * columns + 4 * rows)
            return grads

        return record(out, [query, key, value], backward)

    def eager(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def fused_head(self, hidden: Tensor) -> Tensor:
        """TRL's head: logits a tile at a time, once in forward and again in backward, tiles of full width."""
        meter, one = self.meter, self.one
        rows = self.batch * (self.length - 1)
        n = min(rows, HEAD_ROWS)
        width = 2 if self.autocast else hidden.width
        mask = meter.tensor(rows, 1)
        inputs = hidden if self.batch == 1 else meter.tensor(rows * one.hidden, hidden.width)
        labels = meter.tensor(rows, 8)
        running = meter.tensor(7 * rows, 4)
        tile = meter.tensor(n * HEAD_COLUMNS, width)
        columns = min(one.vocabulary, HEAD_COLUMNS)
        self._head_operands(n, width, hidden.width)
        meter.scratch(n * columns * 13 + 6 * 4 * n)
        del tile, running
        scores = meter.tensor(4 * rows, 4)
        kept = [inputs.kept(), labels.kept(), scores.kept()]
        trained = self.head.leaf
        flows, elements, before = hidden.flows, hidden.elements, hidden.width

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            _ = kept
            own = meter.tensor(rows * one.hidden, 4) if flows else None
            mine = meter.tensor(self.head.elements, 4) if trained else None
            tile = meter.tensor(n * HEAD_COLUMNS, width)
            meter.scratch(n * columns * 29 + 2 * 4 * n)
            del tile
            mine = mine and self._narrow(mine, self.head.width)
            own = own and self._narrow(own, before)
            whole = meter.tensor(elements, before) if own else None
            return [whole, mine]

        loss = meter.tensor(1, 4)
        if flows or trained:
            loss.node = Node([hidden.node, trained], backward, "loss")
        del inputs, labels, scores, mask
        return loss

    def _head_operands(self, rows: int, width: int, before: int) -> None:
        """Casts of hidden states and of the head's columns for a tile."""

    def full_head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError


_ = Callable
