"""Stores of believable results, made up and the same each time, for tests and for `benchmarks/dashboard.py`.

    generate(root, "lab", 1000)                               a study on a CPU, judged
    generate(root, "rented", 60, flavour="cuda")              on a GPU with its memory, energy and a price per hour
    generate(root, "small", 60, kinds=("out_of_memory",))     nothing but runs that found no room

Trials come in the order in which a study runs them: the base, tuning, the confirmed runs. The confirmed runs stay a
few seeds of each arm; all further trials are tuning. A number too small for both is a study that is still being tuned.
Nothing here needs torch.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from harness import tables
from harness.protocol import declare
from harness.record import (
    NO_ROOM,
    Example,
    Forecast,
    Interval,
    Record,
    Score,
    Stage,
    Status,
    Step,
    TensorBytes,
    Training,
)
from harness.spec import StudySpec
from harness.store import SCHEMAS, TABLES, Store, StudyStore, rows_of
from harness.trial import ZERO_SHOT, Trial

Flavour = Literal["cpu", "cuda"]

BEGAN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
STEPS = 30
OTHERS_EVERY = 10
"""One tuning trial in so many ends in one of the other ways."""
AGAIN_EVERY = 50
"""One tuning trial in so many was killed at its first attempt."""
LARGEST_SEED = 2**31
MICRO_BATCHES = (None, 8, 4, 2, 1)
"""None: as large as the controls say, 16 sequences."""


@dataclass(frozen=True)
class Kind:
    """How an arm is stored, trained and how well it does."""

    method: str
    quantization: str
    right: float
    """Share of the items of the first target task that it answers right."""
    loss: float
    """Test loss at its best learning rate."""
    best_rate: float
    weights: float = 1.0
    """Bytes of the base against the unquantized one."""
    adapter: float = 0.04
    """Bytes that training adds to the base, as a share of it; 0 without an adapter."""
    slower: float = 1.0


ARMS: dict[str, Kind] = {
    "full": Kind("full", "fp32", 0.86, 0.21, 1e-3, adapter=0.0),
    "lora": Kind("lora", "fp32", 0.85, 0.22, 1e-2, slower=0.9),
    "lora-int8": Kind("lora", "int8", 0.84, 0.23, 1e-2, weights=0.35, slower=1.3),
    "qlora-nf4": Kind("lora", "nf4", 0.78, 0.28, 1e-2, weights=0.24, slower=1.5),
}

# task, metric, role, what the base answers right, what an arm loses or gains against its own `right`
TASKS: dict[Flavour, list[tuple[str, str, Literal["target", "retention"], float, float]]] = {
    "cpu": [
        ("tiny_sort_down", "exact_match", "target", 0.02, 0.0),
        ("tiny_second", "exact_match", "target", 0.2, 0.05),
        ("tiny_facts", "acc", "retention", 0.99, 0.1),
        ("tiny_sort_up", "exact_match", "retention", 0.98, -0.15),
    ],
    "cuda": [
        ("gsm8k", "exact_match", "target", 0.3, -0.3),
        ("arc_easy", "acc", "retention", 0.8, -0.06),
    ],
}
BASE_BYTES: dict[Flavour, int] = {"cpu": 4_330_112, "cuda": 2_471_645_184}
RESERVED, DRIVER = 1.12, 600 * 2**20
"""What CUDA's allocator holds against what is in use, and the bytes of a process beside it."""
GPU = {
    "index": 0, "name": "NVIDIA GeForce RTX 4090", "memory_bytes": 25_757_220_864, "used_bytes": 2**28,
    "driver": "570.86.15",
}  # fmt: skip
PACKAGES = {
    "accelerate": "1.15.0", "bitsandbytes": "0.50.2", "datasets": "5.2.0", "lm_eval": "0.4.13", "numpy": "2.4.6",
    "optuna": "5.0.0", "peft": "0.21.2", "tokenizers": "0.23.3", "torch": "2.13.0", "transformers": "5.23.0",
    "trl": "1.16.0", "wandb": "0.31.0",
}  # fmt: skip

