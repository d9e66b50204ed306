"""What a study needs of this machine and whether it is there, found out before anything runs."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import __version__, environment, plugins, serving, sources
from harness.connection import answers, endpoint, has_key
from harness.errors import DataError, HarnessError, NotReady, SpecError, did_you_mean
from harness.forecast import optimizers
from harness.spec import Arm, ModelSource, Scalar, StudySpec

GIB = 1 << 30
LEAST_FREE_BYTES = 5 * GIB
"""Below this much free disk a warning: checkpoints and a model's cache fill it soon."""
FOREIGN_BYTES = GIB
"""Memory in use on a GPU above which another process is at work there; the driver itself reserves about half of it."""

TRAIN_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "lm_eval", "optuna", "safetensors")
"""What the extra `train` installs and every trial needs."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str | None = None
    error: type[HarnessError] = NotReady
    """What a failure is: the machine lacks something, or the study file names data that cannot be."""


def check(spec: StudySpec, store: Path = Path("results")) -> list[Check]:
    """Everything the study needs, in the order of a list to work through.

    Raises:
        PluginError: an arm names a method or a quantization that does not exist, or `serve` a quantization.
        SpecError: the study's results were made elsewhere.
    """
    check_origin(spec)
    for arm in spec.arms.values():
        plugins.method(arm.method)
    stored = [*(a.quantization for a in spec.arms.values()), *(s.quantization for s in spec.serve.at.values())]
    quantizations = {name: plugins.quantization(name) for name in dict.fromkeys(stored)}
    extra = [package for q in quantizations.values() for package in q.packages]
    why_gpu = [f"{name} runs on CUDA only" for name, q in quantizations.items() if q.needs == "cuda"]
    if spec.controls.device == "cuda":
        why_gpu.insert(0, "controls.device is cuda")
    model, data, wandb = _together(
        lambda: check_model(spec.controls.model),
        lambda: _reach(f"data {spec.controls.data.path}", lambda: sources.find_data(spec.controls.data)),
        check_wandb,
    )
    return [check_python(), check_packages(extra), *check_gpus(why_gpu), model, data, check_disk(store), wandb]


def check_arms(spec: StudySpec) -> None:
    """Raises PluginError or SpecError for an arm, or an optimizer, with which no trial could run or be served."""
    check_origin(spec)
    optimizer = spec.controls.train.optimizer
    if optimizer not in optimizers.NAMES:
        raise SpecError(
            f"controls.train.optimizer: no optimizer {optimizer!r}; {did_you_mean(optimizer, optimizers.NAMES)}"
        )
    for name, arm in spec.arms.items():
        try:
            method, quantization = plugins.method(arm.method), plugins.quantization(arm.quantization)
            for params in _named_in(arm):
                plugins.split_params(arm.method, arm.quantization, params)
        except HarnessError as error:
            raise type(error)(f"arms.{name}: {error.message}", error.remedy) from error
        if quantization.bits < 16 and not method.trains_quantized_base:
            raise SpecError(
                f"arms.{name}: {arm.method} cannot train a base stored in {arm.quantization}",
                "method: lora, or quantization: bf16",
            )
    serving.check(spec)


def check_origin(spec: StudySpec) -> None:
    """Raises SpecError for a study whose results were made by another program."""
    if spec.origin is not None:
        raise SpecError(
            f"{spec.name} holds results of {spec.origin.tool}, which were made elsewhere: it can be read, not run or "
            "planned",
            f"harness show {spec.name}, or write a study of your own: harness presets cp tiny-methods",
        )


def _named_in(arm: Arm) -> Iterator[dict[str, Scalar]]:
    """Parameters for every value that the arm's search names: bounds, choices and what is tried first."""
    named: dict[str, list[Scalar]] = {
        k: [v for v in (*(r.choices or ()), r.low, r.high, *r.start) if v is not None] for k, r in arm.search.items()
    }
    first = {**arm.params, **{k: values[0] for k, values in named.items()}}
    yield first
    yield from ({**first, k: v} for k, values in named.items() for v in values)


def check_machine(store: Path = Path("results"), model: str | None = None) -> list[Check]:
    """What can be said without a study, and whether one model can be had."""
    reached = [check_model(ModelSource(id=model))] if model else []
    return [
        check_python(),
        check_packages(["bitsandbytes"]),
        *check_gpus([]),
        *reached,
        check_disk(store),
        check_wandb(),
    ]


