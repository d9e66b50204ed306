"""Bring the store up to date with a study: run what is missing, in an order that is the same each time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import psutil

from harness import environment, serving, sources
from harness.checks import check_arms
from harness.data import check as check_data
from harness.errors import StoreError
from harness.interfaces import Event, Interrupted, Job, Launcher
from harness.record import SETTLED, Forecast, Record, best, outcomes
from harness.search import RATE, ArmSearch, Asked, open_storage
from harness.spec import Arm, Scalar, StudySpec
from harness.store import Store, StudyStore
from harness.summary import gather, settled
from harness.tasks import check_metric
from harness.trial import ZERO_SHOT, Phase, Trial

TRIES_WHEN_KILLED = 2
"""How often one command runs a trial that something outside it kills."""

MORE_TIME = 1.05
"""A trial that timed out runs again when the limit has been raised by more than this."""

HOPELESS = 3
"""A study whose first so many runs all fail stops: the rest would fail the same way."""


class Watcher(Protocol):
    """Who is told how a study goes."""

    def begin(self, total: int, done: Sequence[Record], expected: Mapping[Phase, float]) -> None:
        """`expected`: forecast seconds of a run by phase; empty without a forecast."""
        ...

    def started(self, trial: Trial) -> None: ...

    def event(self, trial: Trial, event: Event) -> None: ...

    def finished(self, record: Record, planned: int) -> None: ...

    def warned(self, text: str) -> None: ...


class Foresees(Protocol):
    """Who says what a trial will need: `planning.Forecaster`."""

    def trial(self, trial: Trial) -> Forecast: ...

    def knowing(self, records: Iterable[Record]) -> "Foresees":
        """The same, sharpened by the times of further runs."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a study stands when its command ends."""

    records: list[Record]
    ran: int
    """Trials that this command ran."""
    interrupted: bool = False

    @property
    def failed(self) -> list[Record]:
        return [r for r in outcomes(self.records) if r.status in {"failed", "killed"}]


def run_study(
    spec: StudySpec,
    store: Store,
    launcher: Launcher,
    watcher: Watcher,
    *,
    trackers: Mapping[str, dict[str, str]] | None = None,
    retry_failed: bool = False,
    forecaster: Foresees | None = None,
    run_anyway: bool = False,
) -> Outcome:
    """Run the study to its end, or on from where it stopped.

    A trial that is forecast not to fit is recorded as that instead of being run, unless `run_anyway`. A trial that does
    not fit, or was out of memory, goes on at half the micro-batch. Ctrl-C ends the running trials, which then have no
    record and run again next time.

    Raises:
        StoreError: the folder holds another question, or another command is running it.
        SpecError, PluginError, DataError, NotReady: as they say.
    """
    check_arms(spec)
    check_metric(spec)
    check_data(spec.controls.data, sources.find_data(spec.controls.data))
    folder = store.root / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    with StudyStore(folder).alone():
        study_store = store.open(spec)  # under the lock: a command that is refused changes nothing
        model, data = _pinned(spec, study_store)
        plan = _Plan(spec, study_store, model, data, retry_failed, forecaster, run_anyway)
        return _drive(plan, launcher, watcher, trackers or {})


def _pinned(spec: StudySpec, store: StudyStore) -> tuple[str, str]:
    """The digests of model and data that this study began with, found now when it begins.

    A hub repository may have moved on since; its commit of then is used. A file that has changed is refused: its
    results and the earlier ones would not be about the same thing.
    """
    pins = store.pins()
    found = {
        "model": sources.find_model(spec.controls.model, pins.get("model")),
        "data": sources.find_data(spec.controls.data, pins.get("data")),
    }
    for name, source in found.items():
        if pins.get(name, source.digest) != source.digest:
            raise StoreError(
                f"{source.location} has changed since study {spec.name} began",
                f"put it back, or give the study another name: name={spec.name}-2",
            )
        pins.setdefault(name, source.digest)
    store.pin(pins)
    return pins["model"], pins["data"]


