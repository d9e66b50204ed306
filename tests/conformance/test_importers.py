"""What every importer promises, asked of each that is found, on the example files beside this suite."""

import json
import shutil
from pathlib import Path

import pytest

from harness import plugins
from harness.checks import check_arms
from harness.cli import harness, run
from harness.cli._import import add
from harness.errors import SpecError, StoreError
from harness.interfaces import Imported
from harness.store import Store

EXAMPLES = Path(__file__).parent / "imports"
IMPORTERS = plugins.names("importers")


@pytest.fixture(params=IMPORTERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def found(name: str) -> Imported:
    return plugins.importer(name).read(EXAMPLES / name)


def test_every_importer_has_examples() -> None:
    assert sorted(p.name for p in EXAMPLES.iterdir()) == IMPORTERS


def test_it_says_where_the_results_come_from(found: Imported) -> None:
    assert found.spec.origin is not None
    assert {r.origin for r in found.records} == {found.spec.origin.tool}
    with pytest.raises(SpecError, match="made elsewhere"):
        check_arms(found.spec)


def test_its_records_belong_to_its_study(found: Imported) -> None:
    assert found.records
    for record in found.records:
        assert record.trial_id == record.trial.id
        assert record.question_id == found.spec.question_id
        assert record.trial.params == found.spec.arms[record.trial.arm].params
        assert record.trial.seed in found.spec.confirm.seeds
        assert record.detail or record.status == "done"
    assert len({r.trial_id for r in found.records}) == len(found.records)
    assert {r.trial.arm for r in found.records} == set(found.spec.arms)


def test_what_is_written_reads_back(found: Imported, tmp_path: Path) -> None:
    added = add(Store(tmp_path), found)
    assert len(added.new) == len(found.records)
    study = Store(tmp_path).study(found.spec.name)
    assert study.spec() == added.spec
    kept = {r.trial_id: r for r in study.records()}
    assert kept == {r.trial_id: r.model_copy(update={"steps": [], "examples": []}) for r in found.records}


def test_importing_again_adds_nothing(name: str, found: Imported, tmp_path: Path) -> None:
    add(Store(tmp_path), found)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    again = add(Store(tmp_path), plugins.importer(name).read(EXAMPLES / name))
    assert (again.new, again.known) == ([], len(found.records))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before


def test_a_file_gives_the_same_id_whatever_lies_beside_it(name: str, found: Imported) -> None:
    together = {r.trial_id for r in found.records}
    files = [p for p in (EXAMPLES / name).iterdir() if p.is_file()]
    alone = {r.trial_id for p in files for r in plugins.importer(name).read(p).records}
    assert alone == together


def test_files_that_come_later_are_added(name: str, found: Imported, tmp_path: Path) -> None:
    files = sorted(p for p in (EXAMPLES / name).iterdir() if p.is_file())
    for file in files:
        added = add(Store(tmp_path), plugins.importer(name).read(file))
        assert len(added.new) == 1
    assert set(added.spec.arms) == set(found.spec.arms)
    assert added.spec.baseline == found.spec.baseline
    assert len(Store(tmp_path).study(found.spec.name).records()) == len(files)


@pytest.mark.parametrize("make", ["nothing", "an empty folder", "another form", "no JSON"])
def test_what_it_cannot_read_is_refused(name: str, make: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    if make != "nothing":
        path.mkdir()
    if make == "another form":
        (path / "a.json").write_text(json.dumps({"results": [1, 2]}))
    if make == "no JSON":
        (path / "a.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(StoreError, match="theirs") as caught:
        plugins.importer(name).read(path)
    assert caught.value.remedy


def test_a_file_of_another_form_among_others_is_named(name: str, found: Imported, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / name, tmp_path / "theirs")
    (tmp_path / "theirs" / "stray.json").write_text("[]")
    mixed = plugins.importer(name).read(tmp_path / "theirs")
    assert set(mixed.skipped) == {"stray.json"}
    assert mixed.records == found.records


@pytest.mark.parametrize("command", [["show"], ["show", "--runs"], ["recommend"], ["next"]])
def test_what_reads_a_study_reads_it(
    name: str, found: Imported, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(Store(tmp_path), found)
    with pytest.raises(SystemExit) as ended:
        run(harness, [*command, found.spec.name, "--store", str(tmp_path)])
    assert ended.value.code in {0, 5}
    assert capsys.readouterr().out