def require(spec: StudySpec, store: Path = Path("results")) -> list[Check]:
    """Return the warnings when the study can run here.

    Raises:
        NotReady: names everything that is missing, and what to do about each.
        DataError: the study file names data or a model that cannot be read.
    """
    checks = check(spec, store)
    failed = [c for c in checks if c.level == "fail"]
    if failed:
        kind = DataError if any(c.error is DataError for c in failed) else NotReady
        message = f"{spec.name} cannot run here: " + "; ".join(c.what for c in failed)
        raise kind(message, "\n".join(c.remedy for c in failed if c.remedy) or None)
    return [c for c in checks if c.level == "warn"]


def check_python() -> Check:
    commit = environment.git_commit()
    return Check(
        "ok", f"Python {platform.python_version()}, harness {__version__}" + (f" ({commit})" if commit else "")
    )


def check_packages(extra: Iterable[str] = ()) -> Check:
    """Whether what trials import is installed; nothing is imported to find out."""
    wanted = dict.fromkeys([*TRAIN_PACKAGES, *extra])
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        own = all(name in {*TRAIN_PACKAGES, "bitsandbytes"} for name in missing)
        install = "make setup, or pip install 'finetune-harness[train]'" if own else f"pip install {' '.join(missing)}"
        return Check("fail", f"missing packages: {', '.join(missing)}", install)
    shown = ("torch", "transformers", "peft", "trl", "lm_eval", *extra)
    return Check("ok", ", ".join(f"{name} {environment.package_version(name) or '?'}" for name in dict.fromkeys(shown)))


def check_gpus(needed_because: list[str]) -> list[Check]:
    """The GPUs, and whether one is missing that is needed."""
    gpus = environment.gpus()
    if not gpus and needed_because:
        hidden = " (CUDA_VISIBLE_DEVICES hides all)" if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"} else ""
        what = f"no NVIDIA GPU{hidden}, and one is needed: {', '.join(needed_because)}"
        return [Check("fail", what, "run it on a machine with an NVIDIA GPU; without one: harness study tiny-methods")]
    if not gpus:
        return [Check("ok", "no NVIDIA GPU: trials run on the CPU")]
    torch = environment.package_version("torch") or ""
    if torch.endswith("+cpu"):
        what = f"{gpus[0]['name']} is there, but torch {torch} cannot use it"
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally/"
        return [Check("fail" if needed_because else "warn", what, remedy)]
    return [check for gpu in gpus for check in _judge_gpu(gpu)]


def check_model(source: ModelSource) -> Check:
    return _reach(f"model {source.id}", lambda: sources.find_model(source))


def check_disk(store: Path) -> Check:
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    what = f"disk: {free / GIB:.0f} GiB free in {store}"
    if free < LEAST_FREE_BYTES:
        return Check("warn", what, "make room, or keep results elsewhere: --store FOLDER")
    return Check("ok", what)


def check_wandb() -> Check:
    """Whether runs would reach W&B. Never a failure: it holds copies, the results are kept here."""
    if importlib.util.find_spec("wandb") is None:
        return Check("ok", "W&B: not installed (pip install 'finetune-harness[wandb]'); results are kept here")
    if not has_key(os.environ):
        return Check("ok", "W&B: offline (no key); results are kept here, to send copies: wandb login")
    host, port = endpoint(os.environ)
    if not answers(host, port):
        return Check(
            "ok", f"W&B: offline ({host} does not answer); results are kept here, harness sync sends them later"
        )
    return Check("ok", f"W&B: online (a key is set, {host} answers)")


def _judge_gpu(gpu: dict[str, object]) -> list[Check]:
    index, total, used = gpu["index"], int(str(gpu["memory_bytes"])), int(str(gpu["used_bytes"]))
    sizes = f"{total / GIB:.1f} GiB, {(total - used) / GIB:.1f} free"
    checks = [Check("ok", f"GPU {index}: {gpu['name']}, {sizes}, driver {gpu['driver']}")]
    if used > FOREIGN_BYTES:
        what = (
            f"another process holds memory on GPU {index} ({used / GIB:.1f} GiB in use): peaks and times would be wrong"
        )
        checks.append(Check("warn", what, "nvidia-smi shows it; choose another GPU with CUDA_VISIBLE_DEVICES"))
    return checks


def _reach(what: str, find: Callable[[], sources.Source]) -> Check:
    try:
        found = find()
    except HarnessError as error:
        return Check("fail", error.message, error.remedy, type(error))
    return Check("ok", f"{what}: {found.kind}, {found.digest[:12]}")


def _together(*looks: Callable[[], Check]) -> list[Check]:
    """Each look may wait for the network: wait for all at once."""
    with ThreadPoolExecutor(len(looks)) as pool:
        return list(pool.map(lambda look: look(), looks))
