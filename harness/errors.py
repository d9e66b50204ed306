"""The errors raised on purpose: each says what was wrong, what would be right and what to run next."""

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """A mistake that the user can mend. Printed as one line and its remedy, never with a traceback.

    `exit_code` is what the command line ends with: 2 for usage and configuration.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["HarnessError"], tuple[str, str | None]]:
        return (type(self), (self.message, self.remedy))


class SpecError(HarnessError):
    """A study file or an override that cannot be read as a study."""


class DataError(HarnessError):
    """Training or test data that is missing, unreadable, empty or of an unknown shape."""


class PluginError(HarnessError):
    """A method, quantization, launcher or tracker that does not exist or lacks its package."""


class StoreError(HarnessError):
    """Results that are missing, or written by a version that this one cannot read."""


class NotReady(HarnessError):
    """The machine lacks something the study needs: a GPU, a package, access to a model or to data, disk."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return "there are: " + ", ".join(known)
