"""One trial from its job to its record: the order of the stages, and what each way of ending is called."""

import gc
import logging
import math
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, set_seed

from harness import accounting, dense, environment, forms, inference, plugins, sources
from harness.data import Prepared, prepare
from harness.errors import HarnessError
from harness.evaluate import Distributions, distributions, divergence, held_out_loss, run_tasks
from harness.interfaces import Event, Job, Tracker
from harness.measure import Stages
from harness.record import Example, Forecast, Record, Score, Speed, StageName, Status, Step
from harness.spec import AUTO, Device, Served
from harness.store import StudyStore
from harness.tasks import tasks_of
from harness.train import DTYPES, Diverged, Trained, train
from harness.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.sources import Source

log = logging.getLogger(__name__)
Emit = Callable[[Event], None]

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says where memory ran out outside PyTorch's caching allocator: on the CPU, in CUDA, in cuBLAS."""


@dataclass
class Run:
    """What is known of a trial so far. Whatever stops it, this goes into the record."""

    job: Job
    emit: Emit
    device: torch.device
    stages: Stages
    tracker: Tracker
    steps: list[Step] = field(default_factory=list)
    trained: Trained | None = None
    scores: list[Score] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    adapter_path: str | None = None
    speeds: list[Speed] = field(default_factory=list)
    stored_bytes: int | None = None
    disk_bytes: int | None = None

    @contextmanager
    def stage(self, name: StageName) -> "Iterator[None]":
        self.emit(Event(kind="stage", stage=name))
        with self.stages.stage(name):
            yield


def run(job: Job, emit: Emit) -> Record:
    """Do the trial, keep its record in the store and return it. What goes wrong in it becomes the record's status."""
    started, began = datetime.now(UTC), time.perf_counter()
    device = choose_device(job.trial.controls.device)
    instrument = accounting.Cuda(device) if device.type == "cuda" else accounting.Cpu()
    state = Run(job, emit, device, Stages(instrument), _Trackers(job))
    status: Status = "done"
    detail: str | None = None
    try:
        state.tracker.start(job)
        stages_of(job.trial)(state)
    except Exception as error:  # every way of ending is a record
        status, detail = outcome(error)
        print(traceback.format_exc(), flush=True)
    record = Record(
        trial=job.trial,
        trial_id=job.trial.id,
        attempt=job.attempt,
        question_id=job.question_id,
        status=status,
        detail=detail,
        started_at=started,
        seconds=time.perf_counter() - began,
        train=state.trained.training if state.trained else None,
        memory=state.trained.memory if state.trained else None,
        stages=state.stages.done,
        steps=state.steps,
        scores=state.scores,
        examples=state.examples,
        speeds=state.speeds,
        stored_bytes=state.stored_bytes,
        disk_bytes=state.disk_bytes,
        resolved=state.resolved,
        environment=environment.describe(),
        data=state.data,
        adapter_path=state.adapter_path,
        log_path=f"logs/{job.trial.id}-{job.attempt}.log",
        forecast=job.forecast,
    )
    StudyStore(job.folder).write(record)
    state.tracker.finish(record)
    return record


def stages_of(trial: Trial) -> Callable[[Run], None]:
    """What a trial does, by its phase."""
    return {"serve": serve, "speed": time_answers}.get(trial.phase, train_and_judge)


def train_and_judge(run: Run) -> None:
    """Load, adapt, train, evaluate, save, and hold the adapter against what it is when it is merged."""
    trial = run.job.trial
    controls = trial.controls
    method = plugins.method(trial.method)
    quantization = plugins.quantization(trial.quantization)
    method_params, quantization_params = plugins.split_params(trial.method, trial.quantization, trial.params)

    with run.stage("load"):
        found, tokenizer, rows = _inputs(run)
        model = quantization.load(
            found.location,
            quantization_params,
            revision=found.revision,
            compute=DTYPES[controls.train.compute_dtype],
            device=str(run.device),
            remote_code=controls.model.trust_remote_code,
        )
        base_bytes = accounting.stored_bytes(model)
    run.resolved = _resolved(model, trial.params, method_params.model_dump(), quantization_params.model_dump())

    with run.stage("adapt"):
        set_seed(trial.seed)  # adapter weights are drawn here
        model = method.prepare(model, method_params, controls.train)

    if trial.method != "none":
        with run.stage("train"), tempfile.TemporaryDirectory() as scratch:
            run.trained = train(
                model,
                tokenizer,
                rows.train,
                trial.training,
                learning_rate=float(trial.params["learning_rate"]),
                seed=trial.seed,
                base_bytes=base_bytes,
                scratch=scratch,
                on_step=lambda step, of: _on_step(run, step, of),
                probe=_optimizer_bytes(run.job.forecast),
            )
            run.resolved |= run.trained.resolved

    gc.collect()  # the trainer refers to itself: its optimizer's state would stay through evaluation
    with run.stage("evaluate"), _as_in_training(run):
        _evaluate(run, model, tokenizer, rows)
    _weigh(run, model)

    if trial.phase == "confirm":
        with run.stage("save"):
            run.adapter_path = _save(run, model, tokenizer)
        if hasattr(model, "peft_config"):
            with run.stage("reference"):
                expected = _distributions(run, model, tokenizer, rows)
                _hold_against(run, "kl_merged", lambda: forms.merged(model), expected, tokenizer)
                del model  # used up, and there may not be room for another
                gc.collect()
                if quantization.about.merges == "refuses":  # loading it again may take its calibration again
                    run.resolved["kl_requantized"] = "not measured: PEFT refuses to merge on such a base"
                elif quantization.about.merges != "exact":  # else PEFT's merge is the same one
                    _hold_against(
                        run, "kl_requantized", lambda: forms.merged_by_peft(_as_trained(run)), expected, tokenizer
                    )


