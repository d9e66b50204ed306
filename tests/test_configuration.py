"""What exporters are given: everything from the record, with the figures of all judged runs."""

from conftest import MakeRecord, MakeSpec

from harness import plugins
from harness.configuration import of_run


def test_the_settings_are_those_of_the_run_with_the_micro_batch_that_fitted(
    make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    run = make_record({"micro_batch": 4})
    training = of_run(run, make_spec()).training
    assert (training.batch, training.micro_batch, training.accumulation) == (16, 4, 4)
    assert (training.learning_rate, training.seed) == (0.002, 101)


def test_parameters_that_were_not_given_stand_with_their_defaults(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    found = of_run(make_record({"quantization": "nf4"}), make_spec())
    assert found.method.params["alpha"] == 16  # given were rank 8 and the learning rate
    assert found.stored.bits == 4
    assert found.stored.params == {"double_quant": True}


def test_the_layers_of_an_adapter_stand_in_one_order(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    # a set of text has another order in every process, and the same configuration must give the same file
    run = make_record({"params": {"learning_rate": 0.1, "targets": "v_proj,q_proj,k_proj,o_proj"}})
    adapter = of_run(run, make_spec()).method.adapter
    assert adapter is not None
    assert adapter.targets == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_a_foreign_arm_keeps_a_setting_of_training_that_is_its_own(
    make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    # the file would else name two weight decays, and the wrong one where a reader looks
    run = make_record({"method": "boft", "params": {"learning_rate": 1e-4, "weight_decay": 0.25, "blocks": 8}})
    found = of_run(run, make_spec(origin={"tool": "PEFT"}))
    assert found.training.weight_decay == 0.25
    assert found.method.params == {"blocks": 8}
    assert (found.origin, found.training.loss_on) == ("PEFT", None)


def test_a_figure_is_the_mean_over_seeds_and_memory_the_highest(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    small = make_record(seconds=10.0)
    large = make_record({"seed": 102}, seconds=20.0, memory={**_bytes(), "step_peak": 900})
    found = {f.name: f for f in of_run(small, make_spec(), [small, large]).measured}
    assert found["time of a run"].value == 15.0
    assert found["peak memory"].value == 400 + 40 + 80 + 900
    assert found["time of a run"].runs == [small.trial_id, large.trial_id]


def test_one_run_has_no_interval(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    measured = of_run(make_record(), make_spec()).measured
    assert measured
    assert all(f.low is None and f.high is None for f in measured)


def test_a_commit_on_the_hub_is_the_revision_and_a_hash_of_files_is_not(
    make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert of_run(make_record({"model_digest": commit}), make_spec()).model.revision == commit
    assert of_run(make_record(), make_spec()).model.revision is None


def test_local_files_are_named_without_their_folders(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    base = make_record()
    controls = base.trial.controls
    model = controls.model.model_copy(update={"id": "/srv/ana/models/base"})
    data = controls.data.model_copy(update={"path": "/srv/ana/rows.jsonl"})
    run = make_record({"controls": controls.model_copy(update={"model": model, "data": data})})
    found = of_run(run, make_spec())
    assert (found.model.id, found.data.path) == ("base", "rows.jsonl")
    for name in plugins.names("exporters"):
        assert "ana" not in "".join(plugins.exporter(name).files(found).values())


def test_gpus_are_of_the_hardware_only_where_the_run_used_them(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    machine = {"gpus": [{"name": "A10"}, {"name": "L40S"}], "cpu": "EPYC", "cores": 8}
    on_gpu = make_record(environment=machine, resolved={"device": "cuda:0"})
    on_cpu = make_record(environment=machine, resolved={"device": "cpu"})
    assert of_run(on_gpu, make_spec()).hardware == "A10; L40S; EPYC, 8 cores"
    assert of_run(on_cpu, make_spec()).hardware == "EPYC, 8 cores"


def test_a_price_makes_a_cost_of_the_hours(make_record: MakeRecord, make_spec: MakeSpec) -> None:
    priced = make_spec(prices={"per_hour": 2.0, "currency": "EUR"})
    cost = next(f for f in of_run(make_record(seconds=1800.0), priced).measured if f.name == "cost of a run")
    assert (cost.value, cost.unit) == (1.0, "EUR")


def _bytes() -> dict[str, int]:
    return {"weights": 400, "adapter": 40, "gradients": 40, "optimizer": 80}
