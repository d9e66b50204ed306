"""Memory, time and money before a run, from configuration alone: no weights, no torch."""
