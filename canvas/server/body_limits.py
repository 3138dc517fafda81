"""Limits the size of every request body, and checks bodies while they arrive."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIB = 2**20
MAX_UPLOAD = 100 * MIB  # bytes of one file: a large photograph in PNG
DEFAULT_LIMIT = 2 * MIB  # the events of the page, with the longest prompts
# Limits by the beginning of the path. Uploads have room for the multipart headers; the OpenAI and
# AUTOMATIC1111 APIs limit their bodies themselves, and answer in their own formats.
LIMITS: tuple[tuple[str, int | None], ...] = (
    ("/gradio_api/upload", MAX_UPLOAD + MIB),
    ("/gradio_api/mcp", 20 * MIB),  # images in base64
    ("/v1/", None),
    ("/sdapi/", None),
    ("/controlnet/", None),
)

# A response that rejects the request, or None, for each message of the body.
Check = Callable[[Message], Response | None]


class BodyLimitMiddleware:
    """Rejects bodies above the limit of their route with 413, also those without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = limit_of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            await _too_large(limit)(scope, receive, send)
            return
        received = 0

        def check(message: Message) -> Response | None:
            nonlocal received
            received += len(message.get("body", b""))
            return _too_large(limit) if received > limit else None

        await call_checked(self._app, scope, receive, send, check)


def limit_of(path: str) -> int | None:
    """The most bytes of a request body for a path; None if its route has a limit of its own."""
    return next((limit for prefix, limit in LIMITS if path.startswith(prefix)), DEFAULT_LIMIT)


def _too_large(limit: int) -> Response:
    return JSONResponse({"detail": f"The request body must be at most {limit // MIB} MiB."}, 413)


async def call_checked(app: ASGIApp, scope: Scope, receive: Receive, send: Send, check: Check) -> None:
    """Call an app; the response of `check`, if any, ends the body and replaces the app's response."""
    is_multipart = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/")
    rejection: Response | None = None
    started = False

    async def receive_checked() -> Message:
        nonlocal rejection
        message = await receive()
        rejection = rejection or check(message)
        if rejection is None:
            return message
        # After a MultiPartException, and only then, Gradio's parser deletes its files.
        raise MultiPartException("The body is rejected.") if is_multipart else HTTPException(rejection.status_code)

    async def send_unless_rejected(message: Message) -> None:
        nonlocal started
        if rejection is None:
            started = True
            await send(message)

    try:
        await app(scope, receive_checked, send_unless_rejected)
    except Exception:
        if rejection is None:
            raise
    if rejection is not None and not started:
        await rejection(scope, receive, send)
