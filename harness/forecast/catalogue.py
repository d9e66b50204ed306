"""Find a model's config by its name: a folder, the embedded model, the hub's cache or the catalogue. No network."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness import tiny
from harness.errors import SpecError
from harness.forecast.architecture import Architecture
from harness.forecast.configs import from_config

__all__ = ["find", "from_config", "names"]

CATALOGUE = Path(__file__).with_name("catalogue.yaml")

ENDINGS = frozenset({
    "chat", "instruct", "it", "pt", "base", "hf", "pretrain", "dpo", "sft", "meta", "unsloth", "gptq", "awq", "gguf",
    "bnb", "hqq", "exl2", "marlin", "4bit", "8bit", "int4", "int8", "nf4", "fp8", "bf16", "fp16",
})  # fmt: skip
"""Words of a name that say how a model was tuned or stored: its shapes do not depend on them."""

COPIES = frozenset({
    "casperhansen", "hugging-quants", "mlx-community", "nousresearch", "techxgenus", "thebloke", "unsloth",
})  # fmt: skip
"""Owners who publish other people's models under the models' own names."""


def find(model: str, revision: str | None = None) -> Architecture:
    """The architecture of a model named by its folder, hub id or common name.

    Raises:
        SpecError: it is not known here, or it is no decoder-only transformer.
    """
    if model == tiny.MODEL_ID:
        return from_config(_read(tiny.MODEL / "config.json"), model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file():
            raise SpecError(f"{folder}: a model's folder has a config.json, this one has none")
        return from_config(_read(file), model)
    cached = _cached(model, revision)
    if cached is not None:
        return from_config(_read(cached), model)
    return _listed(model)


def names() -> tuple[str, ...]:
    """Hub ids of the catalogue's decoders."""
    return tuple(identity for identity, entry in catalogue().items() if "parameters" in entry)


@cache
def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """The catalogue's entries by hub id."""
    # libyaml, where PyYAML was built with it, takes 15 ms; without it takes 150 ms
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries: dict[str, dict[str, Any]] = yaml.load(CATALOGUE.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return entries


def _listed(model: str) -> Architecture:
    """From the catalogue, by id, by alias or by the name alone."""
    known = _names()
    for name in (model.lower(), *_spellings(model)):
        if name in known:
            break
    else:
        raise _not_found(model)
    identity = known[name]
    found = from_config(catalogue()[identity]["config"], identity)
    owner = model.rpartition("/")[0].lower()
    if not owner or owner in COPIES or owner in _owners(identity):
        return found
    doubt = f"the config of {model} was not at hand: by its name it was taken to have the shapes of {identity}"
    return found.model_copy(update={"doubts": (*found.doubts, doubt)})


@cache
def _names() -> Mapping[str, str]:
    """Hub ids by every name they are found by. An alias comes before a name that only lost its owner."""
    known: dict[str, str] = {}
    entries = catalogue()
    exact = [(identity.lower(), identity) for identity in entries]
    aliases = [(alias, identity) for identity, entry in entries.items() for alias in entry.get("aliases", ())]
    for name, identity in exact + [(alias.lower(), identity) for alias, identity in aliases]:
        known.setdefault(name, identity)
    for name, identity in aliases + [(identity, identity) for identity in entries]:
        for spelling in _spellings(name):
            known.setdefault(spelling, identity)
    return known


def _spellings(name: str) -> tuple[str, str]:
    """A name without owner, case, separators and endings; `1_8b` can mean 1.8b or 1-8b."""
    bare = re.sub(r"\(.*?\)", "", name.rpartition("/")[2]).strip().lower()
    return _plain(re.sub(r"(?<=\d)_(?=\d)", ".", bare)), _plain(bare)


def _plain(name: str) -> str:
    words = [word for word in re.split(r"[-_\s]+", name) if word]
    kept = [word for word in words if word not in ENDINGS] or words
    # a separator counts between two digits only: llama-3-3b is not llama-33b
    return re.sub(r"(?<!\d)-|-(?!\d)", "", "-".join(kept))


def _owners(identity: str) -> frozenset[str]:
    ids = (identity, *catalogue()[identity].get("aliases", ()))
    return frozenset(one.rpartition("/")[0].lower() for one in ids if "/" in one)


def _not_found(model: str) -> SpecError:
    known = _names()
    near = difflib.get_close_matches(_spellings(model)[0], known, n=8, cutoff=0.5)
    ids = [identity for identity in dict.fromkeys(known[name] for name in near) if identity in names()][:3]
    nearest = f"; the nearest known: {', '.join(ids)}" if ids else ""
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        remedy = f"hf download {model} config.json"
    else:
        remedy = "name a folder with its config.json, or get one: hf download OWNER/NAME config.json"
    places = "no such folder, not in the hub's cache, not in the catalogue"
    return SpecError(f"no config of {model!r}: {places}{nearest}", remedy)


def _cached(model: str, revision: str | None) -> Path | None:
    """The config in the hub's cache, whose folders are read as they are: importing huggingface_hub takes longer."""
    if model.count("/") != 1:
        return None
    repository = _hub_cache() / f"models--{model.replace('/', '--')}"
    snapshots = repository / "snapshots"
    wanted = revision or "main"
    reference = repository / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    file = snapshots / commit / "config.json"
    if file.is_file():
        return file
    if revision is not None:
        return None
    others = sorted(snapshots.glob("*/config.json"), key=lambda one: one.stat().st_mtime)
    return others[-1] if others else None


def _hub_cache() -> Path:
    """Where huggingface_hub keeps its files, by the variables that it reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _read(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{file}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{file}: a config is a mapping of keys to values")
    return value
