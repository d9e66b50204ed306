"""Results of other programs as studies of ours: one file per program."""