# the trainer's settings that a record holds, so that its row is as long as a real one
UNSET = """activation_checkpointing_kwargs chat_template_path completion_only_loss dataloader_prefetch_factor
dataset_num_proc ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
deepspeed eval_accumulation_steps eval_packing eval_steps fsdp fsdp_config gradient_checkpointing_kwargs
greater_is_better hub_private_repo hub_revision label_names liger_kernel_config lr_scheduler_kwargs max_length
metric_for_best_model model_init_kwargs neftune_noise_alpha optim_args optim_target_modules pad_to_multiple_of
parallelism_config resume_from_checkpoint router_aux_loss_coef run_name save_total_limit tf32 torch_compile_backend
torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id"""
OFF = """activation_checkpointing activation_offloading assistant_only_loss auto_find_batch_size batch_eval_metrics bf16
bf16_full_eval dataloader_drop_last dataloader_persistent_workers dataloader_pin_memory do_eval do_predict do_train
enable_jit_checkpoint eval_on_start fp16 fp16_full_eval full_determinism gradient_checkpointing hub_always_push
load_best_model_at_end log_on_each_node logging_first_step logging_nan_inf_filter packing padding_free
prediction_loss_only push_to_hub remove_unused_columns restore_callback_states_from_checkpoint save_on_each_node
save_only_model shuffle_dataset torch_compile trust_remote_code use_cache use_liger_kernel"""
TRAINER: dict[str, Any] = {
    **dict.fromkeys(UNSET.split()), **dict.fromkeys(OFF.split(), False),
     "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
    "data_seed": 0, "ddp_timeout": 1800, "debug": [], "eval_strategy": "no", "gradient_accumulation_steps": 1,
    "hub_strategy": "every_save", "logging_steps": 1, "loss_type": "nll", "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0, "num_train_epochs": 1.0, "optim": "adamw_torch", "per_device_train_batch_size": 16,
    "report_to": [], "save_steps": 500, "save_strategy": "no", "truncation_mode": "keep_start", "weight_decay": 0.0,
}  # fmt: skip


def generate(
    root: Path,
    name: str,
    trials: int,
    *,
    arms: Mapping[str, Kind] = ARMS,
    items: int = 200,
    seeds: int = 5,
    kinds: Sequence[Status] = ("done", "diverged", "failed", "timed_out"),
    flavour: Flavour = "cpu",
    tuning_items: int = 50,
    compacted: bool = False,
) -> StudyStore:
    """Write a study of exactly so many trials.

    Args:
        items: of each task that a confirmed run is asked.
        seeds: confirmed runs of each arm.
        kinds: how tuning trials end: mostly as the first one says, each tenth as one of the others in turn. Without
            `done` every trial ends so, the base included.
        tuning_items: validation rows, of which a tuning trial leaves an outcome each.
        compacted: write one file per table, as `StudyStore.compact` leaves it, instead of one per trial.
    """
    spec = study(name, arms, seeds, flavour, _plan(trials, len(arms), seeds)[0], items, tuning_items)
    store = Store(root).open(spec)
    declared = declare(spec).model_copy(update={"declared_at": BEGAN})
    (store.folder / "declared.json").write_text(declared.model_dump_json(indent=2) + "\n", encoding="utf-8")
    made = _Study(spec, dict(arms), flavour, items, tuple(kinds)).records(trials)
    if compacted:
        _write_merged(store, made)
    else:
        for record in made:
            store.write(record)
    return store


def _write_merged(store: StudyStore, records: Iterable[Record]) -> None:
    rows: dict[str, list[pa.Table]] = {table: [] for table in TABLES}
    runs = []
    for record in records:
        runs.append((record.trial_id, record.attempt))
        for table, some in rows_of(record).items():
            rows[table].append(pa.Table.from_pylist(some, schema=SCHEMAS[table]))
    for table, parts in rows.items():
        whole = pa.concat_tables(parts) if parts else SCHEMAS[table].empty_table()
        tables.write_merged(store.folder / table, whole, runs)


