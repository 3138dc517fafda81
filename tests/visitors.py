"""Visitors of a served app: what browsers send, and what attackers do."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import httpx

STREAM_TIMEOUT = 0.5  # seconds without a byte after which an endless response is cut off
MAX_RESPONSE = 1 << 20  # bytes
KEEP_ALIVE = 2  # seconds; the server closes a connection after five, perhaps while we write to it


class Visitor:
    """One browser with its cookies; without `cookies` a new visitor for every request."""

    def __init__(self, url: str, cookies: bool = True) -> None:
        self.url = url.rstrip("/")
        self.session = secrets.token_hex(5)
        limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE)
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=limits)
        self.cookies = cookies
        address = urlsplit(self.url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self._connection._validate_path = lambda _: None  # type: ignore[method-assign]  # attackers send any path
        self._last_request = 0.0
        if cookies:
            self.config = self.client.get("/config").json()

    def close(self) -> None:
        self.client.close()
        self._connection.close()

    def request(self, method: str, path: str, json: Any = None) -> tuple[int, bytes]:
        """Status, and headers and body of a response, cut off if it does not end."""
        status, headers, body = 0, b"", b""
        try:
            with self._open(method, path, json, timeout=STREAM_TIMEOUT) as response:
                status, headers = response.status, repr(response.getheaders()).encode()
                while len(body) <= MAX_RESPONSE and (chunk := response.read1()):
                    body += chunk
                if not response.isclosed():
                    self._connection.close()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the part that was received counts
        return status, headers + body

    def _open(self, method: str, path: str, content: Any = None, timeout: float = 60) -> http.client.HTTPResponse:
        """A response with its body unread. Thousands of requests take httpx three times as long."""
        if time.monotonic() > self._last_request + KEEP_ALIVE:
            self._connection.close()
        self._last_request = time.monotonic()
        headers = {name: value for name, value in self.client.headers.items() if name != "accept-encoding"}
        if self.cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())
        if content is not None:
            headers["content-type"] = "application/json"
        body = None if content is None else json.dumps(content)
        self._connection.request(method, path, body, headers)
        self._connection.sock.settimeout(timeout)
        response = self._connection.getresponse()
        if self.cookies:
            for cookie in SimpleCookie("; ".join(response.headers.get_all("set-cookie", []))).values():
                self.client.cookies.set(cookie.key, cookie.value)
        return response

    def raw_get(self, path: str) -> tuple[int, bytes]:
        """`request` of a response that ends, however long it takes."""
        with self._open("GET", path) as response:
            return response.status, repr(response.getheaders()).encode() + response.read()

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
        body = {"fn_index": event["id"], "data": data, "session_hash": self.session, "event_data": event_data}
        with self._open("POST", "/gradio_api/queue/join", body) as joined:
            content = joined.read()
            if joined.status != 200:
                return content
        messages = b""
        with self._open("GET", f"/gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream:
                messages += line
                if line.startswith(b"data: ") and _is_last(json.loads(line[6:])):
                    break
        self._connection.close()
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
