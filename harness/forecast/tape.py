"""Autograd in bytes: tensors that are only sizes, on a tape that holds and frees them when PyTorch does.

An operation says how large its output is and which tensors its backward reads; lifetimes then follow from references,
as they do in PyTorch: a tensor is freed with its last holder. CPython frees at once, so `Tensor.__del__` is exact.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count


@dataclass(eq=False)
class Meter:
    """What is held now and the most that was, by phase of the step."""

    component: str = ""
    phase: str = ""
    live: int = 0
    held: dict[str, int] = field(default_factory=dict)
    """Bytes held now by the component that made them."""
    began: dict[str, int] = field(default_factory=dict)
    """Bytes held when a phase began."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Most bytes held within a phase."""
    recording: bool = True
    """Whether operations are kept for backward."""
    weightless: bool = False
    """New tensors take no bytes: what follows is not computed, only noted."""

    def change(self, size: int, component: str) -> None:
        self.live += size
        self.held[component] = self.held.get(component, 0) + size
        if self.live > self.peaks.get(self.phase, 0):
            self.peaks[self.phase] = self.live

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.began.setdefault(phase, self.live)
        self.peaks[phase] = max(self.live, self.peaks.get(phase, 0))

    @contextmanager
    def inside(self, component: str) -> Iterator[None]:
        """Tensors made in this block belong to `component`."""
        before, self.component = self.component, component
        yield
        self.component = before

    @contextmanager
    def without_recording(self) -> Iterator[None]:
        before, self.recording = self.recording, False
        yield
        self.recording = before

    def tensor(self, elements: int, width: int) -> "Tensor":
        """A new tensor of `elements` numbers of `width` bytes."""
        return Tensor(_Storage(self, 0 if self.weightless else elements * width, self.component), elements, width)

    def scratch(self, size: int) -> None:
        """Hold `size` bytes and let go of them."""
        self.change(size, self.component)
        self.change(-size, self.component)


class _Storage:
    __slots__ = ("component", "holders", "meter", "size")

    def __init__(self, meter: Meter, size: int, component: str) -> None:
        self.meter, self.size, self.component, self.holders = meter, size, component, 0
        meter.change(size, component)


class Tensor:
    """A reference to a storage, with the node that computed it where gradients flow through it."""

    __slots__ = ("elements", "node", "storage", "view", "width")

    def __init__(self, storage: _Storage, elements: int, width: int, view: bool = False) -> None:
        storage.holders += 1
        self.storage, self.elements, self.width, self.view = storage, elements, width, view
        self.node: Node | None = None

    def __del__(self) -> None:
        self.storage.holders -= 1
        if not self.storage.holders:
            self.storage.meter.change(-self.storage.size, self.storage.component)

    @property
    def meter(self) -> Meter:
        return self.storage.meter

    @property
    def flows(self) -> bool:
        """Whether a gradient for it is needed."""
        return self.node is not None

    def kept(self) -> "Tensor":
        """The same storage without its history: what a node saves."""
        return Tensor(self.storage, self.elements, self.width)

    def like(self, width: int | None = None) -> "Tensor":
        """A new tensor of as many numbers."""
        return self.meter.tensor(self.elements, width or self.width)

    def viewed(self) -> "Tensor":
        return Tensor(self.storage, self.elements, self.width, view=True)


Backward = Callable[[Tensor], Sequence[Tensor | None]]
_order = count()


class Node:
    """One recorded operation: how to get gradients for its inputs, and the tensors it holds until then."""

    __slots__ = ("attributes", "backward", "edges", "order", "phase", "saved")

    def __init__(
        self,
        edges: "Sequence[Node | None]",
        backward: Backward,
        saved: Sequence[Tensor | None] = (),
        phase: str = "",
    ) -> None:
        self.edges, self.order, self.backward, self.phase = tuple(edges), float(next(_order)), backward, phase
        self.saved = [one.kept() for one in saved if one is not None]
        self.attributes: list[Tensor] = []
        """Tensors that are not saved but plain attributes: PyTorch drops them with the graph, not after the node."""


