"""`harness study`: run a study, or go on with it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.planning import Forecaster
    from harness.record import Record
    from harness.spec import StudySpec
    from harness.store import StudyStore


@click.command(short_help="Run a study, or go on with it.")
@click.argument("study")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@store_option
@click.option("--workers", type=click.IntRange(1), help="Trials at a time on a CPU.  [default: one per core]")
@click.option(
    "--wandb",
    type=click.Choice(["auto", "online", "offline", "off"]),
    default="auto",
    show_default=True,
    help="Weights & Biases; auto is online with a key and a network, offline otherwise.",
)
@click.option("--retry-failed", is_flag=True, help="Run failed trials again, after mending what made them fail.")
@click.option("--run-anyway", is_flag=True, help="Also run what is forecast not to fit into memory.")
@json_option
def command(
    study: str,
    overrides: tuple[str, ...],
    store: Path,
    workers: int | None,
    wandb: str,
    retry_failed: bool,
    run_anyway: bool,
    as_json: bool,
) -> int:
    """Run STUDY (a name from `harness presets ls`, or a file) to its end and say what it found.

    Settings of the file are overridden by KEY=VALUE, e.g. controls.data.path=my.jsonl search.trials=6. The same command
    goes on where it stopped. What is forecast not to fit is recorded and not run; what does not fit, or was out of
    memory, goes on at half the micro-batch. Ends with 3 when some trials failed (out of memory is a result, not a
    failure).
    """
    import json

    from harness import checks, environment, plugins
    from harness.cli._presets import find_study
    from harness.cli._progress import watcher
    from harness.cli._table import render
    from harness.spec import load_study
    from harness.store import Store
    from harness.summary import summarise
    from harness.tasks import check_metric

    spec = load_study(find_study(study), overrides)
    checks.check_arms(spec)
    check_metric(spec)
    for warning in checks.require(spec, store):
        click.echo(f"warning: {warning.what}", err=True)
    from harness.study import run_study  # imports Optuna, which is not needed to refuse a study

    results = Store(store)
    folder = store / spec.name
    gpus = [] if spec.controls.device == "cpu" else [g["index"] for g in environment.gpus()]
    launcher = plugins.launcher("local", gpus=gpus, workers=workers)
    trackers = _trackers(wandb, folder)
    click.echo(f"study {spec.name} -> {folder}   W&B {trackers['wandb']['mode'] if trackers else 'off'}", err=True)
    progress = watcher(spec, launcher.slots)
    try:
        outcome = run_study(
            spec, results, launcher, progress, trackers=trackers, retry_failed=retry_failed,
            forecaster=_forecaster(spec, store), run_anyway=run_anyway,
        )  # fmt: skip
    finally:
        progress.close()
    if outcome.interrupted:
        click.echo(f"stopped with {len(outcome.records)} runs kept. Go on with the same command.", err=True)
        return 130
    if trackers:
        _complete_view(results.study(spec.name), trackers["wandb"])
    _compact(results.study(spec.name))
    summary = summarise(results.study(spec.name))
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
    else:
        click.echo(render(summary))
        _bits(results.study(spec.name), spec)
        click.echo(f"\nmore: harness show {spec.name}, harness compare ARM ARM --study {spec.name}", err=True)
    for line in _memory_lines(outcome.records, folder):
        click.echo(line, err=True)
    if not outcome.failed:
        return 0
    for reason, some in _by_reason(outcome.failed).items():
        log = folder / (some[0].log_path or "")
        click.echo(f"{len(some)} {some[0].status}: {reason}; the first: {some[0].trial.label}, log {log}", err=True)
    how = "with the same command" if all(r.status == "killed" for r in outcome.failed) else "with --retry-failed"
    click.echo(f"run them again {how} once the cause is mended", err=True)
    return 3


def _compact(store: "StudyStore") -> None:
    """Merge the files of a long study, which would read slowly."""
    from harness.cli.compact import compact_if_long
    from harness.errors import StoreError

    try:
        done = compact_if_long(store)
    except StoreError as error:  # another command goes on with the study; nothing depends on it
        click.echo(f"warning: not compacted: {error.message}", err=True)
        return
    if done is not None:
        click.echo(f"the files of {done.did.runs} runs were merged into one per table, which read faster", err=True)


def _bits(store: "StudyStore", spec: "StudySpec") -> None:
    """What a study about bit-widths says of them, in short."""
    from harness.bits import MANY, answer, asks
    from harness.cli._bits import brief

    if asks(spec, more_than=MANY):
        click.echo(f"\n{brief(answer(store))}")
        click.echo(f"\nmore on bit-widths: harness bits {spec.name}", err=True)


def _forecaster(spec: "StudySpec", store: Path) -> "Forecaster | None":
    """Forecasts for this machine, sharpened by what the store has measured; None where the model has none."""
    from harness.cli._forecast import processor_of, records_of
    from harness.planning import Forecaster

    try:
        return Forecaster(spec, processor_of(spec, spec.name, None), records_of(spec, store))
    except Exception as error:  # whatever is wrong with it, a study runs without a forecast
        click.echo(f"warning: no forecast: {str(error) or type(error).__name__}", err=True)
        return None


def _memory_lines(records: "Sequence[Record]", folder: Path) -> "Iterator[str]":
    """What became of the forecasts, and what did not fit."""
    from harness.record import outcomes
    from harness.summary import forecast_error

    error = forecast_error(records)
    shares = [(name, e) for name, e in (("time", error.time), ("memory", error.memory)) if e is not None]
    if shares:
        said = ", ".join(f"{name} {100 * e:.2g} %" for name, e in shares)
        yield f"forecast: {said} off at the median ({error.runs} done); more: harness plan --score"
    refused = [r for r in outcomes(records) if r.status == "does_not_fit"]
    if refused:
        arms = ", ".join(dict.fromkeys(r.trial.arm for r in refused))
        some, them = ("1 run does", "it") if len(refused) == 1 else (f"{len(refused)} runs do", "them")
        yield f"{some} not fit: {arms}; the first: {refused[0].detail}"
        yield f"run {them} anyway with --run-anyway, or see what would fit: harness plan {folder / 'study.yaml'}"


def _by_reason(records: "Sequence[Record]") -> "dict[str, list[Record]]":
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.detail or record.status, []).append(record)
    return grouped


def _trackers(requested: str, folder: Path) -> dict[str, dict[str, str]]:
    from typing import cast

    from harness.connection import Requested, answers, resolve_mode, tracker_settings
    from harness.environment import package_version

    mode = resolve_mode(cast(Requested, requested), os.environ, answers)
    if mode == "off" or package_version("wandb") is None:
        return {}
    return {"wandb": tracker_settings(mode, os.environ, folder.absolute())}


def _complete_view(store: "StudyStore", settings: dict[str, str]) -> None:
    """Give W&B the runs whose own processes could not: those that were killed."""
    from harness.trackers import wandb

    try:
        wandb.publish_missing(store, Path(settings["folder"]), settings["project"], settings["entity"])
    except Exception as error:  # a copy must not spoil a study that is done, whatever its client raises
        click.echo(f"warning: W&B lacks some runs ({error}); write them later with: harness sync", err=True)
