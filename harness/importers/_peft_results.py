"""The result files of PEFT's method comparison, read and checked: what is used of them, under PEFT's own names.

Written by `log_results` of huggingface/peft, method_comparison/MetaMathQA/utils.py.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Theirs to ours. `int8` and `int4` leave the dtype that is computed in to the library's default, and are not read."""

FORGETTING_SINCE = datetime(2026, 7, 14, tzinfo=UTC)
"""Before, the loss on Wikipedia was wrong: padding on the wrong side (huggingface/peft#2986), logits that were not
shifted and adapters that did not begin as the identity (#3419)."""


class Unreadable(Exception):
    """A file that is not a result of this comparison, or one that this version does not know how to read."""


class Part(BaseModel):
    """Of a foreign file: what is not used may be anything."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class OptimizerKwargs(Part):
    lr: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = 0.01
    """Theirs replaces their default of 0.1; without one torch's own is in force."""


class TrainConfig(Part):
    model_id: str
    dtype: str
    max_seq_length: int = Field(gt=1)
    batch_size: int = Field(gt=0)
    batch_size_eval: int = Field(gt=0)
    max_steps: int = Field(gt=0)
    use_gc: bool = False
    seed: int = Field(ge=0, lt=(1 << 31) - 1)
    grad_norm_clip: float = Field(gt=0)
    optimizer_type: str
    optimizer_kwargs: OptimizerKwargs
    lr_scheduler: Literal["cosine"] | None
    autocast_adapter_dtype: bool = True


class RunInfo(Part):
    created_at: AwareDatetime
    total_time: float
    """Seconds of the whole process."""
    experiment_name: str = Field(min_length=1)
    """`METHOD/MODEL-WHAT`."""
    train_config: TrainConfig
    peft_config: dict[str, Any] | None
    """None: full fine-tuning."""
    error_msg: str = ""


class Metric(Part):
    """Of 250 steps; the last one has the test's result instead of times."""

    step: int
    train_loss: float = Field(alias="train loss")
    """Mean over the steps since the last one."""
    train_time: float | None = Field(None, alias="train time")
    """Seconds of these steps."""
    tokens_per_second: float | None = Field(None, alias="tokens / sec")
    test_accuracy: float | None = Field(None, alias="test accuracy", ge=0, le=1)
    total_tokens: int | None = Field(None, alias="train total tokens")
    """Padding not counted."""
    forgetting: float | None = None
    """Loss per token on Wikipedia articles, after training minus before."""


class TrainInfo(Part):
    accelerator_memory_max: int = Field(validation_alias=AliasChoices("accelerator_memory_max", "cuda_memory_max"))
    """Bytes that PyTorch's allocator reserved at most in the whole process, less those at its start. The second name is
    that of results of 2025."""
    num_trainable_params: int
    num_total_params: int
    status: str
    """`success`, or `canceled` for whatever went wrong, out of memory included."""
    metrics: list[Metric]


class Sha(Part):
    sha: str | None = None


class Datasets(Part):
    metamath: Sha
    gsm8k: Sha


class MetaInfo(Part):
    model_info: Sha | None = None
    dataset_info: Datasets
    package_info: dict[str, str | None] = {}
    system_info: dict[str, str] = {}


class Result(Part):
    """One run."""

    run_info: RunInfo
    train_info: TrainInfo
    meta_info: MetaInfo
    file: str = ""
    raw: dict[str, Any] = {}
    """The whole file."""

    @property
    def train(self) -> TrainConfig:
        return self.run_info.train_config

    @property
    def model_sha(self) -> str | None:
        return self.meta_info.model_info.sha if self.meta_info.model_info else None

    @property
    def gpu(self) -> str | None:
        system = self.meta_info.system_info
        return system.get("accelerator") or system.get("gpu")

    @property
    def timed(self) -> list[Metric]:
        """The metrics during training."""
        return [m for m in self.train_info.metrics if m.train_time is not None]

    @property
    def tested(self) -> Metric | None:
        """The metric after training."""
        return next((m for m in self.train_info.metrics if m.test_accuracy is not None), None)


def read_result(path: Path) -> Result:
    """Raises Unreadable when the file is not a result of the comparison."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or 'is not text'}") from error
    except ValueError as error:
        raise Unreadable(f"is not JSON: {error}") from error
    if not isinstance(raw, dict) or "run_info" not in raw:
        raise Unreadable("is not a result of PEFT's comparison: has no run_info")
    try:
        result = Result.model_validate({**raw, "file": path.name, "raw": raw})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unreadable(f"is not a result of PEFT's MetaMathQA comparison: {where}: {first['msg'].lower()}") from error
    if result.train.dtype not in DTYPES:
        raise Unreadable(f"is of the dtype {result.train.dtype}; read are {', '.join(DTYPES)}")
    if result.train_info.status == "success" and result.tested is None:
        raise Unreadable("is a success without a test accuracy")
    return result
