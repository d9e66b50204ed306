"""Find a plugin by its file name, in this project or in a package that offers one through an entry point."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import ValidationError

from harness.errors import PluginError, SpecError, did_you_mean
from harness.interfaces import Exporter, Importer, Launcher, Method, Quantization, Tracker
from harness.spec import Scalar, Value


def names(kind: str) -> list[str]:
    """The plugins of a kind (`methods`, `quantization`, ...), those of other packages included."""
    own = [m.name for m in pkgutil.iter_modules(importlib.import_module(f"harness.{kind}").__path__)]
    return sorted({n for n in own if not n.startswith("_")} | set(_foreign(kind)))


def method(name: str) -> Method:
    return cast(Method, _find("methods", name))


def quantization(name: str) -> Quantization:
    return cast(Quantization, _find("quantization", name))


def tracker(name: str, settings: dict[str, str]) -> Tracker:
    return cast(Tracker, _find("trackers", name)(**settings))


def launcher(name: str, **settings: Any) -> Launcher:
    return cast(Launcher, _find("launchers", name)(**settings))


def importer(name: str) -> Importer:
    return cast(Importer, _find("importers", name))


def exporter(name: str) -> Exporter:
    return cast(Exporter, _find("exporters", name))


@functools.cache
def _foreign(kind: str) -> dict[str, EntryPoint]:
    """Plugins of other packages. Kept, since every look reads the metadata of all that is installed."""
    return {e.name: e for e in entry_points(group=f"harness.{kind}")}


def _find(kind: str, name: str) -> Any:
    """Raises PluginError when there is no such plugin or a package it needs is missing."""
    if name not in names(kind):
        raise PluginError(f"no {name!r} in harness.{kind}; {did_you_mean(name, names(kind))}")
    if name in _foreign(kind):
        return _foreign(kind)[name].load()
    try:
        return importlib.import_module(f"harness.{kind}.{name}").plugin
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("harness"):
            raise
        raise PluginError(
            f"harness.{kind}.{name} needs {error.name!r}", f"pip install 'finetune-harness[{name}]'"
        ) from error


def split_params(method_name: str, quantization_name: str, params: Mapping[str, Scalar]) -> tuple[Value, Value]:
    """The parameters of a trial as the method's and the quantization's own, checked; the learning rate is training's.

    Raises:
        SpecError: one of them belongs to neither, or its value is not right.
    """
    owners = (method(method_name).params, quantization(quantization_name).params)
    known = {"learning_rate", *(name for owner in owners for name in owner.model_fields)}
    for name in params:
        if name not in known:
            raise SpecError(
                f"{name} is not a parameter of {method_name} on {quantization_name}; {did_you_mean(name, known)}"
            )
    parts = []
    for owner in owners:
        try:
            parts.append(owner.model_validate({k: v for k, v in params.items() if k in owner.model_fields}))
        except ValidationError as error:
            first = error.errors()[0]
            raise SpecError(
                f"params.{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
            ) from error
    return parts[0], parts[1]
