"""A local HTTP server with the Hub's API for creating Spaces and uploading to them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "token" * 6
LARGE = (".safetensors", ".png", ".woff2")


class SpaceHub:
    """Stores Spaces in memory: `spaces[id]` maps path to content. Only `TOKEN` may write."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.error_status: int = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def commit(self, space_id: str, lines: list[dict[str, Any]]) -> None:
        """Apply a commit in the Hub's NDJSON format."""
        space = self.spaces[space_id]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                space[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                space[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del space[value["path"]]

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: SpaceHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        match = re.match(r"/api/spaces/([^/]+/[^/]+)(?:/(revision|tree)/main)?", self._path)
        if not match or match[1] not in self.hub.spaces:
            self._respond(404, {}, code="RepoNotFound")
        elif match[2] == "tree":
            files = self.hub.spaces[match[1]].items()
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)} for path, content in files
            ]
            self._respond(200, entries)
        else:
            siblings = [{"rfilename": path} for path in self.hub.spaces[match[1]]]
            self._respond(200, {"id": match[1], "sha": "0" * 40, "siblings": siblings})

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self._path.rpartition("/")[2]
        self.hub.objects[self._path.rpartition("/")[2]] = content
        self._respond(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._respond(401, {"error": "Invalid username or password."})
        elif self.hub.error_status:
            self._respond(self.hub.error_status, {"error": "no"})
        elif self._path == "/api/repos/create":
            self._create(json.loads(body))
        elif self._path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\ntitle: Magic Canvas\n")
            self._respond(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/spaces/([^/]+/[^/]+)/preupload/main", self._path):
            self._preupload(match[1], json.loads(body)["files"])
        elif self._path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif match := re.fullmatch(r"/api/spaces/([^/]+/[^/]+)/commit/main", self._path):
            self.hub.commit(match[1], [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/spaces/{match[1]}/commit/{'1' * 40}"
            self._respond(200, {"commitUrl": url, "commitOid": "1" * 40})
        else:
            self._respond(404, {})

    def _create(self, body: dict[str, Any]) -> None:
        space_id = f"{body['organization']}/{body['name']}"
        url = {"url": f"{self.hub.url}/spaces/{space_id}"}
        if space_id in self.hub.spaces:
            self._respond(409, {**url, "error": "You already created this space repo"})
            return
        self.hub.spaces[space_id] = {".gitattributes": b"", "README.md": b"created by the Hub"}
        self.hub.created.append(body)
        self._respond(200, url)

    def _preupload(self, space_id: str, files: list[dict[str, Any]]) -> None:
        known = self.hub.spaces[space_id]
        results = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _sha1(known[file["path"]]) if file["path"] in known else None,
            }
            for file in files
        ]
        self._respond(200, {"files": results})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        results = []
        for requested in objects:
            upload = {"href": f"{self.hub.url}/objects/{requested['oid']}"}
            new = requested["oid"] not in self.hub.objects
            results.append({**requested, **({"actions": {"upload": upload}} if new else {})})
        self._respond(200, {"transfer": "basic", "objects": results})

    @property
    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _respond(self, status: int, value: Any, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(content)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - as git


def _handler_for(hub: SpaceHub) -> type[_Handler]:
    return type("Handler", (_Handler,), {"hub": hub})
