"""What a whole study will take before it runs: hours, money, disk, what fits, and what it can show."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from harness import plugins, serving, workload
from harness.forecast import processors
from harness.forecast.processors import Processor
from harness.intervals import Difference
from harness.planning import Forecaster, fits, times, total
from harness.power import Noise, decidable_gap
from harness.record import Forecast, Interval, Record
from harness.spec import AUTO, Arm, Controls, Range, Scalar, StudySpec, Value
from harness.tasks import tasks_of
from harness.trial import ZERO_SHOT, Phase, Trial

LEANER = {"adamw_torch": ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit")}
"""Optimizers that need less memory: the same arithmetic without copies, 8-bit state, state that the driver may move."""
FEWER_BITS = ("int8", "nf4")
"""Quantizations to fall back on, in this order."""
SHORTER = (1, 2, 4)
"""By what rows are cut shorter, last of all."""


class Alternative(Value):
    """What to change so that an arm fits, at the same effective batch."""

    overrides: tuple[str, ...]
    """Ready for the command line. Those of `controls` hold for every arm."""
    forecast: Forecast


class ArmPlan(Value):
    """One arm before it runs."""

    arm: str
    method: str
    quantization: str
    bits: float
    """Per weight of the linear layers as stored, scales included."""
    trials: int
    """Search trials, over all tunings."""
    seeds: int
    """Confirmed runs."""
    micro_batch: int
    """At which it runs: the study's, or the first half of it that may fit, to which a study goes on by itself."""
    search: Forecast
    confirm: Forecast
    refused: Forecast | None = None
    """A confirmed run at the study's own micro-batch, where that does not fit and a smaller one may."""
    seconds: Interval
    """Of all its runs together; none where it does not fit and is not run."""
    cost: Interval | None
    disk_bytes: int
    """Adapters and models that are kept."""
    nearest: Alternative | None = None
    """Where it may not fit: the first change that makes it fit; None if none does."""
    cheapest_card: str | None = None
    """Where it does not fit: the card of the table with the lowest price per hour that holds it as it is."""


class ServedPlan(Value):
    """All trials in which the base and confirmed runs' models are evaluated at other bit-widths."""

    runs: int
    largest: Forecast
    """Of the trial that needs the most memory."""
    seconds: Interval
    """Of those that may fit."""


class Detectable(Value):
    """The smallest difference that the plan can show."""

    metric: str
    seeds: int
    items: int | None
    margin: float
    difference: float | None
    """Beyond zero, the margin included, shown in four of five studies; None where that cannot be said."""
    basis: str
    """What it rests on, in words."""


class Plan(Value):
    """A study before it runs."""

    study: str
    question: str
    processor: Processor
    arms: tuple[ArmPlan, ...]
    compared_with: str
    """The arm that the others are compared with."""
    baseline: Forecast
    """The run that measures the base before any training."""
    served: "ServedPlan | None" = None
    """What is run after training; None where nothing is."""
    runs: int
    """That will be run: those that do not fit are left out."""
    seconds: Interval
    cost: Interval | None
    currency: str
    per_hour: float | None
    disk_bytes: int
    """Of adapters and models that are kept."""
    download_bytes: int
    """Of the base, about, where it is not on this machine: published weights are 16 bits wide."""
    rows: dict[str, int | float | str]
    """Training rows, their mean and longest length in tokens, and where that is from."""
    detectable: Detectable
    calibration: str
    doubts: tuple[str, ...]


