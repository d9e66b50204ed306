"""Forecast against measurement on one GPU: full, LoRA, int8 and nf4 on a 7B shape, with and without checkpointing.

    python benchmarks/gpu/forecast.py [--shape llama2-7b|small] [--steps 6] [--lengths 512 2048] [--out FOLDER]

Every configuration is one trial of the project's own code in a fresh process, on a base with random weights made on the
spot; memory and time are real, scores mean nothing and the records say so. The table is printed last; records and
`forecast.json` are left under FOLDER (default: $OUT, else results/gpu-forecast). `--shape small` tries it on a CPU.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from methods import long_rows, random_model

from harness import sources
from harness.forecast import processors
from harness.interfaces import Job
from harness.launchers.local import Local
from harness.planning import Forecaster
from harness.record import Interval, Record
from harness.spec import StudySpec, load_study
from harness.store import Store
from harness.trial import Trial

STUDY = Path(__file__).parents[2] / "studies" / "llama2-7b-methods.yaml"


@dataclass(frozen=True)
class Line:
    """One configuration: what was expected of a number, and what it was."""

    configuration: str
    status: str
    what: str
    """`allocated`, `reserved`, `process` (GB) or `step` (seconds)."""
    low: float
    mid: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        return self.mid / self.measured - 1

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("llama2-7b", "small"), default="llama2-7b")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="tokens per sequence")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "results/gpu-forecast")))
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    scratch = Path(os.environ.get("TMPDIR", "/var/tmp")) / f"harness-{options.shape}"  # noqa: S108 named per shape
    model = random_model(options.shape, scratch / "model", on_gpu)
    if on_gpu:
        torch.cuda.empty_cache()
    processor = processors.here()
    launcher = Local(gpus=[0] if on_gpu else None, workers=1)
    lines: list[Line] = []
    try:
        for length in options.lengths:
            for checkpointing in (True, False):
                spec = study(
                    options, model, long_rows(scratch / f"rows-{length}.jsonl", length), length, checkpointing, on_gpu
                )
                forecaster = Forecaster(spec, processor)
                folder = Store(options.out).open(spec).folder
                for trial in trials(spec, on_gpu):
                    expected = forecaster.trial(trial)
                    job = Job(trial=trial, question_id=spec.question_id, folder=folder.absolute(), forecast=expected)
                    record = launcher.run(job, lambda event: None)
                    name = f"{trial.arm} {length} {'checkpointing' if checkpointing else 'all kept'}"
                    print(
                        f"{name}: {record.status} in {record.seconds:.0f} s; forecast to fit: {expected.fits}",
                        flush=True,
                    )
                    lines += compared(name, record, options.steps)
    finally:
        launcher.stop()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "forecast.json").write_text(json.dumps([asdict(line) for line in lines], indent=1))
    print(table(lines, processor.name))


def study(
    options: argparse.Namespace, model: Path, data: Path, length: int, checkpointing: bool, on_gpu: bool
) -> StudySpec:
    """The 7B study with one length and a few steps."""
    compute = "bf16" if on_gpu else "fp32"
    name = f"{options.shape}-{length}-{'checkpointing' if checkpointing else 'kept'}"
    return load_study(STUDY, [
        f"name={name}", f"controls.model.id={model}", f"controls.data.path={data}",
        "controls.data.validation_rows=16", "controls.data.test_rows=16", "controls.evaluate.tasks=[]",
        "controls.evaluate.retention=[]", "controls.evaluate.batch=4", f"controls.device={'cuda' if on_gpu else 'cpu'}",
        f"controls.train.max_steps={options.steps}", f"controls.train.max_length={length}",
        f"controls.train.batch={2 * options.micro_batch}", f"controls.train.micro_batch={options.micro_batch}",
        f"controls.train.gradient_checkpointing={str(checkpointing).lower()}",
        f"controls.train.compute_dtype={compute}", "objective.metric=test_loss",
        f"arms.full.quantization={compute}", f"arms.lora.quantization={compute}",
    ])  # fmt: skip


def trials(spec: StudySpec, on_gpu: bool) -> Iterator[Trial]:
    """One trial per arm; full fine-tuning only where layers are computed again: 7B does not fit a card without."""
    model = sources.find_model(spec.controls.model).digest
    data = sources.find_data(spec.controls.data).digest
    for name, arm in spec.arms.items():
        if name == "full" and on_gpu and not spec.controls.train.gradient_checkpointing:
            continue
        yield Trial(
            study=spec.name, arm=name, phase="search", seed=0, method=arm.method, quantization=arm.quantization,
            params={**arm.params, "learning_rate": 1e-5}, controls=spec.controls, model_digest=model, data_digest=data,
        )  # fmt: skip


def compared(name: str, record: Record, steps: int) -> Iterator[Line]:
    """The numbers of a record beside those of its forecast."""
    expected = record.forecast
    if expected is None:
        return
    stage = next((s for s in record.stages if s.stage == "train"), None)
    if stage is not None and stage.allocated_peak_bytes:
        measured = (("allocated", expected.allocated_bytes, stage.allocated_peak_bytes),
                    ("reserved", expected.reserved_bytes, stage.reserved_peak_bytes),
                    ("process", expected.process_bytes, stage.device_peak_bytes))  # fmt: skip
        for what, interval, bytes_used in measured:
            if interval is not None and bytes_used:
                yield line(name, record, what, interval, bytes_used, 1e9)
    elif record.memory is not None and record.memory.peak:
        yield line(name, record, "tensors", expected.allocated_bytes, record.memory.peak, 1e9)
    train = expected.stage_seconds.get("train")
    if record.train is not None and train is not None:
        yield line(name, record, "step", train, record.train.loop_seconds, record.train.steps or steps)


def line(name: str, record: Record, what: str, interval: Interval, measured: float, unit: float) -> Line:
    return Line(
        name, record.status, what, interval.low / unit, interval.mid / unit, interval.high / unit, measured / unit
    )


def table(lines: list[Line], processor: str) -> str:
    rows = [
        f"{processor}: GB, seconds per step",
        f"{'configuration':34}{'what':10}{'forecast [90 %]':>26}{'measured':>10}{'error':>8}",
    ]
    for each in lines:
        interval = f"{each.mid:.3g} [{each.low:.3g}, {each.high:.3g}]"
        mark = "" if each.inside else "  outside"
        rows.append(f"{each.configuration:34}{each.what:10}{interval:>26}{each.measured:10.3g}{each.error:+8.1%}{mark}")
    for what in dict.fromkeys(each.what for each in lines):
        some = [each for each in lines if each.what == what]
        mape = sum(abs(each.error) for each in some) / len(some)
        rows.append(
            f"{what}: n {len(some)}, mean error {mape:.1%}, inside {sum(e.inside for e in some)} of {len(some)}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
