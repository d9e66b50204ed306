"""One trial from its job to its record, whatever happens on the way."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import worker
from harness.errors import DataError
from harness.interfaces import Event, Job
from harness.record import Record
from harness.spec import Controls
from harness.store import StudyStore
from harness.train import Diverged, divergence
from harness.trial import Trial

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(model_folder: Path, tmp_path: Path) -> MakeJob:
    """A trial of two steps on a random model; `train` and `trial` change settings and fields."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"say {i} twice", "completion": f" {i} {i}"}) + "\n" for i in range(12))
    )

    def make(train: dict[str, Any] | None = None, **trial: Any) -> Job:
        controls = Controls.model_validate(
            {
                "model": {"id": str(model_folder)},
                "data": {"path": str(rows), "validation_rows": 2, "test_rows": 3},
                "train": {"max_steps": 2, "batch": 2, "max_length": 64, **(train or {})},
                "device": "cpu",
            }
        )
        fields: dict[str, Any] = {
            "study": "s", "arm": "lora", "phase": "search", "seed": 0, "method": "lora", "quantization": "fp32",
            "params": {"learning_rate": 1e-3, "rank": 4}, "controls": controls, "model_digest": "m", "data_digest": "d",
        }  # fmt: skip
        folder = tmp_path / "s"
        for table in ("trials", "scores", "examples", "steps", "stages"):
            (folder / table).mkdir(parents=True, exist_ok=True)
        return Job(trial=Trial.model_validate(fields | trial), question_id="q", folder=folder)

    return make


def quiet(event: Event) -> None: ...


def names(record: Record) -> list[str]:
    return [s.stage for s in record.stages]


def test_a_tuning_run_is_judged_on_validation_rows_only(make_job: MakeJob) -> None:
    job = make_job()
    events: list[Event] = []
    record = worker.run(job, events.append)
    assert (record.status, record.detail) == ("done", None)
    assert names(record) == ["load", "adapt", "train", "evaluate"]
    assert [s.task for s in record.scores] == ["validation_loss"]
    assert record.adapter_path is None
    assert record.train is not None
    assert (record.train.steps, len(record.steps)) == (2, 2)
    # rank 4 beside 7 layers of 64 and 128 in each of 2 blocks: 4 x 4 x (64 + 64) + 3 x 4 x (64 + 128), twice
    assert record.train.trainable_parameters == 2 * (4 * 4 * 128 + 3 * 4 * 192)
    assert record.memory is not None
    assert record.memory.adapter == record.memory.gradients == record.train.trainable_parameters * 4
    assert record.resolved["adapter_dtypes"] == ["float32"]
    assert record.resolved["trainer"]["max_length"] is None
    assert record.data["rows"] == {"train": 7, "validation": 2, "test": 3}
    assert [e.stage for e in events if e.kind == "stage"] == names(record)
    assert [(e.step, e.steps) for e in events if e.kind == "step"] == [(1, 2), (2, 2)]


def test_a_confirming_run_is_judged_on_test_rows_and_kept(make_job: MakeJob) -> None:
    job = make_job(phase="confirm", seed=101, quantization="int8")
    record = worker.run(job, quiet)
    assert names(record)[-1] == "save"
    assert [s.task for s in record.scores] == ["validation_loss", "test_loss"]
    assert record.adapter_path is not None
    assert (job.folder / record.adapter_path / "adapter_model.safetensors").is_file()
    (read,) = StudyStore(job.folder).records()
    assert read == record.model_copy(update={"examples": [], "steps": []})
    assert len(StudyStore(job.folder).table("examples")) == 2 + 3


def test_the_base_is_measured_without_training(make_job: MakeJob) -> None:
    record = worker.run(make_job(phase="baseline", method="none", params={}), quiet)
    assert (record.status, record.train) == ("done", None)
    assert names(record) == ["load", "adapt", "evaluate"]


def test_the_whole_model_is_kept_only_where_the_trial_says_so(make_job: MakeJob) -> None:
    full: dict[str, Any] = {"phase": "confirm", "method": "full", "params": {"learning_rate": 1e-3}}
    assert worker.run(make_job(seed=101, **full), quiet).adapter_path is None
    job = make_job(seed=102, keep_model=True, **full)
    kept = worker.run(job, quiet).adapter_path
    assert kept is not None
    assert (job.folder / kept / "model.safetensors").is_file()