def serve(run: Run) -> None:
    """Ask the unquantized model, then load the served one, attach an adapter that stays apart, evaluate.

    Never two models at once: a large one in 16 bits leaves no room for another.
    """
    trial, served = run.job.trial, run.job.trial.served
    assert served is not None
    stored = Served(quantization=served.quantization, params=served.params)
    with _scratch(run) as folder:
        with run.stage("reference"):
            found, tokenizer, rows = _inputs(run)
            expected = _distributions(run, _unquantized(run, served.against or stored), tokenizer, rows)
            location, revision = found.location, found.revision
            if served.way == "merged":
                _merge_into(folder, run, tokenizer)
                location, revision = str(folder), None
            gc.collect()
        with run.stage("load"):
            model = forms.load(location, revision, stored, trial.controls, run.device)
    run.resolved = _resolved(model, trial.params, {}, stored.params)
    if served.way == "adapter":
        with run.stage("adapt"):
            model = _with_adapter(run, model)
    with run.stage("evaluate"), _as_in_training(run):
        _evaluate(run, model, tokenizer, rows)
        _diverge(run, "kl_unquantized", model, expected, tokenizer)
    _weigh(run, model)


def time_answers(run: Run) -> None:
    """Load the base at every bit-width and time their answers, taking turns."""
    trial, timed = run.job.trial, run.job.trial.timed
    assert timed is not None
    with run.stage("load"):
        models = {name: forms.base(trial, served, run.device) for name, served in timed.at.items()}
    with run.stage("evaluate"):
        run.speeds = inference.measure(models, timed.speeds, run.device)


def _inputs(run: Run) -> "tuple[Source, PreTrainedTokenizerBase, Prepared]":
    """Where the base is, its tokenizer, and the study's rows."""
    controls = run.job.trial.controls
    found = sources.find_model(controls.model, run.job.trial.model_digest)
    tokenizer = load_tokenizer(found.location, found.revision, controls.model.trust_remote_code)
    rows = prepare(
        controls.data,
        sources.find_data(controls.data, run.job.trial.data_digest),
        tokenizer,
        controls.train.max_length,
        run.job.folder / "data",
    )
    run.data = rows.facts
    return found, tokenizer, rows


def _as_in_training(run: Run) -> torch.autocast:
    """Computes as training did."""
    compute = DTYPES[run.job.trial.controls.train.compute_dtype]
    return torch.autocast(run.device.type, compute, enabled=compute != torch.float32)


def _distributions(
    run: Run, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Prepared
) -> Distributions:
    with _as_in_training(run):
        batch = run.job.trial.controls.evaluate.batch
        return distributions(model, rows.test, batch, int(tokenizer.pad_token_id or 0))


