"""A local HTTP server that acts as the Hub, with faults, for the real huggingface_hub."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

CHUNK = 64 * 1024


@dataclass
class Fault:
    """A fault of a repository (`org/name`) or of one file (`org/name/path`).

    `times`: number of requests that fail, None for all. `after`: bytes of the body to send first.
    `method`: only "HEAD" or only "GET" requests fail.
    """

    status: int = 200
    method: str = ""
    error_code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None
    after: int | None = None
    stall: bool = False
    pause: float = 0.0
    damage: bool = False
    lie_about_size: bool = False
    redirect: bool = False

    @classmethod
    def gone(cls) -> Fault:
        """A removed repository: the Hub responds with 401, not 404."""
        return cls(status=401, error_code="RepoNotFound")

    @classmethod
    def gated(cls) -> Fault:
        """A repository whose terms are not accepted."""
        return cls(status=403, error_code="GatedRepo")

    @classmethod
    def no_entry(cls) -> Fault:
        """A listed file that does not exist."""
        return cls(status=404, error_code="EntryNotFound")

    @classmethod
    def errors(cls, times: int | None = None, method: str = "") -> Fault:
        """Status 500 for `times` requests."""
        return cls(status=500, times=times, method=method)

    @classmethod
    def too_many(cls, retry_after: int, times: int | None = None) -> Fault:
        """Status 429 with the seconds to wait."""
        return cls(status=429, headers={"Retry-After": str(retry_after)}, times=times)

    @classmethod
    def stalls(cls, after: int = 0) -> Fault:
        """Sends `after` bytes of the body and keeps the connection open."""
        return cls(after=after, stall=True)

    @classmethod
    def silent(cls) -> Fault:
        """Accepts the connection and never responds."""
        return cls(stall=True)

    @classmethod
    def breaks(cls, after: int, times: int | None = None) -> Fault:
        """Sends `after` bytes of the body and closes the connection."""
        return cls(after=after, times=times)

    @classmethod
    def short(cls, after: int) -> Fault:
        """Sends a truncated file with a matching Content-Length."""
        return cls(after=after, lie_about_size=True)

    @classmethod
    def slow(cls, pause: float) -> Fault:
        """Waits `pause` seconds before each 64 KiB."""
        return cls(pause=pause)

    @classmethod
    def damaged(cls) -> Fault:
        """Sends other bytes of the right size."""
        return cls(damage=True)

    @classmethod
    def redirected(cls) -> Fault:
        """Redirects to another URL, as the Hub does for large files."""
        return cls(redirect=True)


class LocalHub:
    """Serves folders as model repositories on a free port, and logs all `requests`."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.bytes_sent = 0  # of bodies
        self.repositories: dict[str, Path] = {}
        self.commits: dict[str, Path] = {}
        self.cards: dict[str, dict[str, Any]] = {}  # `likes`, `downloads`, `gated`, `tags`, `cardData` by repository
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def add(self, repo_id: str, folder: Path) -> str:
        """Serve a folder as a new commit of the repository and return it; earlier commits stay."""
        self.repositories[repo_id] = folder
        commit = self.revision(repo_id)
        self.commits[commit] = folder
        return commit

    def describe(self, repo_id: str) -> dict[str, Any]:
        """The repository with every field of the list API that a search asks for."""
        index = self.files(repo_id).get("model_index.json")
        class_name = json.loads(index.read_text())["_class_name"] if index else ""
        own = self.cards.get(repo_id, {})
        tags = [
            "diffusers",
            "text-to-image",
            *([f"diffusers:{class_name}"] if class_name else []),
            *own.get("tags", []),
        ]
        return {
            "_id": self.revision(repo_id)[:24],
            "id": repo_id,
            "likes": own.get("likes", 0),
            "downloads": own.get("downloads", 0),
            "trendingScore": own.get("likes", 0),
            "lastModified": own.get("lastModified", "2026-01-01T00:00:00.000Z"),
            "gated": own.get("gated", False),  # or "auto" or "manual"
            "pipeline_tag": "text-to-image",
            "tags": tags,
            "cardData": own.get("cardData", {}),
            "config": {"diffusers": {"_class_name": class_name}} if class_name else {},
        }

    def search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """All results of `GET /api/models` in their order."""

        def first(name: str) -> str:
            return query.get(name, [""])[0]

        found = [self.describe(repo_id) for repo_id in self.repositories]
        found = [
            model
            for model in found
            if first("search").lower() in model["id"].lower()
            and set(query.get("filter", [])) <= {*model["tags"]}
            and first("pipeline_tag") in ("", model["pipeline_tag"])
            and (first("gated").lower() != "false" or not model["gated"])
        ]
        order = first("sort") or "trendingScore"
        return sorted(found, key=lambda model: model[order], reverse=True)

    def revision(self, repo_id: str) -> str:
        """The commit hash, made from names and sizes."""
        sizes = [(path, file.stat().st_size) for path, file in self.files(repo_id).items()]
        return hashlib.sha1(repr((repo_id, sizes)).encode()).hexdigest()  # noqa: S324 - as git does

    def files(self, repo_id: str, commit: str = "") -> dict[str, Path]:
        """Files on disk by path in the repository."""
        folder = self.commits.get(commit, self.repositories[repo_id])
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def fetched(self, repo_id: str) -> set[str]:
        """The files that were downloaded."""
        found = (re.fullmatch(rf"/{repo_id}/resolve/\w+/(.+)", path) for path in self.asked("GET"))
        return {match[1] for match in found if match}

    def asked(self, method: str) -> list[str]:
        """The paths of all requests with that method."""
        with self._lock:
            return [path for verb, path in self.requests if verb == method]

    def log(self, method: str, path: str, token: str) -> None:
        """Log a request; called by the handler."""
        with self._lock:
            self.requests.append((method, path))
            self.tokens.add(token)

    def count_bytes(self, sent: int) -> None:
        """Count bytes of a body; called by the handler."""
        with self._lock:
            self.bytes_sent += sent

    def fault_at(self, method: str, *names: str) -> Fault:
        """The fault of the first name that has one; decrements its `times`."""
        with self._lock:
            for name in names:
                fault = self.faults.get(name)
                if fault is None or fault.times == 0 or fault.method not in {"", method}:
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault()

    def wait(self, seconds: float | None = None) -> None:
        """Delay a response, at most until `close`."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Stop the server and release stalled responses."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def tree_entry(path: str, file: Path) -> dict[str, Any]:
    """A file as in the tree API; weights are in LFS, everything else in git."""
    stat = file.stat()
    git, sha256 = _digests(file, stat.st_size, stat.st_mtime_ns)
    entry: dict[str, Any] = {"type": "file", "path": path, "size": stat.st_size, "oid": git}
    if file.suffix in {".bin", ".safetensors", ".ckpt", ".gguf"}:
        entry["lfs"] = {"oid": sha256, "size": stat.st_size, "pointerSize": 134}
    return entry


@lru_cache
def _digests(file: Path, size: int, mtime_ns: int) -> tuple[str, str]:
    git = hashlib.sha1(b"blob %d\0" % size)  # noqa: S324 - as git does
    sha256 = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            git.update(chunk)
            sha256.update(chunk)
    return git.hexdigest(), sha256.hexdigest()


def _expand(model: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
    """The id and the fields that the query names in `expand`."""
    return {name: value for name, value in model.items() if name in ("_id", "id", *query.get("expand", []))}


def _etag(entry: dict[str, Any]) -> str:
    return str(entry["lfs"]["oid"] if "lfs" in entry else entry["oid"])


class _Handler(BaseHTTPRequestHandler):
    """The routes that snapshot_download and list_repo_tree use."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def do_GET(self) -> None:
        self._respond(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: `LocalHub.requests` is the log."""

    def _respond(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log(self.command, path, self.headers.get("Authorization", ""))
        try:
            if path == "/api/models":
                self._list()
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
                self._api(match[1], match[2] or "")
            elif match := re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
                self._file(match[1], match[2], match[3], body=body, on_cdn=path.startswith("/cdn/"))
            else:
                self._error(404, "EntryNotFound")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # some tests kill the client

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def _list(self) -> None:
        """A page of the search results; the Hub names the next one in a Link header."""
        fault = self.hub.fault_at(self.command, "/api/models")
        if fault.status != 200:
            return self._error(fault.status, fault.error_code, fault.headers)
        query = self._query
        start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["1000"])[0])
        found = self.hub.search(query)
        models = [_expand(model, query) for model in found[start : start + limit]]
        headers = {"Content-Type": "application/json"}
        if start + limit < len(found):
            following = urlencode({**query, "cursor": [start + limit]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}/api/models?{following}>; rel="next"'
        return self._send(200, json.dumps(models).encode(), headers, fault)

    def _api(self, repo_id: str, route: str) -> None:
        fault = self.hub.fault_at(self.command, repo_id)
        if fault.status != 200:
            self._error(fault.status, fault.error_code, fault.headers)
        elif repo_id not in self.hub.repositories:
            self._error(401, "RepoNotFound")
        elif route.startswith("/tree/"):
            self._json([tree_entry(*item) for item in self.hub.files(repo_id).items()], fault)
        elif not route and "expand" in self._query:
            self._json(_expand(self.hub.describe(repo_id), self._query), fault)
        elif not route or route.startswith("/revision/"):
            siblings = [{"rfilename": path} for path in self.hub.files(repo_id)]
            sha = self.hub.revision(repo_id)
            self._json({"id": repo_id, "sha": sha, "siblings": siblings}, fault)
        else:
            self._error(404, "EntryNotFound")

    def _file(self, repo_id: str, sha: str, name: str, *, body: bool, on_cdn: bool) -> None:
        fault = self.hub.fault_at(self.command, f"{repo_id}/{name}", repo_id)
        if fault.status != 200:
            return self._error(fault.status, fault.error_code, fault.headers)
        if len(sha) == 40 and sha not in self.hub.commits:
            return self._error(404, "RevisionNotFound")
        if repo_id not in self.hub.repositories or name not in self.hub.files(repo_id, sha):
            return self._error(404, "EntryNotFound")
        file = self.hub.files(repo_id, sha)[name]
        etag = _etag(tree_entry(name, file))
        size = str(file.stat().st_size)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if fault.redirect and not on_cdn:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": size}
            headers["Location"] = f"/cdn{self.path}"
            return self._send(302, b"", headers, body=body)
        with file.open("rb") as opened:
            content: BinaryIO = opened
            total = file.stat().st_size
            if fault.damage:
                content = io.BytesIO(bytes(255 - byte for byte in opened.read()))
            if fault.lie_about_size:
                total = min(total, fault.after or 0)
            start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
            if start:
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            content.seek(start)
            self._send_stream(206 if start else 200, content, total - start, headers, fault, body=body)
        return None

    def _json(self, value: Any, fault: Fault) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, fault)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        headers = {**(headers or {}), **({"X-Error-Code": code} if code else {})}
        self._send(status, b"", headers)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], fault: Fault | None = None, *, body: bool = True
    ) -> None:
        self._send_stream(status, io.BytesIO(content), len(content), headers, fault or Fault(), body=body)

    def _send_stream(
        self, status: int, content: BinaryIO, size: int, headers: dict[str, str], fault: Fault, *, body: bool
    ) -> None:
        if fault.stall and fault.after is None:
            self.hub.wait()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        end = size if fault.after is None else min(fault.after, size)
        for start in range(0, end, CHUNK):
            if fault.pause:
                self.hub.wait(fault.pause)
            chunk = content.read(min(CHUNK, end - start))
            self.wfile.write(chunk)
            self.hub.count_bytes(len(chunk))
        if fault.stall:
            self.hub.wait()
        if end < size:
            self.close_connection = True


def _handler_for(hub: LocalHub) -> type[_Handler]:
    return type("Handler", (_Handler,), {"hub": hub})
