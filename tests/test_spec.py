"""A study file is checked to the last key, and says what would be right."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.spec import StudySpec, digest, dump_study, load_study

STUDY = """
name: small
question: Does it load?
controls:
  model: {id: tiny}
  data: {path: tiny}
arms:
  full:
    method: full
    quantization: fp32
    search:
      learning_rate: {low: 1e-5, high: 1e-3, log: true, start: [1e-4]}
  lora:
    method: lora
    quantization: nf4
    params: {rank: 8, learning_rate: 1e-3}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    return path


def why_not(study: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_study(study, overrides)
    return caught.value.message


def test_a_misspelt_key_is_named_with_the_nearest_one(study: Path) -> None:
    assert "controls.train.epoch is not a key; did you mean epochs?" in why_not(study, "controls.train.epoch=3")
    assert "arms.lora.quantisation is not a key; did you mean quantization?" in why_not(
        study, "arms.lora.quantisation=nf4"
    )
    assert "arms.full.search.learning_rate.lo is not a key; did you mean low?" in why_not(
        study, "arms.full.search.learning_rate.lo=1e-5"
    )


def test_a_key_in_the_wrong_place_is_sent_to_the_right_one(study: Path) -> None:
    assert "did you mean controls.train.epochs?" in why_not(study, "epochs=3")


def test_the_keys_of_an_arm_are_offered_whatever_the_arm_is_called(study: Path) -> None:
    # an arm named like one of an arm's keys must not be taken for that key
    arm = "arms.search={method: full, quantizatio: fp32, params: {learning_rate: 1e-3}}"
    assert "did you mean quantization?" in why_not(study, arm)


def test_an_unknown_arm_in_an_override_is_not_created(study: Path) -> None:
    assert "no arm 'lorra'; did you mean lora?" in why_not(study, "arms.lorra.params.rank=4")


def test_an_unknown_baseline_is_named_with_the_nearest_arm(study: Path) -> None:
    assert "objective.baseline 'ful' is not an arm; did you mean full?" in why_not(study, "objective.baseline=ful")


def test_the_first_arm_is_the_baseline_unless_one_is_named(study: Path) -> None:
    assert load_study(study).baseline == "full"
    assert load_study(study, ["objective.baseline=lora"]).baseline == "lora"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("controls.train.epochs=abc", "controls.train.epochs: should be a number, got 'abc'"),
        ("controls.train.epochs=0", "controls.train.epochs: should be greater than 0, got 0"),
        ("controls.train.epochs=.nan", "controls.train.epochs: should be a finite number, got nan"),
        ("controls.evaluate.tasks=3", "controls.evaluate.tasks: should be a list or 'auto', got 3"),
        ("controls.evaluate.tasks=[3]", "controls.evaluate.tasks.0: should be text, got 3 (in quotes"),
        ("controls.train.micro_batch=3", "controls.train: micro_batch 3 does not divide batch 16"),
        ("controls.model=3", "controls.model: should be keys with values, got 3"),
        ("controls.model={}", "controls.model.id is missing"),
        ("search.trials=2.5", "search.trials: should be a whole number, got 2.5"),
        ("confirm.seeds=[]", "confirm.seeds: should be not empty, got []"),
        ("confirm.seeds=[5, 5]", "the same seed twice in [5, 5] would count one run as two"),
        ("name=a/b", "name: should be letters, digits, '.', '_' and '-'"),
        ("name=7", "name: should be text, got 7 (in quotes it would be text)"),
        ("name.x=7", "name is a value, it has no keys below it"),
        ("arms={4: {method: full, quantization: fp32}}", "arms.4: should be text, got 4"),
        ("arms.full.search={}", "arms.full: needs a learning_rate"),
        ("arms.full.params.learning_rate=1e-3", "arms.full: learning_rate is both fixed (params) and searched"),
        ("arms.full.search.learning_rate.start=[1]", "start value 1 lies outside the range"),
        ("arms.full.search.learning_rate.start=[fast]", "start value 'fast' is not a number"),
        ("arms.full.search.learning_rate.low=0", "a log range needs low > 0, got 0"),
        ("question=[", "the value is not valid YAML"),
        ("question", "'question' is not an override"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(study: Path, override: str, message: str) -> None:
    assert message in why_not(study, override)


def test_a_seed_that_tuning_used_cannot_also_judge(study: Path) -> None:
    assert "confirm.seeds contains 7, a seed that tuning used" in why_not(
        study, "search.seed=7", "confirm.seeds=[7, 8]"
    )


def test_an_arm_cannot_take_the_name_of_the_untrained_base(study: Path) -> None:
    arm = "arms.zero-shot={method: full, quantization: fp32, params: {learning_rate: 1e-3}}"
    assert "'zero-shot' cannot name an arm" in why_not(study, arm)


def test_numbers_and_lists_in_overrides_are_read_as_such(study: Path) -> None:
    spec = load_study(
        study,
        [
            "arms.lora.params.learning_rate=1e-3",
            "arms.full.search.learning_rate.start=[1e-4, 2e-4]",
            "controls.evaluate.tasks=[a, b]",
            "limits.trial_minutes=2",
        ],
    )
    assert spec.arms["lora"].params["learning_rate"] == 0.001
    assert spec.arms["full"].search["learning_rate"].start == [1e-4, 2e-4]
    assert spec.controls.evaluate.tasks == ["a", "b"]
    assert spec.limits.trial_minutes == 2


def test_an_override_that_changes_the_question_changes_the_name(study: Path) -> None:
    plain, other = load_study(study), load_study(study, ["controls.train.epochs=2"])
    assert other.name == f"small-{other.question_id[:6]}"
    assert other.question_id != plain.question_id


def test_more_trials_seeds_or_another_margin_keep_the_name(study: Path) -> None:
    spec = load_study(study, ["search.trials=9", "confirm.seeds=[1, 2]", "objective.margin=0.1"])
    assert spec.name == "small"
    assert spec.question_id == load_study(study).question_id


def test_a_name_among_the_overrides_is_kept(study: Path) -> None:
    assert load_study(study, ["controls.train.epochs=2", "name=mine"]).name == "mine"


def test_an_override_with_the_value_that_is_there_changes_nothing(study: Path) -> None:
    assert load_study(study, ["controls.train.epochs=1"]) == load_study(study)


def test_an_arm_given_twice_is_refused(tmp_path: Path) -> None:
    # plain YAML would keep the last one and say nothing
    path = tmp_path / "x.yaml"
    path.write_text(STUDY + "  full: {method: full, quantization: bf16, params: {learning_rate: 1e-3}}\n")
    assert "line 17: 'full' is there twice" in why_not(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a study file is a mapping of keys, this is NoneType"),
        ("- a", "a study file is a mapping of keys, this is list"),
        ("a: [", "not valid YAML, line 1"),
        ("[1]: 2", "a key is one word"),
        ("a: !!python/object:os.system ls", "not valid YAML, line 1"),
        ("name: x", "controls is missing"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert message in why_not(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in why_not(tmp_path / "nothing.yaml")


def test_a_dumped_study_reads_back_as_itself(study: Path, tmp_path: Path) -> None:
    spec = load_study(study)
    (tmp_path / "dumped.yaml").write_text(dump_study(spec))
    assert load_study(tmp_path / "dumped.yaml") == spec


scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)


@given(
    question=st.text(max_size=40),
    # a commit such as 12e4567 is text; unquoted it would come back as a number
    revision=st.none() | st.text(max_size=12) | st.from_regex(r"\A[0-9]{1,4}e[0-9]{1,4}\Z"),
    params=st.dictionaries(st.text(min_size=1, max_size=8), scalars, max_size=4),
    rate=st.floats(min_value=1e-9, max_value=1.0),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_study_survives_being_written_and_read(
    tmp_path: Path, question: str, revision: str | None, params: dict[str, Any], rate: float
) -> None:
    arm = {"method": "lora", "quantization": "nf4", "params": {**params, "learning_rate": rate}}
    controls = {"model": {"id": "tiny", "revision": revision}, "data": {"path": "tiny"}}
    spec = StudySpec.model_validate({"name": "x", "question": question, "controls": controls, "arms": {"a": arm}})
    path = tmp_path / "x.yaml"
    path.write_text(dump_study(spec), encoding="utf-8")
    assert load_study(path) == spec
    assert load_study(path).question_id == spec.question_id


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))
