"""Serves the app under the path of a reverse proxy, whether the proxy removes that path or not."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


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
