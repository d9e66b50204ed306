"""The decision as one file: a page without a network, Markdown for a pull request, JSON for scripts."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from stores import generate

from harness import report
from harness.cli import harness, run
from harness.content import Runs, content_of, without_folders
from harness.decision import Decision, make
from harness.recommend import Limits
from harness.record import Record
from harness.store import StudyStore
from harness.summary import Evidence, Summary, gather, summarise

VOID = {"meta", "br"}
NASTY = '<script>alert("x")</script> a|b `c` *d* _e_ @f $g$ [h](i) & #1'


class Page(HTMLParser):
    """What a browser makes of a page: text by element, attributes, and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


Found = tuple[Evidence, Summary, Decision]


def found(store: StudyStore, limits: Limits | None = None) -> Found:
    evidence = gather(store)
    summary = summarise(store, evidence)
    return evidence, summary, make(store, evidence, summary, limits or Limits())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return generate(tmp_path_factory.mktemp("store"), "rented", 57, flavour="cuda", items=60)


@pytest.fixture(scope="module")
def rented(store: StudyStore) -> Found:
    return found(store)


@pytest.fixture(scope="module")
def page(rented: Found) -> Page:
    return Page(report.html(*rented))


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def tables(text: str) -> Iterator[list[str]]:
    """The lines of each table of a Markdown text."""
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            yield table
            table = []


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(harness, list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


@pytest.mark.parametrize("limits", [[], ["--vram", "12"], ["--vram", "1"], ["--money", "0.12", "--margin", "0.1"]])
def test_a_report_says_what_recommend_says(
    store: StudyStore, capsys: pytest.CaptureFixture[str], tmp_path: Path, limits: list[str]
) -> None:
    at = ["--store", str(store.folder.parent)]
    _, told, _ = ask(capsys, "recommend", "rented", "--json", *limits, *at)
    said = json.loads(told)
    sentences = [said["sentence"], said["full_sentence"], *said["details"]]
    files = [str(tmp_path / name) for name in ("r.html", "r.md", "r.json")]
    code, out, _ = ask(
        capsys, "report", "rented", "--html", files[0], "--md", files[1], "--json", files[2], *limits, *at
    )
    assert (code, out) == (0, "")
    html, md, plain = (Path(name).read_text(encoding="utf-8") for name in files)
    shown = "".join(Page(html).text)
    assert all(sentence in shown for sentence in sentences)
    assert all(sentence in unescape(re.sub(r"\\(?=[^\w\s])", "", md)) for sentence in sentences)
    assert json.loads(plain)["recommendation"]["sentence"] == said["sentence"]
    assert " ".join(["harness report rented --html r.html", *limits]) in shown


def test_the_page_loads_nothing_and_runs_nothing(page: Page, rented: Found) -> None:
    text = report.html(*rented)
    assert len(text.encode()) < 3_000_000
    assert not re.search(r"https?:|//|@import|url\((?!#)", text.replace("<!-- ", ""))
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & {tag for tag, _ in page.tags}
    assert all(str(a["href"]).startswith("#") for a in page.of("a"))
    assert page.open == []


def test_every_chart_has_a_name_and_every_table_its_headings(page: Page, rented: Found) -> None:
    charts = page.of("svg")
    assert len(charts) == 4  # ranked and trade-off, each for a screen and for a phone
    assert all(chart["role"] == "img" and str(chart["aria-label"]).count(" ") > 5 for chart in charts)
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("caption")) == len(page.of("table")) >= 5
    assert {heading.get("scope") for heading in page.of("th")} == {"col", "row"}
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))  # a picture may not take another one's clip path


def test_every_link_leads_to_a_run_of_the_page(page: Page, rented: Found) -> None:
    targets = {f"#{a['id']}" for _, a in page.tags if "id" in a}
    links = {a["href"] for a in page.of("a")}
    assert links <= targets
    assert links == {f"#run-{r.trial_id}" for r in rented[0].runs}


def test_charts_take_their_colours_from_the_page(rented: Found) -> None:
    text = report.html(*rented)
    assert "var(--c0)" in text
    assert "var(--muted)" in text
    assert not any(color in text for color in report.VARIABLES)


def test_text_from_results_is_shown_and_not_run(rented: Found) -> None:
    evidence, summary, decision = rented
    spec = evidence.spec.model_copy(update={"question": NASTY})
    lost = next(r for r in evidence.records if r.status == "failed").model_copy(update={"detail": NASTY})
    bad = (
        replace(evidence, spec=spec, records=[*evidence.records, lost]),
        summary,
        replace(decision, question=NASTY, held_back=[NASTY], currency="<b>"),
    )
    page = Page(report.html(*bad))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "b" not in {tag for tag, _ in page.tags}
    assert "".join(page.text).count(NASTY) == 4  # title, heading, failure, before you trust it
    md = report.markdown(*bad)
    assert "<script>" not in md
    assert "\\`c\\` \\*d\\* \\_e\\_ &#64;f \\$g\\$ [h\\](i) &amp; \\#1" in md
    assert all(len({cells(line) for line in table}) == 1 for table in tables(md))


def test_the_tables_of_the_markdown_are_well_formed(rented: Found) -> None:
    found_tables = list(tables(report.markdown(*rented)))
    assert len(found_tables) == 6
    for table in found_tables:
        assert re.fullmatch(r"\|( --- \|)+", table[1])
        assert len({cells(line) for line in table}) == 1
    configurations = found_tables[1]
    assert len(configurations) == 2 + len(rented[2].rows)
    assert "![" not in report.markdown(*rented)


