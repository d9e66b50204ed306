"""PEFT's published method comparison (MetaMathQA, judged on GSM8K): one arm per experiment, one seed each."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from harness.errors import StoreError
from harness.importers._peft_results import DTYPES, FORGETTING_SINCE, Result, Unreadable, read_result
from harness.interfaces import Imported, Importer
from harness.record import Record, Score, Stage, Status, Step, Training
from harness.spec import (
    Arm,
    Confirm,
    Controls,
    DataSource,
    Evaluation,
    ModelSource,
    Objective,
    Origin,
    Scalar,
    Search,
    StudySpec,
)
from harness.spec import Training as TrainSettings
from harness.trial import Trial

TOOL = "PEFT"
DATA = "meta-math/MetaMathQA"
METRIC = "gsm8k/accuracy"
TEST_ITEMS = 1319
"""The test split of GSM8K, all of which every run is asked."""
VALIDATION_ITEMS = 50
ARTICLES = 100
"""Of Wikipedia, on which the loss before and after is measured."""
WARMUP_RATIO = 0.1

SETTINGS: dict[str, tuple[str, Any]] = {
    "max_steps": ("max_steps", 5000),
    "batch": ("batch_size", 4),
    "max_length": ("max_seq_length", 768),
    "schedule": ("lr_scheduler", "cosine"),
    "max_grad_norm": ("grad_norm_clip", 1.0),
    "gradient_checkpointing": ("use_gc", False),
}
"""Settings of training that runs share as a rule: ours, theirs, and PEFT's default where they do not."""
OPTIMIZER, WEIGHT_DECAY = "AdamW", 0.1
"""PEFT's defaults, which many experiments replace together with the learning rate."""

RENAMED = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
NOT_PARAMS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_core",
}  # fmt: skip
"""Of a PEFT config: what says nothing of how it was trained."""


class Peft:
    def read(self, path: Path) -> Imported:
        results, skipped = _read_all(path)
        _one_model(results, path)
        results, doubles = _distinct(results)
        controls = _controls(results)
        arms = {_arm_name(r): _arm(r, controls.train) for r in results}
        spec = _study(controls, arms, sorted({r.train.seed for r in results}))
        records = [_record(r, spec) for r in results]
        return Imported(spec=spec, records=records, skipped=skipped | doubles, notes=_notes(results))


def _read_all(path: Path) -> tuple[list[Result], dict[str, str]]:
    """Every result in a folder and below it, or in one file; and why others are none."""
    if not path.exists():
        raise StoreError(
            f"{path} does not exist", "a clone of huggingface/peft has method_comparison/MetaMathQA/results"
        )
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise StoreError(f"{path} holds no .json file", "name the folder `results` of PEFT's method comparison")
    results, skipped = [], {}
    for file in files:
        try:
            results.append(read_result(file))
        except Unreadable as reason:
            skipped[file.name] = str(reason)
    if not results:
        name, why = next(iter(skipped.items()))
        raise StoreError(
            f"{path} holds no result of PEFT's MetaMathQA comparison; {name} {why}",
            "name the folder `results` of PEFT's method_comparison/MetaMathQA",
        )
    return results, skipped


COMMITS: dict[str, Callable[[Result], str | None]] = {
    "the model": lambda r: r.model_sha,
    "the training data": lambda r: r.meta_info.dataset_info.metamath.sha,
    "the test data": lambda r: r.meta_info.dataset_info.gsm8k.sha,
}


def _one_model(results: Sequence[Result], path: Path) -> None:
    """Raises StoreError where the models differ: such results do not belong into one table."""
    found = Counter(r.train.model_id for r in results)
    if len(found) > 1:
        raise StoreError(
            f"{path} holds results of {len(found)} models: {_counted(found)}",
            "give each a folder of its own and import them one by one, each with its own --name",
        )


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())


