"""The commands that pages, reports and messages suggest, each whole: quoted, with the study's file and its store."""

import shlex
from pathlib import Path

from harness.record import Record
from harness.spec import StudySpec
from harness.store import StudyStore


def preset(name: str, root: Path) -> str:
    """Runs a study that comes with the program."""
    return _line("study", name, store=root)


def study(store: StudyStore, *overrides: str) -> str:
    """Goes on with a study, or begins it; with overrides one that is like it."""
    return _line("study", _file(store), *overrides, store=store.folder.parent)


def again(store: StudyStore) -> str:
    """Makes the whole study again, in a store of its own beside this one."""
    root = store.folder.parent
    return _line("study", _file(store), store=root.with_name(f"{root.absolute().name}-again"))


def settle(store: StudyStore) -> str:
    """Adds the runs that would settle what a study leaves open."""
    return _line("next", store.folder.name, "--run", store=store.folder.parent)


def sync(store: StudyStore) -> str:
    """Sends a study's runs to Weights & Biases."""
    return _line("sync", store.folder.name, store=store.folder.parent)


def plan(store: StudyStore, card: str) -> str:
    """Says what a study needs on a card."""
    return _line("plan", _file(store), "--gpu", card, store=store.folder.parent)


def bring(tool: str, root: Path, name: str | None = None) -> str:
    """Takes in results of another program; PATH stands for where they lie, which is not known."""
    named = [] if name is None else ["--name", name]
    return _line("import", tool.lower(), "PATH", *named, store=root)


def _line(command: str, *words: str, store: Path) -> str:
    """Paths are whole, so that it works in any folder."""
    return shlex.join(["harness", command, *words, "--store", str(store.absolute())])


def _file(store: StudyStore) -> str:
    return str((store.folder / "study.yaml").absolute())


def command(record: Record, spec: StudySpec, study_file: Path) -> str | None:
    """A study of this run alone: the same arm, parameters, seed, model and data give it the same trial id, and where
    there is no room for its micro-batch it comes to a smaller one by itself.

    None where there is no such study: for results that were made elsewhere, and for what is served or timed, which
    takes the study's own command.

    Args:
        study_file: in its folder in the store.
    """
    trial = record.trial
    if spec.origin is not None or trial.phase not in {"search", "confirm"} or trial.arm not in spec.arms:
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
    return _line("study", str(study_file.absolute()), *overrides, store=study_file.parent.parent)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unlike(seed: int) -> int:
    """Another seed, for the run that has to be there beside this one."""
    return seed + 1