def test_every_configuration_names_its_trials(rented: Found) -> None:
    evidence, summary, decision = rented
    said = content_of(evidence, summary, decision, "--md")
    for row in said.configurations.rows:
        arm, ids = str(row[0]).removesuffix(" (to use)"), row[-1]
        assert isinstance(ids, Runs)
        assert ids.ids == [r.trial_id for r in evidence.runs if r.trial.arm == arm]
        assert len(ids.ids) == 5


def test_decision_json_is_strict(rented: Found) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    decision = rented[2]
    odd = replace(decision, zero_shot=float("nan"), margin=float("inf"))
    plain = json.loads(report.decision_json(odd), parse_constant=refuse)
    assert plain["schema"] == 1
    assert plain["zero_shot"] is None
    assert plain["margin"] is None
    assert plain["rows"][0]["arm"] == decision.rows[0].arm
    assert plain["rows"][0]["quality"] == decision.rows[0].quality


def test_the_documented_keys_of_decision_json_are_those_it_has(rented: Found) -> None:
    text = (Path(__file__).parent.parent / "docs" / "dashboard.md").read_text(encoding="utf-8")
    section = text.partition("## decision.json")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", section, re.MULTILINE))
    plain: dict[str, Any] = json.loads(report.decision_json(rented[2]))
    keys = set(plain)
    keys |= {f"rows[].{k}" for k in plain["rows"][0]} | {f"chosen.{k}" for k in plain["chosen"]}
    keys |= {f"recommendation.{k}" for k in plain["recommendation"]} | {f"limits.{k}" for k in plain["limits"]}
    assert documented == keys - {"rows", "chosen", "recommendation", "limits"}


@pytest.mark.parametrize(
    ("trials", "kinds"), [(0, ("done",)), (1, ("done",)), (9, ("done",)), (30, ("out_of_memory", "does_not_fit"))]
)
def test_a_study_without_scores_has_a_report_too(tmp_path: Path, trials: int, kinds: Any) -> None:
    some = found(generate(tmp_path, "early", trials, kinds=kinds, items=20))
    page = Page(report.html(*some))
    assert page.of("svg") == []
    assert "No configuration has a score yet." in "".join(page.text)
    assert some[2].recommendation.sentence in report.markdown(*some)
    assert json.loads(report.decision_json(some[2]))["chosen"] is None


def test_a_run_that_found_no_room_is_in_the_report(rented: Found) -> None:
    evidence, summary, decision = rented
    lost: Record = evidence.records[1].model_copy(
        update={"status": "out_of_memory", "detail": "CUDA out of memory. Tried to allocate 256.00 MiB"}
    )
    said = content_of(replace(evidence, records=[lost, lost]), summary, decision, "--md")
    (row,) = said.failures.rows
    assert row[1:5] == ["tuning", "out of memory", "2", "CUDA out of memory. Tried to allocate 256.00 MiB"]


def test_commands_in_a_report_do_not_tell_folders_of_the_machine() -> None:
    told = without_folders("harness next lab --run --store /srv/ana/results")
    assert told == "harness next lab --run --store results"
    told = without_folders("harness study /srv/ana/results/lab/study.yaml 'confirm.seeds=[101]'")
    assert told == "harness study results/lab/study.yaml 'confirm.seeds=[101]'"


def test_no_report_tells_the_folders_of_the_store(rented: Found, store: StudyStore) -> None:
    evidence, summary, decision = rented
    at = str(store.folder.parent)
    command = f"harness next rented --run --store {at}"
    told = replace(decision, next_command=command)
    assert told.chosen is not None
    assert at in (told.chosen.command or "")  # else nothing is left out below
    for written in (report.html(evidence, summary, told), report.markdown(evidence, summary, told)):
        assert at not in written
    plain = json.loads(report.decision_json(told))
    assert at not in json.dumps(plain)
    assert plain["next_command"] == f"harness next rented --run --store {store.folder.parent.name}"
    assert plain["chosen"]["command"].startswith(f"harness study {store.folder.parent.name}/rented/study.yaml ")


def test_something_to_write_has_to_be_named(store: StudyStore, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--store", str(store.folder.parent)]
    code, _, err = ask(capsys, "report", "rented", *at)
    assert (code, "nothing to write" in err) == (2, True)
    code, _, err = ask(capsys, "report", "--md", "rented", *at)
    assert (code, "report rented --md" in err) == (2, True)


def test_markdown_goes_to_stdout_without_a_file(store: StudyStore, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "report", "rented", "--md", "--store", str(store.folder.parent))
    assert (code, err) == (0, "")
    assert out.startswith(report.MD_MARK)


def test_a_file_that_is_no_report_is_not_written_over(
    store: StudyStore, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    at = ["--store", str(store.folder.parent)]
    notes = tmp_path / "notes.md"
    notes.write_text("my notes")
    code, _, err = ask(capsys, "report", "rented", "--md", str(notes), *at)
    assert (code, "was not written by --md" in err, notes.read_text()) == (2, True, "my notes")
    own = tmp_path / "new" / "decision.json"
    assert [ask(capsys, "report", "rented", "--json", str(own), *at)[0] for _ in range(2)] == [0, 0]


def test_markdown_and_json_need_nothing_that_draws(store: StudyStore, rented: Found) -> None:

    code = (
        "import sys; sys.modules['altair'] = sys.modules['vl_convert'] = None\n"
        "from harness.cli import harness, run\n"
        "run(harness, sys.argv[1:])"
    )
    arguments = ["report", "rented", "--md", "--store", str(store.folder.parent)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_code_in_markdown_is_shown_as_it_is() -> None:
    assert report._code("a|b") == "`a|b`"  # a bar is escaped in the cells of tables alone
    assert report._code("a `b`") == "`` a `b` ``"