def _distinct(results: Sequence[Result]) -> tuple[list[Result], dict[str, str]]:
    """One result per arm and seed, the newest of several; and those that were left out."""
    kept: dict[tuple[str, int], Result] = {}
    left: dict[str, str] = {}
    for result in sorted(results, key=lambda r: (r.run_info.created_at, r.file), reverse=True):
        newest = kept.setdefault((_arm_name(result), result.train.seed), result)
        if newest is not result:
            left[result.file] = f"is an older result of the arm that {newest.file} is of"
    return sorted(kept.values(), key=lambda r: (_arm_name(r), r.train.seed)), left


def _controls(results: Sequence[Result]) -> Controls:
    """What all runs share; a setting in which some differ is PEFT's default here, and theirs in their arms."""
    first = results[0].train

    def commit(of: str) -> str | None:
        known = {sha for r in results if (sha := COMMITS[of](r)) is not None}
        return known.pop() if len(known) == 1 else None

    def shared(theirs: str, default: Any) -> Any:
        values = {getattr(r.train, theirs) for r in results}
        return values.pop() if len(values) == 1 else default

    settings = {ours: shared(*theirs) for ours, theirs in SETTINGS.items()}
    return Controls(
        model=ModelSource(id=first.model_id, revision=commit("the model")),
        data=DataSource(
            path=DATA, revision=commit("the training data"), validation_rows=VALIDATION_ITEMS, test_rows=TEST_ITEMS,
            columns={"prompt": "query", "completion": "response"},
        ),
        train=TrainSettings.model_validate(
            settings
            | {
                "schedule": settings["schedule"] or "constant",
                "warmup_ratio": WARMUP_RATIO if settings["schedule"] else 0.0,
                "weight_decay": WEIGHT_DECAY,
                "optimizer": "adamw_torch",
                "compute_dtype": DTYPES[shared("dtype", "bfloat16")],
                "adapter_dtype": "fp32",
            }
        ),
        evaluate=Evaluation(
            tasks=["gsm8k"], retention=[], batch=shared("batch_size_eval", VALIDATION_ITEMS), chat_template=False
        ),
        device="cuda",
    )  # fmt: skip


def _arm(result: Result, shared: TrainSettings) -> Arm:
    """The method with its own settings, and those of training in which it differs from the rest."""
    train, config = result.train, result.run_info.peft_config
    own: dict[str, Scalar] = {"learning_rate": train.optimizer_kwargs.lr}
    for ours, (theirs, _) in SETTINGS.items():
        value = getattr(train, theirs)
        value = "constant" if ours == "schedule" and value is None else value
        if value != getattr(shared, ours):
            own[ours] = value
    if train.optimizer_kwargs.weight_decay != shared.weight_decay:
        own["weight_decay"] = train.optimizer_kwargs.weight_decay
    if train.optimizer_type != OPTIMIZER:
        own["optimizer"] = train.optimizer_type
    if config is not None and not train.autocast_adapter_dtype:
        own["adapter_dtype"] = DTYPES[train.dtype]
    method = "full" if config is None else str(config.get("peft_type", "unknown")).lower()
    return Arm(method=method, quantization=DTYPES[train.dtype], params=own | _params(config or {}))


def _params(config: dict[str, Any]) -> dict[str, Scalar]:
    """The scalars of a PEFT config but for what is off (none, false, 0); modules as one text."""
    found: dict[str, Scalar] = {}
    for name, value in config.items():
        if isinstance(value, list) and name == "target_modules":
            value = ",".join(sorted(map(str, value)))
        plain = isinstance(value, bool | int | float | str)
        if plain and name not in NOT_PARAMS and value not in (0, "", "none") and math.isfinite(_number(value)):
            found[RENAMED.get(name, name)] = value
    if "init_r" in found:  # AdaLoRA begins at a rank of its own and does not use `r`
        found["rank"] = found["init_r"]
    return found


def _number(value: Scalar) -> float:
    return 0.0 if isinstance(value, str) else float(value)


