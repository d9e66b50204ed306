"""How fast models answer: the prompt up to the first token, then token by token with the key-value cache."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from harness import accounting
from harness.errors import SpecError
from harness.measure import Device
from harness.record import Speed
from harness.spec import Speeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Done = TypeVar("Done")


@dataclass(frozen=True)
class Answer:
    """One greedy answer of a batch, with the seconds it took."""

    tokens: torch.Tensor
    """[batch, new tokens]"""
    prefill_seconds: float
    """From the prompt to the first token."""
    token_seconds: list[float]
    """Of each later token."""


@dataclass
class _Bench:
    """What is measured with: the same for every model and shape."""

    device: torch.device
    instrument: Device
    clock: Callable[[], float]
    new_tokens: int


@dataclass
class _Tally:
    """What is known of one model at one shape so far."""

    stored_bytes: int
    prefill_peak_bytes: int
    decode_peak_bytes: int
    answers: list[Answer] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)


def measure(
    models: Mapping[str, "PreTrainedModel"],
    speeds: Speeds,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Speed]:
    """Time every model at every batch size and prompt length, taking turns (see `turns`).

    A model that fails at a shape is left out there, with a printed line that says why; the others go on.

    Raises:
        SpecError: prompt and answer would be longer than a model has positions.
    """
    refuse_too_long(models, speeds)
    instrument = accounting.Cuda(device) if device.type == "cuda" else accounting.Cpu()
    bench = _Bench(device, instrument, clock, speeds.new_tokens)
    for model in models.values():
        model.eval()
    words = min(model.config.get_text_config().vocab_size for model in models.values())
    found: list[Speed] = []
    for batch in speeds.batches:
        for context in speeds.contexts:
            ids = torch.randint(words, (batch, context), generator=torch.Generator().manual_seed(0)).to(device)
            found += _at_one_shape(models, ids, speeds.repeats, bench)
    return found


def refuse_too_long(models: Mapping[str, "PreTrainedModel"], speeds: Speeds) -> None:
    """Raises SpecError where a prompt and its answer are longer than a model has positions."""
    longest = max(speeds.contexts) + speeds.new_tokens
    for name, model in models.items():
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and longest > positions:
            raise SpecError(
                f"serve.speeds: a prompt of {max(speeds.contexts)} tokens (contexts) and {speeds.new_tokens} new ones "
                f"are {longest}, but {name} has positions for {positions} (max_position_embeddings)",
                f"contexts of {positions - speeds.new_tokens} or fewer",
            )


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Who is measured after whom in each round: the order rotates, so that each name stands at each place as often.

    With as many rounds as names it is a Latin square, and a machine that gets slower (or faster) steadily favours
    nobody. With fewer rounds the rotations are spread over the square.
    """
    shifts = [r * max(len(names), rounds) // rounds % max(len(names), 1) for r in range(rounds)]
    return [[*names[shift:], *names[:shift]] for shift in shifts]


@torch.no_grad()
def answer(
    model: "PreTrainedModel", prompt: torch.Tensor, new_tokens: int, instrument: Device, clock: Callable[[], float]
) -> Answer:
    """Greedy tokens after a prompt, always `new_tokens` of them: no end of text, no padding, no sampling.

    The device is waited for after every token, as whoever streams an answer must. `generate` would add its own
    bookkeeping per token, which weighs more the faster a model is.
    """
    last = _last_only(model)
    instrument.synchronize()
    ends = [clock()]
    token, cache = _step(model, prompt, None, **last)
    tokens = [token]
    instrument.synchronize()
    ends.append(clock())
    for _ in range(new_tokens - 1):
        token, cache = _step(model, token, cache)
        tokens.append(token)
        instrument.synchronize()
        ends.append(clock())
    seconds = [end - start for start, end in pairwise(ends)]
    return Answer(torch.cat(tokens, dim=1), seconds[0], seconds[1:])


def _at_one_shape(
    models: Mapping[str, "PreTrainedModel"], ids: torch.Tensor, rounds: int, bench: _Bench
) -> list[Speed]:
    """Every model at one shape: first all warm up, then they take turns."""
    tallies: dict[str, _Tally] = {}
    for name, model in models.items():
        tally = _attempt(name, ids, partial(_warm_up, model, ids, bench))
        if tally is not None:
            tallies[name] = tally
    for order in turns(list(tallies), rounds):
        for name in order:
            if name in tallies and not _attempt(name, ids, partial(_turn, models[name], ids, bench, tallies[name])):
                del tallies[name]  # ratios are made round by round: half a measurement cannot be held against a whole
    return [_speed(name, ids, bench, tally) for name, tally in tallies.items()]


def _attempt(name: str, ids: torch.Tensor, work: Callable[[], Done]) -> Done | None:
    """What the work returns; None, and a line that says why, where it fails.

    Any exception is met: kernels say in many ways (RuntimeError, AssertionError, ...) that a shape is not theirs.
    """
    try:
        return work()
    except Exception as error:
        batch, context = ids.shape
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        print(f"warning: speed of {name} at batch {batch}, context {context} is left out: {reason}", flush=True)
    if ids.device.type == "cuda":
        torch.cuda.empty_cache()  # what it held is not the next one's
    return None


def _warm_up(model: "PreTrainedModel", ids: torch.Tensor, bench: _Bench) -> _Tally:
    """One answer that is not counted (kernels chosen, memory touched), then what memory is needed."""
    answer(model, ids, bench.new_tokens, bench.instrument, bench.clock)
    prefill, decode = _peaks(model, ids, bench.new_tokens, bench.device)
    return _Tally(accounting.stored_bytes(model), prefill, decode)


def _turn(model: "PreTrainedModel", ids: torch.Tensor, bench: _Bench, tally: _Tally) -> bool:
    """Add one measurement to the tally."""
    before = bench.instrument.energy_joules()
    tally.answers.append(answer(model, ids, bench.new_tokens, bench.instrument, bench.clock))
    after = bench.instrument.energy_joules()
    tally.joules.append(None if before is None or after is None else after - before)
    return True


@torch.no_grad()
def _peaks(model: "PreTrainedModel", ids: torch.Tensor, new_tokens: int, device: torch.device) -> tuple[int, int]:
    """Highest memory above the weights while the prompt is read and while the answer is written, in bytes.

    Apart from the timed rounds: off CUDA it takes a profiler, which slows everything down.
    """
    last = _last_only(model)
    left: list[tuple[torch.Tensor, Any]] = []
    prefill = accounting.step_peak(lambda: left.append(_step(model, ids, None, **last)), device)
    token, cache = left.pop()
    held = accounting.tensor_bytes([token, *(vars(layer) for layer in cache.layers)])

    def decode() -> None:
        word, keys = token, cache
        for _ in range(new_tokens - 1):
            word, keys = _step(model, word, keys)

    return prefill, held + accounting.step_peak(decode, device)


def _step(model: "PreTrainedModel", ids: torch.Tensor, cache: Any, **settings: int) -> tuple[torch.Tensor, Any]:
    """The most likely next token of each row, and the cache that now holds these ids too."""
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, **settings)
    if output.past_key_values is None:
        raise TypeError(f"{type(model).__name__} returns no key-value cache")
    return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values


def _last_only(model: "PreTrainedModel") -> dict[str, int]:
    """How a model is told to give logits for the last position alone, as `generate` does where it can be told.

    Those of a whole long prompt can take more memory than all the rest.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


def _speed(name: str, ids: torch.Tensor, bench: _Bench, tally: _Tally) -> Speed:
    batch, context = ids.shape
    joules = [j for j in tally.joules if j is not None]
    return Speed(
        served=name,
        batch=batch,
        context=context,
        new_tokens=bench.new_tokens,
        prefill_seconds=[a.prefill_seconds for a in tally.answers],
        decode_seconds=[sum(a.token_seconds) for a in tally.answers],
        token_seconds=[s for a in tally.answers for s in a.token_seconds],
        stored_bytes=tally.stored_bytes,
        prefill_peak_bytes=tally.prefill_peak_bytes,
        decode_peak_bytes=tally.decode_peak_bytes,
        energy_joules=sum(joules) / len(joules) if len(joules) == len(tally.answers) else None,
    )
