"""The columns of the results, with their units: what a trial left."""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from harness.spec import Value
from harness.trial import Phase, Trial

SCHEMA_VERSION = 4
"""1: without forecasts; a run that was out of memory was not tried at a smaller micro-batch. 2: nothing is run after
training: no speeds, no bytes of the model as it was evaluated. 3: nothing of other programs: no origin."""

Status = Literal[
    "done", "out_of_memory", "does_not_fit", "diverged", "pruned", "timed_out", "killed", "failed"
]  # fmt: skip
SETTLED: frozenset[Status] = frozenset({"done", "out_of_memory", "does_not_fit", "diverged", "pruned", "timed_out"})
"""Outcomes that say something about the configuration: doing the trial again would only repeat them."""

NO_ROOM: frozenset[Status] = frozenset({"out_of_memory", "does_not_fit"})
"""Too little memory, as measured or as forecast."""

OBJECTIVE = "validation_loss"
"""What tuning minimises: less noisy than an accuracy on the same rows."""

StageName = Literal["load", "adapt", "train", "evaluate", "save", "reference"]
"""`reference`: other forms of the same model, which its answers are compared with."""


class Stage(Value):
    """One stage of a trial with its own clock and peaks. A byte count is None where it cannot be measured."""

    stage: StageName
    seconds: float
    rss_peak_bytes: int | None = None
    """Highest resident set of the process during the stage (Linux). Dominated by imports on small models."""
    allocated_peak_bytes: int | None = None
    """CUDA: highest sum of live tensors."""
    reserved_peak_bytes: int | None = None
    """CUDA: highest memory held by PyTorch's allocator."""
    device_peak_bytes: int | None = None
    """CUDA: this process's memory as the driver sees it (NVML) at the end of the stage, context included."""
    energy_joules: float | None = None
    """Energy of the GPU over the stage (NVML counter; the whole board, other processes included)."""


class TensorBytes(Value):
    """Exact sizes of a run's tensors by kind; the step's peak is measured by the profiler on the longest batch."""

    weights: int
    """The base as stored: quantized codes, scales and tables, and what stays unquantized."""
    adapter: int
    gradients: int
    optimizer: int
    step_peak: int | None
    """Highest memory above weights and optimizer state within one step (activations, gradients, temporaries)."""

    @property
    def peak(self) -> int | None:
        return None if self.step_peak is None else self.weights + self.adapter + self.optimizer + self.step_peak


class Step(Value):
    """What was logged at one optimizer step."""

    step: int
    loss: float
    learning_rate: float | None = None
    """None in a result of another program that does not log it."""
    grad_norm: float | None = None
    seconds: float
    """Since training began."""


class Score(Value):
    """One metric of one task over all its items."""

    task: str
    metric: str
    value: float
    items: int
    role: Literal["target", "retention", "loss"]
    higher_is_better: bool
    majority: float | None = None
    """What always giving the most frequent right answer would score."""


class Example(Value):
    """The outcome of one item, so that runs can be compared item by item."""

    task: str
    metric: str
    example_id: str
    """The same item has the same id in every run: position and hash of its content."""
    score: float
    prediction: str | None = None
    target: str | None = None


class Speed(Value):
    """How fast a model answered at one batch size and prompt length: seconds of each measurement, in their order."""

    served: str
    """Name of the bit-width, as the study's `serve.at` calls it."""
    batch: int
    context: int
    """Tokens of each prompt."""
    new_tokens: int
    prefill_seconds: list[float]
    """From the prompt to the first token."""
    decode_seconds: list[float]
    """Of all later tokens."""
    token_seconds: list[float]
    """Of each later token of all measurements, in their order: latency percentiles."""
    stored_bytes: int
    """The model's weights in memory."""
    prefill_peak_bytes: int | None = None
    """Highest memory above the weights; None where it cannot be measured."""
    decode_peak_bytes: int | None = None
    energy_joules: float | None = None
    """Of one measurement, prompt and answer of the whole batch, on average; None where there is no meter."""


class Interval(Value):
    """A forecast number: its middle, and the bounds that should hold it nine times in ten."""

    low: float
    mid: float
    high: float


Fit = Literal["yes", "likely", "uncertain", "no"]

FORECAST_INTERVALS = ("allocated_bytes", "reserved_bytes", "process_bytes", "seconds")
"""The figures of a forecast that have columns of their own in the table `trials`."""
BOUNDS = ("low", "mid", "high")


class Forecast(Value):
    """What a trial was expected to need, written before it ran."""

    allocated_bytes: Interval
    """Peak of live tensors on the device, over all stages."""
    reserved_bytes: Interval | None = None
    """Peak held by PyTorch's caching allocator; None on a CPU, which has none."""
    process_bytes: Interval | None = None
    """Peak of the process as the driver sees it, context included: what runs out. None on a CPU."""
    peak_phase: str
    """The phase of the run in which the peak is expected, such as `optimizer step`."""
    components: dict[str, int] = {}
    """Bytes by component at that peak; they add up to the middle of `allocated_bytes`."""
    tensors: TensorBytes | None = None
    """The same accounting that a run measures of itself."""
    device: str
    """The GPU that it was made for, or `cpu`."""
    device_bytes: int | None = None
    fits: Fit
    stage_seconds: dict[str, Interval] = {}
    seconds: Interval
    """Wall clock of the whole trial, without the start of its process."""
    tokens_per_second: float | None = None
    """Real tokens per second of training."""
    cost: Interval | None = None
    """In the study's currency; None without a price."""
    calibration: str = "cold"
    """What sharpened the times: `cold` (the table of GPUs alone), or the measured runs that were used."""
    doubts: list[str] = []
    """Why it may be wrong, in words."""

    @property
    def columns(self) -> dict[str, float | str | None]:
        """The main figures, named as in the table `trials`."""
        parts = {name: getattr(self, name) for name in FORECAST_INTERVALS}
        figures = {f"forecast_{k}_{b}": v and getattr(v, b) for k, v in parts.items() for b in BOUNDS}
        return {**figures, "forecast_fits": self.fits, "forecast_device": self.device}