def _arm_name(result: Result) -> str:
    """A short name from the experiment's: without the model, numbers without a point (`lr_0.0005` -> `lr-5e-4`)."""
    method, _, rest = result.run_info.experiment_name.partition("/")
    model = result.train.model_id.rpartition("/")[2]
    rest = re.sub(rf"^{re.escape(model)}(?:-|$)", "", rest, flags=re.IGNORECASE)
    rest = re.sub(r"(?<![A-Za-z])lr[_-]?(?=\d)", "lr-", rest)
    rest = re.sub(r"\d+\.\d+(?:e-?\d+)?", lambda m: _whole(m[0]), rest)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{method}-{rest}").strip("-_")
    return name or "unnamed"


def _whole(text: str) -> str:
    """A decimal number as whole digits and a power of ten."""
    _, digits, exponent = Decimal(text).normalize().as_tuple()
    mantissa, power = "".join(map(str, digits)), cast(int, exponent)
    return mantissa + (f"e{power}" if power < 0 else "0" * power)


def _study(controls: Controls, arms: dict[str, Arm], seeds: list[int]) -> StudySpec:
    full = [name for name, arm in arms.items() if arm.method == "full"]
    return StudySpec(
        name=f"{TOOL.lower()}-{DATA.rpartition('/')[2].lower()}",
        question=f"{TOOL}'s method comparison: {controls.model.id} trained on {DATA}, judged on GSM8K",
        controls=controls,
        arms=arms,
        search=Search(trials=1, seed=max(seeds) + 1),
        confirm=Confirm(seeds=seeds),
        objective=Objective(metric=METRIC, baseline=full[0] if full else None),
        origin=Origin(
            tool=TOOL,
            url="https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA",
            licence="Apache-2.0",
            note="how much each method was tuned is not known; peak memory is of the whole run, answering 50 questions "
            "at a time included",
        ),
    )


def _record(result: Result, spec: StudySpec) -> Record:
    name = _arm_name(result)
    arm = spec.arms[name]
    trial = Trial(
        study=spec.name,
        arm=name,
        phase="confirm",
        seed=result.train.seed,
        method=arm.method,
        quantization=arm.quantization,
        params=arm.params,
        controls=spec.controls,
        model_digest=COMMITS["the model"](result) or "unknown",
        data_digest=COMMITS["the training data"](result) or "unknown",
    )
    status, detail = _status(result)
    return Record(
        trial=trial,
        trial_id=trial.id,
        question_id=spec.question_id,
        status=status,
        detail=detail,
        started_at=result.run_info.created_at,
        seconds=result.run_info.total_time,
        train=_training(result),
        stages=_stages(result),
        steps=_steps(result),
        scores=_scores(result) if status == "done" else [],
        resolved=_resolved(result),
        environment=_environment(result),
        data={"commits": result.raw["meta_info"]["dataset_info"]},
        origin=TOOL,
    )


def _status(result: Result) -> tuple[Status, str | None]:
    """PEFT files whatever went wrong under `canceled`; its message tells one from the other."""
    if result.train_info.status == "success":
        return "done", None
    message = result.run_info.error_msg.strip().partition("\n")[0] or f"PEFT says: {result.train_info.status}"
    return ("out_of_memory" if "out of memory" in message.lower() else "failed"), message


def _training(result: Result) -> Training | None:
    timed, info = result.timed, result.train_info
    if not timed:
        return None
    seconds = sum(m.train_time or 0.0 for m in timed)
    counted = result.tested.total_tokens if result.tested else None
    tokens = round(sum((m.tokens_per_second or 0.0) * (m.train_time or 0.0) for m in timed))
    tokens = tokens if counted is None else counted
    return Training(
        steps=timed[-1].step,
        tokens=tokens,
        padded_share=None,
        tokens_per_second=tokens / seconds if seconds > 0 else None,
        warmup_steps_excluded=0,
        loop_seconds=seconds,
        final_loss=timed[-1].train_loss,
        trainable_parameters=info.num_trainable_params,
        total_parameters=info.num_total_params,
    )


