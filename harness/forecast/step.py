"""One forward and backward pass in bytes: what is made, kept and freed, operation by operation.

`Step` follows the source of transformers 5's Llama family, PEFT's LoRA, bitsandbytes and TRL's loss, on a tape of sizes
(`tape.py`). `benchmarks/trace_activations.py` sets it against the libraries that are installed.

Not counted, because it is tens of kilobytes at most: scalars, oneDNN's scratch in bf16 products, the building of masks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from harness.forecast.architecture import Linear
from harness.forecast.setup import BYTES, Setup
from harness.forecast.tape import Checkpoint, Leaf, Meter, Node, Tensor, record, run_backward

Device = Literal["cpu", "cuda"]

BLOCK, NESTED_BLOCK = 64, 256
"""Weights per scale of bitsandbytes' 4-bit formats, and scales per scale of their own under double quantization."""
HEAD_COLUMNS, HEAD_ROWS = 32768, 4096
"""Tile of logits that TRL 1.16's fused head allocates, whatever the vocabulary (`trl/kernels/chunked_logprob.py`)."""
GENERATOR_STATE = {"cpu": 5056, "cuda": 16}
"""Bytes of the random generator's state that checkpointing keeps for every layer."""
ENOUGH_LAYERS = 5
"""Deeper models are extrapolated: every layer between the first two and the last two is like its neighbours."""


def rest_width(setup: Setup) -> int:
    """Bytes of a weight that is not quantized."""
    if setup.quantized:
        return BYTES[setup.profile.rest or setup.compute]
    return round(setup.weight_bits / 8)


def nested(setup: Setup) -> bool:
    """Double quantization, told from the bits that are stored: 4.127 with it, 4.5 without."""
    return setup.weight_bits < 4 + 32 / BLOCK


@dataclass(frozen=True)
class Counted:
    """What one step holds, by phase and by component."""

    retained: dict[str, int]
    began: dict[str, int]
    peaks: dict[str, int]

    def further(self, other: "Counted", layers: int) -> "Counted":
        """Extrapolated by `layers` from `other`, which has one layer less."""

        def line(ours: dict[str, int], theirs: dict[str, int]) -> dict[str, int]:
            return {key: value + layers * (value - theirs[key]) for key, value in ours.items() if key in theirs}

        return Counted(
            line(self.retained, other.retained), line(self.began, other.began), line(self.peaks, other.peaks)
        )


@lru_cache(maxsize=256)
def count_forward(setup: Setup, device: Device) -> int:
    """Peak of a forward pass through the layers that keeps nothing for backward: one layer is like all."""
    inference = Step(setup.model_copy(update={"checkpointing": False}), device, 1)
    with inference.meter.without_recording():
        inference.forward_layers()
    return max(inference.meter.peaks.values())


@lru_cache(maxsize=256)
def count_step(setup: Setup, device: Device) -> Counted:
    """One forward and backward pass, counted."""
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
    copies: int = 1
    """Experts that it holds; one of them is multiplied with."""
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
    magnitude: Weight | None


@dataclass(eq=False)
class _Block:
    """One decoder layer."""

    inward: list[_Projection]
    out: _Projection
    mlp: list[_Projection]
    outward: _Projection
    norms: list[Weight]
    qk_norms: list[Weight]


