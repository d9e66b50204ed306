"""`harness sync`: send the runs that are kept on disk to Weights & Biases."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import json_option, store_option

if TYPE_CHECKING:
    from harness.store import StudyStore

RUNS_PER_CALL = 50
"""Runs handed to the client at a time, so that one call cut short does not take all others with it."""
SECONDS_PER_CALL = 60
SECONDS_PER_RUN = 20


@dataclass(frozen=True)
class Waiting:
    """What a study has that the server lacks."""

    ready: list[str]
    """Folders of runs to be sent."""
    unwritten: list[str]
    """Ids of trials whose run has yet to be written (left so by a dry run only)."""
    stale: list[str]
    """Folders of runs that belong to no result; they are not sent."""


@click.command(short_help="Send what is kept on disk to Weights & Biases.")
@click.argument("study", required=False)
@click.option("--dry-run", is_flag=True, help="List what would be sent; write and send nothing.")
@store_option
@json_option
def command(study: str | None, dry_run: bool, store: Path, as_json: bool) -> None:
    """Send the runs of STUDY, or of every study, that Weights & Biases does not have yet.

    Trials without a run (they were killed, or ran without W&B) get one first, made from the results.
    """
    import os
    from importlib.util import find_spec

    from harness.connection import answers, endpoint, has_key
    from harness.errors import NotReady, PluginError
    from harness.store import Store

    if find_spec("wandb") is None:
        raise PluginError("harness.trackers.wandb needs 'wandb'", "pip install 'finetune-harness[wandb]'")
    results = Store(store)
    studies = [results.study(name) for name in ([study] if study else results.studies())]
    if study is None:  # what others have published is sent when it is asked for by name
        studies = [s for s in studies if s.spec().origin is None]
    waiting = {s.folder.name: look(s, os.environ, write=not dry_run) for s in studies}
    ready = [Path(path) for found in waiting.values() for path in found.ready]
    if dry_run or not ready:
        _show(waiting, 0, as_json)
        return
    if not has_key(os.environ):
        raise NotReady(f"{_runs(len(ready))} waiting in {store}, and there is no W&B key", "wandb login")
    host, port = endpoint(os.environ)
    if not answers(host, port):
        raise NotReady(
            f"{_runs(len(ready))} waiting in {store}, and {host} does not answer", "harness sync, once it does"
        )
    said = send(ready, _client(os.environ))
    left = sum(not _is_sent(path) for path in ready)
    if left:
        raise NotReady(f"{left} of {_runs(len(ready))} not sent; W&B said: {said}", "harness sync sends the rest")
    _show(waiting, len(ready), as_json)


def look(study: "StudyStore", environment: Mapping[str, str], *, write: bool) -> Waiting:
    """What a study has to send, after writing the runs that were missing."""
    from harness.connection import tracker_settings
    from harness.trackers import wandb

    settings = tracker_settings("offline", environment, study.folder)
    folder = Path(settings["folder"])
    if write:
        wandb.publish_missing(study, folder, settings["project"], settings["entity"])
    stale = wandb.stale(study, folder)
    ready = [path for path in wandb.unsent(folder) if path not in stale]
    return Waiting(_texts(ready), wandb.missing(study, folder), _texts(stale))


def send(paths: Sequence[Path], client: Callable[[Sequence[Path]], str]) -> str:
    """Hand the runs over in groups; what the client said last."""
    said = ""
    for start in range(0, len(paths), RUNS_PER_CALL):
        said = client(paths[start : start + RUNS_PER_CALL]) or said
    return said


def _client(environment: Mapping[str, str]) -> Callable[[Sequence[Path]], str]:
    """`wandb sync` in a process of its own, which can neither ask nor hang; it returns what it said last."""
    # a resumed run is appended to: sent twice, it would have its rows twice
    variables = {k: v for k, v in environment.items() if k != "WANDB_RESUME"}

    def call(paths: Sequence[Path]) -> str:
        limit = SECONDS_PER_CALL + SECONDS_PER_RUN * len(paths)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                ended = subprocess.run(
                    [sys.executable, "-m", "wandb", "sync", *_texts(paths)],
                    env=variables | {"WANDB_DIR": scratch},  # for its logs, else in the current folder
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"nothing for {limit} s"
        return next((line for line in reversed(ended.stdout.splitlines()) if line.strip()), "")

    return call


def _is_sent(path: Path) -> bool:
    from harness.trackers import wandb

    return wandb.is_sent(path)


def _show(waiting: Mapping[str, Waiting], sent: int, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(
            json.dumps({"sent": sent, "studies": {name: asdict(found) for name, found in waiting.items()}}, indent=2)
        )
        return
    for name, found in waiting.items():
        for path in found.ready:
            click.echo(f"{name}  {Path(path).name}")
        for trial in found.unwritten:
            click.echo(f"{name}  {trial} (its run is yet to be written)")
        for path in found.stale:
            click.echo(f"{path} belongs to no result and is not sent", err=True)
    click.echo(f"{_runs(sent)} sent", err=True)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _texts(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]
