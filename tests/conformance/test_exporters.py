"""Every exporter keeps the promises of harness/interfaces.py; nobody lists them here."""

import json
from pathlib import PurePosixPath

import pytest
import yaml
from conftest import MakeRecord, MakeSpec

from harness import plugins
from harness.configuration import Configuration, of_run
from harness.record import Record

EXPORTERS = plugins.names("exporters")


def records(make_record: MakeRecord) -> list[Record]:
    """Full fine-tuning, LoRA, QLoRA at a smaller micro-batch, and a method that is no plugin here."""
    rate = {"learning_rate": 1e-5}
    return [
        make_record({"arm": "full", "method": "full", "params": rate}),
        make_record({"arm": "lora", "params": {**rate, "rank": 4, "targets": "q_proj,v_proj"}}),
        make_record({"arm": "qlora", "quantization": "nf4", "params": {**rate, "rank": 4}, "micro_batch": 2}),
        make_record({"arm": "elsewhere", "method": "boft", "params": {**rate, "blocks": 8}}, resolved={}, data={}),
    ]


@pytest.fixture(params=range(4), ids=["full", "lora", "qlora", "elsewhere"])
def configuration(request: pytest.FixtureRequest, make_record: MakeRecord, make_spec: MakeSpec) -> Configuration:
    return of_run(records(make_record)[request.param], make_spec())


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_exporter_says_what_comes_out_of_it(name: str) -> None:
    about = plugins.exporter(name).about
    assert 3 <= len(about) <= 80
    assert about[0].isupper()


@pytest.mark.parametrize("name", EXPORTERS)
def test_files_are_text_under_relative_paths_and_the_same_each_time(name: str, configuration: Configuration) -> None:
    files = plugins.exporter(name).files(configuration)
    assert files
    for path, text in files.items():
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in PurePosixPath(path).parts
        assert "\\" not in path
        assert text.strip()
        assert text.endswith("\n")
    assert plugins.exporter(name).files(configuration) == files


@pytest.mark.parametrize("name", EXPORTERS)
def test_yaml_and_json_that_are_exported_parse(name: str, configuration: Configuration) -> None:
    for path, text in plugins.exporter(name).files(configuration).items():
        if path.endswith((".yaml", ".yml")):
            assert yaml.safe_load(text), path
        if path.endswith(".json"):
            assert json.loads(text), path


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_is_exported_names_the_run_that_it_is_from(name: str, configuration: Configuration) -> None:
    whole = "\n".join(plugins.exporter(name).files(configuration).values())
    assert configuration.trial_id in whole
    assert configuration.study in whole
