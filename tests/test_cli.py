"""The command line: quick, polite, and with exit codes that a script can rely on."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from harness.cli import harness, run
from harness.cli._presets import find_study, known_studies
from harness.errors import NotReady, SpecError


def ends_with(*arguments: str, command: click.Command = harness) -> int:
    with pytest.raises(SystemExit) as caught:
        run(command, list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def one_that(error: BaseException | int | None) -> click.Command:
    """A command that raises, or returns an exit code."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    return command


def test_help_imports_nothing_heavy() -> None:
    # every command file is imported for its help line, so one careless import at the top of any of them shows here
    code = (
        "import sys\nfrom harness.cli import harness, run\n"
        "try: run(harness, ['--help'])\n"
        "except SystemExit: print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "doctor" in done.stdout
    loaded = set(eval(done.stderr))
    assert not loaded & {"torch", "transformers", "pandas", "numpy", "pyarrow", "pydantic", "rich", "huggingface_hub"}


def test_every_command_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(harness)
    for name in harness.list_commands(context):
        command = harness.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(), name
        assert ends_with(name, "--help") == 0


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("docter") == 2
    out, err = capsys.readouterr()
    assert err == "error: no command 'docter'; did you mean doctor?\n  do: harness --help\n"
    assert out == ""


def test_a_misspelt_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("doctor", "--jsno") == 2
    assert "--json" in capsys.readouterr().err


def test_the_version_is_the_packages() -> None:
    assert ends_with("--version") == 0


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (None, 0),
        (3, 3),
        (5, 5),
        (SpecError("x"), 2),
        (NotReady("x"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(outcome: BaseException | int | None, code: int) -> None:
    assert ends_with(command=one_that(outcome)) == code


def test_an_error_is_one_line_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(command=one_that(NotReady("no GPU; no model", "get a GPU\nget a model"))) == 4
    assert capsys.readouterr().err == "error: no GPU; no model\n  do: get a GPU\n  do: get a model\n"


def test_an_error_is_an_object_when_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("--json", command=one_that(SpecError("bad key", "mend it"))) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "bad key", "remedy": "mend it", "exit_code": 2}
    assert err == ""


def test_an_unexpected_error_asks_for_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARNESS_DEBUG", raising=False)
    assert ends_with(command=one_that(ValueError("boom"))) == 1
    err = capsys.readouterr().err
    assert "error: unexpected ValueError: boom" in err
    assert "HARNESS_DEBUG=1" in err
    monkeypatch.setenv("HARNESS_DEBUG", "1")
    with pytest.raises(ValueError, match="boom"):
        run(one_that(ValueError("boom")), [])


def test_an_interrupt_says_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(command=one_that(KeyboardInterrupt()))
    assert capsys.readouterr().err.strip() == "stopped"


def test_a_reader_who_has_had_enough_sees_no_traceback() -> None:
    code = "from harness.cli import harness, run; run(harness, ['presets', 'show', 'llama2-7b-methods'])"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | true'], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_the_shipped_studies_are_listed_with_their_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("presets", "ls", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"tiny-methods", "llama2-7b-methods"} <= set(rows)
    assert rows["llama2-7b-methods"]["model"] == "meta-llama/Llama-2-7b-hf"
    assert all(row["question"].endswith("?") for row in rows.values())


def test_a_study_is_shown_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("presets", "show", "tiny-methods") == 0
    assert capsys.readouterr().out.rstrip() == find_study("tiny-methods").read_text().rstrip()
    assert ends_with("presets", "show", "tiny-methods", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny-methods"


def test_a_copied_study_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    assert ends_with("presets", "cp", "tiny-methods", str(target)) == 0
    target.write_text("name: mine\n")
    assert ends_with("presets", "cp", "tiny-methods", str(target)) == 2
    assert "exists, and is not overwritten" in capsys.readouterr().err
    assert target.read_text() == "name: mine\n"


def test_a_study_can_be_copied_into_a_folder(tmp_path: Path) -> None:
    assert ends_with("presets", "cp", "tiny-methods", str(tmp_path)) == 0
    assert (tmp_path / "tiny-methods.yaml").is_file()


def test_an_unknown_study_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("presets", "show", "tiny-metods") == 2
    assert capsys.readouterr().err == (
        "error: no study 'tiny-metods'; did you mean tiny-methods?\n  do: harness presets ls\n"
    )


def test_a_study_of_ones_own_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "tiny-methods.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert find_study("tiny-methods").read_text() == "name: mine\n"
    assert "llama2-7b-methods" in known_studies()


def test_a_study_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\n")
    assert find_study(str(path)) == path
    with pytest.raises(SpecError, match="no file"):
        find_study(str(tmp_path / "y.yaml"))


def test_doctor_ends_with_4_when_something_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.jsonl"
    assert ends_with("doctor", "tiny-methods", f"controls.data.path={missing}", "--json") == 4
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == 4
    assert [c["what"] for c in report["checks"] if c["level"] == "fail"] == [
        f"controls.data.path: no file '{missing}', and it is not a hub id (owner/name)"
    ]
