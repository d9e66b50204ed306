"""`harness plan`: what a study will need, before anything is loaded; or how good such forecasts were."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from harness.forecast.processors import Processor
    from harness.intervals import Difference
    from harness.record import Record
    from harness.spec import StudySpec


@click.command(short_help="Say what a study will need: memory, hours, money; nothing is loaded.")
@click.argument("study", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--gpu", help='What it would run on: "RTX 4090", H100, "24 GB", cpu, a file.  [default: this machine]')
@click.option("--probe", is_flag=True, help="First run 20 steps of every arm here, and take the times from them.")
@click.option("--score", is_flag=True, help="Hold the forecasts of finished runs against what they measured.")
@store_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    study: str | None,
    overrides: tuple[str, ...],
    gpu: str | None,
    probe: bool,
    score: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Say for every arm of STUDY what it will need, whether it fits, how long it takes, what it costs, and what the
    study can show. Nothing is loaded or downloaded: the model's config and the lengths of the rows are enough.

    Finished runs in the store on the same processor sharpen the times; --probe makes such runs. With --score: error and
    interval coverage of the forecasts that the records of STUDY, or of all studies, carry.
    """
    if score:
        if gpu is not None or probe or overrides:
            raise click.UsageError("--score reads finished runs; leave out --gpu, --probe and KEY=VALUE.", ctx)
        _score(study, store, as_json)
        return
    if study is None:
        raise click.UsageError("Missing argument 'STUDY'.", ctx)
    import shlex
    import shutil
    import sys

    from harness.budget import plan
    from harness.checks import check_arms
    from harness.cli._bars import Pen
    from harness.cli._forecast import processor_of, records_of
    from harness.cli._plan import render, unicode_fits
    from harness.cli._presets import find_study
    from harness.spec import load_study
    from harness.tasks import check_metric

    spec = load_study(find_study(study), overrides)
    check_arms(spec)
    check_metric(spec)
    processor = processor_of(spec, study, gpu)
    if probe:
        if gpu is not None:
            raise click.UsageError("--probe measures this machine; leave out --gpu.", ctx)
        _probe(spec, processor, store)
    found = plan(spec, processor, records_of(spec, store), _noise(spec, store))
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    named = ctx.get_parameter_source("store") is click.core.ParameterSource.COMMANDLINE
    elsewhere = ["--store", str(store)] if named else []
    start = shlex.join(["harness", "study", study, *overrides, *elsewhere])
    colour = sys.stdout.isatty() if ctx.color is None else ctx.color
    pen = Pen(colour, unicode_fits(sys.stdout.encoding))
    click.echo(render(found, start, shutil.get_terminal_size((100, 24)).columns, pen, probe))


def _probe(spec: "StudySpec", processor: "Processor", store: Path) -> None:
    """Twenty steps of every arm on this machine; their records go to a study of their own in the store."""
    from harness import checks, environment, plugins
    from harness.planning import Forecaster
    from harness.probe import STEPS, probe, probed
    from harness.store import Store

    for warning in checks.require(probed(spec), store):
        click.echo(f"warning: {warning.what}", err=True)

    def tell(arm: str, record: "Record | None") -> None:
        if record is None:
            click.echo(f"probe {arm}: left out, it does not fit", err=True)
        elif record.status == "done":
            click.echo(f"probe {arm}: {STEPS} steps in {record.seconds:.0f} s", err=True)
        else:
            click.echo(f"probe {arm}: {record.status}: {record.detail}", err=True)

    gpus = [] if spec.controls.device == "cpu" else [g["index"] for g in environment.gpus()]
    launcher = plugins.launcher("local", gpus=gpus[:1], workers=1)
    try:
        probe(spec, Store(store), launcher, Forecaster(spec, processor), tell)
    finally:
        launcher.stop()


def _noise(spec: "StudySpec", store: Path) -> "list[Difference]":
    """What confirmed runs of this very study found between its arms."""
    folder = store / spec.name
    if not any((folder / "trials").glob("*.parquet")):
        return []
    from harness.store import StudyStore
    from harness.summary import gather

    study = StudyStore(folder)
    if study.spec().question_id != spec.question_id:
        return []
    compared = gather(study).against(spec.baseline, list(spec.arms))
    return [v.noise for v in compared.verdicts if v.noise] if compared else []


def _score(study: str | None, store: Path, as_json: bool) -> None:
    import shutil

    from harness.cli._plan import render_score
    from harness.scoring import score
    from harness.store import Store

    results = Store(store)
    names = results.studies() if study is None else [study]
    records = [r for name in names for r in results.study(name).records()]
    found = score(records)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    elif not records:
        click.echo(f"no runs in {store}; make some: harness study tiny-methods --store {store}")
    else:
        click.echo(render_score(found, str(store), min(shutil.get_terminal_size((100, 24)).columns, 120)))
