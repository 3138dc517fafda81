"""The routes that exist, under the root path of a reverse proxy, and the answers to their unexpected errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.errors import UnexpectedError
from canvas.formatting import format_traceback

log = logging.getLogger(__name__)

GET, POST, ANY = ("GET", "HEAD"), ("POST",), ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# What the page, gradio_client, @gradio/client and MCP clients use. Everything else that Gradio offers
# is off: recordings, deep links, its editor of the app's code, monitoring, proxies, streams.
GRADIO_ROUTES: tuple[tuple[str, Sequence[str]], ...] = (
    # The page and its files
    ("/", GET),
    ("/config", GET),
    ("/theme.css", GET),
    ("/gradio_api/theme.css", GET),
    ("/favicon.ico", GET),
    ("/robots.txt", GET),
    ("/manifest.json", GET),
    ("/pwa_icon", GET),
    ("/pwa_icon/{size}", GET),
    ("/assets/{path:path}", GET),
    ("/static/{path:path}", GET),
    ("/svelte/{path:path}", GET),
    # The login; Hugging Face's on a Space
    ("/login", POST),
    ("/logout", GET),
    ("/login/huggingface", GET),
    ("/login/callback", GET),
    ("/gradio_api/login_check", GET),
    ("/gradio_api/user", GET),
    ("/gradio_api/token", GET),
    # Events and files
    ("/gradio_api/startup-events", GET),
    ("/gradio_api/app_id", GET),
    ("/gradio_api/heartbeat/{session_hash}", GET),
    ("/gradio_api/queue/join", POST),
    ("/gradio_api/queue/data", GET),
    ("/gradio_api/queue/status", GET),
    ("/gradio_api/cancel", POST),
    ("/gradio_api/reset", POST),
    ("/gradio_api/upload", POST),
    ("/gradio_api/upload_progress", GET),
    ("/gradio_api/file={path:path}", GET),
    ("/gradio_api/file/{path:path}", GET),
    # The API
    ("/gradio_api/info", GET),
    ("/gradio_api/openapi.json", GET),
    ("/gradio_api/run/{api_name}", POST),
    ("/gradio_api/api/{api_name}", POST),
    ("/gradio_api/call/{api_name}", POST),
    ("/gradio_api/call/v2/{api_name}", POST),
    ("/gradio_api/call/{api_name}/{event_id}", GET),
    ("/gradio_api/call/v2/{api_name}/{event_id}", GET),
    ("/gradio_api/mcp", ANY),
    ("/gradio_api/mcp/{path:path}", ANY),
)
BY_INDEX = ("/gradio_api/run/predict", "/gradio_api/api/predict")  # the body names the function by its index
CALL = re.compile(r"/gradio_api/(?:run|api|call|call/v2)/([^/]+)/?")
# Gradio looks up the function of an event, and its parameters by name, without catching errors.
EVENT_PREFIXES = tuple(f"/gradio_api/{name}" for name in ("queue/join", "call/", "run/", "api/", "upload"))
INVALID_CALL = "The call names no function of this app, or wrong parameters. /gradio_api/info lists them."


@contextmanager
def only_final_app() -> Iterator[None]:
    """Have Gradio build its FastAPI app by `Blocks.launch` only.

    `Blocks.queue` and the end of its `with` block build one as well, which nobody uses and which
    takes a third of a second each.
    """
    from gradio.routes import App

    create_app = App.create_app

    def create(blocks: Any, *, mcp_server: bool | None = None, **options: Any) -> App | None:
        if mcp_server is False:  # what launch() passes is True
            return None
        return create_app(blocks, mcp_server=mcp_server, **options)

    App.create_app = staticmethod(create)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        App.create_app = staticmethod(create_app)  # type: ignore[method-assign]


class RouteListMiddleware:
    """Lets requests pass that match GRADIO_ROUTES or `own_routes`, and calls of existing functions."""

    def __init__(self, app: ASGIApp, *, own_routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._own_routes = tuple(own_routes)
        self._gradio_routes = [(compile_path(path)[0], frozenset(methods)) for path, methods in GRADIO_ROUTES]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "websocket" or (scope["type"] == "http" and not self._exists(scope)):
            app = PlainTextResponse("Not found.\n", 404)
        await app(scope, receive, send)

    def _exists(self, scope: Scope) -> bool:
        path, method = scope["path"], scope["method"]
        listed = any(
            method in methods and (regex.match(path) or regex.match(path.rstrip("/")))
            for regex, methods in self._gradio_routes
        )
        if listed and _is_function(scope, path):
            return True
        return any(route.matches(scope)[0] is not Match.NONE for route in self._own_routes)


def _is_function(scope: Scope, path: str) -> bool:
    """Whether a called function exists; Gradio answers 500 for any other name."""
    call = CALL.fullmatch(path)
    if call is None or scope["method"] != "POST" or path in BY_INDEX:
        return True
    return any(function.api_name == call[1] for function in scope["app"].get_blocks().fns.values())


class StripRootPathMiddleware:
    """Removes the root path from `scope["path"]`, for all middleware between this and the next.

    Otherwise a path that middleware protects could be requested as /root/path, which Starlette
    routes to the same endpoint.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "").rstrip("/")
        if root and scope["type"] in ("http", "websocket"):
            path = scope["path"]
            while path == root or path.startswith(f"{root}/"):
                path = path.removeprefix(root)
            scope = {**scope, "path": path or "/", "root_path": "", "app_root_path": root}
        await self._app(scope, receive, send)


class RestoreRootPathMiddleware:
    """Adds the root path to `scope["path"]` again, as the ASGI specification wants it.

    Starlette's mounted apps, such as Gradio's MCP server, are not found otherwise.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("app_root_path", "")
        if root and scope["type"] in ("http", "websocket"):
            scope = {**scope, "path": root + scope["path"], "root_path": root}
        await self._app(scope, receive, send)


class ErrorMiddleware:
    """Replaces an exception by a response, before uvicorn logs it with everything in its message.

    With `log_values` the log has the messages of the exceptions, which may contain prompts.
    """

    def __init__(self, app: ASGIApp, *, log_values: bool) -> None:
        self._app = app
        self._log_values = log_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Exception as error:  # noqa: BLE001 - of any route, which is logged
            path = scope["path"]
            is_call = path.startswith(EVENT_PREFIXES) and _is_invalid_call(error)
            if started and isinstance(error.__cause__, HTTPException):
                # Gradio's event streams send that there is no such event or session, and raise it as well.
                await send({"type": "http.response.body"})
                return
            if not is_call:
                traceback = format_traceback(error, with_message=self._log_values)
                log.error("%s %s: %s", scope["method"], path[:100], traceback)
            if started:
                return  # the client sees that the response is incomplete
            text, status = (INVALID_CALL, 400) if is_call else (str(UnexpectedError()), 500)
            await JSONResponse({"detail": text, "error": text}, status)(scope, receive, send)


def _is_invalid_call(error: Exception) -> bool:
    from gradio.route_utils import FnIndexInferError

    return isinstance(error, KeyError | TypeError | ValueError | FnIndexInferError)