@dataclass(eq=False)
class _Places:
    """What every layer is told of positions."""

    mask: Tensor | None
    numbers: Tensor
    rotary: Tensor | None


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
        self.base = rest_width(self.setup)
        self.autocast = self.setup.profile.autocast and self.setup.compute != "fp32"
        self.adapted_by_dora = self.setup.adapter is not None and self.setup.adapter.dora
        self.stop: _Projection | None = None
        """The linear layer at which computing a layer again may end."""
        self.escaped: list[Tensor] = []
        """What a layer under checkpointing holds on to all the same."""
        self.embedding = self._weight(one.vocabulary * one.hidden)
        self.head = self.embedding if one.tied else self._weight(one.vocabulary * one.hidden)
        self.final_norm = self._weight(one.hidden)
        self.blocks = [self._block() for _ in range(self.layers)]

    def _weight(self, elements: int, copies: int = 1) -> Weight:
        return Weight(copies * elements, self.base, Leaf() if self.setup.full else None, copies)

    def _block(self) -> "_Block":
        """One decoder layer, its linear layers by their order: into attention, out of it, into the MLP, out."""
        one = self.one
        wanted, inward = one.head_dim * (one.heads + 2 * one.kv_heads), 0
        while wanted > 0:
            wanted -= one.linears[inward].outputs
            inward += 1
        found = [self._projection(each) for each in one.linears]
        # of a mixture only the experts count: routers and shared experts are small beside them
        mlp = [each for each in found[inward + 1 :] if each.linear.copies > 1] or found[inward + 1 :]
        half = [self._weight(one.qk_norm // 2) for _ in range(2)] if one.qk_norm else []
        norms = [self._weight(one.hidden) for _ in range(one.norms)]
        return _Block(found[:inward], found[inward], mlp[:-1], mlp[-1], norms, half)

    def _projection(self, each: Linear) -> _Projection:
        a = b = magnitude = None
        if self.setup.adapter is not None and each in self.setup.targets:
            rank, width = self.setup.adapter.rank, BYTES[self.setup.adapter_dtype]
            copies = each.copies
            a = Weight(copies * rank * each.inputs, width, Leaf(), copies)
            b = Weight(copies * rank * each.outputs, width, Leaf(), copies)
            magnitude = Weight(each.outputs, width, Leaf()) if self.adapted_by_dora else None
        bias = self._weight(each.outputs) if each.bias else None
        return _Projection(each, self._weight(each.inputs * each.outputs, each.copies), bias, a, b, magnitude)

    # the course of a step

    def run(self) -> Counted:
        meter = self.meter
        meter.enter("forward")
        root, kept = self._forward()
        meter.began.clear()  # from here on they are those of backward
        meter.enter("loss")
        with meter.inside("gradients"):
            run_backward(root, meter.tensor(1, 4), self._on_node)
        return Counted(kept, meter.began, meter.peaks)

    def _on_node(self, node: Node) -> None:
        if node.phase and node.phase != self.meter.phase:
            self.meter.enter(node.phase)

    def forward_layers(self) -> Tensor:
        """From the embedding to the last layer's output."""
        meter = self.meter
        meter.enter("embedding")
        with meter.inside("embedding"):
            hidden = self.embed()
        with meter.inside("positions"):
            places = self.places(hidden.width)
        for index, block in enumerate(self.blocks):
            meter.enter(self._layer_phase(index))
            call = self.checkpointed if self.setup.checkpointing else self.layer
            hidden = call(block, hidden, places)
        return hidden

    def _forward(self) -> tuple[Node, dict[str, int]]:
        meter = self.meter
        hidden = self.forward_layers()
        meter.enter("loss")
        with meter.inside("norms"):
            hidden = self.norm(hidden, self.final_norm)
        with meter.inside("loss"):
            loss = self.full_head(hidden) if self.setup.loss == "full" else self.fused_head(hidden)
        del hidden
        self.leave_autocast()
        assert loss.node is not None
        return loss.node, dict(meter.held)

    def _layer_phase(self, index: int) -> str:
        """Layers that are alike share a name, and each phase's peak is then a straight line in the depth."""
        names = {0: "first layer", 1: "second layer", self.layers - 2: "last layer but one"}
        return "last layer" if index == self.layers - 1 else names.get(index, "layers between")

    def embed(self) -> Tensor:
        table = self.embedding
        out = self.meter.tensor(self.tokens * self.one.hidden, table.width)
        if self.setup.checkpointing and table.leaf is None:
            out.node = Leaf()  # enable_input_require_grads: it collects a gradient that nobody reads
        else:
            out = record(out, [table.leaf], lambda grad: [grad.meter.tensor(table.elements, table.width)])
        return out if self.setup.profile.residual is None else self.cast(out, BYTES[self.setup.profile.residual])

    def places(self, width: int) -> "_Places":
        """The mask, one byte a pair of positions for SDPA, and the cosines and sines."""
        mask = None
        pairs = self.batch * self.length**2
        windowed = self.one.window is not None and self.length >= self.one.window
        if self.setup.attention == "eager":
            mask = self.meter.tensor(pairs, width)
        elif self.setup.attention == "sdpa" and (windowed or (self.setup.padded and self.batch > 1)):
            mask = self.meter.tensor(pairs, 1)
        numbers = self.meter.tensor(self.length, 8)
        if self.one.positions:
            return _Places(mask, numbers, None)
        return _Places(mask, numbers, self.meter.tensor(2 * self.length * self.one.head_dim, width))

    def checkpointed(self, block: "_Block", hidden: Tensor, places: "_Places") -> Tensor:
        """torch.utils.checkpoint without reentry: the layer is computed again when its backward begins."""
        meter = self.meter
        with meter.without_recording():
            out = self.layer(block, hidden, places)
        with meter.inside("checkpoints"):
            saved = [hidden.kept(), meter.tensor(GENERATOR_STATE[self.device], 1)]

        def again(below: Node | None) -> Node:
            kept, spare = saved[0], meter.tensor(GENERATOR_STATE[self.device], 1)
            kept.node = below
            kept = record(kept.kept(), [kept], lambda grad: [grad.kept()], saved[1:])
            # the gradient of what the adapter adds needs nothing that was saved: it is there already
            scaled = meter.tensor(kept.elements, kept.width) if block.outward.a is not None else None
            # it stops where the last tensor has been saved; what comes after is not computed again
            self.stop = None if self.one.norms > 2 or self.adapted_by_dora else block.outward
            with meter.inside("recomputed"):
                root = self.layer(block, kept, places).node
            self.stop, meter.weightless = None, False
            self.leave_autocast()
            saved.clear()
            del spare, kept, scaled
            assert root is not None
            return root

        if meter.recording:
            out.node = Checkpoint(hidden.node, again, meter.phase)
            out.node.attributes += self.escaped  # no hook of checkpointing sees them
        self.escaped.clear()
        return out

    def leave_autocast(self) -> None:
        """The cache of cast weights is emptied with the region: at the end of forward, and of a recomputed layer."""
        for weight in self.casts:
            weight.cast = None
        self.casts.clear()

    # a decoder layer

    def layer(self, block: "_Block", hidden: Tensor, places: "_Places") -> Tensor:
        """LlamaDecoderLayer and its kin: norms after the sublayers too (Gemma 2), or one norm before both (Phi)."""
        meter, norms = self.meter, block.norms
        residual = hidden
        with meter.inside("norms"):
            hidden = normal = self.norm(hidden, norms[0])
        with meter.inside("attention"):
            hidden = self.attention(block, hidden, places)
        if len(norms) == 1:
            with meter.inside("mlp"):
                hidden = self.add(hidden, self.mlp(block, normal))
            with meter.inside("residual"):
                return self.add(hidden, residual)
        del normal
        if len(norms) == 4:
            with meter.inside("norms"):
                hidden = self.norm(hidden, norms[1])
        with meter.inside("residual"):
            hidden = self.add(residual, hidden)
        residual = hidden
        with meter.inside("norms"):
            hidden = self.norm(hidden, norms[-2 if len(norms) == 4 else -1])
        with meter.inside("mlp"):
            hidden = self.mlp(block, hidden)
        if len(norms) == 4:
            with meter.inside("norms"):
                hidden = self.norm(hidden, norms[3])
        with meter.inside("residual"):
            return self.add(residual, hidden)

    def norm(self, x: Tensor, weight: Weight) -> Tensor:
        if self.one.norm == "layer" or self.setup.profile.fused_layer:
            return self.fused_norm(x, weight, 2 if self.one.norm == "layer" else 1)
        return self.rms_norm(x, weight)

    def rms_norm(self, x: Tensor, weight: Weight) -> Tensor:
        """LlamaRMSNorm: in fp32, back in the input's dtype, then scaled."""
        width = x.width
        x = self.cast(x, 4)
        root = self.rsqrt_mean(self.square(x), x.elements // weight.elements)
        x = self.mul_rows(x, root)
        del root
        return self.scale(self.cast(x, width), weight)

    def fused_norm(self, x: Tensor, weight: Weight, numbers: int) -> Tensor:
        """Keeps its input and one or two fp32 numbers a row."""
        statistics = x.meter.tensor(numbers * (x.elements // weight.elements), 4)

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            return [grad.like(), grad.meter.tensor(weight.elements, weight.width) if weight.leaf else None]

        return record(x.like(), [x, weight.leaf], backward, [x, statistics])

    def attention(self, block: "_Block", x: Tensor, places: "_Places") -> Tensor:
        query, key, value = self.projected(block, x)
        del x
        if block.qk_norms:
            query, key = (self.norm(one, each) for one, each in zip((query, key), block.qk_norms, strict=True))
        if places.rotary is not None:
            turned = self.rotate(query, places.rotary), self.rotate(key, places.rotary)
            query, key = turned
            del turned
        call = self.eager if self.setup.attention == "eager" else self.sdpa
        return self.linear(block.out, call(query, key, value, places.mask))

    def projected(self, block: "_Block", x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.one
        rotated = not one.positions
        if len(block.inward) == 3:
            query, key, value = (self.linear(each, x) for each in block.inward)
            return self.heads(query, rotated), self.heads(key, rotated), self.heads(value, False)
        whole = self.linear(block.inward[0], x)
        sizes = [self.tokens * one.head_dim * each for each in (one.heads, one.kv_heads, one.kv_heads)]
        query, key, value = (self.part(whole, size) for size in sizes)
        return query, key, value

    def mlp(self, block: "_Block", x: Tensor) -> Tensor:
        used = min(self.one.experts_used, block.outward.linear.copies)
        if used == 1:
            return self.one_mlp(block, x)
        elements, width = x.elements, x.width
        each = record(self.meter.tensor(used * elements, width), [x], lambda grad: [grad.meter.tensor(elements, width)])
        out = self.one_mlp(block, each)
        return record(
            self.meter.tensor(elements, width), [out], lambda grad: [grad.meter.tensor(used * elements, width)]
        )

    def one_mlp(self, block: "_Block", x: Tensor) -> Tensor:
        if not self.one.gated:
            return self.linear(block.outward, self.activate(self.linear(block.mlp[0], x)))
        if len(block.mlp) == 1:
            whole = self.linear(block.mlp[0], x)
            gate, up = self.part(whole, whole.elements // 2), self.part(whole, whole.elements // 2)
            del whole
        elif self.setup.profile.fused_layer:
            gate, up = self.linear(block.mlp[0], x), self.linear(block.mlp[1], x)
            return self.linear(block.outward, self.fused_gate(gate, up))
        else:
            gate = self.activate(self.linear(block.mlp[0], x))
            return self.linear(block.outward, self.mul(gate, self.linear(block.mlp[1], x)))
        return self.linear(block.outward, self.mul(self.activate(gate), up))

    # a linear layer

    def linear(self, projection: "_Projection", x: Tensor) -> Tensor:
        """A linear layer, with its adapter where it has one."""
        plain = projection.a is None or projection.b is None
        out = self.base_layer(projection, x, last=plain and self.stop is projection)
        if plain:
            return out
        with self.meter.inside("adapters"):
            if self.setup.quantization in {"nf4", "fp4"} and self.setup.quantized:
                out = record(out.like(), [out], lambda grad: [grad.kept()])  # PEFT clones what comes from 4 bits
            return self.dora(projection, x, out) if self.adapted_by_dora else self.lora(projection, x, out)

    def base_layer(self, projection: "_Projection", x: Tensor, last: bool = False) -> Tensor:
        if self.setup.quantized:
            return self.dequantized(projection, x, last)
        return self.matmul(x, projection.weight, projection.linear.outputs, projection.bias, last)

    def matmul(self, x: Tensor, weight: Weight, outputs: int, bias: Weight | None = None, last: bool = False) -> Tensor:
        """`F.linear` with a dense weight: what autocast casts, and what each gradient needs."""
        rows = x.elements // (weight.elements // weight.copies // outputs)
        matrix = self.cast_weight(weight)
        if self.autocast:
            x = self.cast(x, 2)
        self.meter.weightless |= last
        inputs, width, flows = x.elements, x.width, x.flows

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            mine = grad.meter.tensor(weight.elements, width) if weight.leaf else None
            own = grad.meter.tensor(inputs, width).viewed() if flows else None
            added = grad.meter.tensor(bias.elements, width) if bias and bias.leaf else None
            return [own, mine, added]

        through = matrix if matrix is not None and matrix.flows else weight.leaf
        saved = [x if weight.leaf else None, matrix if flows else None]
        return record(x.meter.tensor(rows * outputs, width), [x, through, bias.leaf if bias else None], backward, saved)

    def cast_weight(self, weight: Weight) -> Tensor | None:
        """What autocast multiplies with: a trained weight's cast is cached, a frozen one's is made at every use."""
        if not self.autocast or weight.width == 2:
            return None
        if weight.cast is not None:
            return weight.cast
        cast = self.meter.tensor(weight.elements, 2)
        if weight.leaf is not None:
            weight.cast = record(cast, [weight.leaf], lambda grad: [grad.like(weight.width)])
            self.casts.append(weight)
        return cast

    def dequantized(self, projection: "_Projection", x: Tensor, last: bool = False) -> Tensor:
        """A dense copy of the weight, made in forward and again in backward, and freed at once (bitsandbytes, hqq).

        torchao casts within a plain product, whose backward keeps the cast codes.
        """
        elements, outputs = projection.linear.inputs * projection.linear.outputs, projection.linear.outputs
        meter, width, inputs = self.meter, x.width, x.elements
        int8 = self.setup.quantization == "int8"
        scales = math.ceil(elements / BLOCK) if not int8 and nested(self.setup) else 0
        meter.weightless |= last  # it saves nothing
        first = meter.tensor(scales, 4)  # dequantized, and with their mean
        second = meter.tensor(scales, 4)
        del first
        copy = meter.tensor(elements, width)
        out = meter.tensor(inputs // projection.linear.inputs * outputs, width)
        kept = copy if self.setup.quantization.startswith("torchao") and x.flows else None
        del copy, second

        def backward(grad: Tensor) -> Sequence[Tensor]:
            meter.scratch(4 * scales + elements * width)
            copy = meter.tensor(elements, width)
            own = meter.tensor(inputs, width).viewed()
            del copy
            return [own]

        out = record(out, [x], backward, [kept])
        del kept
        # on a CPU MatMul8bitFp keeps its input as an attribute, which lives as long as the graph
        if (int8 and self.device == "cpu") or self.setup.profile.keeps_quantized_input:
            if out.node is not None and self.setup.checkpointing is False:
                out.node.attributes.append(x.kept())
            elif not meter.recording:
                self.escaped.append(x.kept())
        return out

    def lora(self, projection: "_Projection", x: Tensor, out: Tensor) -> Tensor:
        """result + lora_B(lora_A(dropout(x))) * scaling"""
        width = out.width
        assert projection.a is not None
        x = self.cast(x, projection.a.width)
        high = self.times(self.low_rank(projection, self.dropout(x)))
        if self.setup.quantized:
            high = self.cast(high, width)
        return self.cast(self.add(out, high), width)

    def low_rank(self, projection: "_Projection", x: Tensor) -> Tensor:
        assert self.setup.adapter is not None
        assert projection.a is not None
        assert projection.b is not None
        low = self.matmul(x, projection.a, self.setup.adapter.rank)
        return self.matmul(low, projection.b, projection.linear.outputs, last=self.stop is projection)

    def dora(self, projection: "_Projection", x: Tensor, out: Tensor) -> Tensor:
        """(m / norm - 1) * base(x) + m / norm * lora(x) * scaling: both products keep what the magnitude multiplies.

        The norm is that of the merged weight, whose update is lora(identity).
        """
        assert self.setup.adapter is not None
        assert projection.a is not None
        assert projection.magnitude is not None
        meter, magnitude, width = self.meter, projection.magnitude, out.width
        each, elements = projection.linear, projection.weight.elements
        x = self.cast(x, projection.a.width)
        dropped = self.dropout(x)
        held = [meter.tensor(each.inputs**2, x.width), meter.tensor(each.inputs * self.setup.adapter.rank, x.width)]
        held.append(meter.tensor(elements, x.width))
        dense = meter.tensor(elements, x.width) if self.setup.quantized or self.base != x.width else None
        meter.scratch(2 * elements * x.width)
        high = self.low_rank(projection, dropped)
        base = out
        if self.setup.adapter.dropout:  # the base's result of what dropout has left
            base = self.matmul(dropped, Weight(elements, x.width), each.outputs)
            if base.node is not None and dense is not None:
                base.node.saved.append(dense.kept())
        columns = meter.tensor(3 * each.outputs, x.width)  # the norm, the magnitude over it, and that minus 1
        first, second = self.scale(base, magnitude, columns), self.times(self.scale(high, magnitude, columns))
        update = self.add(first, second)
        del high, first, second, base, held, dense, columns
        return self.cast(self.add(out, update), width)

    def dropout(self, x: Tensor) -> Tensor:
        """On a CPU the noise is a tensor in the input's dtype, on a GPU a byte each."""
        assert self.setup.adapter is not None
        if not self.setup.adapter.dropout:
            return x
        noise = x.like(x.width if self.device == "cpu" else 1)
        return record(x.like(), [x], lambda grad: [grad.like()], [noise])

    # attention

    def heads(self, x: Tensor, copied: bool) -> Tensor:
        """Seen as heads; the gradient comes back in another layout where it went through the rotary embedding."""
        return record(x.viewed(), [x], lambda grad: [grad.like() if copied else grad.viewed()])

    def part(self, x: Tensor, elements: int) -> Tensor:
        """A slice of a fused projection; its gradient is padded with zeros."""
        whole = x.elements
        view = Tensor(x.storage, elements, x.width, view=True)
        return record(view, [x], lambda grad: [grad.meter.tensor(whole, grad.width)])

    def rotate(self, x: Tensor, rotary: Tensor) -> Tensor:
        """apply_rotary_pos_emb for queries or keys: (x * cos) + (rotate_half(x) * sin)."""
        width = max(x.width, rotary.width)
        before = x.width
        if not self.setup.profile.fused_layer:
            first = x.like(width)
            half = x.meter.tensor(x.elements // 2, before)
            turned = x.like()
            del half
            second = x.like(width)
            del turned
        out = x.like(width)
        if not self.setup.profile.fused_layer:
            del first, second

        def backward(grad: Tensor) -> Sequence[Tensor]:
            turned = self.narrow(grad.like(), before)
            half = grad.meter.tensor(grad.elements // 2, before)
            own = grad.like(before)  # each half's gradient is padded with zeros
            del half
            other = grad.like(before)
            del other, turned
            first = self.narrow(grad.like(), before)
            del first
            return [own]

        return record(out, [x], backward, [rotary])

    def repeat(self, x: Tensor) -> Tensor:
        """repeat_kv: a copy for every group of queries."""
        groups, elements, width = self.one.heads // self.one.kv_heads, x.elements, x.width
        if groups == 1:
            return x
        out = x.meter.tensor(groups * elements, width)
        return record(out, [x], lambda grad: [grad.meter.tensor(elements, grad.width)])

    def sdpa(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Flash kernels: on a GPU only without a mask, else its memory-efficient one, which keeps the same tensors."""
        if mask is not None and self.one.kv_heads > 1:  # a single head is repeated without a copy
            key, value = self.repeat(key), self.repeat(value)
        if self.autocast:
            query, key, value = (self.cast(one, 2) for one in (query, key, value))
        meter = self.meter
        bias = None if mask is None else mask.like(query.width)  # from booleans, for every layer anew
        out = query.like()
        sums = meter.tensor(self.tokens * self.one.heads, 4)
        rows, columns = self._flash_tile()
        if self.device == "cpu":
            halves = columns if query.width == 2 else 0
            meter.scratch(4 * (rows * columns + 2 * rows + rows * self.one.head_dim) + 2 * rows * halves)
        sizes = [(one.elements, one.width) for one in (query, key, value)]

        def backward(grad: Tensor) -> Sequence[Tensor]:
            grads = [meter.tensor(*size) for size in sizes]
            if self.device == "cpu":
                meter.scratch(2 * 4 * rows * columns + 4 * rows)
            return grads

        return record(out, [query, key, value], backward, [query, key, value, out, sums, bias])

    def _flash_tile(self) -> tuple[int, int]:
        """Rows and columns that a thread of the CPU's kernel works on; trials have one thread."""
        rows = 256 if self.length >= 768 else 64 if self.length >= 192 else 32
        return min(rows, self.length), min(self.length, 512)

    def eager(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """eager_attention_forward: every score is a tensor, the softmax in fp32."""
        if self.one.heads == self.one.kv_heads:
            key, value = self.contiguous(key), self.contiguous(value)
        else:
            key, value = self.repeat(key), self.repeat(value)
        query = self.contiguous(query)
        scores = self.times(self.batched(query, key, self.batch * self.one.heads * self.length**2))
        if mask is not None:
            scores = record(scores.like(), [scores], lambda grad: [grad.kept()])
        width = query.width
        scores = self.cast(self.softmax(scores), width)
        out = self.batched(scores, value, query.elements)
        del scores
        return record(out.like(), [out], lambda grad: [grad.viewed()])

    def contiguous(self, x: Tensor) -> Tensor:
        """A copy with each head in one piece; heads of a single sequence are multiplied where they lie."""
        if self.batch == 1:
            return x
        return record(x.like(), [x], lambda grad: [grad.viewed()])

    def batched(self, x: Tensor, y: Tensor, elements: int) -> Tensor:
        """torch.matmul of contiguous heads."""
        if self.autocast:
            x, y = self.cast(x, 2), self.cast(y, 2)
        out = x.meter.tensor(elements, x.width)
        left, right = x.elements, y.elements
        return record(out, [x, y], lambda grad: [grad.meter.tensor(n, grad.width) for n in (left, right)], [x, y])

    def softmax(self, x: Tensor) -> Tensor:
        width = x.width
        if width != 4:
            x.meter.scratch(4 * x.elements)
        out = x.like(4)
        return record(out, [x], lambda grad: [self.narrow(grad.like(4), width)], [out])

    # head and loss

    def fused_head(self, hidden: Tensor) -> Tensor:
        """TRL's head: logits a tile at a time, in forward and again in backward. Every tile has its full width."""
        meter, one, head = self.meter, self.one, self.head
        rows = self.batch * (self.length - 1)  # a GPU leaves out positions without a label; all may have one
        width = 2 if self.autocast else hidden.width
        inputs = self.without_last(hidden, rows)
        labels, mask = meter.tensor(rows, 8), meter.tensor(rows, 1)
        running = meter.tensor(7 * rows, 4)
        self._tile(rows, width, hidden.width, 13)
        del running
        scores = meter.tensor(4 * rows, 4)
        flows, before = inputs.flows, hidden.width

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            own = meter.tensor(rows * one.hidden, 4) if flows else None
            mine = meter.tensor(head.elements, 4) if head.leaf else None
            self._tile(rows, width, before, 29)
            return [own and self.narrow(own, before), mine and self.narrow(mine, head.width)]

        return record(meter.tensor(1, 4), [inputs, head.leaf], backward, [inputs, labels, scores, mask])

    def without_last(self, hidden: Tensor, rows: int) -> Tensor:
        """hidden[:, :-1] in one piece: a copy where there is more than one sequence."""
        elements = hidden.elements
        out = self.meter.tensor(rows * self.one.hidden, hidden.width) if self.batch > 1 else hidden.kept()
        return record(out, [hidden], lambda grad: [grad.meter.tensor(elements, grad.width)])

    def _tile(self, rows: int, width: int, before: int, passing: int) -> None:
        """A tile of logits, with `passing` bytes of temporaries per logit: none on a GPU (Triton, in place)."""
        meter, one = self.meter, self.one
        n, columns = min(rows, HEAD_ROWS), min(one.vocabulary, HEAD_COLUMNS)
        tile = meter.tensor(n * HEAD_COLUMNS, width)
        chunk = None if width == before else meter.tensor(n * one.hidden, width)
        matrix = None if width == self.head.width else meter.tensor(columns * one.hidden, width)
        if self.device == "cpu":
            meter.scratch(n * columns * passing + 8 * n)
            if passing > 20 and width != 4:  # products are summed in fp32, from copies in fp32
                meter.scratch(4 * (n * columns + columns * one.hidden))
        del tile, chunk, matrix

    def full_head(self, hidden: Tensor) -> Tensor:
        """transformers' own loss: all logits, upcast; log-probabilities kept; a gradient for each in turn."""
        meter = self.meter
        logits = self.matmul(hidden, self.head, self.one.vocabulary)
        upcast = self.cast(logits, 4)
        labels = meter.tensor(self.tokens, 8)
        likely = upcast.like()
        likely = record(likely, [upcast], lambda grad: [grad.like()], [likely])
        elements = likely.elements
        return record(meter.tensor(1, 4), [likely], lambda grad: [grad.meter.tensor(elements, 4)], [likely, labels])

    # element by element

    def cast(self, x: Tensor, width: int) -> Tensor:
        """`x.to(dtype)`: the same tensor where it has that dtype."""
        before = x.width
        return x if width == before else record(x.like(width), [x], lambda grad: [grad.like(before)])

    def narrow(self, grad: Tensor, width: int) -> Tensor:
        """A gradient is handed on in the dtype of what it belongs to."""
        return grad if grad.width == width else grad.like(width)

    def square(self, x: Tensor) -> Tensor:
        def backward(grad: Tensor) -> Sequence[Tensor]:
            power = grad.like()  # grad * (2 * x ** 1), every factor a tensor of its own
            twice = grad.like()
            out = grad.like()
            del power, twice
            return [out]

        return record(x.like(), [x], backward, [x])

    def rsqrt_mean(self, squared: Tensor, rows: int) -> Tensor:
        elements = squared.elements
        out = squared.meter.tensor(rows, 4)
        return record(out, [squared], lambda grad: [grad.meter.tensor(elements, 4)], [out])

    def mul_rows(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiply every row by its own number."""
        rows = factors.elements

        def backward(grad: Tensor) -> Sequence[Tensor]:
            own, whole = grad.like(), grad.like()
            summed = grad.meter.tensor(rows, 4)
            del whole
            return [own, summed]

        return record(x.like(), [x, factors], backward, [x, factors])

    def scale(self, x: Tensor, weight: Weight, columns: Tensor | None = None) -> Tensor:
        """Multiply by one number per column, trained or frozen."""
        flows, before = x.flows, x.width

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            whole = grad.like() if weight.leaf else None
            own = self.narrow(grad.like(), before) if flows else None
            mine = grad.meter.tensor(weight.elements, weight.width) if whole else None
            return [own, mine]

        saved = [x if weight.leaf else None, columns]
        return record(x.like(max(x.width, weight.width)), [x, weight.leaf], backward, saved)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        widths = x.width, y.width

        def backward(grad: Tensor) -> Sequence[Tensor]:
            return [grad.kept() if grad.width == width else grad.like(width) for width in widths]

        return record(x.like(max(widths)), [x, y], backward)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        flows = x.flows, y.flows

        def backward(grad: Tensor) -> Sequence[Tensor | None]:
            return [grad.like() if each else None for each in flows]

        return record(x.like(max(x.width, y.width)), [x, y], backward, [x if y.flows else None, y if x.flows else None])

    def times(self, x: Tensor) -> Tensor:
        """Multiply by one number that is not trained."""
        return record(x.like(), [x], lambda grad: [grad.like()])

    def activate(self, x: Tensor) -> Tensor:
        return record(x.like(), [x], lambda grad: [grad.like()], [x])

    def fused_gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """SwiGLU in one kernel: both inputs kept, and their gradients written over them."""
        return record(gate.like(), [gate, up], lambda grad: [grad.like(), grad.like()], [gate, up])