class Training(Value):
    """How training went."""

    steps: int
    tokens: int
    """Real tokens, padding not counted."""
    padded_share: float | None
    """Share of the processed positions that were padding; None where another program did not count it."""
    tokens_per_second: float | None
    """Real tokens per second after the warm-up steps."""
    warmup_steps_excluded: int
    loop_seconds: float
    """The optimizer steps alone; the stage's seconds include the trainer's set-up and the measurement of a step."""
    final_loss: float | None
    trainable_parameters: int
    total_parameters: int


class Record(Value):
    """What a trial left. Its first block is one row of the table `trials`; the lists are tables of their own."""

    schema_version: int = SCHEMA_VERSION
    trial: Trial
    trial_id: str
    attempt: int = 1
    question_id: str
    status: Status
    detail: str | None = None
    """Why, when the status is not `done`: one line."""
    started_at: datetime
    seconds: float
    """Wall clock of the whole trial, without the start of its process."""
    train: Training | None = None
    memory: TensorBytes | None = None
    stages: list[Stage] = []
    steps: list[Step] = []
    scores: list[Score] = []
    examples: list[Example] = []
    speeds: list[Speed] = []
    stored_bytes: int | None = None
    """The model's weights in memory as it was evaluated."""
    disk_bytes: int | None = None
    """What the model takes on disk in this form."""
    resolved: dict[str, Any] = {}
    """Every setting as it was used, dtypes spelled out, the libraries' defaults included."""
    environment: dict[str, Any] = {}
    data: dict[str, Any] = {}
    """Rows per split, hash of the tokenized rows, what was dropped and why."""
    adapter_path: str | None = None
    """Folder of the adapter or model, relative to the study's folder."""
    log_path: str | None = None
    forecast: Forecast | None = None
    origin: str | None = None
    """The program that made the result; None: this one."""

    @property
    def phase(self) -> Phase:
        return self.trial.phase

    @property
    def goes_on(self) -> bool:
        """Whether the same run is to be tried at a smaller micro-batch: there was no room for it in training."""
        if self.status not in NO_ROOM:
            return False
        curable = self.stages[-1].stage == "train" if self.stages else True
        if self.status == "does_not_fit" and self.forecast is not None:
            curable = self.forecast.peak_phase not in {"load", "evaluation"}
        trains = (
            self.phase in {"search", "confirm"}
            and self.trial.method != "none"
            and self.trial.training.smaller is not None
            and self.origin is None
        )
        return curable and trains and self.schema_version > 1

    def score(self, metric: str) -> float | None:
        """The value of `task/metric` or of a loss such as `test_loss`."""
        for score in self.scores:
            if metric in {f"{score.task}/{score.metric}", score.task}:
                return score.value
        return None


def outcomes(records: Iterable[Record]) -> list[Record]:
    """How each configuration ended. A run that found no room and goes on at a smaller micro-batch is not its end.

    Where it ended more than once: as a run that is done, else as the last that ran at all, else for want of room.
    """
    ends: dict[str, Record] = {}
    for record in records:
        known = ends.get(record.trial.configuration)
        if not record.goes_on and (known is None or _weight(record) >= _weight(known)):
            ends[record.trial.configuration] = record
    return list(ends.values())


def _weight(record: Record) -> int:
    return 2 if record.status == "done" else int(record.status not in NO_ROOM)


def best(records: Iterable[Record], arm: str, tuning: int = 0) -> Record | None:
    """The search trial with the lowest validation loss of an arm's tuning; None when none was completed."""
    done = [
        r
        for r in records
        if r.trial.arm == arm and r.trial.tuning == tuning and r.phase == "search" and r.status == "done"
    ]
    return min(done, key=_loss, default=None)


def confirmations(records: Iterable[Record]) -> list[Record]:
    """The confirmation runs, however they ended, of what each tuning found best.

    An arm that was tuned further has others too, of what was best then, on the same seeds.
    """
    records = list(records)
    chosen = {key: best(records, *key) for key in {(r.trial.arm, r.trial.tuning) for r in records}}
    return [
        r
        for r in outcomes(records)
        if r.phase == "confirm"
        and ((found := chosen[r.trial.arm, r.trial.tuning]) is None or found.trial.params == r.trial.params)
    ]


def judged(records: Iterable[Record]) -> list[Record]:
    """The completed ones of `confirmations`."""
    return [r for r in confirmations(records) if r.status == "done"]


def _loss(record: Record) -> float:
    loss = record.score(OBJECTIVE)
    return math.inf if loss is None else loss
