"""Every page on every kind of store: none may fail, and what they say is what the command line says."""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import stores
from click.testing import CliRunner

from harness.cli import harness
from harness.recommend import Limits, decide
from harness.store import SCHEMA_KEY, TABLES, Store, StudyStore
from harness.summary import gather, metrics, summarise
from harness.units import GIB

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from streamlit.testing.v1 import AppTest  # after the check that it is there

from dashboard import shared

APP = Path(shared.__file__).with_name("app.py")
PAGES = sorted(p.stem for p in (APP.parent / "app_pages").glob("*.py"))
Open = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A page of a store, drawn."""

    def draw(root: Path, page: str = "decide", **state: object) -> AppTest:
        monkeypatch.setenv("HARNESS_STORE", str(root))
        app = AppTest.from_file(str(APP), default_timeout=60)
        for key, value in state.items():
            app.session_state[key] = value
        app.run()
        return app if page == "decide" else app.switch_page(f"app_pages/{page}.py").run()

    return draw


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for each kind of results, by name."""
    root = tmp_path_factory.mktemp("stores")
    (root / "no-study").mkdir()
    stores.generate(root / "no-trial", "study", 0)
    stores.generate(root / "one-trial", "study", 1)
    stores.generate(root / "sixty", "study", 60)
    stores.generate(root / "sixty-on-a-gpu", "study", 60, flavour="cuda")
    stores.generate(root / "thousand", "study", 1000, compacted=True)
    stores.generate(root / "out-of-memory", "study", 12, kinds=("out_of_memory",), flavour="cuda")
    stores.generate(root / "does-not-fit", "study", 12, kinds=("does_not_fit",), flavour="cuda")
    older(stores.generate(root / "old-schema", "study", 60))
    half_written(stores.generate(root / "half-written", "study", 60))
    return root


def older(store: StudyStore) -> None:
    """The store as a version without forecasts would have left it."""
    for table in TABLES:
        for path in (store.folder / table).glob("*.parquet"):
            rows = pq.ParquetFile(path).read()
            kept = [c for c in rows.column_names if not c.startswith(("forecast", "served"))]
            plain = rows.select(kept).replace_schema_metadata({SCHEMA_KEY: b"1"})
            path.unlink()
            pq.write_table(plain, path)


def half_written(store: StudyStore) -> None:
    """The store in the middle of a write: rows without their trial, a temporary file, a file that was cut off."""
    trials = sorted((store.folder / "trials").glob("*.parquet"))
    trials[-1].unlink()
    (store.folder / "trials" / ".abc-1.parquet.tmp").write_bytes(b"PAR1")
    trials[-2].write_bytes(trials[-2].read_bytes()[:100])


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "kind",
    [
        "no-study", "no-trial", "one-trial", "sixty", "sixty-on-a-gpu", "thousand", "out-of-memory", "does-not-fit",
        "old-schema", "half-written",
    ],
)  # fmt: skip
def test_no_page_fails_on_any_kind_of_store(opened: Open, kinds: Path, kind: str, page: str) -> None:
    shown = opened(kinds / kind, page)
    assert not shown.exception, shown.exception[0].message
    main = shown.main
    assert len(main.header) == 1, "every page says what it is"
    said = [*main.markdown, *main.text, *main.caption, *main.dataframe, *main.code, *main.metric]
    assert said, "a title alone says nothing"


def test_there_is_a_page_for_each_of_the_eight_questions() -> None:
    wanted = {"decide", "trade_offs", "compare", "bits", "cost_and_fit", "search", "runs", "method"}
    assert set(PAGES) == wanted


def test_an_empty_store_says_which_command_fills_it(opened: Open, kinds: Path) -> None:
    (code,) = opened(kinds / "no-study").code
    assert "harness study tiny-methods" in code.value
    assert "harness import peft" in code.value


def test_a_link_opens_the_same_view(opened: Open, kinds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(kinds / "sixty-on-a-gpu"))
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.query_params["vram"] = "24"
    app.query_params["margin"] = "0.1"
    app.query_params["metric"] = "arc_easy/acc"
    app.run()
    assert app.number_input(key="vram").value == 24
    assert app.number_input(key="margin").value == 0.1
    assert app.selectbox(key="metric").value == "arc_easy/acc"
    assert any("limits: 24 GiB" in c.value.replace("\\", "") for c in app.caption)


@pytest.mark.parametrize("seed", range(20))
def test_the_page_says_word_for_word_what_the_command_says(opened: Open, kinds: Path, seed: int) -> None:
    draw = random.Random(seed)
    root = kinds / draw.choice(["sixty", "sixty-on-a-gpu"])
    evidence = gather(Store(root).study("study"))
    plain = decide(evidence, summarise(Store(root).study("study")), Limits())
    peaks = [c.peak_bytes / GIB for c in plain.candidates if c.peak_bytes]
    hours = [c.run_hours for c in plain.candidates if c.run_hours]
    costs = [c.run_cost for c in plain.candidates if c.run_cost]
    some: dict[str, float | str] = {
        "vram": round(draw.uniform(0.8, 1.2) * draw.choice(peaks), 4),
        "hours": round(draw.uniform(0.8, 1.2) * draw.choice(hours), 6),
        "money": round(draw.uniform(0.8, 1.2) * draw.choice(costs), 6),
        "rate": draw.choice([0.5, 2.0]),
        "margin": draw.choice([0.0, 0.02, 0.1]),
        "metric": draw.choice(metrics(evidence.records)),
        "quality": round(draw.uniform(0.2, 0.9), 3),
    }
    asked = {k: v for k, v in some.items() if draw.random() < 0.5}
    options = {"vram": "--vram", "rate": "--per-hour"}
    flags = [word for k, v in asked.items() for word in (options.get(k, f"--{k}"), str(v))]
    said = CliRunner().invoke(harness, ["recommend", "study", "--store", str(root), *flags]).output.splitlines()
    page = opened(root, **asked)
    assert not page.exception
    shown = [m.value for m in page.markdown]
    for sentence in said[:2]:
        assert f"**{shared.plain(sentence)}**" in shown, (asked, sentence, shown)


def test_text_from_results_is_shown_as_it_is() -> None:
    assert shared.plain("a*b_c $1 [x] :red[y] <b>") == r"a\*b\_c \$1 \[x\] \:red\[y\] \<b\>"