class Leaf(Node):
    """A trained weight, or any tensor whose gradient is collected."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        super().__init__((), self._collect)
        self.order = math.inf  # torch.autograd runs AccumulateGrad as soon as it is ready
        self.grad: Tensor | None = None

    def _collect(self, grad: Tensor) -> tuple[()]:
        if self.grad is None:
            # taken over where nothing else holds it (1: the engine's reference)
            self.grad = grad if grad.storage.holders == 1 else grad.like()
        return ()


class Checkpoint(Node):
    """A part that is computed again when its backward begins, and whose nodes then take this one's place."""

    __slots__ = ("again",)

    def __init__(self, edge: Node | None, again: "Callable[[Node | None], Node]", phase: str) -> None:
        super().__init__([edge], lambda grad: [grad], (), phase)
        self.again = again


def record(
    out: Tensor,
    inputs: Sequence[Tensor | Leaf | None],
    backward: Backward,
    saved: Sequence[Tensor | None] = (),
) -> Tensor:
    """Note an operation, unless no input needs a gradient.

    Args:
        inputs: tensors, and weights by their leaf (None: frozen).
        backward: gives a gradient (or None) per input. It captures sizes, never tensors.
        saved: what its backward reads.
    """
    edges = [one.node if isinstance(one, Tensor) else one for one in inputs]
    if out.meter.recording and any(edge is not None for edge in edges):
        out.node = Node(edges, backward, saved, out.meter.phase)
    return out


def run_backward(root: Node, grad: Tensor, on_node: Callable[[Node], None] | None = None) -> None:
    """Run every node below `root`, the one recorded last first, as torch.autograd does."""
    waiting = _dependencies(root)
    buffers: dict[Node, Tensor] = {root: grad}
    ready: list[tuple[float, int, Node]] = [(-root.order, 0, root)]
    ties = count(1)
    del grad
    while ready:
        node = heapq.heappop(ready)[2]
        if on_node is not None:
            on_node(node)
        if isinstance(node, Checkpoint):
            inner = node.again(node.edges[0])
            for each, edges in _dependencies(inner, node.edges[0]).items():
                waiting[each] = waiting.get(each, 0) + edges
            if node.edges[0] is not None:
                waiting[node.edges[0]] -= 1
            buffers[inner] = buffers.pop(node)
            heapq.heappush(ready, (-inner.order, next(ties), inner))
            continue
        grads = _run(node, buffers)
        for edge in node.edges:
            new = grads.pop(0)
            if edge is None:
                continue
            if new is not None:
                old = buffers.pop(edge, None)
                buffers[edge] = new if old is None else _sum(old, new)
                del old
            del new
            waiting[edge] -= 1
            if not waiting[edge] and edge in buffers:
                heapq.heappush(ready, (-edge.order, next(ties), edge))


def _run(node: Node, buffers: dict[Node, Tensor]) -> list[Tensor | None]:
    grads = list(node.backward(buffers.pop(node)))
    node.saved.clear()
    return grads


def _sum(old: Tensor, new: Tensor) -> Tensor:
    """One gradient from two: added to one that nothing else holds, else to a new one (torch InputBuffer)."""
    for one in (old, new):
        if not one.view and one.storage.holders == 1:
            return one
    return old.like(max(old.width, new.width))


def _dependencies(root: Node, until: Node | None = None) -> dict[Node, int]:
    """How many nodes below `root` give a gradient to each; those below `until` are not looked at."""
    found: dict[Node, int] = {root: 0}
    stack = [root]
    while stack:
        for edge in stack.pop().edges:
            if edge is not None:
                if edge not in found:
                    found[edge] = 0
                    if edge is not until:
                        stack.append(edge)
                found[edge] += 1
    return found
