"""One chosen configuration with everything that another program needs to set it up: what every exporter is given."""

from collections.abc import Sequence
from datetime import datetime
from statistics import fmean
from typing import Any

from harness import __version__, plugins
from harness.environment import described
from harness.errors import HarnessError
from harness.interfaces import AdapterShape
from harness.intervals import mean_interval
from harness.record import Record
from harness.sources import bare
from harness.spec import Dtype, Scalar, StudySpec, Value
from harness.summary import Evidence, peak_bytes, score_name
from harness.units import is_share

COMMIT = 40
"""Letters of a full commit on the hub, which is what a hub repository's digest is."""


class Model(Value):
    """The base model."""

    id: str
    """On the hub; of a local one the folder's name alone."""
    revision: str | None
    """Commit on the hub where it is known, else what the study file names."""
    digest: str
    """Hash of the files, or the commit on the hub."""
    trust_remote_code: bool


class Rows(Value):
    """The data and how it was split."""

    path: str
    """Id on the hub; of a local file its name alone."""
    revision: str | None
    digest: str
    subset: str | None
    split: str
    format: str
    """As it was found; as the study file names it where the run did not keep that."""
    columns: dict[str, str]
    rows: dict[str, int]
    """Of each split; empty where it is not known."""
    split_seed: int
    tokenized_digest: str | None
    """Hash of the tokenized rows."""


class Adapter(Value):
    """The low-rank adapters that are added."""

    rank: int
    targets: list[str] | None
    """Last names of the layers that carry one; None: every linear layer but the head."""
    dropout: float
    dora: bool


class Method(Value):
    """Which weights are trained."""

    name: str
    params: dict[str, Any]
    """Its own parameters, defaults included."""
    adapter: Adapter | None
    """None: no adapters, or a method that is no plugin here."""


class Stored(Value):
    """How the base's weights are stored."""

    quantization: str
    bits: float | None
    """Of the codes; None for a quantization that is no plugin here."""
    params: dict[str, Any]


class Settings(Value):
    """Training, with the micro-batch that fitted and every name spelled out."""

    learning_rate: float | None
    epochs: float
    max_steps: int | None
    """Optimizer steps; wins over `epochs`."""
    batch: int
    """Sequences per optimizer step."""
    micro_batch: int
    """Sequences per forward pass."""
    accumulation: int
    """Forward passes per optimizer step."""
    max_length: int
    schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    optimizer: str
    gradient_checkpointing: bool
    compute_dtype: Dtype
    adapter_dtype: Dtype
    attention: str | None
    loss_on: str | None
    """`answers`, always, in runs of this program; None for those of another one."""
    packing: bool | None
    """False in runs of this program: rows are padded, never packed."""
    seed: int


class Figure(Value):
    """What was measured, and in which runs."""

    name: str
    unit: str
    value: float
    """Mean over the runs; of memory the highest."""
    low: float | None = None
    """95 % t interval over seeds; None for one seed, and for memory."""
    high: float | None = None
    runs: list[str]
    """Ids of the trials."""


class Configuration(Value):
    """A configuration and the evidence for it. Everything comes from the store, nothing is typed by hand."""

    schema_version: int = 1
    name: str
    """The arm's."""
    study: str
    question: str
    origin: str | None
    """Who made the results, where that was not this program. Then nothing about training is taken for granted."""
    trial_id: str
    measured_at: datetime
    model: Model
    data: Rows
    method: Method
    stored: Stored
    params: dict[str, Scalar]
    """As the trial has them: the method's, the quantization's and the learning rate."""
    training: Settings
    trainer: dict[str, Any]
    """Every setting of the trainer as it was used, under its own names."""
    measured: list[Figure]
    adapter_path: str | None
    """Relative to the study's folder."""
    versions: dict[str, str]
    hardware: str
    commit: str | None
    """Of the program that made the run."""
    harness: str = __version__
    """Version that wrote this."""


def of_arm(evidence: Evidence, arm: str) -> Configuration | None:
    """An arm as it was judged; None before it has a judged run."""
    runs = [r for r in evidence.runs if r.trial.arm == arm]
    return of_run(runs[0], evidence.spec, runs) if runs else None


def of_run(record: Record, spec: StudySpec, runs: Sequence[Record] = ()) -> Configuration:
    """A run's configuration, with what was measured over `runs` of it, else in this run alone."""
    trial, origin = record.trial, spec.origin
    model, data = trial.controls.model, trial.controls.data
    method, stored = _parts(record)
    packages = {k: str(v) for k, v in record.environment.get("packages", {}).items() if v is not None}
    return Configuration(
        name=trial.arm,
        study=spec.name,
        question=spec.question,
        origin=origin.tool if origin else None,
        trial_id=record.trial_id,
        measured_at=record.started_at,
        model=Model(
            id=bare(model.id),
            revision=_commit(trial.model_digest) or model.revision,
            digest=trial.model_digest,
            trust_remote_code=model.trust_remote_code,
        ),
        data=Rows(
            path=bare(data.path),
            revision=_commit(trial.data_digest) or data.revision,
            digest=trial.data_digest,
            subset=data.subset,
            split=data.split,
            format=record.data.get("format", data.format),
            columns=record.data.get("columns", data.columns),
            rows=record.data.get("rows", {}),
            split_seed=data.split_seed,
            tokenized_digest=record.data.get("digest"),
        ),
        method=method,
        stored=stored,
        params=trial.params,
        training=_settings(record, foreign=origin is not None),
        trainer=record.resolved.get("trainer", {}),
        measured=_figures(runs or [record], spec),
        adapter_path=record.adapter_path,
        versions=packages,
        hardware=_hardware(record),
        commit=record.environment.get("commit"),
    )


