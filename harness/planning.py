"""From a study to its forecasts: what each arm and trial will need on a given machine, and whether it fits."""

from collections.abc import Iterable

from harness.forecast.processors import Processor
from harness.record import Forecast, Record
from harness.spec import StudySpec
from harness.trial import Trial


class Forecaster:
    """Forecasts the trials of one study on one processor. Reads the model's config and the data once; no torch."""

    def __init__(self, spec: StudySpec, processor: Processor, records: Iterable[Record] = ()) -> None:
        """`records` are finished trials, of any study, whose measured times on such a processor sharpen the forecast.

        Raises:
            NotReady: the model's config is neither local, nor cached, nor in the catalogue.
            SpecError: the model is not a decoder that can be forecast.
        """
        raise NotImplementedError

    def trial(self, trial: Trial) -> Forecast:
        """What this trial will need. Its own micro-batch is in its controls or its params."""
        raise NotImplementedError