def test_the_same_trial_gives_the_same_numbers(make_job: MakeJob) -> None:
    one, two = worker.run(make_job(), quiet), worker.run(make_job(), quiet)
    assert [s.loss for s in one.steps] == [s.loss for s in two.steps]
    assert one.scores == two.scores
    other = worker.run(make_job(seed=1), quiet)
    assert [s.loss for s in other.steps] != [s.loss for s in one.steps]


def test_a_smaller_micro_batch_is_the_same_training(make_job: MakeJob) -> None:
    whole = worker.run(make_job({"batch": 4}), quiet)
    parts = worker.run(make_job({"batch": 4, "micro_batch": 2}), quiet)
    assert [s.loss for s in parts.steps] == pytest.approx([s.loss for s in whole.steps], rel=1e-3)
    assert parts.scores[0].value == pytest.approx(whole.scores[0].value, rel=1e-3)
    assert parts.train is not None
    assert whole.train is not None
    assert (parts.train.steps, parts.train.tokens) == (whole.train.steps, whole.train.tokens)


def test_gradient_checkpointing_is_the_same_training(make_job: MakeJob) -> None:
    plain, saving = worker.run(make_job(), quiet), worker.run(make_job({"gradient_checkpointing": True}), quiet)
    assert saving.status == "done", saving.detail
    assert [s.loss for s in saving.steps] == pytest.approx([s.loss for s in plain.steps], rel=1e-4)


def test_a_loss_that_explodes_is_a_record_with_the_steps_until_then(make_job: MakeJob) -> None:
    job = make_job(
        {"max_steps": 30, "schedule": "constant", "warmup_ratio": 0, "max_grad_norm": 1e9},
        method="full",
        params={"learning_rate": 1e3},
    )
    record = worker.run(job, quiet)
    assert record.status == "diverged"
    assert record.detail is not None
    assert "at step" in record.detail
    assert names(record) == ["load", "adapt", "train"]
    assert 1 <= len(record.steps) < 30
    assert record.scores == []


def test_out_of_memory_is_kept_as_a_result(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing that can be handed in needs more memory than there is, on every machine
    def train(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation")

    monkeypatch.setattr(worker, "train", train)
    job = make_job()
    record = worker.run(job, quiet)
    assert (record.status, record.detail) == ("out_of_memory", "CUDA out of memory. Tried to allocate 2 GiB.")
    assert names(record) == ["load", "adapt", "train"]
    assert record.data["rows"]["train"] == 7
    assert (record.scores, record.train, record.memory) == ([], None, None)
    assert StudyStore(job.folder).records() == [record]


def test_a_mistake_in_the_data_is_a_failed_record_that_says_so(make_job: MakeJob) -> None:
    record = worker.run(make_job({"max_length": 4}), quiet)
    assert record.status == "failed"
    assert record.detail is not None
    assert "no row can be trained on (12 no answer within max_length)" in record.detail


def test_a_tracker_that_breaks_does_not_end_the_trial(make_job: MakeJob, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "file").write_text("")
    settings = {"mode": "offline", "folder": str(tmp_path / "file")}  # a file where a folder should be
    record = worker.run(make_job().model_copy(update={"trackers": {"wandb": settings}}), quiet)
    assert record.status == "done"


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (Diverged("loss is nan at step 3 of 9"), "diverged", "loss is nan at step 3 of 9"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "CUDA out of memory"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory",
         "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "out_of_memory",
         "CUDA error: out of memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory",
         "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        (DataError("rows.jsonl: has no rows"), "failed", "rows.jsonl: has no rows"),
        (ValueError("bad\nmore"), "failed", "ValueError: bad"),
        (ValueError("\n\n  \nbad"), "failed", "ValueError: bad"),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (RuntimeError(), "failed", "RuntimeError: RuntimeError"),
    ],
)  # fmt: skip
def test_what_each_error_is_called(error: Exception, status: str, detail: str) -> None:
    assert worker.outcome(error) == (status, detail)


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ([math.nan], "loss is nan"),
        ([2.0, 1.0, math.inf], "loss is inf"),
        ([1.0] * 5 + [3.1] * 5, "loss rose from 1 to 3.1, more than 3 times"),
        ([1.0] * 5 + [3.0] * 5, None),  # three times is not more than three times
        ([1.0] * 5 + [9.0] * 4, None),  # ten losses are needed
        ([1.0] * 5 + [2.0, 2.0, 2.0, 2.0, 6.0], None),  # one bad batch is not divergence
        ([5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], None),
    ],
)
def test_when_a_run_has_diverged(losses: list[float], problem: str | None) -> None:
    assert divergence(losses, factor=3.0) == problem
