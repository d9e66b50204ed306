"""Measuring how fast models answer: fair turns, the right tokens, memory that is counted, failures that are told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from harness.accounting import Cpu, stored_bytes
from harness.errors import SpecError
from harness.inference import answer, measure, turns
from harness.record import Speed
from harness.spec import Speeds
from harness.speed import median, ratio

CPU = torch.device("cpu")


class Machine:
    """A clock that runs only while a model computes; every second of work makes later work slower."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.drift = drift

    def read(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds * (1 + self.drift * self.now)


class Costing(nn.Module):
    """Takes a time per call on a machine that it shares, and keeps what it was asked."""

    def __init__(self, name: str, seconds: float, machine: Machine, calls: list[str] | None = None) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=8, max_position_embeddings=64)
        self.weight = nn.Parameter(torch.zeros(4))
        self.name, self.seconds, self.machine = name, seconds, machine
        self.calls = [] if calls is None else calls
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        self.machine.work(self.seconds)
        self.calls.append(self.name)
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8), past_key_values=DynamicCache())


class Refuses(Costing):
    """A kernel that cannot do some batch size."""

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        if len(input_ids) == 2:
            raise NotImplementedError("no kernel for 2 rows\nand a long explanation")
        return super().forward(input_ids, past_key_values, use_cache)


def some(**changes: Any) -> Speeds:
    return Speeds.model_validate({"batches": [1], "contexts": [4], "new_tokens": 3, "repeats": 4, **changes})


def by_name(speeds: list[Speed]) -> dict[str, Speed]:
    return {s.served: s for s in speeds}


def test_each_model_is_measured_at_each_place_of_the_order_as_often() -> None:
    orders = turns(["a", "b", "c"], 6)
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


def test_fewer_rounds_than_models_still_spread_over_the_places() -> None:
    orders = turns(["a", "b", "c", "d"], 2)
    assert orders == [["a", "b", "c", "d"], ["c", "d", "a", "b"]]
    assert turns([], 2) == [[], []]


def test_drift_of_the_machine_cancels_from_paired_ratios_and_not_from_separate_blocks() -> None:
    # the fast one takes 1 s per call, the slow one 1.1 s, and the machine gets 0.1 % slower with every second of work
    def made(machine: Machine) -> dict[str, Any]:
        return {"fast": Costing("fast", 1.0, machine), "slow": Costing("slow", 1.1, machine)}

    machine = Machine(drift=0.001)
    together = by_name(measure(made(machine), some(repeats=8), CPU, machine.read))
    paired = ratio(together["slow"], together["fast"], "decode")
    assert paired is not None
    assert 1 / paired.value == pytest.approx(1.1, rel=0.005)

    def in_blocks(first: str, second: str) -> float:
        """The same ratio where all rounds of one come before all rounds of the other."""
        machine = Machine(drift=0.001)
        models = made(machine)
        found = {n: measure({n: models[n]}, some(repeats=8), CPU, machine.read)[0] for n in (first, second)}
        return median(found["slow"].decode_seconds).value / median(found["fast"].decode_seconds).value

    # drift is taken for slowness, or for speed: by the order alone
    assert in_blocks("fast", "slow") > 1.12
    assert in_blocks("slow", "fast") < 1.08


def test_every_model_warms_up_before_any_is_timed() -> None:
    machine = Machine()
    calls: list[str] = []
    models: Any = {name: Costing(name, 1.0, machine, calls) for name in ("a", "b")}
    measure(models, some(new_tokens=1, repeats=2), CPU, machine.read)
    # per model an answer to warm up and one for its memory, then the turns
    assert calls == ["a", "a", "b", "b", "a", "b", "b", "a"]


def test_the_prompt_and_each_later_token_are_timed_apart() -> None:
    machine = Machine()
    model: Any = Costing("a", 0.5, machine)
    (speed,) = measure({"a": model}, some(batches=[2], new_tokens=4, repeats=2), CPU, machine.read)
    assert speed.prefill_seconds == [0.5, 0.5]
    assert speed.decode_seconds == [1.5, 1.5]
    assert speed.token_seconds == [0.5] * 6
    assert model.shapes[:4] == [(2, 4), (2, 1), (2, 1), (2, 1)]
    assert speed.energy_joules is None


