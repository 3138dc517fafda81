"""A local server for the Hub and the router of Inference Providers, used by the real client."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.inference._providers import PROVIDERS, _common, hf_inference
from PIL import Image

TOKEN = "hf_" + "x" * 34


def png(size: tuple[int, int] = (512, 256), color: str = "#204060") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Router:
    """State of the server: the providers of a model, and the response to requests."""

    status: int = 200
    body: bytes = field(default_factory=png)
    providers: dict[str, str] = field(default_factory=lambda: {"nscale": "sd/one"})
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    hold: bool = False
    returns_base64: bool = True
    url: str = ""

    def posts(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [call for call in self.requests if call[2]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def router(self) -> Router:
        return self.server.router  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._record({})
        mapping = {
            name: {"status": "live", "providerId": provider_id, "task": "text-to-image"}
            for name, provider_id in self.router.providers.items()
        }
        model_info = {"id": "a/b", "pipeline_tag": "text-to-image", "inferenceProviderMapping": mapping}
        self._respond(200, json.dumps(model_info).encode(), "application/json")

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self._record(json.loads(self.rfile.read(length)))
        if self.router.hold:
            self.router.release.wait(300)
        content = self.router.body
        if self.router.status != 200:
            content = json.dumps({"error": f"status {self.router.status}, server message"}).encode()
        elif "nscale" in self.path and self.router.returns_base64:
            encoded = base64.b64encode(content).decode()
            content = json.dumps({"data": [{"b64_json": encoded}]}).encode()
        self._respond(self.router.status, content, "image/png")

    def _record(self, body: dict[str, Any]) -> None:
        self.router.requests.append((self.path, self.headers.get("authorization", ""), body))

    def _respond(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running() -> Iterator[Router]:
    """Serve on a free port, and point the constants of the real client to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    router = Router(url=f"http://127.0.0.1:{server.server_port}")
    server.router = router  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _common._fetch_inference_provider_mapping.cache_clear()
    hf_inference._check_supported_task.cache_clear()
    helper = PROVIDERS["hf-inference"]["text-to-image"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", router.url)
        patch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", router.url + "/{provider}")
        patch.setattr(helper, "base_url", f"{router.url}/hf-inference")
        yield router
    router.release.set()
    server.shutdown()
    server.server_close()
    thread.join()
