"""What a study declares before its first run, so that nothing is decided after the scores are known."""

from datetime import UTC, datetime
from typing import Literal

from harness import __version__
from harness.spec import Prices, StudySpec, Value, digest


class Declaration(Value):
    """The question and how it will be answered."""

    question_id: str
    """Hash of controls and arms."""
    level: Literal["configurations", "methods"]
    metric: str
    margin: float
    baseline: str
    alpha: float
    looks: list[int]
    trials: int
    """Search trials per arm and tuning, equal for all."""
    tunings: int
    worse_than_base_fails: bool
    prices: Prices
    declared_at: datetime
    harness: str

    @property
    def hash(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"declared_at", "harness"}))


def declare(spec: StudySpec) -> Declaration:
    return Declaration(
        question_id=spec.question_id,
        level=spec.objective.level,
        metric=spec.objective.metric,
        margin=spec.objective.margin,
        baseline=spec.baseline,
        alpha=spec.objective.alpha,
        looks=spec.confirm.planned_looks,
        trials=spec.search.trials,
        tunings=spec.search.tunings,
        worse_than_base_fails=spec.objective.worse_than_base_fails,
        prices=spec.prices,
        declared_at=datetime.now(UTC),
        harness=__version__,
    )


def changes(declared: Declaration, now: StudySpec) -> list[str]:
    """What the study file says now that was not declared; prices may change, they are not evidence."""
    before, after = declared.model_dump(), declare(now).model_dump()
    kept = [k for k in before if k not in {"declared_at", "harness", "prices", "question_id"}]
    return [f"{k} was {before[k]} and is {after[k]}" for k in kept if before[k] != after[k]]
