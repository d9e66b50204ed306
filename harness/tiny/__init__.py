"""Where the embedded default lies: a small Llama pretrained on an invented world, and tasks from that world."""

from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE / "model"
DATA = HERE / "data"
TASKS = HERE / "tasks"

MODEL_ID = "tiny"
"""The name that `controls.model.id` gives the embedded model."""

DATA_ID = "tiny"
"""The name that `controls.data.path` gives the embedded training rows."""

TRAIN_FILE = DATA / "train.jsonl"
TARGET_TASKS = ("tiny_sort_down", "tiny_second")
RETENTION_TASKS = ("tiny_facts", "tiny_sort_up")