def test_every_batch_meets_every_context() -> None:
    machine = Machine()
    model: Any = Costing("a", 1.0, machine)
    speeds = measure({"a": model}, some(batches=[1, 3], contexts=[2, 5]), CPU, machine.read)
    assert [(s.batch, s.context) for s in speeds] == [(1, 2), (1, 5), (3, 2), (3, 5)]


def test_a_sequence_beyond_the_positions_is_refused_before_anything_runs() -> None:
    machine = Machine()
    model: Any = Costing("nf4", 1.0, machine)
    with pytest.raises(SpecError, match=r"62 tokens .* 3 new .* 65, but nf4 has positions for 64") as refused:
        measure({"nf4": model}, some(contexts=[2, 62]), CPU, machine.read)
    assert refused.value.remedy == "contexts of 61 or fewer"
    assert machine.now == 0
    assert measure({"nf4": model}, some(contexts=[61]), CPU, machine.read)


def test_a_shape_that_a_model_cannot_do_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine()
    models: Any = {"odd": Refuses("odd", 1.0, machine), "even": Costing("even", 1.0, machine)}
    speeds = measure(models, some(batches=[1, 2]), CPU, machine.read)
    assert [(s.served, s.batch) for s in speeds] == [("odd", 1), ("even", 1), ("even", 2)]
    told = capsys.readouterr().out
    assert told == (
        "warning: speed of odd at batch 2, context 4 is left out: NotImplementedError: no kernel for 2 rows\n"
    )


def test_a_model_that_fails_in_a_later_round_leaves_no_half_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine()

    class Tires(Costing):
        def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
            if len(self.shapes) == 9:  # warm-up and memory are 3 calls each
                raise torch.OutOfMemoryError("enough")
            return super().forward(input_ids, past_key_values, use_cache)

    models: Any = {"tires": Tires("tires", 1.0, machine), "lasts": Costing("lasts", 1.0, machine)}
    speeds = measure(models, some(), CPU, machine.read)
    assert [(s.served, len(s.prefill_seconds)) for s in speeds] == [("lasts", 4)]
    assert "OutOfMemoryError: enough" in capsys.readouterr().out


def test_the_tokens_are_those_of_generate(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    prompt = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    found = answer(model, prompt, 6, Cpu(), Machine().read)
    expected = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert found.tokens.tolist() == expected[:, 12:].tolist()


def test_an_answer_goes_on_whatever_the_model_would_say(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    prompt = torch.randint(5, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    model.generation_config.eos_token_id = int(answer(model, prompt, 1, Cpu(), Machine().read).tokens[0, 0])
    assert answer(model, prompt, 6, Cpu(), Machine().read).tokens.shape == (1, 6)


def test_memory_above_the_weights_is_cache_and_what_a_step_needs(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    small, large = measure(
        {"fp32": model}, Speeds(batches=[2], contexts=[16, 128], new_tokens=8, repeats=1), torch.device("cpu")
    )
    assert small.stored_bytes == stored_bytes(model)

    def cache(tokens: int) -> int:
        # keys and values of 2 layers, 64 numbers of 4 bytes each, for 2 rows
        return 2 * 2 * 64 * 4 * 2 * tokens

    assert small.prefill_peak_bytes is not None and large.prefill_peak_bytes is not None
    assert large.decode_peak_bytes is not None
    # the prompt's cache, and the activations of a layer beside it, which are a few times the cache of one
    assert cache(128) < large.prefill_peak_bytes < 4 * cache(128)
    assert small.prefill_peak_bytes < large.prefill_peak_bytes / 4
    # the whole cache and one layer's old keys or values while they are appended to, but nothing of the size of a prompt
    assert cache(128 + 7) < large.decode_peak_bytes < 2 * cache(128 + 7)


def test_a_long_prompt_makes_no_logits_but_those_of_its_last_position() -> None:
    shape = LlamaConfig(
        vocab_size=8000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=256,
    )  # fmt: skip
    (speed,) = measure({"fp32": LlamaForCausalLM(shape)}, some(contexts=[128], repeats=1), CPU)
    assert speed.prefill_peak_bytes is not None
    assert speed.prefill_peak_bytes < 128 * 8000 * 4 / 4  # all of them would be four times as much alone
