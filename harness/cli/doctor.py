"""`harness doctor`: whether this machine can run a study, and what to do where it cannot."""

from pathlib import Path

import click

from harness.cli._options import json_option, store_option


@click.command(short_help="Check this machine, and what a study needs of it.")
@click.argument("study", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", metavar="ID", help="Check access to this model instead of the study's.")
@store_option
@json_option
def command(study: str | None, overrides: tuple[str, ...], model: str | None, store: Path, as_json: bool) -> int:
    """Check this machine, and what STUDY needs of it. Ends with 4 when something is missing."""
    import dataclasses
    import json

    from harness import checks
    from harness.cli._presets import find_study
    from harness.errors import NotReady
    from harness.spec import load_study

    if study is None:
        found = checks.check_machine(store, model)
    else:
        changes = [*overrides, *([f"controls.model.id={model}"] if model else [])]
        found = checks.check(load_study(find_study(study), changes), store)
    failed = sum(c.level == "fail" for c in found)
    warned = sum(c.level == "warn" for c in found)
    code = NotReady.exit_code if failed else 0
    if as_json:
        rows = [{k: v for k, v in dataclasses.asdict(c).items() if k != "error"} for c in found]
        click.echo(json.dumps({"checks": rows, "exit_code": code}, indent=2))
        return code
    for check in found:
        level = "FAIL" if check.level == "fail" else check.level
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.level]
        click.echo(click.style(f"{level:<4}", fg=colour) + f"  {check.what}")
        if check.remedy:
            click.echo(f"      do: {check.remedy}")
    problems = f"{failed} problem{'s' * (failed != 1)}, {warned} warning{'s' * (warned != 1)}"
    click.echo(problems if failed or warned else "ready")
    return code
