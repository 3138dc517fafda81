"""Extends Gradio's MCP server: authentication, complete answers, progress, cancellation.

The only module that uses private names of `gradio.mcp`.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from gradio_client import Client

from canvas.api.gradio_signatures import CLIENT_HEADER, MCP_CLIENT
from canvas.jobs.temp_files import TempFiles

if TYPE_CHECKING:
    from gradio import Blocks

CREDENTIAL_HEADERS = ("authorization", "cookie")


def patch_mcp_server(page: Blocks, internal_token: str, temp_files: TempFiles) -> None:
    """Replace how the MCP server of a launched page calls the app.

    The server calls the app over HTTP. It passes the headers of tool calls on, but not those
    of resources; its own client cannot log in; without a progress token it answers all
    outputs as one text (Gradio 6.31).
    """
    server: Any = page.mcp_server_obj
    if server is None:
        return
    runner = McpToolRunner(server)
    server.convert_strings_to_filedata = McpFiles(server, temp_files).convert
    server._execute_tool_without_progress = runner.run
    server._execute_tool_with_progress = runner.run_with_progress
    # With a login, the token only lets the client read the app's configuration. Each call is
    # authenticated by the temporary session that its API key was given (server/api_keys.py).
    headers = {CLIENT_HEADER: MCP_CLIENT}
    if page.auth is not None:
        headers["authorization"] = f"Bearer {internal_token}"
    server._get_or_create_client = McpClient(server, page.local_url or "", headers).connect


class McpClient:
    """The MCP server's client of the app, which forwards the agent's credentials."""

    def __init__(self, server: Any, url: str, headers: dict[str, str]) -> None:
        self._server = server
        self._url = url
        self._headers = headers
        self._client: Client | None = None
        self._connecting = threading.Lock()

    def connect(self) -> McpClient:
        """Itself, connected. Call it in a thread: it sends requests to this very server."""
        with self._connecting:
            if self._client is None:
                self._client = Client(
                    self._url,
                    headers=self._headers,  # these override the headers of a call
                    download_files=False,
                    verbose=False,
                    analytics_enabled=False,
                    ssl_verify=False,
                    _skip_components=False,
                )
        return self

    def submit(self, *values: Any, api_name: str, headers: dict[str, str] | None = None) -> Any:
        """Call a function of the app; without `headers` the call is that of a resource."""
        assert self._client is not None  # noqa: S101 - `connect` returns this object
        if headers is not None:
            return self._client.submit(*values, api_name=api_name, headers=headers)
        request = self._server.mcp_server.request_context.request
        headers = {name: request.headers[name] for name in CREDENTIAL_HEADERS if name in request.headers}
        return _read_resource(self._client.submit(*values, api_name=api_name, headers=headers))


async def _read_resource(call: Any) -> AsyncIterator[Any]:
    async for update in call:
        if update.type == "output" and not update.success:
            raise ValueError(update.outputs.get("error") or "The resource could not be read.")
        yield update


class McpFiles:
    """The files in the arguments of a tool call: URLs, or base64 in a data URL."""

    def __init__(self, server: Any, temp_files: TempFiles) -> None:
        self._server = server
        self._convert = server.convert_strings_to_filedata
        self._temp_files = temp_files

    def convert(self, arguments: Any, positions: list[list[str | int]]) -> Any:
        """The arguments with their files, which belong to the agent's owner."""
        if _has_file(arguments):  # the client would upload that file of this computer
            raise ValueError("Send files as URLs, or in base64 as data URLs.")
        return self._own(self._convert(arguments, positions))

    def _own(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._own(item) for item in value]
        if not isinstance(value, dict):
            return value
        path = value.get("path")
        if not isinstance(path, str):
            return {name: self._own(item) for name, item in value.items()}
        if path.startswith(("http://", "https://")):
            return value
        request = self._server.mcp_server.request_context.request
        self._temp_files.register(Path(path), getattr(request.state, "owner", None) or "")
        # Without "meta" the client does not upload it again, which would lack the agent's credentials.
        return {"path": path}


def _has_file(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_file, value))
    return isinstance(value, dict) and ("path" in value or any(map(_has_file, value.values())))


class McpToolRunner:
    """Waits for tool calls; an agent that disconnects cancels its call."""

    def __init__(self, server: Any) -> None:
        self._server = server

    async def run(self, call: Any) -> list[Any]:
        async with _cancel_on_exit(call):
            return await _outputs(call)

    async def run_with_progress(self, call: Any, token: str | int) -> list[Any]:
        """The same, with progress notifications to the agent."""
        context = self._server.mcp_server.request_context
        async with _cancel_on_exit(call):
            async for update in call:
                if update.type != "output":
                    continue
                if update.final:
                    break
                if progress := parse_progress(update.outputs):
                    fraction, message = progress
                    await context.session.send_progress_notification(
                        progress_token=token,
                        progress=fraction,
                        total=1.0,
                        message=message,
                        related_request_id=str(context.request_id),
                    )
            return await _outputs(call)


def parse_progress(outputs: Any) -> tuple[float, str] | None:
    """Fraction and message of an update that one of our functions yielded."""
    values = outputs.get("data") if isinstance(outputs, dict) else outputs
    if not values or not isinstance(values[-1], dict) or "status" not in values[-1]:
        return None
    update = values[-1]
    status = update["status"]
    if "num_steps" in update:
        return update["fraction"], f"{status}, step {update['step']} of {update['num_steps']}"
    total = update.get("bytes_total")
    return (update["bytes_done"] / total if total else 0.0), status


async def _outputs(call: Any) -> list[Any]:
    result = await run_sync(call.result, abandon_on_cancel=True)
    return list(result) if isinstance(result, tuple) else [result]


@asynccontextmanager
async def _cancel_on_exit(call: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if not call.done():
            with anyio.CancelScope(shield=True):
                await run_sync(call.cancel)  # an HTTP request to this very server
