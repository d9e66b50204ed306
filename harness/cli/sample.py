"""`harness sample ARM --prompt TEXT`: what the base and the fine-tuned model answer."""

from pathlib import Path

import click

from harness.cli._options import json_option, only, store_option


@click.command(short_help="Let the base and a fine-tuned model answer side by side.")
@click.argument("arm")
@click.option("--prompt", required=True, help="The question, without any template.")
@click.option("--study", help="Name of the study.  [default: the only one in the store]")
@click.option("--seed", type=int, help="Which confirmed run.  [default: the first]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True)
@store_option
@json_option
def command(
    arm: str, prompt: str, study: str | None, seed: int | None, max_new_tokens: int, store: Path, as_json: bool
) -> None:
    """Let the base and the fine-tuned model of ARM answer a prompt, greedily."""
    import json
    import warnings
    from logging import ERROR, getLogger

    from harness import reproduce
    from harness.cli.compare import _known
    from harness.errors import StoreError
    from harness.record import judged
    from harness.store import Store

    results = Store(store)
    one = results.study(study or only(results.studies(), store))
    spec = one.spec()
    _known(arm, spec, one.folder)
    runs = judged(r for r in one.records() if r.trial.arm == arm and r.question_id == spec.question_id)
    kept = [r for r in runs if r.adapter_path and seed in (None, r.trial.seed)]
    if not kept:
        wanted = f"no model of {arm}" + (f" with seed {seed}" if seed is not None else "") + f" is kept in {one.folder}"
        raise StoreError(wanted, reproduce.study(one))
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)  # it reports a kernel of the hub that is not used here
    warnings.simplefilter("ignore", FutureWarning)  # between libraries, nothing that a reader could mend
    from harness.generate import side_by_side

    record = kept[0]
    before, after = side_by_side(record, one.folder, prompt, max_new_tokens)
    if as_json:
        click.echo(json.dumps({"arm": arm, "run": record.trial_id, "prompt": prompt, "base": before, "tuned": after}))
    else:
        click.echo(f"base     {before}\n{arm:<8} {after}")