def _stages(result: Result) -> list[Stage]:
    """Training alone: the rest of the time cannot be told apart. The peak is that of the whole process.

    None for a run that ended before its first times were logged; its peak is in `resolved`.
    """
    if not result.timed:
        return []
    seconds = sum(m.train_time or 0.0 for m in result.timed)
    return [Stage(stage="train", seconds=seconds, reserved_peak_bytes=result.train_info.accelerator_memory_max)]


def _steps(result: Result) -> list[Step]:
    passed, steps = 0.0, []
    for metric in result.timed:
        passed += metric.train_time or 0.0
        steps.append(Step(step=metric.step, loss=metric.train_loss, seconds=passed))
    return steps


def _scores(result: Result) -> list[Score]:
    tested = result.tested
    if tested is None or tested.test_accuracy is None:
        return []
    task, metric = METRIC.split("/")
    accuracy = Score(
        task=task,
        metric=metric,
        value=tested.test_accuracy,
        items=TEST_ITEMS,
        role="target",
        higher_is_better=True,
    )
    if tested.forgetting is None or not math.isfinite(tested.forgetting) or not _trusted(result):
        return [accuracy]
    forgetting = Score(
        task="wiki_forgetting",
        metric="loss",
        value=tested.forgetting,
        items=ARTICLES,
        role="loss",
        higher_is_better=False,
    )
    return [accuracy, forgetting]


def _trusted(result: Result) -> bool:
    """Whether its loss on Wikipedia was computed rightly."""
    return result.run_info.created_at >= FORGETTING_SINCE


def _resolved(result: Result) -> dict[str, Any]:
    """Everything else that the file says of the run, under PEFT's names."""
    run, train = result.raw["run_info"], result.raw["train_info"]
    return {
        "file": result.file,
        **{k: v for k, v in run.items() if k not in {"created_at", "total_time", "error_msg"}},
        **{k: v for k, v in train.items() if k not in {"metrics", "status"}},
    }


def _environment(result: Result) -> dict[str, Any]:
    """Hardware and packages, named as in our own records."""
    packages, system = result.meta_info.package_info, result.meta_info.system_info
    kinds: dict[str, dict[str, str]] = {"version": {}, "commit-hash": {}}
    for key, value in packages.items():
        for kind, found in kinds.items():
            if value is not None and key.endswith(f"-{kind}"):
                found[key.removesuffix(f"-{kind}")] = value
    return {
        "system": " ".join(system[k] for k in ("system", "machine") if k in system),
        "kernel": system.get("release"),
        "gpus": [{"name": result.gpu}] if result.gpu else [],
        "packages": kinds["version"],
        "commits": kinds["commit-hash"],
    }


def _notes(results: Sequence[Result]) -> list[str]:
    done = [r for r in results if r.train_info.status == "success"]
    wrong = [r for r in done if not _trusted(r)]
    notes = []
    if wrong:
        day = FORGETTING_SINCE.date().isoformat()
        notes.append(f"{len(wrong)} of {len(done)} made before {day} are without wiki_forgetting: it was wrong then")
    kinds = {f"versions of {name}": _version_of(name) for name in ("peft", "transformers", "torch")}
    kinds |= {f"commits of {name}": ask for name, ask in COMMITS.items()}
    kinds["GPUs"] = lambda r: r.gpu
    for kind, ask in kinds.items():
        found = Counter(answer for r in results if (answer := ask(r)) is not None)
        if len(found) > 1:
            notes.append(f"several {kind}: {_counted(found)}")
    return notes


def _version_of(package: str) -> Callable[[Result], str | None]:
    return lambda r: r.meta_info.package_info.get(f"{package}-version")


plugin: Importer = Peft()