def _hardware(record: Record) -> str:
    """What a run was made on, in words; GPUs that it left idle are none of it."""
    idle: dict[str, Any] = {"gpus": []} if record.resolved.get("device") == "cpu" else {}
    return described({**record.environment, **idle})


def _commit(digest: str) -> str | None:
    return digest if len(digest) == COMMIT and set(digest) <= set("0123456789abcdef") else None


def _parts(record: Record) -> tuple[Method, Stored]:
    """Method and quantization with their own parameters; of foreign ones all are the method's but training's."""
    trial = record.trial
    try:
        own, kept = plugins.split_params(trial.method, trial.quantization, trial.params)
        adapter = _adapter(plugins.method(trial.method).adapter(own))
        bits = plugins.quantization(trial.quantization).bits
    except HarnessError:
        params = {k: v for k, v in trial.params.items() if k not in Settings.model_fields}
        return Method(name=trial.method, params=params, adapter=None), _stored_elsewhere(trial.quantization)
    return (
        Method(name=trial.method, params=own.model_dump(mode="json"), adapter=adapter),
        Stored(quantization=trial.quantization, bits=bits, params=kept.model_dump(mode="json")),
    )


def _adapter(shape: AdapterShape | None) -> Adapter | None:
    if shape is None:
        return None
    targets = None if shape.targets is None else sorted(shape.targets)
    return Adapter(rank=shape.rank, targets=targets, dropout=shape.dropout, dora=shape.dora)


def _stored_elsewhere(name: str) -> Stored:
    bits = plugins.quantization(name).bits if name in plugins.names("quantization") else None
    return Stored(quantization=name, bits=bits, params={})


def _settings(record: Record, *, foreign: bool) -> Settings:
    """As the run had them. A foreign arm may have settings of its own where those of ours are shared by all."""
    train, params = record.trial.training, record.trial.params
    shared = {k: getattr(train, k) for k in Settings.model_fields if hasattr(train, k)}
    own = {
        "learning_rate": None,
        "micro_batch": train.per_pass,
        "accumulation": train.batch // train.per_pass,
        "attention": record.resolved.get("attention"),
        "loss_on": None if foreign else "answers",
        "packing": None if foreign else False,
        "seed": record.trial.seed,
    }
    return Settings.model_validate({**shared, **own, **{k: v for k, v in params.items() if k in Settings.model_fields}})


def _figures(runs: Sequence[Record], spec: StudySpec) -> list[Figure]:
    """Every score, then memory, time, energy and money of a run."""
    names = dict.fromkeys((score_name(s), s.role) for r in runs for s in r.scores)
    scores = [_mean(name, _unit(name, role), [(r, r.score(name)) for r in runs]) for name, role in names]
    peaks = [(p, r) for r in runs if (p := peak_bytes(r)) is not None]
    memory = [
        Figure(name="peak memory", unit="bytes", value=max(p for p, _ in peaks), runs=[r.trial_id for _, r in peaks])
        for _ in peaks[:1]
    ]
    price = spec.prices.per_hour
    costs = [
        _mean("time of a run", "s", [(r, r.seconds) for r in runs]),
        _mean("training time", "s", [(r, r.train.loop_seconds if r.train else None) for r in runs]),
        _mean(
            "throughput of training", "tokens/s", [(r, r.train.tokens_per_second if r.train else None) for r in runs]
        ),
        _mean("energy of training", "J", [(r, _energy(r)) for r in runs]),
        _mean(
            "cost of a run",
            spec.prices.currency,
            [(r, None if price is None else r.seconds / 3600 * price) for r in runs],
        ),
    ]
    return [f for f in [*scores, *memory, *costs] if f is not None]


def _unit(name: str, role: str) -> str:
    if role == "loss":
        return "nats per token"
    return "share of the items" if is_share(name) else "score"


def _mean(name: str, unit: str, values: Sequence[tuple[Record, float | None]]) -> Figure | None:
    known = [(r, v) for r, v in values if v is not None]
    if not known:
        return None
    numbers = [v for _, v in known]
    bounds = mean_interval(numbers)
    low, high = bounds[1:] if bounds else (None, None)
    return Figure(name=name, unit=unit, value=fmean(numbers), low=low, high=high, runs=[r.trial_id for r, _ in known])


def _energy(record: Record) -> float | None:
    return next((s.energy_joules for s in record.stages if s.stage == "train"), None)