def study(
    name: str, arms: Mapping[str, Kind], seeds: int, flavour: Flavour, tuned: int, items: int, rows: int
) -> StudySpec:
    """The question that the results are said to answer."""
    gpu = flavour == "cuda"
    evaluated = {"tasks": ["gsm8k"], "retention": ["arc_easy"]} if gpu else {}
    return StudySpec.model_validate(
        {
            "name": name,
            "question": "Does LoRA, on a base of fewer bits too, do as well as full fine-tuning?",
            "controls": {
                "model": {"id": "meta-llama/Llama-3.2-1B" if gpu else "tiny"},
                "data": {"path": "openai/gsm8k" if gpu else "tiny", "validation_rows": rows, "test_rows": items},
                "train": {"max_steps": STEPS, "batch": 16, "max_length": 128},
                "evaluate": evaluated,
                "device": flavour,
            },
            "arms": {
                arm: {
                    "method": kind.method,
                    "quantization": kind.quantization,
                    "params": {"rank": 4, "alpha": 8} if kind.adapter else {},
                    "search": {
                        "learning_rate": {
                            "low": kind.best_rate / 10,
                            "high": kind.best_rate * 10,
                            "log": True,
                            "start": [kind.best_rate, kind.best_rate * 3],
                        }
                    },
                }
                for arm, kind in arms.items()
            },
            "search": {"trials": max(tuned, 1)},
            "confirm": {"seeds": [101 + i for i in range(seeds)]},
            "objective": {"margin": 0.02},
            "prices": {"per_hour": 0.44} if gpu else {},
        }
    )


def _plan(trials: int, arms: int, seeds: int) -> tuple[int, int, bool]:
    """Of a number of trials: tuning trials per arm, those left over, and whether there are confirmed runs."""
    judged = trials >= 1 + arms + arms * seeds
    tuned = max(trials - 1 - (arms * seeds if judged else 0), 0)
    return (*divmod(tuned, arms), judged)