def plan(
    spec: StudySpec, processor: Processor, records: Iterable[Record] = (), noise: Sequence[Difference] = ()
) -> Plan:
    """The plan of a study on one processor; `noise` is what earlier runs of the study found between its arms.

    Raises:
        SpecError, NotReady, DataError: as `Forecaster`.
    """
    forecaster = Forecaster(spec, processor, records)
    arms = tuple(_arm(forecaster, name) for name in spec.arms)
    baseline = forecaster.trial(trial_of(spec, spec.baseline, "baseline"))
    ran = [a for a in arms if a.confirm.fits != "no"]
    served = _served(forecaster, {a.arm for a in ran})
    parts = [*(a.seconds for a in ran), *([baseline.seconds] if baseline.fits != "no" else [])]
    parts += [served.seconds] if served else []
    seconds = total(parts)
    per_hour = forecaster.per_hour
    rows = forecaster.rows
    forecasts = [f for a in arms for f in (a.search, a.confirm)]
    return Plan(
        study=spec.name,
        question=spec.question,
        processor=processor,
        arms=arms,
        compared_with=spec.baseline,
        baseline=baseline,
        served=served,
        runs=sum(a.trials + a.seeds for a in ran) + (baseline.fits != "no") + (served.runs if served else 0),
        seconds=seconds,
        cost=None if per_hour is None else times(seconds, per_hour / 3600),
        currency="$" if spec.prices.per_hour is None else spec.prices.currency,  # the table's prices are in dollars
        per_hour=per_hour,
        disk_bytes=sum(a.disk_bytes for a in ran),
        download_bytes=0 if workload.has_weights(spec.controls.model) else 2 * forecaster.architecture.parameters,
        rows={"train": rows.train, "mean_tokens": rows.mean, "longest": rows.longest, "source": rows.source},
        detectable=detectable(spec, noise),
        calibration="; ".join(dict.fromkeys(f.calibration for f in forecasts)),
        doubts=tuple(
            dict.fromkeys([*(d for f in forecasts for d in f.doubts), *_over_time(spec, ran), *_untimed(spec)])
        ),
    )


def _served(forecaster: Forecaster, ran: Collection[str]) -> ServedPlan | None:
    """The plan of what is run after training, of the base and of the arms that ran."""
    spec = forecaster.spec
    forecasts = [forecaster.trial(t) for t in serving.of_base(spec, trial_of(spec, spec.baseline, "baseline"))]
    for name in serving.served_arms(spec) if spec.serve.at else ():
        if name in ran:
            run = trial_of(spec, name, "confirm", spec.confirm.seeds[0])
            forecasts += [forecaster.trial(t) for t in serving.of_run(spec, run)] * len(spec.confirm.seeds)
    fitting = [f for f in forecasts if f.fits != "no"]
    if not forecasts:
        return None
    return ServedPlan(
        runs=len(fitting),
        largest=max(forecasts, key=lambda f: f.allocated_bytes.mid),
        seconds=total(f.seconds for f in fitting),
    )


def _untimed(spec: StudySpec) -> Iterator[str]:
    if serving.planned(spec).get("speed"):
        yield "the trial that times answers at every bit-width is not in these figures: it holds all models at once"


def _over_time(spec: StudySpec, arms: Iterable[ArmPlan]) -> Iterator[str]:
    limit = spec.limits.trial_minutes
    for arm in arms:
        minutes = arm.confirm.seconds.mid / 60
        if limit is not None and minutes > limit:
            yield f"a run of {arm.arm} takes about {minutes:.2g} minutes, and limits.trial_minutes is {limit:g}"


def trial_of(spec: StudySpec, name: str, phase: Phase, seed: int = 0) -> Trial:
    """A trial as the study would run it, searched parameters at the value that needs the most memory."""
    arm = spec.arms[name]
    untrained = phase == "baseline"
    return Trial(
        study=spec.name,
        arm=ZERO_SHOT if untrained else name,
        phase=phase,
        seed=seed,
        method="none" if untrained else arm.method,
        quantization=arm.quantization,
        params=_of_quantization(arm) if untrained else largest(arm),
        controls=spec.controls,
        model_digest="",
        data_digest="",
        keep_model=phase == "confirm" and seed == spec.confirm.seeds[0],
    )


def largest(arm: Arm) -> dict[str, Scalar]:
    """An arm's parameters, those that are searched at their upper end: a rank there needs the most memory."""
    return {**arm.params, **{name: _upper(searched) for name, searched in arm.search.items()}}


