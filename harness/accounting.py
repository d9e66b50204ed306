"""Bytes of tensors: each one stored by a model or an optimizer, and the peak of one training step."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

ATTRIBUTES_WITH_TENSORS = ("quant_state", "CB", "SCB")
"""Where bitsandbytes hangs scales and code tables on a weight."""


def stored_bytes(module: torch.nn.Module) -> int:
    """Bytes of every distinct storage that the module holds, wherever a quantization library hides it.

    `get_memory_footprint()` misses scales and code tables (bitsandbytes 4 bit) and counts tensor subclasses by the
    dtype that they imitate (torchao, quanto).
    """
    return sum(_storages(v for m in module.modules() for v in _held_by(m)).values())


def tensor_bytes(value: Any) -> int:
    """Bytes of every distinct storage in nested dicts and lists of tensors, such as an optimizer's state."""
    return sum(_storages([value]).values())


def gradient_bytes(module: torch.nn.Module) -> int:
    return tensor_bytes([p.grad for p in module.parameters() if p.grad is not None])


def step_peak(step: Callable[[], object], device: torch.device) -> int:
    """Highest memory in use during `step` above what was in use before it, in bytes.

    On CUDA from the caching allocator, elsewhere from the profiler's record of every allocation.
    """
    gc.collect()  # cycles that an earlier stage left would be freed at some moment of the step, and hide part of it
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    # the public summaries give totals per operator, not the order of events that a peak needs
    events: Iterable[Any] = profile.profiler.kineto_results.events()
    in_use = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


class Cpu:
    """The CPU as a device to measure: nothing to wait for, no allocator to ask."""

    def synchronize(self) -> None:
        pass

    def reset_peaks(self) -> None:
        pass

    def peaks(self) -> dict[str, int | None]:
        return {}

    def energy_joules(self) -> float | None:
        return None


class Cuda:
    """One NVIDIA GPU: PyTorch's allocator, and NVML for what the driver sees and for energy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._handle = _nvml_handle(device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def reset_peaks(self) -> None:
        torch.cuda.empty_cache()  # what an earlier stage has freed is not this stage's
        torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, int | None]:
        return {
            "allocated_peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_peak_bytes": torch.cuda.max_memory_reserved(self.device),
            "device_peak_bytes": self._process_bytes(),
        }

    def energy_joules(self) -> float | None:
        import pynvml

        if self._handle is None:
            return None
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except pynvml.NVMLError:
            return None

    def _process_bytes(self) -> int | None:
        """This process's memory as the driver counts it; None where it cannot be told apart (containers)."""
        import pynvml

        if self._handle is None:
            return None
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:
            return None
        return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)


def _nvml_handle(device: torch.device) -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except (ImportError, pynvml.NVMLError, AttributeError):
        return None


def _held_by(module: torch.nn.Module) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name in {"_parameters", "_buffers"}:
            yield from value.values()
        elif isinstance(value, torch.Tensor) or type(value).__name__ in {"MatmulLtState", "QuantState"}:
            yield value
        elif isinstance(value, dict) and name not in {"_modules"} and not name.endswith("_hooks"):
            yield [v for v in value.values() if isinstance(v, torch.Tensor)]


def _storages(values: Iterable[Any]) -> dict[int, int]:
    """Size of every distinct storage reachable from the values, by its address."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if type(value) not in {torch.Tensor, torch.nn.Parameter} and hasattr(value, "__tensor_flatten__"):
                waiting += [getattr(value, n) for n in value.__tensor_flatten__()[0]]
            elif value.device.type != "meta":
                storage = value.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            waiting += [vars(value).get(a) for a in ATTRIBUTES_WITH_TENSORS if hasattr(value, "__dict__")]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif type(value).__name__ in {"QuantState", "MatmulLtState"}:
            waiting += vars(value).values()
    found.pop(0, None)
    return found
