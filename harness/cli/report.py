"""`harness report`: the decision as one file to pass on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli._options import limit_options, only, store_option

if TYPE_CHECKING:
    from harness.recommend import Limits

STDOUT = "-"


@click.command(short_help="Write the decision as one file: a page, Markdown or JSON.")
@click.argument("study", required=False)
@click.option("--html", metavar="FILE", help="A page of its own that opens without a network.")
@click.option(
    "--md",
    metavar="[FILE]",
    is_flag=False,
    flag_value=STDOUT,
    help="Markdown for a pull request; without FILE to stdout.",
)
@click.option("--json", "json_", metavar="FILE", help="decision.json, for scripts; '-' is stdout.")
@limit_options
@store_option
def command(
    study: str | None, html: str | None, md: str | None, json_: str | None, limits: "Limits", store: Path
) -> int:
    """Write what STUDY says under your limits as one file, in the words of `harness recommend` with the same limits.

    Ends with 0 when it is written, whatever the verdict is; `harness recommend` tells by its exit code.
    """
    from harness import report
    from harness.decision import make
    from harness.store import Store
    from harness.summary import gather, summarise

    results = Store(store)
    if html is md is json_ is None:
        raise click.UsageError("nothing to write: name --html FILE, --md [FILE] or --json FILE")
    if md is not None and study is None and md in results.studies():
        raise click.UsageError(f"--md {md} would write a file of that name; put the study first: report {md} --md")
    _may_be_written({"--html": html, "--md": md, "--json": json_})
    one = results.study(study or only(results.studies(), store))
    evidence = gather(one, limits.metric)
    summary = summarise(one, evidence)
    decision = make(one, evidence, summary, limits)
    if html is not None:
        _write(html, report.html(evidence, summary, decision, html if html == STDOUT else Path(html).name))
    if md is not None:
        _write(md, report.markdown(evidence, summary, decision))
    if json_ is not None:
        _write(json_, report.decision_json(decision))
    return 0


def _may_be_written(outputs: dict[str, str | None]) -> None:
    """Raises SpecError where a file is there that is none of ours, before anything is read or written."""
    from harness.errors import SpecError
    from harness.report import HTML_MARK, JSON_MARK, MD_MARK

    marks = {"--html": HTML_MARK, "--md": MD_MARK, "--json": JSON_MARK}
    for option, name in outputs.items():
        path = Path(name) if name and name != STDOUT else None
        if path is None or not path.exists():
            continue
        if path.is_dir():
            raise SpecError(f"{option} {path} is a folder", f"name a file in it: {option} {path / 'report'}")
        if path.stat().st_size and marks[option] not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise SpecError(f"{path} is there and was not written by {option}", "name another file, or remove it first")


def _write(name: str, text: str) -> None:
    if name == STDOUT:
        click.echo(text, nl=False)
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    click.echo(f"{path}  {len(text.encode()) / 1000:.0f} kB", err=True)
