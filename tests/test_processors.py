"""Names in, processors out: as people write them, as drivers report them, as a user describes one."""

from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.forecast import processors
from harness.forecast.processors import find, known, nameless, reported


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("A100_80GB", "A100-80GB"),
        ("A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("A100-40GB SXM", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("Tesla T4", "T4"),
        ("a6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("CPU", "cpu"),
    ],
)
def test_a_gpu_is_found_however_its_name_is_written(written: str, name: str) -> None:
    assert find(written).name == name


def test_every_card_of_the_table_is_found_by_its_own_name_and_no_two_share_one() -> None:
    assert [find(name).name for name in known()] == known()
    spellings = [key for card in processors._table() for key in set(processors._keys(card))]
    assert len(spellings) == len(set(spellings))


def test_memory_is_what_torch_may_use_and_not_what_is_sold() -> None:
    assert find("RTX 4090").memory_bytes == round(23.64 * 2**30)
    sold = {"T4": 16, "A100-80GB": 80, "H100-SXM": 80, "RTX 3090": 24, "L4": 24}
    for name, gigabytes in sold.items():
        usable = find(name).memory_bytes
        assert usable is not None
        assert 0.9 < usable / (gigabytes * 2**30) < 1


def test_a_dtype_that_a_card_lacks_runs_at_the_rate_of_fp32() -> None:
    card = find("T4")
    assert "bf16" not in card.flops
    assert card.rate("bf16") == card.rate("fp32")
    # 65 TFLOPS on paper, of which 70 W leave a third
    assert card.rate("fp16") == pytest.approx(65e12 * 0.35)


def test_a_size_alone_is_a_card_of_that_size_with_a_doubt_and_no_price() -> None:
    card = find("24 GB")
    assert card.memory_bytes == round(24 * 2**30 * 0.98)
    assert card.flops == find("RTX 3090").flops
    assert card.per_hour is None
    assert card.doubts
    assert card.spread > find("RTX 3090").spread
    assert find("24gb") == find("24 GiB") == card


def test_a_size_between_those_of_the_table_takes_the_nearest_by_ratio() -> None:
    assert nameless(20).flops == find("RTX 3090").flops
    assert nameless(64).flops == find("A100-80GB").flops


def test_a_size_that_no_gpu_has_is_refused() -> None:
    with pytest.raises(SpecError, match="not the size of a GPU"):
        find("0 GB")


def test_an_unknown_gpu_is_refused_with_the_nearest_and_with_what_else_can_be_given() -> None:
    with pytest.raises(SpecError, match="did you mean RTX 4090") as refusal:
        find("RTX 4900")
    assert "24 GB" in str(refusal.value.remedy)
    with pytest.raises(SpecError, match=r"there are: .*H100"):
        find("abacus")


def test_a_gpu_of_ones_own_is_read_from_a_file_in_the_units_of_data_sheets(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{name: Mine, memory_gib: 10, bandwidth_gb_s: 500, tflops: {fp32: 20, bf16: 40}, per_hour: 0.1}")
    mine = find(str(file))
    assert (mine.name, mine.kind, mine.memory_bytes) == ("Mine", "cuda", 10 * 2**30)
    assert (mine.bandwidth, mine.flops["bf16"], mine.per_hour) == (500e9, 40e12, 0.1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{name: A, memory_gb: 10, bandwidth_gb_s: 500, tflops: {fp32: 20}}", "memory_gib"),
        ("{name: A, memory_gib: 10, bandwidth_gb_s: 0, tflops: {fp32: 20}}", "bandwidth_gb_s"),
        ("{name: A, memory_gib: 10, bandwidth_gb_s: 500, tflops: {bf16: 20}}", "lacks fp32"),
        ("{name: A, memory_gib: 10, bandwidth_gb_s: 500, tflops: {fp32: 0}}", "tflops"),
        ("{name: A, memory_gib: .nan, bandwidth_gb_s: 500, tflops: {fp32: 20}}", "memory_gib"),
        ("just words", "entry"),
    ],
)
def test_a_file_that_does_not_describe_a_gpu_is_refused_by_key(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=complaint):
        find(str(file))


def test_a_reported_card_is_the_one_of_the_table() -> None:
    # the driver counts what torch cannot use: 81,920 MiB
    assert reported("NVIDIA A100-SXM4-80GB", 81_920 * 2**20) == find("A100-80GB")


def test_a_reported_card_that_is_not_in_the_table_keeps_its_name_and_size() -> None:
    card = reported("NVIDIA GeForce RTX 7777", 32 * 2**30)
    assert card.name == "NVIDIA GeForce RTX 7777"
    assert card.memory_bytes == round(32 * 2**30 * 0.98)
    assert card.doubts


def test_a_slice_of_a_card_has_the_size_of_the_slice() -> None:
    card = reported("NVIDIA A100-SXM4-80GB", 20 * 2**30)
    assert card.memory_bytes == round(20 * 2**30 * 0.98)
    assert card.doubts


def test_a_cpu_has_no_memory_to_fit_and_times_of_little_trust() -> None:
    card = find("cpu")
    assert (card.kind, card.memory_bytes, card.per_hour) == ("cpu", None, None)
    assert card.spread > 0.5
    assert card.doubts
