"""One trial from its job to its record: the order of the stages, and what each way of ending is called."""

import gc
import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, set_seed

from harness import accounting, environment, plugins, sources
from harness.data import Prepared, prepare
from harness.errors import HarnessError
from harness.evaluate import held_out_loss, run_tasks
from harness.interfaces import Event, Job, Tracker
from harness.measure import Stages
from harness.record import Example, Forecast, Record, Score, StageName, Status, Step
from harness.spec import AUTO, Device
from harness.store import StudyStore
from harness.tasks import tasks_of
from harness.train import DTYPES, Diverged, Trained, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        follow_the_stages(state)
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


def follow_the_stages(run: Run) -> None:
    """Load, adapt, train, evaluate, save."""
    trial = run.job.trial
    controls = trial.controls
    method = plugins.method(trial.method)
    quantization = plugins.quantization(trial.quantization)
    method_params, quantization_params = plugins.split_params(trial.method, trial.quantization, trial.params)

    with run.stage("load"):
        found = sources.find_model(controls.model, trial.model_digest)
        tokenizer = load_tokenizer(found.location, found.revision, controls.model.trust_remote_code)
        rows = prepare(
            controls.data,
            sources.find_data(controls.data, trial.data_digest),
            tokenizer,
            controls.train.max_length,
            run.job.folder / "data",
        )
        run.data = rows.facts
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
    compute = DTYPES[controls.train.compute_dtype]
    with run.stage("evaluate"), torch.autocast(run.device.type, compute, enabled=compute != torch.float32):
        _evaluate(run, model, tokenizer, rows)  # computes as training did

    if trial.phase == "confirm":
        with run.stage("save"):
            run.adapter_path = _save(run, model, tokenizer)


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
    model: "PreTrainedModel", params: Any, method: dict[str, Any], quantization: dict[str, Any]
) -> dict[str, Any]:
    config = getattr(model, "hf_quantizer", None)
    settings = config.quantization_config.to_dict() if config is not None else {}
    return {
        "params": dict(params),
        "method": method,
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
