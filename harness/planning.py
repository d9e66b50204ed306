"""From a study to its forecasts: what each arm and trial will need on a given machine, and whether it fits."""

import contextlib
import copy
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple, cast

from harness import environment, plugins, workload
from harness.errors import SpecError
from harness.forecast import activations, catalogue, optimizers, processors, time
from harness.forecast.memory import Memory, Phase, memory, weights
from harness.forecast.processors import Processor
from harness.forecast.setup import BYTES, HARNESS, Setup
from harness.forecast.step import Device
from harness.forecast.time import COLD, Rates
from harness.interfaces import AdapterShape
from harness.record import Fit, Forecast, Interval, Record, StageName, TensorBytes
from harness.spec import Dtype, Scalar, StudySpec
from harness.trial import Trial
from harness.workload import Rows

OUTSIDE = Interval(low=0.0, mid=0.15e9, high=0.6e9)
"""Bytes of the process beside context and allocator."""
EVALUATION_HELD = Interval(low=1.0, mid=1.03, high=1.15)
"""What the allocator holds over what is live while the model is evaluated."""
HEADROOM = 0.95
"""A run is said to fit when it needs no more than this share of the card: the desktop and the driver take theirs."""
ALLOCATED_SPREAD = 0.04
"""Half-width of the 90 % interval of the sum of tensors, as a share."""
RUNTIME = 1 << 30
"""Bytes of a trial's process beside its tensors: Python, torch and the libraries."""
PREPARATION = Interval(low=0.3, mid=1.0, high=4.0)
"""Seconds that setting the trainer up takes: its own, the data loader's and the optimizer's."""
ADAPT_SECONDS_PER_LAYER = 0.003
"""To put an adapter beside one linear layer, on the host."""
DISK_BYTES_PER_SECOND = 0.5e9
"""To write a checkpoint; a laptop's SSD and a rented machine's network disk lie on either side."""
UNIT = Interval(low=0.5, mid=1.0, high=3.0)
"""By what writing a whole model may be faster or slower than expected."""
COMPARED_ROWS = 64
"""Test rows on which a model is held against its other forms (`harness.evaluate.REFERENCE_ROWS`)."""
MEASURED_STEPS = 2
"""Forward and backward passes on the longest batch by which a trial measures its own memory."""
OTHER_SPREAD = 0.45
"""Half-width of the 90 % interval of log seconds of a stage that is judged by the measurements of another."""
SHORTEST = 0.01
"""Seconds below which a stage did nothing, such as saving a model that is not kept."""
USUAL_SCATTER = 0.12
"""Standard deviation of the log of a stage's seconds between runs of one arm on one machine."""