def _diverge(
    run: Run, name: str, model: "PreTrainedModel", expected: Distributions, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    batch = run.job.trial.controls.evaluate.batch
    with _as_in_training(run):
        scores, examples = divergence(model, expected, name, batch, int(tokenizer.pad_token_id or 0))
    run.scores += scores
    run.examples += examples


def _hold_against(
    run: Run,
    name: str,
    make: Callable[[], "PreTrainedModel"],
    expected: Distributions,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Compare another form of a model whose scores are known. Where that cannot be made, the run counts all the same,
    and `resolved` says why."""
    try:
        _diverge(run, name, make(), expected, tokenizer)
    except Exception as error:  # memory for a dense model, or PEFT refuses
        run.resolved[name] = f"not measured: {outcome(error)[1]}"
        print(traceback.format_exc(), flush=True)


def _with_adapter(run: Run, model: "PreTrainedModel") -> "PreTrainedModel":
    """A model with the adapter of the run that is served, or of this run itself."""
    trial = run.job.trial
    run_id = trial.served.of if trial.served else trial.id
    return forms.attach(model, run.job.folder / "adapters" / str(run_id), trial.controls)


def _as_trained(run: Run) -> "PreTrainedModel":
    """The base as it was in training, and the adapter beside it."""
    trial = run.job.trial
    return _with_adapter(run, forms.base(trial, forms.stored_as(trial), run.device))


def _unquantized(run: Run, widest: Served) -> "PreTrainedModel":
    """The model that is served, in its widest form: the base, with the adapter merged into it if there is one."""
    served = run.job.trial.served
    assert served is not None
    model = forms.base(run.job.trial, widest, run.device)
    return model if served.way == "base" else forms.merged(_with_adapter(run, model))


def _merge_into(folder: Path, run: Run, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keep the merged model as a base is kept, so that the same code quantizes both."""
    forms.merged(_as_trained(run)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _scratch(run: Run) -> "Iterator[Path]":
    """A folder for a whole model, beside the results: it may be larger than what there is room for elsewhere. One that
    a killed attempt left is taken away first."""
    folder = run.job.folder / f".{run.job.trial.id}.scratch"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weigh(run: Run, model: "PreTrainedModel") -> None:
    if run.job.trial.phase != "search":
        run.stored_bytes, run.disk_bytes = accounting.stored_bytes(model), dense.disk_bytes(model)


def outcome(error: BaseException) -> tuple[Status, str]:
    """The status that an error stands for, and one line about it."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = " ".join([text, *getattr(error, "__notes__", [])])
    if isinstance(error, Diverged):
        return "diverged", text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in NO_MEMORY):
        return "out_of_memory", text
    if isinstance(error, HarnessError):
        return "failed", text
    return "failed", f"{type(error).__name__}: {text}"


def _optimizer_bytes(forecast: Forecast | None) -> int | None:
    """What a probe has to set aside for the optimizer; None where no probe is needed, since there is room enough."""
    if forecast is None or forecast.fits in {"yes", "likely"}:
        return None
    return forecast.tensors.optimizer if forecast.tensors else 0


def choose_device(wanted: Device) -> torch.device:
    if wanted == "cpu" or (wanted == AUTO and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", 0)


def load_tokenizer(location: str, revision: str | None, remote_code: bool) -> "PreTrainedTokenizerBase":
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        location, revision=revision, trust_remote_code=remote_code
    )
    if tokenizer.pad_token_id is None:  # Llama 2 has none; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _on_step(run: Run, step: Step, of: int) -> None:
    run.steps.append(step)
    run.tracker.step(step)
    run.emit(Event(kind="step", step=step.step, steps=of, loss=step.loss))


def _evaluate(run: Run, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Prepared) -> None:
    """Tuning sees the validation rows only; test rows and tasks are for the runs that are judged."""
    trial = run.job.trial
    settings = trial.controls.evaluate
    pad = int(tokenizer.pad_token_id or 0)
    splits = [("validation_loss", rows.validation)]
    if trial.phase != "search":
        splits.append(("test_loss", rows.test))
    for name, some in splits:
        scores, examples = held_out_loss(model, some, name, settings.batch, pad)
        if not math.isfinite(scores[0].value):
            raise Diverged(f"{name} is {scores[0].value}")
        run.scores += scores
        run.examples += examples
    if trial.phase != "search":
        roles = tasks_of(trial.controls)
        for role in ("target", "retention"):
            chat = tokenizer.chat_template is not None and _asked_as_chat(role, settings.chat_template, rows)
            asked = {task: r for task, r in roles.items() if r == role}
            scores, examples = run_tasks(model, tokenizer, asked, settings, chat)
            run.scores += scores
            run.examples += examples


def _asked_as_chat(role: str, wanted: bool | str, rows: Prepared) -> bool:
    """`auto`: what training teaches is asked as the rows ask; what the base could do, as the base is used to."""
    if wanted == AUTO:
        return role == "retention" or rows.conversational
    return bool(wanted)


def _save(run: Run, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Keep the adapter, or the whole model where the trial says so, under a name that appears when it is complete."""
    adapter = hasattr(model, "peft_config")
    if not adapter and not run.job.trial.keep_model:
        return None
    kept = Path("adapters" if adapter else "models") / run.job.trial.id
    final = run.job.folder / kept
    if not final.exists():
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(final)
    return str(kept)


def _resolved(
    model: "PreTrainedModel", params: Any, method: Mapping[str, Any], quantization: Mapping[str, Any]
) -> dict[str, Any]:
    config = getattr(model, "hf_quantizer", None)
    settings = config.quantization_config.to_dict() if config is not None else {}
    return {
        "params": dict(params),
        "method": dict(method),
        "quantization": {**quantization, **{k: str(v) for k, v in settings.items()}},
        "base_dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "random_weights": bool(getattr(model.config, "harness_random_weights", False)),
    }


class _Trackers:
    """Every tracker of the job as one. A tracker that fails is left out with a warning: it is a copy, not the work."""

    def __init__(self, job: Job) -> None:
        self.trackers = {name: plugins.tracker(name, settings) for name, settings in job.trackers.items()}

    def start(self, job: Job) -> None:
        self._each(lambda t: t.start(job))

    def step(self, step: Step) -> None:
        self._each(lambda t: t.step(step))

    def finish(self, record: Record) -> None:
        self._each(lambda t: t.finish(record))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception:
                log.warning("tracker %s is left out of this trial", name, exc_info=True)
                del self.trackers[name]
