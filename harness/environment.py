"""The machine a trial ran on: hardware, packages, commit. Nothing here imports a deep-learning library."""

import contextlib
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from harness import __version__
from harness.units import size

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "hqq", "torchao", "gptqmodel", "trl", "accelerate", "datasets",
    "tokenizers", "lm_eval", "optuna", "wandb", "numpy",
)  # fmt: skip
"""The packages whose versions can move a result."""

MACHINE_VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "NVIDIA_TF32_OVERRIDE",
)


def describe() -> dict[str, Any]:
    """Hardware, packages and commit as plain values. No user name, host name, path or token is among them."""
    return {
        "harness": __version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_capability": _cpu_capability(),
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
        "packages": {p: v for p in PACKAGES if (v := package_version(p))},
        "variables": {k: os.environ[k] for k in MACHINE_VARIABLES if k in os.environ},
    }


def described(environment: Mapping[str, Any]) -> str:
    """The hardware of `describe()`, in words: `2 x A100 (80.0 GiB, driver 550.54); EPYC 7763, 64 cores`."""
    gpus = Counter(_gpu(gpu) for gpu in environment.get("gpus") or [])
    parts = [f"{n} x {name}" if n > 1 else name for name, n in gpus.items()]
    if cpu := environment.get("cpu"):
        cores = environment.get("cores")
        parts.append(f"{cpu}, {cores} cores" if cores else str(cpu))
    return "; ".join(parts) or "not known"


def _gpu(gpu: Mapping[str, Any]) -> str:
    known = [
        *([size(gpu["memory_bytes"])] if gpu.get("memory_bytes") else []),
        *([f"driver {gpu['driver']}"] if gpu.get("driver") else []),
    ]
    return f"{gpu.get('name', 'GPU')}" + (f" ({', '.join(known)})" if known else "")


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of this program's own checkout, with `+` when files differ from it; None when it was installed."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs this process may use, through NVML: index, name, memory, driver. Empty without any."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in visible_gpus(pynvml.nvmlDeviceGetCount(), os.environ.get("CUDA_VISIBLE_DEVICES")):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(
                {
                    "index": index,
                    "name": pynvml.nvmlDeviceGetName(handle),
                    "memory_bytes": int(memory.total),
                    "used_bytes": int(memory.used),
                    "driver": pynvml.nvmlSystemGetDriverVersion(),
                }
            )
        return found
    finally:
        pynvml.nvmlShutdown()


def visible_gpus(count: int, variable: str | None) -> list[int]:
    """NVML's indices of the GPUs that CUDA_VISIBLE_DEVICES leaves; all of them where it names UUIDs."""
    if variable is None:
        return list(range(count))
    wanted = [part.strip() for part in variable.split(",") if part.strip()]
    if any(not part.lstrip("-").isdigit() for part in wanted):
        return list(range(count))
    # CUDA stops reading at the first index that does not exist
    visible: list[int] = []
    for part in wanted:
        if not 0 <= int(part) < count:
            break
        visible.append(int(part))
    return visible


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True
    ).stdout.strip()


def memory_bytes() -> int:
    """What this machine has, or what its container may use."""
    limit = Path("/sys/fs/cgroup/memory.max")
    total = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        return min(total, int(limit.read_text()))
    return total


def cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_capability() -> list[str]:
    """The instruction sets that choose kernels: scores of quantized models can depend on them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8"})
