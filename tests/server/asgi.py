"""Calls ASGI apps and middleware without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def call(app: ASGIApp, scope: Scope, received: Iterable[Message] = ()) -> list[Message]:
    """What the app sends; it receives these messages, then that the client has disconnected."""
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def http_scope(path: str = "/", method: str = "POST", headers: dict[str, str] | None = None, **more: object) -> Scope:
    encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http", "method": method, "path": path, "headers": encoded, **more}


def body_of(*parts: bytes) -> list[Message]:
    """The messages of a request body that comes in these parts."""
    *first, last = parts
    return [{"type": "http.request", "body": part, "more_body": True} for part in first] + [
        {"type": "http.request", "body": last}
    ]


def response_of(*parts: bytes, status: int = 200) -> ASGIApp:
    """An app that reads nothing and answers with a body in these parts."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        for message in body_of(*parts):
            await send({**message, "type": "http.response.body"})

    return app


async def read_body(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads the whole body and answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await response_of(str(length).encode())(scope, receive, send)


def status_of(sent: list[Message]) -> int:
    """The status of the only response in these messages."""
    [start] = [message for message in sent if message["type"] == "http.response.start"]
    return int(start["status"])