def detectable(spec: StudySpec, noise: Sequence[Difference] = ()) -> Detectable:
    """The smallest difference that the planned seeds and items show with a chance of 80 %."""
    metric, items = _metric(spec)
    seeds, alpha = len(spec.confirm.seeds), _alpha(spec)
    assumed = Noise()
    if noise:
        gap = max(decidable_gap(n, seeds, alpha=alpha) for n in noise)
        basis = f"by the spread of the {max(n.a.seeds for n in noise)} confirmed seeds so far"
    elif items is None:
        gap = math.inf
        basis = "its spread is known once two arms have two confirmed runs"
    else:
        gap = decidable_gap(assumed.difference(seeds, items), seeds, alpha=alpha)
        basis = (
            f"if seeds differ by {100 * assumed.seed_sd:g} points and disagree on {100 * assumed.churn:.0f} % of the "
            f"items within an arm, {100 * assumed.across:.0f} % between arms"
        )
    if seeds < 2:
        basis = "one seed never brings a verdict"
    return Detectable(
        metric=metric,
        seeds=seeds,
        items=items,
        margin=spec.objective.margin,
        difference=spec.objective.margin + gap if math.isfinite(gap) else None,
        basis=basis,
    )


def _arm(forecaster: Forecaster, name: str) -> ArmPlan:
    spec = forecaster.spec
    arm = spec.arms[name]
    trials, seeds = spec.search.trials * spec.search.tunings, len(spec.confirm.seeds)
    asked = trial_of(spec, name, "confirm", spec.confirm.seeds[0])
    micro = room(forecaster, asked)
    confirming = [trial_of(spec, name, "confirm", seed).at(micro) for seed in spec.confirm.seeds]
    search = forecaster.trial(trial_of(spec, name, "search").at(micro))
    confirm = forecaster.trial(confirming[0])
    seconds = total([times(search.seconds, trials), times(confirm.seconds, seeds)])
    own = plugins.split_params(arm.method, arm.quantization, largest(arm))[1]
    if confirm.fits == "no":
        seconds = Interval(low=0, mid=0, high=0)
    per_hour = forecaster.per_hour
    return ArmPlan(
        arm=name,
        method=arm.method,
        quantization=arm.quantization,
        bits=plugins.quantization(arm.quantization).bits_stored(own, spec.controls.train.compute_dtype),
        trials=trials,
        seeds=seeds,
        micro_batch=confirming[0].training.per_pass,
        search=search,
        confirm=confirm,
        refused=None if micro is None else forecaster.trial(asked),
        seconds=seconds,
        cost=None if per_hour is None else times(seconds, per_hour / 3600),
        disk_bytes=0 if confirm.fits == "no" else sum(forecaster.kept_bytes(t) for t in confirming),
        nearest=nearest(forecaster, name) if confirm.fits in {"no", "uncertain"} else None,
        cheapest_card=cheapest_card(confirming[0], forecaster) if confirm.fits in {"no", "uncertain"} else None,
    )


def room(forecaster: Forecaster, trial: Trial) -> int | None:
    """The smaller micro-batch at which a study goes on with a trial that does not fit; None: it runs at its own, be it
    because that may fit or because none does."""
    tried = trial
    while fits(forecaster.processor, forecaster.memory(tried)) == "no":
        if tried.training.smaller is None:
            return None
        tried = tried.at(tried.training.smaller)
    return tried.micro_batch


def cheapest_card(trial: Trial, forecaster: Forecaster) -> str | None:
    """The name of the cheapest card in the table that holds a trial as it is; None if none does, and on a CPU."""
    if forecaster.processor.kind != "cuda":
        return None
    for card in sorted(map(processors.find, processors.known()), key=lambda c: c.per_hour or math.inf):
        if fits(card, forecaster.memory(trial, card)) in {"yes", "likely"}:
            return card.name
    return None


Change = tuple[tuple[str, ...], Trial]
"""Overrides, and the trial that they make."""


def nearest(forecaster: Forecaster, name: str) -> Alternative | None:
    """The first change that lets an arm fit; None if none does."""

    def fit(trial: Trial) -> bool:
        return fits(forecaster.processor, forecaster.memory(trial)) in {"yes", "likely"}

    for group in _changes(forecaster.spec, name):
        if fit(group[-1][1]):  # the smallest batches; where these do not fit, no larger ones do
            overrides, trial = next(change for change in group if fit(change[1]))
            return Alternative(overrides=overrides, forecast=forecaster.trial(trial))
    return None


