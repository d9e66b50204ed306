"""Values that many tests begin with."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from harness.record import Record, Score, Stage, Step, TensorBytes, Training
from harness.spec import Controls, DataSource, ModelSource
from harness.trial import Trial

MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    """A record of a finished run; `trial` changes fields of its trial, the rest fields of the record."""

    def make(trial: dict[str, Any] | None = None, **changes: Any) -> Record:
        controls = Controls(model=ModelSource(id="tiny"), data=DataSource(path="tiny"))
        fields: dict[str, Any] = {
            "study": "tiny-methods",
            "arm": "lora",
            "phase": "confirm",
            "seed": 101,
            "method": "lora",
            "quantization": "fp32",
            "params": {"learning_rate": 0.002, "rank": 8},
            "controls": controls,
            "model_digest": "m0",
            "data_digest": "d0",
        }
        run = Trial.model_validate(fields | (trial or {}))
        values: dict[str, Any] = {
            "trial": run,
            "trial_id": run.id,
            "question_id": "q0",
            "status": "done",
            "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "seconds": 7.5,
            "train": Training(
                steps=3,
                tokens=300,
                padded_share=0.25,
                tokens_per_second=150.0,
                warmup_steps_excluded=1,
                final_loss=0.5,
                trainable_parameters=10,
                total_parameters=100,
            ),
            "memory": TensorBytes(weights=400, adapter=40, gradients=40, optimizer=80, step_peak=200),
            "stages": [
                Stage(stage="load", seconds=1.0),
                Stage(stage="adapt", seconds=0.5),
                Stage(stage="train", seconds=3),
            ],
            "steps": [
                Step(step=1, loss=2.0, learning_rate=0.002, grad_norm=1.5, seconds=1.0),
                Step(step=2, loss=1.0, learning_rate=0.001, seconds=2.0),
                Step(step=3, loss=0.5, learning_rate=0.0, grad_norm=0.5, seconds=3.0),
            ],
            "scores": [
                Score(task="recall", metric="exact_match", value=0.75, items=4, role="target", higher_is_better=True)
            ],
            "resolved": {"optim": "adamw_torch", "lora_alpha": 16},
            "environment": {"python": "3.11.7", "gpus": []},
            "data": {"train_rows": 12, "tokens_digest": "t0"},
        }
        return Record.model_validate(values | changes)

    return make
