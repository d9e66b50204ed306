"""The command line that makes one run again."""

import shlex
from pathlib import Path

from harness.record import Record
from harness.spec import StudySpec


def command(record: Record, spec: StudySpec, study_file: Path) -> str | None:
    """A study of this run alone: the same arm, parameters, seed, model and data give it the same trial id, and where
    there is no room for its micro-batch it comes to a smaller one by itself.

    None where there is no such study: for results that were made elsewhere, and for what is served or timed, which
    takes the study's own command.
    """
    trial = record.trial
    if trial.phase not in {"search", "confirm"} or trial.arm not in spec.arms:
        return None
    confirmed = trial.phase == "confirm"
    others = [f"arms.{name}=null" for name in spec.arms if name != trial.arm]
    params = [f"arms.{trial.arm}.params.{key}={_written(value)}" for key, value in trial.params.items()]
    seeds = [trial.seed] if confirmed else [_unlike(trial.seed)]
    overrides = [
        f"name={spec.name}-{record.trial_id}",
        *others,
        f"arms.{trial.arm}.search=null",
        *params,
        f"objective.baseline={trial.arm}",
        "objective.level=configurations",
        f"search.seed={_unlike(trial.seed) if confirmed else trial.seed}",
        "search.trials=1",
        "search.tunings=1",
        f"confirm.seeds={seeds}",
        "confirm.looks=null",
        *(["serve=null"] if spec.serve.at else []),
    ]
    return " ".join(["harness study", shlex.quote(str(study_file)), *(shlex.quote(o) for o in overrides)])


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unlike(seed: int) -> int:
    """Another seed, for the run that has to be there beside this one."""
    return seed + 1