@dataclass
class _Plan:
    """What the study still lacks. Everything is derived from the store and the search journal."""

    spec: StudySpec
    store: StudyStore
    model_digest: str
    data_digest: str
    retry_failed: bool
    forecaster: Foresees | None
    run_anyway: bool
    searches: dict[tuple[str, int], ArmSearch] = field(init=False)
    """By arm and tuning."""
    records: dict[str, Record] = field(init=False)
    """Latest record of every trial of this study."""
    tried: dict[str, int] = field(default_factory=dict)
    """How often this command ran a trial."""
    running: dict[str, Trial] = field(default_factory=dict)
    ends: dict[str, Record] = field(default_factory=dict)
    """How each configuration ended, by its id."""

    def __post_init__(self) -> None:
        self.records = {r.trial_id: r for r in self.store.records() if r.question_id == self.spec.question_id}
        storage = open_storage(self.store.folder / "search.journal")
        search = self.spec.search
        self.searches = {
            (name, k): ArmSearch(storage, self.spec.name, name, arm, search.trials, search.seed, k)
            for k in range(search.tunings)
            for name, arm in self.spec.arms.items()
        }
        for one in self.searches.values():
            one.reconcile(self.done, again=(r for r in self.records.values() if self._again(r)))

    @property
    def total(self) -> int:
        """Trials of the whole plan; fewer run when an early look settles the question. A run that goes on at a smaller
        micro-batch is one more."""
        search = self.spec.search
        planned = 1 + len(self.spec.arms) * (search.trials * search.tunings + len(self.spec.confirm.seeds))
        return planned + sum(serving.planned(self.spec).values()) + sum(r.goes_on for r in self.records.values())

    @property
    def ended(self) -> list[Record]:
        return [r for r in self.records.values() if not self._again(r)]

    @property
    def done(self) -> list[Record]:
        """How each configuration ended: what the search is told."""
        return [r for r in outcomes(self.records.values()) if not self._again(r)]

    @property
    def base_failed(self) -> bool:
        return any(r.phase == "baseline" and r.status == "failed" and not self._again(r) for r in self.records.values())

    def next(self) -> Trial | None:
        """The next trial that may start now: the zero-shot baseline, then tuning with the arms in turn, then the
        confirmation runs seed by seed with the arms in turn, so that drift of the machine meets all arms alike; last
        what is run after training."""
        repeated = True
        while repeated:
            repeated = False
            for trial in self._candidates():
                if trial.id in self.running:
                    continue
                known = self.records.get(trial.id)
                if known is None or self._again(known):
                    return trial
                if trial.number is not None:  # the sampler proposed what has been run already
                    self.searches[trial.arm, trial.tuning].tell(trial.number, known)
                    repeated = True
        return None

    def launch(self, trial: Trial) -> int:
        """Note that the trial starts; returns the number of this attempt."""
        self.running[trial.id] = trial
        self.tried[trial.id] = self.tried.get(trial.id, 0) + 1
        if trial.number is not None:
            self.searches[trial.arm, trial.tuning].launched(trial.number, trial.id)
        known = self.records.get(trial.id)
        return known.attempt + 1 if known else 1

    def refuses(self, trial: Trial, forecast: Forecast) -> bool:
        """Whether the trial is not to be run, since there is no room for it and no run of its like shows otherwise."""
        return not self.run_anyway and no_room(forecast) and not any(_shows_room(r, trial) for r in self._of(trial.arm))

    def typical(self) -> dict[Phase, list[Trial]]:
        """A trial of each arm by phase, such as the study will run."""
        phases: tuple[Phase, ...] = ("search", "confirm")
        found: dict[Phase, list[Trial]] = {
            phase: [
                self._trial(name, phase, arm.method, arm.quantization, 0, {**arm.params, **_first(arm)})
                for name, arm in self.spec.arms.items()
            ]
            for phase in phases
        }
        of_runs = [trial for run in found["confirm"] for trial in serving.of_run(self.spec, run)]
        served = [*serving.of_base(self.spec, self._zero_shot()), *of_runs]
        return {**found, "serve": served} if served else found

    def settle(self, record: Record) -> None:
        del self.running[record.trial_id]
        self.records[record.trial_id] = record
        number = record.trial.number
        if number is not None:
            search = self.searches[record.trial.arm, record.trial.tuning]
            if self._again(record) or record.goes_on:
                search.resume(number)
            else:
                search.tell(number, record)

    def _again(self, record: Record) -> bool:
        """Whether a trial with this record is to be run again: killed from outside, or asked for."""
        if record.status == "timed_out":
            limit = self.spec.limits.trial_minutes
            raised = limit is None or limit * 60 > record.seconds * MORE_TIME
            return raised and record.trial_id not in self.tried
        if record.status == "does_not_fit":
            return self.run_anyway and record.trial_id not in self.tried
        if record.status in SETTLED:
            return False
        tried = self.tried.get(record.trial_id, 0)
        return tried < (TRIES_WHEN_KILLED if record.status == "killed" else int(self.retry_failed))

    def _candidates(self) -> Iterator[Trial]:
        self.ends = {r.trial.configuration: r for r in self.done}
        yield self._zero_shot()
        by_progress = sorted(self.searches.items(), key=lambda item: item[1].begun)
        for (name, tuning), search in by_progress:
            asked = search.ask()
            if asked is not None:
                yield self._search_trial(name, tuning, asked)
        missing = False
        for look in self.spec.confirm.planned_looks:
            if look > self.spec.confirm.planned_looks[0] and (missing or self._settled()):
                break
            for trial in self._confirmations(look):
                missing |= trial.id not in self.records
                yield trial
        yield from self._served()

    def _zero_shot(self) -> Trial:
        baseline = self.spec.arms[self.spec.baseline]
        return self._trial(ZERO_SHOT, "baseline", "none", baseline.quantization, self.spec.search.seed, {})

    def _served(self) -> Iterator[Trial]:
        """What is run after training: the base at each bit-width, then each confirmed run that is done, and last, with
        nothing beside it that would slow it down, the trial that measures how fast bases answer."""
        base = self._zero_shot()
        yield from serving.of_base(self.spec, base)
        for run in self._confirmations(len(self.spec.confirm.seeds)):
            known = self.records.get(run.id)
            if known is not None and known.status == "done":
                yield from serving.of_run(self.spec, run)
        if not self.running:
            yield from serving.of_speed(self.spec, base)

    def _confirmations(self, seeds: int) -> Iterator[Trial]:
        """The judged runs up to a number of seeds, seed by seed with the arms in turn. In a claim about methods the
        k-th seed is that of the k-th tuning's winner."""
        by_tuning = self.spec.objective.level == "methods"
        for i, seed in enumerate(self.spec.confirm.seeds[:seeds]):
            tuning = i if by_tuning else 0
            for name, arm in self.spec.arms.items():
                search = self.searches[name, tuning]
                chosen = best(self.records.values(), name, tuning) if search.finished else None
                if chosen is not None:
                    yield self._trial(
                        name,
                        "confirm",
                        arm.method,
                        arm.quantization,
                        seed,
                        chosen.trial.params,
                        tuning=tuning,
                        keep_model=i == 0,
                    )

    def _settled(self) -> bool:
        """Whether the runs so far give every arm a verdict, at this declared look."""
        return settled(gather(self.store))

    def _search_trial(self, name: str, tuning: int, asked: Asked) -> Trial:
        arm = self.spec.arms[name]
        seed = self.spec.search.seed + tuning
        return self._trial(
            name, "search", arm.method, arm.quantization, seed, asked.params, tuning=tuning, number=asked.number
        )

    def _trial(
        self,
        arm: str,
        phase: Phase,
        method: str,
        quantization: str,
        seed: int,
        params: Mapping[str, Scalar],
        tuning: int = 0,
        number: int | None = None,
        keep_model: bool = False,
    ) -> Trial:
        trial = Trial(
            study=self.spec.name, arm=arm, phase=phase, seed=seed, method=method, quantization=quantization,
            params=dict(params), controls=self.spec.controls, model_digest=self.model_digest,
            data_digest=self.data_digest, tuning=tuning, number=number, keep_model=keep_model,
        )  # fmt: skip
        return trial.at(self._micro_batch(trial))

    def _micro_batch(self, trial: Trial) -> int | None:
        """The micro-batch at which the configuration ended, or else the largest one that its arm has room for. None:
        that of the controls."""
        end = self.ends.get(trial.configuration)
        settled = [*([end.trial] if end else []), *self.running.values()]
        known = next((t for t in settled if t.configuration == trial.configuration), None)
        if known is not None:
            return known.micro_batch
        return min(
            (r.trial.training.smaller or 1 for r in self.records.values() if self._binds(r, trial)), default=None
        )

    def _binds(self, record: Record, trial: Trial) -> bool:
        """Whether a run that found no room says that the trial finds none either.

        What was measured holds for the whole arm. What was only forecast does so until a run of the arm shows that
        there is room.
        """
        if record.trial.arm != trial.arm or not record.goes_on or self._again(record):
            return False
        if record.status == "out_of_memory" or record.trial.configuration == trial.configuration:
            return True
        size = record.trial.training.per_pass
        return not any(r.status == "done" and r.trial.training.per_pass >= size for r in self._of(trial.arm))

    def _of(self, arm: str) -> Iterator[Record]:
        return (r for r in self.records.values() if r.trial.arm == arm)


