"""Bytes of tensors: each storage once, scales and code tables included, and the peak of a step."""

import gc

import pytest
import torch
from torch import nn

from harness.accounting import Cpu, gradient_bytes, step_peak, stored_bytes, tensor_bytes

MIB = 1 << 20


def test_every_weight_and_buffer_is_counted_in_its_own_dtype() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2, bias=False).to(torch.bfloat16))
    model.register_buffer("table", torch.zeros(10, dtype=torch.int8))
    # 8 x 4 weights and 4 biases of 4 bytes, 4 x 2 weights of 2 bytes, 10 bytes
    assert stored_bytes(model) == 36 * 4 + 8 * 2 + 10


def test_a_weight_that_is_shared_is_counted_once() -> None:
    one, other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    other.weight = one.weight
    assert stored_bytes(nn.Sequential(one, other)) == 64 * 4
    other.weight = nn.Parameter(one.weight.data[:4])  # a view of the same storage
    assert stored_bytes(nn.Sequential(one, other)) == 64 * 4


def test_weights_on_no_device_take_no_bytes() -> None:
    assert stored_bytes(nn.Linear(8, 8, device="meta")) == 0


def test_the_state_of_an_optimizer_is_counted() -> None:
    layer = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert tensor_bytes(dict(optimizer.state)) == 2 * 64 * 4 + 4  # two moments and the number of the step
    assert gradient_bytes(layer) == 64 * 4
    optimizer.zero_grad(set_to_none=True)
    assert gradient_bytes(layer) == 0


@pytest.mark.parametrize(("nested", "scales"), [(False, 256 * 4), (True, 256 + 4 + 256 * 4 + 4)])
def test_scales_and_tables_of_4_bit_weights_are_counted(nested: bool, scales: int) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(128, 128, bias=False, quant_type="nf4", compress_statistics=nested)
    layer.to("cpu")
    assert layer.weight.quant_state is not None
    # 128 x 128 weights of half a byte in 256 blocks of 64; a table of 16 numbers. The scales are one number a block,
    # or one byte a block, one number for all 256 of them, a table of 256 numbers and an offset
    assert stored_bytes(layer) == 128 * 128 // 2 + 16 * 4 + scales


def test_scales_of_8_bit_weights_are_counted_before_and_after_use() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    layer.to("cpu")
    assert stored_bytes(layer) == 128 * 64 + 64 * 4  # a byte a weight, a number a row
    layer(torch.ones(2, 128))  # moves the scales from the weight to the layer's state
    assert stored_bytes(layer) == 128 * 64 + 64 * 4


def test_the_peak_of_a_step_is_what_was_held_at_once() -> None:
    def step() -> None:
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        del first
        third = torch.empty(MIB // 2, dtype=torch.uint8)
        del second, third

    # 1 + 2 at once, never 1 + 2 + 0.5
    assert step_peak(step, torch.device("cpu")) == pytest.approx(3 * MIB, rel=0.01)


def test_memory_that_was_in_use_before_is_not_the_steps() -> None:
    before = torch.empty(8 * MIB, dtype=torch.uint8)
    assert step_peak(lambda: torch.empty(MIB, dtype=torch.uint8), torch.device("cpu")) < 2 * MIB
    del before


def test_garbage_of_an_earlier_step_does_not_hide_memory() -> None:
    def earlier() -> None:
        garbage: list[object] = [torch.empty(8 * MIB, dtype=torch.uint8)]
        garbage.append(garbage)  # a cycle: freed when the collector runs, not before

    def step() -> None:
        gc.collect()  # as the interpreter may, at any moment
        torch.empty(2 * MIB, dtype=torch.uint8)

    gc.disable()
    try:
        step_peak(earlier, torch.device("cpu"))
        assert step_peak(step, torch.device("cpu")) == pytest.approx(2 * MIB, rel=0.01)
    finally:
        gc.enable()


def test_a_training_step_needs_at_least_its_gradients() -> None:
    layer = nn.Linear(512, 512, bias=False)  # 1 MiB of weights

    def step() -> None:
        layer(torch.ones(4, 512)).sum().backward()

    assert step_peak(step, torch.device("cpu")) >= MIB


def test_a_cpu_has_no_allocator_to_ask_and_no_counter_of_energy() -> None:
    assert Cpu().peaks() == {}
    assert Cpu().energy_joules() is None
