"""Controlled studies of fine-tuning: which method, at which bit-width, at what cost, and is the difference real."""

__version__ = "0.1.0"
