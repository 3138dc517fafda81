"""Visitors of a served app: what browsers send, and what attackers do."""

from __future__ import annotations

import http.client
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.cookies import SimpleCookie
from json import dumps, loads
from typing import Any
from urllib.parse import urlsplit

import httpx

STREAM_TIMEOUT = 0.5  # seconds to wait for a response, and at the end for the rest of endless ones
SILENCE = 0.05  # seconds without a byte after which the rest of a response is read at the end
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
        self._connection = self._connect()
        self._last_request = 0.0
        self._endless: list[tuple[str, http.client.HTTPResponse, socket.socket]] = []
        if cookies:
            self.config = self.client.get("/config").json()

    def close(self) -> None:
        self.client.close()
        self._connection.close()
        for _, response, sock in self._endless:
            response.close()
            sock.close()

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection._validate_path = lambda _: None  # type: ignore[method-assign]  # attackers send any path
        return connection

    def request(self, method: str, path: str, json: Any = None) -> tuple[int, bytes]:
        """Status, and headers and body of a response; `endless_responses` has what comes after a silence."""
        status, headers, content = 0, b"", b""
        try:
            body = None if json is None else dumps(json).encode()
            response = self._open(method, path, body, timeout=STREAM_TIMEOUT)
            status, headers = response.status, repr(response.getheaders()).encode()
            self._socket.settimeout(SILENCE)
            while len(content) <= MAX_RESPONSE and (chunk := response.read1()):
                content += chunk
            if not response.isclosed():
                self._connection.close()
        except TimeoutError:
            if status:
                self._endless.append((path, response, self._socket))
                self._connection = self._connect()
            else:
                self._connection.close()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the part that was received counts
        return status, headers + content

    def endless_responses(self) -> Iterator[tuple[str, bytes]]:
        """Paths and further content of the responses that had not ended."""
        deadline = time.monotonic() + STREAM_TIMEOUT
        for path, _, sock in self._endless:
            content = b""
            sock.settimeout(max(SILENCE, deadline - time.monotonic()))
            with suppress(OSError):  # until nothing comes
                while len(content) <= MAX_RESPONSE and (chunk := sock.recv(MAX_RESPONSE)):
                    content += chunk
            yield path, content

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str = "application/json",
        timeout: float = 60,
    ) -> http.client.HTTPResponse:
        """A response with its body unread. Thousands of requests take httpx three times as long."""
        if time.monotonic() > self._last_request + KEEP_ALIVE:
            self._connection.close()
        self._last_request = time.monotonic()
        headers = {name: value for name, value in self.client.headers.items() if name != "accept-encoding"}
        if self.cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())
        if body is not None:
            headers["content-type"] = media_type
        with suppress(BrokenPipeError, ConnectionResetError):  # rejected before the whole body was sent
            self._connection.request(method, path, body, headers)
        self._socket = self._connection.sock
        self._socket.settimeout(timeout)
        response = self._connection.getresponse()
        if self.cookies:
            for cookie in SimpleCookie("; ".join(response.headers.get_all("set-cookie", []))).values():
                self.client.cookies.set(cookie.key, cookie.value)
        return response

    def send(
        self, method: str, path: str, body: bytes | None = None, media_type: str = "application/json"
    ) -> tuple[int, bytes, bytes]:
        """Status, headers and body of a response that ends, however long it takes."""
        with self._open(method, path, body, media_type) as response:
            return response.status, repr(response.getheaders()).encode(), response.read()

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
        key = loads(label.removeprefix("__i18n__"))["key"]
        return str(self.config["i18n_translations"]["en"][key])

    def call(self, event: dict[str, Any], data: list[Any], event_data: Any = None) -> bytes:
        """All messages of the queue for one event."""
        [messages] = self.call_all([(event, data, event_data)])
        return messages

    def call_all(self, calls: Iterable[tuple[dict[str, Any], list[Any], Any]]) -> list[bytes]:
        """The messages for each of some events with their data, from one stream, as browsers have it."""
        answers: list[bytes] = []
        pending: dict[str, int] = {}
        for event, data, event_data in calls:
            body = {"fn_index": event["id"], "data": data, "session_hash": self.session, "event_data": event_data}
            status, _, content = self.send("POST", "/gradio_api/queue/join", dumps(body).encode())
            if status == 200:
                pending[loads(content)["event_id"]] = len(answers)
            answers.append(content)
        if pending:
            with self._open("GET", f"/gradio_api/queue/data?session_hash={self.session}") as stream:
                for line in stream:
                    message = loads(line[6:]) if line.startswith(b"data: ") else {}
                    number = pending.get(message.get("event_id"))
                    for receiver in pending.values() if number is None else [number]:
                        answers[receiver] += line
        return answers


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
