"""What the warm server imports before it forks trials on a CPU: the whole stack, quietly."""

import contextlib
import importlib
import logging

# it would print that it cannot fetch a kernel from the hub, which no trial uses
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

for name in ("harness.worker", "lm_eval", "lm_eval.models.huggingface", "bitsandbytes"):
    with contextlib.suppress(ImportError):  # optional here; a trial that needs it says so itself
        importlib.import_module(name)

with contextlib.suppress(ImportError):
    importlib.import_module("harness.trackers.wandb").preload()