def _changes(spec: StudySpec, name: str) -> Iterator[list[Change]]:
    """Changes that need less memory, what is least of a change first: smaller batches of evaluation, which change no
    result, smaller micro-batches at the same effective batch, leaner optimizers where every weight is trained,
    checkpointing, fewer bits, shorter rows; each on top of what was tried before it. In groups that differ in batches
    alone, the smallest last."""
    before = trial_of(spec, name, "confirm", spec.confirm.seeds[0])
    train = spec.controls.train
    whole = plugins.method(before.method).trains == "everything"
    leaner = LEANER.get(train.optimizer, ()) if whole else ()
    for length, quantization, checkpointing, optimizer in itertools.product(
        [train.max_length // factor for factor in SHORTER if train.max_length // factor > 1],
        [before.quantization, *_fewer_bits(before)],
        sorted({train.gradient_checkpointing, True}),
        [train.optimizer, *leaner],
    ):
        values = {"optimizer": optimizer, "gradient_checkpointing": checkpointing, "max_length": length}
        if group := list(_smaller(spec, name, before, quantization, values)):
            yield group


def _smaller(
    spec: StudySpec, name: str, before: Trial, quantization: str, values: Mapping[str, Scalar]
) -> Iterator[Change]:
    """A change of training at smaller and smaller batches."""
    train, evaluate = spec.controls.train, spec.controls.evaluate
    micro = train.micro_batch or train.batch
    for smaller, asked in itertools.product(
        [n for n in _halves(micro) if train.batch % n == 0], _halves(evaluate.batch)
    ):
        changed = {k: v for k, v in values.items() if v != getattr(train, k)}
        if smaller != micro:
            changed["micro_batch"] = smaller
        overrides = [f"controls.evaluate.batch={asked}"] if asked != evaluate.batch else []
        overrides += [f"controls.train.{k}={str(v).lower()}" for k, v in changed.items()]
        overrides += _requantize(spec, name, quantization)
        if overrides:
            controls = before.controls.model_copy(
                update={
                    "train": train.model_copy(update=changed),
                    "evaluate": evaluate.model_copy(update={"batch": asked}),
                }
            )
            yield tuple(overrides), _changed(before, spec.arms[name], quantization, controls)


def _halves(number: int) -> list[int]:
    return [number >> k for k in range(number.bit_length())]


def _changed(trial: Trial, arm: Arm, quantization: str, controls: Controls) -> Trial:
    foreign = set() if quantization == trial.quantization else set(_of_quantization(arm))
    params = {k: v for k, v in trial.params.items() if k not in foreign}
    return trial.model_copy(update={"controls": controls, "quantization": quantization, "params": params})


def _fewer_bits(trial: Trial) -> list[str]:
    if not plugins.method(trial.method).trains_quantized_base:
        return []
    bits = plugins.quantization(trial.quantization).bits
    return [name for name in FEWER_BITS if plugins.quantization(name).bits < bits]


def _requantize(spec: StudySpec, name: str, quantization: str) -> list[str]:
    arm = spec.arms[name]
    if quantization == arm.quantization:
        return []
    return [
        f"arms.{name}.quantization={quantization}",
        *(f"arms.{name}.params.{p}=null" for p in _of_quantization(arm) if p in arm.params),
    ]


def _of_quantization(arm: Arm) -> dict[str, Scalar]:
    """The parameters that belong to an arm's quantization."""
    own = plugins.quantization(arm.quantization).params.model_fields
    return {k: v for k, v in largest(arm).items() if k in own}


def _upper(searched: Range) -> Scalar:
    if searched.choices:
        numbers = [v for v in searched.choices if not isinstance(v, str)]
        return max(numbers) if len(numbers) == len(searched.choices) else searched.choices[0]
    assert searched.high is not None
    return int(searched.high) if float(searched.high).is_integer() else searched.high


def _metric(spec: StudySpec) -> tuple[str, int | None]:
    """What is compared, and the items it is measured on; None where the spread of a score cannot be assumed."""
    metric = spec.objective.metric
    if metric == AUTO:
        target = next((task for task, role in tasks_of(spec.controls).items() if role == "target"), None)
        metric = target or "test_loss"
    return metric, workload.items_of(metric.partition("/")[0], spec.controls)


def _alpha(spec: StudySpec) -> float:
    looks = spec.confirm.planned_looks
    if len(looks) == 1:
        return spec.objective.alpha
    from harness.compare import look_alpha  # brings pandas

    return look_alpha(spec.objective.alpha, looks)
