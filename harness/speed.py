"""What the timings of answers say: tokens per second beside a reference, latencies, what a thousand answers cost.

The interval of a median needs no assumption on how times are distributed: of n values in order, x(k) to x(n + 1 - k)
holds the median with probability 1 - 2 P(Binomial(n, 1/2) < k). Below five rounds none holds it nine times in ten.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from harness.record import Speed

LEVEL = 0.9
"""How often the interval of a median should hold it."""

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Median:
    """A median over rounds and its 90 % interval, which is None where the rounds are too few for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Latency:
    """Seconds within which so many of a hundred tokens came; None where the tokens are too few to tell."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Figures:
    """One bit-width at one batch size and prompt length, as it is shown. What was not measured is None."""

    served: str
    batch: int
    context: int
    """Tokens of each prompt."""
    new_tokens: int
    prefill_tokens_per_second: Median
    decode_tokens_per_second: Median | None
    first_token_seconds: Median
    token_latency: Latency
    prefill_ratio: Median | None
    """How many times as fast as the reference, from rounds that both took part in; None without a reference."""
    decode_ratio: Median | None
    cost_per_thousand: float | None
    """Of 1,000 answers in the currency of the price; None without a price."""
    joules_per_thousand: float | None
    """Of 1,000 answers."""
    stored_bytes: int
    prefill_peak_bytes: int | None
    """Highest memory above all weights."""
    decode_peak_bytes: int | None


def figures(speeds: Sequence[Speed], reference: str | None = None, per_hour: float | None = None) -> list[Figures]:
    """What is shown of each measurement, in the same order.

    Args:
        reference: the bit-width that the others are held against, where it was measured at the same shape.
        per_hour: price of the device.
    """
    at = {(s.batch, s.context, s.new_tokens): s for s in speeds if s.served == reference}
    return [_figures(s, at.get((s.batch, s.context, s.new_tokens)), per_hour) for s in speeds]


def tokens_per_second(speed: Speed, phase: Phase) -> Median | None:
    """Tokens of the whole batch in a second: of prompts read, or of answers written. None where none are written."""
    tokens = speed.batch * (speed.context if phase == "prefill" else speed.new_tokens - 1)
    if not tokens:
        return None
    return median([tokens / seconds for seconds in _seconds(speed, phase)])


def ratio(speed: Speed, reference: Speed, phase: Phase) -> Median | None:
    """How many times as fast as the reference: the median over rounds of a ratio within each.

    The two of a round are measured soon after each other, so that what slows the machine down slows both.

    Raises:
        ValueError: they do not answer the same rounds of the same question.
    """
    if _question(speed) != _question(reference):
        raise ValueError(
            f"{speed.served} and {reference.served} cannot be paired: batch, context, new tokens and rounds are "
            f"{_question(speed)} and {_question(reference)}"
        )
    if phase == "decode" and speed.new_tokens == 1:
        return None
    pairs = zip(_seconds(reference, phase), _seconds(speed, phase), strict=True)
    return median([slow / fast for slow, fast in pairs])


def latency(speed: Speed) -> Latency:
    """Percentiles of the time between two tokens of an answer."""
    return Latency(*(percentile(speed.token_seconds, p) for p in (50, 95, 99)))


def cost_per_thousand(speed: Speed, per_hour: float) -> float:
    """What 1,000 answers cost on a device with this price, kept busy with batches like these."""
    return per_hour / 3600 * 1000 * _answer_seconds(speed) / speed.batch


def joules_per_thousand(speed: Speed) -> float | None:
    """What 1,000 answers take from the device's meter; None where it has none."""
    return None if speed.energy_joules is None else 1000 * speed.energy_joules / speed.batch


def median(values: Sequence[float]) -> Median:
    """The median with the narrowest symmetric interval of order statistics that holds it nine times in ten."""
    ordered, n = sorted(values), len(values)
    middle = float(np.median(ordered))
    deepest = 0
    while deepest < n // 2 and 1 - 2 * float(special.bdtr(deepest, n, 0.5)) >= LEVEL:
        deepest += 1
    if not deepest:
        return Median(middle, None, None)
    return Median(middle, ordered[deepest - 1], ordered[n - deepest])


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that so many percent do not exceed; None where fewer than one value would lie beyond it."""
    if len(values) * (100 - percent) < 100:
        return None
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _figures(speed: Speed, reference: Speed | None, per_hour: float | None) -> Figures:
    prefill = tokens_per_second(speed, "prefill")
    assert prefill is not None  # a prompt has tokens
    return Figures(
        served=speed.served,
        batch=speed.batch,
        context=speed.context,
        new_tokens=speed.new_tokens,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=tokens_per_second(speed, "decode"),
        first_token_seconds=median(speed.prefill_seconds),
        token_latency=latency(speed),
        prefill_ratio=None if reference is None else ratio(speed, reference, "prefill"),
        decode_ratio=None if reference is None else ratio(speed, reference, "decode"),
        cost_per_thousand=None if per_hour is None else cost_per_thousand(speed, per_hour),
        joules_per_thousand=joules_per_thousand(speed),
        stored_bytes=speed.stored_bytes,
        prefill_peak_bytes=speed.prefill_peak_bytes,
        decode_peak_bytes=speed.decode_peak_bytes,
    )


def _seconds(speed: Speed, phase: Phase) -> list[float]:
    return speed.prefill_seconds if phase == "prefill" else speed.decode_seconds


def _answer_seconds(speed: Speed) -> float:
    """Of a whole batch from prompt to last token, the median over rounds."""
    return float(np.median(np.add(speed.prefill_seconds, speed.decode_seconds)))


def _question(speed: Speed) -> tuple[int, int, int, int]:
    return speed.batch, speed.context, speed.new_tokens, len(speed.prefill_seconds)
