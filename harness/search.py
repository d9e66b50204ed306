"""Tuning: one Optuna study per arm with an equal budget, always the same as what the store holds."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from harness import plugins
from harness.record import OBJECTIVE, Record
from harness.spec import Arm, Range, Scalar

RATE = "learning_rate"
HALF_DECADE = 10**0.5
EXTENSIONS = 2
"""How often the sweep of learning rates is extended beyond its edge."""
LEAST_SWEPT = 3
"""Learning rates that make a sweep with two edges and something between them."""

RANDOM_TRIALS = 4
"""Trials drawn at random before the sampler has something to go by, where the study file gives no start values."""

LEARNS_FROM = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "killed": TrialState.FAIL}
"""How Optuna is told of a status; the others say that the configuration is bad (PRUNED), which its sampler heeds."""


REPLACES = "replaces"
"""The attribute of an Optuna trial that names the failed one whose place it takes."""


@dataclass(frozen=True)
class Asked:
    """Hyperparameters to try, and the number of their Optuna trial."""

    number: int
    params: dict[str, Scalar]


def open_storage(path: Path) -> BaseStorage:
    """The study's journal. The caller holds the study's lock, so a journal lock left by a killed process is stale."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


class ArmSearch:
    """The tuning of one arm. Within an arm sampled trials come one after another, so what is tried depends on scores
    alone and not on which process was faster; values given to start with do not wait for each other."""

    def __init__(
        self, storage: BaseStorage, study: str, name: str, arm: Arm, budget: int, seed: int, tuning: int = 0
    ) -> None:
        self.name = name
        self.budget = budget
        self.seed = seed + tuning
        self.tuning = tuning
        self._fixed = dict(arm.params)
        whole = _whole_numbers(arm)
        self._spaces = {k: _distribution(r, k in whole) for k, r in arm.search.items()}
        self._starts = _starts(arm.search)
        self._live: set[int] = set()
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{study}/{name}/k{tuning}" if tuning else f"{study}/{name}",
            direction="minimize",
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),
        )

    def reconcile(self, records: Iterable[Record], again: Iterable[Record] = ()) -> None:
        """Bring Optuna's trials up to date with the store, and put back those of a journal that was lost.

        Those of `again`, and those whose record is gone from the store, are given out once more, each in its own place.
        """
        known = {t.user_attrs.get("trial_id"): t for t in self._trials()}
        records = self._mine(records)
        kept, replaced = {r.trial_id for r in records}, self._replaced()
        lost = {r.trial_id for r in self._mine(again)} | (known.keys() - kept)
        for trial in self._trials():
            if trial.state.is_finished() and trial.user_attrs.get("trial_id") in lost and trial.number not in replaced:
                self._study.enqueue_trial(trial.params, user_attrs={REPLACES: trial.number})
        for record in records:
            trial = known.get(record.trial_id)
            if trial is None:
                self._study.add_trial(self._frozen(record))
            elif trial.state == TrialState.RUNNING:
                self.tell(trial.number, record)
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and trial.params.keys() != self._spaces.keys():
                self._study.tell(trial.number, state=TrialState.FAIL)  # cut off while it was being drawn
        for params in self._starts[: self.budget]:
            if not any(_same(t, params) for t in self._trials()):
                self._study.enqueue_trial(params)

    @property
    def spent(self) -> int:
        """Trials that ended and count against the budget."""
        ended = [t for t in self._trials() if t.state.is_finished() and "trial_id" in t.user_attrs]
        replaced = self._replaced()
        return sum(t.number not in replaced for t in ended)

    @property
    def finished(self) -> bool:
        return self.spent >= self.budget and not self._live

    def ask(self) -> Asked | None:
        """What to try next: first what an earlier run began, then start values, then what the sampler proposes.

        None when the budget is given out, or when the sampler has to wait for a running trial.
        """
        trials = self._trials()
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.number not in self._live:
                return self._given(trial.number, trial.params)
        if self.begun >= self.budget:
            return None
        if not any(t.state == TrialState.WAITING for t in trials):
            if self._live:
                return None
            beyond = self._beyond_the_edge(trials)
            if beyond is not None:
                self._study.enqueue_trial(beyond)
                asked = self._study.ask(self._spaces)
                return self._given(asked.number, asked.params)
            random_first = len(self._starts) or RANDOM_TRIALS
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self._seed(len(trials)), n_startup_trials=random_first
            )
        asked = self._study.ask(self._spaces)
        return self._given(asked.number, asked.params)

    @property
    def begun(self) -> int:
        return self.spent + len(self._live)

    def resume(self, number: int) -> None:
        """A trial that was given out has to be given out again: something outside it ended its process."""
        self._live.discard(number)

    def launched(self, number: int, trial_id: str) -> None:
        """Note which run does this trial, so that its record is known again."""
        optuna.Trial(self._study, self._trials()[number]._trial_id).set_user_attr("trial_id", trial_id)

    def tell(self, number: int, record: Record) -> None:
        """Give Optuna the outcome. A trial it knows already is left as it is."""
        self._live.discard(number)
        trial = self._trials()[number]
        if trial.state.is_finished():
            return
        if "trial_id" not in trial.user_attrs:
            self.launched(number, record.trial_id)
        state = LEARNS_FROM.get(record.status, TrialState.PRUNED)
        value = record.score(OBJECTIVE)
        self._study.tell(number, value if state == TrialState.COMPLETE else None, state=state)

    def _beyond_the_edge(self, trials: list[FrozenTrial]) -> dict[str, Scalar] | None:
        """Half a decade beyond the best learning rate when it is the lowest or highest of all that were tried.

        The same right for every arm: at most twice, inside the arm's own range, out of its own budget.
        """
        space = self._spaces.get(RATE)
        done = [t for t in trials if t.state == TrialState.COMPLETE and RATE in t.params]
        if not isinstance(space, FloatDistribution) or not space.log or len(done) < LEAST_SWEPT:
            return None
        best = min(done, key=lambda t: t.value if t.value is not None else math.inf)
        rates = sorted(t.params[RATE] for t in trials if RATE in t.params)
        factor = {rates[0]: HALF_DECADE**-1, rates[-1]: HALF_DECADE}.get(best.params[RATE])
        swept = self._starts_of_rate()
        if factor is None or len(rates) - swept >= EXTENSIONS:
            return None
        rate = float(f"{best.params[RATE] * factor:.3g}")
        return {**best.params, RATE: rate} if space.low <= rate <= space.high else None

    def _starts_of_rate(self) -> int:
        return sum(RATE in start for start in self._starts[: self.budget])

    def _given(self, number: int, params: dict[str, Scalar]) -> Asked:
        self._live.add(number)
        return Asked(number, {**self._fixed, **params})

    def _mine(self, records: Iterable[Record]) -> list[Record]:
        mine = (r for r in records if self._is_mine(r))
        return sorted(mine, key=lambda r: r.trial.number or 0)

    def _is_mine(self, record: Record) -> bool:
        trial = record.trial
        return trial.arm == self.name and trial.tuning == self.tuning and record.phase == "search"

    def _replaced(self) -> set[int]:
        return {t.user_attrs[REPLACES] for t in self._trials() if REPLACES in t.user_attrs}

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, record: Record) -> FrozenTrial:
        state = LEARNS_FROM.get(record.status, TrialState.PRUNED)
        return optuna.trial.create_trial(
            state=state,
            value=record.score(OBJECTIVE) if state == TrialState.COMPLETE else None,
            params={k: record.trial.params[k] for k in self._spaces},
            distributions=self._spaces,
            user_attrs={"trial_id": record.trial_id},
        )

    def _seed(self, trial: int) -> int:
        text = f"{self._study.study_name} {self.seed} {trial}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _whole_numbers(arm: Arm) -> set[str]:
    """The parameters that only take whole numbers, such as a rank."""
    owners = (plugins.method(arm.method).params, plugins.quantization(arm.quantization).params)
    return {name for owner in owners for name, field in owner.model_fields.items() if field.annotation is int}


def _distribution(space: Range, whole: bool) -> BaseDistribution:
    if space.choices:
        return CategoricalDistribution(space.choices)
    assert space.low is not None
    assert space.high is not None
    if whole:
        return IntDistribution(math.ceil(space.low), math.floor(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def _starts(spaces: dict[str, Range]) -> list[dict[str, Scalar]]:
    """The i-th start value of every hyperparameter together; one that has run out is left to the sampler."""
    longest = max((len(r.start) for r in spaces.values()), default=0)
    return [{k: r.start[i] for k, r in spaces.items() if i < len(r.start)} for i in range(longest)]


def _same(trial: FrozenTrial, params: dict[str, Scalar]) -> bool:
    """Whether a trial that counts has these values, or waits with them."""
    if trial.state == TrialState.FAIL and "trial_id" not in trial.user_attrs:
        return False
    have = trial.params or trial.system_attrs.get("fixed_params", {})
    return all(have.get(k) == v for k, v in params.items())
