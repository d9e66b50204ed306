"""As much of a W&B server as the client needs to send one run at a time (wandb 0.31), keeping the rows it is sent."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class WandbServer:
    """Answers on a free local port until the block ends. After `lost.set()` it takes requests and says nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.run = ""
        self.lost = threading.Event()
        self._closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
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
            if history:  # rows go where the client says: at the start, or after what is there
                self.rows[history["offset"] :] = [json.loads(row) for row in history["content"]]
            return {}
        query = re.search(r"(?:query|mutation) (\w+)", body)
        known = {"UpsertBucket": self._upsert, "RunResumeStatus": self._resume, "CreateRunFiles": self._files}
        if query is None or query[1] not in known:
            return {"data": {}}
        return {"data": known[query[1]](json.loads(body)["variables"])}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.run = variables["name"]
        return {"upsertBucket": {"bucket": self._bucket(), "inserted": True}}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        empty = {"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]", "tags": [], "summaryMetrics": "{}"}
        tail = json.dumps([json.dumps(row) for row in self.rows[-1:]])
        found = {**self._bucket(), **empty, "historyTail": tail, "config": "{}", "wandbConfig": '{"t": 1}'}
        return {"model": {**self._bucket()["project"], "bucket": found if self.rows else None}}

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": self.run, "uploadHeaders": [], "files": files}}

    def _bucket(self) -> dict[str, Any]:
        project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
        lines = len(self.rows)
        return {
            "id": "b",
            "name": self.run,
            "displayName": "",
            "sweepName": None,
            "historyLineCount": lines,
            "project": project,
        }

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
