"""`harness dashboard`: the results in a browser, on this machine only."""

from pathlib import Path
from typing import NoReturn

import click

from harness.cli._options import store_option

SERVER = Path(__file__).resolve().parent.parent.parent / "dashboard" / "server.py"


@click.command(short_help="Look at results in a browser, on this machine only.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: the first free one from 8501]"
)
@click.option("--open/--no-open", "opens", default=None, help="Open a browser.  [default: when on a terminal]")
@store_option
def command(port: int | None, opens: bool | None, store: Path) -> NoReturn:
    """Look at the results of a store in a browser. Listens on 127.0.0.1 only, sends nothing anywhere, writes nothing.

    Limits and choices are in the address of the page: a link opens the same view.
    """
    import importlib.util
    import os
    import sys

    from harness.errors import NotReady

    missing = [name for name in ("streamlit", "altair") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotReady(
            f"the dashboard needs {' and '.join(missing)}, not installed here",
            "pip install 'finetune-harness[dashboard]'",
        )
    opens = sys.stderr.isatty() if opens is None else opens
    if port is not None and _taken(port):
        raise NotReady(f"port {port} is taken", "harness dashboard    # finds a free one")
    listening = port or _free(8501)
    click.echo(f"http://127.0.0.1:{listening}  (results in {store}; Ctrl-C ends it)", err=True)
    sys.stderr.flush()
    os.dup2(2, 1)  # what the server says is no result
    words = [sys.executable, "-P", str(SERVER), str(store.resolve()), str(listening), *(["open"] if opens else [])]
    os.execv(sys.executable, words)  # noqa: S606  # from here on the process is the server, so that a signal ends it


def _free(first: int) -> int:
    """The first port from this one on that nothing listens on.

    Raises:
        NotReady: none of twenty is free.
    """
    from harness.errors import NotReady

    for port in range(first, first + 20):
        if not _taken(port):
            return port
    raise NotReady(f"ports {first} to {first + 19} are taken", "harness dashboard --port N")


def _taken(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
