"""Reads back what the W&B client wrote: wandb 0.31 has no reader of its own in Python.

The file is a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB that hold pieces of records, each with
a checksum, a length and a type (1 whole, 2 first, 3 middle, 4 last).
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
PIECE = struct.Struct("<IHB")


@dataclass
class Run:
    """One run as the server would see it after the upload."""

    head: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_run(folder: Path) -> Run:
    (path,) = folder.glob("*.wandb")
    run = Run()
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.head = record.run
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.rows.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _records(content: bytes) -> Iterator[Any]:
    assert content[:4] == b":W&B"
    position, record = 7, b""
    while position + PIECE.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:  # too short for a piece: padding
            position += left
            continue
        checksum, length, kind = PIECE.unpack_from(content, position)
        piece = content[position + PIECE.size : position + PIECE.size + length]
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) == checksum
        position += PIECE.size + length
        record += piece
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def _values(items: Any) -> dict[str, Any]:
    """Keys sit in `key`, or in `nested_key` where the client allows for nesting."""
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
