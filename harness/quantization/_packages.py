"""Importing the library of a quantization that is installed by an extra of its own."""

import importlib
from types import ModuleType

from harness.errors import PluginError


def library(module: str, quantization: str, extra: str) -> ModuleType:
    """The module, imported.

    Raises:
        PluginError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise PluginError(
            f"harness.quantization.{quantization} needs {missing!r}", f"pip install 'finetune-harness[{extra}]'"
        ) from error
