"""The benchmark that scores the forecast: its arithmetic, and the published measurements that it must meet."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT.parent / "shared" / "data" / "published_measurements.csv"


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("forecast_accuracy")


def test_a_source_with_many_rows_weighs_no_more_than_one_with_few(accuracy: ModuleType) -> None:
    def points(source: str, n: int, forecast: float) -> list[object]:
        one = accuracy.Point("r1", source, "fit", "lora", "A", "allocated", 10.0, forecast, True)
        return [one] * n

    # nine rows of the one publisher are 10 % off, the one row of the other 30 %: 20 % between them
    found = accuracy.errors(points("many", 9, 11.0) + points("few", 1, 13.0))
    assert found["mape"] == pytest.approx(0.20)
    assert found["median"] == pytest.approx(0.10)
    assert found["p95"] == found["worst"] == pytest.approx(0.30)


def test_a_verdict_near_the_edge_of_the_card_is_not_judged(accuracy: ModuleType) -> None:
    inside = accuracy.Verdict("r1", "x", fitted=True, share=1.04)
    assert not inside.judged
    wrong = accuracy.Verdict("r1", "x", fitted=True, share=1.06)
    assert wrong.judged and not wrong.right
    assert accuracy.Verdict("r1", "x", fitted=False, share=1.06).right


def test_a_row_that_cannot_be_forecast_is_counted_with_its_reason(accuracy: ModuleType) -> None:
    columns = (
        "row_id", "source", "model", "method", "base_bits", "optimizer", "lora_rank", "lora_targets", "micro_batch",
        "grad_accum", "seq_len", "grad_checkpointing", "attention", "packing", "precision", "n_gpus", "sharding", "gpu",
        "peak_mem_gb", "mem_kind", "tokens_per_s", "time_h", "notes", "peak_mem_alt_gb", "mem_alt_kind", "loss_kernel",
        "quality",
    )  # fmt: skip
    row = dict.fromkeys(columns) | {
        "row_id": "r1", "source": "someone", "model": "meta-llama/Llama-2-7b-hf", "method": "full", "micro_batch": 1,
        "peak_mem_gb": 70.0, "mem_kind": "allocated", "quality": "A",
    }  # fmt: skip
    points, verdicts, reasons = accuracy.memory_points([row])
    assert not points and not verdicts
    assert reasons == {"seq_len is not stated": 1}


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"needs {PUBLISHED}")
def test_published_memory_is_met_within_the_stated_errors(accuracy: ModuleType) -> None:
    """The anchors: 1.6 % for full fine-tuning (LLMem), 1.4 % on a holdout for LoRA and QLoRA (fitcheck-llm)."""
    points, verdicts, _ = accuracy.memory_points(accuracy.read(PUBLISHED))
    exact = [p for p in points if p.kind == "allocated" and p.quality == "A"]
    for family in ("fit", "check"):
        found = accuracy.errors([p for p in exact if p.family == family])
        assert found["n"] > 100
        assert found["mape"] <= 0.016
    assert accuracy.errors(exact)["p95"] <= 0.05
    held = accuracy.errors([p for p in points if p.kind in {"reserved", "process"}])
    assert held["inside"] >= 0.85
    judged = [v for v in verdicts if v.judged]
    assert sum(not v.fitted for v in judged) > 50
    assert sum(v.right for v in judged) >= 0.95 * len(judged)
