"""Where a model or data comes from, and which content it is: embedded, a folder or file, or the hub."""

import hashlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import tiny
from harness.errors import DataError, NotReady
from harness.spec import DataSource, ModelSource

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HASHED_WHOLE = 1 << 30
"""Bytes up to which a file's whole content is hashed; of larger ones size, first and last MiB."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")

ANSWER_SECONDS = 6.0
"""How long the hub may take to answer."""


@dataclass(frozen=True)
class Source:
    """A model or data set that was found: what to hand to the loading library, and a hash of its content."""

    kind: Literal["embedded", "local", "hub"]
    location: str
    """A path, or an id on the hub."""
    digest: str
    """Hash of the files; for the hub its commit, or the revision's name where the hub cannot be asked."""

    @property
    def revision(self) -> str | None:
        """What to hand to the loading library so that it takes exactly this content."""
        return self.digest if self.kind == "hub" else None


def find_model(source: ModelSource, pinned: str | None = None) -> Source:
    """Find a model; with `pinned`, a hub model at that commit, without asking the hub.

    Raises:
        DataError: there is no such folder, or it holds no model.
        NotReady: a hub model cannot be reached and is not in the cache.
    """
    if source.id == tiny.MODEL_ID:
        return Source("embedded", str(tiny.MODEL), _folder_digest(tiny.MODEL))
    folder = Path(source.id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: a model's folder has a config.json, this one has none")
        if not any(folder.glob("*.safetensors")):
            raise DataError(
                f"{folder}: has no safetensors weights, and other formats can run code when they are read",
                "load it where you trust it and write it again: model.save_pretrained(folder)",
            )
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise DataError(f"{folder}: has no tokenizer", "tokenizer.save_pretrained(folder)")
        return Source("local", str(folder), _folder_digest(folder))
    if source.id.startswith((".", "/", "~")) or source.id.count("/") != 1:
        raise DataError(f"controls.model.id: no folder {source.id!r}, and it is not a hub id (owner/name)")
    return Source("hub", source.id, pinned or _hub_commit(source.id, source.revision, "model"))


def find_data(source: DataSource, pinned: str | None = None) -> Source:
    """Find a data set; `pinned` and NotReady as in `find_model`.

    Raises:
        DataError: a local file is missing or of a kind that is not read.
    """
    if source.path == tiny.DATA_ID:
        return Source("embedded", str(tiny.TRAIN_FILE), _file_digest(tiny.TRAIN_FILE))
    path = Path(source.path).expanduser()
    if path.is_dir():
        raise DataError(f"{path}: is a folder", f"name a file in it; these are read: {', '.join(DATA_SUFFIXES)}")
    if path.is_file():
        if path.suffix.lower() not in DATA_SUFFIXES:
            raise DataError(
                f"{path}: {path.suffix or 'a file without suffix'} is not read; these are: {', '.join(DATA_SUFFIXES)}"
            )
        return Source("local", str(path), _file_digest(path))
    if path.suffix.lower() in DATA_SUFFIXES or source.path.startswith((".", "/", "~")) or source.path.count("/") != 1:
        raise DataError(f"controls.data.path: no file {source.path!r}, and it is not a hub id (owner/name)")
    return Source("hub", source.path, pinned or _hub_commit(source.path, source.revision, "dataset"))


def bare(name: str) -> str:
    """The name of a model or of data for files that are passed on: a local one without the folders above it."""
    local = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).suffix.lower() in DATA_SUFFIXES
    return (Path(name).name if local else "") or name


def _hub_commit(repo: str, revision: str | None, kind: Literal["model", "dataset"]) -> str:
    """The commit a hub id stands for: asked of the hub, else read from the local cache.

    A gated repository tells its commit to all and its files only to those whose licence is accepted, which is said
    apart from a missing network.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def ask() -> str:
        info = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=ANSWER_SECONDS)
        if getattr(info, "gated", False) and not cached:
            HfApi().auth_check(repo, repo_type=kind)
        return str(info.sha)

    cached = cached_commit(repo, revision, kind)
    try:
        return _within(ANSWER_SECONDS, ask)
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        raise NotReady(
            f"no access to {kind} {repo} (gated)", f"accept its licence at {page}, then: hf auth login, and run again"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{repo} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise NotReady(
            f"no {kind} {repo!r} on the hub that this machine may see", "check the id; for a private one: hf auth login"
        ) from error
    # huggingface_hub hands out the errors of its HTTP library, which was requests, then httpx, then httpx2
    except Exception as error:
        if cached:
            return cached
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_short(error)})"
        raise NotReady(
            f"{kind} {repo} is not in the local cache and {why}",
            f"{'unset HF_HUB_OFFLINE' if offline else 'connect to the network'}, or on a machine with a network: "
            f"hf download {repo}{' --repo-type dataset' if kind == 'dataset' else ''}, and copy its cache here",
        ) from error


def _within(seconds: float, ask: Callable[[], str]) -> str:
    """The answer, or TimeoutError.

    A thread waits for it, since no timeout of the hub's client covers its retries or a silent resolver: minutes.
    """
    outcome: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(ask())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def cached_commit(repo: str, revision: str | None, kind: str) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    if revision and (folder / "snapshots" / revision).is_dir():
        return revision
    ref = folder / "refs" / (revision or "main")
    return ref.read_text().strip() if ref.is_file() else None


def _folder_digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in {".safetensors", ".json", ".model", ".jinja"} and path.name != "recipe.json":
            whole.update(path.name.encode() + _file_digest(path).encode())
    return whole.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= HASHED_WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
            ends = hashlib.sha256(str(size).encode() + file.read(1 << 20))
            file.seek(-(1 << 20), 2)
            ends.update(file.read())
            return ends.hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
