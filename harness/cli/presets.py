"""`harness presets`: the studies that come with the program."""

from pathlib import Path

import click

from harness.cli._options import json_option


@click.group(short_help="List, show and copy the studies that are shipped.")
def command() -> None:
    """The studies that are shipped, to run as they are or to start your own from."""


@command.command()
@json_option
def ls(as_json: bool) -> None:
    """List the studies with their questions."""
    import json

    from harness.cli._presets import known_studies
    from harness.spec import load_study

    rows = []
    for name, path in known_studies().items():
        spec = load_study(path)
        rows.append(
            {
                "name": name,
                "question": spec.question,
                "arms": len(spec.arms),
                "model": spec.controls.model.id,
                "path": str(path),
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:<20}  {row['arms']} arms  {row['model']}")
        click.echo(f"  {row['question']}")


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Print a study's YAML (with --json every default spelled out)."""
    from harness.cli._presets import find_study
    from harness.spec import load_study

    path = find_study(name)
    click.echo(load_study(path).model_dump_json(indent=2) if as_json else path.read_text(encoding="utf-8").rstrip("\n"))


@command.command()
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path), required=False)
def cp(name: str, dest: Path | None) -> None:
    """Copy a study's YAML to DEST (default: NAME.yaml here), to change it. Never overwrites."""
    from harness.cli._presets import find_study
    from harness.errors import SpecError

    source = find_study(name)
    target = dest or Path(source.name)
    if target.is_dir():
        target = target / source.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise SpecError(f"{target} exists, and is not overwritten", f"harness presets cp {name} OTHER.yaml") from error
    except OSError as error:
        raise SpecError(f"{target}: cannot be written: {error.strerror}") from error
    click.echo(str(target))
    click.echo(f"run it: harness study {target}   (its results go under the `name:` in the file)", err=True)