def _drive(plan: _Plan, launcher: Launcher, watcher: Watcher, trackers: Mapping[str, dict[str, str]]) -> Outcome:
    """Keep the launcher's slots busy until nothing is left to run."""
    ran = 0
    minutes = plan.spec.limits.trial_minutes
    futures: dict[Future[Record], Trial] = {}
    forecasts = _Forecasts(plan.forecaster, watcher)
    watcher.begin(plan.total, plan.ended, forecasts.expected(plan))
    pool = ThreadPoolExecutor(max_workers=launcher.slots)
    try:
        while True:
            if plan.base_failed and not futures:
                return Outcome(list(plan.records.values()), ran)  # what the base cannot be asked, no arm can
            while not plan.base_failed and len(futures) < launcher.slots and (trial := plan.next()) is not None:
                forecast = forecasts.of(trial)
                job = Job(
                    trial=trial,
                    question_id=plan.spec.question_id,
                    attempt=plan.launch(trial),
                    folder=plan.store.folder.absolute(),
                    trackers=dict(trackers),
                    time_limit_seconds=minutes * 60 if minutes else None,
                    forecast=forecast,
                )
                if forecast is not None and plan.refuses(trial, forecast):
                    record = _does_not_fit(job, forecast)
                    plan.store.write(record)
                    plan.settle(record)
                    watcher.finished(record, plan.total)
                    continue
                watcher.started(trial)
                futures[pool.submit(launcher.run, job, _Teller(watcher, trial))] = trial
            if not futures:
                return Outcome(list(plan.records.values()), ran)
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                del futures[future]
                record = future.result()
                plan.settle(record)
                forecasts.learn(record)
                ran += 1
                watcher.finished(record, plan.total)
            if ran >= HOPELESS and all(r.status == "failed" for r in plan.records.values()):
                return Outcome(list(plan.records.values()), ran)
    except (KeyboardInterrupt, Interrupted):
        return Outcome(list(plan.records.values()), ran, interrupted=True)
    finally:
        launcher.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def no_room(forecast: Forecast) -> bool:
    """Whether a run is forecast not to fit: into the GPU's memory where that is known, or into this machine's."""
    if forecast.device == "cpu":
        return forecast.allocated_bytes.low > psutil.virtual_memory().total
    return forecast.fits == "no" and forecast.device_bytes is not None


