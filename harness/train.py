"""The training stage: TRL's SFTTrainer, set up so that nothing but the arm differs between arms."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from harness import accounting, dense, record
from harness.data import Tokens
from harness.record import Step, TensorBytes
from harness.spec import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARMUP_STEPS = 3
"""Steps left out of the throughput: first touches of memory, kernels being chosen."""

PROBE_PASSES = 3
"""Passes of a probe: the first touches memory for the first time, the others repeat what every step needs."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):
    """The loss is not a number any more, or has exploded."""


@dataclass(frozen=True)
class Trained:
    """What the training stage found out."""

    training: record.Training
    memory: TensorBytes
    steps: list[Step]
    resolved: dict[str, Any]


@dataclass
class _Watch(TrainerCallback):
    """Times every step, passes on what is logged and stops a run that has diverged."""

    on_step: Callable[[Step, int], None]
    divergence_factor: float
    began: float = 0.0
    step_began: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    error: str | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.step_seconds.append(time.perf_counter() - self.step_began)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = Step(
            step=state.global_step,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
            seconds=time.perf_counter() - self.began,
        )
        self.steps.append(step)
        self.on_step(step, state.max_steps)
        problem = divergence([s.loss for s in self.steps], self.divergence_factor)
        if problem:
            raise Diverged(f"{problem} at step {step.step} of {state.max_steps}")


def divergence(losses: Sequence[float], factor: float, window: int = 5) -> str | None:
    """What is wrong with a course of losses: not finite, or the last `window` on average above `factor` x the first."""
    if not math.isfinite(losses[-1]):
        return f"loss is {losses[-1]}"
    if len(losses) >= 2 * window:
        first, last = (sum(part) / window for part in (losses[:window], losses[-window:]))
        if last > factor * first:
            return f"loss rose from {first:.3g} to {last:.3g}, more than {factor:g} times"
    return None


@dataclass
class _CountingCollator:
    """TRL's collator, counting what it pads."""

    inner: DataCollatorForLanguageModeling
    batches: list[tuple[int, int]] = field(default_factory=list)
    """Real tokens and positions of every batch made, in order."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = self.inner(examples)
        self.batches.append((sum(len(e["input_ids"]) for e in examples), batch["input_ids"].numel()))
        return batch


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Tokens],
    settings: Training,
    *,
    learning_rate: float,
    seed: int,
    base_bytes: int,
    scratch: str,
    on_step: Callable[[Step, int], None],
    probe: int | None = None,
) -> Trained:
    """Train the model in place.

    Args:
        base_bytes: what the base's tensors took before adapters were added, to tell the two apart.
        scratch: a folder for what the trainer insists on writing.
        probe: find out first whether the longest batch fits beside this many bytes of optimizer state; None: do not.

    Raises:
        Diverged: see `divergence`.
        torch.OutOfMemoryError: passed on.
    """
    device = next(model.parameters()).device
    watch = _Watch(on_step, settings.divergence_factor)
    collator = _CountingCollator(DataCollatorForLanguageModeling(pad_token_id=int(tokenizer.pad_token_id or 0)))
    trainer = SFTTrainer(
        model=model,
        args=_arguments(settings, learning_rate, seed, device, scratch, len(rows)),
        train_dataset=Dataset.from_dict({"input_ids": [r.ids for r in rows], "labels": [r.labels for r in rows]}),
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=[watch],
    )
    # TRL casts adapters on a quantized base to bfloat16; left so, the arms would differ in the adapter's dtype
    set_adapter_dtype(model, DTYPES[settings.adapter_dtype])
    probed = None if probe is None else _probe(trainer, collator.inner, rows, settings, probe)
    step_peak, gradients = _measure_step(trainer, collator.inner, rows, settings)
    collator.batches.clear()
    trainer.train()
    return Trained(
        training=_summary(model, watch, collator, settings, len(rows)),
        memory=TensorBytes(
            weights=base_bytes,
            adapter=accounting.stored_bytes(model) - base_bytes,
            gradients=gradients,
            optimizer=accounting.tensor_bytes(dict(trainer.optimizer.state)),
            step_peak=step_peak,
        ),
        steps=watch.steps,
        resolved=_resolved(trainer, model) | ({"probe": probed} if probed else {}),
    )


def set_adapter_dtype(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    """Give every adapter weight this dtype. Weights of the base keep theirs: beside adapters they are frozen."""
    if hasattr(model, "peft_config"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _arguments(
    settings: Training, learning_rate: float, seed: int, device: torch.device, scratch: str, rows: int
) -> SFTConfig:
    steps = settings.max_steps or math.ceil(settings.epochs * rows / settings.batch)
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.per_pass,
        gradient_accumulation_steps=settings.batch // settings.per_pass,
        learning_rate=learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.compute_dtype == "bf16",
        fp16=settings.compute_dtype == "fp16",
        use_cpu=device.type == "cpu",
        max_length=None,  # rows are cut already, the same way for every arm
        packing=False,
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default replaces a NaN by a plausible loss
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _probe(
    trainer: SFTTrainer,
    collate: DataCollatorForLanguageModeling,
    rows: Sequence[Tokens],
    settings: Training,
    optimizer_bytes: int,
) -> dict[str, int]:
    """Find out in seconds whether training fits: passes over the longest batch beside the optimizer's state.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    model = trainer.model
    device = next(model.parameters()).device

    def passes() -> None:
        state = torch.empty(optimizer_bytes, dtype=torch.uint8, device=device)
        for _ in range(PROBE_PASSES):
            one_pass()
            if settings.per_pass == settings.batch:  # where gradients are accumulated, they are there all the time
                model.zero_grad(set_to_none=True)
        del state

    with _longest_batch(trainer, collate, rows, settings) as one_pass:
        try:
            peak = accounting.stored_bytes(model) + accounting.step_peak(passes, device)
        except Exception as error:
            error.add_note("(in the probe before training)")
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the probe held is not training's
    return {"passes": PROBE_PASSES, "optimizer_bytes": optimizer_bytes, "peak_bytes": peak}


