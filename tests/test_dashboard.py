"""Every page on every kind of store: none may fail, and what they say is what the command line says."""

import gc
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from click.testing import CliRunner
from conftest import Open

from harness import plugins
from harness.cli import harness
from harness.cli._presets import find_study
from harness.recommend import Limits, decide
from harness.spec import dump_study, load_study
from harness.store import SCHEMA_KEY, TABLES, Store, StudyStore
from harness.summary import Evidence, gather, metrics, summarise
from harness.units import GIB

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from streamlit.testing.v1 import AppTest  # after the check that it is there

from dashboard import app, shared

PAGES = [name for pages in app.PAGES.values() for name, *_ in pages]
KINDS = (
    "no-trial", "one-trial", "sixty", "sixty-on-a-gpu", "thousand", "out-of-memory", "does-not-fit", "old-schema",
    "half-written", "made-elsewhere",
)  # fmt: skip
Draw = Callable[[str, str], AppTest]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for each kind of results, by name."""
    root = tmp_path_factory.mktemp("stores") / "it's mine"  # a name that a shell takes apart
    (root / "no-study").mkdir(parents=True)
    stores.generate(root / "no-trial", "study", 0)
    stores.generate(root / "one-trial", "study", 1)
    stores.generate(root / "sixty", "study", 60)
    stores.generate(root / "sixty-on-a-gpu", "study", 60, flavour="cuda")
    stores.generate(root / "thousand", "study", 1000, compacted=True)
    stores.generate(root / "out-of-memory", "study", 12, kinds=("out_of_memory",), flavour="cuda")
    stores.generate(root / "does-not-fit", "study", 12, kinds=("does_not_fit",), flavour="cuda")
    older(stores.generate(root / "old-schema", "study", 60))
    half_written(stores.generate(root / "half-written", "study", 60))
    made_elsewhere(stores.generate(root / "made-elsewhere", "study", 60))
    return root


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[str, str], AppTest]:
    """Pages that were drawn before."""
    return {}


@pytest.fixture
def draw(opened: Open, kinds: Path, drawn: dict[tuple[str, str], AppTest]) -> Draw:
    """A page of a kind of store, drawn once."""

    def of(kind: str, page: str) -> AppTest:
        if (kind, page) not in drawn:
            drawn[kind, page] = opened(kinds / kind, page)
        return drawn[kind, page]

    return of


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


def made_elsewhere(store: StudyStore) -> None:
    """The same results as another program would have published them: without outcomes of items, curves and tuning."""
    path = store.folder / "study.yaml"
    spec = load_study(path, ["origin.tool=PEFT"])
    path.write_text(dump_study(spec))
    for file in (store.folder / "trials").glob("*.parquet"):
        rows = pq.ParquetFile(file).read()
        place = rows.column_names.index("question_id")
        question = pa.array([spec.question_id] * rows.num_rows, rows.schema.field("question_id").type)
        pq.write_table(rows.set_column(place, rows.schema.field(place), question), file)
    (store.folder / "declared.json").unlink()
    for table in ("examples", "steps"):
        for file in (store.folder / table).glob("*.parquet"):
            file.unlink()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_page_fails_on_any_kind_of_store(draw: Draw, kind: str, page: str) -> None:
    shown = draw(kind, page)
    assert not shown.exception, shown.exception[0].message
    assert not shown.error, shown.error[0].value
    assert len(shown.main.header) == 1, "every page says what it is"
    assert shown.main.caption[0].value.startswith("Study study"), "and of which study, above it"


@pytest.mark.parametrize(("kind", "page", "sentence"), [
    ("no-trial", "decide", "No configuration has a score yet."),
    ("no-trial", "trade_offs", "No configuration has a score yet."),
    ("no-trial", "compare", "lora and full have no confirmed run yet that could be judged."),
    ("no-trial", "bits", "No bit-width has a score yet."),
    ("no-trial", "cost_and_fit", "No run has measured its memory yet, and none carries a forecast."),
    ("no-trial", "search", "There is no tuning trial to draw."),
    ("no-trial", "runs", "No run has ended yet. This goes on with the study:"),
    ("no-trial", "method", "No run has a score yet."),
    ("one-trial", "cost_and_fit", "No run has measured its memory yet, and none carries a forecast."),
    ("out-of-memory", "trade_offs", "What would fit which card is on the page Cost and fit."),
    ("does-not-fit", "cost_and_fit", "Nothing has run yet."),
    ("made-elsewhere", "search", "What was planned is not known: another program made these runs."),
    ("made-elsewhere", "cost_and_fit", "What tuning took before is not known of results made elsewhere."),
])  # fmt: skip
def test_what_a_store_lacks_is_said(draw: Draw, kind: str, page: str, sentence: str) -> None:
    said = [text.value for text in draw(kind, page).main.text]
    assert any(sentence in text for text in said), said


@pytest.mark.parametrize("kind", [*KINDS, "no-study"])
def test_every_command_that_a_page_suggests_works_in_any_folder(
    draw: Draw, kinds: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = PAGES if kind != "no-study" else ["decide"]
    main = [draw(kind, page).main for page in pages]
    lines = {code.value for m in main for code in m.code if code.value.startswith("harness")}
    assert lines, "a page says what to do next"
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert parsed(line) == kinds / kind, line
    for text in (text.value for m in main for text in [*m.text, *m.caption, *m.markdown]):
        assert not re.search(r"harness (study|next|sync|plan|import) ", text), f"not to be copied: {text}"


def parsed(line: str) -> Path:
    """The store of a command line, read by the command itself; what it names has to be there."""
    _, name, *words = shlex.split(line)
    command = harness.get_command(click.Context(harness), name)
    assert command is not None, f"there is no harness {name}"
    values = command.make_context(name, words).params
    root: Path = values["store"]
    if name in {"study", "plan"}:
        spec = load_study(find_study(values["study"]), values["overrides"])
        again = root.with_name(root.name.removesuffix("-again"))
        assert values["study"] == "tiny-methods" or Path(values["study"]) == again / "study" / "study.yaml"
        assert spec.arms
        return again
    if name == "import":
        assert values["tool"] in plugins.names("importers")
    else:
        assert Store(root).study(values["study"]).spec()
    return root


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(PAGES) == sorted(p.stem for p in Path(app.__file__).parent.glob("app_pages/*.py"))


def test_what_was_typed_for_one_study_is_not_said_of_the_next(opened: Open, tmp_path: Path) -> None:
    for name, keys in {
        "dear": ["objective.margin=0.05", "prices.per_hour=0.44"],
        "plain": ["objective.margin=0.02", "prices.per_hour=null"],
    }.items():
        path = stores.generate(tmp_path, name, 60).folder / "study.yaml"
        path.write_text(dump_study(load_study(path, keys)))
    page = opened(tmp_path, study="dear")
    assert (page.number_input(key="margin").placeholder, page.number_input(key="rate").placeholder) == ("0.05", "0.44")
    assert "at a margin of 5 points" in page.main.caption[0].value
    assert "Cost of a run" in table(page)

    page.selectbox(key="study").set_value("plain").run()
    assert "at a margin of 2 points" in page.main.caption[0].value
    assert "Cost of a run" not in table(page)

    page.number_input(key="rate").set_value(2.0).run()
    page.number_input(key="margin").set_value(0.1).run()
    page.number_input(key="quality").set_value(0.5).run()
    page.number_input(key="hours").set_value(3.0).run()
    assert "at a margin of 10 points" in page.main.caption[0].value
    assert "Cost of a run" in table(page)

    page.selectbox(key="metric").set_value("test_loss").run()
    typed = {key: page.number_input(key=key).value for key in ("margin", "quality", "rate", "hours")}
    assert typed == {"margin": None, "quality": None, "rate": 2.0, "hours": 3.0}
    assert "test loss at a margin of 0 " in page.main.caption[0].value.replace("\\_", " ")

    page.selectbox(key="study").set_value("dear").run()
    assert page.selectbox(key="metric").value == "test_loss", "it was asked for, and is known here too"
    assert (page.number_input(key="rate").value, page.number_input(key="hours").value) == (None, 3.0)


def test_the_own_metric_of_one_study_is_not_asked_of_the_next(opened: Open, tmp_path: Path) -> None:
    stores.generate(tmp_path, "plain", 60)
    path = stores.generate(tmp_path, "by-loss", 60).folder / "study.yaml"
    own = gather(Store(tmp_path).study("plain")).metric
    page = opened(tmp_path, study="plain")
    page.number_input(key="margin").set_value(0.1).run()
    path.write_text(dump_study(load_study(path, ["objective.metric=test_loss"])))
    page.selectbox(key="study").set_value("by-loss").run()
    assert not page.exception
    assert page.selectbox(key="metric").options[0] == "test_loss"
    assert own in page.selectbox(key="metric").options
    assert page.selectbox(key="metric").value == "test_loss"
    assert page.number_input(key="margin").value is None


def table(page: AppTest) -> list[str]:
    """Columns of the table of configurations."""
    return list(page.main.dataframe[0].value)


def test_a_link_holds_the_very_limits(opened: Open, kinds: Path) -> None:
    third = 1 / 3
    page = opened(kinds / "sixty-on-a-gpu", address={"vram": "23.7", "hours": str(third), "margin": "0.01234567891"})
    (address,) = [code.value for code in page.code if code.value.startswith("?")]
    asked = {key: values[0] for key, values in parse_qs(address[1:]).items()}
    assert asked == {"study": "study", "vram": "23.7", "hours": str(third), "margin": "0.01234567891"}
    assert opened(kinds / "sixty-on-a-gpu", address=asked).code[-1].value == page.code[-1].value


def test_while_a_study_runs_older_results_do_not_stay_in_memory(opened: Open, tmp_path: Path) -> None:
    store = stores.generate(tmp_path, "study", 60)
    page = opened(tmp_path)
    files = sorted((store.folder / "trials").glob("*.parquet"))
    before = set(map(id, evidences(store.folder)))
    assert before
    for file in files[:3]:
        file.unlink()
        page.run()
        assert not page.exception
    gc.collect()
    assert len(evidences(store.folder)) == len(before)


def evidences(folder: Path) -> list[Evidence]:
    """What was gathered of a study and is still held by anything; it is told by the study's hash of its own."""
    question = StudyStore(folder).spec().question_id
    return [e for e in gc.get_objects() if isinstance(e, Evidence) and e.spec.question_id == question]


def test_a_link_opens_the_same_view(opened: Open, kinds: Path) -> None:
    address = {"vram": "24", "margin": "0.1", "metric": "arc_easy/acc"}
    app = opened(kinds / "sixty-on-a-gpu", address=address)
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
