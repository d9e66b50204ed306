"""The dashboard as it is served: on this machine only, in a real browser, without asking anything of another one."""

import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import browser
import pytest
import stores
from click.testing import CliRunner

from harness.cli import harness
from harness.errors import NotReady

pytest.importorskip("streamlit", reason="the dashboard is an extra")

PAGES = ("", "trade-offs", "compare", "bits", "cost-and-fit", "search", "runs", "method")


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    stores.generate(tmp_path, "study", 1)
    with browser.dashboard(tmp_path) as address:
        assert urllib.request.urlopen(f"{address}/_stcore/health", timeout=20).read() == b"ok"  # loopback
        port = int(address.rpartition(":")[2])
        with socket.socket(socket.AF_INET) as probe:
            # another address of loopback reaches a server that listens on all of them
            assert probe.connect_ex(("127.0.0.2", port)) != 0


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = CliRunner().invoke(harness, ["dashboard", "--port", str(port)])
    assert isinstance(found.exception, NotReady)
    assert str(port) in found.exception.message


@pytest.mark.parametrize(
    ("widths", "names"), [((390,), PAGES[:1]), pytest.param((1280, 390), PAGES, marks=pytest.mark.slow)]
)
def test_a_page_is_drawn_without_an_error_or_a_request_off_this_machine(
    tmp_path: Path, widths: Sequence[int], names: Sequence[str]
) -> None:
    path = browser.found()
    if path is None:
        pytest.skip("no Chromium or Chrome on the path")
    playwright = pytest.importorskip("playwright.sync_api")

    stores.generate(tmp_path, "study", 60, flavour="cuda")
    with browser.dashboard(tmp_path) as address, playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=browser.FLAGS)
        for width in widths:
            page = chromium.new_page(viewport={"width": width, "height": 844})
            watch = browser.Watch(page)
            for name in names:
                page.goto(f"{address}/{name}")
                page.wait_for_selector("[data-testid=stMain] :is(h1, h2, h3)", timeout=60_000)
                page.wait_for_timeout(2000)
                wide = page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
                assert wide <= width, f"{name} is {wide} pixels wide on {width}"
            assert not watch.errors
            assert not watch.foreign
        chromium.close()
