"""`harness bits`: the lowest bit-width that holds, for the base, for training on it and for serving."""

from pathlib import Path

import click

from harness.cli._options import json_option, only, store_option


@click.command(short_help="Say which bit-width still holds, and what each costs.")
@click.argument("study", required=False)
@store_option
@json_option
def command(study: str | None, store: Path, as_json: bool) -> int:
    """Say for each question of STUDY about bit-widths which is the lowest that holds against the widest.

    Asked is the base stored at each, an adapter trained on each, and a fine-tuned model served at each. Ends with 5
    when the evidence leaves one of them open.
    """
    import json

    from harness import reproduce
    from harness.bits import answer
    from harness.cli._bits import render
    from harness.errors import StoreError
    from harness.store import Store

    results = Store(store)
    if study is None and not results.studies():
        raise StoreError(f"no studies in {store}", f"harness study tiny-bits --store {store}")
    one = results.study(study or only(results.studies(), store))
    found = answer(one)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else render(found))
    missing = any(f.comparison is None or not f.comparison.verdicts for q in found.questions for f in q.findings)
    if missing and not as_json and one.spec().origin is None:
        click.echo(f"go on with: {reproduce.study(one)}", err=True)
    return 5 if any(q.answer == "open" for q in found.questions) else 0