def _measure_step(
    trainer: SFTTrainer, collate: DataCollatorForLanguageModeling, rows: Sequence[Tokens], settings: Training
) -> tuple[int, int]:
    """Peak of one forward and backward pass on the longest batch, and bytes of its gradients."""
    model = trainer.model
    with _longest_batch(trainer, collate, rows, settings) as one_pass:
        one_pass()  # first touches (dequantization tables, kernels) are not the step's
        model.zero_grad(set_to_none=True)
        peak = accounting.step_peak(one_pass, next(model.parameters()).device)
        return peak, accounting.gradient_bytes(model)


@contextmanager
def _longest_batch(
    trainer: SFTTrainer, collate: DataCollatorForLanguageModeling, rows: Sequence[Tokens], settings: Training
) -> Iterator[Callable[[], None]]:
    """A forward and backward pass on the longest batch, to be done as often as wanted.

    The worst batch rather than a typical one, so that it is the same for every seed. Random numbers drawn here are
    given back and the gradients dropped: training starts as if nothing had happened.
    """
    model = trainer.model
    device = next(model.parameters()).device
    longest = sorted(rows, key=lambda r: len(r.ids), reverse=True)[: settings.per_pass]
    batch = collate([{"input_ids": r.ids, "labels": r.labels} for r in longest])
    batch = {k: v.to(device) for k, v in batch.items()}

    def one_pass() -> None:
        # the trainer wraps the model in autocast when training begins; the step that is measured computes like it
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, dict(batch))
        loss.backward()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        yield one_pass
    model.zero_grad(set_to_none=True)


def _summary(
    model: "PreTrainedModel", watch: _Watch, collator: _CountingCollator, settings: Training, rows: int
) -> record.Training:
    steps = len(watch.step_seconds)
    warm = min(WARMUP_STEPS, steps // 2)
    seconds = sum(watch.step_seconds[warm:])
    used = collator.batches[: passes_of(steps, rows, settings)]  # the loader reads one batch ahead
    tokens, positions = (sum(column) for column in zip(*used, strict=True)) if used else (0, 0)
    timed = sum(tokens for tokens, _ in used[passes_of(warm, rows, settings) :])
    return record.Training(
        steps=steps,
        tokens=tokens,
        padded_share=1 - tokens / positions if positions else 0.0,
        tokens_per_second=timed / seconds if seconds > 0 else None,
        warmup_steps_excluded=warm,
        loop_seconds=sum(watch.step_seconds),
        final_loss=watch.steps[-1].loss if watch.steps else None,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=dense.parameters(model),
    )


def passes_of(steps: int, rows: int, settings: Training) -> int:
    """Forward passes of the first so many optimizer steps: the last step of an epoch has what is left of its rows."""
    per_step = settings.batch // settings.per_pass
    per_epoch = math.ceil(rows / settings.per_pass)
    epochs, rest = divmod(steps, math.ceil(per_epoch / per_step))
    return epochs * per_epoch + min(rest * per_step, per_epoch)


def _resolved(trainer: SFTTrainer, model: "PreTrainedModel") -> dict[str, Any]:
    """The settings as the libraries took them, their defaults included, paths and tokens left out."""
    arguments = {k: v for k, v in trainer.args.to_dict().items() if not k.endswith(("_dir", "_token", "hub_model_id"))}
    adapter = [p for p in model.parameters() if p.requires_grad] if hasattr(model, "peft_config") else []
    state = [t for s in trainer.optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim() > 0]
    return {
        "trainer": arguments,
        "adapter_dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in adapter}),
        "trainable_dtypes": sorted(
            {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
        ),
        "optimizer_state_dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in state}),
    }
