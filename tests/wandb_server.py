"""As much of a W&B server as the client needs to send one run at a time (wandb 0.31), keeping the rows it is sent."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is expected here."""


class WandbServer:
    """Answers on a free local port until the block ends. After `lost.set()` it takes requests and says nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.asked: list[str] = []
        """Names of the queries, in order."""
        self.lost = threading.Event()
        self._closed = threading.Event()
        self._http = _Http(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: str) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if history:
                self.rows[history["offset"] :] = [json.loads(row) for row in history["content"]]
            return {}
        query = re.search(r"(?:query|mutation) (\w+)", body)
        if query is None:
            return {}
        self.asked.append(query[1])
        known = {"UpsertBucket": self._upsert, "CreateRunFiles": self._files}
        return {"data": known[query[1]](json.loads(body)["variables"]) if query[1] in known else {}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
        # no lines: W&B documents that a known id that is not resumed is overwritten
        run = {"id": "b", "name": variables["name"], "displayName": "", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": run, "inserted": True}}

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def do_PUT(self) -> None:
                self._answer()

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
                if server.lost.is_set():
                    server._closed.wait()
                    return
                content = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler
