"""Which tasks a run is asked after training, and for what."""

import re
from pathlib import Path
from typing import Literal

from harness import tiny
from harness.errors import DataError, SpecError, did_you_mean
from harness.spec import AUTO, Controls, StudySpec

Role = Literal["target", "retention"]


def tasks_of(controls: Controls) -> dict[str, Role]:
    """The tasks by name or path, with their part. `auto` takes those of the embedded data and model."""
    settings = controls.evaluate
    targets = settings.tasks
    if targets == AUTO:
        targets = list(tiny.TARGET_TASKS) if controls.data.path == tiny.DATA_ID else []
    retention = settings.retention
    if retention == AUTO:
        retention = list(tiny.RETENTION_TASKS) if controls.model.id == tiny.MODEL_ID else []
    roles: dict[str, Role] = dict.fromkeys(targets, "target")
    return roles | {t: "retention" for t in retention if t not in roles}


def task_name(task: str) -> str:
    """The name under which a task's scores are kept: that of its file's key `task` where it is a file."""
    path = Path(task)
    if path.suffix not in {".yaml", ".yml"}:
        return task
    try:
        found = re.search(r"^task:\s*[\"']?([^\s\"'#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a task: {error}") from error
    return found[1] if found else path.stem


def check_metric(spec: StudySpec) -> None:
    """Raises SpecError when the metric that is to be compared belongs to no task, DataError when a task's file is
    missing."""
    known = [task_name(t) for t in tasks_of(spec.controls)]
    task, slash, _ = spec.objective.metric.partition("/")
    if task == AUTO or (task == "test_loss" and not slash):
        return
    # a group's members have the group's name in front
    if not slash or not any(task == t or task.startswith(f"{t}_") for t in known):
        hint = did_you_mean(task, [*known, "test_loss"])
        raise SpecError(
            f"objective.metric: {spec.objective.metric!r} is not measured by this study; {hint}",
            "write it as TASK/METRIC with a task of controls.evaluate, or test_loss",
        )
