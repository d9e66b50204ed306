"""Trials on this machine: each a fresh process, forked from a warm server that has imported the stack.

The server never touches a GPU. On a machine with NVIDIA GPUs it therefore does not import what initialises CUDA on
import (bitsandbytes, and PEFT through it); each trial does that itself.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import environment
from harness.interfaces import Event, Interrupted, Job, Launcher
from harness.record import Record, Status
from harness.store import StudyStore

ON_CPU = ("harness.launchers._warm",)
ON_GPU = ("torch", "transformers", "datasets")

SERVER_VARIABLES = {
    "PYTHONSAFEPATH": "1",  # a file of the user's that is named like a library is not that library
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of one trial take the other's core
    "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a fork
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # between libraries; each trial's log would repeat them
}


ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Either configures PyTorch's allocator; ours grows its segments in place, so that little is lost between lengths."""


def server_variables(user: Mapping[str, str], threads: int) -> dict[str, str]:
    """What is added to the user's environment for the server and so for every trial."""
    added = SERVER_VARIABLES | {"OMP_NUM_THREADS": str(threads)}
    if not any(name in user for name in ALLOCATOR):
        added[ALLOCATOR[0]] = "expandable_segments:True"
    return added


class Local:
    """As many trials at a time as there are GPUs, or CPU cores at one thread each.

    Two trials on one thread each finish sooner than one after the other on two threads.
    """

    def __init__(self, gpus: list[int] | None = None, workers: int | None = None) -> None:
        """Args: gpus: indices to use, empty for the CPU; workers: trials at a time on the CPU."""
        self.gpus = gpus or []
        self.slots = len(self.gpus) or workers or environment.cores()
        self.threads = 1 if not self.gpus else max(1, (os.cpu_count() or 1) // self.slots)
        self._free: queue.Queue[int | None] = queue.Queue()
        for slot in range(self.slots):
            self._free.put(self.gpus[slot] if self.gpus else None)
        self._context = multiprocessing.get_context("forkserver")
        self._live: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Record:
        gpu = self._free.get()
        try:
            return self._run(job, gpu, on_event)
        finally:
            self._free.put(gpu)

    def stop(self) -> None:
        self._stopping = True
        with self._lock:
            for process in self._live.values():
                process.kill()

    def _run(self, job: Job, gpu: int | None, on_event: Callable[[Event], None]) -> Record:
        receiver, sender = self._context.Pipe(duplex=False)
        with self._lock:
            if self._stopping:
                raise Interrupted
            self._start_server()
            process = self._context.Process(
                target=_child, args=(job.model_dump_json(), sender, gpu, self.threads), name=f"trial {job.trial.id}"
            )
            process.start()  # the first one waits for the server's imports, which are not the trial's time
            started, began = datetime.now(UTC), time.perf_counter()
            self._live[job.trial.id] = process
        sender.close()
        last = Event(kind="stage", stage="start")
        timed_out = False
        try:
            while True:
                if job.time_limit_seconds and time.perf_counter() - began > job.time_limit_seconds:
                    timed_out = True
                    process.kill()
                    break
                try:
                    if not receiver.poll(0.5):
                        continue
                    kind, text = receiver.recv()
                except (EOFError, OSError):
                    break
                if kind == "record":
                    process.join()
                    return Record.model_validate_json(text)
                event = Event.model_validate_json(text)
                last = event if event.kind == "stage" else event.model_copy(update={"stage": last.stage})
                on_event(event)
            process.join()
        finally:
            with self._lock:
                del self._live[job.trial.id]
            receiver.close()
        if self._stopping:
            raise Interrupted
        status, detail = _ending(process.exitcode, timed_out, last, job)
        return self._without_record(job, status, detail, started, time.perf_counter() - began)

    def _without_record(self, job: Job, status: Status, detail: str, started: datetime, seconds: float) -> Record:
        """The record of a process that left none, kept in the store in its place."""
        store = StudyStore(job.folder)
        for record in store.records():
            if record.trial_id == job.trial.id and record.attempt == job.attempt:
                return record  # it died after its work was done
        record = Record(
            trial=job.trial,
            trial_id=job.trial.id,
            attempt=job.attempt,
            question_id=job.question_id,
            status=status,
            detail=detail,
            started_at=started,
            seconds=seconds,
            log_path=f"logs/{job.trial.id}-{job.attempt}.log",
            forecast=job.forecast,
        )
        store.write(record)
        return record

    def _start_server(self) -> None:
        before = dict(os.environ)
        os.environ.update(server_variables(before, self.threads))
        try:
            self._context.set_forkserver_preload(list(ON_GPU if self.gpus else ON_CPU))
            multiprocessing.forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)


def _ending(exit_code: int | None, timed_out: bool, last: Event, job: Job) -> tuple[Status, str]:
    """What to call the end of a process that left no record."""
    where = f"in stage {last.stage}" + (f" at step {last.step} of {last.steps}" if last.step else "")
    if timed_out:
        return "timed_out", f"stopped {where} after limits.trial_minutes = {(job.time_limit_seconds or 0) / 60:g}"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the kernel's out-of-memory killer does this too" if -exit_code == signal.SIGKILL else ""
        return "killed", f"{name} {where}{hint}"
    return "failed", f"the process ended with exit code {exit_code} {where}; see its log"


def _child(job_json: str, sender: Connection, gpu: int | None, threads: int) -> None:
    """The trial's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    job = Job.model_validate_json(job_json)
    _log_to(job.folder / "logs" / f"{job.trial.id}-{job.attempt}.log")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    worker = importlib.import_module("harness.worker")  # by name: a launcher knows how to run a trial, not what it is
    record = worker.run(job, lambda event: sender.send(("event", event.model_dump_json())))
    sender.send(("record", record.model_dump_json(exclude={"examples", "steps"})))
    sender.close()


def _die_with_parent() -> None:
    """End this process when the driver is gone, however it went: an orphan would hold memory that others measure."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper unless someone replaced it


plugin: type[Launcher] = Local
