"""Which tasks a run is asked after training, and for what."""

from typing import Literal

from harness import tiny
from harness.errors import SpecError, did_you_mean
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
    roles: dict[str, Role] = dict.fromkeys(retention, "retention")
    roles.update(dict.fromkeys(targets, "target"))
    return roles


def check_metric(spec: StudySpec) -> None:
    """Raises SpecError when the metric that is to be compared belongs to no task of the study."""
    task, slash, _ = spec.objective.metric.partition("/")
    if task == AUTO or (task == "test_loss" and not slash):
        return
    known = list(tasks_of(spec.controls))
    # a group's members have the group's name in front; a file's task has a name that only the file tells
    if not slash or not any(task == t or task.startswith(f"{t}_") or t.endswith((".yaml", ".yml")) for t in known):
        hint = did_you_mean(task, [*known, "test_loss"])
        raise SpecError(
            f"objective.metric: {spec.objective.metric!r} is not measured by this study; {hint}",
            "write it as TASK/METRIC with a task of controls.evaluate, or test_loss",
        )
