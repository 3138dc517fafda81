"""Visitors of a served app: what their browsers and their worst programs send."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

PATIENCE = 0.5  # seconds without a byte after which an endless answer has said what it says
ENOUGH = 1 << 20  # bytes of an answer


class Visitor:
    """One browser with cookies of its own; without `cookies` a stranger each time."""

    def __init__(self, url: str, cookies: bool = True) -> None:
        self.url = url.rstrip("/")
        self.session = secrets.token_hex(5)
        # The server closes a connection after five idle seconds, perhaps while we write to it.
        limits = httpx.Limits(keepalive_expiry=2)
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=limits)
        self.cookies = cookies
        if cookies:
            self.config = self.client.get("/config").json()

    def close(self) -> None:
        self.client.close()

    def ask(self, method: str, path: str, **sent: Any) -> tuple[int, bytes]:
        """Status, headers and body of an answer, cut off when it does not end."""
        if not self.cookies:
            self.client.cookies.clear()
        status, headers, body = 0, b"", b""
        timeout = httpx.Timeout(60, read=PATIENCE)
        try:
            with self.client.stream(method, path, timeout=timeout, **sent) as answer:
                status, headers = answer.status_code, repr(answer.headers).encode()
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > ENOUGH:
                        break
        except httpx.TransportError:
            pass  # what does not end, or breaks off, has said what it says
        return status, headers + body

    def raw(self, path: str) -> tuple[int, bytes]:
        """The same for a path that no client would send as it is."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        connection._validate_path = lambda _: None  # type: ignore[method-assign]
        headers = "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())
        try:
            connection.request("GET", path, headers={"Cookie": headers} if self.cookies else {})
            answer = connection.getresponse()
            return answer.status, repr(answer.getheaders()).encode() + answer.read()
        finally:
            connection.close()

    # What the page does

    def data_of(self, event: dict[str, Any], **values: Any) -> list[Any]:
        """The form as it is first shown; `values` by label, an underscore for a space."""
        components = {
            component["id"]: component["props"] for component in self.config["components"]
        }
        by_label = {name.replace("_", " "): value for name, value in values.items()}
        shown = [components.get(number, {}) for number in event["inputs"]]
        return [by_label.get(self._label(props), props.get("value")) for props in shown]

    def _label(self, props: dict[str, Any]) -> str | None:
        """The English label; the page sends a key of its translations in its place."""
        marked = str(props.get("label", ""))
        if "__i18n__" not in marked:
            return props.get("label")
        key = json.loads(marked.removeprefix("__i18n__"))["key"]
        return str(self.config["i18n_translations"]["en"][key])

    def event(self, name: str) -> dict[str, Any]:
        return next(one for one in self.config["dependencies"] if one["api_name"] == name)

    def call(self, event: dict[str, Any], data: list[Any], clicked: Any = None) -> bytes:
        """Everything that the queue answers to one event of the page."""
        body = {"fn_index": event["id"], "data": data, "session_hash": self.session}
        joined = self.client.post("/gradio_api/queue/join", json={**body, "event_data": clicked})
        if joined.status_code != 200:
            return joined.content
        heard = b""
        query = {"session_hash": self.session}
        with self.client.stream("GET", "/gradio_api/queue/data", params=query) as answer:
            for line in answer.iter_lines():
                heard += line.encode()
                if line.startswith("data: ") and _ends(json.loads(line[6:])):
                    break
        return heard


def _ends(message: dict[str, Any]) -> bool:
    return message["msg"] in ("process_completed", "close_stream", "unexpected_error")


def routes_of(app: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of every route of an app, those of included and mounted ones too."""
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_of(inner, prefix + (route.include_context.prefix or ""))
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
            yield method, prefix + route.path
        if getattr(route, "routes", None):
            yield from routes_of(route, prefix + route.path)
