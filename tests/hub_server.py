"""A Hugging Face Hub on this machine: the few routes that models need, with files in memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub:
    """A hub with repositories.

    Attributes:
        url: Its address.
        repositories: Contents by file name, by the name of the repository.
        private: Names of the repositories that only TOKEN may read.
        gated: Names of those that ask for an agreement first.
        sizes: Sizes that it announces in place of the true ones, by file name.
        downloaded: Names of the files that were sent, in order.
        created: What the requests to create repositories held.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.downloaded: list[str] = []
        self.created: list[dict[str, Any]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # one request a connection

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                hub.answer(self, self.rfile.read(length))

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self.answer
                raise AttributeError(name)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request."""
        parts = unquote(urlsplit(handler.path).path).strip("/").split("/")
        match [handler.command, *parts]:
            case ["POST", "api", "repos", "create"]:
                asked = json.loads(body)
                self.created.append(asked)
                name = f"{asked['organization']}/{asked['name']}"
                self.repositories.setdefault(name, {})
                send_json(handler, {"url": f"{self.url}/{name}"})
            case ["POST", "api", "validate-yaml"]:
                send_json(handler, {"errors": [], "warnings": []})
            case ["POST", "api", "models", user, model, "preupload", "main"]:
                asked = json.loads(body)["files"]
                regular = {"uploadMode": "regular", "shouldIgnore": False}
                send_json(handler, {"files": [{"path": x["path"], **regular} for x in asked]})
            case ["POST", "api", "models", user, model, "commit", "main"]:
                self.commit(f"{user}/{model}", body)
                url = f"{self.url}/{user}/{model}/commit/{COMMIT}"
                send_json(handler, {"commitUrl": url, "commitOid": COMMIT, "success": True})
            case ["GET", "api", "models", user, model, *rest]:
                self.describe(handler, f"{user}/{model}", rest)
            case [_, user, model, "resolve", revision, name] if revision == COMMIT:
                content = self.repositories[f"{user}/{model}"][name]
                handler.send_response(200)
                handler.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                handler.send_header("X-Repo-Commit", COMMIT)
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                if handler.command == "GET":
                    self.downloaded.append(name)
                    handler.wfile.write(content)
            case _:
                send_json(handler, {"error": "no such route"}, 404)

    def commit(self, repository: str, body: bytes) -> None:
        """Store the files of a commit, which is one JSON object per line."""
        for line in body.splitlines():
            record = json.loads(line)
            if record["key"] == "file":
                content = base64.b64decode(record["value"]["content"])
                self.repositories[repository][record["value"]["path"]] = content

    def describe(self, handler: BaseHTTPRequestHandler, repository: str, rest: list[str]) -> None:
        """Send the list of the files, or the reason why not."""
        headers = handler.headers
        is_known = headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository in self.gated:
            send_json(handler, {}, 403, {"X-Error-Code": "GatedRepo"})
            return
        if repository not in self.repositories or (repository in self.private and not is_known):
            send_json(handler, {}, 404 if is_known else 401, {"X-Error-Code": "RepoNotFound"})
            return
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            send_json(handler, {}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = self.repositories[repository].items()
        listed = [(name, self.sizes.get(name, len(content)), content) for name, content in files]
        if rest[:1] == ["tree"]:
            send_json(
                handler,
                [
                    {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(x).hexdigest()}
                    for name, size, x in listed
                ],
            )
            return
        siblings = [{"rfilename": name, "size": size} for name, size, _ in listed]
        send_json(handler, {"id": repository, "sha": COMMIT, "siblings": siblings})


def send_json(
    handler: BaseHTTPRequestHandler,
    value: Any,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    """Send a JSON value."""
    body = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in (headers or {}).items():
        handler.send_header(name, text)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
