"""One trial from its job to its record, whatever happens on the way."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import accounting, worker
from harness.errors import DataError
from harness.interfaces import Event, Job
from harness.record import Forecast, Interval, Record, TensorBytes
from harness.spec import Controls, Training
from harness.store import StudyStore
from harness.train import Diverged, divergence, passes_of
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
    assert names(record)[-2:] == ["save", "reference"]
    assert [s.task for s in record.scores] == ["validation_loss", "test_loss", "kl_merged", "kl_requantized"]
    assert record.adapter_path is not None
    assert (job.folder / record.adapter_path / "adapter_model.safetensors").is_file()
    (read,) = StudyStore(job.folder).records()
    assert read == record.model_copy(update={"examples": [], "steps": []})
    assert len(StudyStore(job.folder).table("examples")) == 2 + 3 + 3 + 3


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


@pytest.fixture
def uneven_rows(tmp_path: Path) -> Path:
    """Forty rows with answers of 2 to 41 tokens: a mean over micro-batches is not the mean over tokens."""
    path = tmp_path / "uneven.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"say {i:02}", "completion": " " + "x" * i}) + "\n" for i in range(40))
    )
    return path


@pytest.mark.parametrize("set_by", ["study", "trial"])
def test_a_smaller_micro_batch_is_the_same_training(make_job: MakeJob, uneven_rows: Path, set_by: str) -> None:
    def job(micro_batch: int | None) -> Job:
        train = {"batch": 16, "max_steps": 7, **({"micro_batch": micro_batch} if set_by == "study" else {})}
        made = make_job(train)
        controls = made.trial.controls
        data = controls.data.model_copy(update={"path": str(uneven_rows)})
        trial = made.trial.model_copy(update={"controls": controls.model_copy(update={"data": data})})
        return made.model_copy(update={"trial": trial.at(micro_batch if set_by == "trial" else None)})

    whole, parts = worker.run(job(None), quiet), worker.run(job(4), quiet)
    assert parts.resolved["trainer"]["per_device_train_batch_size"] == 4
    assert parts.resolved["trainer"]["gradient_accumulation_steps"] == 4
    assert len(whole.steps) == 7  # 35 rows: two steps of 16 and one of 3, then again
    for name in ("loss", "grad_norm"):
        one, other = ([getattr(s, name) for s in r.steps] for r in (whole, parts))
        assert other == pytest.approx(one, rel=1e-4), name
    assert parts.scores[0].value == pytest.approx(whole.scores[0].value, rel=1e-4)
    assert parts.train is not None
    assert whole.train is not None
    assert (parts.train.steps, parts.train.tokens) == (whole.train.steps, whole.train.tokens)
    assert parts.train.padded_share < whole.train.padded_share


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


@pytest.mark.parametrize(
    ("steps", "passes"),
    [(0, 0), (1, 4), (2, 8), (3, 9), (4, 13), (6, 18)],  # 35 rows by 4: 9 passes an epoch, in steps of 4, 4 and 1
)
def test_the_last_step_of_an_epoch_has_fewer_passes(steps: int, passes: int) -> None:
    assert passes_of(steps, 35, Training(batch=16, micro_batch=4)) == passes


def near_the_edge(fits: str = "uncertain") -> Forecast:
    any_number = Interval(low=1, mid=2, high=3)
    tensors = TensorBytes(weights=1, adapter=1, gradients=1, optimizer=1 << 20, step_peak=1)
    return Forecast.model_validate(
        {"allocated_bytes": any_number, "peak_phase": "optimizer step", "tensors": tensors, "device": "cpu",
         "fits": fits, "seconds": any_number}
    )  # fmt: skip


def test_a_run_near_the_edge_is_probed_and_trains_as_it_would_have(make_job: MakeJob) -> None:
    job = make_job(params={"learning_rate": 1e-3, "rank": 4, "dropout": 0.1})  # dropout draws random numbers
    plain = worker.run(job.model_copy(update={"forecast": near_the_edge("likely")}), quiet)
    probed = worker.run(job.model_copy(update={"forecast": near_the_edge()}), quiet)
    assert "probe" not in plain.resolved
    assert [s.loss for s in probed.steps] == [s.loss for s in plain.steps]
    assert probed.scores == plain.scores
    assert probed.memory == plain.memory
    assert probed.memory is not None
    probe = probed.resolved["probe"]
    assert (probe["passes"], probe["optimizer_bytes"]) == (3, 1 << 20)
    # the optimizer's state of a megabyte stands beside one pass
    assert probed.memory.step_peak is not None
    tensors = probed.memory.weights + probed.memory.adapter + (1 << 20)
    assert probe["peak_bytes"] == pytest.approx(tensors + probed.memory.step_peak, rel=0.01)
    assert probed.forecast == near_the_edge()


def test_gradients_are_there_in_a_probe_where_they_are_accumulated(make_job: MakeJob) -> None:
    def peak(**train: int) -> int:
        job = make_job({"batch": 2, **train}, method="full", params={"learning_rate": 1e-3})
        record = worker.run(job.model_copy(update={"forecast": near_the_edge()}), quiet)
        assert record.memory is not None
        assert record.memory.step_peak is not None
        return int(record.resolved["probe"]["peak_bytes"]) - record.memory.weights - (1 << 20) - record.memory.step_peak

    gradients = 4 * (320 * 64 * 2 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64))
    assert peak() < 0.1 * gradients
    assert peak(micro_batch=1) > 0.4 * gradients


def test_out_of_memory_in_the_probe_ends_a_run_before_its_first_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_peak(step: Callable[[], object], device: torch.device) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation")

    monkeypatch.setattr(accounting, "step_peak", step_peak)
    record = worker.run(make_job().model_copy(update={"forecast": near_the_edge()}), quiet)
    assert record.status == "out_of_memory"
    assert record.detail == "CUDA out of memory. Tried to allocate 2 GiB. (in the probe before training)"
    assert (record.steps, record.forecast) == ([], near_the_edge())
