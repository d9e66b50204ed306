"""How base weights are stored: one file per quantization."""
