"""Which weights are trained: one file per method."""
