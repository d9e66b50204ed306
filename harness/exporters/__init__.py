"""Configurations written down for other programs: one file per target."""