class Forecaster:
    """Forecasts the trials of one study on one processor. Reads the model's config and the data once; no torch."""

    def __init__(self, spec: StudySpec, processor: Processor, records: Iterable[Record] = ()) -> None:
        """`records` are finished trials, of any study, whose measured times on such a processor sharpen the forecast.

        Raises:
            NotReady: the model's config is neither local, nor cached, nor in the catalogue.
            SpecError: the model is not a decoder that can be forecast.
        """
        self.spec = spec
        self.processor = processor
        self.architecture = catalogue.find(spec.controls.model.id, spec.controls.model.revision)
        done = (r for r in records if _measures(r))
        known = [r for r in done if r.trial.controls.model == spec.controls.model]
        self.rows = workload.rows_of(spec.controls, known)
        self.asked, self._task_doubts = workload.asked_of(spec.controls)
        self._known = _one_stack([r for r in known if _ran_on(r, processor)])

    def knowing(self, records: Iterable[Record]) -> "Forecaster":
        """The same with further finished runs of this study, whose times sharpen the forecast."""
        other = copy.copy(self)
        other.__dict__.pop("_calibrations", None)
        done = [r for r in records if _measures(r) and _ran_on(r, self.processor)]
        other._known = _one_stack([*self._known, *done])
        return other

    def trial(self, trial: Trial) -> Forecast:
        """What this trial will need. Its own micro-batch is in its controls or its params."""
        setup = self.setup(trial)
        stages = self.stages(trial)
        seconds = total(stages.values())
        cuda = self.processor.kind == "cuda"
        needed = self.memory(trial)
        tensors = activations.tensors(setup) if _trains(trial) else None
        allocated, phase, components = _peak(needed, None if cuda else tensors)
        return Forecast(
            allocated_bytes=_allocated(allocated, setup),
            reserved_bytes=needed.reserved if cuda else None,
            process_bytes=needed.process if cuda else None,
            peak_phase=phase,
            components=components,
            tensors=tensors,
            device=self.processor.name,
            device_bytes=self.processor.memory_bytes,
            fits=fits(self.processor, needed),
            stage_seconds=stages,
            seconds=seconds,
            tokens_per_second=self._tokens_per_second(trial),
            cost=None if self.per_hour is None else times(seconds, self.per_hour / 3600),
            calibration=self._rates(trial).source,
            doubts=list(dict.fromkeys(self.doubts(trial))),
        )

    def memory(self, trial: Trial, processor: Processor | None = None) -> Memory:
        """Phases of training, where there is any, and of evaluation, on the forecaster's or another processor."""
        processor = processor or self.processor
        setup, card, context = self.setup(trial), processor.memory_bytes, processor.context_bytes
        asked = max((one.tokens for one in self.asked), default=0) if trial.phase != "search" else 0
        device: Device = "cuda" if processor.kind == "cuda" else "cpu"
        batch, tokens = trial.controls.evaluate.batch, math.ceil(asked)
        forms = [setup, *(self.setup(one) for one in _widest(trial))]
        phases = tuple(_evaluation(form, batch, tokens, device) for form in forms)
        evaluation = max(phases, key=lambda phase: phase.total)
        held = times(EVALUATION_HELD, evaluation.total)
        alone = Memory(
            phases=phases,
            reserved=held,
            process=total([held, Interval(low=0.8 * context, mid=context, high=context), OUTSIDE]),
        )
        if not _trains(trial):
            return _with_doubt(alone, setup)
        training = memory(setup, card, context)
        both = Memory(
            phases=(*training.phases, evaluation),
            reserved=_higher(training.reserved, alone.reserved),
            process=_higher(training.process, alone.process),
        )
        return _with_doubt(both, setup)

    def setup(self, trial: Trial, length: int | None = None) -> Setup:
        """The trial's run on batches of its longest rows, or of a given length."""
        trial = _held(trial)
        train, rows = trial.training, self._rows(trial)
        micro = min(train.per_pass, rows.train)  # there are no more rows than there are
        stored = _stored_by(trial)
        return Setup(
            architecture=self.architecture,
            full=stored.trains == "everything",
            adapter=stored.adapter,
            weight_bits=stored.weight_bits,
            quantized=stored.bits < 16,
            quantization=trial.quantization,
            compute=train.compute_dtype,
            adapter_dtype=train.adapter_dtype,
            optimizer=train.optimizer,
            micro_batch=micro,
            accumulation=max(1, min(train.batch, rows.train) // micro),
            length=max(2, length or rows.longest),
            checkpointing=train.gradient_checkpointing,
            loss="chunked",  # TRL 1.16's `nll`: head and loss a tile of logits at a time
            padded=micro > 1 and rows.lengths[0] < rows.longest,
            profile=HARNESS.model_copy(update={"autocast": train.compute_dtype != "fp32"}),
        )

    def steps(self, trial: Trial) -> int:
        """Optimizer steps of a trial that trains."""
        train = trial.training
        return train.max_steps or max(1, math.ceil(train.epochs * self._rows(trial).train / train.batch))

    def stages(self, trial: Trial) -> dict[str, Interval]:
        """Seconds by stage."""
        found: dict[str, Interval] = dict(self._stages(trial, self._rates(trial)))
        for stage, cold in self._cold(trial).items():
            rates = self._stage_rates(cast(StageName, stage), trial)
            if rates is not COLD:
                found[stage] = _around_log(cold.mid * rates.factor, rates.spread)
        return found

    def doubts(self, trial: Trial) -> Iterator[str]:
        yield from self.architecture.doubts
        yield from self.processor.doubts if self._rates(trial) is COLD else ()
        yield from self.rows.doubts
        train, processor = trial.training, self.processor
        if processor.kind == "cuda" and train.compute_dtype not in processor.flops:
            yield (
                f"{processor.name} has no units for {train.compute_dtype}: products are slow there; "
                "controls.train.compute_dtype=fp16 is what it is made for"
            )
        if processor.kind == "cpu" and fits(processor, self.memory(trial)) == "likely":
            yield "runs on all cores at a time need more memory than there is; with --workers 1 harness study makes one"
        if not optimizers.kept(train.optimizer).known:
            yield f"what {train.optimizer} keeps is not known here: its state is counted as AdamW's"
        if trial.phase != "search":
            yield from self._task_doubts

    @property
    def per_hour(self) -> float | None:
        """The study's price of an hour, else the table's."""
        own = self.spec.prices.per_hour
        return self.processor.per_hour if own is None else own

    def _stages(self, trial: Trial, rates: Rates) -> Iterator[tuple[StageName, Interval]]:
        setup = self.setup(trial)
        yield "load", time.load(setup, self.processor, rates)
        yield "adapt", _around_log(0.01 + ADAPT_SECONDS_PER_LAYER * setup.architecture.layers * len(setup.targets), 1.0)
        if _trains(trial):
            yield "train", self._training(trial, rates)
        # other kernels than those of a step, and lm-eval's own work
        yield "evaluate", self._evaluation(trial, rates.model_copy(update={"spread": max(rates.spread, OTHER_SPREAD)}))
        if kept := self.kept_bytes(trial):
            yield "save", _around_log(0.02 + kept / DISK_BYTES_PER_SECOND, 1.0)
        if parts := list(self._references(trial, rates)):
            yield "reference", _widened(total(parts), OTHER_SPREAD)

    def _references(self, trial: Trial, rates: Rates) -> Iterator[Interval]:
        """What it takes to hold a model against its other forms: to load them and to ask them some test rows."""
        rows = min(self._rows(trial).test, COMPARED_ROWS)
        widest = _widest(trial)
        for one in widest:
            yield time.load(self.setup(one), self.processor, rates)
            yield self._forward(one, rows, self._rows(trial).mean, rates)
        if trial.served is not None and trial.served.way == "merged":
            setup = self.setup(widest[0])
            yield time.load(setup, self.processor, rates)
            written = setup.architecture.parameters * BYTES[setup.compute]
            yield times(UNIT, written / DISK_BYTES_PER_SECOND)
        if trial.phase == "confirm" and self.setup(trial).adapter is not None:
            yield times(self._forward(trial, rows, self._rows(trial).mean, rates), 3)
            if self.setup(trial).quantized:
                yield time.load(self.setup(trial), self.processor, rates)

    def _training(self, trial: Trial, rates: Rates) -> Interval:
        rows, steps = self._rows(trial), self.steps(trial)
        measuring = times(self._step(trial, rates, rows.longest), MEASURED_STEPS / self.setup(trial).accumulation)
        training = times(self._step(trial, rates), steps)
        if rows.shortest_mean is not None:  # rows may be shorter than what is assumed, and time goes with tokens
            training = training.model_copy(update={"low": training.low * rows.shortest_mean / rows.mean})
        return total([PREPARATION, measuring, training])

    def _step(self, trial: Trial, rates: Rates, length: int | None = None) -> Interval:
        """Seconds of an optimizer step on random batches, or on batches of a given length."""
        train = trial.training
        expected = math.ceil(self._rows(trial).padded(train.per_pass))
        return time.step(self.setup(trial, length or expected), self.processor, rates)

    def _evaluation(self, trial: Trial, rates: Rates) -> Interval:
        """Held-out loss, whose rows are sorted by length so that little is padded, and the tasks of judged runs."""
        rows = self._rows(trial)
        judged = trial.phase != "search"
        parts = [self._forward(trial, rows.validation + (rows.test if judged else 0), rows.mean, rates)]
        for asked in self.asked if judged else []:
            parts.append(self._forward(trial, asked.items * asked.requests, asked.tokens, rates))
            if asked.generated:
                parts.append(times(self._forward(trial, asked.items, 1, rates), asked.generated))
        return total(parts)

    def _forward(self, trial: Trial, sequences: float, tokens: float, rates: Rates) -> Interval:
        """Seconds of forward passes of so many sequences, in batches of the evaluation."""
        size = max(1, min(trial.controls.evaluate.batch, math.ceil(sequences)))
        once = time.forward(self.setup(trial), self.processor, size, max(1, round(tokens)), rates)
        return times(once, sequences / size)

    def kept_bytes(self, trial: Trial) -> int:
        """Disk that a confirmed run's adapter takes, or its whole model where that is kept."""
        setup = self.setup(trial)
        if trial.phase != "confirm":
            return 0
        if setup.full:
            return round(setup.architecture.parameters * setup.weight_bits / 8) if trial.keep_model else 0
        return setup.adapter_parameters * BYTES[setup.adapter_dtype]

    def _tokens_per_second(self, trial: Trial) -> float | None:
        if not _trains(trial):
            return None
        rows = self._rows(trial)
        return min(trial.training.batch, rows.train) * rows.mean / self._step(trial, self._rates(trial)).mid

    def _rows(self, trial: Trial) -> Rows:
        return self.rows.cut(trial.training.max_length)

    def _rates(self, trial: Trial) -> Rates:
        """From measured runs of the same method on the same quantization, else from those of others."""
        same = [r for r in self._known if _kind(r.trial) == _kind(trial) and r.train is not None]
        used = same or [r for r in self._known if r.train is not None]
        if not used:
            return COLD
        key = _kind(trial) if same else ()
        if key not in self._calibrations:
            source = f"{len(used)} run{'s' if len(used) > 1 else ''} on {self.processor.name}" + (
                "" if same else " of other arms"
            )
            rows = [(self._as_run(r), self.processor, _step_seconds(r)) for r in used]
            self._calibrations[key] = time.calibrated(rows, source)
        return self._calibrations[key]

    @cached_property
    def _calibrations(self) -> dict[tuple[str, ...], Rates]:
        """By method and quantization; under the empty key that of all runs together."""
        return {}

    def _as_run(self, record: Record) -> Setup:
        """A measured run's setup, with the length that its batches had on average."""
        assert record.train is not None
        positions = record.train.tokens / (1 - (record.train.padded_share or 0.0))
        length = positions / (record.train.steps * record.trial.training.batch)
        return self.setup(record.trial, max(2, round(length)))

    def _stage_rates(self, stage: StageName, trial: Trial) -> Rates:
        """What runs on the same controls measured of a stage other than training: of the same arm's kind, else of
        others. Tuning is judged on less than the other phases, only confirmed runs are saved, and what is compared with
        what differs."""
        if stage == "train":
            return COLD
        measured = [
            (r, s.seconds)
            for r in self._known
            if r.trial.controls == trial.controls and _alike(stage, r.trial, trial)
            for s in r.stages
            if s.stage == stage and s.seconds > SHORTEST and stage in self._cold(r.trial)
        ]
        same = [(r, seconds) for r, seconds in measured if _kind(r.trial) == _kind(trial)]
        logs = [math.log(seconds / self._cold(r.trial)[stage].mid) for r, seconds in same or measured]
        if not logs:
            return COLD
        found = _rates_of(logs, f"{len(logs)} runs")
        return found if same else found.model_copy(update={"spread": max(found.spread, OTHER_SPREAD)})

    def _cold(self, trial: Trial) -> dict[str, Interval]:
        """Seconds by stage from the table of processors alone."""
        key = trial.model_copy(update={"seed": 0, "params": trial.params | {"learning_rate": 0.0}}).id
        if key not in self._colds:
            self._colds[key] = dict(self._stages(trial, COLD))
        return self._colds[key]

    @cached_property
    def _colds(self) -> dict[str, dict[str, Interval]]:
        return {}


def fits(processor: Processor, needed: Memory) -> Fit:
    """Whether there is room: on the card for the process, on a CPU in the machine's memory for the tensors."""
    if processor.kind != "cuda":
        return _fits_machine(needed.allocated + RUNTIME, environment.memory_bytes(), environment.cores())
    card, process = processor.memory_bytes, needed.process
    if card is None or process.high <= HEADROOM * card:
        return "yes"
    if process.low > card:
        return "no"
    return "likely" if process.mid <= HEADROOM * card else "uncertain"


def _fits_machine(needed: int, machine: int, cores: int) -> Fit:
    """Whether a trial fits into a machine's memory: a study runs one on each core at a time."""
    if needed > machine:
        return "no"
    return "yes" if cores * needed <= HEADROOM * machine else "likely"


def _allocated(count: int, setup: Setup) -> Interval:
    found = _around(count, ALLOCATED_SPREAD)
    return found.model_copy(update={"high": found.high + _passed_over(setup)})


def _with_doubt(needed: Memory, setup: Setup) -> Memory:
    """Bounds of what is held around those of the tensors within."""
    spread = ALLOCATED_SPREAD * needed.allocated
    more = spread + _passed_over(setup)

    def wider(held: Interval) -> Interval:
        return Interval(low=held.low - spread, mid=held.mid, high=held.high + more)

    return needed.model_copy(update={"reserved": wider(needed.reserved), "process": wider(needed.process)})


def _passed_over(setup: Setup) -> int:
    """What quantization would not save if it passed over the experts of a mixture, which are no linear layers."""
    if not setup.quantized or setup.architecture.experts == 1:
        return 0
    saved = BYTES[setup.compute] - setup.weight_bits / 8
    return round(saved * setup.architecture.linear_parameters)


def _rates_of(logs: Sequence[float], source: str) -> Rates:
    """Rates from logarithms of measured over expected seconds: their median, and the spread of the next one. The usual
    scatter counts as much as three runs, or two that happen to agree would promise too much."""
    mean = statistics.fmean(logs)
    squares = 3 * USUAL_SCATTER**2 + sum((one - mean) ** 2 for one in logs)
    scatter = math.sqrt(squares / (3 + len(logs) - 1) * (1 + 1 / len(logs)))
    return Rates(source=source, factor=math.exp(statistics.median(logs)), spread=1.645 * scatter)


def _kind(trial: Trial) -> tuple[str, str]:
    held = _held(trial)
    return held.method, held.quantization


def _measures(record: Record) -> bool:
    """Whether a run's times say how long such a run takes: several models at once are a thing of their own."""
    return record.status == "done" and record.phase != "speed"


def _alike(stage: StageName, one: Trial, other: Trial) -> bool:
    """Whether two trials do the same in a stage."""
    if stage == "reference":
        return one.phase == other.phase and (one.served and one.served.way) == (other.served and other.served.way)
    return stage != "evaluate" or (one.phase == "search") == (other.phase == "search")


def _held(trial: Trial) -> Trial:
    """The trial with the model as it is evaluated: what is served is stored otherwise than it was trained."""
    served = trial.served
    if served is None:
        return trial
    method = trial.method if served.way == "adapter" else "none"
    own = plugins.method(method).params.model_fields
    params = {**{k: v for k, v in trial.params.items() if k in own}, **served.params}
    return trial.model_copy(update={"method": method, "quantization": served.quantization, "params": params})


def _widest(trial: Trial) -> list[Trial]:
    """The dense model that a served one is held against, as a trial of its own; none where nothing is served."""
    served = trial.served
    if served is None or served.against is None:
        return []
    changes = {"quantization": served.against.quantization, "params": served.against.params}
    return [trial.model_copy(update={"method": "none", "served": None, **changes})]


def _step_seconds(record: Record) -> float:
    """Seconds of an optimizer step, the first slow ones left out where the run was long enough to tell."""
    train = record.train
    assert train is not None
    if train.tokens_per_second:
        return train.tokens / train.steps / train.tokens_per_second
    return train.loop_seconds / train.steps


def _ran_on(record: Record, processor: Processor) -> bool:
    """Whether a run was on such a processor: a GPU that goes by the same name in the table, or a CPU."""
    gpus = record.environment.get("gpus") or []
    if record.trial.controls.device == "cpu" or not gpus:
        return processor.kind == "cpu" and record.environment.get("cpu") == environment.cpu_name()
    name = str(gpus[0].get("name"))
    with contextlib.suppress(SpecError):  # not in the table: by its own name
        name = processors.find(name).name
    return name == processor.name


def _one_stack(records: Sequence[Record]) -> list[Record]:
    """The records of the software that ran last: versions of libraries differ in speed."""

    def stack(record: Record) -> tuple[Any, ...]:
        packages = record.environment.get("packages") or {}
        return tuple(packages.get(name) for name in ("torch", "transformers", "bitsandbytes"))

    if not records:
        return []
    newest = stack(max(records, key=lambda r: r.started_at))
    return [r for r in records if stack(r) == newest]


def _peak(needed: Memory, measured: TensorBytes | None) -> tuple[int, str, dict[str, int]]:
    """Bytes, phase and components of the peak; on a CPU the accounting that a run makes of itself."""
    if measured is None or measured.peak is None:
        return needed.allocated, needed.peak.name, {name: size for name, size in needed.peak.components.items() if size}
    components = {"weights": measured.weights, "adapters": measured.adapter, "optimizer": measured.optimizer}
    step = {"one step": measured.step_peak or 0}
    return measured.peak, "backward", {k: v for k, v in {**components, **step}.items() if v}


class _Stored(NamedTuple):
    """What plugins say of an arm's weights."""

    trains: str
    adapter: AdapterShape | None
    bits: float
    weight_bits: float


@cache
def _stored(method: str, quantization: str, params: tuple[tuple[str, Scalar], ...], compute: Dtype) -> _Stored:
    """Kept, since a plan asks a hundred times and every look for a plugin lists a folder."""
    how, what = plugins.method(method), plugins.quantization(quantization)
    own, its = plugins.split_params(method, quantization, dict(params))
    return _Stored(how.trains, how.adapter(own), what.bits, what.bits_stored(its, compute))


def _stored_by(trial: Trial) -> _Stored:
    given, compute = tuple(sorted(trial.params.items())), trial.controls.train.compute_dtype
    return _stored(trial.method, trial.quantization, given, compute)


def _trains(trial: Trial) -> bool:
    return trial.phase in {"search", "confirm"} and _stored_by(trial).trains != "nothing"


def _evaluation(setup: Setup, batch: int, task_tokens: int, device: Device) -> Phase:
    """The widest moment of evaluation: a layer, the held-out loss of a batch of the longest rows, or lm-eval's
    log-softmax of a batch of questions of `task_tokens`. Optimizer state and gradients are gone by then."""
    vocabulary, width = setup.architecture.vocabulary, BYTES[setup.compute]
    row = (4 if width == 4 else 8) * setup.length * vocabulary
    parts = {
        "logits and loss": max(
            width * batch * setup.length * vocabulary + row, 2 * width * batch * task_tokens * vocabulary
        ),
        "one layer": activations.forward_peak(setup.model_copy(update={"micro_batch": batch}), device),
    }
    widest = max(parts, key=lambda name: parts[name])
    return Phase(name="evaluation", components=weights(setup) | {widest: parts[widest]})


def _higher(one: Interval, other: Interval) -> Interval:
    return Interval(low=max(one.low, other.low), mid=max(one.mid, other.mid), high=max(one.high, other.high))


def _around(value: float, share: float) -> Interval:
    return Interval(low=value * (1 - share), mid=value, high=value * (1 + share))


def _around_log(value: float, spread: float) -> Interval:
    return Interval(low=value * math.exp(-spread), mid=value, high=value * math.exp(spread))


def _widened(interval: Interval, spread: float) -> Interval:
    low, high = interval.low * math.exp(-spread), interval.high * math.exp(spread)
    return Interval(low=low, mid=interval.mid, high=high)


def times(interval: Interval, factor: float) -> Interval:
    return Interval(low=interval.low * factor, mid=interval.mid * factor, high=interval.high * factor)


def total(intervals: Iterable[Interval]) -> Interval:
    """The sum. What makes one part slow makes the others slow: bounds add up."""
    some = list(intervals)
    return Interval(low=sum(i.low for i in some), mid=sum(i.mid for i in some), high=sum(i.high for i in some))
