"""Copies of trials as Weights & Biases runs, streamed while they train or written to disk for `harness sync`.

One run per attempt of a trial. Its folder under `<study>/wandb/` appears in one move when the run is complete, so what
is there can be counted on: the client's own offline file holds nothing at all after a kill -9 (wandb 0.31).
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.interfaces import Job, Tracker
from harness.record import Record, Step
from harness.sources import bare
from harness.store import StudyStore
from harness.trial import Trial

if TYPE_CHECKING:
    from wandb import Run, Settings

log = logging.getLogger(__name__)

RUN_FOLDER = re.compile(r"^(?:offline-)?run-\d{8}_\d{6}-(?P<id>.+)$")


class Wandb:
    """Streams a run when online. Offline, and when online fails, `finish` writes the whole run from the record."""

    def __init__(
        self, mode: str, folder: str, project: str = "", entity: str = "", timeout_seconds: str = "20"
    ) -> None:
        self.online = mode == "online"
        self.folder = Path(folder)
        self.project = project
        self.entity = entity
        self.timeout_seconds = float(timeout_seconds)
        self.run: Run | None = None
        self.staging: Path | None = None

    def start(self, job: Job) -> None:
        if not self.online:
            return
        try:
            self.staging = _staging(self.folder, run_id(job.trial, job.attempt))
            settings = _settings("online", self.staging, self.timeout_seconds)
            self.run = _open(job.trial, job.attempt, settings, self.project, self.entity)
        except Exception as error:  # a copy must not end the trial, whatever its client raises
            self._go_offline(error)

    def step(self, step: Step) -> None:
        if self.run is None:
            return
        try:
            self.run.log(_metrics(step), step=step.step)
        except Exception as error:  # as above
            self._go_offline(error)

    def finish(self, record: Record) -> None:
        try:
            if self.run is not None and self.staging is not None:
                self._finish_online(self.run, self.staging, record)
            if self.run is None:
                publish(record, record.steps, self.folder, self.project, self.entity)
        except Exception as error:  # as above
            log.warning("W&B: trial %s not written (%s); `harness sync` will do it", record.trial_id, _line(error))
        finally:
            _end_service()

    def _finish_online(self, run: "Run", staging: Path, record: Record) -> None:
        try:
            _complete(run, record)
            folder = _keep(staging, run_id(record.trial, record.attempt))
        except Exception as error:  # as above
            self._go_offline(error)
        else:
            (folder / f"run-{run_id(record.trial, record.attempt)}.wandb.synced").touch()

    def _go_offline(self, error: Exception) -> None:
        log.warning("W&B: online failed (%s); kept in %s, send it with `harness sync`", _line(error), self.folder)
        self.online = False
        self.run = None
        _end_service()
        if self.staging is not None:
            shutil.rmtree(self.staging, ignore_errors=True)


def publish(record: Record, steps: Iterable[Step], folder: Path, project: str = "", entity: str = "") -> Path:
    """Write a finished record as one offline run and return the run's folder.

    Writing it again replaces it; its id stays, so that sending it again overwrites the run on the server.
    """
    name = run_id(record.trial, record.attempt)
    staging = _staging(folder, name)
    run = _open(record.trial, record.attempt, _settings("offline", staging), project, entity)
    began = record.started_at.timestamp() + _seconds_before_training(record)
    for step in steps:
        run.log({**_metrics(step), "_timestamp": began + step.seconds}, step=step.step)
    _complete(run, record)
    return _keep(staging, name)


def publish_missing(store: StudyStore, folder: Path, project: str = "", entity: str = "") -> list[Path]:
    """Write the runs that the folder lacks: of trials that were killed, or that had no tracker."""
    wanted = set(missing(store, folder))
    if not wanted:
        return []
    steps = {str(trial): rows.to_dict("records") for trial, rows in store.table("steps").groupby("trial_id")}
    written = []
    for record in store.records():
        if record.trial_id in wanted:
            written.append(publish(record, map(_step, steps.get(record.trial_id, [])), folder, project, entity))
            _discard_unfinished(folder, run_id(record.trial, record.attempt))
    return written


def missing(store: StudyStore, folder: Path) -> list[str]:
    """Ids of the trials in the store whose latest attempt has no run in the folder."""
    written = {run for run, _ in runs(folder)}
    return [r.trial_id for r in store.records() if run_id(r.trial, r.attempt) not in written]


def stale(store: StudyStore, folder: Path) -> list[Path]:
    """Run folders of no record in the store: their trial ended, but was cut off before its record was written."""
    latest = {r.trial_id: r.attempt for r in store.records()}
    found = [(run.rpartition("-"), path) for run, path in runs(folder)]
    return [path for (trial, _, attempt), path in found if not attempt.isdigit() or int(attempt) > latest.get(trial, 0)]


def unsent(folder: Path) -> list[Path]:
    """Folders of complete runs that no server has confirmed yet (the client leaves a mark beside what it sent)."""
    return [path for _, path in runs(folder) if not is_sent(path)]


def is_sent(run: Path) -> bool:
    return any(run.glob("*.wandb.synced"))


def runs(folder: Path) -> list[tuple[str, Path]]:
    """Id and folder of every complete run, oldest first."""
    found = [(RUN_FOLDER.match(path.name), path) for path in sorted(folder.glob("*run-*"))]
    return [(match["id"], path) for match, path in found if match]


def run_id(trial: Trial, attempt: int) -> str:
    return f"{trial.id}-{attempt}"


def preload() -> None:
    """Import what a run needs, once, in the process that trials are forked from. Starts no thread and no process."""
    import_module("wandb")
    import_module("wandb.sdk.launch.inputs.internal")  # wandb.init imports it: half the cost of a first run


def _settings(mode: str, root: Path, timeout_seconds: float = 60) -> "Settings":
    """Everything spelled out, so that neither the environment nor a settings file changes a run or makes it ask.

    Off: what would write the user's, the machine's or the repository's name, and what costs time for nothing.
    """
    import wandb

    settings: dict[str, Any] = {
        "mode": mode,
        "root_dir": str(root),
        "use_dot_wandb": False,
        "symlink": False,
        "silent": True,
        "console": "off",
        "reinit": "create_new",
        "init_timeout": timeout_seconds,
        "finish_timeout": 3 * timeout_seconds,
        "finish_timeout_raises": True,
        "host": "",
        "username": "",
        "email": "",
        "run_notes": "",
        "launch": False,
        "label_disable": True,
        "sagemaker_disable": True,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(**settings)


def _open(trial: Trial, attempt: int, settings: "Settings", project: str, entity: str) -> "Run":
    import wandb

    # `silent` counts in setup, not in init: without it, a missing key asks on the terminal
    session = wandb.setup(settings=settings)
    session.settings.sweep_id = None  # within a W&B sweep, init would not take the id and the project
    session.settings.resume = None  # a resumed run is appended to: sent twice, it would have its rows twice
    return wandb.init(
        settings=settings,
        id=run_id(trial, attempt),
        project=project or trial.study,
        entity=entity,
        group=trial.study,
        job_type=trial.arm,
        name=f"{trial.arm}-s{trial.seed}-{trial.phase}-{trial.id[:6]}",
        tags=sorted({trial.phase, trial.method, trial.quantization, *_served(trial)}),
        config=_question(trial, attempt),
    )


def _served(trial: Trial) -> set[str]:
    """What a served model is found by: how it is stored, and in which way."""
    return {trial.served.quantization, trial.served.way} if trial.served else set()


def _complete(run: "Run", record: Record) -> None:
    run.config.update(_answers(record), allow_val_change=True)
    run.summary.update(_summary(record))
    run.finish(exit_code=0 if record.status == "done" else 1)


def _question(trial: Trial, attempt: int) -> dict[str, Any]:
    """What is known before the trial runs. Group and job type are repeated: they are not columns everywhere in W&B."""
    config = trial.model_dump(mode="json", exclude={"keep_model"})
    for source, key in (("model", "id"), ("data", "path")):
        config["controls"][source][key] = bare(config["controls"][source][key])  # the folders are the user's business
    return {
        **config,
        "job_type": trial.arm,
        "trial_id": trial.id,
        "attempt": attempt,
    }


def _answers(record: Record) -> dict[str, Any]:
    kept = {"question_id", "status", "resolved", "environment", "data", "forecast"}
    return record.model_dump(mode="json", include=kept)


def _metrics(step: Step) -> dict[str, float]:
    return step.model_dump(exclude={"step"}, exclude_none=True)


def _summary(record: Record) -> dict[str, Any]:
    """Status, scores, times, bytes, named as the columns of the table `trials`. What was not measured is left out."""
    columns: dict[str, Any] = {
        "status": record.status,
        "detail": record.detail,
        "started_at": record.started_at.isoformat(),
        "trial_seconds": record.seconds,
        **{f"{s.task}/{s.metric}": s.value for s in record.scores},
    }
    if record.train:
        columns |= {f"train_{k}": v for k, v in record.train.model_dump().items()}
    if record.memory:
        columns |= {f"{k}_bytes": v for k, v in record.memory.model_dump().items()} | {"peak_bytes": record.memory.peak}
    columns |= {"stored_bytes": record.stored_bytes, "disk_bytes": record.disk_bytes}
    if record.forecast:
        columns |= record.forecast.columns
    for stage in record.stages:
        columns |= {f"{stage.stage}_{k}": v for k, v in stage.model_dump(exclude={"stage"}).items()}
    return {k: v for k, v in columns.items() if v is not None}


def _step(row: Mapping[Hashable, Any]) -> Step:
    """A row of the table `steps`, where what was not measured reads as NaN."""
    optional = {k for k, field in Step.model_fields.items() if not field.is_required()}
    return Step.model_validate({k: None if k in optional and pd.isna(row[k]) else row[k] for k in Step.model_fields})


def _seconds_before_training(record: Record) -> float:
    names = [s.stage for s in record.stages]
    return sum(s.seconds for s in record.stages[: names.index("train")]) if "train" in names else 0.0


def _staging(folder: Path, name: str) -> Path:
    """Where a run is written until it is complete: a folder of its own, since `harness sync` may run beside a study."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))


def _keep(staging: Path, name: str) -> Path:
    """Move a complete run to its place, and remove an earlier writing of it. The client's logs, full of paths, go."""
    folder = staging.parent
    (written,) = staging.glob(f"wandb/*run-*-{name}")
    for scratch in ("logs", "tmp"):
        shutil.rmtree(written / scratch, ignore_errors=True)
    for run, path in runs(folder):
        if run == name:
            shutil.rmtree(path)
    kept = written.rename(folder / written.name)
    shutil.rmtree(staging, ignore_errors=True)
    return kept


def _discard_unfinished(folder: Path, name: str) -> None:
    """Remove what a killed process left of a run."""
    for staging in folder.glob(f".{name}.*"):
        shutil.rmtree(staging, ignore_errors=True)


def _end_service() -> None:
    """End the client's helper process. atexit does not run in a process that multiprocessing forked."""
    with suppress(Exception):  # it may have ended by itself, or never begun
        import wandb

        wandb.teardown()


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


plugin: type[Tracker] = Wandb
