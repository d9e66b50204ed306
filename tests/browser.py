"""A dashboard and a browser beside it, for tests and benchmarks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOME = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")


def found() -> str | None:
    """A Chromium or Chrome on the path."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Watch:
    """What a page says on its console, and what it asks of other machines."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(HOME) else self.foreign.append(r.url))


def dashboard(store: Path) -> AbstractContextManager[str]:
    return server(lambda port: [
        sys.executable, "-m", "harness.cli", "dashboard", "--store", str(store), "--port", str(port), "--no-open"
    ])  # fmt: skip


@contextmanager
def server(command: Callable[[int], Sequence[str]]) -> Iterator[str]:
    """A server on a free port, ready to answer; ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    )
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
