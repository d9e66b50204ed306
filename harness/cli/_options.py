"""Options that several commands share."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    envvar="HARNESS_STORE",
    show_default=True,
    show_envvar=True,
    help="Folder of the results.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

Command = Callable[..., int]


def only(studies: list[str], store: Path) -> str:
    """The one study of a store, where none was named.

    Raises:
        StoreError: there are several, or none.
    """
    from harness.errors import StoreError

    if len(studies) == 1:
        return studies[0]
    known = ", ".join(studies) or "none"
    raise StoreError(f"which study? {store} holds: {known}", "name it with --study")


LIMITS: list[Callable[[Command], Command]] = [
    click.option("--vram", type=click.FloatRange(0, min_open=True), help="GPU memory in GiB that a run must fit in."),
    click.option("--hours", type=click.FloatRange(0, min_open=True), help="Most hours for one run."),
    click.option(
        "--money", type=click.FloatRange(0, min_open=True), help="Most money for one run (needs a price per hour)."
    ),
    click.option("--quality", type=float, help="Least score that the configuration must be shown to reach."),
    click.option(
        "--margin", type=click.FloatRange(0), help="Differences up to this do not matter.  [default: the study's]"
    ),
    click.option("--metric", help="What to judge by, as `harness show` names it.  [default: the study's]"),
    click.option(
        "--per-hour", type=click.FloatRange(0), help="Price of an hour.  [default: the study's prices.per_hour]"
    ),
]


def limit_options(command: Command) -> Command:
    """The options of the user's limits; the command gets them as one `limits`."""

    @wraps(command)
    def limited(
        *,
        vram: float | None,
        hours: float | None,
        money: float | None,
        quality: float | None,
        margin: float | None,
        metric: str | None,
        per_hour: float | None,
        **others: Any,
    ) -> int:
        from harness.recommend import Limits
        from harness.units import GIB

        limits = Limits(int(vram * GIB) if vram else None, hours, money, quality, margin, metric, per_hour)
        return command(limits=limits, **others)

    found: Command = limited
    for option in reversed(LIMITS):
        found = option(found)
    return found
