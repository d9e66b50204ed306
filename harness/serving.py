"""What is run after training: which trials of the phases `serve` and `speed` a study has."""

from collections.abc import Iterator
from functools import cache

from harness import plugins
from harness.errors import HarnessError, SpecError, did_you_mean
from harness.spec import AUTO, Served, StudySpec
from harness.trial import Phase, ServedAs, Timed, Trial

DENSE_BITS = 16
"""From here on weights count as unquantized."""


def served_arms(spec: StudySpec) -> list[str]:
    """The arms whose confirmed runs are served."""
    if spec.serve.arms != AUTO:
        return list(dict.fromkeys(spec.serve.arms))
    return [name for name, arm in spec.arms.items() if _adapters_on_dense(arm.method, arm.quantization)]


def planned(spec: StudySpec) -> dict[Phase, int]:
    """How many trials of each phase there are after training."""
    serve = spec.serve
    if not serve.at:
        return {}
    of_runs = len(served_arms(spec)) * len(spec.confirm.seeds) * len(serve.ways)
    return {"serve": len(serve.at) * (int(serve.base) + of_runs), "speed": int(serve.speeds is not None)}


def of_base(spec: StudySpec, base: Trial) -> Iterator[Trial]:
    """The base at each bit-width; `base` is the trial that measures it as it is."""
    for name, served in spec.serve.at.items() if spec.serve.base else ():
        held = ServedAs(name=name, **_plain(served), way="base", against=_widest(spec))
        changes = {"method": "none", "quantization": served.quantization, "params": served.params, "served": held}
        yield base.model_copy(update={"arm": f"base@{name}", "phase": "serve", **changes})


def of_run(spec: StudySpec, run: Trial) -> Iterator[Trial]:
    """A confirmed run's model at each bit-width and in each way; none where its arm is not served."""
    if not spec.serve.at or run.arm not in served_arms(spec):
        return
    for name, served in spec.serve.at.items():
        for way in spec.serve.ways:
            held = ServedAs(name=name, **_plain(served), way=way, of=run.id, against=_widest(spec))
            changes = {"phase": "serve", "served": held, "keep_model": False, "micro_batch": None}
            yield run.model_copy(update={"arm": f"{run.arm}@{name}/{way}", **changes})


def of_speed(spec: StudySpec, base: Trial) -> Iterator[Trial]:
    """The trial that times the base at all bit-widths."""
    serve = spec.serve
    if serve.at and serve.speeds is not None:
        timed = Timed(at=serve.at, speeds=serve.speeds)
        changes = {"method": "none", "quantization": _widest(spec).quantization, "params": {}, "timed": timed}
        yield base.model_copy(update={"arm": "base@*", "phase": "speed", **changes})


def check(spec: StudySpec) -> None:
    """Raises PluginError or SpecError for what no trial could serve."""
    for name, served in spec.serve.at.items():
        try:
            _check_params(served)
        except HarnessError as error:
            raise type(error)(f"serve.at.{name}: {error.message}", error.remedy) from error
    bits = {name: plugins.quantization(served.quantization).bits for name, served in spec.serve.at.items()}
    wider = [name for name, b in bits.items() if b > bits[next(iter(bits))]]
    if wider:
        raise SpecError(
            f"serve.at: {wider[0]} has more bits than {next(iter(bits))}, which the others are compared with",
            f"put {wider[0]} first",
        )
    for name in served_arms(spec) if spec.serve.at else ():
        if plugins.method(spec.arms[name].method).trains != "adapters":
            raise SpecError(
                f"serve.arms: {name} ({spec.arms[name].method}) trains no adapter that could be merged or kept apart",
                "serve.arms: auto, or the names of arms with adapters",
            )


@cache
def _adapters_on_dense(method: str, quantization: str) -> bool:
    """Kept, since a study asks for every trial and every look for a plugin lists a folder."""
    return plugins.method(method).trains == "adapters" and plugins.quantization(quantization).bits >= DENSE_BITS


def _check_params(served: Served) -> None:
    own = plugins.quantization(served.quantization).params.model_fields
    for name in served.params:
        if name not in own:
            hint = did_you_mean(name, own) if own else "it has none"
            raise SpecError(f"{name} is not a parameter of {served.quantization}; {hint}")
    plugins.split_params("none", served.quantization, served.params)


def _widest(spec: StudySpec) -> Served:
    return next(iter(spec.serve.at.values()))


def _plain(served: Served) -> dict[str, object]:
    return {"quantization": served.quantization, "params": served.params}
