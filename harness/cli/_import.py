"""What was read of another program, put into the store beside what is there already."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from harness.errors import SpecError, StoreError
from harness.interfaces import Imported
from harness.record import Record
from harness.spec import SHOULD_BE, StudySpec
from harness.store import Store


@dataclass(frozen=True)
class Added:
    """What an import has changed."""

    spec: StudySpec
    """The study as it is now."""
    new: list[Record]
    """What was written: results that were not there, and newer ones of the same runs."""
    known: int
    """Results that were there already."""


def add(store: Store, found: Imported, name: str | None = None) -> Added:
    """Write the results into a study of their own. What is there already stays as it is and is not written again.

    Raises:
        SpecError: a study cannot be called that.
        StoreError: the store holds another question under this name, or an arm of the same name with other settings,
            or another command is writing this study.
    """
    spec = found.spec if name is None else _named(found.spec, name)
    there = spec.name in store.studies()
    study = store.study(spec.name) if there else store.open(spec)
    with study.alone():
        if there:
            spec = _joined(study.spec(), spec)
            study = store.open(spec)
        new = _newer(found.records, study.records(), spec)
        for record in new:
            study.write(record)
    return Added(spec, new, len(found.records) - len(new))


def _newer(found: Sequence[Record], there: Sequence[Record], spec: StudySpec) -> list[Record]:
    """What is not there yet, and newer results of what is as its next attempt."""
    by_id = {r.trial_id: r for r in there}
    new = []
    for record in found:
        known = by_id.get(record.trial_id)
        if known is None or record.started_at > known.started_at:
            trial = record.trial.model_copy(update={"study": spec.name})
            attempt = 1 if known is None else known.attempt + 1
            new.append(record.model_copy(update={"trial": trial, "attempt": attempt}))
    return new


def _named(spec: StudySpec, name: str) -> StudySpec:
    try:
        return StudySpec.model_validate({**spec.model_dump(), "name": name})
    except ValidationError as error:
        should = SHOULD_BE["string_pattern_mismatch"]
        raise SpecError(f"{name!r} cannot name a study: {should}", f"--name {spec.name}-2") from error


def _joined(known: StudySpec, more: StudySpec) -> StudySpec:
    """The study with the arms and seeds of both."""
    if known.question_id != more.question_id:
        return more  # the store says what differs
    for name in set(known.arms) & set(more.arms):
        if known.arms[name] != more.arms[name]:
            raise StoreError(
                f"{known.name} holds an arm {name} with other settings", f"keep them apart: --name {known.name}-2"
            )
    arms = dict(sorted((known.arms | more.arms).items()))
    seeds = sorted({*known.confirm.seeds, *more.confirm.seeds})
    baseline = more.objective.baseline or known.objective.baseline
    return more.model_copy(
        update={
            "arms": arms,
            "confirm": more.confirm.model_copy(update={"seeds": seeds}),
            "search": more.search.model_copy(update={"seed": max(seeds) + 1}),
            "objective": more.objective.model_copy(update={"baseline": baseline}),
        }
    )
