"""What a task asked, as text: results keep the answers, so it is read from the task's own file if that is at hand."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import data, sources, tiny
from harness.errors import HarnessError
from harness.spec import Controls, DataSource, read_yaml
from harness.tasks import task_name, tasks_of


def texts(controls: Controls, task: str) -> dict[str, str]:
    """The questions of a task by `example_id`; empty where its file is not at hand, as with tasks from the hub.

    An item's id holds the hash of its content, so a file that was changed since gives no question, not a wrong one.
    """
    try:
        path = _file(controls, task)
        if path is None:
            return {}
        config = read_yaml(path)
        files = config["dataset_kwargs"]["data_files"]
        file = path.parent / (files if isinstance(files, str) else files[config.get("test_split", "test")])
        rows = data.read_rows(DataSource(path=str(file)), sources.Source("local", str(file), ""))
        asked = str(config["doc_to_text"])
        return {example_id(i, row): _rendered(asked, row) for i, row in enumerate(rows)}
    except (HarnessError, OSError, KeyError, TypeError, ValueError):  # whatever it is, the question is not known
        return {}


def example_id(position: int, row: Mapping[str, Any]) -> str:
    """The id of an item: its position and the start of the hash that lm-eval takes of its content."""
    text = json.dumps(row, indent=2, ensure_ascii=False)
    return f"{position}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:8]}"


def _file(controls: Controls, task: str) -> Path | None:
    """The YAML file of a task, of the embedded ones or of the user's own."""
    for name in tasks_of(controls):
        path = tiny.TASKS / f"{name}.yaml"
        path = path if path.is_file() else Path(name)
        if path.suffix in {".yaml", ".yml"} and path.is_file() and task_name(str(path)) == task:
            return path
    return None


def _rendered(asked: str, row: Mapping[str, Any]) -> str:
    """`doc_to_text` of one row: the name of a column, or a template as lm-eval takes it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if asked in row:
        return str(row[asked])
    try:
        return ImmutableSandboxedEnvironment().from_string(asked).render(**row)
    except TemplateError as error:
        raise ValueError(f"not a template: {error}") from error
