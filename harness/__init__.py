"""Controlled studies of fine-tuning: which method, at which bit-width, at what cost, and whether the difference is real."""

__version__ = "0.1.0"