def _shows_room(record: Record, trial: Trial) -> bool:
    """Whether a run that is done differs from the trial in nothing that would change its memory."""
    one, other = ({k: v for k, v in t.params.items() if k != RATE} for t in (record.trial, trial))
    enough = record.trial.training.per_pass >= trial.training.per_pass
    return record.status == "done" and record.trial.quantization == trial.quantization and one == other and enough


def _does_not_fit(job: Job, forecast: Forecast) -> Record:
    """The record of a trial that is not run: what it needs, what there is, and the nearest thing that may fit."""
    record = Record(
        trial=job.trial,
        trial_id=job.trial.id,
        attempt=job.attempt,
        question_id=job.question_id,
        status="does_not_fit",
        started_at=datetime.now(UTC),
        seconds=0.0,
        environment=environment.describe(),
        forecast=forecast,
    )
    smaller = job.trial.training.smaller if record.goes_on else None
    nearest = f"micro_batch {smaller}, tried next" if smaller else f"harness plan {job.folder / 'study.yaml'}"
    return record.model_copy(update={"detail": f"{_needs(forecast)}; nearest: {nearest}, or --run-anyway"})


def _needs(forecast: Forecast) -> str:
    need = forecast.process_bytes or forecast.allocated_bytes
    has = forecast.device_bytes or psutil.virtual_memory().total
    low, mid, high, there = (f"{value / 2**30:.1f}" for value in (need.low, need.mid, need.high, has))
    return f"needs {mid} GiB [{low}, {high}], {forecast.device} has {there}"


def _first(arm: Arm) -> dict[str, Scalar]:
    """A value of each parameter that is searched: the one that is tried first, where that is said."""
    return {k: next(iter([*r.start, *(r.choices or []), r.low or 0.0])) for k, r in arm.search.items()}


@dataclass
class _Forecasts:
    """Forecasts for a study, which goes on without them."""

    forecaster: Foresees | None
    watcher: Watcher
    warned: bool = False

    def of(self, trial: Trial) -> Forecast | None:
        """The trial's forecast; None, and one warning, where none can be made."""
        if self.forecaster is None or trial.phase == "speed":  # several models at once, which no forecast is for
            return None
        try:
            return self.forecaster.trial(trial)
        except Exception as error:  # whatever is wrong with a forecast, the trial can still be run
            self._warn(f"no forecast for {trial.label}", error)
            return None

    def learn(self, record: Record) -> None:
        """Sharpen later forecasts by a run that is done."""
        if self.forecaster is None or record.status != "done":
            return
        try:
            self.forecaster = self.forecaster.knowing([record])
        except Exception as error:  # as above
            self._warn(f"{record.trial.label} does not sharpen the forecast", error)

    def _warn(self, what: str, error: Exception) -> None:
        if not self.warned:
            self.watcher.warned(f"{what}: {str(error) or type(error).__name__}")
        self.warned = True

    def expected(self, plan: _Plan) -> dict[Phase, float]:
        """Forecast seconds of a run by phase, on average over the arms; phases of which that is known for all arms."""
        found = {phase: [self.of(trial) for trial in trials] for phase, trials in plan.typical().items()}
        return {p: sum(f.seconds.mid for f in some if f) / len(some) for p, some in found.items() if all(some)}


@dataclass(frozen=True)
class _Teller:
    """Passes a running trial's events on, with the trial they belong to."""

    watcher: Watcher
    trial: Trial

    def __call__(self, event: Event) -> None:
        self.watcher.event(self.trial, event)
