"""A probe: a few steps of every arm, so that a plan's times rest on this machine instead of a table."""

from collections.abc import Callable, Iterator

from harness import sources
from harness.interfaces import Job, Launcher
from harness.planning import Forecaster
from harness.record import Record
from harness.spec import Arm, Scalar, StudySpec
from harness.store import Store
from harness.trial import Trial

STEPS = 20
"""Optimizer steps of a probe: the first ones are slower and are not counted."""


def probed(spec: StudySpec, steps: int = STEPS) -> StudySpec:
    """The study of the probe, whose records lie beside those of the study: few steps, and no tasks."""
    controls = spec.controls
    train = controls.train.model_copy(update={"max_steps": steps})
    evaluate = controls.evaluate.model_copy(update={"tasks": [], "retention": []})
    return spec.model_copy(
        update={
            "name": f"{spec.name}-probe",
            "question": f"How long does a step of {spec.name} take here?",
            "controls": controls.model_copy(update={"train": train, "evaluate": evaluate}),
            "objective": spec.objective.model_copy(update={"metric": "test_loss"}),
        }
    )


def probe(
    spec: StudySpec,
    store: Store,
    launcher: Launcher,
    forecaster: Forecaster,
    tell: Callable[[str, Record | None], None],
) -> list[Record]:
    """Run a few steps of every arm that is forecast to fit and has not been probed, and keep their records.

    Args:
        tell: told of each arm, with its record, or with None where the arm is left out because it does not fit.
    """
    small = probed(spec)
    folder = store.open(small).folder
    known = {r.trial_id: r for r in store.study(small.name).records() if r.status == "done"}
    found: list[Record] = []
    for trial in trials(small):
        if trial.id in known:
            continue
        expected = forecaster.trial(trial)
        if expected.fits == "no":
            tell(trial.arm, None)
            continue
        job = Job(trial=trial, question_id=small.question_id, folder=folder.absolute(), forecast=expected)
        found.append(launcher.run(job, lambda event: None))
        tell(trial.arm, found[-1])
    return found


def trials(small: StudySpec) -> Iterator[Trial]:
    """One search trial per arm, at the values that its search would begin with."""
    model = sources.find_model(small.controls.model).digest
    data = sources.find_data(small.controls.data).digest
    for name, arm in small.arms.items():
        yield Trial(
            study=small.name,
            arm=name,
            phase="search",
            seed=small.search.seed,
            method=arm.method,
            quantization=arm.quantization,
            params=first(arm),
            controls=small.controls,
            model_digest=model,
            data_digest=data,
        )


def first(arm: Arm) -> dict[str, Scalar]:
    """An arm's parameters, those that are searched at their first value."""

    def value(name: str) -> Scalar:
        searched = arm.search[name]
        if searched.start:
            return searched.start[0]
        if searched.choices:
            return searched.choices[0]
        assert searched.low is not None
        return searched.low

    return {**arm.params, **{name: value(name) for name in arm.search}}
