"""Serve the dashboard: on this machine only, with results read before the first page asks for them.

    python -P dashboard/server.py STORE PORT [open]

`harness dashboard` starts it. Without -P this folder would come first among those that modules are looked for in, so
that a library's own `server` or `views` would be taken from here.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware

HERE = Path(__file__).resolve().parent

CONFIG = {
    "server.address": "127.0.0.1",
    "server.fileWatcherType": "none",
    "browser.serverAddress": "127.0.0.1",
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "theme.base": str(HERE / "theme.toml"),
}

ROOT_SCRIPT = (
    b"<script>window.__streamlit={BACKEND_BASE_URL:location.origin,MAIN_PAGE_BASE_URL:location.origin}</script>"
)
"""Tells a page that is opened by its own address where the server is. Without it the page asks below its own path
first, and the browser logs an error for each answer that is not there."""


class Rooted:
    """Adds `ROOT_SCRIPT` to HTML."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def patched(message: Any) -> None:
            if message["type"] == "http.response.start":
                if "text/html" not in Headers(raw=message["headers"]).get("content-type", ""):
                    await send(message)
                    return
                start.update(message)
                return
            if not start:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                whole = bytes(body).replace(b"<script>", ROOT_SCRIPT + b"<script>", 1)
                MutableHeaders(raw=start["headers"])["content-length"] = str(len(whole))
                await send(start)
                await send({"type": "http.response.body", "body": whole})

        # compressed HTML could not be added to
        headers = [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"] if _is_page(scope["path"]) else None
        await self.app({**scope, "headers": headers} if headers is not None else scope, receive, patched)


def _is_page(path: str) -> bool:
    return "." not in path.rpartition("/")[2] and not path.startswith("/_stcore")


@asynccontextmanager
async def _warm(app: Any) -> AsyncIterator[dict[str, bool]]:
    """Read the latest study while the browser is still loading."""
    from dashboard import shared

    reading = asyncio.get_running_loop().run_in_executor(None, shared.warm)
    yield {"ready": True}
    reading.cancel()


app = st.App(str(HERE / "app.py"), middleware=[Middleware(Rooted)], lifespan=_warm)


def main(store: str, port: str, *opens: str) -> None:
    os.environ["HARNESS_STORE"] = store
    if str(HERE.parent) not in sys.path:  # a checkout that is not installed, or not the one that is
        sys.path.insert(0, str(HERE.parent))
    app.run(config={**CONFIG, "server.port": int(port), "server.headless": not opens})


if __name__ == "__main__":
    main(*sys.argv[1:])
