"""Visitors of a served app: what browsers send, and what attackers do."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

STREAM_TIMEOUT = 0.5  # seconds without a byte after which an endless response is cut off
MAX_RESPONSE = 1 << 20  # bytes


class Visitor:
    """One browser with its cookies; without `cookies` a new visitor for every request."""

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

    def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status, and headers and body of a response, cut off if it does not end."""
        if not self.cookies:
            self.client.cookies.clear()
        status, headers, body = 0, b"", b""
        timeout = httpx.Timeout(60, read=STREAM_TIMEOUT)
        try:
            with self.client.stream(method, path, timeout=timeout, **options) as response:
                status, headers = response.status_code, repr(response.headers).encode()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_RESPONSE:
                        break
        except httpx.TransportError:
            pass  # the part that was received counts
        return status, headers + body

    def raw_get(self, path: str) -> tuple[int, bytes]:
        """`request` for a path that HTTP clients would normalize."""
        url = urlsplit(self.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        connection._validate_path = lambda _: None  # type: ignore[method-assign]
        cookie = "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())
        try:
            connection.request("GET", path, headers={"Cookie": cookie} if self.cookies else {})
            response = connection.getresponse()
            return response.status, repr(response.getheaders()).encode() + response.read()
        finally:
            connection.close()

    # Events of the page

    def event(self, name: str) -> dict[str, Any]:
        """An event of the page by its api_name."""
        return next(one for one in self.config["dependencies"] if one["api_name"] == name)

    def inputs_of(self, event: dict[str, Any], **values: Any) -> list[Any]:
        """Initial values of an event's inputs; `values` by label, with _ for spaces."""
        components = {component["id"]: component["props"] for component in self.config["components"]}
        by_label = {name.replace("_", " "): value for name, value in values.items()}
        inputs = [components.get(number, {}) for number in event["inputs"]]
        return [by_label.get(self._label(props), props.get("value")) for props in inputs]

    def _label(self, props: dict[str, Any]) -> str | None:
        """The English label; the page sends the key of a translation."""
        label = str(props.get("label", ""))
        if "__i18n__" not in label:
            return props.get("label")
        key = json.loads(label.removeprefix("__i18n__"))["key"]
        return str(self.config["i18n_translations"]["en"][key])

    def call(self, event: dict[str, Any], data: list[Any], event_data: Any = None) -> bytes:
        """All messages of the queue for one event."""
        body = {"fn_index": event["id"], "data": data, "session_hash": self.session}
        joined = self.client.post("/gradio_api/queue/join", json={**body, "event_data": event_data})
        if joined.status_code != 200:
            return joined.content
        messages = b""
        query = {"session_hash": self.session}
        with self.client.stream("GET", "/gradio_api/queue/data", params=query) as response:
            for line in response.iter_lines():
                messages += line.encode()
                if line.startswith("data: ") and _is_last(json.loads(line[6:])):
                    break
        return messages


def _is_last(message: dict[str, Any]) -> bool:
    return message["msg"] in ("process_completed", "close_stream", "unexpected_error")


def routes_of(app: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of every route of an app, with those of included and mounted ones."""
    for route in app.routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from routes_of(router, prefix + (route.include_context.prefix or ""))
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
            yield method, prefix + route.path
        if getattr(route, "routes", None):
            yield from routes_of(route, prefix + route.path)
