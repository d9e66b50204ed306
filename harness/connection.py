"""Whether Weights & Biases can be reached, decided before a study starts and without importing its client."""

import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

Requested = Literal["auto", "online", "offline", "off"]
Mode = Literal["online", "offline", "off"]

DEFAULT_URL = "https://api.forge.coreweave.com"
"""The client's own default (wandb 0.31)."""
CLOUD_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""Names of one server: a key stored for the older is used for the newer too."""
CLOUD_PAGES = "https://forge.coreweave.com/wandb"
"""Where that server shows runs."""
PROBE_SECONDS = 2.0


def resolve_mode(requested: Requested, environment: Mapping[str, str], probe: Callable[[str, int], bool]) -> Mode:
    """The mode to run in: `auto` is online only with a key and a server that answers, everything else is as requested.

    Without a key nothing is probed.

    Args:
        requested: What the user asked for.
        environment: The environment variables.
        probe: Whether a host answers on a port, e.g. `answers`.
    """
    if requested != "auto":
        return requested
    return "online" if has_key(environment) and probe(*endpoint(environment)) else "offline"


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether the client would find credentials. The key itself is neither returned nor looked at."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_URL).netloc
    hosts = CLOUD_HOSTS if host in CLOUD_HOSTS else (host,)
    return any(_names(path, hosts) for path in _netrc_files(environment))


def answers(host: str, port: int, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a TCP connection opens in time. Name resolution has no time limit of its own, hence the thread."""
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            opened.set()
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return opened.is_set()


def tracker_settings(mode: Mode, environment: Mapping[str, str], study_folder: Path) -> dict[str, str]:
    """The settings of the tracker `wandb` for a study, the user's own WANDB_PROJECT and WANDB_ENTITY among them."""
    return {
        "mode": mode,
        "folder": str(study_folder / "wandb"),
        "project": environment.get("WANDB_PROJECT", ""),
        "entity": environment.get("WANDB_ENTITY", ""),
    }


def run_page(environment: Mapping[str, str], study: str, run: str) -> str | None:
    """The address at which a server shows a run that was sent to it.

    None without WANDB_ENTITY: whose a run is by default, the server alone knows.
    """
    entity = environment.get("WANDB_ENTITY")
    if not entity:
        return None
    api = environment.get("WANDB_BASE_URL") or DEFAULT_URL
    if urlsplit(api).hostname in CLOUD_HOSTS:
        pages = CLOUD_PAGES
    else:  # as the client guesses it
        pages = api.replace("://api.wandb.", "://wandb.").replace("://api.", "://app.").rstrip("/")
    project = environment.get("WANDB_PROJECT") or study
    return f"{pages}/{quote(entity)}/{quote(project)}/runs/{run}"


def endpoint(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where a request for the API goes first: the proxy if there is one."""
    api = environment.get("WANDB_BASE_URL") or DEFAULT_URL
    scheme = urlsplit(api).scheme
    proxy = environment.get(f"{scheme}_proxy") or environment.get(f"{scheme.upper()}_PROXY")
    url = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else api)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _netrc_files(environment: Mapping[str, str]) -> list[Path]:
    if environment.get("NETRC"):
        return [Path(environment["NETRC"])]
    home = environment.get("HOME") or environment.get("USERPROFILE")
    return [Path(home, name) for name in (".netrc", "_netrc")] if home else []


def _names(path: Path, hosts: tuple[str, ...]) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return bool(set(re.findall(r"""\bmachine\s+['"]?([^\s'"]+)""", text)) & set(hosts))