@dataclass(frozen=True)
class _Study:
    """Makes up the records of a study."""

    spec: StudySpec
    arms: dict[str, Kind]
    flavour: Flavour
    items: int
    kinds: tuple[Status, ...]

    def records(self, trials: int) -> Iterator[Record]:
        """So many trials, and the first attempts of some."""
        best: dict[str, Record] = {}
        clock = BEGAN
        for trial, status in self._trials(trials, best):
            record = self._record(trial, status, clock)
            if trial.phase == "search" and status == "done":
                known = best.get(trial.arm)
                if known is None or record.scores[0].value < known.scores[0].value:
                    best[trial.arm] = record
                if (trial.number or 0) % AGAIN_EVERY == AGAIN_EVERY // 2:
                    yield self._killed(record)
                    record = record.model_copy(update={"attempt": 2})
            yield record
            clock += timedelta(seconds=record.seconds + 1)

    def _trials(self, trials: int, best: Mapping[str, Record]) -> Iterator[tuple[Trial, Status]]:
        """The trials in their order. Tuning budgets are equal; what is left over are runs that found no room and went
        on at half the micro-batch, which do not count as trials of a budget."""
        if trials == 0:
            return
        tuned, left, judged = _plan(trials, len(self.arms), len(self.spec.confirm.seeds))
        base = self.spec.arms[self.spec.baseline]
        yield self._trial(ZERO_SHOT, "baseline", 0, method="none", quantization=base.quantization), self._ends(0)
        halved = dict.fromkeys(list(self.arms)[:left], 8) if tuned and "done" in self.kinds else {}
        for number in range(tuned + (left > 0 and not halved)):
            for arm in list(self.arms)[: left if number == tuned else None]:
                place = number * len(self.arms) + list(self.arms).index(arm) + 1
                trial = self._tuning(arm, number)
                if arm in halved and number == 0:
                    yield trial, "out_of_memory"
                yield trial.at(halved.get(arm, trial.micro_batch)), self._ends(place)
        for seed in self.spec.confirm.seeds if judged else []:
            for arm in self.arms:
                found = best.get(arm)
                rate = self._rate(arm, 0) if found is None else float(found.trial.params["learning_rate"])
                yield self._trial(arm, "confirm", seed, rate=rate).at(halved.get(arm)), self._ends(0)

    def _tuning(self, arm: str, number: int) -> Trial:
        """A tuning trial. Where there is no room for any, each is tried at ever smaller micro-batches."""
        if not set(self.kinds) <= NO_ROOM:
            return self._trial(arm, "search", 0, rate=self._rate(arm, number), number=number)
        drawn, tries = divmod(number, len(MICRO_BATCHES))
        trial = self._trial(arm, "search", 0, rate=self._rate(arm, drawn), number=drawn)
        return trial.at(MICRO_BATCHES[tries])

    def _ends(self, place: int) -> Status:
        """How a trial ends, by its place in the order; the base and the confirmed runs have place 0."""
        if "done" not in self.kinds:
            return self.kinds[place % len(self.kinds)]
        others = self.kinds[1:]
        if place % OTHERS_EVERY or not others or place == 0:
            return "done"
        return others[place // OTHERS_EVERY % len(others)]

    def _rate(self, arm: str, number: int) -> float:
        """The learning rate of an arm's tuning trial: first the start values, then draws on the logarithmic scale."""
        space = self.spec.arms[arm].search["learning_rate"]
        if number < len(space.start):
            return float(space.start[number])
        assert space.low is not None and space.high is not None
        share = _draw("rate", arm, number).random()
        return float(space.low * (space.high / space.low) ** share)

    def _trial(
        self, arm: str, phase: str, seed: int, *, rate: float | None = None, number: int | None = None, **fields: str
    ) -> Trial:
        own = self.spec.arms.get(arm)
        params: dict[str, Any] = {**(own.params if own else {}), **({} if rate is None else {"learning_rate": rate})}
        kind = {"method": own.method, "quantization": own.quantization} if own else fields
        return Trial.model_validate(
            {
                "study": self.spec.name, "arm": arm, "phase": phase, "seed": seed, "params": params,
                "controls": self.spec.controls, "model_digest": "4f5160b7c0324f90", "data_digest": "bfa179da05205edf",
                "number": number, **kind,
            }
        )  # fmt: skip

    def _record(self, trial: Trial, status: Status, began: datetime) -> Record:
        draw = _draw(self.spec.name, trial.arm, trial.phase, trial.seed, trial.number, trial.micro_batch)
        kind = self.arms.get(trial.arm)
        memory = self._memory(trial) if kind else None
        ran, done = status != "does_not_fit", status == "done"
        loss = self._loss(trial, draw)
        stages = self._stages(trial, status, memory, draw) if ran else []
        train = next((s.seconds for s in stages if s.stage == "train"), None)
        steps = _steps(trial, loss, train, done, draw) if train and kind else []
        examples = list(self._examples(trial, loss)) if done else []
        return Record(
            trial=trial,
            trial_id=trial.id,
            question_id=self.spec.question_id,
            status=status,
            detail=None if done else DETAILS.get(status, status.replace("_", " ")),
            started_at=began,
            seconds=sum(s.seconds for s in stages),
            train=_training(trial, steps, train, kind) if kind and done and train else None,
            memory=memory if ran and status not in {"out_of_memory", "killed"} else None,
            stages=stages,
            steps=steps,
            scores=_scores(examples, TASKS[self.flavour]),
            examples=examples,
            stored_bytes=self._stored(kind) if done and trial.phase != "search" else None,
            disk_bytes=self._stored(kind) if done and trial.phase != "search" else None,
            resolved=self._resolved(trial) if ran else {},
            environment=self._environment,
            data={"cut": 0, "digest": "5074b3ea72a68248", "dropped": {}, "format": "messages",
                  "rows": {"train": 1600, "validation": trial.controls.data.validation_rows, "test": self.items},
                  "tokens": 50164} if ran else {},
            adapter_path=f"adapters/{trial.id}" if trial.phase == "confirm" and "rank" in trial.params else None,
            log_path=f"logs/{trial.id}-1.log" if ran else None,
            forecast=self._forecast(trial, kind, memory, train),
        )  # fmt: skip

    def _killed(self, record: Record) -> Record:
        """An earlier attempt of the same trial, of which next to nothing is left."""
        lost = {
            "status": "killed", "detail": "killed by SIGKILL in train", "seconds": 1.5, "train": None, "memory": None,
            "stages": [], "steps": [], "scores": [], "examples": [], "resolved": {}, "environment": {}, "data": {},
        }  # fmt: skip
        return record.model_copy(update=lost)

    @cached_property
    def _environment(self) -> dict[str, Any]:
        gpus = [GPU] if self.flavour == "cuda" else []
        return {
            "commit": "df5b3e0b83e2", "cores": 8, "cpu": "AMD EPYC", "cpu_capability": ["avx2", "avx512f"],
            "gpus": gpus, "harness": "0.1.0", "memory_bytes": 67_430_000_000, "packages": PACKAGES, "python": "3.11.7",
            "system": "Linux x86_64", "variables": {"OMP_NUM_THREADS": "1"},
        }  # fmt: skip

    def _loss(self, trial: Trial, draw: np.random.Generator) -> float:
        """Held-out loss: a parabola over the logarithm of the learning rate, and noise."""
        kind = self.arms.get(trial.arm)
        if kind is None:
            return 4.1
        off = math.log10(float(trial.params["learning_rate"]) / kind.best_rate)
        return kind.loss + 0.15 * off**2 + 0.01 * float(draw.random())

    def _memory(self, trial: Trial) -> TensorBytes:
        kind, base = self.arms[trial.arm], BASE_BYTES[self.flavour]
        weights = round(base * kind.weights)
        adapter = round(base * kind.adapter)
        trained = adapter or weights
        share = trial.training.per_pass / 16
        return TensorBytes(
            weights=weights, adapter=adapter, gradients=trained, optimizer=2 * trained,
            step_peak=trained + round(base * 0.5 * share),
        )  # fmt: skip

    def _stored(self, kind: Kind | None) -> int:
        return round(BASE_BYTES[self.flavour] * (kind.weights + kind.adapter if kind else 1))

    def _stages(
        self, trial: Trial, status: Status, memory: TensorBytes | None, draw: np.random.Generator
    ) -> list[Stage]:
        kind = self.arms.get(trial.arm)
        long = 60.0 if self.flavour == "cuda" else 1.0
        seconds = {"load": 0.5, "adapt": 0.02, "train": 11.0 * (kind.slower if kind else 0), "evaluate": 0.4}
        if trial.phase != "search":
            seconds["evaluate"] = 4.0
        if trial.phase == "confirm":
            seconds["save"] = 0.1
        names = [n for n in seconds if n != "train" or kind]
        if status != "done":  # whatever went wrong did so in training, or before anything was asked
            names = names[: names.index("train") + 1] if "train" in names else names[:1]
        stages = []
        for name in names:
            taken = seconds[name] * long * float(draw.uniform(0.9, 1.1))
            used = BASE_BYTES[self.flavour]
            if memory:
                used = (memory.peak or 0) if name == "train" else memory.weights + memory.adapter
            peaks = {
                "allocated_peak_bytes": used, "reserved_peak_bytes": round(used * RESERVED),
                "device_peak_bytes": round(used * RESERVED) + DRIVER,
                "energy_joules": taken * 310 if name in {"train", "evaluate"} else None,
            } if self.flavour == "cuda" else {}  # fmt: skip
            stages.append(
                Stage.model_validate({"stage": name, "seconds": taken, "rss_peak_bytes": 630_000_000, **peaks})
            )
        return stages

    def _examples(self, trial: Trial, loss: float) -> Iterator[Example]:
        """An outcome per item: its difficulty is the item's own, so that arms are paired by it."""
        losses = {"validation_loss": trial.controls.data.validation_rows or 0}
        if trial.phase != "search":
            losses["test_loss"] = self.items
        for task, count in losses.items():
            spread = _draw(task).gamma(2.0, 0.5, count) * _draw(task, trial.arm, trial.seed).uniform(0.8, 1.2, count)
            for i, value in enumerate(spread * loss):
                yield Example(task=task, metric="loss", example_id=_item(task, i), score=float(value))
        if trial.phase == "search":
            return
        kind = self.arms.get(trial.arm)
        for task, metric, _, before, gain in TASKS[self.flavour]:
            draw = _draw(task, trial.arm, trial.seed)
            share = before if kind is None else kind.right + gain + 0.01 * draw.normal()
            luck = _draw(task).random(self.items) * 0.7 + draw.random(self.items) * 0.3
            right = luck <= np.quantile(luck, min(max(share, 0.0), 1.0))
            for i in range(self.items):
                target = _text(task, i)
                prediction = target if right[i] else target[::-1] + " 0"
                yield Example(
                    task=task, metric=metric, example_id=_item(task, i), score=float(right[i]), prediction=prediction,
                    target=target,
                )  # fmt: skip

    def _resolved(self, trial: Trial) -> dict[str, Any]:
        trainer = {
            **TRAINER,
            "learning_rate": trial.params.get("learning_rate"),
            "seed": trial.seed,
            "max_steps": STEPS,
        }
        return {
            "attention": "sdpa", "base_dtypes": ["float32"], "device": self.flavour, "method": {}, "quantization": {},
            "params": trial.params, "random_weights": False, "threads": 1,
            **({} if trial.method == "none" else {"trainer": trainer}),
        }  # fmt: skip

    def _forecast(self, trial: Trial, kind: Kind | None, memory: TensorBytes | None, train: float | None) -> Forecast:
        peak = (memory.peak or 0) if memory else BASE_BYTES[self.flavour] * 4
        seconds = (train or 2.0) * 1.1 + 1
        gpu = self.flavour == "cuda"
        parts = (
            {"weights": memory.weights, "optimizer": memory.optimizer, "one step": memory.step_peak or 0}
            if memory
            else {}
        )
        return Forecast(
            allocated_bytes=_around(peak, 0.04),
            reserved_bytes=_around(peak * RESERVED, 0.06) if gpu else None,
            process_bytes=_around(peak * RESERVED + DRIVER, 0.06) if gpu else None,
            peak_phase="backward" if kind else "evaluation",
            components=parts,
            tensors=memory,
            device=GPU["name"] if gpu else "cpu",
            device_bytes=GPU["memory_bytes"] if gpu else None,
            fits="yes",
            stage_seconds={"train": _around(seconds - 1, 0.3)} if kind else {},
            seconds=_around(seconds, 0.3),
            tokens_per_second=4600.0 if kind else None,
            cost=_around(seconds / 3600 * (self.spec.prices.per_hour or 0), 0.3) if self.spec.prices.per_hour else None,
            calibration="4 runs on cpu" if not gpu else "cold",
        )  # fmt: skip


DETAILS: dict[Status, str] = {
    "out_of_memory": "CUDA out of memory. Tried to allocate 256.00 MiB",
    "does_not_fit": "needs 30.1 GiB [28.2, 32.0], NVIDIA GeForce RTX 4090 has 24.0; nearest: micro_batch 8, tried next",
    "diverged": "the loss rose above 3 times its start at step 12",
    "timed_out": "took longer than 30 minutes, in train",
    "failed": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "killed": "killed by SIGKILL in train",
}


def _steps(trial: Trial, loss: float, seconds: float | None, done: bool, draw: np.random.Generator) -> list[Step]:
    """The loss falls towards the held-out one; the learning rate warms up and falls along a cosine."""
    peak = float(trial.params.get("learning_rate") or 0.0)
    count = STEPS if done else STEPS // 3
    noise = draw.uniform(0.9, 1.1, count)
    return [
        Step(
            step=i + 1,
            loss=float((loss + (4.1 - loss) * math.exp(-i / 6)) * noise[i]),
            learning_rate=peak * min(1.0, i / 2) * (0.5 + 0.5 * math.cos(math.pi * i / STEPS)),
            grad_norm=float(1.5 * noise[i]),
            seconds=(seconds or 0.0) * (i + 1) / STEPS,
        )
        for i in range(count)
    ]


def _training(trial: Trial, steps: Sequence[Step], seconds: float, kind: Kind) -> Training:
    total = 1_082_496
    return Training(
        steps=len(steps), tokens=48_134, padded_share=0.2, tokens_per_second=48_134 / seconds, warmup_steps_excluded=3,
        loop_seconds=seconds * 0.9, final_loss=steps[-1].loss, total_parameters=total,
        trainable_parameters=round(total * kind.adapter) or total,
    )  # fmt: skip


def _scores(
    examples: Sequence[Example], tasks: Sequence[tuple[str, str, Literal["target", "retention"], float, float]]
) -> list[Score]:
    """The mean of each task's outcomes."""
    roles = {task: role for task, _, role, _, _ in tasks}
    values: dict[tuple[str, str], list[float]] = {}
    for example in examples:
        values.setdefault((example.task, example.metric), []).append(example.score)
    return [
        Score(
            task=task,
            metric=metric,
            value=sum(some) / len(some),
            items=len(some),
            role=roles.get(task, "loss"),
            higher_is_better=task in roles,
            majority=0.02 if task in roles else None,
        )
        for (task, metric), some in values.items()
    ]


def _around(middle: float, share: float) -> Interval:
    return Interval(low=middle * (1 - share), mid=middle, high=middle * (1 + share))


def _draw(*of: object) -> np.random.Generator:
    """Random numbers that depend on what they are for and on nothing else."""
    return np.random.default_rng(int(_hash(*of), 16) % LARGEST_SEED)


def _hash(*of: object) -> str:
    return hashlib.sha256("/".join(map(str, of)).encode()).hexdigest()[:8]


@cache
def _item(task: str, i: int) -> str:
    return f"{i}-{_hash(task, i)}"


@cache
def _text(task: str, i: int) -> str:
    return " ".join(str(d) for d in _draw(task, i, "text").integers(1, 10, 4))
