"""How long the dashboard takes in a browser, beside a page of the same framework that draws one small chart.

    python benchmarks/dashboard.py                            # stores of 1,000 and 10,000 trials, made on the spot
    python benchmarks/dashboard.py --store results --pictures docs/pictures

Each figure is of a new server and a new browser with nothing kept: from the address to the first chart that is drawn,
and from a click on a page to what it shows. Counted beside them: messages of the browser's console, and requests to
anything but this machine. Needs the extras `dashboard` and `test`, and Chromium or Chrome.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import browser  # noqa: E402  # of the tests

CHART = "[data-testid=stVegaLiteChart] :is(canvas, svg)"
SHOWN = "[data-testid=stMain] :is(h1, h2, h3)"
LIMITS = {1000: 5.0, 10_000: 8.0}
"""Seconds to the first chart that are promised, by trials."""
SWITCH = 1.5
"""Seconds of a page switch that are promised."""
PAGES = {
    "": "Decide", "trade-offs": "Trade-offs", "compare": "Compare", "bits": "Bits", "cost-and-fit": "Cost and fit",
    "search": "Search", "runs": "Runs", "method": "Method",
}  # fmt: skip
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 844}}
FLOOR = """
import altair, pandas, streamlit
streamlit.header("Floor")
streamlit.altair_chart(altair.Chart(pandas.DataFrame({"x": [1, 2], "y": [1, 2]})).mark_point().encode(x="x", y="y"))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, nargs="*", default=list(LIMITS), help="sizes of the stores to make")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--store", type=Path, help="take pictures of this store instead of timing")
    arguments.add_argument("--studies", nargs="*", help="of that store; all without")
    arguments.add_argument("--pages", nargs="*", default=list(PAGES), help="such as trade-offs; all without")
    arguments.add_argument("--pictures", type=Path, help="folder of the pictures")
    arguments.add_argument("--browser", default=browser.found())
    asked = arguments.parse_args()
    if asked.browser is None:
        sys.exit("no Chromium or Chrome on the path: name one with --browser")
    if asked.store:
        pictures(asked.store, asked.pictures or Path("pictures"), asked.browser, asked.studies, asked.pages)
        return
    with tempfile.TemporaryDirectory() as folder:
        timed(asked.trials, asked.repeats, asked.browser, Path(folder))


def timed(sizes: Sequence[int], repeats: int, path: str, folder: Path) -> None:
    """Print the seconds of every size beside those of the floor."""
    import stores

    (folder / "floor.py").write_text(FLOOR)
    floor = median(first_chart(floor_server(folder / "floor.py"), path)[0] for _ in range(repeats))
    print(f"one chart and nothing else: {floor:.2f} s to the first chart, median of {repeats}")
    for trials in sizes:
        root = folder / str(trials)
        stores.generate(root, "study", trials, compacted=True)
        runs = [first_chart(browser.dashboard(root), path, switch=True) for _ in range(repeats)]
        first = median(r[0] for r in runs)
        limit = LIMITS.get(trials)
        print(
            f"{trials:,} trials: {first:.2f} s to the first chart, {first / floor:.2f} x the floor"
            + (f" (promised: {limit:g} s)" if limit else "")
        )
        for page in runs[0][1]:
            print(f"  to {page}: {median(r[1][page] for r in runs):.2f} s (promised: {SWITCH:g} s)")
        errors, foreign = ([x for r in runs for x in getattr(r[2], kind)] for kind in ("errors", "foreign"))
        print(
            f"  console errors: {len(errors)}, requests off this machine: {len(foreign)}", *errors, *foreign, sep="\n  "
        )


def first_chart(server: Any, path: str, switch: bool = False) -> tuple[float, dict[str, float], browser.Watch]:
    """Seconds from the address to the first chart, then from each click to the page's heading."""
    from playwright.sync_api import sync_playwright

    with server as address, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=browser.FLAGS)
        page = chromium.new_page(viewport=SIZES["wide"])
        watch = browser.Watch(page)
        began = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(CHART, timeout=60_000)
        first = time.perf_counter() - began
        switches = {title: _switch(page, path) for path, title in PAGES.items() if path} if switch else {}
        chromium.close()
    return first, switches, watch


def _switch(page: Any, path: str) -> float:
    """Seconds from a click on a page's link until its heading is there and its script has run to the end."""
    link = page.locator(f"a[href$='/{path}'], a[href*='/{path}?']").first
    if not link.is_visible():
        section = "Evidence" if path in {"trade-offs", "compare", "bits", "cost-and-fit"} else "Study"
        page.locator("header").get_by_text(section, exact=True).first.click()
        link.wait_for(state="visible")
    before = page.locator(SHOWN).first.inner_text()
    began = time.perf_counter()
    link.click()
    page.wait_for_function(
        "([shown, before]) => document.querySelector(shown)?.innerText !== before"
        " && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'",
        arg=[SHOWN, before],
    )
    seconds = time.perf_counter() - began
    page.mouse.move(640, 700)
    return seconds


def pictures(store: Path, into: Path, path: str, studies: Sequence[str] | None, pages: Sequence[str]) -> None:
    """Every page of every study, wide and narrow, light and dark."""
    from playwright.sync_api import sync_playwright

    from harness.store import Store

    into.mkdir(parents=True, exist_ok=True)
    with browser.dashboard(store) as address, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=browser.FLAGS)
        for width, colors in ((w, c) for w in SIZES for c in ("light", "dark")):
            page = chromium.new_context(viewport=SIZES[width], color_scheme=colors).new_page()
            watch = browser.Watch(page)
            for study in studies or Store(store).studies():
                for place, title in ((p, PAGES[p]) for p in pages):
                    _picture(
                        page,
                        f"{address}/{place}?study={study}",
                        into / f"{study}-{place or 'decide'}-{width}-{colors}.png",
                    )
                    print(f"{study}, {title}, {width}, {colors}", *watch.errors, *watch.foreign)
                    watch.errors.clear()
                    watch.foreign.clear()
            page.context.close()
        chromium.close()


def _picture(page: Any, address: str, path: Path) -> None:
    from PIL import Image

    size = page.viewport_size
    page.goto(address)
    page.wait_for_selector(SHOWN, timeout=60_000)
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached", timeout=60_000)
    page.wait_for_timeout(1500)  # charts are drawn after the page is there
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(height + 80, 6000))})
    page.wait_for_timeout(800)
    page.screenshot(path=path)
    page.set_viewport_size(size)
    Image.open(path).convert("RGB").quantize(256, kmeans=2).save(path, optimize=True)  # a third of the bytes


def floor_server(script: Path) -> Any:
    return browser.server(lambda port: [
        sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", "--server.address=127.0.0.1",
        "--server.headless=true", "--browser.gatherUsageStats=false", "--server.fileWatcherType=none",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
