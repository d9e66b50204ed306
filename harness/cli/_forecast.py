"""What `harness plan` and `harness study` forecast with: the processor, and finished runs that sharpen the times."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.forecast.processors import Processor
    from harness.record import Record
    from harness.spec import StudySpec


def processor_of(spec: "StudySpec", study: str, gpu: str | None) -> "Processor":
    """What is named, else this machine's GPU, or its CPU for a study that does not ask for a GPU."""
    from harness.errors import SpecError
    from harness.forecast import processors

    if gpu is not None:
        return processors.find(gpu)
    if spec.controls.device == "cpu":
        return processors.find("cpu")
    here = processors.here()
    if spec.controls.device == "cuda" and here.kind != "cuda":
        raise SpecError(
            f"{spec.name} needs a GPU (controls.device is cuda) and this machine has none to plan for",
            f'name one: harness plan {study} --gpu "RTX 4090"   (or a size: --gpu "24 GB")',
        )
    return here


def records_of(spec: "StudySpec", store: Path) -> "list[Record]":
    """Finished runs of studies on the same model, which may sharpen the forecast. What was imported was timed otherwise
    and is left out."""
    if not store.is_dir():
        return []
    from harness.errors import HarnessError
    from harness.spec import load_study

    found: list[Record] = []
    for path in sorted(store.glob("*/study.yaml")):
        try:
            known = load_study(path)
            if known.origin is None and known.controls.model == spec.controls.model:
                from harness.store import StudyStore

                found += StudyStore(path.parent).records()
        except HarnessError as error:
            click.echo(f"warning: runs of {path.parent.name} are not used: {error.message}", err=True)
    return found
